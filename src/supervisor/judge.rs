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
