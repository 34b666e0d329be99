//! What follows from a verdict: another attempt as it was, another one with something changed, or the end. Pure, so that a
//! replay decides the same.

use super::mitigation::catalogue::{self, Case};
use super::mitigation::{apply, merge};
use crate::config::Plan;
use crate::error::ExitCode;
use crate::event::{Mitigation, Outcome, Retry, ServerFacts, Verdict};
use crate::time::human;
use std::time::Duration;

/// What is known when an attempt has failed.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// With what the attempt ran; what was changed for it is in there.
    pub plan: &'a Plan,
    /// What was changed for it.
    pub in_force: &'a [Mitigation],
    /// What the server understands.
    pub facts: &'a ServerFacts,
    /// The verdicts of all attempts so far, the last one last; of the others the gist is enough.
    pub verdicts: &'a [Verdict],
    /// Time left until the deadline for the whole run, if there is one.
    pub left: Option<Duration>,
    /// How long the quickest attempt took until its server was ready.
    pub startup: Option<Duration>,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Another attempt.
    Retry {
        /// Every change that is in force in it, with its first value.
        changes: Vec<Mitigation>,
        /// With what it runs.
        plan: Box<Plan>,
        /// One sentence.
        why: String,
    },
    /// No further attempt.
    Stop {
        /// The exit code.
        exit: ExitCode,
        /// One sentence.
        why: String,
    },
}

/// Decides after a failed attempt.
pub fn decide(now: Circumstances<'_>) -> Decision {
    let failed = u32::try_from(now.verdicts.len()).unwrap_or(u32::MAX);
    let Some(last) = now.verdicts.last() else {
        return stop(ExitCode::AttemptsFailed, "nothing is known of the attempt".to_owned());
    };
    let of_cause = count(now.verdicts, |verdict| verdict.cause == last.cause);
    let same = count(now.verdicts, |verdict| verdict.fingerprint == last.fingerprint);
    // A preflight that refuses a later attempt may find the port or the memory free a moment later.
    let hopeless = last.retry == Retry::No
        && last.outcome != Outcome::Refused
        // The next attempt sends other words, so a request that indexed out of range does not come again by itself.
        && !(last.cause == "cuda-device-assert" && of_cause == 1);
    if hopeless {
        return stop(
            ExitCode::Hopeless,
            format!("{}: no further attempt can cure this. {}", last.cause, last.advice),
        );
    }
    if failed > now.plan.retries {
        let all = if failed == 1 { "the only attempt".to_owned() } else { format!("all {failed} attempts") };
        return stop(ExitCode::AttemptsFailed, format!("{all} failed"));
    }
    let policy = now.plan.policy.clone().unwrap_or_default();
    if same >= policy.same_failure {
        let why = format!("the same failure {same} times ({}): stopping early", last.cause);
        return stop(ExitCode::AttemptsFailed, why);
    }
    let needs = now.plan.load.duration.saturating_add(now.startup.unwrap_or_default());
    if let Some(left) = now.left.filter(|left| *left < needs) {
        let why = format!("{} are left, and an attempt needs at least {}", human(left), human(needs));
        return stop(ExitCode::AttemptsFailed, why);
    }
    let mut plan = now.plan.clone();
    let mut new = Vec::new();
    if policy.mitigate {
        let case = Case { verdict: last, plan: now.plan, facts: now.facts, times: of_cause };
        new = catalogue::propose(case);
        new.retain(|change| apply(&mut plan, change));
    }
    let how = match (new.is_empty(), same) {
        (false, _) => {
            let changes: Vec<&str> = new.iter().map(|change| change.id.as_str()).collect();
            format!("trying again with {}", changes.join(" and "))
        }
        (true, 1) => "trying again as it was".to_owned(),
        (true, _) => "trying again as it was, although it failed of the same before".to_owned(),
    };
    let why =
        format!("attempt {failed} of {} failed ({}); {how}", now.plan.retries.saturating_add(1), last.cause);
    Decision::Retry { changes: merge(now.in_force, &new), plan: Box::new(plan), why }
}

fn stop(exit: ExitCode, why: String) -> Decision {
    Decision::Stop { exit, why }
}

fn count(verdicts: &[Verdict], is: impl Fn(&Verdict) -> bool) -> u32 {
    u32::try_from(verdicts.iter().filter(|verdict| is(verdict)).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
