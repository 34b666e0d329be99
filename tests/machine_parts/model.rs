//! The machine against a world that answers, fails, lies, stays silent or speaks out of turn, with the promises checked after every
//! single step.

use super::hang::line;
use super::*;
use varcas_guard::cli::replay::replay;
use varcas_guard::config::PolicyPlan;
use varcas_guard::event::{Clue, Event, JOURNAL_VERSION, Leftover, Suspicion};

/// What the world does next.
#[derive(Debug, Clone)]
enum Move {
    /// The oldest thing that was asked for is answered well.
    Answer,
    /// The oldest thing that was asked for is answered badly, in one of several ways.
    Fail(u8),
    /// Time passes until the machine wants to be woken, and it is.
    Wake,
    /// Something happens that nobody asked for, after so many milliseconds.
    Happen(Box<EventKind>, u64),
    /// An answer comes that nobody asked for.
    Lie(Box<EventKind>, u64),
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        8 => Just(Move::Answer),
        2 => any::<u8>().prop_map(Move::Fail),
        2 => Just(Move::Wake),
        3 => (any_input(), 0..20_000u64).prop_map(|(kind, ms)| Move::Lie(Box::new(kind), ms)),
        3 => (rare_input(), 0..40_000u64).prop_map(|(kind, ms)| Move::Happen(Box::new(kind), ms)),
    ]
}

/// Samples, remarks, findings, and conclusions that come back as if they were facts.
fn rare_input() -> impl Strategy<Value = EventKind> {
    let gravity = prop_oneof![
        Just(Gravity::Harmless),
        Just(Gravity::Consequence),
        Just(Gravity::Suspect),
        Just(Gravity::Fatal)
    ];
    let cause = prop_oneof![
        Just("cuda-oom"),
        Just("port-in-use"),
        Just("model-not-found"),
        Just(Finding::ENGINE_DEAD),
        Just("torch-compile-failure"),
        Just("kineto-thread-mismatch"),
        Just("profiler-flush-stall"),
    ];
    prop_oneof![
        (gravity, cause, 0..200u64).prop_map(|(gravity, cause, number)| line(gravity, cause, number)),
        (0..4u32).prop_map(|rank| {
            let what = WindowEvent::Hello { torch: String::new(), activities: vec![] };
            EventKind::Window(WindowLine { rank, pid: 7, t: 0.0, what })
        }),
        (0..3u32).prop_map(|window| EventKind::Window(WindowLine {
            rank: 0,
            pid: 7,
            t: 0.0,
            what: WindowEvent::Flushing { window }
        })),
        prop_oneof![Just('T'), Just('S'), Just('R'), Just('D')]
            .prop_map(move |state| EventKind::ProcessesSampled { processes: vec![engine_in(state)] }),
        (0..3u32).prop_map(|n| {
            let sample = EngineSample { iterations: f64::from(n), running: 1.0, ..EngineSample::default() };
            EventKind::EngineSampled(Reading::Value(sample))
        }),
        Just(EventKind::EngineSampled(Reading::Unavailable { why: "no".into() })),
        any::<bool>().prop_map(|well| EventKind::Probed {
            error: (!well).then(|| "no".to_owned()),
            took: Duration::from_secs(1)
        }),
        (10..14i32, 9..13i32, any::<bool>()).prop_map(|(pid, ppid, worker)| EventKind::ProcessSeen {
            proc: proc(pid),
            ppid,
            comm: if worker { "VLLM::Worker_TP".into() } else { "cc1plus".into() },
        }),
        Just(EventKind::Clue(Clue {
            cause: "host-oom".into(),
            proc: None,
            inferred: true,
            source: "x".into(),
            text: "y".into()
        })),
        Just(EventKind::EvidenceSaved { items: vec![] }),
        Just(EventKind::Trouble { what: "x".into(), error: "y".into() }),
        // Conclusions, as a whole journal has them.
        Just(EventKind::AttemptStarted {}),
        Just(EventKind::Decided { retry: true, why: String::new() }),
        Just(EventKind::PhaseEntered { phase: Phase::Measuring, budget: None }),
        Just(EventKind::Suspicion(Suspicion {
            step: SuspicionStep::Act,
            kind: HangKind::Stopped,
            still: Duration::from_secs(99),
            patience: Duration::from_secs(9),
            reasons: vec![],
        })),
    ]
}

fn plans() -> impl Strategy<Value = Plan> {
    let policy = prop_oneof![
        1 => Just(None),
        3 => (any::<bool>(), 1..4u32).prop_map(|(mitigate, same)| Some(PolicyPlan { mitigate, same_failure: same })),
    ];
    let run = prop::option::weighted(0.3, 1..4000u64);
    (0..4u32, any::<bool>(), policy, run, any::<bool>()).prop_map(|(retries, profile, policy, run, kill)| {
        let mut plan = Plan { retries, policy, ..Plan::default() };
        plan.profile.mode = if profile { ProfileMode::Windows } else { ProfileMode::Off };
        plan.budgets.run = run.map(Duration::from_secs);
        plan.health.on_hang = if kill { OnHang::Kill } else { OnHang::Observe };
        plan
    })
}

/// What an orderly world answers.
fn good(asked: &Action) -> Option<EventKind> {
    Some(match asked {
        Action::Preflight => passed(),
        Action::StartServer => spawned(),
        Action::WaitReady => ready(),
        Action::WarmUp => warm(),
        Action::StartLoad => finished(9, 0, true),
        Action::CloseWindows => EventKind::WindowsClosed { workers: 1 },
        Action::Probe => EventKind::Probed { error: None, took: Duration::from_secs(1) },
        Action::SaveEvidence { .. } => EventKind::EvidenceSaved { items: vec![] },
        Action::Terminate => exited("python", true),
        Action::KillAll => tree_gone(),
        Action::Drain => drained(),
        Action::CollectTraces => traces(1),
        Action::DrawBackoff => EventKind::BackoffDrawn { delay: Duration::from_secs(3) },
        Action::StopLoad | Action::Conclude(_) | Action::UsePlan(_) | Action::Finish => return None,
    })
}

fn bad(asked: &Action, how: u8) -> Option<EventKind> {
    Some(match asked {
        Action::Preflight => EventKind::PreflightFinished {
            checks: vec![Check {
                check: "port".into(),
                severity: Severity::Refuse,
                saw: "held".into(),
                hint: None,
            }],
            server: ServerFacts::default(),
        },
        Action::StartServer => EventKind::SpawnFailed { error: "no".into() },
        Action::WarmUp => EventKind::WarmupFailed { error: "no".into() },
        Action::StartLoad if how.is_multiple_of(2) => EventKind::LoadFailed { error: "no".into() },
        Action::StartLoad => finished(1, 9, how.is_multiple_of(3)),
        Action::Probe => EventKind::Probed { error: Some("no answer".into()), took: Duration::from_secs(10) },
        Action::KillAll => EventKind::TreeGone {
            unkillable: vec![Leftover::Process { proc: proc(11), comm: "x".into(), state: "D".into() }],
        },
        Action::CollectTraces => traces(0),
        // Whatever else is under way, the server dies of it, or the keeper does.
        _ if how.is_multiple_of(3) => EventKind::KeeperLost { how: "SIGKILL".into() },
        _ => exited(if how.is_multiple_of(2) { "python" } else { "VLLM::Worker_TP" }, how.is_multiple_of(2)),
    })
}

/// What the actions so far must mean, kept apart from the machine's own state.
#[derive(Debug, Default)]
struct Ledger {
    /// A server was started and nothing was told to kill it since.
    server: bool,
    /// A kill was ordered for the present server.
    killed: bool,
    /// The present attempt, if it is open.
    open: bool,
    attempts: u32,
    /// How the present attempt is ending.
    ending: Option<varcas_guard::event::Ending>,
    load: bool,
    collected: bool,
    started: bool,
    finished: bool,
    phase: Option<Phase>,
}

/// The phases that may follow one another.
fn may_follow(from: Option<Phase>, to: Phase) -> bool {
    use Phase as P;
    let next: &[P] = match from {
        None => &[P::Preflight],
        Some(P::Preflight) => &[P::Loading, P::Done, P::Waiting],
        Some(P::Loading) => &[P::WarmUp, P::Stopping, P::Draining],
        Some(P::WarmUp) => &[P::Measuring, P::Flushing, P::Stopping, P::Draining],
        Some(P::Measuring) => &[P::Flushing, P::Stopping, P::Draining],
        Some(P::Flushing) => &[P::Stopping, P::Draining],
        Some(P::Stopping) => &[P::Draining],
        Some(P::Draining) => &[P::Collecting],
        Some(P::Collecting) => &[P::Waiting, P::Done],
        Some(P::Waiting) => &[P::Preflight, P::Done],
        Some(P::Done) => &[],
    };
    next.contains(&to)
        // Between two attempts the drawing of the pause enters no phase of its own.
        || (matches!(from, Some(P::Collecting | P::Preflight)) && matches!(to, P::Done | P::Waiting))
}

impl Ledger {
    fn enter(&mut self, action: &Action, retries: u32) -> Result<(), TestCaseError> {
        prop_assert!(!self.finished, "{action:?} after the end");
        match action {
            Action::Conclude(EventKind::AttemptStarted {}) => {
                prop_assert!(!self.open, "an attempt begins while one is open");
                prop_assert!(!self.server, "an attempt begins while a server may live");
                self.attempts += 1;
                prop_assert!(self.attempts <= retries + 1, "attempt {} of {}", self.attempts, retries + 1);
                *self = Self { open: true, attempts: self.attempts, phase: self.phase, ..Self::default() };
            }
            Action::StartServer => {
                prop_assert!(self.open && !self.started, "two servers in one attempt");
                prop_assert!(!self.server, "a server is started while another may live");
                (self.server, self.started) = (true, true);
            }
            Action::WaitReady | Action::WarmUp | Action::CloseWindows | Action::Terminate | Action::Probe => {
                prop_assert!(self.server && !self.killed, "{action:?} without a server");
            }
            Action::StartLoad => {
                prop_assert!(self.server && !self.killed && !self.load);
                self.load = true;
            }
            Action::StopLoad => prop_assert!(self.load, "no load to stop"),
            Action::SaveEvidence { .. } => {
                prop_assert!(self.server && !self.killed, "evidence of the dead");
            }
            Action::KillAll => {
                prop_assert!(self.started, "a kill without a server");
                (self.server, self.killed) = (false, true);
            }
            Action::Drain => prop_assert!(self.killed, "cleaning up before the kill"),
            Action::CollectTraces => {
                prop_assert!(self.killed && !self.collected, "traces are collected once, after the kill");
                self.collected = true;
            }
            Action::Conclude(EventKind::AttemptEnding(ending)) => {
                prop_assert!(self.open && !self.collected);
                let first = self.ending.get_or_insert_with(|| ending.clone());
                prop_assert_eq!(first.outcome, ending.outcome, "what went wrong first stays");
                prop_assert_eq!(first.phase, ending.phase);
            }
            Action::Conclude(EventKind::AttemptEnded(ended)) => {
                prop_assert!(self.open, "an attempt is closed that is not open");
                prop_assert!(!self.server, "closed while a server may live");
                prop_assert!(self.collected || !self.started, "closed without its traces");
                if let Some(first) = &self.ending {
                    let without_traces = (Outcome::Success, Outcome::Degraded);
                    prop_assert!(
                        first.outcome == ended.outcome || (first.outcome, ended.outcome) == without_traces,
                        "{first:?} became {ended:?}"
                    );
                    prop_assert!(ended.reason.starts_with(&first.reason), "{first:?} became {ended:?}");
                }
                self.open = false;
            }
            Action::Conclude(EventKind::PhaseEntered { phase, .. }) => {
                // Evidence first, then the kill: both within the same phase.
                let again = self.phase == Some(*phase) && *phase == Phase::Draining;
                prop_assert!(again || may_follow(self.phase, *phase), "{phase} after {:?}", self.phase);
                self.phase = Some(*phase);
            }
            Action::Conclude(
                EventKind::Decided { .. } | EventKind::Judged { .. } | EventKind::Mitigated { .. },
            )
            | Action::UsePlan(_)
            | Action::DrawBackoff => prop_assert!(!self.open, "{action:?} while an attempt is open"),
            Action::Conclude(EventKind::RunFinished { .. }) => {
                prop_assert!(!self.open && !self.server, "the run ends with an open attempt");
            }
            Action::Finish => self.finished = true,
            Action::Preflight => prop_assert!(self.open && !self.started),
            Action::Conclude(_) => {}
        }
        Ok(())
    }
}

/// Only timers fire; the two edges that need none of them to end (the checks of the preflight and the drawing of the pause)
/// answer.
fn ends_by_time_alone(mut machine: Machine, mut now: Duration) -> Result<(), TestCaseError> {
    let retries = 4;
    for _ in 0..(retries + 1) * 12 {
        if machine.is_done() {
            return Ok(());
        }
        let input = match machine.next_deadline() {
            Some((due, timer)) => {
                now = now.max(due);
                EventKind::TimerFired { timer }
            }
            None if machine.phase() == Phase::Preflight => passed(),
            None => EventKind::BackoffDrawn { delay: Duration::from_secs(1) },
        };
        let wall = varcas_guard::time::ManualClock::new().now().wall;
        let _ = machine.step(varcas_guard::time::Stamp { mono: now, wall }, &input);
    }
    prop_assert!(machine.is_done(), "time alone leaves it in {}", machine.phase());
    Ok(())
}

/// Two signals in a row order the kill, whatever the state.
fn can_be_killed(mut machine: Machine, clock: &ManualClock) -> Result<(), TestCaseError> {
    let mut killed = false;
    for _ in 0..2 {
        let actions = machine.step(clock.now(), &EventKind::SignalReceived { signal: 2 });
        killed |= actions.contains(&Action::KillAll);
    }
    prop_assert!(killed, "SIGKILL is out of reach in {}", machine.phase());
    Ok(())
}

/// The journal as it is written, read back.
fn written(events: &[Event]) -> Vec<Event> {
    events
        .iter()
        .map(|event| {
            serde_json::from_slice(&serde_json::to_vec(event).expect("it can be written")).expect("and read")
        })
        .collect()
}

proptest! {
    // Six times what is usual: deep states take long ways.
    #![proptest_config(ProptestConfig { cases: 6 * ProptestConfig::default().cases, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_promise_holds_after_every_step(plan in plans(), moves in prop::collection::vec(moves(), 0..120)) {
        let retries = plan.retries;
        let (mut machine, clock, mut ledger) = (Machine::new(), ManualClock::new(), Ledger::default());
        let mut asked: Vec<(u32, Action)> = Vec::new();
        let mut journal: Vec<Event> = Vec::new();
        let mut lied = false;
        let start = Move::Happen(Box::new(started(plan)), 0);
        for (index, step) in std::iter::once(start).chain(moves).enumerate() {
            // What an earlier attempt asked for is cancelled with it, and after a lie the truth comes as a surprise.
            lied |= matches!(step, Move::Lie(..));
            let answers = matches!(step, Move::Answer | Move::Fail(_))
                && !lied
                && asked.first().is_some_and(|(attempt, _)| *attempt == machine.attempt());
            let input = match step {
                Move::Answer | Move::Fail(_) if asked.is_empty() => continue,
                Move::Answer => match good(&asked.remove(0).1) { Some(kind) => kind, None => continue },
                Move::Fail(how) => match bad(&asked.remove(0).1, how) { Some(kind) => kind, None => continue },
                Move::Wake => {
                    let Some((due, timer)) = machine.next_deadline() else { continue };
                    clock.advance(due.saturating_sub(clock.now().mono));
                    EventKind::TimerFired { timer }
                }
                Move::Happen(kind, ms) | Move::Lie(kind, ms) => { clock.advance(Duration::from_millis(ms)); *kind }
            };
            clock.advance(Duration::from_micros(137));
            let (was_done, phase) = (machine.is_done(), machine.phase());
            let at = clock.now();
            let push = |journal: &mut Vec<Event>, attempt, kind: EventKind| {
                journal.push(Event { v: JOURNAL_VERSION, seq: journal.len() as u64, at, attempt, kind });
            };
            let actions = machine.step(at, &input);
            if input.is_fact() {
                push(&mut journal, machine.attempt(), input);
            }
            for action in &actions {
                if let Action::Conclude(kind) = action {
                    push(&mut journal, machine.attempt(), kind.clone());
                }
                if let Action::Conclude(EventKind::Anomaly { .. }) = action {
                    prop_assert!(!answers, "an answer, even a late one, is no anomaly: {action:?}");
                    continue;
                }
                if let Action::Conclude(EventKind::Suspicion(_)) = action {
                    prop_assert!(!was_done);
                    continue;
                }
                ledger.enter(action, retries)?;
            }
            prop_assert!(!was_done || machine.is_done(), "done is final");
            prop_assert_eq!(machine.is_done(), ledger.finished);
            prop_assert!(machine.attempt() <= retries + 1);
            prop_assert!(!machine.is_done() || machine.next_deadline().is_none(), "nothing is awaited at the end");
            if machine.phase() != phase && let Some((due, Timer::Phase | Timer::Backoff)) = machine.next_deadline() {
                prop_assert!(due >= clock.now().mono, "a deadline in the past");
            }
            let now_asked = actions.iter().filter(|action| good(action).is_some());
            asked.extend(now_asked.map(|action| (machine.attempt(), action.clone())));
            if ledger.server && !ledger.killed {
                can_be_killed(machine.clone(), &clock)?;
            }
            if index % 8 == 0 {
                ends_by_time_alone(machine.clone(), clock.now().mono)?;
            }
        }
        ends_by_time_alone(machine.clone(), clock.now().mono)?;
        // The same facts lead to the same conclusions, also after they were written and read.
        let (now, then) = (replay(&written(&journal)), written(&journal));
        for (now, then) in now.iter().zip(&then) {
            prop_assert_eq!(&now.kind, &then.kind);
        }
        prop_assert_eq!(now.len(), then.len());
    }
}
