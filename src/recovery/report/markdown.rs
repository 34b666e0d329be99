//! `report.md`: the post-mortem as text. The same content and the same words as the page, without its charts. Pure.

use super::View;
use super::model::{Attempt, Report};
use super::story;
use super::units::{bytes, count, figure};
use super::{missing, profile, safe};
use crate::event::{BenchSummary, Latency, Phase, Quote, Severity, Verdict};
use crate::time::human;
use crate::view::clean::clean;
use std::fmt::Write;

/// Renders the report.
pub fn render(view: &View<'_>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, view);
    clean(&out).into_owned()
}

fn write(out: &mut String, view: &View<'_>) -> std::fmt::Result {
    let report = view.report;
    let (_, headline) = story::headline(report);
    writeln!(out, "# {headline}: {}\n", plain(&story::title(report)))?;
    if !report.mitigations.is_empty() {
        writeln!(out, "**{}:**\n", story::under_changes(report))?;
        bullets(out, report.mitigations.iter().map(|change| format!("**{change}**")))?;
    }
    writeln!(out, "{}\n", plain(&report.story.join(" ")))?;
    writeln!(
        out,
        "Exit code {}. {} attempt{} in {}{}. Run `{}`.\n",
        story::exit_code(report),
        report.attempts.len(),
        if report.attempts.len() == 1 { "" } else { "s" },
        human(report.duration_s),
        report
            .started
            .map(|at| format!(", started {}", at.strftime("%Y-%m-%d %H:%M:%S UTC")))
            .unwrap_or_default(),
        report.run_id,
    )?;
    if !report.to_do.is_empty() {
        writeln!(out, "## What to do now\n")?;
        for (index, step) in report.to_do.iter().enumerate() {
            writeln!(out, "{}. {}", index + 1, plain(step))?;
        }
        writeln!(out)?;
    }
    if report.left_behind.is_empty() {
        writeln!(out, "Nothing was left behind: no process, port, socket or shared memory of this run.\n")?;
    } else {
        writeln!(out, "**Left behind, to be looked after by hand:**\n")?;
        bullets(out, report.left_behind.iter().map(story::leftover))?;
    }
    if let Some(found) = story::verdict(report) {
        writeln!(out, "## Verdict\n")?;
        verdict(out, found)?;
    }
    if let Some(bench) = &report.benchmark {
        writeln!(out, "## Benchmark\n")?;
        benchmark(out, bench)?;
    }
    traces(out, report)?;
    let counts = report.attempts.iter().find(|attempt| Some(attempt.number) == report.counts);
    if let Some(profile) = counts.and_then(|attempt| attempt.profile.as_ref()) {
        writeln!(out, "## What the windows saw\n")?;
        profile::section(out, profile)?;
    }
    writeln!(out, "## Attempts\n")?;
    let subject = story::subject(report).map(|attempt| attempt.number);
    for attempt in &report.attempts {
        attempt_section(out, attempt, subject == Some(attempt.number))?;
    }
    let missing = missing::list(view);
    if !missing.is_empty() {
        writeln!(out, "## What was not measured or could not be read\n")?;
        bullets(out, missing)?;
    }
    if !report.troubles.is_empty() {
        writeln!(out, "## Troubles of varcas-guard itself\n")?;
        bullets(out, &report.troubles)?;
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
    writeln!(out)?;
    repeat(out, report)
}

fn bullets<T: AsRef<str>>(out: &mut String, texts: impl IntoIterator<Item = T>) -> std::fmt::Result {
    for text in texts {
        writeln!(out, "- {}", plain(text.as_ref()))?;
    }
    writeln!(out)
}

fn verdict(out: &mut String, verdict: &Verdict) -> std::fmt::Result {
    writeln!(
        out,
        "**{}** (`{}`, {}, {}; trying again: {}). {}\n",
        plain(&story::cause(&verdict.cause)),
        verdict.cause,
        verdict.outcome,
        verdict.confidence,
        verdict.retry,
        plain(&story::sentence(&verdict.explanation))
    )?;
    if let Some(quote) = &verdict.decisive {
        writeln!(out, "The decisive line, {}:\n", place(quote))?;
        code(out, &quote.text)?;
    }
    if !verdict.consequences.is_empty() {
        writeln!(out, "Lines that only follow from it:\n")?;
        bullets(out, verdict.consequences.iter().map(|quote| format!("{}: {}", place(quote), quote.text)))?;
    }
    let lists = [
        ("What else speaks for it", &verdict.supports),
        ("What speaks against it", &verdict.contradicts),
        ("Sources that could not be read", &verdict.missing),
        ("Where it is known from", &verdict.references),
    ];
    for (title, texts) in lists.into_iter().filter(|(_, texts)| !texts.is_empty()) {
        writeln!(out, "{title}:\n")?;
        bullets(out, texts)?;
    }
    if !verdict.ruled_out.is_empty() {
        writeln!(out, "What it was not:\n")?;
        let others = verdict.ruled_out.iter();
        bullets(out, others.map(|other| format!("{}: {}", story::cause(&other.cause), other.why)))?;
    }
    Ok(())
}

fn place(quote: &Quote) -> String {
    quote.line.map_or_else(|| plain(&quote.source), |line| format!("{} line {line}", plain(&quote.source)))
}

fn benchmark(out: &mut String, bench: &BenchSummary) -> std::fmt::Result {
    if !bench.is_complete {
        let why = bench.incomplete_reason.as_deref().unwrap_or("no reason given");
        writeln!(out, "**Incomplete** ({}): these figures describe only the part that ran.\n", plain(why))?;
    }
    let p = &bench.progress;
    writeln!(
        out,
        "{} requests in {}: {} succeeded, {} failed, {} cancelled. {:.2} requests/s, {:.1} output tokens/s, {} prompt and {} output tokens. {}\n",
        count(p.sent),
        human(bench.duration),
        count(p.completed),
        count(p.failed),
        count(bench.cancelled),
        bench.request_throughput,
        bench.output_throughput,
        count(p.prompt_tokens),
        count(p.output_tokens),
        bench.request_goodput.map_or_else(
            || "No limits were given, so there is no goodput.".to_owned(),
            |good| format!("Goodput: {good:.2} requests/s kept every limit.")
        ),
    )?;
    writeln!(out, "| ms | n | mean | p50 | p90 | p99 | max |\n|---|---:|---:|---:|---:|---:|---:|")?;
    let rows = [
        ("time to first token (TTFT)", bench.ttft_ms),
        ("time per output token (TPOT)", bench.tpot_ms),
        ("between two pieces of a stream (ITL)", bench.itl_ms),
        ("end to end (E2E)", bench.e2el_ms),
    ];
    for (name, l) in rows {
        if l.n == 0 {
            writeln!(out, "| {name} | 0 | not measured | | | | |")?;
            continue;
        }
        writeln!(
            out,
            "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} |",
            l.n, l.mean, l.p50, l.p90, l.p99, l.max
        )?;
    }
    if !bench.by_workload.is_empty() {
        workloads(out, bench)?;
    }
    if !bench.errors.is_empty() {
        let errors: Vec<String> =
            bench.errors.iter().map(|(class, count)| format!("{class}: {count}")).collect();
        writeln!(out, "\nErrors: {}.", plain(&errors.join(", ")))?;
    }
    for warning in &bench.warnings {
        writeln!(out, "\nDoubtful: {}.", plain(warning))?;
    }
    writeln!(out)
}

fn workloads(out: &mut String, bench: &BenchSummary) -> std::fmt::Result {
    writeln!(
        out,
        "\n| workload | succeeded | failed | prompt tokens (mean) | output tokens (mean) | TTFT p50 / p99 ms | TPOT p50 / p99 ms | ITL p50 / p99 ms | E2E p50 / p99 ms | goodput |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    )?;
    let pair = |l: &Latency| if l.n == 0 { "-".to_owned() } else { format!("{:.1} / {:.1}", l.p50, l.p99) };
    let seconds = bench.duration.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
    let goodput = |good: Option<u64>| match good {
        Some(good) if seconds > 0.0 => format!("{:.2}/s", good as f64 / seconds),
        _ => "-".to_owned(),
    };
    for w in &bench.by_workload {
        writeln!(
            out,
            "| {} | {} | {} | {:.0} | {:.0} | {} | {} | {} | {} | {} |",
            cell(&w.name),
            w.completed,
            w.failed,
            w.mean_prompt_tokens,
            w.mean_output_tokens,
            pair(&w.ttft_ms),
            pair(&w.tpot_ms),
            pair(&w.itl_ms),
            pair(&w.e2el_ms),
            goodput(w.good)
        )?;
    }
    Ok(())
}

fn traces(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "## Profiler traces\n")?;
    if report.traces.is_empty() {
        writeln!(out, "{}\n", story::no_traces(report))?;
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

fn attempt_section(out: &mut String, attempt: &Attempt, is_subject: bool) -> std::fmt::Result {
    let ending = attempt
        .ending
        .as_ref()
        .map_or("cut off".to_owned(), |ending| format!("{}: {}", ending.outcome, ending.reason));
    writeln!(out, "### Attempt {}: {}\n", attempt.number, plain(&ending))?;
    if !attempt.mitigations.is_empty() {
        writeln!(out, "**It ran with changed settings:**\n")?;
        bullets(out, attempt.mitigations.iter().map(ToString::to_string))?;
    }
    if let (false, Some(found)) = (is_subject, &attempt.verdict) {
        verdict(out, found)?;
    }
    let phases: Vec<String> = attempt
        .phases
        .iter()
        .filter(|span| !matches!(span.phase, Phase::Done))
        .map(|span| format!("{} {}", span.phase, human(span.took_s)))
        .collect();
    writeln!(out, "Phases: {}.\n", phases.join(", "))?;
    for check in attempt.checks.iter().filter(|check| check.severity >= Severity::Warn) {
        let hint = check.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        writeln!(out, "- preflight, {}: {}", check.check, plain(&format!("{}{hint}", check.saw)))?;
    }
    if !attempt.standstills.is_empty() {
        writeln!(out, "Standstills:\n")?;
        bullets(out, attempt.standstills.iter().map(ToString::to_string))?;
    }
    let w = &attempt.windows;
    if w.workers > 0 {
        let taken = w.taken.map_or_else(String::new, |taken| {
            format!(" They took {} % of the engine's working time.", figure(taken * 100.0))
        });
        writeln!(out, "Windows: {} opened, {} closed by {} workers.{taken}", w.opened, w.closed, w.workers)?;
    }
    for lost in w.failed.iter().chain(&w.disabled).chain(&attempt.trace_problems) {
        writeln!(out, "- {}", plain(lost))?;
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
        bullets(out, &attempt.findings)?;
    }
    if !attempt.evidence.is_empty() {
        writeln!(out, "\nSaved before the kill, in `attempt-{}/evidence/`:\n", attempt.number)?;
        let item = |item: &crate::event::Evidence| {
            let place = item.file.as_ref().map(|file| format!(" (`{file}`, {})", bytes(item.bytes)));
            let problem = item.problem.as_ref().map(|problem| format!(": {problem}"));
            format!("{}{}{}", item.what, place.unwrap_or_default(), problem.unwrap_or_default())
        };
        bullets(out, attempt.evidence.iter().map(item))?;
    }
    if !attempt.signals.is_empty() {
        writeln!(out, "\nSignals we sent:\n")?;
        bullets(out, &attempt.signals)?;
    }
    writeln!(out)
}

fn repeat(out: &mut String, report: &Report) -> std::fmt::Result {
    writeln!(out, "## To repeat it\n")?;
    if let Some(version) = &report.server.version {
        let torch = report.server.torch.as_ref().map(|t| format!(", torch {t}")).unwrap_or_default();
        let device = report.server.device.as_ref().map(|d| format!(", on {d}")).unwrap_or_default();
        writeln!(out, "Server version {version}{torch}{device}; varcas-guard {}.\n", report.guard_version)?;
    }
    let words: Vec<String> = safe::command_line(&report.argv).iter().map(|word| safe::quoted(word)).collect();
    code(out, &words.join(" "))?;
    if !report.env.is_empty() {
        writeln!(out, "Environment beside what is inherited:\n")?;
        let line = |(name, value): (&String, &String)| {
            let value = if safe::secret(name) { safe::HIDDEN.to_owned() } else { safe::quoted(value) };
            format!("{name}={value}")
        };
        code(out, &report.env.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    }
    writeln!(out, "The whole plan stands in `report.json` under `plan`.")
}

/// Text between other text: on one line, and no markup of its own.
fn plain(text: &str) -> String {
    text.replace(['\n', '\r'], " ").replace('<', "\\<")
}

/// A table cell cannot hold a bar either.
fn cell(text: &str) -> String {
    plain(text).replace('|', "\\|")
}

/// A block that what it holds cannot end.
fn code(out: &mut String, text: &str) -> std::fmt::Result {
    let mut fence = "```".to_owned();
    while text.contains(&fence) {
        fence.push('`');
    }
    writeln!(out, "{fence}\n{}\n{fence}\n", text.trim_end())
}
