//! The promises of the state machine, driven by hand with a manual clock, then by random inputs.

use proptest::prelude::*;
use std::time::Duration;
use varcas_guard::config::{OnHang, Plan, ProfileMode};
use varcas_guard::event::{
    BenchSummary, Check, EngineSample, EventKind, ExitHow, Finding, GaveWay, Gravity, HangKind, LoadProgress,
    Outcome, Phase, ProcId, ProcSample, Reading, ServerFacts, Severity, SuspicionStep, Timer, Trace,
    WindowEvent, WindowLine,
};
use varcas_guard::supervisor::machine::Machine;
use varcas_guard::supervisor::state::Action;
use varcas_guard::time::{Clock, ManualClock};

#[path = "machine_parts/disk.rs"]
mod disk;
#[path = "machine_parts/ends.rs"]
mod ends;
#[path = "machine_parts/hang.rs"]
mod hang;
#[path = "machine_parts/model.rs"]
mod model;
#[path = "machine_parts/storage.rs"]
mod storage;

struct Driven {
    machine: Machine,
    clock: ManualClock,
    last: Vec<Action>,
    all: Vec<Action>,
}

fn plan() -> Plan {
    Plan { retries: 2, ..Plan::default() }
}

fn proc(pid: i32) -> ProcId {
    ProcId { pid, start: 7 }
}

/// The engine's process in this state.
fn engine_in(state: char) -> ProcSample {
    ProcSample {
        proc: proc(11),
        ppid: 10,
        comm: "VLLM::EngineCore".into(),
        state,
        cpu_s: 1.0,
        rss: 1 << 30,
        threads: 4,
        read_bytes: None,
        written_bytes: None,
        wchan: None,
    }
}

fn started(plan: Plan) -> EventKind {
    EventKind::RunStarted {
        run_id: "r".into(),
        guard_version: "0".into(),
        guard: proc(1),
        plan: Box::new(plan),
    }
}

fn passed() -> EventKind {
    EventKind::PreflightFinished { checks: vec![], server: ServerFacts::default() }
}

fn spawned() -> EventKind {
    EventKind::ServerSpawned { proc: proc(10), argv: vec![] }
}

fn ready() -> EventKind {
    EventKind::ServerReady { model: "m".into(), max_model_len: 1024 }
}

fn warm() -> EventKind {
    EventKind::WarmupFinished { requests: 3, slowest: Duration::from_secs(1) }
}

fn progress(completed: u64, in_flight: u64) -> EventKind {
    EventKind::LoadProgressed(LoadProgress {
        sent: completed + in_flight,
        completed,
        in_flight,
        ..LoadProgress::default()
    })
}

fn finished(completed: u64, failed: u64, is_complete: bool) -> EventKind {
    EventKind::LoadFinished {
        summary: Box::new(BenchSummary {
            is_complete,
            progress: LoadProgress { completed, failed, ..LoadProgress::default() },
            ..BenchSummary::default()
        }),
    }
}

fn traces(complete: usize) -> EventKind {
    let trace = Trace {
        file: "w".into(),
        bytes: 1,
        json_bytes: 1,
        events: 1,
        kernels: 0,
        rank: None,
        window: None,
        steps: None,
        complete: true,
    };
    EventKind::TracesCollected { traces: vec![trace; complete], problems: vec![], saved: vec![] }
}

fn exited(comm: &str, main: bool) -> EventKind {
    EventKind::ProcessExited {
        proc: proc(if main { 10 } else { 11 }),
        comm: comm.into(),
        how: ExitHow::Signal { signal: 9, core: false },
        main,
    }
}

fn tree_gone() -> EventKind {
    EventKind::TreeGone { unkillable: vec![] }
}

fn drained() -> EventKind {
    EventKind::Drained { leftovers: vec![], removed: vec![] }
}

impl Driven {
    fn new(plan: Plan) -> Self {
        let mut driven =
            Self { machine: Machine::new(), clock: ManualClock::new(), last: vec![], all: vec![] };
        driven.give(started(plan));
        driven
    }

    /// Whatever asks for evidence gets an empty answer at once.
    fn give(&mut self, kind: EventKind) -> &mut Self {
        self.give_only(kind);
        if self.last.iter().any(|action| matches!(action, Action::SaveEvidence { .. })) {
            let before = std::mem::take(&mut self.last);
            self.give_only(EventKind::EvidenceSaved { items: vec![] });
            self.last.splice(0..0, before);
        }
        self
    }

    fn give_only(&mut self, kind: EventKind) -> &mut Self {
        self.clock.advance(Duration::from_millis(10));
        self.last = self.machine.step(self.clock.now(), &kind);
        self.all.extend(self.last.clone());
        self
    }

    /// Seconds in which the engine's process is in this state and nothing else is seen to happen but what is given.
    fn stand(&mut self, seconds: u64, state: char, each: impl Fn(u64) -> Option<EventKind>) -> u64 {
        let phase = self.machine.phase();
        for second in 0..seconds {
            self.clock.advance(Duration::from_millis(980));
            self.give(EventKind::ProcessesSampled { processes: vec![engine_in(state)] });
            if let Some(kind) = each(second).filter(|_| self.machine.phase() == phase) {
                self.give(kind);
            }
            if self.machine.phase() != phase {
                return second + 1;
            }
        }
        seconds
    }

    fn suspicions(&self) -> Vec<(SuspicionStep, HangKind)> {
        self.all
            .iter()
            .filter_map(|action| match action {
                Action::Conclude(EventKind::Suspicion(s)) => Some((s.step, s.kind)),
                _ => None,
            })
            .collect()
    }

    fn give_all(&mut self, kinds: impl IntoIterator<Item = EventKind>) -> &mut Self {
        for kind in kinds {
            self.give(kind);
        }
        self
    }

    /// Turns the clock to the machine's own deadline and says which one it was.
    fn wait(&mut self) -> Timer {
        let (at, timer) = self.machine.next_deadline().expect("a deadline");
        let now = self.clock.now().mono;
        self.clock.advance(at.saturating_sub(now));
        self.give(EventKind::TimerFired { timer });
        timer
    }

    fn did(&self, action: &Action) -> bool {
        self.last.contains(action)
    }

    fn ending(&self) -> (Outcome, Phase) {
        self.all
            .iter()
            .rev()
            .find_map(|a| match a {
                Action::Conclude(EventKind::AttemptEnding(e)) => Some((e.outcome, e.phase)),
                _ => None,
            })
            .expect("an ending")
    }

    fn exit_code(&self) -> Option<u8> {
        self.all.iter().find_map(|a| match a {
            Action::Conclude(EventKind::RunFinished { exit_code, .. }) => Some(*exit_code),
            _ => None,
        })
    }

    fn anomalies(&self) -> usize {
        self.all.iter().filter(|a| matches!(a, Action::Conclude(EventKind::Anomaly { .. }))).count()
    }

    fn measuring(plan: Plan) -> Self {
        let mut driven = Self::new(plan);
        driven.give_all([passed(), spawned(), ready(), warm()]);
        assert_eq!(driven.machine.phase(), Phase::Measuring);
        driven
    }

    fn clean_up(&mut self, complete_traces: usize) -> &mut Self {
        self.give_all([tree_gone(), drained(), traces(complete_traces)])
    }
}

#[test]
fn a_run_without_trouble_passes_every_phase_and_exits_with_0() {
    let mut run = Driven::measuring(plan());
    run.give(finished(100, 0, true));
    assert!(run.did(&Action::CloseWindows));
    run.give(EventKind::WindowsClosed { workers: 1 });
    assert!(run.did(&Action::Terminate));
    run.give(exited("python", true));
    assert!(run.did(&Action::KillAll), "what is left of the tree is swept even after a clean exit");
    run.give(tree_gone());
    assert!(run.did(&Action::Drain));
    run.give(drained());
    assert!(run.did(&Action::CollectTraces));
    run.give(traces(3));
    assert!(run.did(&Action::Finish));
    assert_eq!(run.exit_code(), Some(0));
    assert_eq!(run.anomalies(), 0);
    assert_eq!(run.machine.next_deadline(), None);
}

#[test]
fn a_benchmark_without_the_traces_it_was_asked_for_is_not_a_success() {
    let mut run = Driven::measuring(plan());
    run.give_all([finished(100, 0, true), EventKind::WindowsClosed { workers: 1 }, exited("python", true)])
        .clean_up(0);
    assert!(run.did(&Action::DrawBackoff));
    assert_eq!(run.exit_code(), None);
}

#[test]
fn without_profiling_no_window_is_awaited_and_no_trace_is_needed() {
    let mut plan = plan();
    plan.profile.mode = ProfileMode::Off;
    let mut run = Driven::measuring(plan);
    run.give(finished(100, 0, true));
    assert!(run.did(&Action::Terminate));
    run.give(exited("python", true)).clean_up(0);
    assert_eq!(run.exit_code(), Some(0));
}

#[test]
fn a_refused_preflight_starts_nothing_and_exits_with_69() {
    let mut run = Driven::new(plan());
    let check = Check { check: "port".into(), severity: Severity::Refuse, saw: "held".into(), hint: None };
    run.give(EventKind::PreflightFinished { checks: vec![check], server: ServerFacts::default() });
    assert_eq!(run.exit_code(), Some(69));
    assert!(!run.all.contains(&Action::StartServer));
}

#[test]
fn a_dead_engine_ends_the_attempt_at_once_and_the_next_one_starts_after_the_pause() {
    let mut run = Driven::measuring(plan());
    run.give(exited("VLLM::EngineCor", false));
    assert!(run.did(&Action::KillAll) && run.did(&Action::StopLoad));
    assert_eq!(run.ending(), (Outcome::Crash, Phase::Measuring));
    run.give(tree_gone());
    assert!(!run.did(&Action::Drain), "the partial result is awaited first");
    run.give(finished(3, 1, false));
    assert!(run.did(&Action::Drain));
    run.give_all([drained(), traces(1)]);
    assert!(run.did(&Action::DrawBackoff));
    run.give(EventKind::BackoffDrawn { delay: Duration::from_secs(5) });
    assert_eq!(run.wait(), Timer::Backoff);
    assert!(run.did(&Action::Preflight));
    assert_eq!(run.machine.attempt(), 2);
}

#[test]
fn the_death_of_a_helper_process_means_nothing() {
    let mut run = Driven::measuring(plan());
    run.give(exited("cc1plus", false));
    assert_eq!(run.machine.phase(), Phase::Measuring);
    assert!(run.last.is_empty());
}

#[test]
fn attempts_end_when_the_retries_are_spent_and_the_code_is_75() {
    let mut run = Driven::new(plan());
    for attempt in 1..=3 {
        assert_eq!(run.machine.attempt(), attempt);
        run.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
        assert_eq!(run.ending(), (Outcome::StartupFailure, Phase::Loading));
        if attempt < 3 {
            run.give(EventKind::BackoffDrawn { delay: Duration::from_secs(1) });
            run.wait();
        }
    }
    assert_eq!(run.exit_code(), Some(75));
}

#[test]
fn a_child_that_a_worker_forked_may_end() {
    let mut run = Driven::measuring(plan());
    run.give(EventKind::ProcessSeen { proc: proc(11), ppid: 10, comm: "VLLM::Worker_TP".into() });
    run.give(EventKind::ProcessSeen { proc: proc(12), ppid: 11, comm: "VLLM::Worker_TP".into() });
    let ended = |pid| EventKind::ProcessExited {
        proc: proc(pid),
        comm: "VLLM::Worker_TP".into(),
        how: ExitHow::Code { code: 0 },
        main: false,
    };
    run.give(ended(12));
    assert_eq!(run.machine.phase(), Phase::Measuring);
    run.give(ended(11));
    assert_eq!(run.ending(), (Outcome::Crash, Phase::Measuring));
}

#[test]
fn every_rank_that_records_must_bring_a_trace() {
    for (ranks, code) in [(1, 0), (2, 75)] {
        let mut run = Driven::measuring(Plan { retries: 0, ..plan() });
        for rank in 0..ranks {
            let what = WindowEvent::Hello { torch: String::new(), activities: vec![] };
            run.give(EventKind::Window(WindowLine { rank, pid: 7, t: 0.0, what }));
        }
        run.give_all([
            finished(10, 0, true),
            EventKind::WindowsClosed { workers: ranks },
            exited("python", true),
        ]);
        run.give_all([tree_gone(), drained()]);
        let EventKind::TracesCollected { mut traces, problems, saved } = traces(1) else { panic!("traces") };
        traces[0].rank = Some(0);
        run.give(EventKind::TracesCollected { traces, problems, saved });
        assert_eq!(run.exit_code(), Some(code));
    }
}

#[test]
fn ctrl_c_once_stops_in_good_order_and_keeps_everything() {
    let mut run = Driven::measuring(plan());
    run.give(EventKind::SignalReceived { signal: 2 });
    assert!(run.did(&Action::StopLoad));
    run.give(finished(10, 0, false));
    assert!(run.did(&Action::CloseWindows));
    let (due, _) = run.machine.next_deadline().expect("a budget");
    assert!(due <= run.clock.now().mono + Duration::from_secs(120), "somebody waits");
    run.give(EventKind::WindowsClosed { workers: 1 });
    assert!(run.did(&Action::Terminate));
    run.give(exited("python", true)).clean_up(2);
    assert_eq!(run.exit_code(), Some(130));
    assert_eq!(run.ending(), (Outcome::Stopped, Phase::Measuring));
}

#[test]
fn ctrl_c_twice_kills_at_once_in_every_phase() {
    let reach: [&[EventKind]; 5] = [
        &[passed(), spawned()],
        &[passed(), spawned(), ready()],
        &[passed(), spawned(), ready(), warm()],
        &[passed(), spawned(), ready(), warm(), finished(1, 0, true)],
        &[
            passed(),
            spawned(),
            ready(),
            warm(),
            finished(1, 0, true),
            EventKind::WindowsClosed { workers: 1 },
        ],
    ];
    for kinds in reach {
        let mut run = Driven::new(plan());
        run.give_all(kinds.to_vec());
        let phase = run.machine.phase();
        run.give(EventKind::SignalReceived { signal: 2 });
        run.give(EventKind::SignalReceived { signal: 2 });
        assert!(run.did(&Action::KillAll), "{phase}");
    }
}

#[test]
fn sigterm_exits_with_143_and_a_stop_between_attempts_is_immediate() {
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
    run.give(EventKind::BackoffDrawn { delay: Duration::from_secs(1000) });
    run.give(EventKind::SignalReceived { signal: 15 });
    assert_eq!(run.exit_code(), Some(143));
}

#[test]
fn the_deadline_of_the_run_stops_in_good_order_with_124() {
    let mut plan = plan();
    plan.budgets.run = Some(Duration::from_secs(30));
    let mut run = Driven::measuring(plan);
    assert_eq!(run.wait(), Timer::Run);
    assert!(run.did(&Action::StopLoad));
    run.give_all([finished(1, 0, false), EventKind::WindowsClosed { workers: 1 }, exited("python", true)])
        .clean_up(1);
    assert_eq!(run.exit_code(), Some(124));
}

#[test]
fn a_server_that_dies_while_its_windows_are_closed_cannot_take_the_result_away() {
    let mut run = Driven::measuring(plan());
    run.give_all([finished(100, 0, true), exited("VLLM::EngineCor", false)]);
    assert!(run.did(&Action::KillAll));
    run.clean_up(2);
    assert_eq!(run.exit_code(), Some(0));
    let text = format!("{:?}", run.all);
    assert!(text.contains("afterwards, VLLM::EngineCor"), "the report must say so");
}

#[test]
fn a_lost_keeper_ends_the_attempt_and_the_kill_is_ordered_again_while_killing() {
    let mut run = Driven::measuring(plan());
    run.give(EventKind::KeeperLost { how: "SIGKILL".into() });
    assert_eq!(run.ending().0, Outcome::GuardFault);
    assert!(run.did(&Action::KillAll));
    let mut run = Driven::measuring(plan());
    run.give(exited("VLLM::EngineCor", false));
    run.give(EventKind::KeeperLost { how: "SIGKILL".into() });
    assert!(run.did(&Action::KillAll), "or TreeGone would never come");
    assert_eq!(run.ending().0, Outcome::Crash, "the first cause stays");
}

#[test]
fn an_answer_to_an_earlier_kill_is_not_taken_for_the_answer_to_this_one() {
    let mut run = Driven::measuring(plan());
    run.give_only(exited("VLLM::EngineCor", false)).give_only(tree_gone());
    assert!(!run.did(&Action::Drain), "nothing was killed yet");
    run.give(EventKind::EvidenceSaved { items: vec![] });
    assert!(run.did(&Action::KillAll));
    run.give_all([finished(1, 0, false), tree_gone()]);
    assert!(run.did(&Action::Drain));
    run.give(tree_gone());
    assert!(!run.did(&Action::Drain), "once is enough");
}

#[test]
fn a_benchmark_with_too_many_failures_is_degraded() {
    let mut run = Driven::measuring(plan());
    run.give(finished(80, 20, true));
    assert_eq!(run.ending(), (Outcome::Degraded, Phase::Measuring));
}

fn any_input() -> impl Strategy<Value = EventKind> {
    prop_oneof![
        Just(passed()),
        Just(spawned()),
        Just(EventKind::SpawnFailed { error: "no".into() }),
        Just(ready()),
        Just(warm()),
        Just(EventKind::WarmupFailed { error: "no".into() }),
        Just(EventKind::LoadStarted { planned: 1, seed: 1 }),
        (0..9u64, 0..3u64).prop_map(|(c, f)| progress(c, f)),
        (0..9u64, 0..9u64, any::<bool>()).prop_map(|(c, f, d)| finished(c, f, d)),
        Just(EventKind::LoadFailed { error: "no".into() }),
        Just(EventKind::WindowsClosed { workers: 1 }),
        Just(exited("python", true)),
        Just(exited("VLLM::Worker_TP", false)),
        Just(EventKind::KeeperLost { how: "x".into() }),
        Just(EventKind::PortStolen { holder: "x".into() }),
        Just(EventKind::StorageLost { error: "x".into() }),
        Just(tree_gone()),
        Just(drained()),
        (0..2usize).prop_map(traces),
        (0..90u64).prop_map(|s| EventKind::BackoffDrawn { delay: Duration::from_secs(s) }),
        prop_oneof![Just(2), Just(15), Just(1)].prop_map(|signal| EventKind::SignalReceived { signal }),
        prop_oneof![Just(Timer::Phase), Just(Timer::Run), Just(Timer::Backoff)]
            .prop_map(|timer| EventKind::TimerFired { timer }),
        Just(started(plan())),
    ]
}

proptest! {
    #[test]
    fn no_input_breaks_the_invariants(inputs in prop::collection::vec((any_input(), 0..200_000u64), 0..80), follow in any::<bool>()) {
        let mut run = Driven::new(plan());
        // `RunStarted` has begun the first attempt.
        let (mut servers, mut open, mut done_at) = (0i32, true, None);
        for (index, (input, ms)) in inputs.into_iter().enumerate() {
            if follow && index % 3 == 0 && let Some((at, _)) = run.machine.next_deadline() {
                let now = run.clock.now().mono;
                run.clock.advance(at.saturating_sub(now));
            }
            run.clock.advance(Duration::from_millis(ms));
            let was_done = run.machine.is_done();
            run.give(input);
            if was_done {
                prop_assert!(run.machine.is_done(), "done is final");
                let harmless = run.last.iter().all(|a| matches!(a, Action::Conclude(EventKind::Anomaly { .. })));
                prop_assert!(harmless, "{:?}", run.last);
            }
            for action in run.last.clone() {
                match action {
                    Action::Preflight => prop_assert!(open),
                    Action::StartServer => { servers += 1; prop_assert!(servers <= 1, "never two servers"); }
                    Action::CollectTraces => servers = 0,
                    Action::Conclude(EventKind::AttemptStarted {}) => { prop_assert!(!open); open = true; }
                    Action::Conclude(EventKind::AttemptEnded(_)) => { prop_assert!(open || index == 0); open = false; }
                    Action::Conclude(EventKind::RunFinished { .. }) => { prop_assert!(!open); done_at = Some(index); }
                    _ => {}
                }
            }
        }
        prop_assert_eq!(done_at.is_some(), run.machine.is_done());
        // SIGKILL is always within reach while a server may live.
        if servers > 0 {
            run.give(EventKind::SignalReceived { signal: 2 });
            run.give(EventKind::SignalReceived { signal: 2 });
            let killed = run.all.iter().rev().take_while(|a| **a != Action::StartServer).any(|a| *a == Action::KillAll);
            prop_assert!(killed);
        }
        // And every run comes to its end if the edges answer nothing but timers.
        for _ in 0..200 {
            if run.machine.is_done() { break; }
            match run.machine.next_deadline() {
                Some(_) => { run.wait(); }
                None => { run.give(EventKind::SignalReceived { signal: 15 }); run.give(EventKind::BackoffDrawn { delay: Duration::ZERO }); }
            }
        }
        prop_assert!(run.machine.is_done(), "stuck in {}", run.machine.phase());
    }
}
