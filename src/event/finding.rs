//! What the log rules and the sense for standstills say.

use super::ProcId;
use crate::time::{human, secs};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// How much a log line means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gravity {
    /// Known to mean nothing, whatever else it resembles.
    Harmless,
    /// Follows from something else.
    Consequence,
    /// Recorded, and patience is shorter; alone it ends nothing.
    Suspect,
    /// The attempt is lost.
    Fatal,
}

/// A log line that a rule knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The rule.
    pub rule: String,
    /// The class it speaks for, or [`Finding::ENGINE_DEAD`].
    pub cause: String,
    /// In the phase in which it was read.
    pub gravity: Gravity,
    /// Line number in the server log, from 1.
    pub line: u64,
    /// Byte offset of the line.
    pub offset: u64,
    /// The line without colours, cut to a readable length.
    pub text: String,
    /// How often this rule has matched so far; not every match is told.
    pub count: u64,
    /// Causes that this one explains, even when their lines come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outranks: Vec<String>,
}

impl Finding {
    /// The cause of a line that says only that something died, not why.
    pub const ENGINE_DEAD: &'static str = "engine-dead";

    /// The finding that says why: the first fatal one that knows a cause, else the first suspect that does, else the
    /// first fatal one; and instead of it one that explains it.
    pub fn root<'a>(findings: &[&'a Self]) -> Option<&'a Self> {
        let knows = |finding: &&Self| finding.cause != Self::ENGINE_DEAD;
        let first = |gravity| move |finding: &&Self| finding.gravity == gravity;
        let all = || findings.iter().copied();
        let root = all()
            .filter(first(Gravity::Fatal))
            .find(knows)
            .or_else(|| all().filter(first(Gravity::Suspect)).find(knows))
            .or_else(|| all().find(first(Gravity::Fatal)))?;
        let explains =
            |finding: &&Self| finding.gravity >= Gravity::Suspect && finding.outranks.contains(&root.cause);
        Some(all().find(explains).unwrap_or(root))
    }
}

/// What a standstill looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HangKind {
    /// A process is stopped by a signal.
    Stopped,
    /// A GPU is busy without touching its memory: a kernel waits for something that does not come.
    GpuSpin,
    /// Neither GPU nor CPU does anything: a deadlock.
    GpuIdleHostIdle,
    /// The CPU works, but nothing comes of it: a compile, or a loop.
    HostBusy,
    /// The profiler processes what it recorded.
    ProfilerFlush,
    /// The driver does not answer, or a process sleeps uninterruptibly.
    DriverDead,
    /// The server progresses, our streams do not.
    Client,
    /// Not enough was readable to tell.
    Undetermined,
}

impl fmt::Display for HangKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopped => "stopped",
            Self::GpuSpin => "gpu-spin",
            Self::GpuIdleHostIdle => "gpu-idle-host-idle",
            Self::HostBusy => "host-busy",
            Self::ProfilerFlush => "profiler-flush",
            Self::DriverDead => "driver-dead",
            Self::Client => "client",
            Self::Undetermined => "undetermined",
        })
    }
}

/// How sure the guard is of a standstill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SuspicionStep {
    /// It moves again.
    Cleared,
    /// Nothing has moved for a while.
    Suspect,
    /// A second, independent source agrees.
    Confirmed,
    /// Patience is over.
    Act,
}

/// A standstill, as far as it has come.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Suspicion {
    /// How sure.
    pub step: SuspicionStep,
    /// What it looks like.
    pub kind: HangKind,
    /// Nothing has moved for this long.
    #[serde(with = "secs")]
    pub still: Duration,
    /// It is borne this long.
    #[serde(with = "secs")]
    pub patience: Duration,
    /// What was seen, in words.
    pub reasons: Vec<String>,
}

impl Suspicion {
    /// What is seen, without what follows from it.
    pub fn facts(&self) -> String {
        let (still, patience) = (human(self.still), human(self.patience));
        format!(
            "nothing has moved for {still} ({}, borne for {patience}): {}",
            self.kind,
            self.reasons.join("; ")
        )
    }
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            SuspicionStep::Cleared => write!(f, "it moves again ({})", self.kind),
            SuspicionStep::Suspect => write!(f, "suspect: {}", self.facts()),
            SuspicionStep::Confirmed => write!(f, "confirmed: {}", self.facts()),
            SuspicionStep::Act => write!(f, "patience is over: {}", self.facts()),
        }
    }
}

/// Something that the system, and not the server, says about a failure: the kernel killed a process for want of memory, a
/// GPU reported an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clue {
    /// The class it speaks for, as in [`Finding::cause`].
    pub cause: String,
    /// The process it is about, if it names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proc: Option<ProcId>,
    /// Concluded from circumstances, because no source says it.
    #[serde(default)]
    pub inferred: bool,
    /// Who says so: `cgroup memory.events`, `/dev/kmsg`, `NVML`.
    pub source: String,
    /// What it says.
    pub text: String,
}

/// A piece of evidence that was asked for before a kill.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// What it is: `processes`, `stacks of pid 7`, `gpus`, ...
    pub what: String,
    /// Its file inside the attempt's `evidence/`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Size of the file.
    pub bytes: u64,
    /// How long it took.
    #[serde(with = "secs")]
    pub took: Duration,
    /// Why there is none, or not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
