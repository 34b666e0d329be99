//! Every attempt in full, folded: how it ended, what it was watched doing, who died how, and what was saved of it.

use super::verdict::{change, excerpt, list, texts};
use super::{View, charts, file_link, more, results, section, verdict};
use crate::event::{Evidence, ExitHow, Outcome, Phase, Severity};
use crate::recovery::report::model::{Attempt, Process};
use crate::recovery::report::story::{self, first_up, sentence};
use crate::recovery::report::units::{bytes, figure};
use crate::time::human;
use maud::{Markup, html};

/// Attempts that are told in full.
const MAX_ATTEMPTS: usize = 24;
/// Rows and lines of one kind in an attempt; all of them are in report.json.
const MAX_ROWS: usize = 150;

/// The section with all of them.
pub(super) fn all(view: &View<'_>) -> Markup {
    let attempts = &view.report.attempts;
    if attempts.is_empty() {
        return html! {};
    }
    let (first, last) = crate::view::charts::ends(attempts.len(), MAX_ATTEMPTS);
    let left_out = attempts.len() - first - last;
    let subject = story::subject(view.report).map(|attempt| attempt.number);
    section(
        "attempts",
        "Attempts",
        html! {
            @for attempt in &attempts[..first] { (one(view, attempt, subject)) }
            @if left_out > 0 { p.note { (left_out) " attempts between these are told in " (file_link("report.json", "report.json")) " only." } }
            @for attempt in &attempts[attempts.len() - last..] { (one(view, attempt, subject)) }
        },
    )
}

fn one(view: &View<'_>, attempt: &Attempt, subject: Option<u32>) -> Markup {
    let number = attempt.number;
    let is_subject = subject == Some(number);
    let outcome = attempt.ending.as_ref().map(|ending| ending.outcome);
    let class = match outcome {
        Some(Outcome::Success) => "good",
        Some(Outcome::Stopped) => "mixed",
        _ => "bad",
    };
    let ended = match &attempt.ending {
        Some(ending) => ending.outcome.to_string(),
        None if view.report.outcome == "running" => "still running".to_owned(),
        None => "cut off".to_owned(),
    };
    html! {
        details.attempt id={ "attempt-" (number) } open[is_subject && outcome != Some(Outcome::Success)] {
            summary { "Attempt " (number) ": " b.(class) { (ended) } " " span.count { "after " (human(attempt.duration_s)) } }
            @if let Some(ending) = &attempt.ending { p { (&sentence(&ending.reason)) } }
            @else { p { "The journal ends in the middle of it." } }
            @if !attempt.mitigations.is_empty() {
                p { strong { "It ran with changed settings:" } }
                ul { @for other in &attempt.mitigations { li { (change(other)) ": " (&other.why) } } }
            }
            (phases(attempt))
            @if !is_subject {
                @if let Some(verdict) = &attempt.verdict { h3 { "Verdict" } (verdict::body(view, attempt, verdict, true)) }
            }
            @if !attempt.standstills.is_empty() {
                h3 { "Standstills" }
                ul { @for still in &attempt.standstills { li { (first_up(&still.to_string())) } } }
            }
            (checks(attempt))
            @if !attempt.findings.is_empty() {
                details open[is_subject && attempt.verdict.is_none()] {
                    summary { "What the log and the system said " span.count { (attempt.findings.len()) } }
                    ol.lines { @for finding in &attempt.findings { li { (finding) } } }
                }
            }
            (stacks(view, attempt))
            (evidence(attempt))
            (processes(attempt))
            (texts("Signals that varcas-guard sent", &attempt.signals))
            (windows(attempt))
            (texts("Removed afterwards", &attempt.removed))
            @if !is_subject {
                @if let Some(charts) = charts::of_attempt(view, attempt) { details { summary { "Charts" } (charts) } }
            }
            @if view.report.counts != Some(number) {
                @if let Some(bench) = &attempt.benchmark { details { summary { "Benchmark" } (results::tables(bench)) } }
            }
            (files(attempt))
        }
    }
}

fn phases(attempt: &Attempt) -> Markup {
    let spans = || attempt.phases.iter().filter(|span| span.phase != Phase::Done);
    html! {
        p.legendline {
            @for span in spans() { span.key { i.swatch.{ "ph-" (span.phase) } {} (span.phase) " " span.most { (human(span.took_s)) } } }
        }
    }
}

fn checks(attempt: &Attempt) -> Markup {
    let bad: Vec<_> = attempt.checks.iter().filter(|check| check.severity >= Severity::Warn).collect();
    if bad.is_empty() {
        return html! {};
    }
    html! {
        h3 { "What the preflight found" }
        ul { @for check in bad { li {
            b { (check.check) } ": " (&check.saw)
            @if let Some(hint) = &check.hint { " (" (hint) ")" }
        } } }
    }
}

fn stacks(view: &View<'_>, attempt: &Attempt) -> Markup {
    let files: Vec<_> = view.files_of(attempt.number).filter(|file| !file.log).collect();
    let log = view.files_of(attempt.number).find(|file| file.log);
    html! {
        @if attempt.verdict.is_none() { @if let Some(log) = log { (excerpt(log, "The end of the server's log")) } }
        @if !files.is_empty() {
            h3 { "Stacks at the moment of the kill" }
            @for file in files { (excerpt(file, &title(&file.path))) }
        }
    }
}

/// `evidence/stacks-7.txt` is `pid 7`.
fn title(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".txt");
    match name.split_once('-') {
        Some(("stacks", pid)) => format!("Python stacks of pid {pid}"),
        _ => match name.strip_prefix("py-spy-") {
            Some(pid) => format!("py-spy on pid {pid}"),
            None => name.to_owned(),
        },
    }
}

fn evidence(attempt: &Attempt) -> Markup {
    list(
        "Evidence saved before the kill",
        attempt.evidence.len(),
        html! {
            ul { @for item in attempt.evidence.iter().take(MAX_ROWS) { li { (piece(attempt.number, item)) } } }
            @if attempt.evidence.len() > MAX_ROWS { (more(attempt.evidence.len() - MAX_ROWS)) }
        },
    )
}

fn piece(attempt: u32, item: &Evidence) -> Markup {
    html! {
        @match &item.file {
            Some(file) => { (file_link(&format!("attempt-{attempt}/evidence/{file}"), &item.what)) ", " (bytes(item.bytes)) }
            None => (&item.what),
        }
        @if let Some(problem) = &item.problem { ": " (problem) }
    }
}

fn processes(attempt: &Attempt) -> Markup {
    let (quiet, told): (Vec<&Process>, Vec<&Process>) = attempt.processes.iter().partition(|process| {
        process.ended == Some(ExitHow::Code { code: 0 }) && !process.comm.starts_with("VLLM::")
    });
    let rows = |part: &[&Process]| {
        html! {
            div.scroll { table {
                thead { tr { th { "process" } th.n { "pid" } th { "ended with" } } }
                tbody { @for process in part.iter().take(MAX_ROWS) { tr {
                    td { (&process.comm) } td.n { (process.proc.pid) }
                    td { @match process.ended { Some(how) => (how), None => "nobody saw it end" } }
                } } }
            } }
            @if part.len() > MAX_ROWS { (more(part.len() - MAX_ROWS)) }
        }
    };
    html! {
        (list("Processes and how each ended", told.len(), rows(&told)))
        (list("Helpers that ended well", quiet.len(), rows(&quiet)))
    }
}

fn windows(attempt: &Attempt) -> Markup {
    let w = &attempt.windows;
    let lost: Vec<String> =
        w.failed.iter().chain(&w.disabled).chain(&attempt.trace_problems).take(MAX_ROWS).cloned().collect();
    html! {
        @if w.workers > 0 {
            p { "Profiler: " (w.opened) " windows opened and " (w.closed) " closed by " (w.workers) " worker" @if w.workers != 1 { "s" } "."
                @if let Some(taken) = w.taken { " They took " (figure(taken * 100.0)) " % of the engine's working time." }
            }
        }
        (texts("Windows and traces that were lost", &lost))
        (texts("Why no window opened for a while", &w.held))
    }
}

fn files(attempt: &Attempt) -> Markup {
    let number = attempt.number;
    if attempt.phases.iter().all(|span| matches!(span.phase, Phase::Preflight | Phase::Done | Phase::Waiting))
    {
        return html! {};
    }
    html! {
        p.files {
            "Files: " (file_link(&format!("attempt-{number}/vllm_server.log"), "vllm_server.log"))
            @if attempt.benchmark.is_some() {
                ", " (file_link(&format!("attempt-{number}/benchmark_output.log"), "benchmark_output.log"))
                ", " (file_link(&format!("attempt-{number}/benchmark.json"), "benchmark.json"))
                ", " (file_link(&format!("attempt-{number}/requests.jsonl"), "requests.jsonl"))
            } @else if attempt.phases.iter().any(|span| span.phase == Phase::Measuring) {
                ", " (file_link(&format!("attempt-{number}/requests.jsonl"), "requests.jsonl"))
            }
            @if !attempt.evidence.is_empty() { ", " (file_link(&format!("attempt-{number}/evidence"), "evidence/")) }
            @if !attempt.traces.is_empty() || attempt.windows.closed > 0 { ", " (file_link(&format!("attempt-{number}/traces"), "traces/")) }
        }
    }
}
