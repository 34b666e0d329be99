//! Key figures, for every page that shows a run. Pure.

use super::now::{Load, Now};
use super::phrases;
use super::units::{bytes, count, figure};
use crate::event::{BenchSummary, Reading};
use maud::{Markup, html};
use std::time::Duration;

/// A key figure.
pub fn tile(name: &str, value: &str, more: &str) -> Markup {
    html! { div { dt { (name) } dd { b { (value) } small { (more) } } } }
}

/// Those of a benchmark that is over.
pub fn of_benchmark(bench: &BenchSummary) -> Markup {
    let (done, sent) = (bench.progress.completed, bench.progress.sent);
    html! {
        (tile("Requests", &count(done), &format!("of {} succeeded", count(sent))))
        (tile("Throughput", &format!("{}/s", figure(bench.output_throughput)), "output tokens"))
        (tile("TTFT", &latency(bench.ttft_ms.p50, bench.ttft_ms.n), &format!("median; p99 {}", latency(bench.ttft_ms.p99, bench.ttft_ms.n))))
        (tile("TPOT", &latency(bench.tpot_ms.p50, bench.tpot_ms.n), &format!("median; p99 {}", latency(bench.tpot_ms.p99, bench.tpot_ms.n))))
        (tile("E2E", &latency(bench.e2el_ms.p50, bench.e2el_ms.n), &format!("median; p99 {}", latency(bench.e2el_ms.p99, bench.e2el_ms.n))))
    }
}

/// Beside the figures of a benchmark that was cut short.
pub fn incomplete(bench: &BenchSummary) -> Markup {
    let why = bench.incomplete_reason.as_deref().unwrap_or("no reason given");
    html! {
        p.warning { strong { "The benchmark is incomplete" } " (" (why) "): its figures describe only the part that ran." }
    }
}

/// Those of a run that goes on; of its benchmark as soon as that is over.
pub fn of_now(now: &Now, at: Duration) -> Markup {
    html! {
        @match now.load.as_ref().map(|load| (load, &load.summary)) {
            Some((_, Some(bench))) => { (of_benchmark(bench)) }
            Some((load, None)) => { (of_load(load, now, at)) }
            None => {}
        }
        @if let Some(Reading::Value(engine)) = &now.engine {
            (tile("Engine", &format!("{:.0}", engine.running), &format!("running, {:.0} waiting; KV cache {:.0} %", engine.waiting, engine.kv_usage * 100.0)))
        }
        @for gpu in now.gpus.as_ref().and_then(Reading::value).into_iter().flatten().take(MOST_GPUS) {
            @let util = gpu.util.value().map_or_else(|| "?".to_owned(), |util| format!("{util} %"));
            @let memory = gpu.mem_used.value().map(|used| bytes(*used)).unwrap_or_default();
            @let power = gpu.power_w.value().map(|watts| format!(", {watts:.0} W")).unwrap_or_default();
            (tile(&format!("GPU {}", gpu.gpu), &util, &format!("{memory}{power}")))
        }
        @if now.profiling && now.windows.ranks > 0 {
            @let taken = now.windows.taken.map(|taken| format!("; {} % of the engine's time", figure(taken * 100.0)));
            (tile("Windows", &count(now.windows.finished), &format!("finished{}", taken.unwrap_or_default())))
        }
        @if let Some(rss) = now.rss() {
            (tile("Server", &bytes(rss), &format!("in {} processes", now.processes.len())))
        }
        @if let Some(free) = now.disk.as_ref().and_then(|disk| disk.free.value()) {
            (tile("Disk", &bytes(*free), "free"))
        }
    }
}

/// More than this are looked at in a chart.
const MOST_GPUS: usize = 8;

fn of_load(load: &Load, now: &Now, at: Duration) -> Markup {
    let p = &load.progress;
    let failed = if p.failed > 0 { format!(", {} failed", count(p.failed)) } else { String::new() };
    let (rate, unit) = phrases::tokens(now, at)
        .and_then(|text| text.split_once(' ').map(|(rate, unit)| (rate.to_owned(), unit.to_owned())))
        .map_or_else(|| ("not yet".to_owned(), String::new()), |(rate, unit)| (format!("{rate}/s"), unit));
    let unit = match unit.trim_end_matches("/s") {
        "" => "output tokens".to_owned(),
        unit => format!("output {unit}"),
    };
    let n = u64::from(p.ttft_p99_us > 0);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let ms = |us: u64| latency(us as f64 / 1e3, n);
    html! {
        (tile("Requests", &count(p.completed), &format!("of {} planned succeeded{failed}", count(load.planned))))
        (tile("Open", &count(p.in_flight), "at the client"))
        (tile("Throughput", &rate, &unit))
        (tile("TTFT", &ms(p.ttft_p50_us), &format!("median; p99 {}", ms(p.ttft_p99_us))))
    }
}

/// Milliseconds in the unit that fits; `n` is how many were measured.
fn latency(value: f64, n: u64) -> String {
    match n {
        0 => "not measured".to_owned(),
        _ if value < 1000.0 => format!("{} ms", figure(value)),
        _ => format!("{} s", figure(value / 1e3)),
    }
}
