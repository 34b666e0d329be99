//! The live page: the same charts and figures as the report, made by the same functions. Pure.
//!
//! The page comes whole, so that it also says something without a script; the script then only replaces parts of it by
//! newer ones, as they come over `/live`, and says when nobody answers any more.

use super::state::State;
use crate::event::{Outcome, Phase};
use crate::time::human;
use crate::view::charts;
use crate::view::clean::clean;
use crate::view::names::{cause, first_up, sentence};
use crate::view::now::Now;
use crate::view::page::{STYLE, section, sign};
use crate::view::phrases::{self, Tone};
use crate::view::series::Track;
use crate::view::tiles;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::time::Duration;

const OWN_STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Parts of the page by the id of their element, in the order of the page.
pub(super) type Parts = Vec<(&'static str, String)>;

/// What a copy of the state is made of: taken under the lock, drawn without it.
pub(super) struct Copy {
    now: Now,
    rows: Vec<charts::Row>,
    phases: Vec<charts::Stretch>,
    track: Option<Track>,
    told: Vec<(Duration, u32, String)>,
    at: Duration,
}

impl Copy {
    /// `at` is the moment on the run's clock.
    pub(super) fn of(state: &State, at: Duration) -> Self {
        let over = state.now.is_over();
        let at = if over { state.course.now() } else { at.max(state.course.now()) };
        Self {
            now: state.now.clone(),
            rows: state.course.rows(at, over),
            phases: state.course.phases(state.now.attempt),
            track: state.track(),
            told: state.told.iter().cloned().collect(),
            at,
        }
    }

    /// The parts as they are now.
    pub(super) fn parts(&self) -> Parts {
        let parts = [
            ("head", self.head()),
            ("figures", self.figures()),
            ("glance", charts::overview(&self.rows, self.at)),
            ("charts-now", self.charts()),
            ("before", self.before()),
            ("told", self.told()),
        ];
        parts.map(|(id, part)| (id, clean(&part.into_string()).into_owned())).into()
    }

    /// The title of the window.
    pub(super) fn title(&self) -> String {
        clean(&format!("{}: {}", self.word().1, self.now.model)).into_owned()
    }

    /// Class and word of how it stands.
    fn word(&self) -> (&'static str, String) {
        let now = &self.now;
        match &now.end {
            Some(end) => match end.outcome {
                Outcome::Success if now.changes.is_empty() => ("good", "SUCCESS".to_owned()),
                Outcome::Success => ("mixed", "SUCCESS WITH CHANGED SETTINGS".to_owned()),
                Outcome::Stopped => ("mixed", "STOPPED".to_owned()),
                Outcome::Refused => ("bad", "NOT STARTED".to_owned()),
                _ => ("bad", "FAILED".to_owned()),
            },
            None => ("open", phrases::phase(now).to_uppercase()),
        }
    }

    fn head(&self) -> Markup {
        let (now, at) = (&self.now, self.at);
        let (class, word) = self.word();
        let title = match &now.end {
            Some(end) => first_up(&end.reason),
            None => first_up(&format!("{}: {}", phrases::attempt(now), phrases::time(now, at))),
        };
        let so_far = phrases::so_far(now).filter(|_| now.end.is_none());
        html! {
            header.(class) {
                p.status { span.sign aria-hidden="true" { (sign(class)) } " " (word) }
                h1 { (title) }
                @if let Some((tone, text)) = so_far { p.(tone_class(tone)) { (sentence(&text)) } }
                @if !now.changes.is_empty() {
                    div.changed {
                        p { strong { "This attempt runs with changed settings:" } }
                        ul { @for change in &now.changes { li { (change.to_string()) } } }
                    }
                }
                @if let Some(decision) = phrases::decision(now).filter(|_| now.phase == Some(Phase::Waiting)) { p { (sentence(&decision)) } }
                dl.facts {
                    @if let Some(started) = now.started {
                        div { dt { "Started" } dd { (started.strftime("%-d %b %Y, %H:%M UTC")) } }
                    }
                    div { dt { @if now.end.is_some() { "Took" } @else { "Running for" } } dd { (human(at)) } }
                    @if let Some(left) = now.deadline_left(at).filter(|_| now.end.is_none()) { div { dt { "Until the deadline" } dd { (human(left)) } } }
                    div { dt { "Attempt" } dd { (now.attempt.max(1)) " of at most " (now.attempts.max(1)) } }
                    div { dt { "Model" } dd { (now.model) } }
                    @if let Some(end) = &now.end { div { dt { "Exit code" } dd { (end.exit_code) } } }
                    @if now.left_behind > 0 { div { dt { "Left behind" } dd.alarm { (now.left_behind) " things" } } }
                }
            }
        }
    }

    fn figures(&self) -> Markup {
        let bench = self.now.load.as_ref().and_then(|load| load.summary.as_ref());
        html! {
            section.tiles aria-label="Key figures" {
                @if let Some(bench) = bench.filter(|bench| !bench.is_complete) { (tiles::incomplete(bench)) }
                dl { (tiles::of_now(&self.now, self.at)) }
            }
        }
    }

    fn charts(&self) -> Markup {
        let word = self.now.ending.as_ref().map(|ending| ending.outcome.to_string()).unwrap_or_default();
        let drawn = self.track.as_ref().and_then(|track| charts::of_attempt(track, &self.phases, &word));
        let title = format!("Attempt {} over time", self.now.attempt);
        html! { @if let Some(drawn) = drawn { (section("charts", &title, drawn)) } }
    }

    fn before(&self) -> Markup {
        if self.now.past.is_empty() {
            return html! {};
        }
        section(
            "attempts",
            "Attempts before",
            html! {
                ul.lines {
                    @for past in &self.now.past {
                        li id={ "attempt-" (past.attempt) } {
                            strong { "Attempt " (past.attempt) ": " (past.cause.as_deref().map_or_else(|| past.outcome.to_string(), cause)) }
                            " " (sentence(&past.reason))
                        }
                    }
                }
            },
        )
    }

    fn told(&self) -> Markup {
        section(
            "events",
            "What happened last",
            html! {
                div.scroll tabindex="0" role="region" aria-label="What happened last" {
                    table.timeline {
                        thead { tr { th { "Time" } th { "Attempt" } th { "What" } } }
                        tbody {
                            @for (at, attempt, what) in self.told.iter().rev() {
                                tr { td { (phrases::clock(*at)) } td { @if *attempt > 0 { (attempt) } } td { (what) } }
                            }
                        }
                    }
                }
            },
        )
    }
}

fn tone_class(tone: Tone) -> &'static str {
    match tone {
        Tone::Good => "good",
        Tone::Plain => "plain",
        Tone::Doubtful => "mixed",
        Tone::Bad => "bad",
    }
}

/// The policy of the page: nothing from elsewhere, and only the script that has this word.
pub(super) fn policy(nonce: &str) -> String {
    format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The whole page.
pub(super) fn render(copy: &Copy, nonce: &str, report: Option<&str>) -> String {
    let parts = copy.parts();
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="referrer" content="no-referrer";
                link rel="icon" href="data:,";
                noscript { meta http-equiv="refresh" content="5"; }
                title { (copy.title()) }
                style { (PreEscaped(STYLE)) (PreEscaped(OWN_STYLE)) }
            }
            body data-run=(copy.now.run_id) {
                p #connection role="status" { noscript { "Without JavaScript this page is loaded anew every 5 seconds." } }
                main {
                    @for (id, part) in &parts { div id=(id) { (PreEscaped(part)) } }
                }
                footer {
                    p {
                        "varcas-guard " (copy.now.guard_version) ", run " code { (copy.now.run_id) } ", folder "
                        code { (copy.now.output.display()) } ". For programs there are " a href="api/run" { "api/run" } ", "
                        a href="metrics" { "metrics" } " and " a href="events" { "events" } "."
                        @if let Some(report) = report { " The report is " code { (report) } "." }
                    }
                }
                script nonce=(nonce) { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}
