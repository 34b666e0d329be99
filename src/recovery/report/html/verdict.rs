//! What it failed of, and the evidence for it, folded out on demand.

use super::{Excerpt, View, more, section, ticked};
use crate::event::{Mitigation, Quote, Verdict};
use crate::recovery::report::model::Attempt;
use crate::recovery::report::{safe, story};
use maud::{Markup, html};

/// The verdict on the attempt that the report is about.
pub(super) fn of_run(view: &View<'_>) -> Markup {
    let Some(attempt) = story::subject(view.report) else { return html! {} };
    match &attempt.verdict {
        Some(verdict) => section("verdict", "Verdict", body(view, attempt, verdict, false)),
        None => html! {},
    }
}

/// Lines and reasons of one kind.
const MOST: usize = 60;

/// A verdict with its evidence; with its advice, unless that stands elsewhere on the page.
pub(super) fn body(view: &View<'_>, attempt: &Attempt, verdict: &Verdict, with_advice: bool) -> Markup {
    html! {
        div.verdict {
            p.cause {
                b { (story::cause(&verdict.cause)) } " "
                span.badge title={ "class " (verdict.cause) } { (verdict.confidence) } " "
                span.badge { (verdict.outcome) } " "
                span.badge { "trying again: " (retry(verdict)) }
            }
            p { (&story::sentence(&verdict.explanation)) }
            @if with_advice && !verdict.advice.trim().is_empty() { p.advice { (ticked(&story::sentence(&verdict.advice))) } }
            @if let Some(quote) = &verdict.decisive {
                p.label { "The decisive line" }
                (quoted(attempt.number, quote))
            }
            @let log = view.files_of(attempt.number).find(|file| file.log);
            @if let Some(log) = log { (excerpt(log, if log.decisive.is_some() { "The log around it" } else { "The end of the server's log" })) }
            (list("Lines that only follow from it", verdict.consequences.len(), html! {
                @for quote in verdict.consequences.iter().take(MOST) { (quoted(attempt.number, quote)) }
            }))
            (texts("What else speaks for it", &verdict.supports))
            (texts("What speaks against it", &verdict.contradicts))
            (list("What it was not", verdict.ruled_out.len(), html! {
                dl.ruled { @for other in verdict.ruled_out.iter().take(MOST) {
                    dt { (story::cause(&other.cause)) } dd { (&other.why) }
                } }
            }))
            (texts("Sources that could not be read", &verdict.missing))
            (list("Where it is known from", verdict.references.len(), html! {
                ul { @for reference in verdict.references.iter().take(MOST) { li { (link(reference)) } } }
            }))
        }
    }
}

fn retry(verdict: &Verdict) -> &'static str {
    match verdict.retry {
        crate::event::Retry::Yes => "can help",
        crate::event::Retry::No => "cannot help",
        crate::event::Retry::WithMitigation => "only with a change",
    }
}

fn quoted(attempt: u32, quote: &Quote) -> Markup {
    let source = &quote.source;
    html! {
        figure.quote {
            figcaption {
                @if quote.source == "vllm_server.log" {
                    (super::file_link(&format!("attempt-{attempt}/vllm_server.log"), source))
                } @else { (source) }
                @if let Some(line) = quote.line { ", line " (line) }
            }
            pre { (&quote.text) }
        }
    }
}

/// A fold with a count, or nothing when there is nothing in it.
pub(super) fn list(title: &str, count: usize, body: Markup) -> Markup {
    if count == 0 {
        return html! {};
    }
    html! { details { summary { (title) " " span.count { (count) } } (body) } }
}

pub(super) fn texts(title: &str, texts: &[String]) -> Markup {
    list(
        title,
        texts.len(),
        html! {
            ul { @for text in texts.iter().take(MOST) { li { (text) } } }
            @if texts.len() > MOST { (more(texts.len() - MOST)) }
        },
    )
}

fn link(reference: &str) -> Markup {
    match safe::web(reference) {
        Some(place) => html! { a href=(place) rel="noreferrer noopener" { (reference) } },
        None => html! { (reference) },
    }
}

/// `--gpu-memory-utilization 0.90 → 0.80`.
pub(super) fn change(change: &Mitigation) -> Markup {
    let shown =
        |value: &str| if safe::secret(&change.setting) { safe::HIDDEN.to_owned() } else { value.to_owned() };
    html! {
        code { (&change.setting) } " "
        @match (change.from.as_deref(), change.to.as_deref()) {
            (Some(from), Some(to)) if !from.is_empty() => { (&shown(from)) " \u{2192} " (&shown(to)) }
            (_, Some("")) => "added",
            (_, Some(to)) => { "set to " (&shown(to)) }
            (_, None) => "taken away",
        }
    }
}

/// What a file of the run folder says, as far as it was taken along.
pub(super) fn excerpt(file: &Excerpt, title: &str) -> Markup {
    html! {
        details {
            summary { (title) @if !file.note.is_empty() { " " span.count { (file.note) } } }
            p.label { (super::file_link(&format!("attempt-{}/{}", file.attempt, file.path), &file.path)) }
            pre.file {
                @for (index, line) in file.text.lines().enumerate() {
                    @let number = file.first_line + index as u64;
                    @if file.decisive == Some(number) { mark { (line) } } @else { (line) }
                    "\n"
                }
            }
        }
    }
}
