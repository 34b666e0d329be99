//! A run whose folder is lost has no place for results: only the server must still go.

use super::*;
use varcas_guard::cli::replay::replay;
use varcas_guard::event::{Event, JOURNAL_VERSION};

fn lost() -> EventKind {
    EventKind::StorageLost { error: "it was removed".into() }
}

/// Nothing is asked for that would only serve what cannot be kept.
fn assert_only_the_kill(run: &Driven) {
    assert!(run.did(&Action::KillAll), "{:?}", run.last);
    let vain = |action: &Action| {
        matches!(
            action,
            Action::SaveEvidence { .. } | Action::CloseWindows | Action::Terminate | Action::Preflight
        )
    };
    assert!(!run.last.iter().any(vain), "{:?}", run.last);
}

fn reason(run: &Driven) -> String {
    let finished = run.all.iter().find_map(|action| match action {
        Action::Conclude(EventKind::RunFinished { reason, .. }) => Some(reason.clone()),
        _ => None,
    });
    finished.expect("an end")
}

#[test]
fn a_lost_folder_kills_the_server_at_once_in_every_phase_and_no_attempt_follows() {
    let reach: [(&[EventKind], Phase); 3] = [
        (&[passed(), spawned()], Phase::Loading),
        (&[passed(), spawned(), ready()], Phase::WarmUp),
        (&[passed(), spawned(), ready(), warm()], Phase::Measuring),
    ];
    for (kinds, phase) in reach {
        let mut run = Driven::new(plan());
        run.give_all(kinds.to_vec());
        assert_eq!(run.machine.phase(), phase);
        run.give_only(lost());
        assert_only_the_kill(&run);
        assert_eq!(run.did(&Action::StopLoad), phase == Phase::Measuring, "whose connections close first");
        assert_eq!(run.ending(), (Outcome::Stopped, phase));
        if phase == Phase::Measuring {
            run.give_only(finished(3, 0, false));
        }
        run.clean_up(0);
        assert_eq!(run.exit_code(), Some(75));
        assert_eq!(reason(&run), format!("the run folder was lost during {phase}: it was removed"));
        assert_eq!((run.machine.attempt(), run.anomalies()), (1, 0));
    }
}

#[test]
fn a_folder_that_is_lost_after_the_benchmark_takes_the_success_away() {
    for terminating in [false, true] {
        let mut run = Driven::measuring(plan());
        run.give(finished(100, 0, true));
        if terminating {
            run.give(EventKind::WindowsClosed { workers: 1 });
            assert_eq!(run.machine.phase(), Phase::Stopping);
        }
        run.give_only(lost());
        assert_only_the_kill(&run);
        run.clean_up(2);
        assert_eq!(run.exit_code(), Some(75), "what was measured cannot be kept");
        assert!(
            reason(&run).ends_with("afterwards, the run folder was lost: it was removed"),
            "{}",
            reason(&run)
        );
    }
}

#[test]
fn a_run_that_was_stopped_stays_stopped_when_its_folder_is_lost_afterwards() {
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), EventKind::SignalReceived { signal: 2 }]);
    assert_eq!(run.machine.phase(), Phase::Stopping);
    run.give_only(lost());
    assert_only_the_kill(&run);
    run.clean_up(0);
    assert_eq!((run.ending(), run.exit_code()), ((Outcome::Stopped, Phase::Loading), Some(130)));
}

#[test]
fn a_kill_does_not_wait_for_evidence_that_cannot_be_kept() {
    let mut run = Driven::measuring(plan());
    run.give_only(exited("VLLM::EngineCor", false));
    assert!(!run.did(&Action::KillAll), "the evidence is being saved");
    run.give_only(lost());
    assert_only_the_kill(&run);
    assert_eq!(run.ending(), (Outcome::Crash, Phase::Measuring), "the first cause stays");
    run.give_only(EventKind::EvidenceSaved { items: vec![] });
    assert!(run.last.is_empty(), "a late answer changes nothing: {:?}", run.last);
    run.give_only(finished(3, 0, false));
    run.clean_up(0);
    assert_eq!((run.exit_code(), run.machine.attempt()), (Some(75), 1), "no other attempt");
}

#[test]
fn nothing_is_begun_in_a_lost_folder() {
    let mut run = Driven::new(plan());
    run.give_only(lost());
    assert_eq!((run.exit_code(), run.machine.is_done()), (Some(75), true));
    assert!(!run.all.contains(&Action::StartServer));

    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
    run.give_only(EventKind::BackoffDrawn { delay: Duration::from_secs(60) });
    run.give_only(lost());
    assert_eq!((run.exit_code(), run.machine.attempt()), (Some(75), 1));
}

#[test]
fn a_loss_that_is_told_twice_or_after_the_end_changes_nothing() {
    let mut run = Driven::measuring(plan());
    run.give_only(lost());
    run.give_only(lost());
    assert!(run.last.is_empty(), "{:?}", run.last);
    run.give_only(finished(3, 0, false));
    run.clean_up(0);
    run.give_only(lost());
    assert!(run.last.is_empty() && run.machine.is_done());
    // And whoever was stopping it already keeps the word.
    let mut run = Driven::measuring(plan());
    run.give_only(EventKind::SignalReceived { signal: 15 });
    run.give_only(lost());
    assert_only_the_kill(&run);
    run.give_only(finished(3, 0, false));
    run.clean_up(0);
    assert_eq!(run.exit_code(), Some(143));
}

#[test]
fn a_replay_of_a_run_whose_folder_was_lost_concludes_the_same() {
    let facts = [
        started(plan()),
        passed(),
        spawned(),
        ready(),
        warm(),
        EventKind::LoadStarted { planned: 9, seed: 1 },
        progress(3, 2),
        exited("VLLM::EngineCor", false),
        lost(),
        EventKind::EvidenceSaved { items: vec![] },
        finished(3, 2, false),
        tree_gone(),
        drained(),
        traces(0),
    ];
    let (mut machine, clock, mut journal) = (Machine::new(), ManualClock::new(), Vec::new());
    for fact in facts {
        clock.advance(Duration::from_millis(10));
        let at = clock.now();
        let actions = machine.step(at, &fact);
        let concluded = actions.into_iter().filter_map(|action| match action {
            Action::Conclude(kind) => Some(kind),
            _ => None,
        });
        for kind in std::iter::once(fact).chain(concluded) {
            journal.push(Event {
                v: JOURNAL_VERSION,
                seq: journal.len() as u64,
                at,
                attempt: machine.attempt(),
                kind,
            });
        }
    }
    let read: Vec<Event> = journal
        .iter()
        .map(|event| serde_json::from_str(&serde_json::to_string(event).unwrap()).unwrap())
        .collect();
    assert!(matches!(read.last().map(|e| &e.kind), Some(EventKind::RunFinished { exit_code: 75, .. })));
    let kinds = |events: &[Event]| events.iter().map(|event| event.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&replay(&read)), kinds(&read));
}
