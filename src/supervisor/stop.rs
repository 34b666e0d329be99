//! Why a run ends before its time, and what is done then. Pure.

use super::machine::Machine;
use super::state::{Action, DrainStep, Measuring, RunState};
use super::steps::{afterwards, ending};
use crate::error::ExitCode;
use crate::event::{Ending, EventKind, Outcome, Phase, signal_name};
use crate::view::units::bytes;
use std::time::Duration;

/// How long the driver may take to write a partial result after it was told to stop.
const STOP_LOAD_BUDGET: Duration = Duration::from_secs(15);

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

impl Machine {
    pub(super) fn on_signal(&mut self, now: Duration, signal: i32, out: &mut Vec<Action>) {
        if self.stop.is_none() {
            return self.ask_to_stop(now, Stop::Signal(signal), out);
        }
        // The second time: straight to SIGKILL.
        self.forced = true;
        let state = std::mem::replace(&mut self.state, RunState::Done);
        self.state = match state {
            RunState::Loading { .. } | RunState::WarmUp { .. } => {
                let ending = self.stopped(state.phase());
                self.abort(now, ending, false, out)
            }
            RunState::Measuring(m) => {
                let ending = m.stopping.unwrap_or_else(|| self.stopped(Phase::Measuring));
                self.abort(now, ending, true, out)
            }
            RunState::Flushing { ending, .. } | RunState::Stopping { ending, .. } => {
                self.kill(now, ending, false, out)
            }
            RunState::Draining { ending, load_open, step: DrainStep::Saving, .. } => {
                self.sigkill(now, ending, load_open, out)
            }
            other => other,
        };
    }

    /// Orderly: first the load, then the windows, then the server.
    pub(super) fn ask_to_stop(&mut self, now: Duration, stop: Stop, out: &mut Vec<Action>) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(stop);
        let state = std::mem::replace(&mut self.state, RunState::Done);
        let ending = self.stopped(state.phase());
        self.state = match state {
            RunState::Preflight => self.close(now, ending, out),
            RunState::Drawing | RunState::Waiting { .. } => self.finish(&ending, stop.exit().0, out),
            // Nothing was measured yet, so there is nothing to lose but the windows of the warm-up.
            RunState::Loading { .. } => {
                out.push(Action::Conclude(EventKind::AttemptEnding(ending.clone())));
                self.terminate(now, ending, out)
            }
            RunState::WarmUp { .. } => self.flush(now, ending, out),
            RunState::Measuring(m) if m.stopping.is_none() => {
                out.push(Action::StopLoad);
                let until = now.saturating_add(STOP_LOAD_BUDGET);
                RunState::Measuring(Measuring { until, stopping: Some(ending) })
            }
            other => other,
        };
    }

    /// Windows, results and evidence have no place any more, so there is nothing to wait for; only the server must go.
    pub(super) fn on_storage_lost(&mut self, now: Duration, error: &str, out: &mut Vec<Action>) {
        self.stop.get_or_insert(Stop::Storage);
        let state = std::mem::replace(&mut self.state, RunState::Done);
        let phase = state.phase();
        let lost =
            ending(Outcome::Stopped, format!("the run folder was lost during {phase}: {error}"), phase);
        self.state = match state {
            RunState::Preflight => self.close(now, lost, out),
            RunState::Drawing | RunState::Waiting { .. } => self.finish(&lost, Stop::Storage.exit().0, out),
            RunState::Loading { .. } | RunState::WarmUp { .. } | RunState::Measuring(_) => {
                self.abort(now, state.ending().unwrap_or(lost), state.load_open(), out)
            }
            RunState::Flushing { ending, .. } | RunState::Stopping { ending, .. } => {
                let what = format!("the run folder was lost: {error}");
                let mut ending = afterwards(ending, &what);
                if ending.outcome == Outcome::Success {
                    ending.outcome = Outcome::Degraded;
                }
                self.kill(now, ending, false, out)
            }
            RunState::Draining { ending, load_open, step: DrainStep::Saving, .. } => {
                self.sigkill(now, ending, load_open, out)
            }
            other => other,
        };
    }

    pub(super) fn stopped(&self, phase: Phase) -> Ending {
        let reason = self.stop.map_or_else(|| format!("stopped during {phase}"), |stop| stop.during(phase));
        ending(Outcome::Stopped, reason, phase)
    }
}
