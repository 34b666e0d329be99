//! From the events of a run to its report. Pure: the same journal gives the same report, byte for byte, which is what
//! `varcas-guard replay` checks.
//!
//! The fields of these structs are the schema of `report.json`; `schema` is raised when a reader must know of a change.

use crate::config::Plan;
use crate::event::{
    BenchSummary, Check, Ending, Event, EventKind, Evidence, ExitHow, Leftover, Mitigation, Outcome, Phase,
    ProcId, Reading, SavedTrace, ServerFacts, Severity, Trace, Verdict, WindowEvent, signal_name,
    words::sentence,
};
use crate::time::secs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Version of `report.json`.
pub const REPORT_SCHEMA: u32 = 1;

/// Lines of the log that a report quotes for an attempt; all of them are in the journal.
const MAX_FINDINGS: usize = 20;

/// `report.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// As in the journal and in the environment of every process of the run.
    pub run_id: String,
    /// Which program wrote the journal.
    pub guard_version: String,
    /// `success`, ... or `interrupted` when the journal has no end.
    pub outcome: String,
    /// The exit code, or none when the guard did not live to give one.
    pub exit_code: Option<u8>,
    /// One sentence.
    pub reason: String,
    /// First event.
    pub started: Option<jiff::Timestamp>,
    /// Last event.
    pub ended: Option<jiff::Timestamp>,
    /// Between them, by the monotonic clock.
    #[serde(with = "secs")]
    pub duration_s: Duration,
    /// What the preflight learned about the server.
    pub server: ServerFacts,
    /// The exact command line of the last attempt.
    pub argv: Vec<String>,
    /// The attempt whose files the links at the top of the run folder point to.
    pub counts: Option<u32>,
    /// The benchmark of that attempt.
    pub benchmark: Option<BenchSummary>,
    /// The traces of that attempt.
    pub traces: Vec<Trace>,
    /// Settings that were changed for that attempt: its numbers were measured under them.
    #[serde(default)]
    pub mitigations: Vec<Mitigation>,
    /// What outlived the run. Empty is the promise.
    pub left_behind: Vec<Leftover>,
    /// Every attempt.
    pub attempts: Vec<Attempt>,
    /// Things of ours that did not work, and inputs that made no sense.
    pub troubles: Vec<String>,
    /// What could not be read on this machine, each with its reason, so that nobody takes silence for health.
    #[serde(default)]
    pub unreadable: Vec<String>,
    /// What happened when, without the samples.
    pub timeline: Vec<Moment>,
    /// Everything that was asked for.
    pub plan: Option<Box<Plan>>,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// How it ended; none when the guard died in the middle of it.
    pub ending: Option<Ending>,
    /// What it failed of.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// Settings that were changed for it, because of what the attempts before it failed of.
    #[serde(default)]
    pub mitigations: Vec<Mitigation>,
    /// From its first to its last event.
    #[serde(with = "secs")]
    pub duration_s: Duration,
    /// In order.
    pub phases: Vec<PhaseSpan>,
    /// Preflight checks that were not simply good.
    pub checks: Vec<Check>,
    /// Every process of the tree and how it ended.
    pub processes: Vec<Process>,
    /// Signals we sent.
    pub signals: Vec<String>,
    /// Profiler windows by the workers' own account.
    pub windows: Windows,
    /// The benchmark, complete or not.
    pub benchmark: Option<BenchSummary>,
    /// Complete traces.
    pub traces: Vec<Trace>,
    /// Files in the trace folder that are no complete traces.
    pub trace_problems: Vec<String>,
    /// What was saved of halves.
    #[serde(default)]
    pub saved: Vec<SavedTrace>,
    /// Lines of the server's log that mean something, and what the system said.
    #[serde(default)]
    pub findings: Vec<String>,
    /// What was saved before the kill, in `attempt-N/evidence/`.
    #[serde(default)]
    pub evidence: Vec<Evidence>,
    /// What outlived the attempt.
    pub left_behind: Vec<Leftover>,
    /// What we removed after it.
    pub removed: Vec<String>,
}

/// A phase and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseSpan {
    /// Which.
    pub phase: Phase,
    /// Since the run began.
    #[serde(with = "secs")]
    pub at_s: Duration,
    /// Until the next phase or the last event.
    #[serde(with = "secs")]
    pub took_s: Duration,
}

/// A process of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Which.
    pub proc: ProcId,
    /// Last known command name.
    pub comm: String,
    /// How it ended; none when nobody saw the end.
    pub ended: Option<ExitHow>,
}

/// Counts of profiler windows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Windows {
    /// Workers that said hello.
    pub workers: u32,
    /// Windows begun.
    pub opened: u32,
    /// Windows whose trace got its final name.
    pub closed: u32,
    /// Windows lost, each with the worker's reason.
    pub failed: Vec<String>,
    /// Workers that switched profiling off, each with its reason.
    pub disabled: Vec<String>,
    /// Why no windows opened for a while.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<String>,
    /// Share of the engine's working time that the windows took, by the last word of a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<f64>,
    /// The engine's working time, in seconds, up to then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worked_s: Option<f64>,
}

/// One line of the timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Since the run began.
    #[serde(with = "secs")]
    pub at_s: Duration,
    /// The attempt.
    pub attempt: u32,
    /// What happened.
    pub what: String,
}

/// Makes the report.
pub fn build(events: &[Event]) -> Report {
    let mut report = Report {
        schema: REPORT_SCHEMA,
        run_id: String::new(),
        guard_version: String::new(),
        outcome: "interrupted".to_owned(),
        exit_code: None,
        reason:
            "the journal ends in the middle of the run: varcas-guard itself was killed or the machine stopped"
                .to_owned(),
        started: events.first().map(|event| event.at.wall),
        ended: events.last().map(|event| event.at.wall),
        duration_s: events.last().map(|event| event.at.mono).unwrap_or_default(),
        server: ServerFacts::default(),
        argv: Vec::new(),
        counts: None,
        benchmark: None,
        traces: Vec::new(),
        mitigations: Vec::new(),
        left_behind: Vec::new(),
        attempts: Vec::new(),
        troubles: Vec::new(),
        unreadable: Vec::new(),
        timeline: Vec::new(),
        plan: None,
    };
    let mut numbers: BTreeSet<u32> = events.iter().map(|event| event.attempt).collect();
    numbers.remove(&0);
    for number in numbers {
        let of_attempt: Vec<&Event> = events.iter().filter(|event| event.attempt == number).collect();
        let mut attempt = attempt(number, &of_attempt);
        // Decided at the end of the attempt before.
        attempt.mitigations = mitigations(events, number);
        report.attempts.push(attempt);
    }
    for event in events {
        run_level(&mut report, event);
        if let Some(what) = sentence(&event.kind) {
            report.timeline.push(Moment { at_s: event.at.mono, attempt: event.attempt, what });
        }
    }
    let counts = report
        .attempts
        .iter()
        .rfind(|a| a.ending.as_ref().is_some_and(|ending| ending.outcome == Outcome::Success))
        .or_else(|| report.attempts.iter().rfind(|a| a.benchmark.is_some()))
        .or_else(|| report.attempts.iter().rfind(|a| !a.processes.is_empty()));
    if let Some(attempt) = counts {
        report.counts = Some(attempt.number);
        report.benchmark.clone_from(&attempt.benchmark);
        report.traces.clone_from(&attempt.traces);
        report.mitigations.clone_from(&attempt.mitigations);
    }
    // Only what the last attempt left can still be there: each preflight looks for what the ones before it left.
    if let Some(last) = report.attempts.last() {
        report.left_behind.clone_from(&last.left_behind);
    }
    report
}

fn mitigations(events: &[Event], number: u32) -> Vec<Mitigation> {
    events
        .iter()
        .filter(|event| event.attempt + 1 == number)
        .find_map(|event| match &event.kind {
            EventKind::Mitigated { changes } => Some(changes.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

fn run_level(report: &mut Report, event: &Event) {
    match &event.kind {
        EventKind::RunStarted { run_id, guard_version, plan, .. } => {
            report.run_id.clone_from(run_id);
            report.guard_version.clone_from(guard_version);
            report.plan = Some(plan.clone());
        }
        EventKind::PreflightFinished { server, .. } => report.server = server.clone(),
        EventKind::ServerSpawned { argv, .. } => report.argv.clone_from(argv),
        EventKind::Trouble { what, error } => report.troubles.push(format!("{what}: {error}")),
        EventKind::GpusSampled(Reading::Unavailable { why }) => unreadable(report, format!("GPUs: {why}")),
        EventKind::DiskSampled { free: Reading::Unavailable { why }, .. } => {
            unreadable(report, format!("free disk: {why}"));
        }
        EventKind::Anomaly { state, input } => {
            report.troubles.push(format!("{input} made no sense while {state}"))
        }
        EventKind::GuardDied { .. } => {
            report.reason = "varcas-guard itself was killed; its keeper ended the server".to_owned();
        }
        EventKind::RunFinished { outcome, exit_code, reason } => {
            report.outcome = kebab(*outcome);
            report.exit_code = Some(*exit_code);
            report.reason.clone_from(reason);
        }
        _ => {}
    }
}

fn unreadable(report: &mut Report, what: String) {
    if !report.unreadable.contains(&what) {
        report.unreadable.push(what);
    }
}

fn kebab(outcome: Outcome) -> String {
    outcome.to_string().replace(' ', "-")
}

fn attempt(number: u32, events: &[&Event]) -> Attempt {
    let begin = events.first().map(|event| event.at.mono).unwrap_or_default();
    let end = events.last().map(|event| event.at.mono).unwrap_or_default();
    let mut out = Attempt {
        number,
        ending: None,
        verdict: None,
        mitigations: Vec::new(),
        duration_s: end.saturating_sub(begin),
        phases: Vec::new(),
        checks: Vec::new(),
        processes: Vec::new(),
        signals: Vec::new(),
        windows: Windows::default(),
        benchmark: None,
        traces: Vec::new(),
        trace_problems: Vec::new(),
        findings: Vec::new(),
        evidence: Vec::new(),
        saved: Vec::new(),
        left_behind: Vec::new(),
        removed: Vec::new(),
    };
    let mut processes: BTreeMap<ProcId, Process> = BTreeMap::new();
    for event in events {
        match &event.kind {
            EventKind::PhaseEntered { phase, .. } => {
                let at_s = event.at.mono;
                if let Some(last) = out.phases.last_mut() {
                    last.took_s = at_s.saturating_sub(last.at_s);
                }
                out.phases.push(PhaseSpan { phase: *phase, at_s, took_s: Duration::ZERO });
            }
            EventKind::AttemptEnding(ending) | EventKind::AttemptEnded(ending) => {
                out.ending = Some(ending.clone())
            }
            EventKind::Judged { verdict } => out.verdict = Some((**verdict).clone()),
            EventKind::PreflightFinished { checks, .. } => {
                out.checks = checks.iter().filter(|check| check.severity > Severity::Ok).cloned().collect();
            }
            EventKind::ServerSpawned { proc, argv } => {
                let name =
                    argv.first().map(|a| a.rsplit('/').next().unwrap_or(a).to_owned()).unwrap_or_default();
                processes.entry(*proc).or_insert(Process { proc: *proc, comm: name, ended: None });
            }
            EventKind::ProcessSeen { proc, comm, .. } => {
                processes
                    .entry(*proc)
                    .or_insert(Process { proc: *proc, comm: String::new(), ended: None })
                    .comm = comm.clone();
            }
            EventKind::ProcessExited { proc, comm, how, .. } => {
                let entry = processes.entry(*proc).or_insert(Process {
                    proc: *proc,
                    comm: String::new(),
                    ended: None,
                });
                entry.comm.clone_from(comm);
                entry.ended = Some(*how);
            }
            EventKind::SignalSent { signal, targets, why } => {
                let pids: Vec<String> = targets.iter().map(|target| target.pid.to_string()).collect();
                out.signals.push(format!("{} to {}: {why}", signal_name(*signal), pids.join(", ")));
            }
            EventKind::Finding(_) | EventKind::Clue(_) if out.findings.len() < MAX_FINDINGS => {
                out.findings.extend(sentence(&event.kind));
            }
            EventKind::EvidenceSaved { items } => out.evidence.clone_from(items),
            EventKind::Window(line) => window(&mut out.windows, &line.what),
            EventKind::LoadFinished { summary } => out.benchmark = Some((**summary).clone()),
            EventKind::TracesCollected { traces, problems, saved } => {
                out.saved.clone_from(saved);
                out.traces.clone_from(traces);
                out.trace_problems.clone_from(problems);
            }
            EventKind::TreeGone { unkillable } => out.left_behind.extend(unkillable.iter().cloned()),
            EventKind::Drained { leftovers, removed } | EventKind::GuardDied { leftovers, removed, .. } => {
                for leftover in leftovers {
                    if !out.left_behind.contains(leftover) {
                        out.left_behind.push(leftover.clone());
                    }
                }
                out.removed.extend(removed.iter().cloned());
            }
            _ => {}
        }
    }
    if let Some(last) = out.phases.last_mut() {
        last.took_s = end.saturating_sub(last.at_s);
    }
    out.processes = processes.into_values().collect();
    out
}

fn window(out: &mut Windows, what: &WindowEvent) {
    match what {
        WindowEvent::Hello { .. } => out.workers += 1,
        WindowEvent::Opened { .. } => out.opened += 1,
        WindowEvent::Closed { .. } => out.closed += 1,
        WindowEvent::Failed { window, error } => out.failed.push(format!("window {window}: {error}")),
        WindowEvent::Disabled { reason } => out.disabled.push(reason.clone()),
        WindowEvent::Held { reason } => out.held.push(reason.clone()),
        WindowEvent::Planned { taken, worked_s, .. } => {
            out.taken = Some(*taken);
            out.worked_s = Some(*worked_s);
        }
        WindowEvent::Flushing { .. } | WindowEvent::Primed { .. } | WindowEvent::Finished {} => {}
    }
}
