//! guard.toml: any text gives a plan or mistakes with lines that exist; a plan survives the journal to the last digit, and the
//! machine comes to an end with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::time::Duration;
use varcas_guard::config::{self, Given, Plan};
use varcas_guard::event::{BenchSummary, EventKind, LoadProgress, ProcId, ServerFacts};
use varcas_guard::supervisor::machine::Machine;
use varcas_guard::time::Stamp;

fn run(plan: &Plan) {
    let mut machine = Machine::new();
    let mut now = Duration::from_secs(1);
    let give = |machine: &mut Machine, kind: EventKind, now: Duration| {
        let _ = machine.step(Stamp { mono: now, wall: jiff::Timestamp::UNIX_EPOCH }, &kind);
    };
    let proc = ProcId { pid: 7, start: 7 };
    let summary = BenchSummary {
        is_complete: true,
        progress: LoadProgress { completed: 9, ..LoadProgress::default() },
        ..BenchSummary::default()
    };
    let started = EventKind::RunStarted {
        run_id: String::new(),
        guard_version: String::new(),
        guard: proc,
        plan: Box::new(plan.clone()),
    };
    let script = [
        started,
        EventKind::PreflightFinished { checks: vec![], server: ServerFacts::default() },
        EventKind::ServerSpawned { proc, argv: vec![] },
        EventKind::ServerReady { model: String::new(), max_model_len: 2048 },
        EventKind::WarmupFinished { requests: 3, slowest: Duration::from_secs(1) },
        EventKind::LoadFinished { summary: Box::new(summary) },
    ];
    for kind in script {
        give(&mut machine, kind, now);
    }
    for _ in 0..40 {
        let Some((due, timer)) = machine.next_deadline() else { break };
        now = now.max(due);
        give(&mut machine, EventKind::TimerFired { timer }, now);
        give(&mut machine, EventKind::SignalReceived { signal: 2 }, now);
        give(&mut machine, EventKind::BackoffDrawn { delay: plan.backoff.max }, now);
    }
    assert!(machine.is_done(), "stuck in {}", machine.phase());
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let given = Given { file: Some(("guard.toml".to_owned(), text.to_owned())), ..Given::default() };
    match config::plan(Plan::default(), &given) {
        Ok(plan) => {
            let json = serde_json::to_string(&plan).expect("a plan can be written");
            let again: Plan = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
            assert_eq!(again, plan, "{json}");
            run(&plan);
        }
        Err(failure) => {
            assert!(!failure.problems.is_empty());
            let lines = text.matches('\n').count() + 1;
            for problem in &failure.problems {
                if let Some(rest) = problem.strip_prefix("guard.toml:") {
                    let (line, what) = rest.split_once(':').expect("line and problem");
                    assert!((1..=lines).contains(&line.parse().expect("a line")), "{problem}");
                    assert!(!what.trim().is_empty());
                }
            }
        }
    }
});
