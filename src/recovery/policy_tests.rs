use super::*;
use crate::event::{Confidence, Quote};

fn verdict(cause: &str, fingerprint: &str) -> Verdict {
    let info = crate::recovery::causes::of(cause);
    Verdict {
        cause: cause.to_owned(),
        outcome: info.outcome,
        confidence: Confidence::Certain,
        explanation: String::new(),
        advice: info.advice.to_owned(),
        decisive: None::<Quote>,
        consequences: vec![],
        supports: vec![],
        contradicts: vec![],
        ruled_out: vec![],
        missing: vec![],
        references: vec![],
        retry: info.retry,
        fingerprint: fingerprint.to_owned(),
    }
}

fn after(plan: &Plan, verdicts: &[Verdict]) -> Decision {
    decide(Circumstances {
        plan,
        in_force: &[],
        facts: &ServerFacts::default(),
        verdicts,
        left: None,
        startup: None,
    })
}

fn exit(decision: &Decision) -> Option<ExitCode> {
    match decision {
        Decision::Stop { exit, .. } => Some(*exit),
        Decision::Retry { .. } => None,
    }
}

#[test]
fn what_no_retry_can_cure_stops_at_once_with_93() {
    let hopeless = crate::recovery::causes::ALL.iter().filter(|cause| {
        cause.retry == Retry::No && cause.outcome != Outcome::Success && cause.name != "cuda-device-assert"
    });
    let mut count = 0;
    for cause in hopeless {
        let decision = after(&Plan::default(), &[verdict(cause.name, "x")]);
        assert_eq!(exit(&decision), Some(ExitCode::Hopeless), "{}", cause.name);
        count += 1;
    }
    assert!(count >= 8);
}

#[test]
fn an_index_out_of_range_gets_one_more_try_because_the_words_are_others() {
    let one = verdict("cuda-device-assert", "x");
    assert_eq!(exit(&after(&Plan::default(), std::slice::from_ref(&one))), None);
    assert_eq!(exit(&after(&Plan::default(), &[one.clone(), one])), Some(ExitCode::Hopeless));
}

#[test]
fn a_killed_server_is_tried_again_as_it_was() {
    let plan = Plan::default();
    let Decision::Retry { changes, plan: next, .. } = after(&plan, &[verdict("killed-externally", "x")])
    else {
        panic!("no retry");
    };
    assert!(changes.is_empty());
    assert_eq!(*next, plan);
}

#[test]
fn the_same_failure_three_times_stops_early_and_different_ones_do_not() {
    let plan = Plan { retries: 10, ..Plan::default() };
    let same = vec![verdict("segfault", "x"); 3];
    assert_eq!(exit(&after(&plan, &same)), Some(ExitCode::AttemptsFailed));
    let different: Vec<Verdict> = (0..3).map(|n| verdict("segfault", &n.to_string())).collect();
    assert_eq!(exit(&after(&plan, &different)), None);
}

#[test]
fn the_retries_are_a_budget() {
    let plan = Plan { retries: 0, ..Plan::default() };
    let words = |plan: &Plan, verdicts: &[Verdict]| match after(plan, verdicts) {
        Decision::Stop { exit: ExitCode::AttemptsFailed, why } => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(words(&plan, &[verdict("segfault", "x")]), "the only attempt failed");
    let plan = Plan { retries: 1, ..plan };
    let two = [verdict("segfault", "x"), verdict("segfault", "y")];
    assert_eq!(words(&plan, &two), "all 2 attempts failed");
}

#[test]
fn an_attempt_that_cannot_be_finished_in_time_is_not_begun() {
    let plan = Plan::default();
    let verdicts = [verdict("killed-externally", "x")];
    let with = |left: u64| {
        decide(Circumstances {
            plan: &plan,
            in_force: &[],
            facts: &ServerFacts::default(),
            verdicts: &verdicts,
            left: Some(Duration::from_secs(left)),
            startup: Some(Duration::from_secs(60)),
        })
    };
    // 120 s of load and 60 s until ready.
    assert_eq!(exit(&with(179)), Some(ExitCode::AttemptsFailed));
    assert_eq!(exit(&with(181)), None);
}

#[test]
fn without_mitigation_nothing_is_changed() {
    let mut plan = Plan::default();
    let Decision::Retry { changes, .. } = after(&plan, &[verdict("cuda-oom", "x")]) else {
        panic!("no retry")
    };
    assert_eq!(changes.len(), 1);
    plan.policy.get_or_insert_default().mitigate = false;
    let Decision::Retry { changes, .. } = after(&plan, &[verdict("cuda-oom", "x")]) else {
        panic!("no retry")
    };
    assert!(changes.is_empty());
}

#[test]
fn what_was_changed_before_stays_and_goes_further() {
    let mut plan = Plan::default();
    let mut in_force = Vec::new();
    for wanted in ["0.80", "0.70"] {
        let decision = decide(Circumstances {
            plan: &plan,
            in_force: &in_force,
            facts: &ServerFacts::default(),
            verdicts: &[verdict("cuda-oom", wanted)],
            left: None,
            startup: None,
        });
        let Decision::Retry { changes, plan: next, .. } = decision else { panic!("no retry") };
        assert_eq!((changes[0].from.as_deref(), changes[0].to.as_deref()), (None, Some(wanted)));
        (plan, in_force) = (*next, changes);
    }
    assert_eq!(plan.server.extra, ["--gpu-memory-utilization", "0.70"]);
}

#[test]
fn a_preflight_that_refuses_a_later_attempt_is_not_the_end() {
    let mut refused = verdict("model-not-found", "x");
    refused.outcome = Outcome::Refused;
    assert_eq!(exit(&after(&Plan::default(), &[refused])), None);
}
