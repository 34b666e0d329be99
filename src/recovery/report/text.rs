//! `report RUN --format text`: the page's first screen for a terminal. Pure.

use super::View;
use super::story::{self, exit_code};
use super::units::figure;
use crate::time::human;
use crate::view::clean::clean;
use std::fmt::Write as _;

/// Renders it.
pub fn render(view: &View<'_>) -> String {
    let report = view.report;
    let mut out = String::new();
    let (_, word) = story::headline(report);
    let mut line = |text: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{text}");
    };
    line(&format!("{word}: {}", story::title(report)));
    for change in &report.mitigations {
        line(&format!("  with changed settings: {change}"));
    }
    line("");
    report.story.iter().for_each(|sentence| line(sentence));
    line("");
    line("What to do now:");
    report.to_do.iter().for_each(|step| line(&format!("  - {step}")));
    line("");
    for attempt in &report.attempts {
        let took = human(attempt.duration_s);
        let end =
            attempt.ending.as_ref().map_or("cut off".to_owned(), |e| format!("{}: {}", e.outcome, e.reason));
        line(&format!("attempt {} ({took}): {end}", attempt.number));
        let decisive = attempt.verdict.as_ref().and_then(|verdict| verdict.decisive.as_ref());
        if let Some(quote) = decisive {
            let place = quote.line.map_or_else(String::new, |line| format!(" line {line}"));
            line(&format!("  {}{place}: {}", quote.source, quote.text.trim()));
        }
    }
    if let Some(bench) = &report.benchmark {
        line(&format!(
            "benchmark: {} of {} requests, {} output tokens/s, TTFT p50 {} ms, p99 {} ms",
            bench.progress.completed,
            bench.progress.sent,
            figure(bench.output_throughput),
            figure(bench.ttft_ms.p50),
            figure(bench.ttft_ms.p99)
        ));
    }
    line(&format!("traces: {} windows", report.traces.len()));
    line(&format!("exit code: {}", exit_code(report)));
    // A log must not command the terminal.
    clean(&out).into_owned()
}
