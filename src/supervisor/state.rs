//! What the machine can be doing and what it can ask for. Data lives in the state that has it, so that a contradiction
//! cannot be written down.

use crate::config::Plan;
use crate::event::{Ending, EventKind, Phase};
use std::time::Duration;

/// What the dispatcher must do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write this conclusion to the journal.
    Conclude(EventKind),
    /// Run the checks; answer with `PreflightFinished`.
    Preflight,
    /// Make the attempt's folder, start a keeper, spawn the server; answer with `ServerSpawned` or `SpawnFailed`.
    StartServer,
    /// Poll until ready; answer with `ServerReady` (or never).
    WaitReady,
    /// Answer with `WarmupFinished` or `WarmupFailed`.
    WarmUp,
    /// Answer with `LoadStarted`, then `LoadFinished` or `LoadFailed`.
    StartLoad,
    /// Cut the load short; `LoadFinished` follows with what there is.
    StopLoad,
    /// Ask the workers to close their windows; answer with `WindowsClosed`.
    CloseWindows,
    /// Send a request for one token; answer with `Probed`.
    Probe,
    /// Save what would be lost with the processes; answer with `EvidenceSaved`.
    SaveEvidence {
        /// All pieces together.
        within: Duration,
    },
    /// SIGTERM to the server.
    Terminate,
    /// SIGKILL to everything of ours; answer with `TreeGone`.
    KillAll,
    /// Wait for port and memory, remove sockets and segments, let the keeper go; answer with `Drained`.
    Drain,
    /// Check and compress the traces; answer with `TracesCollected`.
    CollectTraces,
    /// What is asked for from now on runs with this plan.
    UsePlan(Box<Plan>),
    /// Answer with `BackoffDrawn`.
    DrawBackoff,
    /// Nothing follows: write the report and leave.
    Finish,
}

/// What the run is doing, with the data that only this state has.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum RunState {
    /// Before `RunStarted`.
    Idle,
    Preflight,
    Loading {
        until: Duration,
    },
    WarmUp {
        until: Duration,
    },
    Measuring(Measuring),
    Flushing {
        ending: Ending,
        until: Duration,
    },
    Stopping {
        ending: Ending,
        until: Duration,
    },
    Draining {
        ending: Ending,
        until: Duration,
        /// The driver still owes a result.
        load_open: bool,
        step: DrainStep,
    },
    Collecting {
        ending: Ending,
        until: Duration,
    },
    /// Another attempt is decided; the length of the pause is being drawn.
    Drawing,
    Waiting {
        until: Duration,
    },
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DrainStep {
    /// Evidence is being saved; everything still lives.
    Saving,
    /// SIGKILL is under way.
    Killing,
    /// Nothing of the tree is left, but the driver has not answered yet.
    Killed,
    /// Port, memory and names are awaited.
    Draining,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measuring {
    /// When the driver must have answered.
    pub(super) until: Duration,
    /// The load was told to stop for this reason.
    pub(super) stopping: Option<Ending>,
}

impl RunState {
    /// The phase it belongs to.
    pub(super) fn phase(&self) -> Phase {
        match self {
            Self::Idle | Self::Preflight => Phase::Preflight,
            Self::Loading { .. } => Phase::Loading,
            Self::WarmUp { .. } => Phase::WarmUp,
            Self::Measuring(_) => Phase::Measuring,
            Self::Flushing { .. } => Phase::Flushing,
            Self::Stopping { .. } => Phase::Stopping,
            Self::Draining { .. } => Phase::Draining,
            Self::Collecting { .. } => Phase::Collecting,
            Self::Drawing | Self::Waiting { .. } => Phase::Waiting,
            Self::Done => Phase::Done,
        }
    }

    /// An ending that is already decided; nothing that follows replaces it.
    pub(super) fn ending(&self) -> Option<Ending> {
        match self {
            Self::Measuring(m) => m.stopping.clone(),
            Self::Flushing { ending, .. }
            | Self::Stopping { ending, .. }
            | Self::Draining { ending, .. }
            | Self::Collecting { ending, .. } => Some(ending.clone()),
            _ => None,
        }
    }

    /// Whether the driver still owes a result.
    pub(super) fn load_open(&self) -> bool {
        matches!(self, Self::Measuring(_) | Self::Draining { load_open: true, .. })
    }
}
