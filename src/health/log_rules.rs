//! Which log lines mean something. The rules are data (`rules.toml`); this file checks them and finds their lines. Pure.
//!
//! A log is searched in one pass for the fixed texts that the patterns contain (a SIMD search for all of them at once);
//! only a line that holds one of them meets the regular expressions.

use crate::event::{Finding, Gravity, Phase};
use aho_corasick::{AhoCorasick, packed};
use memchr::{memchr, memchr_iter, memrchr};
use regex::bytes::RegexBuilder;
use regex_automata::util::syntax;
use regex_automata::{Input, MatchKind, PatternSet, meta};
use regex_syntax::hir::{Hir, HirKind};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use toml::Spanned;

const BUILTIN: &str = include_str!("rules.toml");

/// The shortest fixed text a pattern may have.
const MIN_NEEDLE: usize = 4;

/// So much of a line before and after a needle is looked at; only absurd lines are longer.
const BEFORE: usize = 4 << 10;
const AFTER: usize = 64 << 10;

/// The text of a finding is cut to this many bytes.
const MAX_TEXT: usize = 2 << 10;

/// Where a rule counts that does not say where.
const DEFAULT_PHASES: [Phase; 4] = [Phase::Loading, Phase::WarmUp, Phase::Measuring, Phase::Flushing];

/// One rule, checked.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Unique name.
    pub id: String,
    /// The regular expression.
    pub pattern: String,
    /// A class of failure.
    pub cause: String,
    /// What a match means in the phases where it counts.
    pub gravity: Gravity,
    /// Where it counts.
    pub phases: Vec<Phase>,
    /// Causes that it explains, even when their lines come first.
    pub outranks: Vec<String>,
    /// Where it is known from.
    pub source: String,
    /// A line that matches.
    pub example: String,
    /// Lines that do not.
    pub near_misses: Vec<String>,
}

/// What is wrong with a file of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesError {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong and what to do.
    pub problem: String,
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.problem)
    }
}

impl std::error::Error for RulesError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RulesFile {
    #[serde(default)]
    rule: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: Spanned<String>,
    pattern: Spanned<String>,
    cause: String,
    severity: Gravity,
    phases: Option<Vec<Phase>>,
    #[serde(default)]
    outranks: Vec<String>,
    source: String,
    example: Spanned<String>,
    #[serde(default)]
    near_misses: Vec<Spanned<String>>,
}

/// Is told the offset of a line, the line, its rule and what it means.
type Found<'a, 'b> = dyn FnMut(usize, &[u8], &'a Rule, Gravity) + 'b;

/// All rules of a run, ready to search with. A search needs some megabytes of its own, which stay with the rules and
/// of which there can be one for each of the last threads that searched; a copy begins with none.
#[derive(Debug, Clone)]
pub struct Rules {
    rules: Vec<Rule>,
    set: meta::Regex,
    prefilter: Prefilter,
}

/// So many texts one fast search takes before it looks twice at too many places.
const AT_ONCE: usize = 64;

#[derive(Debug, Clone)]
enum Prefilter {
    /// Teddy: several bytes at once; several of them, each with its share.
    Packed(Vec<packed::Searcher>),
    /// For processors without its instructions.
    Automaton(AhoCorasick),
}

/// Where each search of a [`Prefilter`] has found something next; none when it has not looked yet.
type Next = Vec<Option<usize>>;

impl Prefilter {
    fn new(needles: &[Vec<u8>]) -> Self {
        let searchers = needles.chunks(AT_ONCE).map(|share| {
            let mut builder = packed::Config::new().heuristic_pattern_limits(false).builder();
            builder.extend(share);
            builder.build()
        });
        match searchers.collect() {
            Some(searchers) => Self::Packed(searchers),
            // Fails only beyond 2^31 states.
            None => Self::Automaton(AhoCorasick::new(needles).expect("a few hundred short needles fit")),
        }
    }

    fn start(&self) -> Next {
        match self {
            Self::Packed(searchers) => vec![None; searchers.len()],
            Self::Automaton(_) => Next::new(),
        }
    }

    /// The first text at or after `from`, which never goes back for one `next`.
    fn find(&self, haystack: &[u8], from: usize, next: &mut Next) -> Option<usize> {
        match self {
            Self::Packed(searchers) => {
                let span = aho_corasick::Span { start: from, end: haystack.len() };
                let found = searchers.iter().zip(next).map(|(searcher, next)| match next {
                    Some(at) if *at >= from => *at,
                    _ => *next
                        .insert(searcher.find_in(haystack, span).map_or(usize::MAX, |found| found.start())),
                });
                found.min().filter(|at| *at != usize::MAX)
            }
            Self::Automaton(automaton) => {
                automaton.find(aho_corasick::Input::new(haystack).range(from..)).map(|found| found.start())
            }
        }
    }
}

impl Rules {
    /// The rules that come with varcas-guard.
    pub fn builtin() -> Self {
        // A test holds this.
        Self::load(&[]).expect("the built-in rules are valid")
    }

    /// The built-in rules and those of the given files (name, text). Every mistake of every file is told.
    pub fn load(files: &[(&str, &str)]) -> Result<Self, Vec<RulesError>> {
        let mut errors = Vec::new();
        let mut rules = Vec::new();
        let mut needles = Vec::new();
        let mut seen: HashMap<String, String> = HashMap::new();
        for (file, text) in std::iter::once(&("built-in rules", BUILTIN)).chain(files) {
            let line_of = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
            let mut wrong = |at: usize, problem: String| {
                errors.push(RulesError { file: (*file).to_owned(), line: line_of(at), problem })
            };
            let parsed: RulesFile = match toml::from_str(text) {
                Ok(parsed) => parsed,
                Err(error) => {
                    wrong(error.span().map_or(0, |span| span.start), error.message().to_owned());
                    continue;
                }
            };
            for entry in parsed.rule {
                let id = entry.id.get_ref();
                let at = entry.id.span().start;
                let here = format!("{file}:{}", line_of(at));
                if let Some(first) = seen.insert(id.clone(), here) {
                    wrong(at, format!("rule id {id:?} is taken by {first}: choose another"));
                }
                if let Err((at, problem)) = check(&entry) {
                    wrong(at, format!("rule {id:?}: {problem}"));
                    continue;
                }
                needles.extend(needles_of(entry.pattern.get_ref()).unwrap_or_default());
                rules.push(Rule {
                    id: entry.id.into_inner(),
                    pattern: entry.pattern.into_inner(),
                    cause: entry.cause,
                    gravity: entry.severity,
                    phases: entry.phases.unwrap_or_else(|| DEFAULT_PHASES.to_vec()),
                    outranks: entry.outranks,
                    source: entry.source,
                    example: entry.example.into_inner(),
                    near_misses: entry.near_misses.into_iter().map(Spanned::into_inner).collect(),
                });
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let needles = fewest(needles);
        let set = set_of(&rules.iter().map(|rule| &rule.pattern).collect::<Vec<_>>()).map_err(|error| {
            vec![RulesError { file: "all rules together".to_owned(), line: 1, problem: error.to_string() }]
        })?;
        Ok(Self { rules, set, prefilter: Prefilter::new(&needles) })
    }

    /// Every rule, the built-in ones first.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// What one line means in a phase, if a rule knows it.
    pub fn classify(&self, line: &str, phase: Phase) -> Option<(&Rule, Gravity)> {
        self.classify_bytes(line.as_bytes(), Some(phase))
    }

    /// Of several rules for one line a harmless one counts, for it was written because of this line; then the gravest,
    /// then one that knows the cause, then the first.
    fn classify_bytes(&self, line: &[u8], phase: Option<Phase>) -> Option<(&Rule, Gravity)> {
        let mut matches = PatternSet::new(self.rules.len());
        self.set.which_overlapping_matches(&Input::new(line), &mut matches);
        matches
            .iter()
            .map(|index| {
                let rule = &self.rules[index];
                let counts = rule.gravity == Gravity::Harmless
                    || phase.is_none_or(|phase| rule.phases.contains(&phase));
                (rule, if counts { rule.gravity } else { Gravity::Consequence })
            })
            .reduce(|best, next| if rank(next) > rank(best) { next } else { best })
    }

    /// Calls `found` for every line of `text` that a rule knows, with the line's offset. `text` holds whole lines.
    fn scan<'a>(&'a self, text: &[u8], phase: Option<Phase>, found: &mut Found<'a, '_>) {
        let mut from = 0;
        let mut next = self.prefilter.start();
        while let Some(at) = self.prefilter.find(text, from, &mut next) {
            let line_start = memrchr(b'\n', &text[..at]).map_or(0, |before| before + 1);
            let line_end = memchr(b'\n', &text[at..]).map_or(text.len(), |after| at + after);
            let window = line_start.max(at.saturating_sub(BEFORE))..line_end.min(at + AFTER);
            from = window.end;
            if let Some((rule, gravity)) = self.classify_bytes(&text[window.clone()], phase) {
                found(line_start, &text[window], rule, gravity);
                from = line_end;
            }
        }
    }
}

/// Rules that only mark a place in a server's life: whatever else a line means counts more.
const MARKS: [&str; 3] = ["server-starting", "server-ready", "profiler-stopped"];

fn rank((rule, gravity): (&Rule, Gravity)) -> (bool, Gravity, bool) {
    let harmless = gravity == Gravity::Harmless && !MARKS.contains(&rule.id.as_str());
    (harmless, gravity, rule.cause != Finding::ENGINE_DEAD)
}

/// One search for all patterns. Its own search for fixed texts is switched off: the scanner has done that, and the
/// automaton for it takes 3.5 MB.
fn set_of<T: AsRef<str>>(patterns: &[T]) -> Result<meta::Regex, Box<meta::BuildError>> {
    meta::Regex::builder()
        .configure(meta::Config::new().auto_prefilter(false).utf8_empty(false).match_kind(MatchKind::All))
        .syntax(syntax::Config::new().unicode(false).utf8(false))
        .build_many(patterns)
        .map_err(Box::new)
}

/// Byte offset and problem.
fn check(entry: &Entry) -> Result<(), (usize, String)> {
    let at = entry.pattern.span().start;
    let pattern = RegexBuilder::new(entry.pattern.get_ref()).unicode(false).build().map_err(|error| {
        (at, format!("the pattern is not valid: {}", error.to_string().replace('\n', " ")))
    })?;
    if needles_of(entry.pattern.get_ref()).is_none() {
        return Err((
            at,
            format!("every match of the pattern must contain a fixed text of at least {MIN_NEEDLE} bytes"),
        ));
    }
    if !pattern.is_match(entry.example.get_ref().as_bytes()) {
        return Err((entry.example.span().start, "the example does not match the pattern".to_owned()));
    }
    match entry.near_misses.iter().find(|miss| pattern.is_match(miss.get_ref().as_bytes())) {
        Some(miss) => {
            Err((miss.span().start, format!("the near miss {:?} matches the pattern", miss.get_ref())))
        }
        None => Ok(()),
    }
}

/// Texts of which every match of the pattern contains at least one; none when a branch has no long enough text.
fn needles_of(pattern: &str) -> Option<Vec<Vec<u8>>> {
    let hir = regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).ok()?;
    required(&hir).filter(|needles| shortest(needles) >= MIN_NEEDLE)
}

/// Parts that many fixed texts share, and that lines of a server that is well seldom hold.
const SHARED: [&str; 31] = [
    "ailed",
    "error",
    "memory",
    "exit code",
    "annot ",
    "nvalid",
    "orted",
    "terminat",
    "ersion",
    "okeniz",
    "driver",
    "CUDA",
    "gated repo",
    "for url",
    "weights",
    "required",
    " dead",
    "died",
    "nvcc",
    "quantiz",
    "Dumping",
    "unexpected",
    "timed out",
    "Segmentation",
    "oom-kill",
    "rchitecture",
    "larger than the",
    "is not a",
    "execute",
    "instruction",
    "space",
];

/// What a server that is well writes all the time; no text that stands in here helps to find anything.
const TYPICAL: &[u8] = b"INFO [loggers.py:257] Engine 000: Avg prompt throughput: 123.4 tokens/s, Avg generation throughput: 567.8 \
    tokens/s, Running: 12 reqs, Waiting: 0 reqs, GPU KV cache usage: 1.2%, Prefix cache hit rate: 0.0%\nINFO:     \
    127.0.0.1:40000 - \"POST /v1/completions HTTP/1.1\" 200 OK\nReceived request cmpl-7: prompt: 'a', params: SamplingParams(";

/// Few texts of which every match contains one, each from where it begins most unlike a line of a server that is well.
fn fewest(mut needles: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for part in SHARED {
        if needles.iter().filter(|needle| contains(needle, part.as_bytes())).count() > 1 {
            needles.retain(|needle| !contains(needle, part.as_bytes()));
            needles.push(part.as_bytes().to_vec());
        }
    }
    let mut rare: Vec<Vec<u8>> = needles.iter().map(|needle| rarest(needle).to_vec()).collect();
    rare.sort_by_key(Vec::len);
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for needle in rare {
        // Where it stands the shorter one stands too.
        if !kept.iter().any(|shorter| contains(&needle, shorter)) {
            kept.push(needle);
        }
    }
    // Those that begin like everything share a search, and do not slow the others down.
    kept.sort_by_key(|needle| commonness(needle));
    kept
}

fn contains(needle: &[u8], part: &[u8]) -> bool {
    memchr::memmem::find(needle, part).is_some()
}

/// How usual the first bytes are; the fast search looks at those first.
fn commonness(text: &[u8]) -> u32 {
    let common = |byte: &u8| match byte {
        b' ' | b'e' | b't' | b'a' | b'o' | b'i' | b'n' | b's' | b'r' | b'0'..=b'9' => 10,
        b'.' | b':' | b'-' | b'[' | b']' | b'(' | b')' | b'/' | b'"' | b',' | b'_' | b'=' => 8,
        b'd' | b'l' | b'c' | b'm' | b'p' | b'u' | b'g' | b'h' => 6,
        b'A'..=b'Z' => 4,
        _ => 2,
    };
    text.iter().take(MIN_NEEDLE).map(common).sum()
}

/// The end of a text, at least eight bytes of it, that begins most unusually.
fn rarest(needle: &[u8]) -> &[u8] {
    const LEAST: usize = 8;
    (0..=needle.len().saturating_sub(LEAST))
        .map(|begin| &needle[begin..])
        .filter(|end| !contains(TYPICAL, end))
        .min_by_key(|end| commonness(end))
        .unwrap_or(needle)
}

fn shortest(needles: &[Vec<u8>]) -> usize {
    needles.iter().map(Vec::len).min().unwrap_or_default()
}

fn required(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Literal(literal) => Some(vec![literal.0.to_vec()]),
        HirKind::Capture(capture) => required(&capture.sub),
        HirKind::Repetition(repetition) if repetition.min > 0 => required(&repetition.sub),
        HirKind::Concat(parts) => parts.iter().filter_map(required).max_by_key(|needles| shortest(needles)),
        HirKind::Alternation(branches) => {
            branches.iter().map(required).collect::<Option<Vec<_>>>().map(|all| all.concat())
        }
        _ => None,
    }
}

/// Searches a log as it comes in, piece by piece.
#[derive(Debug, Default)]
pub struct LogScanner {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// Offset and number of what comes next (of the partial line, if there is one).
    offset: u64,
    line: u64,
    counts: HashMap<String, u64>,
}

impl LogScanner {
    /// At the beginning of a log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and hands out what they complete. Of the matches of one rule only the first three and then
    /// the 10th, 100th, ... are told, so that a line that comes a million times does not fill the journal.
    pub fn push(&mut self, rules: &Rules, phase: Phase, bytes: &[u8], findings: &mut Vec<Finding>) {
        self.read(rules, Some(phase), bytes, findings);
    }

    /// As [`LogScanner::push`] for a log of which nobody knows the phase: every rule counts.
    pub fn read(
        &mut self,
        rules: &Rules,
        phase: Option<Phase>,
        mut bytes: &[u8],
        findings: &mut Vec<Finding>,
    ) {
        if !self.partial.is_empty() {
            let end = memchr(b'\n', bytes).map_or(bytes.len(), |end| end + 1);
            self.partial.extend_from_slice(&bytes[..end]);
            bytes = &bytes[end..];
            let ended = self.partial.last() == Some(&b'\n');
            if !ended && self.partial.len() < super::lines::MAX_LINE {
                return;
            }
            let partial = std::mem::take(&mut self.partial);
            self.scan(rules, phase, &partial, findings);
        }
        let whole = memrchr(b'\n', bytes).map_or(0, |end| end + 1);
        self.scan(rules, phase, &bytes[..whole], findings);
        self.partial.extend_from_slice(&bytes[whole..]);
    }

    /// Looks at an unfinished last line as well: its writer is dead.
    pub fn end_of_text(&mut self, rules: &Rules, phase: Phase, findings: &mut Vec<Finding>) {
        self.end(rules, Some(phase), findings);
    }

    /// As [`LogScanner::end_of_text`], after [`LogScanner::read`].
    pub fn end(&mut self, rules: &Rules, phase: Option<Phase>, findings: &mut Vec<Finding>) {
        let partial = std::mem::take(&mut self.partial);
        self.scan(rules, phase, &partial, findings);
    }

    /// What was told often enough is told again: another part of the log begins.
    pub fn tell_again(&mut self) {
        self.counts.clear();
    }

    /// Lines that came to their end so far.
    pub fn lines(&self) -> u64 {
        self.line
    }

    /// Lines up to this one, and bytes up to this place, are missing.
    pub fn skip(&mut self, last: u64, to: u64) {
        (self.line, self.offset) = (self.line.max(last), self.offset.max(to));
    }

    /// What follows is from the beginning of a file.
    pub fn restart(&mut self, rules: &Rules, phase: Phase, findings: &mut Vec<Finding>) {
        self.end_of_text(rules, phase, findings);
        (self.offset, self.line) = (0, 0);
    }

    fn scan(&mut self, rules: &Rules, phase: Option<Phase>, text: &[u8], findings: &mut Vec<Finding>) {
        let (offset, counts) = (self.offset, &mut self.counts);
        let (mut line, mut counted) = (self.line, 0);
        rules.scan(text, phase, &mut |at, window, rule, gravity| {
            line += memchr_iter(b'\n', &text[counted..at]).count() as u64;
            counted = at;
            let count = counts.entry(rule.id.clone()).or_default();
            *count += 1;
            if *count <= 3 || is_power_of_ten(*count) {
                findings.push(Finding {
                    rule: rule.id.clone(),
                    cause: rule.cause.clone(),
                    gravity,
                    line: line + 1,
                    offset: offset + at as u64,
                    text: readable(window),
                    count: *count,
                    outranks: rule.outranks.clone(),
                });
            }
        });
        self.line = line + memchr_iter(b'\n', &text[counted..]).count() as u64;
        self.offset += text.len() as u64;
    }
}

fn is_power_of_ten(mut number: u64) -> bool {
    while number >= 10 && number.is_multiple_of(10) {
        number /= 10;
    }
    number == 1
}

/// A line as a person reads it: without colours and carriage returns, and not endless.
pub fn readable(line: &[u8]) -> String {
    plain(line, MAX_TEXT)
}

/// As [`readable`], cut at another length in bytes.
pub fn plain(line: &[u8], longest: usize) -> String {
    let mut text = String::new();
    let lossy = String::from_utf8_lossy(&line[..line.len().min(longest.saturating_mul(2))]);
    let mut characters = lossy.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // CSI: up to and with the first letter.
            if characters.next() == Some('[') {
                characters.by_ref().find(char::is_ascii_alphabetic);
            }
        } else if !character.is_control() || character == '\t' {
            text.push(character);
        }
        if text.len() >= longest {
            text.push('\u{2026}');
            break;
        }
    }
    text
}

#[cfg(test)]
#[path = "log_rules_tests.rs"]
mod tests;
