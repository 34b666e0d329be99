//! What a person wants to know of a run at this moment. Pure: the events of the journal go in, one by one.
//!
//! What belongs to an attempt is forgotten when the next one begins; of the attempts before only how they ended is kept.
//! Everything is bounded, however long the run is.

use super::meter::Meter;
use super::windows::Windows;
use crate::config::{Plan, ProfileMode, ServerKind};
use crate::event::{
    BenchSummary, Ending, EngineSample, Event, EventKind, Finding, GpuDetails, GpuSample, Gravity,
    LoadProgress, Mitigation, Outcome, Phase, ProcId, ProcSample, Reading, Suspicion, SuspicionStep, Verdict,
};
use crate::time::Stamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::Duration;

/// Findings that are kept: the first ones, because what went wrong first is what counts, and the last ones.
const FINDINGS: usize = 32;

/// Attempts before the present one that are kept.
const PAST: usize = 32;

/// Processes that are kept.
const PROCESSES: usize = 4096;

/// A process of the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Process {
    /// Which.
    pub proc: ProcId,
    /// Parent's pid.
    pub ppid: i32,
    /// Command name.
    pub comm: String,
    /// Its last sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<ProcSample>,
}

/// The benchmark under way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Load {
    /// Requests in the schedule.
    pub planned: u64,
    /// Seed of the schedule and of the prompt words.
    pub seed: u64,
    /// When it began, since the run began.
    #[serde(with = "crate::time::secs")]
    pub began: Duration,
    /// The latest progress.
    pub progress: LoadProgress,
    /// The result, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Box<BenchSummary>>,
}

/// Room on the disk and what the attempt takes of it, in bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Disk {
    /// Free on the filesystem of the run folder.
    pub free: Reading<u64>,
    /// Size of the trace folder.
    pub traces: Reading<u64>,
    /// Size of the logs.
    pub logs: Reading<u64>,
}

/// An attempt that is over.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Past {
    /// Which.
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// One sentence.
    pub reason: String,
    /// What it failed of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

/// What follows from an attempt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Whether there is another attempt.
    pub retry: bool,
    /// One sentence.
    pub why: String,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct End {
    /// Of the attempt that counts.
    pub outcome: Outcome,
    /// See `error::ExitCode`.
    pub exit_code: u8,
    /// One sentence.
    pub reason: String,
}

/// See the module. Moments (`since`, `began`) count from the beginning of the run, in seconds when serialized.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Now {
    /// The run.
    pub run_id: String,
    /// Version of the guard that runs it.
    pub guard_version: String,
    /// The guard's own process.
    pub guard: Option<ProcId>,
    /// The run folder as the guard knew it.
    pub output: PathBuf,
    /// When the run began.
    pub started: Option<jiff::Timestamp>,
    /// The last event.
    pub last: Option<Stamp>,
    /// Kind of server.
    pub server: Option<ServerKind>,
    /// Model as the server calls it, or as it was asked for.
    pub model: String,
    /// Version of the server.
    pub server_version: Option<String>,
    /// The device it uses: `cuda`, `cpu`, ...
    pub device: Option<String>,
    /// Whether the profiler records.
    pub profiling: bool,
    /// How long requests are sent.
    #[serde(with = "crate::time::secs")]
    pub load_duration: Duration,
    /// Budget of the whole run.
    #[serde(with = "crate::time::opt_secs")]
    pub deadline: Option<Duration>,
    /// The present attempt, from 1.
    pub attempt: u32,
    /// Attempts that the run may take at most.
    pub attempts: u32,
    /// The present phase.
    pub phase: Option<Phase>,
    /// When it began.
    #[serde(with = "crate::time::secs")]
    pub phase_since: Duration,
    /// Its budget.
    #[serde(with = "crate::time::opt_secs")]
    pub phase_budget: Option<Duration>,
    /// Whether the server answers requests.
    pub ready: bool,
    /// The benchmark.
    pub load: Option<Load>,
    /// The engine's counters.
    pub engine: Option<Reading<EngineSample>>,
    /// The GPUs.
    pub gpus: Option<Reading<Vec<GpuSample>>>,
    /// The server's processes.
    #[serde(serialize_with = "values")]
    pub processes: BTreeMap<ProcId, Process>,
    /// Room on the disk.
    pub disk: Option<Disk>,
    /// The profiler's windows.
    pub windows: Windows,
    /// Log lines that mean something, the first and the last ones, each rule once.
    pub findings: VecDeque<Finding>,
    /// Matches of such rules in all, as far as they were told.
    pub findings_count: u64,
    /// A standstill that goes on.
    pub suspicion: Option<Suspicion>,
    /// How the present attempt ends or has ended.
    pub ending: Option<Ending>,
    /// What it failed of.
    pub verdict: Option<Box<Verdict>>,
    /// Settings that are changed against what was asked for.
    pub changes: Vec<Mitigation>,
    /// The last decision, which may be one before the present attempt.
    pub decision: Option<Decision>,
    /// What the guard itself had trouble with, last.
    pub trouble: Option<String>,
    /// What of ours outlived its attempt.
    pub left_behind: u64,
    /// Complete traces on disk after the attempt.
    pub traces: Option<u64>,
    /// The windows that they are of: a window has a trace of each rank.
    pub recorded: Option<u64>,
    /// The attempts before.
    pub past: VecDeque<Past>,
    /// The keeper says that the guard died.
    pub guard_died: bool,
    /// The end of the run.
    pub end: Option<End>,
    #[serde(skip)]
    engine_tokens: Meter,
    #[serde(skip)]
    client_pieces: Meter,
    #[serde(skip)]
    details: BTreeMap<u32, Box<GpuDetails>>,
}

impl Now {
    /// Takes the next event of the journal.
    pub fn push(&mut self, event: &Event) {
        let now = event.at.mono;
        self.last = Some(event.at);
        match &event.kind {
            EventKind::RunStarted { run_id, guard_version, guard, plan } => {
                self.run_id.clone_from(run_id);
                self.guard_version.clone_from(guard_version);
                self.guard = Some(*guard);
                self.started = Some(event.at.wall);
                self.planned(plan);
            }
            EventKind::AttemptStarted {} => self.begin(event.attempt),
            EventKind::PhaseEntered { phase, budget } => {
                self.phase = Some(*phase);
                (self.phase_since, self.phase_budget) = (now, *budget);
            }
            EventKind::PreflightFinished { server, .. } => {
                self.server_version.clone_from(&server.version);
                self.device.clone_from(&server.device);
            }
            EventKind::ServerReady { model, .. } => {
                self.ready = true;
                self.model.clone_from(model);
            }
            EventKind::LoadStarted { planned, seed } => {
                let progress = LoadProgress::default();
                self.load =
                    Some(Load { planned: *planned, seed: *seed, began: now, progress, summary: None });
            }
            EventKind::LoadProgressed(progress) => {
                #[expect(clippy::cast_precision_loss, reason = "a rate has fewer digits")]
                self.client_pieces.set(now, progress.chunks as f64);
                if let Some(load) = &mut self.load {
                    load.progress = *progress;
                }
            }
            EventKind::LoadFinished { summary } => {
                self.client_pieces.forget();
                self.engine_tokens.forget();
                if let Some(load) = &mut self.load {
                    load.progress = summary.progress;
                    load.summary = Some(summary.clone());
                }
            }
            EventKind::Window(line) => self.windows.push(line),
            EventKind::EngineSampled(reading) => {
                match reading.value() {
                    Some(sample) => self.engine_tokens.set(now, sample.generation_tokens),
                    None => self.engine_tokens.forget(),
                }
                self.engine = Some(reading.clone());
            }
            EventKind::GpusSampled(reading) => self.gpus(reading),
            EventKind::DiskSampled { free, traces, logs } => {
                self.disk = Some(Disk { free: free.clone(), traces: traces.clone(), logs: logs.clone() });
            }
            EventKind::LogCut(_)
            | EventKind::WindowsGaveWay(_)
            | EventKind::ServerSpawned { .. }
            | EventKind::ProcessSeen { .. }
            | EventKind::ProcessExited { .. }
            | EventKind::ProcessesSampled { .. }
            | EventKind::TreeGone { .. } => self.tree(&event.kind),
            EventKind::Finding(finding) => self.finding(finding),
            EventKind::Suspicion(suspicion) => {
                self.suspicion = Some(suspicion.clone()).filter(|s| s.step != SuspicionStep::Cleared);
            }
            EventKind::AttemptEnding(ending) => {
                self.ending.get_or_insert_with(|| ending.clone());
            }
            EventKind::AttemptEnded(ending) => self.ending = Some(ending.clone()),
            EventKind::Judged { verdict } => self.verdict = Some(verdict.clone()),
            EventKind::Mitigated { changes } => self.changes.clone_from(changes),
            EventKind::Decided { retry, why } => {
                self.decision = Some(Decision { retry: *retry, why: why.clone() });
            }
            EventKind::Trouble { what, error } => self.trouble = Some(format!("{what}: {error}")),
            EventKind::StorageLost { error } => {
                self.trouble = Some(format!("the run folder is lost: {error}"))
            }
            EventKind::Drained { leftovers, .. } => self.left_behind = leftovers.len() as u64,
            EventKind::GuardDied { leftovers, .. } => {
                self.guard_died = true;
                self.left_behind = leftovers.len() as u64;
                self.nobody_left();
            }
            EventKind::TracesCollected { traces, .. } => {
                let numbered: BTreeSet<u32> = traces.iter().filter_map(|trace| trace.window).collect();
                let others = traces.iter().filter(|trace| trace.window.is_none()).count();
                self.traces = Some(traces.len() as u64);
                self.recorded = Some((numbered.len() + others) as u64);
            }
            EventKind::RunFinished { outcome, exit_code, reason } => {
                self.end = Some(End { outcome: *outcome, exit_code: *exit_code, reason: reason.clone() });
            }
            EventKind::KeeperStarted { .. }
            | EventKind::KeeperLost { .. }
            | EventKind::ServerEnvironment { .. }
            | EventKind::SpawnFailed { .. }
            | EventKind::SignalSent { .. }
            | EventKind::JournalThinned { .. }
            | EventKind::SignalReceived { .. }
            | EventKind::PortStolen { .. }
            | EventKind::WarmupFinished { .. }
            | EventKind::WarmupFailed { .. }
            | EventKind::LoadFailed { .. }
            | EventKind::WindowsClosed { .. }
            | EventKind::Profiled(_)
            | EventKind::BackoffDrawn { .. }
            | EventKind::TimerFired { .. }
            | EventKind::Clue(_)
            | EventKind::Probed { .. }
            | EventKind::EvidenceSaved { .. }
            | EventKind::Anomaly { .. } => {}
        }
        // Who reads only the end of a journal has not heard the attempt begin.
        self.attempt = self.attempt.max(event.attempt);
    }

    fn planned(&mut self, plan: &Plan) {
        self.output.clone_from(&plan.output);
        self.server = Some(plan.server.kind);
        self.model.clone_from(&plan.server.model);
        self.profiling = plan.profile.mode != ProfileMode::Off;
        self.load_duration = plan.load.duration;
        self.deadline = plan.budgets.run;
        self.attempts = plan.retries.saturating_add(1);
    }

    fn begin(&mut self, attempt: u32) {
        if let Some(ending) = self.ending.take() {
            let cause = self.verdict.take().map(|verdict| verdict.cause);
            self.past.push_back(Past {
                attempt: self.attempt,
                outcome: ending.outcome,
                reason: ending.reason,
                cause,
            });
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        self.attempt = attempt;
        self.ready = false;
        self.load = None;
        (self.engine, self.gpus, self.disk) = (None, None, None);
        self.windows = Windows::default();
        self.findings.clear();
        self.findings_count = 0;
        (self.suspicion, self.verdict, self.trouble) = (None, None, None);
        (self.traces, self.recorded) = (None, None);
        self.left_behind = 0;
        self.processes.clear();
        self.engine_tokens.forget();
        self.client_pieces.forget();
    }

    fn gpus(&mut self, reading: &Reading<Vec<GpuSample>>) {
        let mut reading = reading.clone();
        if let Reading::Value(gpus) = &mut reading {
            for gpu in gpus {
                match &gpu.details {
                    Some(details) => drop(self.details.insert(gpu.gpu, details.clone())),
                    None => gpu.details = self.details.get(&gpu.gpu).cloned(),
                }
            }
        }
        self.gpus = Some(reading);
    }

    fn tree(&mut self, kind: &EventKind) {
        match kind {
            EventKind::ServerSpawned { proc, argv } => {
                let comm = argv.first().and_then(|arg| arg.rsplit('/').next()).unwrap_or_default();
                self.seen(*proc, 0, comm);
            }
            EventKind::ProcessSeen { proc, ppid, comm } => self.seen(*proc, *ppid, comm),
            EventKind::ProcessExited { proc, .. } => drop(self.processes.remove(proc)),
            EventKind::ProcessesSampled { processes } => {
                for sample in processes {
                    self.seen(sample.proc, sample.ppid, &sample.comm);
                    if let Some(process) = self.processes.get_mut(&sample.proc) {
                        process.sample = Some(sample.clone());
                    }
                }
            }
            _ => self.nobody_left(),
        }
    }

    fn seen(&mut self, proc: ProcId, ppid: i32, comm: &str) {
        if self.processes.len() >= PROCESSES && !self.processes.contains_key(&proc) {
            return;
        }
        let comm = comm.to_owned();
        let process =
            self.processes.entry(proc).or_insert(Process { proc, ppid, comm: String::new(), sample: None });
        process.comm = comm;
        process.ppid = if ppid == 0 { process.ppid } else { ppid };
    }

    fn nobody_left(&mut self) {
        self.processes.clear();
        self.windows.end();
        self.ready = false;
        self.suspicion = None;
        (self.engine, self.disk) = (None, None);
        self.engine_tokens.forget();
        self.client_pieces.forget();
    }

    fn finding(&mut self, finding: &Finding) {
        if finding.gravity < Gravity::Suspect {
            return;
        }
        self.findings_count += 1;
        if let Some(known) = self.findings.iter_mut().find(|known| known.rule == finding.rule) {
            // The first line of a rule is the one to show; only how often it came is news.
            known.count = finding.count;
            known.gravity = known.gravity.max(finding.gravity);
            return;
        }
        if self.findings.len() >= FINDINGS {
            self.findings.remove(FINDINGS / 2);
        }
        self.findings.push_back(finding.clone());
    }

    /// The moment on the run's own clock at which the wall clock showed `wall`, for who looks on from another process.
    pub fn moment(&self, wall: jiff::Timestamp) -> Duration {
        let Some(last) = self.last else { return Duration::ZERO };
        let since = Duration::try_from(wall.duration_since(last.wall)).unwrap_or_default();
        last.mono + since
    }

    /// Output tokens per second by the engine's counter, or else pieces of streams per second as the client gets them.
    pub fn tokens_per_s(&self, now: Duration) -> Option<(f64, TokensFrom)> {
        let engine = self.engine_tokens.rate(now).map(|rate| (rate, TokensFrom::Engine));
        engine.or_else(|| Some((self.client_pieces.rate(now)?, TokensFrom::Client)))
    }

    /// What is left of the phase's budget.
    pub fn phase_left(&self, now: Duration) -> Option<Duration> {
        self.phase_budget.map(|budget| (self.phase_since + budget).saturating_sub(now))
    }

    /// How long requests are still sent; none when there is no load under way.
    pub fn load_left(&self, now: Duration) -> Option<Duration> {
        let load = self.load.as_ref().filter(|load| load.summary.is_none())?;
        (self.phase == Some(Phase::Measuring)).then(|| (load.began + self.load_duration).saturating_sub(now))
    }

    /// What is left until the deadline of the whole run.
    pub fn deadline_left(&self, now: Duration) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_sub(now))
    }

    /// Resident bytes of the server's processes; none while none was sampled.
    pub fn rss(&self) -> Option<u64> {
        let mut samples = self.processes.values().filter_map(|process| process.sample.as_ref()).peekable();
        samples.peek()?;
        Some(samples.map(|sample| sample.rss).sum())
    }

    /// Whether nothing will follow: the run came to its end, or its guard died.
    pub fn is_over(&self) -> bool {
        self.end.is_some() || self.guard_died
    }
}

/// Who counted the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokensFrom {
    /// The engine's counter of generated tokens.
    Engine,
    /// Pieces of streams at the client.
    Client,
}

fn values<S: serde::Serializer>(map: &BTreeMap<ProcId, Process>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(map.values())
}
