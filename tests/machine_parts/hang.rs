//! What the senses say and what the machine makes of it.

use super::*;

#[test]
fn while_the_engine_counts_a_silent_client_is_no_hang() {
    let mut run = Driven::measuring(plan());
    run.give(progress(0, 4));
    // The client sees nothing, but the engine still counts: a long prefill.
    let stood = run.stand(230, 'S', |second| {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let sample = EngineSample { prompt_tokens: second as f64, ..EngineSample::default() };
        Some(EventKind::EngineSampled(Reading::Value(sample)))
    });
    assert_eq!(stood, 230);
    assert!(!run.suspicions().iter().any(|(step, _)| *step == SuspicionStep::Act), "{:?}", run.suspicions());
}

/// Frozen counters, an open request.
fn frozen(_: u64) -> Option<EventKind> {
    Some(EventKind::EngineSampled(Reading::Value(EngineSample { running: 4.0, ..EngineSample::default() })))
}

#[test]
fn nothing_moving_while_requests_are_open_is_a_hang_with_a_name() {
    for (state, kind) in [('T', HangKind::Stopped), ('S', HangKind::GpuIdleHostIdle)] {
        let mut run = Driven::measuring(plan());
        run.give(progress(5, 4));
        let stood = run.stand(100, state, frozen);
        assert!((58..=63).contains(&stood), "{kind}: after {stood} s {:?}", run.suspicions());
        assert_eq!(run.ending(), (Outcome::Hang, Phase::Measuring));
        assert!(run.did(&Action::StopLoad) && run.did(&Action::KillAll));
        // Frozen counters and the look of the processes are two sources at once.
        let steps = [SuspicionStep::Confirmed, SuspicionStep::Act];
        let mut told = run.suspicions();
        told.dedup();
        assert!(steps.iter().all(|step| told.contains(&(*step, kind))), "{told:?}");
        run.stand(5, state, |_| None);
        assert_eq!(
            run.suspicions().last(),
            Some(&(SuspicionStep::Act, kind)),
            "after the decision nothing is judged"
        );
    }
}

#[test]
fn where_the_counters_are_silent_a_request_for_one_token_is_the_second_source() {
    let mut run = Driven::measuring(plan());
    run.give(progress(5, 4));
    let failed = EventKind::Probed { error: Some("no answer".into()), took: Duration::from_secs(10) };
    let stood = run.stand(100, 'S', |second| (second == 20).then(|| failed.clone()));
    assert!(run.all.contains(&Action::Probe));
    assert!((58..=63).contains(&stood), "after {stood} s {:?}", run.suspicions());

    let mut run = Driven::measuring(plan());
    run.give(progress(5, 4));
    let answered = EventKind::Probed { error: None, took: Duration::from_secs(1) };
    let stood = run.stand(100, 'S', |second| (second % 20 == 0).then(|| answered.clone()));
    assert_eq!(stood, 100, "who answers lives");
}

#[test]
fn an_observer_records_a_hang_and_kills_nothing() {
    let mut plan = plan();
    plan.health.on_hang = OnHang::Observe;
    let mut run = Driven::measuring(plan);
    run.give(progress(5, 4));
    assert_eq!(run.stand(120, 'T', frozen), 120);
    assert!(run.suspicions().contains(&(SuspicionStep::Act, HangKind::Stopped)));
}

#[test]
fn idle_with_nothing_open_pauses_the_clock() {
    let mut run = Driven::measuring(plan());
    run.give(progress(5, 0));
    assert_eq!(run.stand(150, 'S', |_| None), 150);
    assert_eq!(run.suspicions(), []);
    run.give(progress(5, 1));
    let stood = run.stand(90, 'S', frozen);
    assert!((58..=63).contains(&stood), "the clock starts when a request is open: {stood} s");
}

#[test]
fn a_kill_waits_for_the_evidence_but_not_for_ever() {
    let mut run = Driven::measuring(plan());
    run.give_only(exited("VLLM::EngineCore", false));
    assert!(run.last.contains(&Action::SaveEvidence { within: Duration::from_secs(3) }));
    assert!(!run.did(&Action::KillAll));
    assert_eq!(run.machine.phase(), Phase::Draining);
    assert_eq!(run.wait(), Timer::Phase);
    assert!(run.did(&Action::StopLoad) && run.did(&Action::KillAll));

    let mut run = Driven::measuring(plan());
    run.give_only(exited("VLLM::EngineCore", false));
    run.give(EventKind::SignalReceived { signal: 2 });
    run.give(EventKind::SignalReceived { signal: 2 });
    assert!(run.did(&Action::KillAll), "whoever asks twice does not want evidence");
}

pub(super) fn line(gravity: Gravity, cause: &str, number: u64) -> EventKind {
    EventKind::Finding(Finding {
        rule: cause.into(),
        cause: cause.into(),
        gravity,
        line: number,
        offset: 0,
        text: format!("what {cause} looks like"),
        count: 1,
        outranks: vec![],
    })
}

#[test]
fn a_fatal_line_ends_the_attempt_at_once_and_the_ending_quotes_the_line_that_knows_why() {
    let mut run = Driven::measuring(plan());
    run.give(line(Gravity::Suspect, "kineto-thread-mismatch", 3));
    assert_eq!(run.machine.phase(), Phase::Measuring, "alone it kills nothing");
    run.give(line(Gravity::Consequence, "x", 4));
    assert_eq!(run.machine.phase(), Phase::Measuring);
    run.give(line(Gravity::Fatal, Finding::ENGINE_DEAD, 5));
    assert!(run.did(&Action::KillAll));
    assert_eq!(run.ending(), (Outcome::Crash, Phase::Measuring));
    run.give(line(Gravity::Fatal, "cuda-oom", 6)).give(finished(5, 4, false)).clean_up(0);
    let ended = run.all.iter().find_map(|action| match action {
        Action::Conclude(EventKind::AttemptEnded(ending)) => Some(ending.reason.clone()),
        _ => None,
    });
    let ended = ended.expect("an ending");
    assert!(ended.starts_with("log line 5: ") && ended.contains("log line 6: what cuda-oom"), "{ended}");
}
