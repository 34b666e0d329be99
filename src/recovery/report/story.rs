//! The run in words: a headline, three sentences, and what to do now. Pure. The same words stand in every form of the
//! report.

use super::model::{Attempt, Report};
use super::units::{bytes, count, figure};
use crate::config::{LoadPlan, Process, ProfileMode, ServerKind};
use crate::error::ExitCode;
use crate::event::{Leftover, Outcome, Retry, Severity, Verdict};
use crate::time::human;
pub use crate::view::names::{cause, first_up, sentence};

/// What kind of news it is; gives a report its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Success.
    Good,
    /// Usable or nobody's fault, but not what was asked for.
    Mixed,
    /// Failed.
    Bad,
    /// Still going on.
    Open,
}

/// The word that comes first, and its tone.
pub fn headline(report: &Report) -> (Tone, &'static str) {
    match report.outcome.as_str() {
        "success" if report.mitigations.is_empty() => (Tone::Good, "SUCCESS"),
        "success" => (Tone::Mixed, "SUCCESS WITH CHANGED SETTINGS"),
        "stopped" => (Tone::Mixed, "STOPPED"),
        "refused" => (Tone::Bad, "NOT STARTED"),
        "interrupted" => (Tone::Bad, "INTERRUPTED"),
        "running" => (Tone::Open, "STILL RUNNING"),
        _ => (Tone::Bad, "FAILED"),
    }
}

/// The attempt that the report is about: the one that counts after a success, else the last one.
pub fn subject(report: &Report) -> Option<&Attempt> {
    match (report.outcome.as_str(), report.counts) {
        ("success", Some(number)) => report.attempts.iter().find(|attempt| attempt.number == number),
        _ => report.attempts.last(),
    }
}

/// The verdict on the attempt that the report is about.
pub fn verdict(report: &Report) -> Option<&Verdict> {
    subject(report)?.verdict.as_ref()
}

/// The title line: what happened in half a sentence.
pub fn title(report: &Report) -> String {
    match (report.outcome.as_str(), verdict(report)) {
        ("success" | "stopped" | "running" | "interrupted" | "refused", _) => report.reason.clone(),
        (_, None) => subject(report).and_then(|attempt| attempt.ending.as_ref()).map_or_else(
            || report.reason.clone(),
            |ending| format!("{} during {}", ending.outcome, ending.phase),
        ),
        (_, Some(verdict)) => cause(&verdict.cause),
    }
}

/// What must be read before anything else where settings were changed.
pub fn under_changes(report: &Report) -> &'static str {
    if report.benchmark.is_some() {
        "These results were obtained with changed settings, not with those that were asked for"
    } else {
        "The last attempt ran with changed settings, not with those that were asked for"
    }
}

/// A sentence as the second half of another.
fn inside(text: &str) -> String {
    let first = text.split(' ').next().unwrap_or_default();
    if matches!(
        first,
        "The" | "A" | "An" | "It" | "No" | "Nothing" | "Something" | "Somebody" | "There" | "One"
    ) {
        format!("{}{}", first.to_lowercase(), &text[first.len()..])
    } else {
        text.to_owned()
    }
}

/// Writes the words into the report.
pub(super) fn tell(report: &mut Report) {
    report.story = vec![asked(report), happened(report), became(report)];
    report.to_do = to_do(report);
}

/// What outlived the run, in words.
pub fn leftover(leftover: &Leftover) -> String {
    match leftover {
        Leftover::Process { proc, comm, state } => {
            format!("process {comm} ({proc}), state {state}: SIGKILL did not end it; only the kernel can")
        }
        Leftover::Port { port, holder } => format!("port {port}, held by {holder}"),
        Leftover::File { path, why } => format!("{}: {why}", path.display()),
        Leftover::GpuMemory { gpu, bytes: n } => format!("{} of memory on GPU {gpu}", bytes(*n)),
    }
}

/// What an exit code means.
pub fn exit_code(report: &Report) -> String {
    let code = report.exit_code;
    let meaning = match code {
        None if report.outcome == "running" => return "none yet".to_owned(),
        None => return "none, nobody was left to give one".to_owned(),
        Some(code) if code == ExitCode::Success.code() => "success",
        Some(code) if code == ExitCode::Usage.code() => "the command line or guard.toml is wrong",
        Some(code) if code == ExitCode::Refused.code() => "nothing was started",
        Some(code) if code == ExitCode::Bug.code() => "a bug in varcas-guard",
        Some(code) if code == ExitCode::AttemptsFailed.code() => "every attempt failed",
        Some(code) if code == ExitCode::Hopeless.code() => "no retry can cure it",
        Some(code) if code == ExitCode::DeadlinePassed.code() => "the deadline passed",
        Some(code) if code == ExitCode::Interrupted.code() => "stopped by SIGINT",
        Some(code) if code == ExitCode::Terminated.code() => "stopped by SIGTERM",
        Some(code) => return code.to_string(),
    };
    format!("{} ({meaning})", code.unwrap_or_default())
}

fn asked(report: &Report) -> String {
    let Some(plan) = &report.plan else {
        return "The journal does not say what was asked for.".to_owned();
    };
    let version = report.server.version.as_deref().map(|v| format!(" {v}")).unwrap_or_default();
    let server = match plan.server.kind {
        ServerKind::Vllm => format!("vLLM{version} with {}", plan.server.model),
        ServerKind::Sim => format!("a simulated vLLM{version} with {}", plan.server.model),
        ServerKind::Command => "a server of the user's own".to_owned(),
    };
    let windows = match plan.profile.mode {
        ProfileMode::Windows => "profiler windows recorded inside",
        ProfileMode::Off => "no profiler",
    };
    format!("Asked for: {} against {server}, {windows}.", load(&plan.load))
}

/// The benchmark that was asked for, in words.
pub fn load(load: &LoadPlan) -> String {
    let mix = if load.workloads.is_empty() {
        format!("the {} workload", load.mix)
    } else {
        let name = |own: &crate::config::OwnWorkload| own.table.get("name")?.as_str().map(str::to_owned);
        let names: Vec<String> = load.workloads.iter().filter_map(name).collect();
        format!("a workload of {}", names.join(", "))
    };
    let pace = match load.arrivals {
        Process::Closed => format!("from {} streams", load.streams),
        _ => format!("at {} requests/s", load.rate),
    };
    format!("{mix} for {} {pace}", human(load.duration))
}

fn nth(number: u32) -> String {
    match number {
        1 => "first".to_owned(),
        2 => "second".to_owned(),
        3 => "third".to_owned(),
        number => format!("{number}th"),
    }
}

fn happened(report: &Report) -> String {
    let last = report.attempts.last();
    let phase = |attempt: &Attempt| {
        let at = attempt.ending.as_ref().map(|ending| ending.phase);
        at.or(attempt.phases.last().map(|span| span.phase))
            .map_or_else(String::new, |phase| format!(" during {phase}"))
    };
    match report.outcome.as_str() {
        "success" => success(report),
        "refused" => sentence(&format!("nothing was started, because {}", report.reason)),
        "running" => {
            let place = last.map_or_else(String::new, |a| format!(" in attempt {}{}", a.number, phase(a)));
            format!("It is still going on{place}, {} after its start.", human(report.duration_s))
        }
        "interrupted" => {
            let place = last.map_or_else(String::new, |a| format!(" in attempt {}{}", a.number, phase(a)));
            let cut = human(report.duration_s);
            format!("It was cut off after {cut}{place}: {}.", report.reason.trim_end_matches('.'))
        }
        _ => match last {
            Some(attempt) => {
                let number = attempt.number;
                let what = attempt.ending.as_ref().map_or_else(
                    || "did not end".to_owned(),
                    |ending| match ending.outcome {
                        Outcome::Stopped => "was stopped".to_owned(),
                        Outcome::Degraded => "brought no usable result".to_owned(),
                        other => format!("ended with a {other}"),
                    },
                );
                let why = attempt.verdict.as_ref().map_or(report.reason.as_str(), |v| v.explanation.as_str());
                let why = inside(why);
                sentence(&format!("attempt {number} {what}{}: {why}", phase(attempt)))
            }
            None => sentence(&report.reason),
        },
    }
}

fn success(report: &Report) -> String {
    let number = report.counts.unwrap_or(1);
    let requests = report.benchmark.as_ref().map_or_else(String::new, |bench| {
        format!(
            "{} of {} requests succeeded at {} output tokens/s",
            count(bench.progress.completed),
            count(bench.progress.sent),
            figure(bench.output_throughput)
        )
    });
    let traces = match report.traces.len() {
        0 => String::new(),
        1 => ", and 1 profiler window is on disk".to_owned(),
        n => format!(", and {} profiler windows are on disk", count(n as u64)),
    };
    let changed = if report.mitigations.is_empty() { "" } else { ", but only with changed settings" };
    format!("It worked in the {} attempt{changed}: {requests}{traces}.", nth(number))
}

fn became(report: &Report) -> String {
    let left = match report.left_behind.len() {
        0 => "nothing of it was left behind".to_owned(),
        1 => "one thing was left behind".to_owned(),
        n => format!("{n} things were left behind"),
    };
    let tries = report.attempts.len();
    let text = match report.outcome.as_str() {
        "success" if tries > 1 => {
            let failed: Vec<&Attempt> =
                report.attempts.iter().filter(|a| Some(a.number) != report.counts).collect();
            let why = failed.last().map_or_else(String::new, |attempt| short(attempt));
            match failed.len() {
                1 => format!("the attempt before it had failed ({why}), and {left}"),
                n => format!("{n} attempts before it had failed (the last one: {why}), and {left}"),
            }
        }
        "success" => format!("nothing went wrong on the way, and {left}"),
        "refused" => "no process was started, so nothing has to be cleaned up".to_owned(),
        "running" => "this report ends where the journal ends now".to_owned(),
        "interrupted" => format!("there is no exit code, and {left} as far as the journal goes"),
        _ => {
            let tried = match tries {
                1 => "it was tried once".to_owned(),
                n => format!("it was tried {n} times"),
            };
            let code = exit_code(report);
            format!("{tried}, the exit code is {code}, and {left}")
        }
    };
    sentence(&text)
}

/// Why there are no traces to list, in a sentence.
pub fn no_traces(report: &Report) -> String {
    let attempt = report.attempts.iter().find(|attempt| Some(attempt.number) == report.counts);
    match attempt.filter(|attempt| attempt.windows.closed > 0 && report.is_unfinished()) {
        Some(attempt) => format!(
            "Nobody has checked them yet: {} windows were closed, and their files lie in `attempt-{}/traces`.",
            count(attempt.windows.closed.into()),
            attempt.number
        ),
        None => "There is no complete one.".to_owned(),
    }
}

/// An attempt's failure in a few words.
pub fn short(attempt: &Attempt) -> String {
    match (&attempt.verdict, &attempt.ending) {
        (Some(verdict), _) => cause(&verdict.cause),
        (None, Some(ending)) => ending.outcome.to_string(),
        (None, None) => "it was cut off".to_owned(),
    }
}

fn to_do(report: &Report) -> Vec<String> {
    let mut out = Vec::new();
    for left in &report.left_behind {
        out.push(format!("Look after what was left behind: {}.", leftover(left)));
    }
    let subject = subject(report);
    match report.outcome.as_str() {
        "success" => {
            for change in &report.mitigations {
                out.push(format!("Decide whether the changed setting is to stay: {change}."));
            }
            if !report.traces.is_empty() {
                out.push("Open a profiler trace in chrome://tracing or ui.perfetto.dev.".to_owned());
            }
            out.push("Take the figures from `benchmark.json`.".to_owned());
        }
        "running" => out.push("Wait, or look at the live output of the run.".to_owned()),
        "refused" => {
            let refused = subject.into_iter().flat_map(|attempt| &attempt.checks);
            let hints = refused.filter(|check| check.severity == Severity::Refuse);
            out.extend(hints.filter_map(|check| check.hint.as_ref()).map(|hint| sentence(hint)));
            out.push("Start it again; nothing was started, so the same folder can be given.".to_owned());
        }
        "interrupted" => {
            out.push("Run `varcas-guard reap`, which ends what a dead guard may have left.".to_owned());
            if let Some(attempt) = subject.filter(|attempt| attempt.windows.closed > 0) {
                let number = attempt.number;
                out.push(format!(
                    "Run `varcas-guard salvage attempt-{number}/traces --check` in the run folder: nobody has checked the traces."
                ));
            }
            out.push("Find out who killed varcas-guard (a scheduler's limit, the kernel for want of memory, a reboot), then start it again.".to_owned());
        }
        "stopped" => out.push("Start it again when it suits; what was measured so far is kept.".to_owned()),
        _ => {
            let verdict = subject.and_then(|attempt| attempt.verdict.as_ref());
            match verdict {
                Some(verdict) => {
                    if !verdict.advice.trim().is_empty() {
                        out.push(sentence(&verdict.advice));
                    }
                    match verdict.retry {
                        Retry::No => {
                            out.push("Do not simply start it again: it would fail the same way.".to_owned())
                        }
                        Retry::Yes => out.push("Start it again; it may have been bad luck.".to_owned()),
                        Retry::WithMitigation => {
                            out.push("Start it again only with something changed.".to_owned())
                        }
                    }
                }
                None => out.push(
                    "Read the log line and the evidence of the last attempt below; there is no verdict."
                        .to_owned(),
                ),
            }
        }
    }
    let doubtful = report.benchmark.as_ref().map(|bench| bench.warnings.as_slice()).unwrap_or_default();
    out.extend(doubtful.iter().map(|warning| format!("Before you use the figures, mind this: {warning}.")));
    out
}
