//! One sentence for each event that a person should hear of. The console, the timeline of the report and the guard's own
//! log use the same words, so that they never disagree.

use super::{EventKind, ExitHow, GaveWay, Gravity, LoadProgress, LogCut, Severity, WindowEvent, signal_name};
use crate::time::human;
use std::fmt::Write as _;

/// The sentence; nothing for samples and for what another line says already.
pub fn sentence(kind: &EventKind) -> Option<String> {
    Some(match kind {
        EventKind::RunStarted { guard_version, .. } => format!("varcas-guard {guard_version} began"),
        EventKind::AttemptStarted {} => "attempt began".to_owned(),
        EventKind::PhaseEntered { phase, budget } => match budget {
            Some(budget) => format!("{phase} (at most {})", human(*budget)),
            None => phase.to_string(),
        },
        EventKind::ServerSpawned { proc, .. } => format!("the server was started as {proc}"),
        EventKind::SpawnFailed { error } => format!("the server could not be started: {error}"),
        EventKind::ServerReady { model, max_model_len } => {
            format!("ready: {model}, context {max_model_len} tokens")
        }
        EventKind::WarmupFinished { requests, slowest } => {
            format!("warmed up with {requests} requests, the slowest took {}", human(*slowest))
        }
        EventKind::WarmupFailed { error } => format!("a warm-up request failed: {error}"),
        EventKind::LoadStarted { planned, seed } => {
            format!("the benchmark began: {planned} requests, seed {seed}")
        }
        EventKind::LoadFinished { summary } => format!(
            "the benchmark {}: {} requests succeeded, {} failed, {} cancelled",
            if summary.is_complete { "ended" } else { "was cut short" },
            summary.progress.completed,
            summary.progress.failed,
            summary.cancelled
        ),
        EventKind::LoadFailed { error } => format!("the benchmark could not run: {error}"),
        EventKind::Window(line) => match &line.what {
            WindowEvent::Failed { window, error } => {
                format!("profiler window {window} of rank {} is lost: {error}", line.rank)
            }
            WindowEvent::Disabled { reason } => {
                format!("rank {} switched profiling off: {reason}", line.rank)
            }
            _ => return None,
        },
        EventKind::WindowsClosed { workers } => format!("all windows are closed ({workers} workers)"),
        // Compilers and other helpers come and go.
        EventKind::ProcessExited { comm, how: ExitHow::Code { code: 0 }, main: false, .. }
            if !comm.starts_with("VLLM::") =>
        {
            return None;
        }
        EventKind::ProcessExited { proc, comm, how, .. } => format!("{comm} ({proc}) ended with {how}"),
        EventKind::SignalSent { signal, targets, why } => {
            format!("{} to {} processes: {why}", signal_name(*signal), targets.len())
        }
        EventKind::SignalReceived { signal } => format!("varcas-guard received {}", signal_name(*signal)),
        EventKind::WindowsGaveWay(GaveWay { of, files, bytes }) => {
            format!(
                "{} traces of attempt {of} ({} MB) were removed to make room",
                files.len(),
                bytes / 1_000_000
            )
        }
        EventKind::LogCut(LogCut { first, last, kept, bytes, .. }) => {
            let (gone, kept) = (last + 1 - first, (kept + 1).saturating_sub(*first));
            format!(
                "the server's log is too long: {gone} lines ({} MB) were taken out of its middle, {kept} of them are kept",
                bytes / 1_000_000
            )
        }
        EventKind::KeeperLost { how } => format!("the keeper died: {how}"),
        EventKind::PortStolen { holder } => format!("somebody else answers on our port: {holder}"),
        EventKind::TreeGone { unkillable } if unkillable.is_empty() => {
            "no process of the server is left".to_owned()
        }
        EventKind::TreeGone { unkillable } => format!("{} processes would not die", unkillable.len()),
        EventKind::Drained { leftovers, removed } => {
            format!("cleaned up: {} things removed, {} left behind", removed.len(), leftovers.len())
        }
        EventKind::TracesCollected { traces, problems, saved } => {
            let halves = saved.iter().filter(|saved| saved.file.is_some()).count();
            let saved = if halves == 0 { String::new() } else { format!(", {halves} saved from halves") };
            format!("{} complete traces, {} other files{saved}", traces.len(), problems.len())
        }
        EventKind::Profiled(profile) => {
            format!("the profile covers {} steps {}", profile.steps, profile.sample())
        }
        EventKind::BackoffDrawn { delay } => format!("pause of {} before the next attempt", human(*delay)),
        EventKind::TimerFired { timer } => format!("{timer:?} deadline passed").to_lowercase(),
        EventKind::Trouble { what, error } => format!("trouble: {what}: {error}"),
        EventKind::StorageLost { error } => format!("the run folder is lost: {error}"),
        EventKind::JournalThinned { bytes, every } => format!(
            "the journal has grown to {} MB: {}; nothing else changes",
            bytes / 1_000_000,
            every.map_or_else(
                || "samples are no longer written to it".to_owned(),
                |every| format!("one sample of each kind in {} is written to it from here on", human(every))
            )
        ),
        EventKind::GuardDied { killed, .. } => {
            format!("varcas-guard died; {} processes that it had left were killed", killed.len())
        }
        EventKind::AttemptEnding(ending) => format!("{}: {}", ending.outcome, ending.reason),
        EventKind::AttemptEnded(ending) => format!("attempt closed: {}", ending.outcome),
        EventKind::Judged { verdict } => {
            let place = verdict.decisive.as_ref().map_or_else(String::new, |quote| {
                let line = quote.line.map_or_else(String::new, |line| format!(" line {line}"));
                format!(" ({}{line})", quote.source)
            });
            format!("verdict: {}, {}{place}: {}", verdict.cause, verdict.confidence, verdict.explanation)
        }
        EventKind::Mitigated { changes } => {
            let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
            if changes.is_empty() {
                return None;
            }
            format!("the next attempt runs with {}", changes.join("; "))
        }
        EventKind::Decided { why, .. } => why.clone(),
        EventKind::Anomaly { state, input } => format!("{input} made no sense while {state}"),
        EventKind::RunFinished { outcome, exit_code, .. } => {
            format!("the end: {outcome}, exit code {exit_code}")
        }
        EventKind::PreflightFinished { checks, .. } => {
            let bad = checks.iter().filter(|check| check.severity >= Severity::Warn).count();
            if bad == 0 { return None } else { format!("preflight found {bad} problems") }
        }
        EventKind::Finding(finding) if finding.gravity < Gravity::Suspect => return None,
        EventKind::Finding(finding) => {
            format!("log line {}: {}: {}", finding.line, finding.rule, finding.text)
        }
        EventKind::Suspicion(suspicion) => suspicion.to_string(),
        EventKind::Clue(clue) => {
            format!("{}: {}{}", clue.source, clue.text, if clue.inferred { " (inferred)" } else { "" })
        }
        EventKind::Probed { error: None, took } => {
            format!("a request for one token was answered after {}", human(*took))
        }
        EventKind::Probed { error: Some(error), .. } => format!("a request for one token failed: {error}"),
        EventKind::EvidenceSaved { items } => {
            let saved = items.iter().filter(|item| item.file.is_some()).count();
            format!("saved {saved} of {} pieces of evidence", items.len())
        }
        EventKind::KeeperStarted { .. }
        | EventKind::ServerEnvironment { .. }
        | EventKind::DiskSampled { .. }
        | EventKind::ProcessSeen { .. }
        | EventKind::LoadProgressed(_)
        | EventKind::EngineSampled(_)
        | EventKind::ProcessesSampled { .. }
        | EventKind::GpusSampled(_) => return None,
    })
}

/// The live line of a load.
pub fn progress(p: &LoadProgress) -> String {
    let mut line = format!(
        "{} sent, {} open, {} done, {} failed, {} output tokens",
        p.sent, p.in_flight, p.completed, p.failed, p.output_tokens
    );
    if p.ttft_p99_us > 0 {
        // Milliseconds with one digit: finer flickers.
        let ms = |us: u64| format!("{}.{}", us / 1000, us % 1000 / 100);
        let _ = write!(line, ", TTFT p50 {} ms, p99 {} ms", ms(p.ttft_p50_us), ms(p.ttft_p99_us));
    }
    line
}
