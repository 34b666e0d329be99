//! Small judgements the machine needs: pure functions from what was seen to what it means.

use crate::config::{LoadPlan, ProfileMode};
use crate::event::{BenchSummary, Check, Clue, Ending, Finding, Outcome, Severity, Trace};
use std::collections::BTreeSet;

/// Why nothing may be started, if so.
pub fn refusal(checks: &[Check]) -> Option<String> {
    let refused: Vec<&str> = checks
        .iter()
        .filter(|check| check.severity == Severity::Refuse)
        .map(|check| check.saw.as_str())
        .collect();
    (!refused.is_empty()).then(|| refused.join("; "))
}

/// Whether the benchmark is a result, and the sentence that says so.
pub fn benchmark(summary: &BenchSummary, plan: &LoadPlan) -> Result<String, String> {
    let done = summary.progress.completed;
    let lost = summary.progress.failed + summary.cancelled;
    let all = done + lost;
    if !summary.is_complete {
        let why = summary.incomplete_reason.as_deref().unwrap_or("no reason given");
        return Err(format!("the benchmark was cut short after {done} requests: {why}"));
    }
    if done == 0 {
        return Err(match all {
            0 => "the benchmark sent no request".to_owned(),
            _ => format!("none of {all} requests succeeded"),
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
    let share = lost as f64 / all as f64;
    if share > plan.max_failure_share {
        return Err(format!(
            "{lost} of {all} requests failed ({:.1} %, allowed are {:.1} %)",
            share * 100.0,
            plan.max_failure_share * 100.0
        ));
    }
    Ok(format!("the benchmark ran to its end: {done} of {all} requests succeeded"))
}

/// A success that was asked to bring traces and has none of a worker that said it would record is not one.
pub fn with_traces(ending: Ending, traces: &[Trace], ranks: &BTreeSet<u32>, mode: ProfileMode) -> Ending {
    if ending.outcome != Outcome::Success || mode == ProfileMode::Off {
        return ending;
    }
    let complete: Vec<&Trace> = traces.iter().filter(|trace| trace.complete).collect();
    let missing: Vec<String> = ranks
        .iter()
        .filter(|rank| !complete.iter().any(|trace| trace.rank == Some(**rank)))
        .map(u32::to_string)
        .collect();
    let problem = match (complete.is_empty(), missing.is_empty()) {
        (true, _) => "no complete profiler trace is on disk".to_owned(),
        (false, true) => return ending,
        (false, false) => format!("no complete profiler trace of rank {} is on disk", missing.join(", ")),
    };
    Ending {
        outcome: Outcome::Degraded,
        reason: format!("{}, but {problem}", ending.reason),
        phase: ending.phase,
    }
}

/// `log line 7: text`, short enough for a sentence.
pub fn quote(finding: &Finding) -> String {
    const LONGEST: usize = 300;
    let text = finding.text.trim();
    let cut = (0..=LONGEST.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let dots = if cut < text.len() { " ..." } else { "" };
    format!("log line {}: {}{dots}", finding.line, &text[..cut])
}

/// What came first is not always what says why: the line of the log and the word of the system that do are added.
pub fn with_cause(mut ending: Ending, findings: &[Finding], clues: &[Clue]) -> Ending {
    let lost = matches!(
        ending.outcome,
        Outcome::StartupFailure | Outcome::Crash | Outcome::Hang | Outcome::Degraded
    );
    if !lost {
        return ending;
    }
    let all: Vec<&Finding> = findings.iter().collect();
    let root = Finding::root(&all).map(quote);
    let said = clues.iter().map(|clue| {
        format!("{}{}: {}", clue.source, if clue.inferred { " (inferred)" } else { "" }, clue.text)
    });
    for why in root.into_iter().chain(said) {
        if !ending.reason.contains(&why) {
            ending.reason = format!("{}; {why}", ending.reason);
        }
    }
    ending
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Gravity, LoadProgress};

    fn summary(completed: u64, failed: u64, cancelled: u64) -> BenchSummary {
        let progress = LoadProgress { completed, failed, ..LoadProgress::default() };
        BenchSummary { is_complete: true, progress, cancelled, ..BenchSummary::default() }
    }

    #[test]
    fn a_benchmark_is_judged_by_the_share_of_all_that_was_lost() {
        let plan = LoadPlan { max_failure_share: 0.25, ..LoadPlan::default() };
        let verdict = |completed, failed, cancelled| benchmark(&summary(completed, failed, cancelled), &plan);
        // Failed and cancelled count alike, and the limit itself is allowed.
        assert_eq!(verdict(6, 1, 1).unwrap(), "the benchmark ran to its end: 6 of 8 requests succeeded");
        assert_eq!(verdict(5, 2, 1).unwrap_err(), "3 of 8 requests failed (37.5 %, allowed are 25.0 %)");
        assert_eq!(verdict(0, 2, 1).unwrap_err(), "none of 3 requests succeeded");
        assert_eq!(verdict(0, 0, 0).unwrap_err(), "the benchmark sent no request");
        let cut = BenchSummary { is_complete: false, ..summary(9, 0, 0) };
        let told = "the benchmark was cut short after 9 requests: no reason given";
        assert_eq!(benchmark(&cut, &plan).unwrap_err(), told);
    }

    #[test]
    fn a_quote_is_cut_between_characters_and_says_so() {
        let of = |text: &str| {
            quote(&Finding {
                rule: String::new(),
                cause: String::new(),
                gravity: Gravity::Fatal,
                line: 7,
                offset: 0,
                text: text.to_owned(),
                count: 1,
                outranks: Vec::new(),
            })
        };
        assert_eq!(of(" short "), "log line 7: short");
        assert_eq!(of(&"x".repeat(300)), format!("log line 7: {}", "x".repeat(300)));
        assert_eq!(of(&"x".repeat(301)), format!("log line 7: {} ...", "x".repeat(300)));
        assert_eq!(of(&"\u{e9}".repeat(151)), format!("log line 7: {} ...", "\u{e9}".repeat(150)));
        assert_eq!(
            of(&format!("x{}", "\u{e9}".repeat(150))),
            format!("log line 7: x{} ...", "\u{e9}".repeat(149))
        );
    }
}
