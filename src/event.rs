//! The vocabulary. Everything that happens in a run is an `Event`; the journal, the console, the verdict, the report
//! and the tests are made from events and from nothing else.
//!
//! An event is either a *fact* that an edge saw or did, or a *conclusion* of the pure machine. A replay feeds the
//! facts to the machine again and must reach the same conclusions (`EventKind::is_fact`).

mod check;
mod disk;
mod finding;
mod measured;
pub mod profile;
mod signal;
mod verdict;
mod window;
pub mod words;

pub use check::{Check, ServerFacts, Severity};
pub use disk::{GaveWay, LogCut};
pub use finding::{Clue, Evidence, Finding, Gravity, HangKind, Suspicion, SuspicionStep};
pub use measured::{
    BenchSummary, EngineSample, GpuDetails, GpuHolder, GpuSample, Latency, LoadProgress, ProcSample, Reading,
    WorkloadSummary,
};
pub use profile::ProfileSummary;
pub use signal::signal_name;
pub use verdict::{Confidence, Mitigation, Quote, Retry, RuledOut, Verdict};
pub use window::{SavedTrace, WindowContent, WindowEvent, WindowLine};

use crate::config::Plan;
use crate::time::{Stamp, opt_secs, secs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Version of the journal format. Old journals load for ever: a change that a reader must know about raises it.
pub const JOURNAL_VERSION: u32 = 1;

/// One line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// [`JOURNAL_VERSION`] of the writer.
    pub v: u32,
    /// Counts from 0 within a run. A gap means that the disk refused for too long, or, after a
    /// [`EventKind::JournalThinned`], that samples were left out.
    pub seq: u64,
    /// When it happened.
    #[serde(flatten)]
    pub at: Stamp,
    /// The attempt it belongs to; 0 before the first.
    pub attempt: u32,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// A process that cannot be confused with a later one of the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcId {
    /// The process id.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: u64,
}

impl fmt::Display for ProcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)
    }
}

/// How a process ended. A signal is never squeezed into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "how")]
pub enum ExitHow {
    /// It called exit.
    Code {
        /// The exit status, 0 to 255.
        code: i32,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
        /// Whether the kernel says that it dumped core.
        core: bool,
    },
    /// It is gone, but it was not our child, so nobody told us how.
    Unknown,
}

impl fmt::Display for ExitHow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code { code } => write!(f, "exit code {code}"),
            Self::Signal { signal, core } => {
                write!(f, "{}{}", signal_name(*signal), if *core { " with a core dump" } else { "" })
            }
            Self::Unknown => f.write_str("a status that only its parent could see"),
        }
    }
}

/// What an attempt is doing. Each phase has its own budget and its own signs of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Checks before anything is started.
    Preflight,
    /// The server's processes start and load the model.
    Loading,
    /// First requests, which compile.
    WarmUp,
    /// The benchmark runs.
    Measuring,
    /// The open profiler windows are being closed.
    Flushing,
    /// SIGTERM was sent.
    Stopping,
    /// Kill, reap, and wait until port, memory and names are free.
    Draining,
    /// Traces are checked and compressed.
    Collecting,
    /// Between two attempts.
    Waiting,
    /// The run is over.
    Done,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preflight => "preflight",
            Self::Loading => "loading",
            Self::WarmUp => "warm-up",
            Self::Measuring => "measuring",
            Self::Flushing => "flushing",
            Self::Stopping => "stopping",
            Self::Draining => "draining",
            Self::Collecting => "collecting",
            Self::Waiting => "waiting",
            Self::Done => "done",
        })
    }
}

/// A deadline the machine set for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timer {
    /// The budget of the phase is spent.
    Phase,
    /// `--deadline` for the whole run.
    Run,
    /// The pause between two attempts is over.
    Backoff,
}

/// A finished trace as it lies in the attempt's folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// File name inside the attempt's `traces/`.
    pub file: String,
    /// Bytes on disk, compressed.
    pub bytes: u64,
    /// Bytes of JSON.
    pub json_bytes: u64,
    /// Trace events.
    pub events: u64,
    /// Events of category `kernel`.
    pub kernels: u64,
    /// Rank, window and step range when the index knows them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// The window's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
    /// Steps recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Whether the JSON was read to its end.
    pub complete: bool,
}

/// Something of ours that outlived its attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "leftover")]
pub enum Leftover {
    /// A process that would not die.
    Process {
        /// Which.
        proc: ProcId,
        /// Its command name.
        comm: String,
        /// Its state letter.
        state: String,
    },
    /// The port is still held.
    Port {
        /// Which.
        port: u16,
        /// By whom, in words.
        holder: String,
    },
    /// A file or shared-memory segment that could not be removed.
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// GPU memory that did not come back.
    GpuMemory {
        /// Device index.
        gpu: u32,
        /// Bytes above the level before the attempt.
        bytes: u64,
    },
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Benchmark complete, traces on disk.
    Success,
    /// The preflight refused; nothing was started.
    Refused,
    /// The server never became ready.
    StartupFailure,
    /// A process of the server died.
    Crash,
    /// Nothing moved while work was pending.
    Hang,
    /// The server ran, but the benchmark or the traces are not usable.
    Degraded,
    /// Somebody or a deadline stopped it.
    Stopped,
    /// A bug of ours, or our own helper process died.
    GuardFault,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "success",
            Self::Refused => "refused",
            Self::StartupFailure => "startup failure",
            Self::Crash => "crash",
            Self::Hang => "hang",
            Self::Degraded => "degraded",
            Self::Stopped => "stopped",
            Self::GuardFault => "guard fault",
        })
    }
}

/// The first thing that went wrong in an attempt; what follows from it never replaces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// The kind of end.
    pub outcome: Outcome,
    /// One sentence for people.
    pub reason: String,
    /// The phase in which it happened.
    pub phase: Phase,
}

/// What happened. Facts first, conclusions of the machine last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", content = "data", rename_all = "kebab-case")]
pub enum EventKind {
    // ---- facts ----
    /// The first line of every journal.
    RunStarted {
        /// Also in the environment of every process of the run.
        run_id: String,
        /// Version of varcas-guard.
        guard_version: String,
        /// The guard's own process.
        guard: ProcId,
        /// Everything that was asked for.
        plan: Box<Plan>,
    },
    /// What the preflight saw.
    PreflightFinished {
        /// Every check, good and bad.
        checks: Vec<Check>,
        /// What is known of the server.
        server: ServerFacts,
    },
    /// The process that owns the server is up.
    KeeperStarted {
        /// Which.
        proc: ProcId,
    },
    /// The keeper is gone without having been asked to go.
    KeeperLost {
        /// What the socket or wait said.
        how: String,
    },
    /// The server's first process exists.
    ServerSpawned {
        /// Which; also the process group.
        proc: ProcId,
        /// The exact command line.
        argv: Vec<String>,
    },
    /// What the server gets beside the environment it inherits.
    ServerEnvironment {
        /// By name.
        env: BTreeMap<String, String>,
    },
    /// It could not be started.
    SpawnFailed {
        /// What was tried and what the system said.
        error: String,
    },
    /// A process joined the tree.
    ProcessSeen {
        /// Which.
        proc: ProcId,
        /// Parent's pid.
        ppid: i32,
        /// Command name.
        comm: String,
    },
    /// A process of the tree ended.
    ProcessExited {
        /// Which.
        proc: ProcId,
        /// Last known command name.
        comm: String,
        /// How.
        how: ExitHow,
        /// Whether it is the server's first process.
        main: bool,
    },
    /// The middle of the server's log was taken out, because it takes more than `disk.max-log`.
    LogCut(LogCut),
    /// The run takes more than `disk.max`, and a new attempt needs room.
    WindowsGaveWay(GaveWay),
    /// A signal is about to be sent by us.
    SignalSent {
        /// Number.
        signal: i32,
        /// To whom.
        targets: Vec<ProcId>,
        /// Why.
        why: String,
    },
    /// Somebody signalled the guard.
    SignalReceived {
        /// Number.
        signal: i32,
    },
    /// Health, a first completion and a sampled request all succeeded or the first two did.
    ServerReady {
        /// Model name to send.
        model: String,
        /// Context length.
        max_model_len: u32,
    },
    /// Somebody else answers on our port.
    PortStolen {
        /// Who, in words.
        holder: String,
    },
    /// The warm-up requests succeeded.
    WarmupFinished {
        /// How many.
        requests: u32,
        /// The slowest, usually the one that compiled.
        #[serde(with = "secs")]
        slowest: Duration,
    },
    /// A warm-up request failed.
    WarmupFailed {
        /// What the server answered.
        error: String,
    },
    /// The benchmark began.
    LoadStarted {
        /// Requests in the schedule.
        planned: u64,
        /// Seed of the schedule and of the prompt words.
        seed: u64,
    },
    /// About once a second.
    LoadProgressed(LoadProgress),
    /// The benchmark ended, complete or not.
    LoadFinished {
        /// In short.
        summary: Box<BenchSummary>,
    },
    /// The benchmark could not run.
    LoadFailed {
        /// Why.
        error: String,
    },
    /// A worker wrote a line about its profiler.
    Window(WindowLine),
    /// Every worker that said hello has closed its windows.
    WindowsClosed {
        /// How many workers answered.
        workers: u32,
    },
    /// The engine's counters.
    EngineSampled(Reading<EngineSample>),
    /// The processes of the tree.
    ProcessesSampled {
        /// All of them.
        processes: Vec<ProcSample>,
    },
    /// The GPUs.
    GpusSampled(Reading<Vec<GpuSample>>),
    /// No process of the server is left, or those named cannot be killed.
    TreeGone {
        /// Processes that outlived SIGKILL.
        unkillable: Vec<Leftover>,
    },
    /// Port, memory and names were given time to come back.
    Drained {
        /// What did not.
        leftovers: Vec<Leftover>,
        /// What we removed: sockets, shared memory, temporary folders.
        removed: Vec<String>,
    },
    /// What the complete traces of the attempt show. Told before `TracesCollected`.
    Profiled(Box<ProfileSummary>),
    /// The traces of the attempt, checked and compressed.
    TracesCollected {
        /// The complete ones.
        traces: Vec<Trace>,
        /// Files that are not complete traces and what became of them.
        problems: Vec<String>,
        /// What was saved of halves.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        saved: Vec<SavedTrace>,
    },
    /// How long the pause before the next attempt is.
    BackoffDrawn {
        /// With jitter.
        #[serde(with = "secs")]
        delay: Duration,
    },
    /// A deadline the machine had set has come.
    TimerFired {
        /// Which.
        timer: Timer,
    },
    /// Something of ours did not work; the run goes on.
    Trouble {
        /// What was tried.
        what: String,
        /// What happened.
        error: String,
    },
    /// Nothing can be kept in the run folder any more.
    StorageLost {
        /// What happened to it.
        error: String,
    },
    /// The journal has grown large: not all samples are written from here on. Whoever looked on saw all of them.
    JournalThinned {
        /// Its size until now.
        bytes: u64,
        /// One of each kind in such a time is still written; none when none is.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "opt_secs")]
        every: Option<Duration>,
    },
    /// Written by the keeper, or whoever came after it, when the guard is gone.
    GuardDied {
        /// What was done about it.
        killed: Vec<ProcId>,
        /// What would not go.
        leftovers: Vec<Leftover>,
        /// What it removed.
        removed: Vec<String>,
    },

    /// A log line that a rule knows.
    Finding(Finding),
    /// The system says something about a failure.
    Clue(Clue),
    /// A one-token request was sent because nothing moved.
    Probed {
        /// Why there was no answer; none when there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// How long it took.
        #[serde(with = "secs")]
        took: Duration,
    },
    /// What could be saved before the kill.
    EvidenceSaved {
        /// Every piece, also those that could not be had.
        items: Vec<Evidence>,
    },
    /// Room on the disk and what our files take of it, in bytes.
    DiskSampled {
        /// Free on the filesystem of the run folder.
        free: Reading<u64>,
        /// Size of the trace folder.
        traces: Reading<u64>,
        /// Size of the logs.
        logs: Reading<u64>,
    },

    // ---- conclusions ----
    /// A new attempt begins.
    AttemptStarted {},
    /// A phase begins.
    PhaseEntered {
        /// Which.
        phase: Phase,
        /// Its budget, if it has one.
        #[serde(default, skip_serializing_if = "Option::is_none", with = "opt_secs")]
        budget: Option<Duration>,
    },
    /// A standstill began, became surer, or ended.
    Suspicion(Suspicion),
    /// The attempt is lost, won or stopped; cleaning up follows.
    AttemptEnding(Ending),
    /// The attempt is closed.
    AttemptEnded(Ending),
    /// What the attempt failed of.
    Judged {
        /// See [`Verdict`].
        verdict: Box<Verdict>,
    },
    /// The next attempt runs with other settings; what it measures was measured under them.
    Mitigated {
        /// Every change that is in force, with its first value; empty changes nothing.
        changes: Vec<Mitigation>,
    },
    /// There will be another attempt, or not, and why.
    Decided {
        /// Whether.
        retry: bool,
        /// One sentence.
        why: String,
    },
    /// An input that makes no sense in this state. Recorded, never fatal.
    Anomaly {
        /// The state.
        state: String,
        /// The input.
        input: String,
    },
    /// The last line of a journal whose run came to its end.
    RunFinished {
        /// Of the attempt that counts.
        outcome: Outcome,
        /// See `error::ExitCode`.
        exit_code: u8,
        /// One sentence.
        reason: String,
    },
}

impl EventKind {
    /// Whether this is an input of the machine (true) or something it said (false).
    pub fn is_fact(&self) -> bool {
        !matches!(
            self,
            Self::AttemptStarted {}
                | Self::PhaseEntered { .. }
                | Self::Suspicion(_)
                | Self::AttemptEnding(_)
                | Self::AttemptEnded(_)
                | Self::Judged { .. }
                | Self::Mitigated { .. }
                | Self::Decided { .. }
                | Self::Anomaly { .. }
                | Self::RunFinished { .. }
        )
    }

    /// Whether the journal must reach the disk before the run goes on: a state changed.
    pub fn is_milestone(&self) -> bool {
        !matches!(
            self,
            Self::LoadProgressed(_)
                | Self::EngineSampled(_)
                | Self::ProcessesSampled { .. }
                | Self::GpusSampled(_)
                | Self::DiskSampled { .. }
                | Self::ProcessSeen { .. }
                | Self::Window(_)
        )
    }
}
