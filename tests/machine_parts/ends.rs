//! How attempts end, one by one: each has its outcome, its order of actions and its words.

use super::*;

fn reason(run: &Driven) -> String {
    let ended = run.all.iter().rev().find_map(|action| match action {
        Action::Conclude(EventKind::AttemptEnded(ending) | EventKind::AttemptEnding(ending)) => {
            Some(ending.reason.clone())
        }
        _ => None,
    });
    ended.expect("an ending")
}

fn flushing() -> Driven {
    let mut run = Driven::measuring(plan());
    run.give(finished(100, 0, true));
    assert_eq!(run.machine.phase(), Phase::Flushing);
    run
}

fn is_saving(run: &Driven) -> bool {
    run.last.iter().any(|action| matches!(action, Action::SaveEvidence { .. }))
}

#[test]
fn a_server_that_cannot_be_started_is_cleaned_up_at_once() {
    let mut run = Driven::new(plan());
    run.give(passed()).give(EventKind::SpawnFailed { error: "no such file".into() });
    assert_eq!(run.ending(), (Outcome::StartupFailure, Phase::Loading));
    assert!(run.did(&Action::KillAll) && !is_saving(&run), "there is nothing to save");
    assert_eq!(reason(&run), "the server could not be started: no such file");
}

#[test]
fn a_failed_warm_up_saves_evidence_and_ends_the_attempt() {
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), ready(), EventKind::WarmupFailed { error: "400".into() }]);
    assert_eq!(run.ending(), (Outcome::Degraded, Phase::WarmUp));
    assert!(is_saving(&run) && run.did(&Action::KillAll) && !run.did(&Action::StopLoad));
}

#[test]
fn a_benchmark_that_cannot_run_still_has_its_windows_closed() {
    let mut run = Driven::measuring(plan());
    run.give(EventKind::LoadFailed { error: "no prompt".into() });
    assert_eq!(run.ending(), (Outcome::Degraded, Phase::Measuring));
    assert!(run.did(&Action::CloseWindows));
    assert_eq!(reason(&run), "the benchmark could not run: no prompt");
}

#[test]
fn a_driver_that_does_not_come_back_is_our_own_fault() {
    let mut run = Driven::measuring(plan());
    assert_eq!(run.wait(), Timer::Phase);
    assert_eq!(run.ending(), (Outcome::GuardFault, Phase::Measuring));
    assert!(is_saving(&run) && run.did(&Action::StopLoad));
}

#[test]
fn each_phase_has_its_budget_and_its_words_for_it() {
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned()]);
    run.wait();
    assert_eq!(run.ending(), (Outcome::StartupFailure, Phase::Loading));
    assert_eq!(reason(&run), "the server was not ready within 30 min");

    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), ready()]);
    run.wait();
    assert_eq!(run.ending(), (Outcome::Hang, Phase::WarmUp));

    let mut run = flushing();
    run.wait();
    assert!(run.did(&Action::Terminate));
    run.wait();
    assert!(run.did(&Action::KillAll), "SIGTERM was not enough");
    run.wait();
    assert!(run.did(&Action::CollectTraces), "whatever is still there");
    run.wait();
    // No trace was brought home.
    assert!(run.did(&Action::DrawBackoff));
    assert_eq!(run.anomalies(), 0);
}

#[test]
fn what_happens_while_the_windows_are_closed_is_told_and_takes_nothing_away() {
    let mut run = flushing();
    run.give(hang::line(Gravity::Fatal, "cuda-oom", 9));
    assert!(is_saving(&run) && run.did(&Action::KillAll));
    assert!(!run.did(&Action::StopLoad), "the load is over");
    run.clean_up(1);
    let told = "afterwards, while the windows were being closed: log line 9: what cuda-oom looks like";
    assert!(reason(&run).ends_with(told), "{}", reason(&run));
    assert_eq!(run.exit_code(), Some(0));

    let mut run = flushing();
    let stood = run.stand(300, 'T', |_| None);
    assert!(stood < 300 && run.did(&Action::KillAll), "{:?}", run.suspicions());
    run.clean_up(1);
    assert!(reason(&run).contains("afterwards, while the windows were being closed: nothing has moved for"));
    assert_eq!(run.exit_code(), Some(0));

    let mut run = flushing();
    run.give(exited("cc1plus", false));
    assert_eq!(run.machine.phase(), Phase::Flushing, "a helper may end");
    run.give(exited("python", true));
    assert_eq!(run.machine.phase(), Phase::Draining);
}

#[test]
fn a_signal_before_anything_is_measured_stops_the_server_in_good_order() {
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), EventKind::SignalReceived { signal: 15 }]);
    assert!(run.did(&Action::Terminate) && !run.did(&Action::CloseWindows));
    assert_eq!(run.ending(), (Outcome::Stopped, Phase::Loading));
    assert_eq!(reason(&run), "stopped by SIGTERM during loading");

    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), ready(), EventKind::SignalReceived { signal: 2 }]);
    assert!(run.did(&Action::CloseWindows), "the warm-up may have been recorded");
    run.give_all([EventKind::WindowsClosed { workers: 1 }, exited("python", true)]).clean_up(0);
    assert_eq!(run.exit_code(), Some(130));
}

#[test]
fn what_dies_after_a_signal_does_not_become_the_reason() {
    let mut run = Driven::measuring(plan());
    run.give(EventKind::SignalReceived { signal: 2 }).give(exited("VLLM::EngineCor", false));
    assert_eq!(run.ending(), (Outcome::Stopped, Phase::Measuring));
    assert!(is_saving(&run) && run.did(&Action::StopLoad));
}

#[test]
fn a_timer_that_comes_early_or_for_something_else_changes_nothing() {
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned()]);
    for timer in [Timer::Phase, Timer::Backoff, Timer::Run] {
        run.give(EventKind::TimerFired { timer });
        assert_eq!(run.machine.phase(), Phase::Loading);
        let told = EventKind::Anomaly { state: "loading".into(), input: "TimerFired".into() };
        assert_eq!(run.last, [Action::Conclude(told)]);
    }
    run.give(finished(1, 0, true));
    let told = EventKind::Anomaly { state: "loading".into(), input: "LoadFinished".into() };
    assert_eq!(run.last, [Action::Conclude(told)]);
}

#[test]
fn when_two_deadlines_come_together_the_one_of_the_phase_counts() {
    let mut plan = plan();
    // `RunStarted` comes 10 ms after the clock's zero, the preflight's answer another 10 ms later.
    plan.budgets.run = Some(plan.budgets.startup + Duration::from_millis(10));
    let mut run = Driven::new(plan);
    run.give_only(passed());
    assert_eq!(run.machine.next_deadline().map(|(_, timer)| timer), Some(Timer::Phase));
}

#[test]
fn progress_samples_and_late_answers_are_no_anomalies() {
    let mut run = Driven::measuring(plan());
    run.give_all([EventKind::LoadStarted { planned: 1, seed: 1 }, progress(1, 1)]);
    run.give(EventKind::KeeperStarted { proc: proc(9) });
    run.give(EventKind::EngineSampled(Reading::Unavailable { why: "x".into() }));
    run.give(EventKind::Trouble { what: "x".into(), error: "y".into() });
    run.give(exited("VLLM::EngineCor", false));
    run.give_all([
        EventKind::LoadStarted { planned: 1, seed: 1 },
        progress(1, 1),
        ready(),
        warm(),
        spawned(),
    ]);
    run.give_all([tree_gone(), finished(1, 1, false), drained(), traces(1), traces(1)]);
    run.give_all([tree_gone(), drained(), finished(1, 1, true), EventKind::EvidenceSaved { items: vec![] }]);
    assert_eq!(run.anomalies(), 0, "{:?}", run.all);
}

#[test]
fn nothing_is_asked_of_a_server_that_still_loads() {
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned()]);
    run.stand(400, 'S', |_| None);
    assert!(
        run.suspicions().iter().any(|(step, _)| *step >= SuspicionStep::Suspect),
        "{:?}",
        run.suspicions()
    );
    assert!(!run.all.contains(&Action::Probe));
}

#[test]
fn a_stolen_port_ends_the_attempt_with_its_holder() {
    let mut run = Driven::measuring(plan());
    run.give(EventKind::PortStolen { holder: "pid 7 (python3)".into() });
    assert_eq!(run.ending(), (Outcome::Degraded, Phase::Measuring));
    assert_eq!(reason(&run), "port 8000 is answered by somebody else: pid 7 (python3)");
    assert!(run.did(&Action::KillAll) && run.did(&Action::StopLoad));
}

#[test]
fn evidence_of_a_crash_has_three_seconds_and_one_to_spare() {
    let mut run = Driven::measuring(plan());
    run.give_only(exited("VLLM::EngineCor", false));
    let due = run.machine.next_deadline().expect("a budget").0;
    assert_eq!(due - run.clock.now().mono, Duration::from_secs(4));
    let budget = run.last.iter().find_map(|action| match action {
        Action::Conclude(EventKind::PhaseEntered { phase: Phase::Draining, budget }) => *budget,
        _ => None,
    });
    assert_eq!(budget, Some(Duration::from_secs(64)), "with the time for the clean-up");
}

fn concluded(run: &Driven, what: fn(&EventKind) -> bool) -> usize {
    run.all.iter().filter(|action| matches!(action, Action::Conclude(kind) if what(kind))).count()
}

#[test]
fn only_failures_are_judged_and_only_under_a_policy() {
    let judged = |run: &Driven| concluded(run, |kind| matches!(kind, EventKind::Judged { .. }));
    let mut run = flushing();
    run.give_all([EventKind::WindowsClosed { workers: 1 }, exited("python", true)]).clean_up(1);
    assert_eq!((run.exit_code(), judged(&run)), (Some(0), 0));

    let mut run = Driven::measuring(plan());
    run.give_all([EventKind::SignalReceived { signal: 2 }, finished(1, 0, false)]);
    run.give_all([EventKind::WindowsClosed { workers: 1 }, exited("python", true)]).clean_up(1);
    assert_eq!((run.exit_code(), judged(&run)), (Some(130), 0));

    let fail = |run: &mut Driven| {
        run.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
    };
    let mut run = Driven::new(plan());
    fail(&mut run);
    assert_eq!(judged(&run), 1);

    // A journal of a version without verdicts.
    let mut run = Driven::new(Plan { retries: 1, policy: None, ..plan() });
    fail(&mut run);
    assert!(run.did(&Action::DrawBackoff));
    run.give(EventKind::BackoffDrawn { delay: Duration::ZERO }).wait();
    fail(&mut run);
    assert_eq!((run.exit_code(), judged(&run)), (Some(75), 0));
    let why = run.all.iter().filter_map(|action| match action {
        Action::Conclude(EventKind::Decided { why, .. }) => Some(why.as_str()),
        _ => None,
    });
    assert_eq!(why.collect::<Vec<_>>(), ["attempt 1 of 2 failed; trying again", "all 2 attempts failed"]);
}

#[test]
fn what_is_changed_for_the_next_attempt_is_told_and_used_and_nothing_is_told_if_nothing_is() {
    let mitigated = |run: &Driven| concluded(run, |kind| matches!(kind, EventKind::Mitigated { .. }));
    let uses = |run: &Driven| run.all.iter().any(|action| matches!(action, Action::UsePlan(_)));
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
    assert_eq!((mitigated(&run), uses(&run)), (0, false));

    let mut run = Driven::measuring(plan());
    run.give(hang::line(Gravity::Fatal, "cuda-oom", 9)).give(finished(1, 1, false)).clean_up(0);
    assert_eq!((mitigated(&run), uses(&run)), (1, true));
}

#[test]
fn a_refused_preflight_of_a_later_attempt_is_tried_again_and_never_exits_with_69() {
    let refused = || {
        let check =
            Check { check: "port".into(), severity: Severity::Refuse, saw: "held".into(), hint: None };
        EventKind::PreflightFinished { checks: vec![check], server: ServerFacts::default() }
    };
    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
    for _ in 0..2 {
        assert!(run.did(&Action::DrawBackoff));
        run.give(EventKind::BackoffDrawn { delay: Duration::ZERO }).wait();
        run.give(refused());
    }
    assert_eq!(run.exit_code(), Some(75));
}

fn lost_folder() -> EventKind {
    EventKind::StorageLost { error: "gone".into() }
}

#[test]
fn a_lost_run_folder_ends_a_living_server_at_once_and_the_run_with_it() {
    let ways: [(Phase, &[EventKind]); 3] = [
        (Phase::Loading, &[passed(), spawned()]),
        (Phase::WarmUp, &[passed(), spawned(), ready()]),
        (Phase::Measuring, &[passed(), spawned(), ready(), warm()]),
    ];
    for (phase, way) in ways {
        let mut run = Driven::new(plan());
        run.give_all(way.iter().cloned()).give(lost_folder());
        assert_eq!(run.ending(), (Outcome::Stopped, phase));
        assert_eq!(reason(&run), format!("the run folder was lost during {phase}: gone"));
        assert!(run.did(&Action::KillAll) && !is_saving(&run), "there is no place for evidence");
        assert_eq!(run.did(&Action::StopLoad), phase == Phase::Measuring);
        run.give_all([finished(1, 0, false)]).clean_up(0);
        assert_eq!((run.exit_code(), run.anomalies()), (Some(75), 0), "{phase}");
    }
}

#[test]
fn a_run_folder_that_is_lost_while_no_server_lives_ends_the_run() {
    let mut run = Driven::new(plan());
    run.give(lost_folder());
    assert_eq!((run.exit_code(), run.machine.is_done()), (Some(75), true));
    assert_eq!(reason(&run), "the run folder was lost during preflight: gone");

    let mut run = Driven::new(plan());
    run.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
    assert!(run.did(&Action::DrawBackoff));
    let mut waiting = Driven::new(plan());
    waiting.give_all([passed(), spawned(), exited("python", true)]).clean_up(0);
    waiting.give(EventKind::BackoffDrawn { delay: Duration::from_secs(9) });
    for mut run in [run, waiting] {
        run.give(lost_folder());
        assert_eq!((run.exit_code(), run.machine.is_done()), (Some(75), true));
    }
}

#[test]
fn a_run_folder_that_is_lost_after_the_benchmark_takes_its_result_along() {
    let mut stopping = flushing();
    stopping.give(EventKind::WindowsClosed { workers: 1 });
    assert_eq!(stopping.machine.phase(), Phase::Stopping);
    for mut run in [flushing(), stopping] {
        run.give(lost_folder());
        assert!(run.did(&Action::KillAll) && !is_saving(&run));
        run.clean_up(1);
        assert!(reason(&run).contains("afterwards, the run folder was lost: gone"), "{}", reason(&run));
        assert_eq!(run.exit_code(), Some(75));
    }
}
