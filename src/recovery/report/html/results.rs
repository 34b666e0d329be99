//! What was brought home: the benchmark and the traces.

use super::{file_link, more, profile, section, ticked, verdict::list};
use crate::event::{BenchSummary, Latency, SavedTrace, Trace, WorkloadSummary};
use crate::recovery::report::model::Report;
use crate::recovery::report::story;
use crate::recovery::report::units::{bytes, count, figure};
use crate::time::human;
use crate::view::tiles::incomplete;
use maud::{Markup, html};

/// Rows of a table of traces that stand open; the others are in report.json.
const MAX_TRACES: usize = 200;

/// The benchmark of the attempt that counts.
pub(super) fn benchmark(report: &Report) -> Markup {
    let Some(bench) = &report.benchmark else { return html! {} };
    section("benchmark", "Benchmark", html! { (tables(bench)) })
}

/// The tables of a benchmark.
pub(super) fn tables(bench: &BenchSummary) -> Markup {
    let p = &bench.progress;
    let goodput = bench.request_goodput;
    html! {
        @if !bench.is_complete { (incomplete(bench)) }
        p {
            (count(p.sent)) " requests in " (human(bench.duration)) ": " (count(p.completed)) " succeeded, "
            (count(p.failed)) " failed, " (count(bench.cancelled)) " cancelled. "
            (figure(bench.request_throughput)) " requests/s, " (figure(bench.output_throughput)) " output tokens/s; "
            (count(p.prompt_tokens)) " prompt and " (count(p.output_tokens)) " output tokens. "
            @match goodput {
                Some(goodput) => { "Goodput: " (figure(goodput)) " requests/s kept every limit." }
                None => "No limits were given, so there is no goodput.",
            }
        }
        div.scroll { table {
            caption { "Latency in ms, of requests that succeeded" }
            thead { tr { th { "" } th.n { "n" } th.n { "mean" } th.n { "p50" } th.n { "p90" } th.n { "p99" } th.n { "max" } } }
            tbody {
                (latency("TTFT", "time to first token", &bench.ttft_ms))
                (latency("TPOT", "time per output token after the first", &bench.tpot_ms))
                (latency("ITL", "gap between two pieces of a stream", &bench.itl_ms))
                (latency("E2E", "send to last token", &bench.e2el_ms))
            }
        } }
        @if !bench.by_workload.is_empty() { (workloads(&bench.by_workload, bench.duration.as_secs_f64())) }
        (list("Failed and cancelled requests by kind", bench.errors.len(), html! {
            dl.ruled { @for (class, number) in &bench.errors { dt { (class) } dd { (count(*number)) } } }
        }))
        @for warning in &bench.warnings { p.warning { "Doubtful: " (warning) "." } }
    }
}

fn latency(name: &str, meaning: &str, l: &Latency) -> Markup {
    html! { tr {
        th scope="row" { abbr title=(meaning) { (name) } }
        @if l.n == 0 { td.n colspan="6" { "not measured" } } @else {
            td.n { (count(l.n)) }
            @for value in [l.mean, l.p50, l.p90, l.p99, l.max] { td.n { (figure(value)) } }
        }
    } }
}

fn workloads(all: &[WorkloadSummary], seconds: f64) -> Markup {
    let pair = |l: &Latency| {
        if l.n == 0 { "\u{2013}".to_owned() } else { format!("{} / {}", figure(l.p50), figure(l.p99)) }
    };
    let limits = all.iter().any(|w| w.good.is_some());
    #[expect(clippy::cast_precision_loss, reason = "request counts are far below 2^52")]
    let goodput = |good: u64| if seconds > 0.0 { figure(good as f64 / seconds) } else { "?".to_owned() };
    html! {
        div.scroll { table {
            caption { "By workload; latencies in ms, p50 / p99" }
            thead { tr {
                th { "" } th.n { "succeeded" } th.n { "failed" } th.n { "prompt" } th.n { "output" }
                th.n { "TTFT" } th.n { "TPOT" } th.n { "ITL" } th.n { "E2E" }
                @if limits { th.n { "goodput" } }
            } }
            tbody { @for w in all { tr {
                th scope="row" { (&w.name) }
                td.n { (count(w.completed)) } td.n { (count(w.failed)) }
                td.n { (figure(w.mean_prompt_tokens)) } td.n { (figure(w.mean_output_tokens)) }
                td.n { (pair(&w.ttft_ms)) } td.n { (pair(&w.tpot_ms)) } td.n { (pair(&w.itl_ms)) } td.n { (pair(&w.e2el_ms)) }
                @if limits { td.n { @match w.good { Some(good) => { (goodput(good)) "/s" } None => "\u{2013}" } } }
            } } }
        } }
        p.note { "Prompt and output are mean tokens by the server's own count." }
    }
}

/// The traces of the attempt that counts, and what was saved of halves.
pub(super) fn traces(report: &Report) -> Markup {
    let saved: Vec<(u32, &SavedTrace)> =
        report.attempts.iter().flat_map(|a| a.saved.iter().map(move |saved| (a.number, saved))).collect();
    if report.traces.is_empty() && saved.is_empty() {
        let asked =
            report.plan.as_ref().is_none_or(|plan| plan.profile.mode == crate::config::ProfileMode::Windows);
        if !asked || report.counts.is_none() {
            return html! {};
        }
    }
    let kernels: u64 = report.traces.iter().map(|trace| trace.kernels).sum();
    section(
        "traces",
        "Profiler traces",
        html! {
            @match (report.traces.as_slice(), report.counts) {
                ([], _) => p { (ticked(&story::no_traces(report))) },
                (traces, number) => {
                    p {
                        (count(traces.len() as u64)) " windows. Open one in chrome://tracing or "
                        a href="https://ui.perfetto.dev" rel="noreferrer noopener" { "ui.perfetto.dev" } "; both take the compressed file."
                        @if kernels == 0 { " They hold no GPU kernels: the server ran on a CPU." }
                    }
                    (trace_table(traces, number.unwrap_or(1)))
                }
            }
            @if !saved.is_empty() { (halves(&saved)) }
        },
    )
}

fn trace_table(traces: &[Trace], attempt: u32) -> Markup {
    let known = |n: Option<u64>| n.map_or("?".to_owned(), count);
    let rows = |part: &[Trace]| {
        html! {
            div.scroll { table {
                thead { tr { th { "file" } th.n { "rank" } th.n { "steps" } th.n { "events" } th.n { "kernels" } th.n { "size" } } }
                tbody { @for trace in part { tr {
                    td { (file_link(&format!("attempt-{attempt}/traces/{}", trace.file), &trace.file)) }
                    td.n { (known(trace.rank.map(u64::from))) } td.n { (known(trace.steps)) }
                    td.n { (count(trace.events)) } td.n { (count(trace.kernels)) } td.n { (bytes(trace.bytes)) }
                } } }
            } }
        }
    };
    let (open, folded) = traces.split_at(traces.len().min(5));
    let shown = &folded[..folded.len().min(MAX_TRACES)];
    html! {
        (rows(open))
        (list("Further windows", folded.len(), html! {
            (rows(shown))
            @if shown.len() < folded.len() { (more(folded.len() - shown.len())) }
        }))
    }
}

fn halves(saved: &[(u32, &SavedTrace)]) -> Markup {
    html! {
        h3 { "Saved from halves" }
        p { "A killed export leaves half a trace. The half stays as it was; what could be saved stands beside it." }
        div.scroll { table {
            thead { tr { th { "saved as" } th.n { "attempt" } th.n { "events" } th.n { "lost" } th { "missing" } th { "" } } }
            tbody { @for (attempt, half) in saved.iter().take(MAX_TRACES) { tr {
                td { @match &half.file {
                    Some(file) => { (file_link(&format!("attempt-{attempt}/traces/{file}"), file)) }
                    None => { (&half.from) ": " (half.status) }
                } }
                td.n { (attempt) } td.n { (count(half.events)) } td.n { (count(half.dropped)) }
                td { (half.missing.join(", ")) } td { (&half.note) }
            } } }
        } }
    }
}

/// What the traces say: top kernels and operators, and how busy the GPU was.
pub(super) fn profile(report: &Report) -> Markup {
    let counts = report.attempts.iter().find(|attempt| Some(attempt.number) == report.counts);
    match counts.and_then(|attempt| attempt.profile.as_ref()) {
        Some(profile) => section("profile", "What the windows saw", profile::body(profile)),
        None => html! {},
    }
}
