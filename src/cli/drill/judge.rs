//! What a run came to, by its journal, and whether that is what was expected.

use super::lines::ANY;
use super::scenario::Expect;
use crate::event::{Event, EventKind, Finding, Gravity, Leftover, Outcome, SuspicionStep};
use crate::workload::sim::{Mark, Marked};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

/// What came of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Seen {
    /// The guard's exit code.
    pub(super) exit: Option<i32>,
    /// The signal that ended it.
    pub(super) signal: Option<i32>,
    /// Attempts.
    pub(super) attempts: usize,
    /// The cause of each failed attempt.
    pub(super) causes: Vec<String>,
    /// As what the first standstill was acted upon.
    pub(super) hang: Option<String>,
    /// The first fatal rule of each attempt that had one.
    pub(super) rules: Vec<String>,
    /// Settings that were changed in the end.
    pub(super) changed: Vec<String>,
    /// Traces saved out of halves.
    pub(super) saved: usize,
    /// What the guard itself says was left.
    pub(super) left: Vec<String>,
    /// Inputs that made no sense to the guard.
    pub(super) anomalies: usize,
    /// What the guard said of its end.
    pub(super) reason: Option<String>,
}

/// How long things took. What was slowest of several attempts counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Times {
    /// From the fault to the decision that the attempt is lost.
    #[serde(with = "crate::time::opt_secs")]
    pub(super) detect: Option<Duration>,
    /// Of that, the patience that the guard was told to have.
    #[serde(with = "crate::time::opt_secs")]
    pub(super) patience: Option<Duration>,
    /// From the decision until nothing was left.
    #[serde(with = "crate::time::opt_secs")]
    pub(super) clean: Option<Duration>,
}

/// Reads the journal.
pub(super) fn seen(events: &[Event], exit: Option<i32>, signal: Option<i32>) -> Seen {
    let mut seen = Seen { exit, signal, ..Seen::default() };
    let mut rules: BTreeMap<u32, &Finding> = BTreeMap::new();
    for event in events {
        match &event.kind {
            EventKind::AttemptStarted {} => seen.attempts += 1,
            EventKind::Judged { verdict } => seen.causes.push(verdict.cause.clone()),
            EventKind::Suspicion(suspicion) if suspicion.step == SuspicionStep::Act => {
                seen.hang.get_or_insert_with(|| suspicion.kind.to_string());
            }
            EventKind::Finding(finding) if finding.gravity == Gravity::Fatal => {
                rules.entry(event.attempt).or_insert(finding);
            }
            EventKind::Mitigated { changes } => {
                seen.changed = changes.iter().map(|change| change.setting.clone()).collect();
            }
            EventKind::TracesCollected { saved, .. } => seen.saved += saved.len(),
            EventKind::TreeGone { unkillable } => seen.left.extend(unkillable.iter().map(word)),
            EventKind::Drained { leftovers, .. } | EventKind::GuardDied { leftovers, .. } => {
                seen.left.extend(leftovers.iter().map(word));
            }
            EventKind::Anomaly { .. } => seen.anomalies += 1,
            EventKind::RunFinished { reason, .. } => seen.reason = Some(reason.clone()),
            _ => {}
        }
    }
    seen.rules = rules.into_values().map(|finding| finding.rule.clone()).collect();
    seen
}

fn word(leftover: &Leftover) -> String {
    match leftover {
        Leftover::Process { .. } => "process",
        Leftover::Port { .. } => "port",
        Leftover::File { .. } => "file",
        Leftover::GpuMemory { .. } => "gpu-memory",
    }
    .to_owned()
}

/// Where it is not what was expected; empty when it is.
pub(super) fn differences(expect: &Expect, seen: &Seen) -> Vec<String> {
    let mut wrong = Vec::new();
    fn compare<T: PartialEq + Debug>(wrong: &mut Vec<String>, what: &str, expected: Option<&T>, seen: &T) {
        if let Some(expected) = expected.filter(|expected| *expected != seen) {
            wrong.push(format!("{what}: expected {expected:?}, saw {seen:?}"));
        }
    }
    if expect.exit != seen.exit || expect.signal != seen.signal {
        let words = |exit: Option<i32>, signal: Option<i32>| match (exit, signal) {
            (Some(exit), _) => format!("exit code {exit}"),
            (None, Some(signal)) => crate::event::signal_name(signal),
            (None, None) => "neither exit code nor signal".to_owned(),
        };
        let (expected, saw) = (words(expect.exit, expect.signal), words(seen.exit, seen.signal));
        let reason = seen.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        wrong.push(format!("expected {expected}, saw {saw}{reason}"));
    }
    compare(&mut wrong, "attempts", expect.attempts.as_ref(), &seen.attempts);
    if let Some(expected) = &expect.causes {
        let same = expected.len() == seen.causes.len()
            && expected
                .iter()
                .zip(&seen.causes)
                .all(|(expected, seen)| expected == ANY || expected.split('|').any(|one| one == seen));
        if !same {
            wrong.push(format!("causes: expected {expected:?}, saw {:?}", seen.causes));
        }
    }
    if let Some(expected) = &expect.hang
        && seen.hang.as_ref() != Some(expected)
    {
        wrong
            .push(format!("standstill: expected {expected}, saw {}", seen.hang.as_deref().unwrap_or("none")));
    }
    compare(&mut wrong, "fatal lines", expect.rules.as_ref(), &seen.rules);
    compare(&mut wrong, "changed settings", expect.changed.as_ref(), &seen.changed);
    compare(&mut wrong, "saved traces", expect.saved.as_ref(), &seen.saved);
    // Nothing is left unless something else is expected.
    compare(
        &mut wrong,
        "left behind, says the guard",
        Some(expect.left.as_ref().unwrap_or(&Vec::new())),
        &seen.left,
    );
    wrong
}

/// Whether an attempt was ended although nothing had to be.
pub(super) fn is_false_kill(expect: &Expect, seen: &Seen) -> bool {
    expect.is_healthy() && (!seen.causes.is_empty() || seen.hang.is_some())
}

/// When the moment of an event was in the clock of the simulator. The guard's own wall clock may be made to jump, its
/// monotonic one is not, and they begin together.
fn real(first: &Event, mono: Duration) -> f64 {
    let began = first.at.wall.as_nanosecond() as f64 / 1e9 - first.at.mono.as_secs_f64();
    began + mono.as_secs_f64()
}

/// How long things took.
pub(super) fn times(events: &[Event], marks: &[Mark]) -> Times {
    let mut times = Times::default();
    let Some(first) = events.first() else { return times };
    let attempts: std::collections::BTreeSet<u32> = events.iter().map(|event| event.attempt).collect();
    for attempt in attempts.into_iter().filter(|attempt| *attempt > 0) {
        let of_attempt = || events.iter().filter(|event| event.attempt == attempt);
        let failed = of_attempt().any(|event| match &event.kind {
            EventKind::AttemptEnding(ending) => ending.outcome != Outcome::Success,
            _ => false,
        });
        let acted = |event: &&Event| match &event.kind {
            EventKind::Suspicion(suspicion) => suspicion.step == SuspicionStep::Act,
            EventKind::AttemptEnding(_) => true,
            _ => false,
        };
        let Some(decision) = of_attempt().find(acted) else { continue };
        let gone = of_attempt().find(|event| matches!(event.kind, EventKind::Drained { .. }));
        let clean = gone.map(|gone| gone.at.mono.saturating_sub(decision.at.mono));
        times.clean = times.clean.max(clean.filter(|_| failed));
        let decided = real(first, decision.at.mono);
        // The fault that comes last ends the attempt; those before it prepare it.
        let faults = marks.iter().filter_map(|mark| match &mark.what {
            Marked::Fault { index, .. } if mark.attempt == attempt && mark.t <= decided => {
                Some((*index, mark.t))
            }
            _ => None,
        });
        let struck = faults.max_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        let Some((_, struck)) = struck.filter(|_| failed) else { continue };
        let detect = Duration::try_from_secs_f64(decided - struck).ok();
        if detect > times.detect {
            times.detect = detect;
            times.patience = match &decision.kind {
                EventKind::Suspicion(suspicion) => Some(suspicion.patience),
                _ => None,
            };
        }
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Ending, Phase};
    use crate::time::Stamp;

    fn seen_of(exit: i32, causes: &[&str]) -> Seen {
        let causes = causes.iter().map(|cause| (*cause).to_owned()).collect();
        Seen { exit: Some(exit), attempts: 2, causes, ..Seen::default() }
    }

    #[test]
    fn what_is_as_expected_has_no_differences_and_every_other_is_named() {
        let causes = Some(vec!["segfault".to_owned()]);
        let expect = Expect { exit: Some(0), attempts: Some(2), causes, ..Expect::default() };
        assert_eq!(differences(&expect, &seen_of(0, &["segfault"])), Vec::<String>::new());
        let wrong = differences(&expect, &seen_of(75, &["engine-hang", "engine-hang"]));
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(wrong[0].starts_with("expected exit code 0, saw exit code 75"), "{wrong:?}");
        let left = Seen { left: vec!["port".to_owned()], ..seen_of(0, &["segfault"]) };
        assert_eq!(differences(&expect, &left).len(), 1, "what is left is wrong without being mentioned");
    }

    #[test]
    fn any_cause_will_do_where_none_is_named() {
        for (expected, same) in [(ANY, true), ("segfault|cuda-oom", true), ("segfault|host-oom", false)] {
            let expect =
                Expect { exit: Some(0), causes: Some(vec![expected.to_owned()]), ..Expect::default() };
            assert_eq!(differences(&expect, &seen_of(0, &["cuda-oom"])).is_empty(), same, "{expected}");
        }
        let causes = Some(vec![ANY.to_owned()]);
        let expect = Expect { exit: Some(0), causes, ..Expect::default() };
        assert_eq!(differences(&expect, &seen_of(0, &["whatever"])), Vec::<String>::new());
        assert_eq!(differences(&expect, &seen_of(0, &[])).len(), 1);
    }

    #[test]
    fn a_killed_healthy_server_is_a_false_kill() {
        let healthy = Expect { exit: Some(0), attempts: Some(1), ..Expect::default() };
        assert!(is_false_kill(&healthy, &seen_of(0, &["engine-hang"])));
        assert!(!is_false_kill(&healthy, &seen_of(0, &[])));
        let faulty = Expect { exit: Some(0), attempts: Some(2), ..Expect::default() };
        assert!(!is_false_kill(&faulty, &seen_of(0, &["engine-hang"])));
    }

    #[test]
    fn times_count_from_the_last_fault_by_the_monotonic_clock() {
        let event = |seconds: u64, wall: i64, kind| Event {
            v: 1,
            seq: 0,
            at: Stamp {
                mono: Duration::from_secs(seconds),
                wall: jiff::Timestamp::from_second(wall).unwrap(),
            },
            attempt: 1,
            kind,
        };
        let ending = Ending { outcome: Outcome::Crash, reason: String::new(), phase: Phase::Measuring };
        let events = [
            event(0, 1000, EventKind::AttemptStarted {}),
            // The wall clock was set an hour back meanwhile.
            event(10, 1010 - 3600, EventKind::AttemptEnding(ending)),
            event(12, 1012 - 3600, EventKind::Drained { leftovers: Vec::new(), removed: Vec::new() }),
        ];
        let mark = |t: f64, index: usize| Mark {
            t,
            attempt: 1,
            pid: 1,
            what: Marked::Fault { index, text: String::new() },
        };
        let marks = [mark(1003.0, 0), mark(1008.0, 1), mark(1009.0, 1), mark(1011.0, 2)];
        let times = times(&events, &marks);
        assert_eq!(times.detect, Some(Duration::from_secs(2)));
        assert_eq!(times.clean, Some(Duration::from_secs(2)));
    }
}
