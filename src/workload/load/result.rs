//! `benchmark.json` and `benchmark_output.log`. Pure.
//!
//! One file serves three kinds of readers: vLLM's flat keys at the top (dashboards), the names of the user's harness
//! (`metrics`, `config`, ...), and our own. An unknown number is `null`, never 0.

use super::schedule::CONTEXT_MARGIN;
use super::spec::{Api, Load as Spec};
use super::stats::{Second, Sorted};
use super::steady::{Interval, Window, bootstrap, bootstrap_rate};
use super::tally::{Sums, Totals};
use crate::event::Latency;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Version of our own keys.
pub const SCHEMA_VERSION: u32 = 1;

/// What the edge knows beside the counts.
#[derive(Debug, Clone)]
pub struct Context {
    /// When the load began.
    pub started: jiff::Timestamp,
    /// When it ended.
    pub ended: jiff::Timestamp,
    /// For naive local time, which the harness and vLLM write.
    pub zone: jiff::tz::TimeZone,
    /// Where requests went.
    pub base_url: String,
    /// The model's name.
    pub model: String,
    /// Whether the server told its context length.
    pub context_detected: bool,
    /// Characters a token, and whether the server was asked.
    pub chars_per_token: (f64, bool),
    /// How the client itself fared.
    pub client: Client,
    /// Share of the prompt tokens that the server found in its prefix cache, if it says.
    pub prefix_cache_hit_rate: Option<f64>,
    /// Why the records of single requests are incomplete, if they are.
    pub unrecorded: Option<String>,
}

/// How the client itself fared; a client that was the bottleneck makes the numbers worthless.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Client {
    /// CPU of the thread that streams, as percent of one core over the load.
    pub cpu_pct: Option<f64>,
    /// How late a timer of the streaming thread fired.
    pub loop_lag_ms: Latency,
}

#[derive(Serialize)]
struct File<'a> {
    date: String,
    endpoint_type: &'static str,
    backend: &'static str,
    label: Option<&'a str>,
    model_id: &'a str,
    tokenizer_id: &'a str,
    num_prompts: u64,
    request_rate: Option<f64>,
    burstiness: Option<f64>,
    max_concurrency: Option<u32>,
    duration: f64,
    completed: u64,
    failed: u64,
    total_input_tokens: u64,
    total_output_tokens: u64,
    request_throughput: f64,
    request_goodput: Option<f64>,
    output_throughput: f64,
    total_token_throughput: f64,
    max_output_tokens_per_s: u64,
    max_concurrent_requests: u64,
    #[serde(flatten)]
    flat: BTreeMap<String, Option<f64>>,

    experiment_id: String,
    profile_name: &'a str,
    config: Config<'a>,
    start_time: String,
    end_time: String,
    metrics: Metrics,

    schema_version: u32,
    is_complete: bool,
    incomplete_reason: Option<&'a str>,
    cancelled: u64,
    by_workload: BTreeMap<&'a str, ByWorkload>,
    errors: &'a BTreeMap<String, u64>,
    error_examples: &'a BTreeMap<String, String>,
    load: Load<'a>,
    slo_ms: SloMs,
    steady_state: Option<Steady>,
    confidence: BTreeMap<String, Interval>,
    prefix_cache_hit_rate: Option<f64>,
    timeseries: &'a [Second],
}

#[derive(Serialize)]
struct Config<'a> {
    arrival_process: &'static str,
    target_rps: Option<f64>,
    concurrency: Option<u32>,
    duration_seconds: f64,
    open_loop: bool,
    workloads: Vec<ConfigWorkload<'a>>,
    seed: u64,
    shape_seed: u64,
    context: u32,
    context_margin: u32,
    chars_per_token: f64,
    chars_per_token_measured: bool,
    base_url: &'a str,
}

#[derive(Serialize)]
struct ConfigWorkload<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    weight: f64,
    input_mean: f64,
    output_mean: f64,
}

/// The eleven names of the user's harness.
#[derive(Serialize)]
struct Metrics {
    total_requests: u64,
    successful_requests: u64,
    failed_requests: u64,
    throughput_rps: f64,
    throughput_tok_s: f64,
    ttft_p50_ms: Option<f64>,
    ttft_p99_ms: Option<f64>,
    tpot_p50_ms: Option<f64>,
    tpot_p99_ms: Option<f64>,
    latency_p50_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
}

#[derive(Serialize)]
struct ByWorkload {
    count: u64,
    completed: u64,
    good: Option<u64>,
    failed: u64,
    cancelled: u64,
    mean_planned_input: f64,
    mean_planned_output: f64,
    mean_prompt_tokens: Option<f64>,
    mean_output_tokens: Option<f64>,
    ttft_ms: Latency,
    tpot_ms: Latency,
    itl_ms: Latency,
    e2el_ms: Latency,
}

#[derive(Serialize)]
struct Load<'a> {
    requested_rate: Option<f64>,
    achieved_rate: Option<f64>,
    planned: u64,
    clamped: u32,
    prompts_left_out: u32,
    send_lag_ms: Latency,
    ttft_from_intended_ms: Latency,
    e2el_from_intended_ms: Latency,
    coalesced_pieces: u64,
    pieces: u64,
    without_usage: u64,
    client: ClientKeys<'a>,
}

#[derive(Serialize)]
struct ClientKeys<'a> {
    #[serde(flatten)]
    health: &'a Client,
    bottleneck: bool,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct SloMs {
    ttft: Option<f64>,
    tpot: Option<f64>,
    e2el: Option<f64>,
}

#[derive(Serialize)]
struct Steady {
    #[serde(flatten)]
    window: Window,
    completed: u64,
    request_throughput: f64,
    output_throughput: f64,
    ttft_ms: Latency,
    tpot_ms: Latency,
    e2el_ms: Latency,
}

fn steady(totals: &Totals) -> Option<Steady> {
    let window = totals.steady()?;
    let part = totals.part(&window);
    Some(Steady {
        window,
        completed: part.completed,
        request_throughput: part.request_throughput,
        output_throughput: part.output_throughput,
        ttft_ms: part.ttft.latency(),
        tpot_ms: part.tpot.latency(),
        e2el_ms: part.e2el.latency(),
    })
}

/// 95 % intervals of the headline numbers.
fn confidence(totals: &Totals) -> BTreeMap<String, Interval> {
    let mut all = BTreeMap::new();
    for (name, sorted) in [("ttft", &totals.all.ttft), ("tpot", &totals.all.tpot), ("e2el", &totals.all.e2el)]
    {
        if let Some([p50, p99]) = bootstrap(sorted, [50.0, 99.0], 1) {
            all.insert(format!("median_{name}_ms"), p50);
            all.insert(format!("p99_{name}_ms"), p99);
        }
    }
    let mut rate = |name: &str, count: fn(&Second) -> u64| {
        let seconds: Vec<f64> = totals.series.iter().map(|second| count(second) as f64).collect();
        all.extend(bootstrap_rate(&seconds, 1).map(|interval| (name.to_owned(), interval)));
    };
    rate("request_throughput", |second| second.completed);
    rate("output_throughput", |second| second.output_tokens);
    all
}

/// Lateness of the client beyond this is no noise.
const LATE_MS: f64 = 20.0;

/// What says that the client, not the server, was the bottleneck; empty when nothing does.
fn client_faults(load: &Spec, totals: &Totals, client: &Client) -> Vec<String> {
    let mut faults = Vec::new();
    if client.cpu_pct.is_some_and(|pct| pct > 80.0) {
        faults.push("the client used more than 80 % of a core: it may have been the bottleneck".to_owned());
    }
    if client.loop_lag_ms.n > 0 && client.loop_lag_ms.p99 > LATE_MS {
        faults.push(format!(
            "timers of the client fired {:.0} ms late (p99): latencies may be too high by as much",
            client.loop_lag_ms.p99
        ));
    }
    let limited = load.max_concurrency.is_some() || load.schedule.arrivals.streams().is_some();
    let lag = totals.lag.percentile(99.0);
    if !limited && lag > LATE_MS {
        faults.push(format!(
            "the client sent requests {lag:.0} ms late (p99): it did not keep up with its own schedule"
        ));
    }
    faults
}

/// What makes the result doubtful; empty when nothing does.
pub fn warnings(load: &Spec, totals: &Totals, context: &Context) -> Vec<String> {
    let mut warnings = client_faults(load, totals, &context.client);
    if totals.steady().is_some_and(|window| window.growing) {
        warnings.push("open requests rose to the end: the server did not keep up with the rate".to_owned());
    }
    let unknown = totals.all.completed - totals.all.with_usage;
    if unknown > 0 {
        warnings.push(format!("{unknown} answers came without usage: their tokens are not counted"));
    }
    if let Some(rate) = context.prefix_cache_hit_rate.filter(|rate| *rate >= 0.01) {
        warnings.push(format!(
            "{:.0} % of the prompt tokens came from the prefix cache: were these prompts sent before?",
            rate * 100.0
        ));
    }
    if let Some(error) = &context.unrecorded {
        warnings.push(format!("the records of single requests are incomplete: {error}"));
    }
    warnings
}

fn percentile(sorted: &Sorted, percent: f64) -> Option<f64> {
    (!sorted.is_empty()).then(|| sorted.percentile(percent))
}

fn flat_keys(totals: &Totals) -> BTreeMap<String, Option<f64>> {
    let mut flat = BTreeMap::new();
    for (name, sorted) in [("ttft", &totals.all.ttft), ("tpot", &totals.all.tpot), ("e2el", &totals.all.e2el)]
    {
        let known = !sorted.is_empty();
        flat.insert(format!("mean_{name}_ms"), known.then(|| sorted.mean()));
        flat.insert(format!("median_{name}_ms"), percentile(sorted, 50.0));
        flat.insert(format!("std_{name}_ms"), known.then(|| sorted.std()));
        for p in [90, 95, 99] {
            flat.insert(format!("p{p}_{name}_ms"), percentile(sorted, f64::from(p)));
        }
    }
    let known = totals.all.gaps.count() > 0;
    let (mean, std) = totals.all.gaps.moments();
    let [p50, p90, p95, p99] = totals.all.gaps.percentiles([50.0, 90.0, 95.0, 99.0]);
    for (name, value) in
        [("mean", mean), ("median", p50), ("std", std), ("p90", p90), ("p95", p95), ("p99", p99)]
    {
        flat.insert(format!("{name}_itl_ms"), known.then_some(value));
    }
    flat
}

fn by_workload(sums: &Sums, has_slo: bool) -> ByWorkload {
    let n = sums.count().max(1) as f64;
    let (prompt, output) = sums.mean_tokens();
    ByWorkload {
        count: sums.count(),
        completed: sums.completed,
        good: has_slo.then_some(sums.good),
        failed: sums.failed,
        cancelled: sums.cancelled,
        mean_planned_input: sums.planned_input as f64 / n,
        mean_planned_output: sums.planned_output as f64 / n,
        mean_prompt_tokens: (sums.with_usage > 0).then_some(prompt),
        mean_output_tokens: (sums.with_usage > 0).then_some(output),
        ttft_ms: sums.ttft.latency(),
        tpot_ms: sums.tpot.latency(),
        itl_ms: sums.gaps.latency(),
        e2el_ms: sums.e2el.latency(),
    }
}

/// The text of `benchmark.json`.
pub fn json(load: &Spec, totals: &Totals, context: &Context) -> Result<String, serde_json::Error> {
    let naive =
        |t: jiff::Timestamp| context.zone.to_datetime(t).strftime("%Y-%m-%dT%H:%M:%S%.6f").to_string();
    let (all, schedule) = (&totals.all, &load.schedule);
    let span = schedule.duration.min(totals.sending).as_secs_f64();
    let ms = |d: Option<std::time::Duration>| d.map(|d| d.as_secs_f64() * 1e3);
    let client = ClientKeys {
        health: &context.client,
        bottleneck: !client_faults(load, totals, &context.client).is_empty(),
        warnings: warnings(load, totals, context),
    };
    let file = File {
        date: context.zone.to_datetime(context.started).strftime("%Y%m%d-%H%M%S").to_string(),
        endpoint_type: api_name(load.api),
        backend: api_name(load.api),
        label: None,
        model_id: &context.model,
        tokenizer_id: &context.model,
        num_prompts: all.count(),
        request_rate: schedule.arrivals.rate(),
        burstiness: schedule.arrivals.burstiness(),
        max_concurrency: schedule.arrivals.streams().or(load.max_concurrency),
        duration: totals.duration.as_secs_f64(),
        completed: all.completed,
        failed: all.failed,
        total_input_tokens: all.prompt_tokens,
        total_output_tokens: all.output_tokens,
        request_throughput: totals.per_second(all.completed),
        request_goodput: totals.has_slo.then(|| totals.per_second(all.good)),
        output_throughput: totals.per_second(all.output_tokens),
        total_token_throughput: totals.per_second(all.prompt_tokens + all.output_tokens),
        max_output_tokens_per_s: totals.series.iter().map(|s| s.pieces).max().unwrap_or(0),
        max_concurrent_requests: totals.peak_in_flight,
        flat: flat_keys(totals),
        experiment_id: experiment_id(load, context),
        profile_name: &schedule.mix.name,
        config: config(load, context),
        start_time: naive(context.started),
        end_time: naive(context.ended),
        metrics: Metrics {
            total_requests: all.count(),
            successful_requests: all.completed,
            failed_requests: all.failed + all.cancelled,
            throughput_rps: totals.per_second(all.completed),
            throughput_tok_s: totals.per_second(all.output_tokens),
            ttft_p50_ms: percentile(&all.ttft, 50.0),
            ttft_p99_ms: percentile(&all.ttft, 99.0),
            tpot_p50_ms: percentile(&all.tpot, 50.0),
            tpot_p99_ms: percentile(&all.tpot, 99.0),
            latency_p50_ms: percentile(&all.e2el, 50.0),
            latency_p99_ms: percentile(&all.e2el, 99.0),
        },
        schema_version: SCHEMA_VERSION,
        is_complete: totals.incomplete.is_none(),
        incomplete_reason: totals.incomplete.as_deref(),
        cancelled: all.cancelled,
        by_workload: totals
            .by_workload
            .iter()
            .map(|(n, s)| (n.as_str(), by_workload(s, totals.has_slo)))
            .collect(),
        errors: &totals.errors,
        error_examples: &totals.example,
        load: Load {
            requested_rate: schedule.arrivals.rate(),
            achieved_rate: (span > 0.0).then(|| totals.progress.sent as f64 / span),
            planned: schedule.requests.len() as u64,
            clamped: schedule.clamped,
            prompts_left_out: schedule.left_out,
            send_lag_ms: totals.lag.latency(),
            ttft_from_intended_ms: all.ttft_intended.latency(),
            e2el_from_intended_ms: all.e2el_intended.latency(),
            coalesced_pieces: totals.coalesced,
            pieces: totals.progress.chunks,
            without_usage: all.completed - all.with_usage,
            client,
        },
        slo_ms: SloMs { ttft: ms(load.slo.ttft), tpot: ms(load.slo.tpot), e2el: ms(load.slo.e2el) },
        steady_state: steady(totals),
        confidence: confidence(totals),
        prefix_cache_hit_rate: context.prefix_cache_hit_rate,
        timeseries: &totals.series,
    };
    serde_json::to_string_pretty(&file)
}

fn config<'a>(load: &'a Spec, context: &'a Context) -> Config<'a> {
    let schedule = &load.schedule;
    let workload = |w: &'a super::mix::Workload| ConfigWorkload {
        name: &w.name,
        kind: &w.name,
        weight: w.weight,
        input_mean: w.input.nominal_mean(),
        output_mean: w.output.nominal_mean(),
    };
    Config {
        arrival_process: schedule.arrivals.name(),
        target_rps: schedule.arrivals.rate(),
        concurrency: schedule.arrivals.streams().or(load.max_concurrency),
        duration_seconds: schedule.duration.as_secs_f64(),
        open_loop: schedule.arrivals.streams().is_none(),
        workloads: schedule.mix.workloads.iter().map(workload).collect(),
        seed: load.word_seed,
        shape_seed: load.shape_seed,
        context: schedule.context,
        context_margin: CONTEXT_MARGIN,
        chars_per_token: context.chars_per_token.0,
        chars_per_token_measured: context.chars_per_token.1,
        base_url: &context.base_url,
    }
}

fn api_name(api: Api) -> &'static str {
    match api {
        Api::Completions => "openai",
        Api::Chat => "openai-chat",
    }
}

/// Eight hex digits that differ between runs, as in the user's harness.
fn experiment_id(load: &Spec, context: &Context) -> String {
    let nanos = context.started.as_nanosecond() as u64;
    // Fibonacci hashing: neighbouring start times must not give neighbouring ids.
    format!("{:08x}", (nanos ^ load.word_seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32)
}

/// The lines of `benchmark_output.log` that are known before the first request.
pub fn log_head(load: &Spec, context: &Context) -> String {
    let schedule = &load.schedule;
    let mut text = String::new();
    let _ = if context.context_detected {
        writeln!(text, "Auto-detected model max context: {} tokens", schedule.context)
    } else {
        writeln!(text, "Could not detect model context, using default: {} tokens", schedule.context)
    };
    let _ = writeln!(text, "Starting load test: {}", schedule.mix.name);
    let _ = writeln!(text, "Model max context: {} tokens (margin: {CONTEXT_MARGIN})", schedule.context);
    let _ = writeln!(text, "Duration: {}s", schedule.duration.as_secs_f64());
    let _ = match schedule.arrivals.streams() {
        Some(streams) => writeln!(text, "Mode: Closed loop ({streams} streams)"),
        None => writeln!(text, "Mode: Open loop"),
    };
    let how = if load.temperature == 0.0 { "deterministic" } else { "sampled" };
    let _ = writeln!(text, "Temperature: {:?} ({how})", load.temperature);
    let _ = writeln!(text, "Target: {}", context.base_url);
    text
}

/// The lines that follow when it is over. `saved` is the name of the result file.
pub fn log_tail(totals: &Totals, warnings: &[String], saved: &str) -> String {
    let all = &totals.all;
    let mut text = String::new();
    let success = 100.0 * all.completed as f64 / all.count().max(1) as f64;
    let two = |sorted: &Sorted, digits: usize| {
        let show = |p| percentile(sorted, p).map_or("n/a".to_owned(), |v| format!("{v:.digits$}ms"));
        format!("p50={}, p99={}", show(50.0), show(99.0))
    };
    let _ = writeln!(text);
    if let Some(reason) = &totals.incomplete {
        let _ = writeln!(text, "INCOMPLETE: {reason}");
    }
    let _ = writeln!(text, "Completed: {} requests", all.count());
    let _ = writeln!(text, "Success rate: {success:.1}%");
    let _ = writeln!(
        text,
        "Throughput: {:.2} req/s, {:.1} tok/s",
        totals.per_second(all.completed),
        totals.per_second(all.output_tokens)
    );
    let _ = writeln!(text, "TTFT: {}", two(&all.ttft, 1));
    let _ = writeln!(text, "TPOT: {}", two(&all.tpot, 2));
    let _ = writeln!(text, "Latency: {}", two(&all.e2el, 1));
    for (class, count) in &totals.errors {
        let example = totals.example.get(class).map_or("", String::as_str);
        let _ = writeln!(text, "{class}: {count} requests, first: {example}");
    }
    for warning in warnings {
        let _ = writeln!(text, "Warning: {warning}");
    }
    let _ = writeln!(text);
    let _ = writeln!(text, "Results saved to {saved}");
    text
}
