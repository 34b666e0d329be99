//! Scenarios made of the log rules: each fatal rule's example line is printed by a server that hangs at once, so that
//! nothing but the line can end the attempt. Several rules share a run, an attempt each; one that no retry can cure
//! comes last in its run.

use super::scenario::{Expect, Fault, Scenario};
use crate::event::{Finding, Gravity, Phase, Retry};
use crate::health::log_rules::{Rule, Rules};
use crate::recovery::causes;
use toml::{Spanned, Table, Value};

/// Attempts in a run.
const BATCH: usize = 4;

/// A cause that is not looked at.
pub(super) const ANY: &str = "*";

fn text(text: impl Into<String>) -> Spanned<String> {
    Spanned::new(0..0, text.into())
}

/// One scenario for every few fatal rules, those of the user among them.
pub(super) fn scenarios(rules: &Rules) -> Vec<Scenario> {
    let fatal = rules.rules().iter().filter(|rule| rule.gravity == Gravity::Fatal);
    let (hopeless, mut curable): (Vec<&Rule>, Vec<&Rule>) = fatal.partition(|rule| is_hopeless(rule));
    let mut batches = Vec::new();
    for last in hopeless {
        let rest = curable.split_off((BATCH - 1).min(curable.len()));
        let mut batch = std::mem::replace(&mut curable, rest);
        batch.push(last);
        batches.push(batch);
    }
    batches.extend(curable.chunks(BATCH).map(<[_]>::to_vec));
    batches.iter().enumerate().map(|(index, batch)| scenario(index + 1, batch)).collect()
}

/// Whether the policy stops at once, as it does for causes without a cure: but one gets a second chance, and a GPU that
/// reports a fault of its own gets none.
fn is_hopeless(rule: &Rule) -> bool {
    match rule.cause.as_str() {
        "cuda-device-assert" => false,
        "xid-gpu-lost" => rule.example.contains("Xid") || rule.example.contains("ECC"),
        cause => causes::of(cause).retry == Retry::No,
    }
}

fn scenario(number: usize, batch: &[&Rule]) -> Scenario {
    let ids: Vec<String> = batch.iter().map(|rule| rule.id.clone()).collect();
    let mut fault = Vec::new();
    for (attempt, rule) in (1..).zip(batch) {
        let loading = !rule.phases.contains(&Phase::Measuring);
        let (at, n) = if loading { ("loading", None) } else { ("step", Some(20)) };
        for what in ["say", "hang"] {
            fault.push(Fault {
                what: text(what),
                who: Some("engine".to_owned()),
                at: at.to_owned(),
                n,
                onward: false,
                attempts: Some(format!("{attempt}")),
                rule: (what == "say").then(|| rule.id.clone()),
                text: None,
            });
        }
    }
    let policy = [("mitigate", Value::from(false)), ("same-failure", Value::from(1000))];
    let policy: Table = policy.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let retries = i64::try_from(batch.len()).unwrap_or(i64::MAX) - 1;
    let guard = [("retries".to_owned(), Value::from(retries)), ("policy".to_owned(), Value::Table(policy))];
    let cause = |rule: &&Rule| {
        if rule.cause == Finding::ENGINE_DEAD { ANY.to_owned() } else { rule.cause.clone() }
    };
    let hopeless = batch.last().is_some_and(|rule| is_hopeless(rule));
    Scenario {
        name: text(format!("fatal-lines-{number}")),
        about: format!("the lines of the rules {} each end an attempt by themselves", ids.join(", ")),
        fault,
        sim: String::new(),
        server: super::scenario::server_arguments(),
        guard: guard.into_iter().collect(),
        patience: Some("60s".to_owned()),
        before: None,
        gpu: Vec::new(),
        clock: Vec::new(),
        expect: Expect {
            exit: Some(if hopeless { 93 } else { 75 }),
            attempts: Some(batch.len()),
            causes: Some(batch.iter().map(cause).collect()),
            rules: Some(ids),
            ..Expect::default()
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fatal_rule_is_in_one_scenario_with_its_line() {
        let rules = Rules::builtin();
        let scenarios = scenarios(&rules);
        let mut seen: Vec<&str> =
            scenarios.iter().flat_map(|one| &one.fault).filter_map(|fault| fault.rule.as_deref()).collect();
        seen.sort_unstable();
        let fatal = rules.rules().iter().filter(|rule| rule.gravity == Gravity::Fatal);
        let mut wanted: Vec<&str> = fatal.map(|rule| rule.id.as_str()).collect();
        wanted.sort_unstable();
        assert_eq!(seen, wanted);
        assert!(scenarios.iter().all(|one| one.fault.len() <= 2 * BATCH));
    }

    #[test]
    fn what_no_retry_can_cure_comes_last() {
        let rules = Rules::builtin();
        for scenario in scenarios(&rules) {
            let ids = scenario.expect.rules.unwrap();
            let of = |id: &String| rules.rules().iter().find(|rule| rule.id == *id).unwrap();
            let (last, others) = ids.split_last().unwrap();
            assert!(others.iter().all(|id| !is_hopeless(of(id))), "{ids:?}");
            assert_eq!(scenario.expect.exit, Some(if is_hopeless(of(last)) { 93 } else { 75 }));
        }
    }
}
