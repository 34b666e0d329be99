//! From the events of a run to its report. Pure: the same journal gives the same report, byte for byte, which is what
//! `varcas-guard replay` checks.
//!
//! The fields of these structs are the schema of `report.json`; `schema` is raised when a reader must know of a change.

use super::story;
use crate::config::Plan;
use crate::event::{
    BenchSummary, Check, Ending, Event, EventKind, Evidence, ExitHow, Leftover, Mitigation, Outcome, Phase,
    ProcId, ProfileSummary, Reading, SavedTrace, ServerFacts, Severity, Suspicion, SuspicionStep, Trace,
    Verdict, WindowEvent, signal_name, words::sentence,
};
use crate::time::secs;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Version of `report.json`.
pub const REPORT_SCHEMA: u32 = 1;

/// What a run is called whose journal has no end.
const INTERRUPTED: &str = "interrupted";

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
    /// What was asked for, what happened, and what became of it: three sentences.
    #[serde(default)]
    pub story: Vec<String>,
    /// What to do now, most urgent first.
    #[serde(default)]
    pub to_do: Vec<String>,
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
    /// What the server got beside the environment that it inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The attempt whose files the links at the top of the run folder point to.
    pub counts: Option<u32>,
    /// What was changed for that attempt; its results were obtained under these settings.
    #[serde(default)]
    pub mitigations: Vec<Mitigation>,
    /// The benchmark of that attempt.
    pub benchmark: Option<BenchSummary>,
    /// The traces of that attempt.
    pub traces: Vec<Trace>,
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

impl Report {
    /// Whether the journal has no end: the run goes on, or the guard is dead.
    pub fn is_open(&self) -> bool {
        self.outcome == INTERRUPTED
    }

    /// Whether nobody came to the end of it, dead or alive.
    pub fn is_unfinished(&self) -> bool {
        self.exit_code.is_none()
    }

    /// Somebody looked, and the guard is alive.
    pub fn still_running(&mut self) {
        self.outcome = "running".to_owned();
        self.reason = "the run is still going on".to_owned();
        story::tell(self);
    }
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
    /// What was changed for it.
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
    /// Standstills that were suspected, confirmed or acted upon, the last word on each kind.
    #[serde(default)]
    pub standstills: Vec<Suspicion>,
    /// Profiler windows by the workers' own account.
    pub windows: Windows,
    /// The benchmark, complete or not.
    pub benchmark: Option<BenchSummary>,
    /// Complete traces.
    pub traces: Vec<Trace>,
    /// Files in the trace folder that are no complete traces.
    pub trace_problems: Vec<String>,
    /// What the complete traces show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Box<ProfileSummary>>,
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
    let mut builder = Builder::default();
    for event in events {
        builder.push(event);
    }
    builder.finish()
}

/// Makes the report while the journal streams by.
#[derive(Debug)]
pub struct Builder {
    report: Report,
    attempts: BTreeMap<u32, Open>,
    /// What was changed for the next attempt, and for it alone: what stays in force is said again.
    mitigations: Vec<Mitigation>,
}

impl Default for Builder {
    fn default() -> Self {
        let report = Report {
            schema: REPORT_SCHEMA,
            run_id: String::new(),
            guard_version: String::new(),
            outcome: INTERRUPTED.to_owned(),
            exit_code: None,
            reason: "the journal ends in the middle of the run: varcas-guard itself was killed or the machine stopped"
                .to_owned(),
            story: Vec::new(),
            to_do: Vec::new(),
            started: None,
            ended: None,
            duration_s: Duration::ZERO,
            server: ServerFacts::default(),
            argv: Vec::new(),
            env: BTreeMap::new(),
            counts: None,
            mitigations: Vec::new(),
            benchmark: None,
            traces: Vec::new(),
            left_behind: Vec::new(),
            attempts: Vec::new(),
            troubles: Vec::new(),
            unreadable: Vec::new(),
            timeline: Vec::new(),
            plan: None,
        };
        Self { report, attempts: BTreeMap::new(), mitigations: Vec::new() }
    }
}

impl Builder {
    /// Takes the next event.
    pub fn push(&mut self, event: &Event) {
        let report = &mut self.report;
        report.started.get_or_insert(event.at.wall);
        report.ended = Some(event.at.wall);
        report.duration_s = event.at.mono;
        run_level(report, event);
        if let Some(what) = sentence(&event.kind) {
            report.timeline.push(Moment { at_s: event.at.mono, attempt: event.attempt, what });
        }
        if let EventKind::Mitigated { changes } = &event.kind {
            self.mitigations.clone_from(changes);
        }
        if let EventKind::WindowsGaveWay(gone) = &event.kind
            && let Some(open) = self.attempts.get_mut(&gone.of)
        {
            open.out.traces.retain(|trace| !gone.files.contains(&trace.file));
            open.out.trace_problems.push(format!(
                "{} traces were removed to make room for attempt {} (disk.max)",
                gone.files.len(),
                event.attempt
            ));
        }
        if event.attempt > 0 {
            self.attempts
                .entry(event.attempt)
                .or_insert_with(|| {
                    Open::new(event.attempt, event.at.mono, std::mem::take(&mut self.mitigations))
                })
                .push(event);
        }
    }

    /// After the last event.
    pub fn finish(self) -> Report {
        let mut report = self.report;
        report.attempts = self.attempts.into_values().map(Open::finish).collect();
        let counts = report
            .attempts
            .iter()
            .rfind(|a| a.ending.as_ref().is_some_and(|ending| ending.outcome == Outcome::Success))
            .or_else(|| report.attempts.iter().rfind(|a| a.benchmark.is_some()))
            .or_else(|| report.attempts.iter().rfind(|a| !a.processes.is_empty()));
        if let Some(attempt) = counts {
            report.counts = Some(attempt.number);
            report.mitigations.clone_from(&attempt.mitigations);
            report.benchmark.clone_from(&attempt.benchmark);
            report.traces.clone_from(&attempt.traces);
        }
        // Only what the last attempt left can still be there: each preflight looks for what the ones before it left.
        if let Some(last) = report.attempts.last() {
            report.left_behind.clone_from(&last.left_behind);
        }
        story::tell(&mut report);
        report
    }
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
        EventKind::ServerEnvironment { env } => report.env.clone_from(env),
        EventKind::Trouble { what, error } => report.troubles.push(format!("{what}: {error}")),
        EventKind::GpusSampled(Reading::Unavailable { why }) => unreadable(report, format!("GPUs: {why}")),
        EventKind::DiskSampled { free: Reading::Unavailable { why }, .. } => {
            unreadable(report, format!("free disk: {why}"));
        }
        EventKind::Anomaly { state, input } => {
            report.troubles.push(format!("{input} made no sense while {state}"))
        }
        EventKind::GuardDied { .. } => {
            report.reason = "varcas-guard itself was killed, and what it had left was ended".to_owned();
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

/// An attempt whose events are still coming.
#[derive(Debug)]
struct Open {
    out: Attempt,
    processes: BTreeMap<ProcId, Process>,
    begin: Duration,
    end: Duration,
}

impl Open {
    fn new(number: u32, begin: Duration, mitigations: Vec<Mitigation>) -> Self {
        let out = Attempt {
            number,
            ending: None,
            verdict: None,
            mitigations,
            duration_s: Duration::ZERO,
            phases: Vec::new(),
            checks: Vec::new(),
            processes: Vec::new(),
            signals: Vec::new(),
            standstills: Vec::new(),
            windows: Windows::default(),
            benchmark: None,
            traces: Vec::new(),
            trace_problems: Vec::new(),
            profile: None,
            findings: Vec::new(),
            evidence: Vec::new(),
            saved: Vec::new(),
            left_behind: Vec::new(),
            removed: Vec::new(),
        };
        Self { out, processes: BTreeMap::new(), begin, end: begin }
    }

    fn process(&mut self, proc: ProcId) -> &mut Process {
        self.processes.entry(proc).or_insert(Process { proc, comm: String::new(), ended: None })
    }

    fn push(&mut self, event: &Event) {
        self.end = event.at.mono;
        let out = &mut self.out;
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
                let name = argv.first().map(|a| a.rsplit('/').next().unwrap_or(a).to_owned());
                self.processes.entry(*proc).or_insert(Process {
                    proc: *proc,
                    comm: name.unwrap_or_default(),
                    ended: None,
                });
            }
            EventKind::ProcessSeen { proc, comm, .. } => self.process(*proc).comm.clone_from(comm),
            EventKind::ProcessExited { proc, comm, how, .. } => {
                let process = self.process(*proc);
                process.comm.clone_from(comm);
                process.ended = Some(*how);
            }
            EventKind::SignalSent { signal, targets, why } => {
                let pids: Vec<String> = targets.iter().map(|target| target.pid.to_string()).collect();
                out.signals.push(format!("{} to {}: {why}", signal_name(*signal), pids.join(", ")));
            }
            EventKind::Finding(_) | EventKind::Clue(_) if out.findings.len() < MAX_FINDINGS => {
                out.findings.extend(sentence(&event.kind));
            }
            EventKind::Suspicion(suspicion) if suspicion.step != SuspicionStep::Cleared => {
                out.standstills.retain(|other| other.kind != suspicion.kind);
                out.standstills.push(suspicion.clone());
            }
            EventKind::EvidenceSaved { items } => out.evidence.clone_from(items),
            EventKind::Window(line) => window(&mut out.windows, &line.what),
            EventKind::LoadFinished { summary } => out.benchmark = Some((**summary).clone()),
            EventKind::Profiled(profile) => out.profile = Some(profile.clone()),
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

    fn finish(mut self) -> Attempt {
        if let Some(last) = self.out.phases.last_mut() {
            last.took_s = self.end.saturating_sub(last.at_s);
        }
        self.out.duration_s = self.end.saturating_sub(self.begin);
        self.out.processes = self.processes.into_values().collect();
        self.out
    }
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
