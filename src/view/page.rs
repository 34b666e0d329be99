//! What every page about a run looks like. Pure.

use maud::{Markup, html};

/// The style sheet of every page.
pub const STYLE: &str = include_str!("style.css");

/// A section of a page.
pub fn section(id: &str, title: &str, body: Markup) -> Markup {
    html! { section id=(id) { h2 { (title) } (body) } }
}

/// Beside a word of that class: colour alone tells nothing to many people.
pub fn sign(class: &str) -> &'static str {
    match class {
        "good" => "\u{2713}",
        "mixed" => "!",
        "bad" => "\u{2715}",
        _ => "\u{2026}",
    }
}
