//! `report.html`: one file that needs nothing else, not even a network or a script, for a phone at 7:00. Pure.
//!
//! Verdict first, then what to do, then figures, then everything that proves it. `maud` escapes whatever a log may hold;
//! the policy in the head forbids what would still slip through.

mod attempts;
mod charts;
mod profile;
mod repeat;
mod results;
mod verdict;

use super::model::Report;
use super::safe;
use super::series::Series;
use super::story::{self, Tone, first_up};
use super::units::{bytes, count};
use super::{Excerpt, View};
use crate::time::human;
use crate::view::clean::clean;
use crate::view::page::{STYLE, section, sign};
use crate::view::tiles::{incomplete, of_benchmark, tile};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Nothing may be fetched and nothing may run; styles stand in the file itself.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Renders the page.
pub fn render(view: &View<'_>) -> String {
    let report = view.report;
    let (tone, word) = story::headline(report);
    let title = story::title(report);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (word) ": " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header.(tone_class(tone)) {
                    p.status { span.sign aria-hidden="true" { (sign(tone_class(tone))) } " " (word) }
                    h1 { (first_up(&title)) }
                    (changed(report))
                    div.story { @for sentence in &report.story { p { (sentence) } } }
                    (facts(report))
                }
                main {
                    (to_do(report))
                    (verdict::of_run(view))
                    (tiles(report))
                    (charts::overview(report))
                    (charts::of_subject(view))
                    (results::benchmark(report))
                    (results::traces(report))
                    (results::profile(report))
                    (attempts::all(view))
                    (repeat::timeline(report))
                    (repeat::settings(report))
                    (repeat::not_measured(view))
                }
                footer {
                    p {
                        "varcas-guard " (report.guard_version) ", run " code { (report.run_id) } ". Everything here was made from "
                        (file_link("events.jsonl", "events.jsonl")) "; for programs there is "
                        (file_link("report.json", "report.json")) ", and " (file_link("guard.log", "guard.log"))
                        " is varcas-guard's own log."
                    }
                }
            }
        }
    };
    // Of everything at once, so that no place can be forgotten.
    clean(&page.into_string()).into_owned()
}

/// A relative link; no text of a log can turn it into anything else.
fn file_link(path: &str, text: &str) -> Markup {
    html! { a href=(safe::relative(path)) { (text) } }
}

/// Says where the rest is.
fn more(count: usize) -> Markup {
    html! { p.note { (count) " more are in " (file_link("report.json", "report.json")) "." } }
}

fn tone_class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Mixed => "mixed",
        Tone::Bad => "bad",
        Tone::Open => "open",
    }
}

/// Whatever is read below, this must be read before it.
fn changed(report: &Report) -> Markup {
    if report.mitigations.is_empty() {
        return html! {};
    }
    html! {
        div.changed {
            p { strong { (story::under_changes(report)) ":" } }
            ul {
                @for change in &report.mitigations {
                    li { strong { (verdict::change(change)) } " " (&change.why) }
                }
            }
        }
    }
}

fn facts(report: &Report) -> Markup {
    let started = report.started.map(|at| at.strftime("%-d %b %Y, %H:%M UTC").to_string());
    html! {
        dl.facts {
            @if let Some(started) = started { div { dt { "Started" } dd { (started) } } }
            div { dt { "Took" } dd { (human(report.duration_s)) } }
            div { dt { "Attempts" } dd { (report.attempts.len()) } }
            div { dt { "Exit code" } dd { (story::exit_code(report)) } }
            div {
                dt { "Left behind" }
                @if report.left_behind.is_empty() { dd { "nothing" } }
                @else { dd.alarm { (report.left_behind.len()) " things, see below" } }
            }
        }
    }
}

fn to_do(report: &Report) -> Markup {
    if report.to_do.is_empty() {
        return html! {};
    }
    section(
        "now",
        "What to do now",
        html! {
            ol.todo { @for step in &report.to_do { li { (ticked(step)) } } }
        },
    )
}

/// Text in which `backticks` mark code.
fn ticked(text: &str) -> Markup {
    html! {
        @for (index, part) in text.split('`').enumerate() {
            @if index % 2 == 0 { (part) } @else if part == "benchmark.json" { (file_link(part, part)) } @else { code { (part) } }
        }
    }
}

fn tiles(report: &Report) -> Markup {
    let Some(bench) = &report.benchmark else { return html! {} };
    let size: u64 = report.traces.iter().map(|trace| trace.bytes).sum();
    html! {
        section.tiles aria-label="Key figures" {
            @if !bench.is_complete { (incomplete(bench)) }
            dl {
                (of_benchmark(bench))
                (tile("Traces", &count(report.traces.len() as u64), &format!("windows, {}", bytes(size))))
            }
        }
    }
}

impl<'a> View<'a> {
    /// A report alone.
    pub fn new(report: &'a Report, series: &'a Series) -> Self {
        Self { report, series, files: &[], unread: &[] }
    }

    fn files_of(&self, attempt: u32) -> impl Iterator<Item = &'a Excerpt> {
        self.files.iter().filter(move |file| file.attempt == attempt)
    }
}
