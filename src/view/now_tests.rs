use super::now::Now;
use super::phrases::{self, Tone};
use super::snapshot::{Snapshot, Standing};
use crate::config::Plan;
use crate::event::{
    Ending, EngineSample, Event, EventKind, Finding, Gravity, HangKind, JOURNAL_VERSION, LoadProgress,
    Outcome, Phase, ProcId, ProcSample, Reading, Suspicion, SuspicionStep,
};
use crate::time::Stamp;
use proptest::prelude::*;
use std::time::Duration;

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn event(at: f64, attempt: u32, kind: EventKind) -> Event {
    let wall = jiff::Timestamp::UNIX_EPOCH + seconds(at);
    Event { v: JOURNAL_VERSION, seq: 0, at: Stamp { mono: seconds(at), wall }, attempt, kind }
}

fn started(plan: Plan) -> EventKind {
    EventKind::RunStarted {
        run_id: "vg-1".to_owned(),
        guard_version: "0.1.0".to_owned(),
        guard: ProcId { pid: 1, start: 1 },
        plan: Box::new(plan),
    }
}

fn ending(outcome: Outcome) -> Ending {
    Ending { outcome, reason: "it broke".to_owned(), phase: Phase::Measuring }
}

fn finding(rule: &str, line: u64, gravity: Gravity) -> EventKind {
    EventKind::Finding(Finding {
        rule: rule.to_owned(),
        cause: rule.to_owned(),
        gravity,
        line,
        offset: 0,
        text: "words".to_owned(),
        count: 1,
        outranks: Vec::new(),
    })
}

fn engine(tokens: f64) -> EventKind {
    EventKind::EngineSampled(Reading::Value(EngineSample {
        generation_tokens: tokens,
        ..EngineSample::default()
    }))
}

fn progress(completed: u64, chunks: u64) -> EventKind {
    EventKind::LoadProgressed(LoadProgress { sent: completed, completed, chunks, ..LoadProgress::default() })
}

fn fold(events: &[Event]) -> Now {
    let mut now = Now::default();
    for event in events {
        now.push(event);
    }
    now
}

/// A run of which the benchmark has been going for ten of 120 seconds.
fn measuring() -> Vec<Event> {
    let plan = Plan { retries: 2, ..Plan::default() };
    let mut events = vec![
        event(0.0, 0, started(plan)),
        event(0.0, 1, EventKind::AttemptStarted {}),
        event(20.0, 1, EventKind::PhaseEntered { phase: Phase::Measuring, budget: Some(seconds(200.0)) }),
        event(20.0, 1, EventKind::LoadStarted { planned: 3000, seed: 42 }),
    ];
    for s in 0..=10_u32 {
        let at = 20.0 + f64::from(s);
        events.push(event(at, 1, engine(f64::from(s) * 250.0)));
        events.push(event(at, 1, progress(u64::from(s), u64::from(s) * 240)));
    }
    events
}

#[test]
fn a_benchmark_under_way_shows_what_it_does_and_what_is_left() {
    let now = fold(&measuring());
    let at = seconds(30.0);
    assert_eq!(phrases::attempt(&now), "attempt 1 of 3");
    assert_eq!(phrases::time(&now, at), "0:10 of 2:00, 1:50 left");
    assert_eq!(phrases::tokens(&now, at).unwrap(), "250 tokens/s");
    assert_eq!(
        phrases::requests(&now).unwrap(),
        (Tone::Plain, "10 done, 0 failed, 0 open of 3,000".to_owned())
    );
    assert_eq!(phrases::so_far(&now), None);
}

#[test]
fn the_client_counts_when_the_engine_does_not_answer() {
    let mut events = measuring();
    let why = "connection refused".to_owned();
    events.push(event(30.0, 1, EventKind::EngineSampled(Reading::Unavailable { why })));
    let now = fold(&events);
    assert_eq!(phrases::tokens(&now, seconds(30.5)).unwrap(), "240 pieces/s");
    assert_eq!(phrases::engine(&now).unwrap(), "engine: no answer");
}

#[test]
fn without_new_samples_there_is_no_present_rate() {
    let now = fold(&measuring());
    assert_eq!(phrases::tokens(&now, seconds(60.0)), None);
}

#[test]
fn the_next_attempt_begins_clean_and_the_one_before_is_remembered() {
    let mut events = measuring();
    events.push(event(31.0, 1, finding("cuda-oom", 7, Gravity::Fatal)));
    events.push(event(31.0, 1, EventKind::AttemptEnding(ending(Outcome::Crash))));
    events.push(event(35.0, 1, EventKind::AttemptEnded(ending(Outcome::Crash))));
    let why = "attempt 1 of 3 failed; trying again".to_owned();
    events.push(event(35.0, 1, EventKind::Decided { retry: true, why: why.clone() }));
    events.push(event(36.0, 2, EventKind::AttemptStarted {}));
    let now = fold(&events);
    assert_eq!((now.attempt, now.findings.len(), now.load.is_some()), (2, 0, false));
    assert_eq!(
        now.past.iter().map(|past| (past.attempt, past.outcome)).collect::<Vec<_>>(),
        [(1, Outcome::Crash)]
    );
    assert_eq!((phrases::so_far(&now), phrases::decision(&now)), (None, Some(why)));
}

#[test]
fn what_is_most_certain_is_said_first() {
    let mut events = measuring();
    let mut said = |kind| {
        events.push(event(31.0, 1, kind));
        phrases::so_far(&fold(&events))
            .map(|(tone, text)| (tone, text.split(':').next().unwrap_or("").to_owned()))
    };
    let still = Suspicion {
        step: SuspicionStep::Suspect,
        kind: HangKind::GpuSpin,
        still: seconds(5.0),
        patience: seconds(60.0),
        reasons: Vec::new(),
    };
    assert_eq!(said(finding("a", 7, Gravity::Suspect)), Some((Tone::Doubtful, "log line 7".to_owned())));
    assert_eq!(said(EventKind::Suspicion(still.clone())), Some((Tone::Doubtful, "suspect".to_owned())));
    let cleared = Suspicion { step: SuspicionStep::Cleared, ..still };
    assert_eq!(said(EventKind::Suspicion(cleared)), Some((Tone::Doubtful, "log line 7".to_owned())));
    assert_eq!(said(EventKind::AttemptEnding(ending(Outcome::Hang))), Some((Tone::Bad, "hang".to_owned())));
    let reason = "all attempts failed".to_owned();
    let end = EventKind::RunFinished { outcome: Outcome::Hang, exit_code: 75, reason };
    assert_eq!(said(end), Some((Tone::Bad, "hang".to_owned())));
}

#[test]
fn a_rule_is_listed_once_and_its_first_line_stays() {
    let mut events = measuring();
    for line in 1..=40 {
        events.push(event(31.0, 1, finding("again", line, Gravity::Suspect)));
    }
    let now = fold(&events);
    assert_eq!((now.findings.len(), now.findings[0].line, now.findings_count), (1, 1, 40));
}

#[test]
fn a_run_without_a_guard_is_interrupted_and_its_clock_stands() {
    let now = fold(&measuring());
    let snapshot = Snapshot::new(&now, seconds(9000.0), false);
    assert_eq!((snapshot.standing, snapshot.elapsed), (Standing::Interrupted, seconds(30.0)));
    assert_eq!((snapshot.load_left, snapshot.tokens_per_s), (None, None));
    let alive = Snapshot::new(&now, seconds(31.0), true);
    assert_eq!((alive.standing, alive.load_left), (Standing::Running, Some(seconds(109.0))));
    let value = serde_json::to_value(&alive).unwrap();
    assert_eq!((&value["phase"], &value["load"]["planned"]), (&"measuring".into(), &3000.into()));
}

#[test]
fn an_onlooker_knows_the_moment_from_the_wall_clock() {
    let now = fold(&measuring());
    assert_eq!(now.moment(jiff::Timestamp::UNIX_EPOCH + seconds(42.0)), seconds(42.0));
    assert_eq!(now.moment(jiff::Timestamp::UNIX_EPOCH), seconds(30.0), "a wall clock that was set back");
}

#[test]
fn a_dead_server_has_no_processes_and_records_nothing() {
    let mut events = measuring();
    let proc = ProcId { pid: 7, start: 1 };
    let sample = ProcSample {
        proc,
        ppid: 1,
        comm: "python3".to_owned(),
        state: 'S',
        cpu_s: 0.0,
        rss: 1000,
        threads: 1,
        read_bytes: None,
        written_bytes: None,
        wchan: None,
    };
    events.push(event(31.0, 1, EventKind::ProcessesSampled { processes: vec![sample] }));
    assert_eq!(fold(&events).rss(), Some(1000));
    events.push(event(32.0, 1, EventKind::TreeGone { unkillable: Vec::new() }));
    let now = fold(&events);
    assert_eq!((now.rss(), now.processes.len(), now.windows.recording), (None, 0, 0));
}

fn any_kind() -> impl Strategy<Value = EventKind> {
    prop_oneof![
        Just(EventKind::AttemptStarted {}),
        (0..5_u64).prop_map(|n| EventKind::LoadStarted { planned: n, seed: n }),
        (0..1000_u64, 0..1000_u64).prop_map(|(a, b)| progress(a, b)),
        (0.0..1e6_f64).prop_map(engine),
        Just(EventKind::EngineSampled(Reading::Stale)),
        (0..90_u64).prop_map(|n| finding(&format!("rule-{n}"), n, Gravity::Suspect)),
        Just(EventKind::AttemptEnding(ending(Outcome::Crash))),
        Just(EventKind::AttemptEnded(ending(Outcome::Success))),
        (0..9_i32).prop_map(|pid| EventKind::ProcessSeen {
            proc: ProcId { pid, start: 1 },
            ppid: 1,
            comm: "x".to_owned()
        }),
        Just(EventKind::TreeGone { unkillable: Vec::new() }),
        Just(EventKind::PhaseEntered { phase: Phase::Measuring, budget: None }),
        Just(EventKind::PhaseEntered { phase: Phase::Waiting, budget: Some(Duration::from_secs(3)) }),
        Just(EventKind::RunFinished { outcome: Outcome::Crash, exit_code: 75, reason: String::new() }),
        Just(started(Plan::default())),
    ]
}

proptest! {
    /// A journal may be cut anywhere and may come from another version, so no order may break what shows it.
    #[test]
    fn any_order_of_events_can_be_shown_and_stays_bounded(
        kinds in proptest::collection::vec((any_kind(), 0.0..50.0_f64, 0..4_u32), 0..300), look in 0.0..9000.0_f64
    ) {
        let mut now = Now::default();
        for (kind, at, attempt) in kinds {
            now.push(&event(at, attempt, kind));
            let snapshot = Snapshot::new(&now, seconds(look), true);
            prop_assert!(snapshot.tokens_per_s.is_none_or(|rate| rate >= 0.0));
            prop_assert!(now.findings.len() <= 32 && now.past.len() <= 32);
            prop_assert!(serde_json::to_string(&snapshot).is_ok());
            let _ = (phrases::time(&now, seconds(look)), phrases::so_far(&now), phrases::decision(&now));
        }
    }
}
