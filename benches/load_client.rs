//! What the client itself costs, against a server that somebody started on loopback:
//! `cargo bench --bench load_client -- URL RATE SECONDS PROMPT_TOKENS MAX_TOKENS`. RATE is requests a second at equal gaps,
//! or `cN` for a closed loop of N streams. Prints CPU time, not wall time: the server shares the machine.

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use std::time::Duration;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::driver::{Limits, Load, LoadFiles, Target, run_load};
use varcas_guard::workload::load::mix::{Length, Mix, Shape, Template, Workload};
use varcas_guard::workload::load::prompt::TokenModel;
use varcas_guard::workload::load::schedule::Schedule;

fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("a process can ask for its own usage");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

fn resident_kib(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with(key)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let Some(url) = args.next() else {
        println!("load_client: no URL given, nothing measured");
        return;
    };
    let rate = args.next().unwrap_or_else(|| "100".to_owned());
    let arrivals = match rate.strip_prefix('c') {
        Some(streams) => Arrivals::Closed { streams: streams.parse().expect("a number of streams") },
        None => Arrivals::Constant { rate: rate.parse().expect("a rate") },
    };
    let mut number = |default: f64| args.next().map_or(default, |a| a.parse().expect("a number"));
    let (seconds, input, output) = (number(5.0), number(1000.0), number(200.0));
    let fixed = |tokens: f64| Length { shape: Shape::Fixed { tokens: tokens as u32 }, min: 1, max: 1 << 20 };
    let mix = Mix {
        name: "fixed".to_owned(),
        workloads: vec![Workload::simple(
            "fixed",
            1.0,
            fixed(input),
            fixed(output),
            Template::parse("plain").expect("a built-in template"),
        )],
    };
    let schedule =
        Schedule::draw(mix, arrivals, Duration::from_secs_f64(seconds), 1 << 20, 1).expect("a schedule");
    let target = Target {
        base_url: url,
        model: "mock".to_owned(),
        max_model_len: 1 << 20,
        context_detected: true,
        tokens: TokenModel::default(),
        api_key: None,
    };
    let dir = tempfile::tempdir().expect("a temporary folder");
    let files = LoadFiles {
        requests: dir.path().join("requests.jsonl"),
        benchmark_json: dir.path().join("benchmark.json"),
        benchmark_log: dir.path().join("benchmark_output.log"),
    };
    let (_keep, stop) = tokio::sync::watch::channel(false);
    let load = Load {
        limits: Limits { total: Duration::from_secs(300), idle: None },
        drain: Duration::from_secs(60),
        ..Load::new(schedule, 1, 1)
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
    let (before, base) = (cpu(), resident_kib("VmRSS"));
    let summary = runtime.block_on(run_load(&target, load, &files, stop, |_| {})).expect("the load runs");
    let spent = cpu() - before;
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(files.benchmark_json).expect("a result")).expect("JSON");
    let chunks = summary.progress.chunks.max(1);
    println!(
        "requests {} failed {} cancelled {} chunks {chunks} in {:.2} s = {:.0} chunks/s, {:.0} req/s",
        summary.progress.completed,
        summary.progress.failed,
        summary.cancelled,
        summary.duration.as_secs_f64(),
        chunks as f64 / summary.duration.as_secs_f64(),
        summary.request_throughput
    );
    println!(
        "client cpu {:.3} s = {:.3} us/chunk, {:.1} us/request",
        spent.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / chunks as f64,
        spent.as_secs_f64() * 1e6 / summary.progress.sent.max(1) as f64
    );
    println!(
        "ttft ms p50 {:.3} p99 {:.3} max {:.3}; send lag {}; loop lag {}",
        summary.ttft_ms.p50,
        summary.ttft_ms.p99,
        summary.ttft_ms.max,
        result["load"]["send_lag_ms"],
        result["load"]["client"]["loop_lag_ms"],
    );
    let peak = resident_kib("VmHWM");
    let open = result["max_concurrent_requests"].as_u64().unwrap_or(1).max(1);
    println!(
        "peak open {open}; resident before {base} KiB, peak {peak} KiB = {:.1} KiB per open stream",
        peak.saturating_sub(base) as f64 / open as f64
    );
    println!("errors {:?}", summary.errors);
}
