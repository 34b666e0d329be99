//! `report.md`: what a tired person reads at 7:00. Outcome first, then what to do, then the details.

use super::View;
use super::model::{Attempt, Report};
use super::story;
use super::units::bytes;
use crate::event::{BenchSummary, Phase, Severity};
use crate::time::human;
use std::fmt::Write;

/// Renders the report.
pub fn render(view: &View<'_>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, view.report);
    out
}

fn write(out: &mut String, report: &Report) -> std::fmt::Result {
    let headline = match report.outcome.as_str() {
        "success" => "SUCCESS",
        "stopped" => "STOPPED",
        "refused" => "NOT STARTED",
        "interrupted" => "INTERRUPTED",
        _ => "FAILED",
    };
    writeln!(out, "# {headline}: {}\n", report.reason)?;
    let code = report.exit_code.map_or("none, the guard was killed".to_owned(), |code| code.to_string());
    writeln!(
        out,
        "Exit code {code}. {} attempt{} in {}{}. Run `{}`.\n",
        report.attempts.len(),
        if report.attempts.len() == 1 { "" } else { "s" },
        human(report.duration_s),
        report
            .started
            .map(|at| format!(", started {}", at.strftime("%Y-%m-%d %H:%M:%S UTC")))
            .unwrap_or_default(),
        report.run_id,
    )?;
    if report.left_behind.is_empty() {
        writeln!(out, "Nothing was left behind: no process, port, socket or shared memory of this run.\n")?;
    } else {
        writeln!(out, "**Left behind, to be looked after by hand:**\n")?;
        for leftover in &report.left_behind {
            writeln!(out, "- {}", story::leftover(leftover))?;
        }
        writeln!(out)?;
    }
    if let Some(bench) = &report.benchmark {
        benchmark(out, bench)?;
    }
    traces(out, report)?;
    writeln!(out, "## Attempts\n")?;
    for attempt in &report.attempts {
        attempt_section(out, attempt)?;
    }
    if !report.unreadable.is_empty() {
        writeln!(out, "## What could not be read here\n")?;
        for what in &report.unreadable {
            writeln!(out, "- {what}")?;
        }
        writeln!(out)?;
    }
    if !report.troubles.is_empty() {
        writeln!(out, "## Troubles of varcas-guard itself\n")?;
        for trouble in &report.troubles {
            writeln!(out, "- {trouble}")?;
        }
        writeln!(out)?;
    }
    writeln!(out, "## Timeline\n\n| time | attempt | what |\n|---:|---:|---|")?;
    for moment in &report.timeline {
        writeln!(
            out,
            "| {:.1} s | {} | {} |",
            moment.at_s.as_secs_f64(),
            moment.attempt,
            cell(&moment.what)
        )?;
    }
    writeln!(out, "\n## To repeat it\n")?;
    if let Some(version) = &report.server.version {
        let torch = report.server.torch.as_ref().map(|t| format!(", torch {t}")).unwrap_or_default();
        let device = report.server.device.as_ref().map(|d| format!(", on {d}")).unwrap_or_default();
        writeln!(out, "Server version {version}{torch}{device}; varcas-guard {}.\n", report.guard_version)?;
    }
    writeln!(out, "```\n{}\n```", report.argv.join(" "))
}

fn benchmark(out: &mut String, bench: &BenchSummary) -> std::fmt::Result {
    writeln!(out, "## Benchmark\n")?;
    if !bench.is_complete {
        let why = bench.incomplete_reason.as_deref().unwrap_or("no reason given");
        writeln!(out, "**Incomplete** ({why}): these figures describe only the part that ran.\n")?;
    }
    let p = &bench.progress;
    writeln!(
        out,
        "{} requests in {}: {} succeeded, {} failed, {} cancelled. {:.2} requests/s, {:.1} output tokens/s, {} prompt and {} output tokens.\n",
        p.sent,
        human(bench.duration),
        p.completed,
        p.failed,
        bench.cancelled,
        bench.request_throughput,
        bench.output_throughput,
        p.prompt_tokens,
        p.output_tokens,
    )?;
    writeln!(out, "| ms | n | mean | p50 | p90 | p99 | max |\n|---|---:|---:|---:|---:|---:|---:|")?;
    let rows = [
        ("time to first token (TTFT)", bench.ttft_ms),
        ("time per output token (TPOT)", bench.tpot_ms),
        ("end to end (E2E)", bench.e2el_ms),
    ];
    for (name, l) in rows {
        writeln!(
            out,
            "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            l.n, l.mean, l.p50, l.p90, l.p99, l.max
        )?;
    }
    if !bench.by_workload.is_empty() {
        writeln!(
            out,
            "\n| workload | succeeded | failed | prompt tokens (mean) | output tokens (mean) | TTFT p50 ms | E2E p50 ms |\n|---|---:|---:|---:|---:|---:|---:|"
        )?;
        for w in &bench.by_workload {
            writeln!(
                out,
                "| {} | {} | {} | {:.0} | {:.0} | {:.1} | {:.1} |",
                w.name,
                w.completed,
                w.failed,
                w.mean_prompt_tokens,
                w.mean_output_tokens,
                w.ttft_ms.p50,
                w.e2el_ms.p50
            )?;
        }
    }
    if !bench.errors.is_empty() {
        let errors: Vec<String> =
            bench.errors.iter().map(|(class, count)| format!("{class}: {count}")).collect();
        writeln!(out, "\nErrors: {}.", errors.join(", "))?;
    }
    for warning in &bench.warnings {
        writeln!(out, "\nDoubtful: {warning}.")?;
    }
    writeln!(out)
}

fn traces(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "## Profiler traces\n")?;
    if report.traces.is_empty() {
        writeln!(out, "No complete ones.\n")?;
        return saved(out, report);
    }
    let kernels: u64 = report.traces.iter().map(|trace| trace.kernels).sum();
    writeln!(
        out,
        "{} windows. Open one in chrome://tracing or <https://ui.perfetto.dev>.{}\n",
        report.traces.len(),
        if kernels == 0 { " They hold no GPU kernels: the server ran on a CPU." } else { "" }
    )?;
    writeln!(out, "| file | rank | steps | events | GPU kernels | size |\n|---|---:|---:|---:|---:|---:|")?;
    for trace in &report.traces {
        let number = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            cell(&trace.file),
            number(trace.rank.map(u64::from)),
            number(trace.steps),
            trace.events,
            trace.kernels,
            bytes(trace.bytes)
        )?;
    }
    writeln!(out)?;
    saved(out, report)
}

/// What the salvage made of traces that were cut.
fn saved(out: &mut String, report: &Report) -> std::fmt::Result {
    let rows: Vec<_> =
        report.attempts.iter().flat_map(|a| a.saved.iter().map(move |saved| (a.number, saved))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "Halves of traces, and what was saved of them:\n")?;
    writeln!(
        out,
        "| attempt | half | saved as | events kept | dropped | without | |\n|---:|---|---|---:|---:|---|---|"
    )?;
    for (attempt, half) in rows {
        writeln!(
            out,
            "| {attempt} | {} | {} | {} | {} | {} | {} |",
            cell(&half.from),
            half.file.as_deref().map_or_else(|| half.status.clone(), cell),
            half.events,
            half.dropped,
            half.missing.join(", "),
            cell(&half.note)
        )?;
    }
    writeln!(out)
}

fn attempt_section(out: &mut String, attempt: &Attempt) -> std::fmt::Result {
    let ending = attempt.ending.as_ref().map_or("cut off, the guard was killed".to_owned(), |ending| {
        format!("{}: {}", ending.outcome, ending.reason)
    });
    writeln!(out, "### Attempt {}: {ending}\n", attempt.number)?;
    let phases: Vec<String> = attempt
        .phases
        .iter()
        .filter(|span| !matches!(span.phase, Phase::Done))
        .map(|span| format!("{} {}", span.phase, human(span.took_s)))
        .collect();
    writeln!(out, "Phases: {}.\n", phases.join(", "))?;
    for check in attempt.checks.iter().filter(|check| check.severity >= Severity::Warn) {
        let hint = check.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        writeln!(out, "- preflight, {}: {}{hint}", check.check, check.saw)?;
    }
    let w = &attempt.windows;
    if w.workers > 0 {
        writeln!(out, "Windows: {} opened, {} closed by {} workers.", w.opened, w.closed, w.workers)?;
    }
    for lost in w.failed.iter().chain(&w.disabled).chain(&attempt.trace_problems) {
        writeln!(out, "- {lost}")?;
    }
    if !attempt.processes.is_empty() {
        writeln!(out, "\n| process | pid | ended with |\n|---|---:|---|")?;
        for process in &attempt.processes {
            let how = process.ended.map_or("nobody saw it end".to_owned(), |how| how.to_string());
            writeln!(out, "| {} | {} | {how} |", cell(&process.comm), process.proc.pid)?;
        }
    }
    if !attempt.findings.is_empty() {
        writeln!(out, "\nWhat the log and the system said:\n")?;
        for finding in &attempt.findings {
            writeln!(out, "- {}", finding.replace(['\n', '\r'], " "))?;
        }
    }
    if !attempt.evidence.is_empty() {
        writeln!(out, "\nSaved before the kill, in `attempt-{}/evidence/`:\n", attempt.number)?;
        for item in &attempt.evidence {
            let place = item.file.as_ref().map(|file| format!(" (`{file}`, {})", bytes(item.bytes)));
            let problem = item.problem.as_ref().map(|problem| format!(": {problem}"));
            writeln!(out, "- {}{}{}", item.what, place.unwrap_or_default(), problem.unwrap_or_default())?;
        }
    }
    if !attempt.signals.is_empty() {
        writeln!(out, "\nSignals we sent:\n")?;
        for signal in &attempt.signals {
            writeln!(out, "- {signal}")?;
        }
    }
    writeln!(out)
}

/// A table cell cannot hold a bar or a line break.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}
