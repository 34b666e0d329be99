//! The ways from one state of the machine to the next, each with what must be done on it. Pure.

use super::family::Family;
use super::judge;
use super::machine::Machine;
use super::state::{Action, DrainStep, RunState};
use crate::config::ProfileMode;
use crate::error::ExitCode;
use crate::event::{Ending, EventKind, Outcome, Phase};
use crate::recovery::policy::{self, Circumstances, Decision};
use crate::recovery::verdict::Inquiry;
use std::time::Duration;

/// Checking and compressing traces happens after everything is dead, so patience costs nothing but time.
const COLLECT_BUDGET: Duration = Duration::from_secs(1800);
/// A scheduler that has sent SIGTERM does not wait half an hour for the last window.
const FLUSH_WHEN_STOPPED: Duration = Duration::from_secs(120);
/// Beyond the time for evidence, when saving itself must be stuck.
const EVIDENCE_SLACK: Duration = Duration::from_secs(1);

impl Machine {
    pub(super) fn begin_attempt(&mut self, out: &mut Vec<Action>) -> RunState {
        self.attempt += 1;
        self.inquiry = Inquiry::default();
        self.ranks.clear();
        self.family = Family::default();
        out.push(Action::Conclude(EventKind::AttemptStarted {}));
        enter(Phase::Preflight, None, out);
        out.push(Action::Preflight);
        RunState::Preflight
    }

    /// The load is over, well or badly, and the server lives: close the windows, then stop it in good order.
    pub(super) fn flush(&mut self, now: Duration, ending: Ending, out: &mut Vec<Action>) -> RunState {
        out.push(Action::Conclude(EventKind::AttemptEnding(ending.clone())));
        if self.plan.profile.mode == ProfileMode::Off || self.forced {
            return self.terminate(now, ending, out);
        }
        out.push(Action::CloseWindows);
        let budget = self.plan.budgets.flush;
        // Somebody waits for the end.
        let budget = if self.stop.is_some() { budget.min(FLUSH_WHEN_STOPPED) } else { budget };
        enter(Phase::Flushing, Some(budget), out);
        RunState::Flushing { ending, until: now.saturating_add(budget) }
    }

    pub(super) fn terminate(&mut self, now: Duration, ending: Ending, out: &mut Vec<Action>) -> RunState {
        let budget = self.plan.budgets.stop;
        enter(Phase::Stopping, Some(budget), out);
        out.push(Action::Terminate);
        RunState::Stopping { ending, until: now.saturating_add(budget) }
    }

    /// The attempt is lost: save evidence, then kill.
    pub(super) fn lose(
        &mut self,
        now: Duration,
        ending: Ending,
        within: Duration,
        load_open: bool,
        out: &mut Vec<Action>,
    ) -> RunState {
        out.push(Action::Conclude(EventKind::AttemptEnding(ending.clone())));
        self.save(now, ending, within, load_open, out)
    }

    pub(super) fn save(
        &mut self,
        now: Duration,
        ending: Ending,
        within: Duration,
        load_open: bool,
        out: &mut Vec<Action>,
    ) -> RunState {
        if self.forced {
            return self.kill(now, ending, load_open, out);
        }
        let budget = within + EVIDENCE_SLACK;
        enter(Phase::Draining, Some(budget.saturating_add(self.plan.budgets.drain)), out);
        out.push(Action::SaveEvidence { within });
        RunState::Draining { ending, until: now.saturating_add(budget), load_open, step: DrainStep::Saving }
    }

    /// The attempt is lost: kill at once.
    pub(super) fn abort(
        &mut self,
        now: Duration,
        ending: Ending,
        load_open: bool,
        out: &mut Vec<Action>,
    ) -> RunState {
        out.push(Action::Conclude(EventKind::AttemptEnding(ending.clone())));
        self.kill(now, ending, load_open, out)
    }

    pub(super) fn kill(
        &mut self,
        now: Duration,
        ending: Ending,
        load_open: bool,
        out: &mut Vec<Action>,
    ) -> RunState {
        enter(Phase::Draining, Some(self.plan.budgets.drain), out);
        self.sigkill(now, ending, load_open, out)
    }

    pub(super) fn sigkill(
        &self,
        now: Duration,
        ending: Ending,
        load_open: bool,
        out: &mut Vec<Action>,
    ) -> RunState {
        // The load first: who closes a connection first keeps the port in TIME_WAIT, and the next attempt needs the port.
        if load_open {
            out.push(Action::StopLoad);
        }
        out.push(Action::KillAll);
        let until = now.saturating_add(self.plan.budgets.drain);
        RunState::Draining { ending, until, load_open, step: DrainStep::Killing }
    }

    pub(super) fn drain_step(&mut self, state: RunState, out: &mut Vec<Action>) -> RunState {
        match state {
            RunState::Draining { ending, until, load_open: false, step: DrainStep::Killed } => {
                out.push(Action::Drain);
                RunState::Draining { ending, until, load_open: false, step: DrainStep::Draining }
            }
            other => other,
        }
    }

    pub(super) fn collect(&mut self, now: Duration, ending: Ending, out: &mut Vec<Action>) -> RunState {
        enter(Phase::Collecting, Some(COLLECT_BUDGET), out);
        out.push(Action::CollectTraces);
        RunState::Collecting { ending, until: now.saturating_add(COLLECT_BUDGET) }
    }

    /// The attempt is over. Another one, or the end?
    pub(super) fn close(&mut self, now: Duration, ending: Ending, out: &mut Vec<Action>) -> RunState {
        let ending = judge::with_cause(ending, self.inquiry.findings(), self.inquiry.clues());
        out.push(Action::Conclude(EventKind::AttemptEnded(ending.clone())));
        let judged = self.plan.policy.is_some();
        if judged && !matches!(ending.outcome, Outcome::Success | Outcome::Stopped) {
            let verdict = self.inquiry.verdict(&ending);
            out.push(Action::Conclude(EventKind::Judged { verdict: Box::new(verdict.clone()) }));
            if let Some(earlier) = self.verdicts.pop() {
                self.verdicts.push(earlier.gist());
            }
            self.verdicts.push(verdict);
        }
        let (exit, why) = match (ending.outcome, self.stop) {
            (Outcome::Success, _) => (ExitCode::Success, "the benchmark is complete".to_owned()),
            (_, Some(stop)) => stop.exit(),
            (Outcome::Refused, _) if self.attempt == 1 => {
                (ExitCode::Refused, "nothing was started".to_owned())
            }
            _ if judged => match self.decide(now) {
                Decision::Stop { exit, why } => (exit, why),
                Decision::Retry { changes, plan, why } => {
                    if !changes.is_empty() {
                        out.push(Action::Conclude(EventKind::Mitigated { changes: changes.clone() }));
                        out.push(Action::UsePlan(plan.clone()));
                    }
                    self.in_force = changes;
                    self.plan = *plan;
                    out.push(Action::Conclude(EventKind::Decided { retry: true, why }));
                    out.push(Action::DrawBackoff);
                    return RunState::Drawing;
                }
            },
            // A journal from before there were verdicts.
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

    fn decide(&self, now: Duration) -> Decision {
        policy::decide(Circumstances {
            plan: &self.plan,
            in_force: &self.in_force,
            facts: &self.facts,
            verdicts: &self.verdicts,
            left: self.run_deadline.map(|until| until.saturating_sub(now)),
            startup: self.startup,
        })
    }

    pub(super) fn finish(&self, ending: &Ending, exit: ExitCode, out: &mut Vec<Action>) -> RunState {
        enter(Phase::Done, None, out);
        out.push(Action::Conclude(EventKind::RunFinished {
            outcome: ending.outcome,
            exit_code: exit.code(),
            reason: ending.reason.clone(),
        }));
        out.push(Action::Finish);
        RunState::Done
    }
}

pub(super) fn ending(outcome: Outcome, reason: String, phase: Phase) -> Ending {
    Ending { outcome, reason, phase }
}

/// What happens once the benchmark is home is told, but no longer changes how it ended.
pub(super) fn afterwards(mut ending: Ending, what: &str) -> Ending {
    ending.reason = format!("{}; afterwards, {what}", ending.reason);
    ending
}

pub(super) fn enter(phase: Phase, budget: Option<Duration>, out: &mut Vec<Action>) {
    out.push(Action::Conclude(EventKind::PhaseEntered { phase, budget }));
}
