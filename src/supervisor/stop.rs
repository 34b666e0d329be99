//! Why a run ends before its time. Pure.

use crate::error::ExitCode;
use crate::event::{Phase, signal_name};
use crate::view::units::bytes;

/// From signal(7); a pure file does not name libc.
const SIGINT: i32 = 2;

/// Why no further attempt may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Signal(i32),
    Deadline,
    /// There is no place for results any more.
    Storage,
    /// So many bytes are free.
    LowSpace(u64),
    /// So many bytes are taken.
    TooLarge(u64),
}

impl Stop {
    /// How the attempt ends that it ends.
    pub(super) fn during(self, phase: Phase) -> String {
        match self {
            Self::Signal(signal) => format!("stopped by {} during {phase}", signal_name(signal)),
            Self::Deadline => format!("the deadline for the whole run passed during {phase}"),
            Self::Storage => format!("the run folder was lost during {phase}"),
            Self::LowSpace(free) => {
                format!("stopped during {phase}, before the disk is full: {} are left", bytes(free))
            }
            Self::TooLarge(taken) => {
                format!("stopped during {phase}: traces and logs take {}, more than --max-disk", bytes(taken))
            }
        }
    }

    /// How the run ends.
    pub(super) fn exit(self) -> (ExitCode, String) {
        match self {
            Self::Deadline => (ExitCode::DeadlinePassed, "the deadline for the whole run passed".to_owned()),
            Self::Storage => (ExitCode::AttemptsFailed, "the run folder is lost".to_owned()),
            Self::LowSpace(_) | Self::TooLarge(_) => {
                (ExitCode::AttemptsFailed, "there was no more room on the disk".to_owned())
            }
            Self::Signal(signal) => {
                let exit = if signal == SIGINT { ExitCode::Interrupted } else { ExitCode::Terminated };
                (exit, format!("stopped by {}", signal_name(signal)))
            }
        }
    }
}
