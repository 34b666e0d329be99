//! The state machine of a run. Pure: a fact and a stamp go in, actions come out; the dispatcher performs them.
//!
//! ```text
//! preflight -> loading -> warm-up -> measuring -> flushing -> stopping -> draining -> collecting -> waiting -> preflight ...
//!     |           |          |           |            |          |                        |
//!     |           +----------+-----------+--- failure: no flush, straight to draining     +-> done
//!     +-> done (refused)
//! ```
//!
//! [`Machine::step`] is total: any input in any state gives actions, and one that makes no sense is recorded as an
//! anomaly. Whatever went wrong first is the ending of the attempt; what follows from it never replaces it.

use super::judge;
use super::state::{Action, DrainStep, Measuring, RunState};
use crate::config::{Plan, ProfileMode};
use crate::error::ExitCode;
use crate::event::{
    Ending, EngineSample, EventKind, LoadProgress, Outcome, Phase, Reading, Timer, signal_name,
};
use crate::time::{Stamp, human};
use std::time::Duration;

/// How long the driver may take to write a partial result after it was told to stop.
const STOP_LOAD_BUDGET: Duration = Duration::from_secs(15);
/// Beyond the planned duration and drain, when the driver itself must be stuck.
const LOAD_SLACK: Duration = Duration::from_secs(60);
/// Checking and compressing traces happens after everything is dead, so patience costs nothing but time.
const COLLECT_BUDGET: Duration = Duration::from_secs(1800);
/// From signal(7); a pure file does not name libc.
const SIGINT: i32 = 2;

/// Why no further attempt may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Signal(i32),
    Deadline,
}

impl Stop {
    fn exit(self) -> (ExitCode, String) {
        match self {
            Self::Deadline => (ExitCode::DeadlinePassed, "the deadline for the whole run passed".to_owned()),
            Self::Signal(signal) => {
                let exit = if signal == SIGINT { ExitCode::Interrupted } else { ExitCode::Terminated };
                (exit, format!("stopped by {}", signal_name(signal)))
            }
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Machine {
    plan: Plan,
    state: RunState,
    attempt: u32,
    run_deadline: Option<Duration>,
    stop: Option<Stop>,
    /// A second signal came: nothing is worth waiting for any more.
    forced: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// A machine that waits for `RunStarted`.
    pub fn new() -> Self {
        Self {
            plan: Plan::default(),
            state: RunState::Idle,
            attempt: 0,
            run_deadline: None,
            stop: None,
            forced: false,
        }
    }

    /// The attempt under way, 0 before the first.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Whether nothing follows.
    pub fn is_done(&self) -> bool {
        self.state == RunState::Done
    }

    /// The phase under way.
    pub fn phase(&self) -> Phase {
        self.state.phase()
    }

    /// When the machine wants to be woken with `TimerFired`, if nothing else happens before.
    pub fn next_deadline(&self) -> Option<(Duration, Timer)> {
        let own = match &self.state {
            RunState::Idle | RunState::Preflight | RunState::Drawing | RunState::Done => None,
            RunState::Loading { until }
            | RunState::WarmUp { until }
            | RunState::Flushing { until, .. }
            | RunState::Stopping { until, .. }
            | RunState::Draining { until, .. }
            | RunState::Collecting { until, .. } => Some((*until, Timer::Phase)),
            RunState::Waiting { until } => Some((*until, Timer::Backoff)),
            RunState::Measuring(m) => {
                let stall = m.moved + self.plan.budgets.stall;
                if m.progress.in_flight > 0 && m.stopping.is_none() && stall < m.until {
                    Some((stall, Timer::Stall))
                } else {
                    Some((m.until, Timer::Phase))
                }
            }
        };
        let run =
            self.run_deadline.filter(|_| self.stop.is_none() && !self.is_done()).map(|at| (at, Timer::Run));
        match (own, run) {
            (Some(own), Some(run)) => Some(if run.0 < own.0 { run } else { own }),
            (own, run) => own.or(run),
        }
    }

    /// Takes one fact. Conclusions given as input are ignored, so that a whole journal can be replayed.
    #[must_use]
    pub fn step(&mut self, at: Stamp, input: &EventKind) -> Vec<Action> {
        let mut out = Vec::new();
        let now = at.mono;
        match input {
            // Samples and remarks change no state; the last ones matter only while measuring.
            EventKind::EngineSampled(Reading::Value(sample)) => {
                if let RunState::Measuring(m) = &mut self.state {
                    m.engine_moved(now, *sample);
                }
            }
            EventKind::EngineSampled(_)
            | EventKind::ProcessesSampled { .. }
            | EventKind::GpusSampled(_)
            | EventKind::DiskSampled { .. }
            | EventKind::Finding(_)
            | EventKind::Clue(_)
            | EventKind::Probed { .. }
            | EventKind::ProcessSeen { .. }
            | EventKind::SignalSent { .. }
            | EventKind::Window(_)
            | EventKind::KeeperStarted { .. }
            | EventKind::Trouble { .. }
            | EventKind::GuardDied { .. } => {}
            EventKind::SignalReceived { signal } => self.on_signal(now, *signal, &mut out),
            // A timer counts only if the machine still waits for it: the state may have changed while it was under way.
            EventKind::TimerFired { timer }
                if self.next_deadline().is_none_or(|(due, own)| own != *timer || due > now) =>
            {
                out.push(anomaly(&self.state, input));
            }
            EventKind::TimerFired { timer: Timer::Run } => self.ask_to_stop(now, Stop::Deadline, &mut out),
            other if !other.is_fact() => {}
            other => {
                let state = std::mem::replace(&mut self.state, RunState::Done);
                self.state = self.transition(now, state, other, &mut out);
            }
        }
        out
    }

    /// The heart: old state and fact to new state.
    fn transition(
        &mut self,
        now: Duration,
        state: RunState,
        input: &EventKind,
        out: &mut Vec<Action>,
    ) -> RunState {
        use EventKind as E;
        match (state, input) {
            (RunState::Idle, E::RunStarted { plan, .. }) => {
                self.plan = (**plan).clone();
                self.run_deadline = self.plan.budgets.run.map(|budget| now + budget);
                self.begin_attempt(out)
            }

            (RunState::Preflight, E::PreflightFinished { checks, .. }) => match judge::refusal(checks) {
                Some(reason) => self.close(ending(Outcome::Refused, reason, Phase::Preflight), out),
                None => {
                    out.push(Action::StartServer);
                    let budget = self.plan.budgets.startup;
                    enter(Phase::Loading, Some(budget), out);
                    RunState::Loading { until: now + budget }
                }
            },

            (state @ RunState::Loading { .. }, E::ServerSpawned { .. }) => {
                out.push(Action::WaitReady);
                state
            }
            (RunState::Loading { .. }, E::SpawnFailed { error }) => {
                let why = format!("the server could not be started: {error}");
                self.abort(now, ending(Outcome::StartupFailure, why, Phase::Loading), false, out)
            }
            (RunState::Loading { .. }, E::ServerReady { .. }) => {
                out.push(Action::WarmUp);
                let budget = self.plan.budgets.warmup;
                enter(Phase::WarmUp, Some(budget), out);
                RunState::WarmUp { until: now + budget }
            }
            (RunState::Loading { .. }, E::TimerFired { timer: Timer::Phase }) => {
                let why = format!("the server was not ready within {}", human(self.plan.budgets.startup));
                self.abort(now, ending(Outcome::StartupFailure, why, Phase::Loading), false, out)
            }

            (RunState::WarmUp { .. }, E::WarmupFinished { .. }) => {
                out.push(Action::StartLoad);
                let load = &self.plan.load;
                let budget = load.duration + load.drain + LOAD_SLACK;
                enter(Phase::Measuring, Some(budget), out);
                RunState::Measuring(Measuring {
                    until: now + budget,
                    moved: now,
                    progress: LoadProgress::default(),
                    engine: EngineSample::default(),
                    stopping: None,
                })
            }
            (RunState::WarmUp { .. }, E::WarmupFailed { error }) => {
                let why = format!("a warm-up request failed: {error}");
                self.abort(now, ending(Outcome::Degraded, why, Phase::WarmUp), false, out)
            }
            (RunState::WarmUp { .. }, E::TimerFired { timer: Timer::Phase }) => {
                let why =
                    format!("the warm-up requests got no answer within {}", human(self.plan.budgets.warmup));
                self.abort(now, ending(Outcome::Hang, why, Phase::WarmUp), false, out)
            }

            (state @ RunState::Measuring(_), E::LoadStarted { .. }) => state,
            (RunState::Measuring(mut m), E::LoadProgressed(progress)) => {
                m.load_moved(now, *progress);
                RunState::Measuring(m)
            }
            (RunState::Measuring(m), E::LoadFinished { summary }) => match m.stopping {
                Some(ending) => self.flush(now, ending, out),
                None => match judge::benchmark(summary, &self.plan.load) {
                    Ok(reason) => self.flush(now, ending(Outcome::Success, reason, Phase::Measuring), out),
                    Err(reason) => self.flush(now, ending(Outcome::Degraded, reason, Phase::Measuring), out),
                },
            },
            (RunState::Measuring(m), E::LoadFailed { error }) => {
                let new = ending(
                    Outcome::Degraded,
                    format!("the benchmark could not run: {error}"),
                    Phase::Measuring,
                );
                self.flush(now, m.stopping.unwrap_or(new), out)
            }
            (RunState::Measuring(m), E::TimerFired { timer: Timer::Stall }) => {
                let why = format!(
                    "nothing moved for {} with {} requests open",
                    human(now.saturating_sub(m.moved)),
                    m.progress.in_flight
                );
                self.abort(now, ending(Outcome::Hang, why, Phase::Measuring), true, out)
            }
            (RunState::Measuring(m), E::TimerFired { timer: Timer::Phase }) => {
                let new = ending(
                    Outcome::GuardFault,
                    "the load driver did not come back".to_owned(),
                    Phase::Measuring,
                );
                self.abort(now, m.stopping.unwrap_or(new), true, out)
            }

            (RunState::Flushing { ending, .. }, E::WindowsClosed { .. }) => self.terminate(now, ending, out),
            (RunState::Flushing { ending, .. }, E::TimerFired { timer: Timer::Phase }) => {
                self.terminate(now, ending, out)
            }
            // The benchmark is home; what the server does now can no longer take it away. The open window may be lost.
            (RunState::Flushing { mut ending, .. }, E::ProcessExited { proc, comm, how, main, .. })
                if *main || judge::essential(comm) =>
            {
                ending.reason = format!(
                    "{}; afterwards {comm} ({proc}) died with {how} while the windows were being closed",
                    ending.reason
                );
                self.kill(now, ending, false, out)
            }

            (
                RunState::Stopping { ending, .. },
                E::ProcessExited { main: true, .. } | E::TimerFired { timer: Timer::Phase },
            ) => self.kill(now, ending, false, out),

            (RunState::Draining { ending, until, load_open, .. }, E::TreeGone { .. }) => {
                self.drain_step(RunState::Draining { ending, until, load_open, step: DrainStep::Killed }, out)
            }
            (
                RunState::Draining { ending, until, step, .. },
                E::LoadFinished { .. } | E::LoadFailed { .. },
            ) => self.drain_step(RunState::Draining { ending, until, load_open: false, step }, out),
            (RunState::Draining { ending, step: DrainStep::Draining, .. }, E::Drained { .. }) => {
                self.collect(now, ending, out)
            }
            (RunState::Draining { ending, .. }, E::TimerFired { timer: Timer::Phase }) => {
                self.collect(now, ending, out)
            }
            (state @ RunState::Draining { .. }, E::LoadStarted { .. } | E::LoadProgressed(_)) => state,

            (RunState::Collecting { ending, .. }, E::TracesCollected { traces, .. }) => {
                let ending = judge::with_traces(ending, traces, self.plan.profile.mode);
                self.close(ending, out)
            }
            (RunState::Collecting { ending, .. }, E::TimerFired { timer: Timer::Phase }) => {
                let ending = judge::with_traces(ending, &[], self.plan.profile.mode);
                self.close(ending, out)
            }

            (RunState::Drawing, E::BackoffDrawn { delay }) => {
                enter(Phase::Waiting, Some(*delay), out);
                RunState::Waiting { until: now + *delay }
            }
            (RunState::Waiting { .. }, E::TimerFired { timer: Timer::Backoff }) => self.begin_attempt(out),

            // The same three accidents can happen in every phase in which the server should be alive.
            (
                state @ (RunState::Loading { .. } | RunState::WarmUp { .. } | RunState::Measuring(_)),
                E::ProcessExited { proc, comm, how, main, .. },
            ) if *main || judge::essential(comm) => {
                let phase = state.phase();
                let outcome = if phase == Phase::Loading { Outcome::StartupFailure } else { Outcome::Crash };
                let why = format!("{comm} ({proc}) ended during {phase} with {how}");
                self.abort(now, state.ending().unwrap_or(ending(outcome, why, phase)), state.load_open(), out)
            }
            (
                state @ (RunState::Loading { .. }
                | RunState::WarmUp { .. }
                | RunState::Measuring(_)
                | RunState::Flushing { .. }
                | RunState::Stopping { .. }
                | RunState::Draining { step: DrainStep::Killing, .. }),
                E::KeeperLost { how },
            ) => {
                let why = format!("the keeper died: {how}");
                let new = ending(Outcome::GuardFault, why, state.phase());
                self.abort(now, state.ending().unwrap_or(new), state.load_open(), out)
            }
            (
                state @ (RunState::Loading { .. } | RunState::WarmUp { .. } | RunState::Measuring(_)),
                E::PortStolen { holder },
            ) => {
                let why = format!("port {} is answered by somebody else: {holder}", self.plan.server.port);
                let new = ending(Outcome::Degraded, why, state.phase());
                self.abort(now, state.ending().unwrap_or(new), state.load_open(), out)
            }

            // Processes may come and go, and late answers of cancelled work arrive; neither means anything here.
            (state, E::ProcessExited { .. } | E::KeeperLost { .. } | E::PortStolen { .. }) => state,
            (
                state @ (RunState::Stopping { .. }
                | RunState::Flushing { .. }
                | RunState::Draining { .. }
                | RunState::Collecting { .. }
                | RunState::Drawing
                | RunState::Waiting { .. }
                | RunState::Done),
                E::ServerSpawned { .. }
                | E::SpawnFailed { .. }
                | E::ServerReady { .. }
                | E::WarmupFinished { .. }
                | E::WarmupFailed { .. }
                | E::LoadStarted { .. }
                | E::LoadProgressed(_)
                | E::LoadFinished { .. }
                | E::LoadFailed { .. }
                | E::WindowsClosed { .. }
                | E::TreeGone { .. }
                | E::Drained { .. }
                | E::PreflightFinished { .. },
            ) => state,

            (state, other) => {
                out.push(anomaly(&state, other));
                state
            }
        }
    }

    fn begin_attempt(&mut self, out: &mut Vec<Action>) -> RunState {
        self.attempt += 1;
        out.push(Action::Conclude(EventKind::AttemptStarted {}));
        enter(Phase::Preflight, None, out);
        out.push(Action::Preflight);
        RunState::Preflight
    }

    /// The load is over, well or badly, and the server lives: close the windows, then stop it in good order.
    fn flush(&mut self, now: Duration, ending: Ending, out: &mut Vec<Action>) -> RunState {
        out.push(Action::Conclude(EventKind::AttemptEnding(ending.clone())));
        if self.plan.profile.mode == ProfileMode::Off || self.forced {
            return self.terminate(now, ending, out);
        }
        out.push(Action::CloseWindows);
        let budget = self.plan.budgets.flush;
        enter(Phase::Flushing, Some(budget), out);
        RunState::Flushing { ending, until: now + budget }
    }

    fn terminate(&mut self, now: Duration, ending: Ending, out: &mut Vec<Action>) -> RunState {
        let budget = self.plan.budgets.stop;
        enter(Phase::Stopping, Some(budget), out);
        out.push(Action::Terminate);
        RunState::Stopping { ending, until: now + budget }
    }

    /// The attempt is lost: kill at once.
    fn abort(&mut self, now: Duration, ending: Ending, load_open: bool, out: &mut Vec<Action>) -> RunState {
        out.push(Action::Conclude(EventKind::AttemptEnding(ending.clone())));
        self.kill(now, ending, load_open, out)
    }

    fn kill(&mut self, now: Duration, ending: Ending, load_open: bool, out: &mut Vec<Action>) -> RunState {
        let budget = self.plan.budgets.drain;
        enter(Phase::Draining, Some(budget), out);
        // The load first: who closes a connection first keeps the port in TIME_WAIT, and the next attempt needs the port.
        if load_open {
            out.push(Action::StopLoad);
        }
        out.push(Action::KillAll);
        RunState::Draining { ending, until: now + budget, load_open, step: DrainStep::Killing }
    }

    fn drain_step(&mut self, state: RunState, out: &mut Vec<Action>) -> RunState {
        match state {
            RunState::Draining { ending, until, load_open: false, step: DrainStep::Killed } => {
                out.push(Action::Drain);
                RunState::Draining { ending, until, load_open: false, step: DrainStep::Draining }
            }
            other => other,
        }
    }

    fn collect(&mut self, now: Duration, ending: Ending, out: &mut Vec<Action>) -> RunState {
        enter(Phase::Collecting, Some(COLLECT_BUDGET), out);
        out.push(Action::CollectTraces);
        RunState::Collecting { ending, until: now + COLLECT_BUDGET }
    }

    /// The attempt is over. Another one, or the end?
    fn close(&mut self, ending: Ending, out: &mut Vec<Action>) -> RunState {
        out.push(Action::Conclude(EventKind::AttemptEnded(ending.clone())));
        let (exit, why) = match (ending.outcome, self.stop) {
            (Outcome::Success, _) => (ExitCode::Success, "the benchmark is complete".to_owned()),
            (_, Some(stop)) => stop.exit(),
            (Outcome::Refused, _) if self.attempt == 1 => {
                (ExitCode::Refused, "nothing was started".to_owned())
            }
            _ if self.attempt > self.plan.retries => {
                (ExitCode::AttemptsFailed, format!("all {} attempts failed", self.attempt))
            }
            _ => {
                let why =
                    format!("attempt {} of {} failed; trying again", self.attempt, self.plan.retries + 1);
                out.push(Action::Conclude(EventKind::Decided { retry: true, why }));
                out.push(Action::DrawBackoff);
                return RunState::Drawing;
            }
        };
        out.push(Action::Conclude(EventKind::Decided { retry: false, why }));
        self.finish(&ending, exit, out)
    }

    fn finish(&self, ending: &Ending, exit: ExitCode, out: &mut Vec<Action>) -> RunState {
        enter(Phase::Done, None, out);
        out.push(Action::Conclude(EventKind::RunFinished {
            outcome: ending.outcome,
            exit_code: exit.code(),
            reason: ending.reason.clone(),
        }));
        out.push(Action::Finish);
        RunState::Done
    }

    fn on_signal(&mut self, now: Duration, signal: i32, out: &mut Vec<Action>) {
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
            other => other,
        };
    }

    /// Orderly: first the load, then the windows, then the server.
    fn ask_to_stop(&mut self, now: Duration, stop: Stop, out: &mut Vec<Action>) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(stop);
        let state = std::mem::replace(&mut self.state, RunState::Done);
        let ending = self.stopped(state.phase());
        self.state = match state {
            RunState::Preflight => self.close(ending, out),
            RunState::Drawing | RunState::Waiting { .. } => self.finish(&ending, stop.exit().0, out),
            // Nothing was measured yet, so there is nothing to lose but the windows of the warm-up.
            RunState::Loading { .. } => {
                out.push(Action::Conclude(EventKind::AttemptEnding(ending.clone())));
                self.terminate(now, ending, out)
            }
            RunState::WarmUp { .. } => self.flush(now, ending, out),
            RunState::Measuring(m) if m.stopping.is_none() => {
                out.push(Action::StopLoad);
                RunState::Measuring(Measuring { until: now + STOP_LOAD_BUDGET, stopping: Some(ending), ..m })
            }
            other => other,
        };
    }

    fn stopped(&self, phase: Phase) -> Ending {
        let reason = match self.stop {
            Some(Stop::Signal(signal)) => {
                format!("stopped by {} during {phase}", signal_name(signal))
            }
            Some(Stop::Deadline) => format!("the deadline for the whole run passed during {phase}"),
            None => format!("stopped during {phase}"),
        };
        ending(Outcome::Stopped, reason, phase)
    }
}

fn ending(outcome: Outcome, reason: String, phase: Phase) -> Ending {
    Ending { outcome, reason, phase }
}

fn enter(phase: Phase, budget: Option<Duration>, out: &mut Vec<Action>) {
    out.push(Action::Conclude(EventKind::PhaseEntered { phase, budget }));
}

fn event_name(kind: &EventKind) -> String {
    let text = format!("{kind:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

fn anomaly(state: &RunState, input: &EventKind) -> Action {
    Action::Conclude(EventKind::Anomaly { state: state.phase().to_string(), input: event_name(input) })
}
