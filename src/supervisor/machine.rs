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

use super::family::Family;
use super::judge;
use super::state::{Action, DrainStep, Measuring, RunState};
use super::steps::{afterwards, ending, enter};
use super::stop::Stop;
use crate::config::{OnHang, Patience, Plan};
use crate::event::{
    EventKind, Finding, Gravity, Mitigation, Outcome, Phase, Reading, ServerFacts, Suspicion, SuspicionStep,
    Timer, Verdict, WindowEvent,
};
use crate::health::assess::Assessor;
use crate::recovery::verdict::Inquiry;
use crate::time::{Stamp, human};
use std::collections::BTreeSet;
use std::time::Duration;

/// Beyond the planned duration and drain, when the driver itself must be stuck.
const LOAD_SLACK: Duration = Duration::from_secs(60);
/// A window is written before an older one gives way to it.
const WINDOWS_GIVE_WAY: Duration = Duration::from_secs(60);
/// What stands still waits for the evidence; what is dying does not.
const EVIDENCE_OF_HANG: Duration = Duration::from_secs(20);
const EVIDENCE_OF_CRASH: Duration = Duration::from_secs(3);
/// See the module.
#[derive(Debug, Clone)]
pub struct Machine {
    pub(super) plan: Plan,
    pub(super) state: RunState,
    pub(super) attempt: u32,
    pub(super) run_deadline: Option<Duration>,
    pub(super) stop: Option<Stop>,
    /// A second signal came: nothing is worth waiting for any more.
    pub(super) forced: bool,
    assessor: Assessor,
    /// What is known of this attempt, for the verdict.
    pub(super) inquiry: Inquiry,
    /// The verdict of each failed attempt; of all but the last one only the gist.
    pub(super) verdicts: Vec<Verdict>,
    /// Settings that were changed for this attempt.
    pub(super) in_force: Vec<Mitigation>,
    /// What the server understands.
    pub(super) facts: ServerFacts,
    /// When this attempt's server was started.
    pub(super) spawned: Duration,
    /// How long the quickest one took to become ready.
    pub(super) startup: Option<Duration>,
    pub(super) family: Family,
    /// Workers of this attempt that will record.
    pub(super) ranks: BTreeSet<u32>,
    /// Since when more of the disk is taken than was allowed.
    too_large: Option<Duration>,
    /// What the attempts before this one take of the disk.
    earlier: u64,
    logs: u64,
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
            assessor: Assessor::new(Patience::default()),
            inquiry: Inquiry::default(),
            verdicts: Vec::new(),
            in_force: Vec::new(),
            facts: ServerFacts::default(),
            spawned: Duration::ZERO,
            startup: None,
            family: Family::default(),
            ranks: BTreeSet::new(),
            too_large: None,
            earlier: 0,
            logs: 0,
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
            RunState::Measuring(m) => Some((m.until, Timer::Phase)),
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
        if input.is_fact() {
            self.inquiry.hear(self.state.phase(), input);
        }
        match input {
            // Samples and remarks change no state by themselves; the assessor hears them below.
            EventKind::EngineSampled(_)
            | EventKind::ProcessesSampled { .. }
            | EventKind::GpusSampled(_)
            | EventKind::Probed { .. }
            | EventKind::SignalSent { .. }
            | EventKind::KeeperStarted { .. }
            | EventKind::ServerEnvironment { .. }
            | EventKind::Trouble { .. }
            | EventKind::JournalThinned { .. }
            | EventKind::Profiled(_)
            | EventKind::Clue(_)
            | EventKind::LogCut(_)
            | EventKind::GuardDied { .. } => {}
            EventKind::WindowsGaveWay(gone) => self.earlier = self.earlier.saturating_sub(gone.bytes),
            EventKind::DiskSampled { free, traces, logs } => self.on_disk(now, free, traces, logs, &mut out),
            EventKind::ProcessSeen { proc, ppid, comm } => self.family.seen(*proc, *ppid, comm),
            EventKind::Window(line) => {
                if matches!(line.what, WindowEvent::Hello { .. }) {
                    self.ranks.insert(line.rank);
                }
            }
            EventKind::Finding(finding) => self.on_finding(now, finding, &mut out),
            EventKind::SignalReceived { signal } => self.on_signal(now, *signal, &mut out),
            // A timer counts only if the machine still waits for it: the state may have changed while it was under way.
            EventKind::TimerFired { timer }
                if self.next_deadline().is_none_or(|(due, own)| own != *timer || due > now) =>
            {
                out.push(anomaly(&self.state, input));
            }
            EventKind::StorageLost { error } => self.on_storage_lost(now, error, &mut out),
            EventKind::TimerFired { timer: Timer::Run } => self.ask_to_stop(now, Stop::Deadline, &mut out),
            other if !other.is_fact() => {}
            other => {
                let state = std::mem::replace(&mut self.state, RunState::Done);
                self.state = self.transition(now, state, other, &mut out);
            }
        }
        if input.is_fact() {
            self.sense(at, input, &mut out);
        }
        out
    }

    /// The assessor hears the fact and what was concluded from it, also from what it said itself.
    fn sense(&mut self, at: Stamp, fact: &EventKind, out: &mut Vec<Action>) {
        let mut suspicion = self.assessor.feed(at, fact);
        let mut heard = 0;
        loop {
            while let Some(action) = out.get(heard) {
                if let Action::Conclude(conclusion) = action {
                    suspicion = self.assessor.feed(at, conclusion).or(suspicion);
                }
                heard += 1;
            }
            let Some(suspicion) = suspicion.take() else { return };
            let said = EventKind::Suspicion(suspicion.clone());
            self.inquiry.hear(self.state.phase(), &said);
            out.push(Action::Conclude(said));
            let serving = matches!(self.state, RunState::WarmUp { .. } | RunState::Measuring(_));
            match suspicion.step {
                SuspicionStep::Suspect if serving => out.push(Action::Probe),
                SuspicionStep::Act if self.plan.health.on_hang == OnHang::Kill => {
                    self.on_hang(at.mono, &suspicion, out);
                }
                _ => {}
            }
        }
    }

    /// A run without room is stopped in good order while there is still room for that.
    fn on_disk(
        &mut self,
        now: Duration,
        free: &Reading<u64>,
        traces: &Reading<u64>,
        logs: &Reading<u64>,
        out: &mut Vec<Action>,
    ) {
        self.logs = *logs.value().unwrap_or(&self.logs);
        let Some(limits) = &self.plan.disk else { return };
        if !matches!(self.state, RunState::Loading { .. } | RunState::WarmUp { .. } | RunState::Measuring(_))
        {
            return;
        }
        // Runs from before the log had a limit did not count earlier attempts, and a replay must see what they saw.
        let earlier = limits.max_log.map_or(0, |_| self.earlier);
        let taken =
            traces.value().unwrap_or(&0).saturating_add(*logs.value().unwrap_or(&0)).saturating_add(earlier);
        self.too_large = limits.max.filter(|max| taken > *max).map(|_| self.too_large.unwrap_or(now));
        let was_given_way = self.too_large.is_some_and(|since| now.saturating_sub(since) >= WINDOWS_GIVE_WAY);
        match free.value() {
            Some(free) if *free < limits.min_free => self.ask_to_stop(now, Stop::LowSpace(*free), out),
            _ if was_given_way => self.ask_to_stop(now, Stop::TooLarge(taken), out),
            _ => {}
        }
    }

    fn on_hang(&mut self, now: Duration, suspicion: &Suspicion, out: &mut Vec<Action>) {
        let why = suspicion.facts();
        let state = std::mem::replace(&mut self.state, RunState::Done);
        self.state = match state {
            RunState::Loading { .. } | RunState::WarmUp { .. } | RunState::Measuring(_) => {
                let new = ending(Outcome::Hang, why, state.phase());
                self.lose(now, state.ending().unwrap_or(new), EVIDENCE_OF_HANG, state.load_open(), out)
            }
            RunState::Flushing { ending, .. } => {
                let ending = afterwards(ending, &format!("while the windows were being closed: {why}"));
                self.save(now, ending, EVIDENCE_OF_HANG, false, out)
            }
            other => other,
        };
    }

    fn on_finding(&mut self, now: Duration, finding: &Finding, out: &mut Vec<Action>) {
        if finding.gravity != Gravity::Fatal {
            return;
        }
        let state = std::mem::replace(&mut self.state, RunState::Done);
        self.state = match state {
            RunState::Loading { .. } | RunState::WarmUp { .. } | RunState::Measuring(_) => {
                let phase = state.phase();
                let outcome = if phase == Phase::Loading { Outcome::StartupFailure } else { Outcome::Crash };
                let new = ending(outcome, judge::quote(finding), phase);
                self.lose(now, state.ending().unwrap_or(new), EVIDENCE_OF_CRASH, state.load_open(), out)
            }
            RunState::Flushing { ending, .. } => {
                let why = format!("while the windows were being closed: {}", judge::quote(finding));
                self.save(now, afterwards(ending, &why), EVIDENCE_OF_CRASH, false, out)
            }
            other => other,
        };
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
                self.assessor = Assessor::new(self.plan.health.patience.clone());
                self.run_deadline = self.plan.budgets.run.map(|budget| now.saturating_add(budget));
                self.begin_attempt(out)
            }

            (RunState::Preflight, E::PreflightFinished { checks, server }) => match judge::refusal(checks) {
                Some(reason) => self.close(now, ending(Outcome::Refused, reason, Phase::Preflight), out),
                None => {
                    self.facts = server.clone();
                    self.spawned = now;
                    out.push(Action::StartServer);
                    let budget = self.plan.budgets.startup;
                    enter(Phase::Loading, Some(budget), out);
                    RunState::Loading { until: now.saturating_add(budget) }
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
                let took = now.saturating_sub(self.spawned);
                self.startup = Some(self.startup.map_or(took, |quickest| quickest.min(took)));
                out.push(Action::WarmUp);
                let budget = self.plan.budgets.warmup;
                enter(Phase::WarmUp, Some(budget), out);
                RunState::WarmUp { until: now.saturating_add(budget) }
            }
            (RunState::Loading { .. }, E::TimerFired { timer: Timer::Phase }) => {
                let why = format!("the server was not ready within {}", human(self.plan.budgets.startup));
                let ending = ending(Outcome::StartupFailure, why, Phase::Loading);
                self.lose(now, ending, EVIDENCE_OF_HANG, false, out)
            }

            (RunState::WarmUp { .. }, E::WarmupFinished { .. }) => {
                out.push(Action::StartLoad);
                let load = &self.plan.load;
                // A journal may come from anywhere, with any number in it.
                let budget = load.duration.saturating_add(load.drain).saturating_add(LOAD_SLACK);
                enter(Phase::Measuring, Some(budget), out);
                RunState::Measuring(Measuring { until: now.saturating_add(budget), stopping: None })
            }
            (RunState::WarmUp { .. }, E::WarmupFailed { error }) => {
                let why = format!("a warm-up request failed: {error}");
                self.lose(now, ending(Outcome::Degraded, why, Phase::WarmUp), EVIDENCE_OF_CRASH, false, out)
            }
            (RunState::WarmUp { .. }, E::TimerFired { timer: Timer::Phase }) => {
                let why =
                    format!("the warm-up requests got no answer within {}", human(self.plan.budgets.warmup));
                self.lose(now, ending(Outcome::Hang, why, Phase::WarmUp), EVIDENCE_OF_HANG, false, out)
            }

            (state @ RunState::Measuring(_), E::LoadStarted { .. } | E::LoadProgressed(_)) => state,
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
            (RunState::Measuring(m), E::TimerFired { timer: Timer::Phase }) => {
                let new = ending(
                    Outcome::GuardFault,
                    "the load driver did not come back".to_owned(),
                    Phase::Measuring,
                );
                self.lose(now, m.stopping.unwrap_or(new), EVIDENCE_OF_HANG, true, out)
            }

            (RunState::Flushing { ending, .. }, E::WindowsClosed { .. }) => self.terminate(now, ending, out),
            (RunState::Flushing { ending, .. }, E::TimerFired { timer: Timer::Phase }) => {
                self.terminate(now, ending, out)
            }
            // The benchmark is home; what the server does now can no longer take it away. The open window may be lost.
            (RunState::Flushing { ending, .. }, E::ProcessExited { proc, comm, how, main, .. })
                if *main || self.family.is_essential(*proc, comm) =>
            {
                let why = format!("{comm} ({proc}) died with {how} while the windows were being closed");
                self.save(now, afterwards(ending, &why), EVIDENCE_OF_CRASH, false, out)
            }

            (
                RunState::Stopping { ending, .. },
                E::ProcessExited { main: true, .. } | E::TimerFired { timer: Timer::Phase },
            ) => self.kill(now, ending, false, out),

            (
                RunState::Draining { ending, load_open, step: DrainStep::Saving, .. },
                E::EvidenceSaved { .. } | E::TimerFired { timer: Timer::Phase },
            ) => self.sigkill(now, ending, load_open, out),
            // Before the kill it is the answer to one of another attempt, and after it has been heard it says nothing new.
            (
                RunState::Draining { ending, until, load_open, step: DrainStep::Killing },
                E::TreeGone { .. },
            ) => {
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
                let traces_take = traces.iter().map(|trace| trace.bytes).sum::<u64>();
                self.earlier =
                    self.earlier.saturating_add(traces_take).saturating_add(std::mem::take(&mut self.logs));
                let ending = judge::with_traces(ending, traces, &self.ranks, self.plan.profile.mode);
                self.close(now, ending, out)
            }
            (RunState::Collecting { ending, .. }, E::TimerFired { timer: Timer::Phase }) => {
                let ending = judge::with_traces(ending, &[], &self.ranks, self.plan.profile.mode);
                self.close(now, ending, out)
            }

            (RunState::Drawing, E::BackoffDrawn { delay }) => {
                enter(Phase::Waiting, Some(*delay), out);
                RunState::Waiting { until: now.saturating_add(*delay) }
            }
            (RunState::Waiting { .. }, E::TimerFired { timer: Timer::Backoff }) => self.begin_attempt(out),

            // The same three accidents can happen in every phase in which the server should be alive.
            (
                state @ (RunState::Loading { .. } | RunState::WarmUp { .. } | RunState::Measuring(_)),
                E::ProcessExited { proc, comm, how, main, .. },
            ) if *main || self.family.is_essential(*proc, comm) => {
                let phase = state.phase();
                let outcome = if phase == Phase::Loading { Outcome::StartupFailure } else { Outcome::Crash };
                let why = format!("{comm} ({proc}) ended during {phase} with {how}");
                let new = ending(outcome, why, phase);
                let first = state.ending().unwrap_or(new);
                self.lose(now, first, EVIDENCE_OF_CRASH, state.load_open(), out)
            }
            (
                RunState::Draining {
                    ending, load_open, step: DrainStep::Saving | DrainStep::Killing, ..
                },
                E::KeeperLost { .. },
            ) => self.sigkill(now, ending, load_open, out),
            (
                state @ (RunState::Loading { .. }
                | RunState::WarmUp { .. }
                | RunState::Measuring(_)
                | RunState::Flushing { .. }
                | RunState::Stopping { .. }),
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
                | E::EvidenceSaved { .. }
                | E::TreeGone { .. }
                | E::Drained { .. }
                | E::TracesCollected { .. }
                | E::BackoffDrawn { .. }
                | E::PreflightFinished { .. },
            ) => state,

            (state, other) => {
                out.push(anomaly(&state, other));
                state
            }
        }
    }
}

fn event_name(kind: &EventKind) -> String {
    let text = format!("{kind:?}");
    text.split([' ', '(', '{']).next().unwrap_or_default().to_owned()
}

fn anomaly(state: &RunState, input: &EventKind) -> Action {
    Action::Conclude(EventKind::Anomaly { state: state.phase().to_string(), input: event_name(input) })
}
