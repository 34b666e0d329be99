//! A journal does not grow for ever, and what is left out of it takes nothing from the run: a machine that is given every
//! sample concludes the same, and every reader understands what was written.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use varcas_guard::config::{Plan, ProfileMode};
use varcas_guard::event::{
    BenchSummary, EngineSample, Event, EventKind, ExitHow, LoadProgress, ProcId, ProcSample, Reading,
    ServerFacts,
};
use varcas_guard::supervisor::journal::{self, Journal};
use varcas_guard::supervisor::machine::Machine;
use varcas_guard::supervisor::state::Action;
use varcas_guard::time::{Clock, ManualClock};

const WHOLE: u64 = 200_000;
const FULL: u64 = 260_000;

fn proc(pid: i32) -> ProcId {
    ProcId { pid, start: 7 }
}

fn samples(second: u32) -> [EventKind; 3] {
    let steps = f64::from(second);
    let done = u64::from(second);
    [
        EventKind::EngineSampled(Reading::Value(EngineSample {
            iterations: steps,
            generation_tokens: steps * 10.0,
            running: 1.0,
            ..EngineSample::default()
        })),
        EventKind::LoadProgressed(LoadProgress {
            sent: done + 1,
            in_flight: 1,
            completed: done,
            chunks: done * 10,
            ..LoadProgress::default()
        }),
        EventKind::ProcessesSampled {
            processes: vec![ProcSample {
                proc: proc(11),
                ppid: 10,
                comm: "VLLM::EngineCore".into(),
                state: 'R',
                cpu_s: steps,
                rss: 1 << 30,
                threads: 4,
                read_bytes: None,
                written_bytes: None,
                wchan: None,
            }],
        },
    ]
}

/// A run of two attempts, each with so many seconds under load, as the dispatcher would write it. Returns how many events
/// there were.
fn write(path: &Path, seconds: u32) -> usize {
    let mut plan = Plan { retries: 1, output: path.parent().unwrap().to_owned(), ..Plan::default() };
    plan.profile.mode = ProfileMode::Off;
    let mut journal =
        Journal::with_limits(path, Arc::new(|problem| panic!("{problem:?}")), WHOLE, FULL).unwrap();
    let (mut machine, clock, mut count) = (Machine::new(), ManualClock::new(), 0);
    let mut give = |kind: EventKind, pause: u64| {
        clock.advance(Duration::from_millis(pause));
        let at = clock.now();
        let actions = machine.step(at, &kind);
        let attempt = machine.attempt();
        journal.append(at, attempt, kind).unwrap();
        count += 1;
        if let Some(thinned) = journal.thinned() {
            journal.append(at, attempt, thinned).unwrap();
            count += 1;
        }
        for action in actions {
            if let Action::Conclude(kind) = action {
                journal.append(at, attempt, kind).unwrap();
                count += 1;
            }
        }
    };
    give(
        EventKind::RunStarted {
            run_id: "r".into(),
            guard_version: "0".into(),
            guard: proc(1),
            plan: Box::new(plan),
        },
        0,
    );
    for attempt in 1..=2 {
        let begin = [
            EventKind::PreflightFinished { checks: vec![], server: ServerFacts::default() },
            EventKind::ServerSpawned { proc: proc(10), argv: vec!["vllm".into()] },
            EventKind::ServerReady { model: "m".into(), max_model_len: 1024 },
            EventKind::WarmupFinished { requests: 3, slowest: Duration::from_secs(1) },
            EventKind::LoadStarted { planned: 9, seed: 1 },
        ];
        begin.into_iter().for_each(|kind| give(kind, 10));
        for second in 0..seconds {
            for kind in samples(second) {
                give(kind, 333);
            }
        }
        let finished = |is_complete| EventKind::LoadFinished {
            summary: Box::new(BenchSummary {
                is_complete,
                progress: LoadProgress { completed: 9, ..LoadProgress::default() },
                ..BenchSummary::default()
            }),
        };
        let exited = EventKind::ProcessExited {
            proc: proc(10),
            comm: "python".into(),
            how: ExitHow::Signal { signal: 9, core: false },
            main: true,
        };
        if attempt == 1 {
            give(exited, 10);
            give(EventKind::EvidenceSaved { items: vec![] }, 10);
            give(finished(false), 10);
        } else {
            give(finished(true), 10);
            give(exited, 10);
        }
        give(EventKind::TreeGone { unkillable: vec![] }, 10);
        give(EventKind::Drained { leftovers: vec![], removed: vec![] }, 10);
        give(EventKind::TracesCollected { traces: vec![], problems: vec![], saved: vec![] }, 10);
        if attempt == 1 {
            give(EventKind::BackoffDrawn { delay: Duration::from_secs(1) }, 10);
            give(EventKind::TimerFired { timer: varcas_guard::event::Timer::Backoff }, 1000);
        }
    }
    assert!(journal.close());
    count
}

fn ask(args: &[&str], run: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_varcas-guard")).args(args).arg(run).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn milestones(events: &[Event]) -> Vec<&'static str> {
    let name = |event: &Event| match &event.kind {
        EventKind::AttemptStarted {} => Some("started"),
        EventKind::AttemptEnding(_) => Some("ending"),
        EventKind::AttemptEnded(_) => Some("ended"),
        EventKind::Judged { .. } => Some("judged"),
        EventKind::Decided { .. } => Some("decided"),
        EventKind::JournalThinned { .. } => Some("thinned"),
        EventKind::RunFinished { .. } => Some("finished"),
        _ => None,
    };
    events.iter().filter_map(name).collect()
}

#[test]
fn a_run_ten_times_as_long_does_not_take_more_than_the_limit_and_a_word_for_each_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("long");
    std::fs::create_dir(&run).unwrap();
    let path = run.join("events.jsonl");
    let given = write(&path, 10_000);
    let size = std::fs::metadata(&path).unwrap().len();
    let read = journal::read(&path).unwrap();
    assert_eq!(read.unread, []);
    let beyond: u64 = read
        .events
        .iter()
        .filter(|event| event.kind.is_milestone())
        .map(|event| serde_json::to_vec(event).unwrap().len() as u64 + 1)
        .sum();
    assert!(size < FULL + beyond, "{size} bytes, of which {beyond} of milestones");
    assert!(given > 10 * read.events.len(), "{given} events, {} written", read.events.len());
    let story =
        ["started", "thinned", "thinned", "ending", "ended", "judged", "decided", "started", "ending"];
    assert_eq!(milestones(&read.events), [&story[..], &["ended", "decided", "finished"]].concat());

    // And everybody can read it.
    assert!(ask(&["replay"], &run).contains("is not compared"));
    let report: serde_json::Value = serde_json::from_str(&ask(&["report", "--json"], &run)).unwrap();
    assert_eq!(
        (&report["outcome"], report["attempts"].as_array().map(Vec::len)),
        (&"success".into(), Some(2))
    );
    assert!(ask(&["report", "--format", "text"], &run).contains("success"));
    assert!(ask(&["runs"], &run).contains("success"));
    assert!(ask(&["status"], &run).contains("success"));
}

#[test]
fn a_run_that_stays_below_the_limit_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let given = write(&path, 60);
    let read = journal::read(&path).unwrap();
    assert_eq!(read.events.len(), given);
    assert!(read.events.iter().all(|event| !matches!(event.kind, EventKind::JournalThinned { .. })));
    assert!(ask(&["replay"], folder.path()).contains("the same states, decisions and report"));
}
