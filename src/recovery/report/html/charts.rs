//! The run as a whole, and an attempt over time.

use super::{View, section};
use crate::event::{Outcome, Phase};
use crate::recovery::report::model::{Attempt, PhaseSpan, Report};
use crate::recovery::report::story;
use crate::view::charts::{self, Row, Stretch};
use maud::{Markup, html};

/// A bar for each attempt, all on the time of the run.
pub(super) fn overview(report: &Report) -> Markup {
    let rows: Vec<Row> = report.attempts.iter().map(row).collect();
    charts::overview(&rows, report.duration_s)
}

fn row(attempt: &Attempt) -> Row {
    let ending = attempt.ending.as_ref().map_or("cut off".to_owned(), |ending| match ending.outcome {
        Outcome::Success => "success".to_owned(),
        _ => story::short(attempt),
    });
    let class = match attempt.ending.as_ref().map(|ending| ending.outcome) {
        Some(Outcome::Success) => "good",
        Some(Outcome::Stopped) => "mixed",
        _ => "bad",
    };
    Row { number: attempt.number, ending, class, phases: stretches(&attempt.phases) }
}

fn stretches(phases: &[PhaseSpan]) -> Vec<Stretch> {
    let spans = phases.iter().filter(|span| span.phase != Phase::Done);
    spans.map(|span| Stretch { phase: span.phase, from: span.at_s, to: span.at_s + span.took_s }).collect()
}

/// The charts of the attempt that the report is about.
pub(super) fn of_subject(view: &View<'_>) -> Markup {
    let Some(attempt) = story::subject(view.report) else { return html! {} };
    match of_attempt(view, attempt) {
        Some(charts) => section("charts", &format!("Attempt {} over time", attempt.number), charts),
        None => html! {},
    }
}

/// All charts of an attempt for which there are values; nothing when there are none or its track was not kept.
pub(super) fn of_attempt(view: &View<'_>, attempt: &Attempt) -> Option<Markup> {
    let track = view.series.track(attempt.number)?;
    let word =
        attempt.ending.as_ref().map_or_else(|| "cut off".to_owned(), |ending| ending.outcome.to_string());
    charts::of_attempt(track, &stretches(&attempt.phases), &word)
}
