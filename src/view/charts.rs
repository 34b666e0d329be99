//! The run as a whole and an attempt over time, for every page that shows a run. Pure.

use super::chart::{Backdrop, Line, Unit, chart};
use super::page::section;
use super::series::{Metric, Track};
use super::units::count;
use crate::event::Phase;
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

/// A phase of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Which.
    pub phase: Phase,
    /// Its begin, since the run began.
    pub from: Duration,
    /// Its end.
    pub to: Duration,
}

/// An attempt as its row in the overview shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Counts from 1.
    pub number: u32,
    /// How it ended, in a few words.
    pub ending: String,
    /// `good`, `mixed`, `bad` or `open`.
    pub class: &'static str,
    /// In order.
    pub phases: Vec<Stretch>,
}

/// A bar for each attempt, all on the time of the run.
pub fn overview(rows: &[Row], duration: Duration) -> Markup {
    let whole = duration.as_secs_f64();
    if rows.is_empty() || whole <= 0.0 {
        return html! {};
    }
    let (first, last) = ends(rows.len(), ROWS);
    let left_out = rows.len() - first - last;
    let seen = seen(rows.iter().flat_map(|row| &row.phases));
    section(
        "attempts-overview",
        "The run at a glance",
        html! {
            div.runbars {
                @for attempt in rows.iter().take(first) { (row(attempt, whole)) }
                @if left_out > 0 { p.note { (left_out) " attempts are not shown here." } }
                @for attempt in &rows[rows.len() - last..] { (row(attempt, whole)) }
                div.runrow aria-hidden="true" { span {} div.runaxis { span { "0" } span { (human(duration / 2)) } span { (human(duration)) } } }
            }
            (legend(&seen, None))
        },
    )
}

/// In the order in which they follow each other.
fn seen<'a>(phases: impl Iterator<Item = &'a Stretch> + Clone) -> Vec<Phase> {
    PHASES.into_iter().filter(|phase| phases.clone().any(|stretch| stretch.phase == *phase)).collect()
}

/// How many of the first and how many of the last to show.
pub fn ends(count: usize, most: usize) -> (usize, usize) {
    if count <= most { (count, 0) } else { (most / 2, most - most / 2) }
}

fn row(attempt: &Row, whole: f64) -> Markup {
    let percent = |part: Duration| format!("{:.2}%", (part.as_secs_f64() / whole * 100.0).clamp(0.0, 100.0));
    html! {
        div.runrow {
            a.runname href={ "#attempt-" (attempt.number) } { "Attempt " (attempt.number) " " b.(attempt.class) { (attempt.ending) } }
            div.runbar {
                @for span in attempt.phases.iter().filter(|span| span.phase != Phase::Done) {
                    @let took = span.to.saturating_sub(span.from);
                    i.{ "ph-" (span.phase) } style={ "left:" (percent(span.from)) ";width:" (percent(took)) }
                        title={ (span.phase) ", " (human(took)) } {}
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

/// All charts of an attempt for which there are values; nothing when there are none. `failure` is the word at the moment at
/// which it was lost.
pub fn of_attempt(track: &Track, phases: &[Stretch], failure: &str) -> Option<Markup> {
    let phases: Vec<Stretch> = phases.iter().copied().filter(|span| span.phase != Phase::Done).collect();
    let placed: Vec<(Phase, Duration, Duration)> = phases
        .iter()
        .map(|span| {
            let from = span.from.saturating_sub(track.from);
            (span.phase, from, from + span.to.saturating_sub(span.from))
        })
        .collect();
    let charts = draw(track, &Backdrop { phases: &placed, failure });
    if charts.is_empty() {
        return None;
    }
    let (windows, flushes) = (track.windows.count(), track.flushes.count());
    Some(html! {
        p.note {
            "Time counts from the beginning of the attempt."
            @if track.failed_at.is_some() { " The red line is the moment at which it was lost." }
            @if windows > 0 { " " (count(windows)) " profiler windows" @if flushes > 0 { " and " (count(flushes)) " flushes" } " stand along the upper edge." }
        }
        (legend(&seen(phases.iter()), Some(track)))
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
