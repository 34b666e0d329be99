//! Builds the mutants in.

use quote::{ToTokens, quote};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{BinOp, Block, Expr, ExprBinary, ReturnType, Type, UnOp};

/// The switch, a module of the copied crate.
const SWITCH: &str = r#"
#![allow(missing_docs, clippy::all)]
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{LazyLock, Mutex};
use std::io::Write;
static ACTIVE: LazyLock<u32> =
    LazyLock::new(|| std::env::var("MUTANT").ok().and_then(|n| n.parse().ok()).unwrap_or(0));
static COVER: LazyLock<Option<Mutex<std::fs::File>>> = LazyLock::new(|| {
    let path = std::env::var_os("MUTANT_COVER")?;
    std::fs::OpenOptions::new().create(true).append(true).open(path).ok().map(Mutex::new)
});
static SEEN: [AtomicBool; 20_000] = [const { AtomicBool::new(false) }; 20_000];
pub fn on(number: u32) -> bool {
    if let Some(file) = &*COVER && !SEEN[number as usize].swap(true, Relaxed) {
        let _ = writeln!(file.lock().unwrap(), "{number}");
    }
    *ACTIVE == number
}
"#;

pub fn make(root: &Path, scratch: &Path, files: &[&str]) -> Result<(), String> {
    copy(root, scratch)?;
    let src = scratch.join("src");
    fs::write(src.join("mutants.rs"), SWITCH).map_err(|e| e.to_string())?;
    let lib = fs::read_to_string(src.join("lib.rs")).map_err(|e| e.to_string())?;
    fs::write(src.join("lib.rs"), lib + "#[doc(hidden)]\n#[allow(missing_docs)]\npub mod mutants;\n")
        .map_err(|e| e.to_string())?;
    let mut defaults = BTreeSet::new();
    with_default(&src, &mut defaults)?;
    let dropped = dropped(scratch);
    let (mut number, mut table) = (0, String::new());
    for name in files {
        let path = src.join(name);
        let text = fs::read_to_string(root.join("src").join(name)).map_err(|e| format!("{name}: {e}"))?;
        let mut file = syn::parse_file(&text).map_err(|e| format!("{name}: {e}"))?;
        let mut maker = Maker {
            file: name,
            number,
            table: String::new(),
            defaults: &defaults,
            dropped: &dropped,
            owner: String::new(),
        };
        maker.visit_file_mut(&mut file);
        number = maker.number;
        table += &maker.table;
        fs::write(&path, file.to_token_stream().to_string()).map_err(|e| e.to_string())?;
    }
    fs::write(scratch.join("mutants.tsv"), table).map_err(|e| e.to_string())?;
    println!("{number} mutants in {} files", files.len());
    Ok(())
}

/// Mutants that do not compile, found by earlier builds: file, line, what.
fn dropped(scratch: &Path) -> BTreeSet<String> {
    fs::read_to_string(scratch.join("dropped.tsv")).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let problem = |e: std::io::Error| format!("copy {}: {e}", from.display());
    fs::create_dir_all(to).map_err(problem)?;
    for entry in fs::read_dir(from).map_err(problem)?.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        if ["target", ".git", "fuzz", "mutants"].iter().any(|skip| name == *skip) {
            continue;
        }
        let kind = entry.file_type().map_err(problem)?;
        if kind.is_dir() {
            copy(&path, &to.join(name))?;
        } else if kind.is_file() {
            // Untouched files keep their time, so that nothing is built in vain.
            let (new, target) = (fs::read(&path).map_err(problem)?, to.join(name));
            if fs::read(&target).ok().as_ref() != Some(&new) {
                fs::write(target, new).map_err(problem)?;
            }
        }
    }
    Ok(())
}

/// The names of types that have a default.
fn with_default(folder: &Path, names: &mut BTreeSet<String>) -> Result<(), String> {
    for entry in fs::read_dir(folder).map_err(|e| e.to_string())?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            with_default(&path, names)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
            for (index, line) in text.lines().enumerate() {
                if let Some(rest) = line.trim().strip_prefix("impl Default for ") {
                    names.extend(rest.split(|c: char| !c.is_alphanumeric()).next().map(str::to_owned));
                }
                if line.contains("derive(") && line.contains("Default") {
                    let after = text.lines().skip(index + 1).take(6);
                    let named = after.filter_map(|line| {
                        line.trim()
                            .split_once("struct ")
                            .or_else(|| line.trim().split_once("enum "))
                            .map(|(_, name)| name)
                    });
                    names.extend(named.take(1).filter_map(|name| {
                        // A type with parameters may have it or not.
                        (!name.contains('<'))
                            .then(|| name.split(|c: char| !c.is_alphanumeric()).next().map(str::to_owned))
                            .flatten()
                    }));
                }
            }
        }
    }
    Ok(())
}

struct Maker<'a> {
    file: &'a str,
    number: u32,
    table: String,
    defaults: &'a BTreeSet<String>,
    dropped: &'a BTreeSet<String>,
    owner: String,
}

impl Maker<'_> {
    /// The condition that a mutant is on; none if it is known not to compile.
    fn mutant(&mut self, span: proc_macro2::Span, what: &str) -> Option<proc_macro2::TokenStream> {
        let line = span.start().line;
        if self.dropped.contains(&format!("{}\t{line}\t{what}", self.file)) {
            return None;
        }
        self.number += 1;
        let number = self.number;
        let _ = writeln!(self.table, "{number}\t{}\t{line}\t{}\t{what}", self.file, self.owner);
        Some(quote!(crate::mutants::on(#number)))
    }

    fn function(&mut self, output: &ReturnType, block: &mut Block) {
        let values = match output {
            ReturnType::Default => vec![quote!(())],
            ReturnType::Type(_, ty) => values(ty, self.defaults),
        };
        let original = block.to_token_stream().to_string();
        if block.stmts.is_empty() {
            return;
        }
        let mut early = Vec::new();
        for value in values {
            if original == quote!({ #value }).to_string() {
                continue;
            }
            let what = format!("return {}", value.to_string().replace(' ', ""));
            if let Some(on) = self.mutant(block.span(), &what) {
                early.push(quote!(if #on { return #value; }));
            }
        }
        let stmts = &block.stmts;
        *block = syn::parse2(quote!({ #(#early)* #(#stmts)* })).expect("a block stays one");
    }
}

fn is_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let text = attr.to_token_stream().to_string().replace(' ', "");
        text.contains("cfg(test)") || text.contains("#[test]")
    })
}

/// Plain values of a type.
fn values(ty: &Type, defaults: &BTreeSet<String>) -> Vec<proc_macro2::TokenStream> {
    match ty {
        Type::Tuple(tuple) if tuple.elems.is_empty() => vec![quote!(())],
        Type::Tuple(tuple) => {
            let each: Vec<_> = tuple.elems.iter().map(|ty| values(ty, defaults)).collect();
            if each.iter().any(Vec::is_empty) {
                return Vec::new();
            }
            let longest = each.iter().map(Vec::len).max().unwrap_or(0);
            (0..longest)
                .map(|index| {
                    let parts = each.iter().map(|values| &values[index % values.len()]);
                    quote!((#(#parts),*))
                })
                .collect()
        }
        Type::Reference(reference) if reference.mutability.is_none() => match &*reference.elem {
            Type::Path(path) if path.path.is_ident("str") => vec![quote!(""), quote!("xyzzy")],
            Type::Slice(_) => vec![quote!(&[])],
            _ => Vec::new(),
        },
        Type::Path(path) => {
            let Some(last) = path.path.segments.last() else { return Vec::new() };
            let arguments: Vec<&Type> = match &last.arguments {
                syn::PathArguments::AngleBracketed(list) => list
                    .args
                    .iter()
                    .filter_map(|arg| if let syn::GenericArgument::Type(ty) = arg { Some(ty) } else { None })
                    .collect(),
                _ => Vec::new(),
            };
            let inner = || arguments.first().map(|ty| values(ty, defaults)).unwrap_or_default();
            match last.ident.to_string().as_str() {
                "bool" => vec![quote!(true), quote!(false)],
                "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => vec![quote!(0), quote!(1)],
                "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => vec![quote!(0), quote!(1), quote!(-1)],
                "f32" | "f64" => vec![quote!(0.0), quote!(1.0), quote!(-1.0)],
                "char" => vec![quote!('x')],
                "String" => vec![quote!(String::new()), quote!("xyzzy".to_owned())],
                "Option" => std::iter::once(quote!(None))
                    .chain(inner().into_iter().map(|v| quote!(Some(#v))))
                    .collect(),
                "Result" if arguments.is_empty() => vec![quote!(Ok(()))],
                "Result" => inner().into_iter().map(|v| quote!(Ok(#v))).collect(),
                "Vec" => std::iter::once(quote!(Vec::new()))
                    .chain(inner().into_iter().take(1).map(|v| quote!(vec![#v])))
                    .collect(),
                "Box" => inner().into_iter().map(|v| quote!(Box::new(#v))).collect(),
                "Duration" => vec![quote!(std::time::Duration::ZERO)],
                "BTreeMap" | "HashMap" | "BTreeSet" | "HashSet" | "VecDeque" => {
                    vec![quote!(Default::default())]
                }
                name if defaults.contains(name) => vec![quote!(Default::default())],
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

/// What an operator becomes.
fn others(op: &BinOp) -> Vec<BinOp> {
    let list: &[&str] = match op {
        BinOp::Eq(_) => &["!="],
        BinOp::Ne(_) => &["=="],
        BinOp::And(_) => &["||"],
        BinOp::Or(_) => &["&&"],
        BinOp::Lt(_) => &["==", ">", "<="],
        BinOp::Gt(_) => &["==", "<", ">="],
        BinOp::Le(_) => &[">"],
        BinOp::Ge(_) => &["<"],
        BinOp::Add(_) => &["-", "*"],
        BinOp::Sub(_) => &["+", "/"],
        BinOp::Mul(_) => &["+", "/"],
        BinOp::Div(_) => &["%", "*"],
        BinOp::Rem(_) => &["/", "+"],
        BinOp::Shl(_) => &[">>"],
        BinOp::Shr(_) => &["<<"],
        BinOp::BitAnd(_) => &["|", "^"],
        BinOp::BitOr(_) => &["&", "^"],
        BinOp::BitXor(_) => &["|", "&"],
        BinOp::AddAssign(_) => &["-=", "*="],
        BinOp::SubAssign(_) => &["+=", "/="],
        BinOp::MulAssign(_) => &["+=", "/="],
        BinOp::DivAssign(_) => &["%=", "*="],
        BinOp::BitAndAssign(_) => &["|="],
        BinOp::BitOrAssign(_) => &["&="],
        BinOp::BitXorAssign(_) => &["|="],
        _ => &[],
    };
    list.iter().map(|text| syn::parse_str(text).expect("an operator")).collect()
}

/// Whether a condition holds a `let`, which may stand only where it stands.
fn has_let(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(binary) => has_let(&binary.left) || has_let(&binary.right),
        Expr::Paren(paren) => has_let(&paren.expr),
        _ => false,
    }
}

/// Whether a pattern takes whatever comes: then the arms before it can go.
fn takes_all(pat: &syn::Pat) -> bool {
    match pat {
        syn::Pat::Wild(_) => true,
        // A name in capitals is a constant.
        syn::Pat::Ident(ident) => {
            ident.subpat.is_none() && ident.ident.to_string().starts_with(char::is_lowercase)
        }
        syn::Pat::Tuple(tuple) => tuple.elems.iter().all(takes_all),
        _ => false,
    }
}

impl VisitMut for Maker<'_> {
    fn visit_item_mod_mut(&mut self, item: &mut syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit_mut::visit_item_mod_mut(self, item);
        }
    }

    fn visit_item_const_mut(&mut self, _: &mut syn::ItemConst) {}

    fn visit_item_static_mut(&mut self, _: &mut syn::ItemStatic) {}

    fn visit_impl_item_const_mut(&mut self, _: &mut syn::ImplItemConst) {}

    fn visit_type_mut(&mut self, _: &mut Type) {}

    fn visit_pat_mut(&mut self, _: &mut syn::Pat) {}

    fn visit_attribute_mut(&mut self, _: &mut syn::Attribute) {}

    // Discriminants.
    fn visit_variant_mut(&mut self, _: &mut syn::Variant) {}

    fn visit_expr_const_mut(&mut self, _: &mut syn::ExprConst) {}

    fn visit_generic_argument_mut(&mut self, _: &mut syn::GenericArgument) {}

    fn visit_expr_repeat_mut(&mut self, repeat: &mut syn::ExprRepeat) {
        self.visit_expr_mut(&mut repeat.expr);
    }

    fn visit_item_fn_mut(&mut self, item: &mut syn::ItemFn) {
        if is_test(&item.attrs) || item.sig.constness.is_some() {
            return;
        }
        let before = std::mem::replace(&mut self.owner, item.sig.ident.to_string());
        visit_mut::visit_item_fn_mut(self, item);
        self.function(&item.sig.output.clone(), &mut item.block);
        self.owner = before;
    }

    fn visit_item_impl_mut(&mut self, item: &mut syn::ItemImpl) {
        let of =
            item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last().map(|s| s.ident.to_string()));
        if !is_test(&item.attrs) && of.as_deref() != Some("Debug") {
            visit_mut::visit_item_impl_mut(self, item);
        }
    }

    fn visit_impl_item_fn_mut(&mut self, item: &mut syn::ImplItemFn) {
        if is_test(&item.attrs) || item.sig.constness.is_some() {
            return;
        }
        let before = std::mem::replace(&mut self.owner, item.sig.ident.to_string());
        visit_mut::visit_impl_item_fn_mut(self, item);
        let default = item.sig.ident == "default";
        if !default {
            self.function(&item.sig.output.clone(), &mut item.block);
        }
        self.owner = before;
    }

    fn visit_expr_match_mut(&mut self, expr: &mut syn::ExprMatch) {
        let wild = expr.arms.last().is_some_and(|arm| arm.guard.is_none() && takes_all(&arm.pat));
        let last = expr.arms.len().saturating_sub(1);
        visit_mut::visit_expr_mut(self, &mut expr.expr);
        for (index, arm) in expr.arms.iter_mut().enumerate() {
            let span = arm.pat.span();
            let pattern = arm.pat.to_token_stream().to_string();
            let short: String = pattern.chars().filter(|c| *c != ' ').take(40).collect();
            visit_mut::visit_expr_mut(self, &mut arm.body);
            let mut guard = arm.guard.take();
            if let Some((_, guard)) = &mut guard
                && !has_let(guard)
            {
                let original = guard.clone();
                visit_mut::visit_expr_mut(self, guard);
                let always = self.mutant(original.span(), &format!("guard of {short} is true"));
                let never = self.mutant(original.span(), &format!("guard of {short} is false"));
                let inner = &**guard;
                let mut text = quote!((#inner));
                if let Some(on) = always {
                    text = quote!((#on || #text));
                }
                if let Some(on) = never {
                    text = quote!((!#on && #text));
                }
                **guard = syn::parse2(text).expect("a condition stays one");
            } else if guard.is_none() && wild && index < last {
                if let Some(on) = self.mutant(span, &format!("without the arm {short}")) {
                    guard = Some((Default::default(), syn::parse2(quote!(!#on)).expect("a condition")));
                }
            }
            arm.guard = guard;
        }
    }

    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        match expr {
            Expr::Binary(binary) => {
                let alternatives = if has_let(&binary.left) || has_let(&binary.right) {
                    Vec::new()
                } else {
                    others(&binary.op)
                };
                let original = binary.clone();
                visit_mut::visit_expr_binary_mut(self, binary);
                let changed = &*binary;
                let mut text = quote!({ #changed });
                let mut any = false;
                for op in alternatives {
                    let from = original.op.to_token_stream().to_string();
                    let what = format!(
                        "{from} is {} at {}",
                        op.to_token_stream(),
                        original.op.span().start().column
                    );
                    let Some(on) = self.mutant(original.op.span(), &what) else { continue };
                    let other = ExprBinary { op, ..original.clone() };
                    text = quote!({ if #on { #other } else #text });
                    any = true;
                }
                if any {
                    *expr = syn::parse2(quote!((#text))).expect("an expression stays one");
                }
            }
            Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_) | UnOp::Neg(_)) => {
                let literal = matches!(&*unary.expr, Expr::Lit(_));
                let (original, op) = (unary.expr.clone(), unary.op.to_token_stream().to_string());
                visit_mut::visit_expr_unary_mut(self, unary);
                let changed = &*unary;
                if !literal
                    && let Some(on) = self.mutant(
                        changed.op.span(),
                        &format!("without {op} at {}", changed.op.span().start().column),
                    )
                {
                    *expr = syn::parse2(quote!(({ if #on { #original } else { #changed } })))
                        .expect("an expression stays one");
                }
            }
            _ => visit_mut::visit_expr_mut(self, expr),
        }
    }
}
