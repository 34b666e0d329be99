//! The run as a whole, and an attempt over time.

use super::{View, section};
use crate::event::{Outcome, Phase};
use crate::recovery::report::chart::{Backdrop, Line, Unit, chart};
use crate::recovery::report::model::{Attempt, Report};
use crate::recovery::report::series::{Metric, Track};
use crate::recovery::report::story;
use crate::recovery::report::units::count;
use crate::time::human;
use maud::{Markup, html};
use std::time::Duration;

/// Rows of the overview; who tries more often than this learns nothing from the rows between.
const ROWS: usize = 24;

const PHASES: [Phase; 9] = [
    Phase::Preflight,
    Phase::Loading,
    Phase::WarmUp,
    Phase::Measuring,
    Phase::Flushing,
    Phase::Stopping,
    Phase::Draining,
    Phase::Collecting,
    Phase::Waiting,
];

/// A bar for each attempt, all on the time of the run.
pub(super) fn overview(report: &Report) -> Markup {
    let whole = report.duration_s.as_secs_f64();
    if report.attempts.is_empty() || whole <= 0.0 {
        return html! {};
    }
    let (first, last) = ends(report.attempts.len(), ROWS);
    let left_out = report.attempts.len() - first - last;
    let seen: Vec<Phase> = PHASES
        .into_iter()
        .filter(|phase| report.attempts.iter().any(|a| a.phases.iter().any(|span| span.phase == *phase)))
        .collect();
    section(
        "attempts-overview",
        "The run at a glance",
        html! {
            div.runbars {
                @for attempt in report.attempts.iter().take(first) { (row(attempt, whole)) }
                @if left_out > 0 { p.note { (left_out) " attempts are not shown here." } }
                @for attempt in &report.attempts[report.attempts.len() - last..] { (row(attempt, whole)) }
                div.runrow aria-hidden="true" { span {} div.runaxis { span { "0" } span { (human(report.duration_s / 2)) } span { (human(report.duration_s)) } } }
            }
            (legend(&seen, None))
        },
    )
}

/// How many of the first and how many of the last to show.
pub(super) fn ends(count: usize, most: usize) -> (usize, usize) {
    if count <= most { (count, 0) } else { (most / 2, most - most / 2) }
}

fn row(attempt: &Attempt, whole: f64) -> Markup {
    let ending = attempt.ending.as_ref().map_or("cut off".to_owned(), |ending| match ending.outcome {
        Outcome::Success => "success".to_owned(),
        _ => story::short(attempt),
    });
    let class = match attempt.ending.as_ref().map(|ending| ending.outcome) {
        Some(Outcome::Success) => "good",
        Some(Outcome::Stopped) => "mixed",
        _ => "bad",
    };
    let percent = |part: Duration| format!("{:.2}%", (part.as_secs_f64() / whole * 100.0).clamp(0.0, 100.0));
    html! {
        div.runrow {
            a.runname href={ "#attempt-" (attempt.number) } { "Attempt " (attempt.number) " " b.(class) { (ending) } }
            div.runbar {
                @for span in attempt.phases.iter().filter(|span| span.phase != Phase::Done) {
                    i.{ "ph-" (span.phase) } style={ "left:" (percent(span.at_s)) ";width:" (percent(span.took_s)) }
                        title={ (span.phase) ", " (human(span.took_s)) } {}
                }
            }
        }
    }
}

fn legend(phases: &[Phase], track: Option<&Track>) -> Markup {
    let spans = |track: &Track| {
        [
            ("window", "profiler window", track.windows.count()),
            ("flush", "flush", track.flushes.count()),
            ("pause", "nothing moved, then it went on", track.pauses.count()),
            ("still", "nothing moved any more", track.stills.count()),
        ]
    };
    html! {
        p.legendline {
            @for phase in phases { span.key { i.swatch.{ "ph-" (phase) } {} (phase) } }
            @for (class, name, count) in track.map(spans).into_iter().flatten() {
                @if count > 0 { span.key { i.swatch.(class) {} (name) } }
            }
        }
    }
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
    let phases: Vec<(Phase, Duration, Duration)> = attempt
        .phases
        .iter()
        .filter(|span| span.phase != Phase::Done)
        .map(|span| {
            let from = span.at_s.saturating_sub(track.from);
            (span.phase, from, from + span.took_s)
        })
        .collect();
    let word =
        attempt.ending.as_ref().map_or_else(|| "cut off".to_owned(), |ending| ending.outcome.to_string());
    let behind = Backdrop { phases: &phases, failure: &word };
    let charts = draw(track, &behind);
    if charts.is_empty() {
        return None;
    }
    let seen: Vec<Phase> =
        PHASES.into_iter().filter(|phase| phases.iter().any(|(other, ..)| other == phase)).collect();
    let (windows, flushes) = (track.windows.count(), track.flushes.count());
    Some(html! {
        p.note {
            "Time counts from the beginning of the attempt."
            @if track.failed_at.is_some() { " The red line is the moment at which it was lost." }
            @if windows > 0 { " " (count(windows)) " profiler windows" @if flushes > 0 { " and " (count(flushes)) " flushes" } " stand along the upper edge." }
        }
        (legend(&seen, Some(track)))
        div.charts { @for chart in charts { (chart) } }
    })
}

const fn line(metric: Metric, name: &'static str, class: &'static str, band: bool) -> Line {
    Line { metric, name, class, band }
}

fn draw(track: &Track, behind: &Backdrop<'_>) -> Vec<Markup> {
    use Metric as M;
    let gpus = match track.gpus {
        0 | 1 => None,
        n => Some(format!("Mean of {n} GPUs; the band goes from the lowest to the highest of them.")),
    };
    let gpus = gpus.as_deref();
    let one = |title, unit, lines: &[Line], note| chart(track, title, unit, lines, behind, note);
    let all = [
        one(
            "Requests so far",
            Unit::Total,
            &[
                line(M::Sent, "sent", "c2", false),
                line(M::Completed, "succeeded", "c1", false),
                line(M::Failed, "failed", "bad", false),
            ],
            None,
        ),
        one(
            "Open requests",
            Unit::Count,
            &[
                line(M::Open, "at the client", "c2", false),
                line(M::Running, "running in the engine", "c1", false),
                line(M::Waiting, "waiting there", "c3", false),
            ],
            None,
        ),
        one(
            "Output",
            Unit::PerSecond,
            &[
                line(M::OutputRate, "tokens from the engine", "c1", true),
                line(M::PieceRate, "pieces at the client", "c3", false),
            ],
            None,
        ),
        one("Prompt tokens", Unit::PerSecond, &[line(M::PromptRate, "into the engine", "c1", true)], None),
        one(
            "Time to first token",
            Unit::Millis,
            &[line(M::TtftMax, "longest", "c3", false), line(M::TtftMedian, "median", "c1", false)],
            Some("Of the requests that ended in each second."),
        ),
        one("KV cache in use", Unit::Percent, &[line(M::KvUsage, "share", "c1", true)], None),
        one(
            "GPU utilisation",
            Unit::Percent,
            &[
                line(M::GpuUtil, "a kernel ran", "c1", true),
                line(M::GpuMemUtil, "memory was touched", "c3", false),
            ],
            gpus,
        ),
        one("GPU power", Unit::Watts, &[line(M::GpuPower, "power", "c1", true)], gpus),
        one("GPU memory", Unit::Bytes, &[line(M::GpuMemory, "in use", "c1", true)], gpus),
        one(
            "Memory of the server",
            Unit::Bytes,
            &[line(M::Rss, "resident", "c1", true)],
            Some("All its processes together; what they share counts for each."),
        ),
        one("CPU of the server", Unit::Cores, &[line(M::Cores, "busy", "c1", true)], None),
    ];
    all.into_iter().flatten().collect()
}
