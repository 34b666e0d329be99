//! What a result says of itself: whether the client was the bottleneck, whether the server fell behind, and the keys that
//! people's scripts read.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use serde_json::Value;
use std::time::Duration;
use varcas_guard::event::Latency;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::mix::Mix;
use varcas_guard::workload::load::outcome::{ErrorClass, Fault, Record};
use varcas_guard::workload::load::result::{Client, Context, json, log_tail, warnings};
use varcas_guard::workload::load::schedule::Schedule;
use varcas_guard::workload::load::spec::Load;
use varcas_guard::workload::load::stream::{Finish, Usage};
use varcas_guard::workload::load::tally::{Slo, Tally, Totals};

const MS: Duration = Duration::from_millis(1);

fn load() -> Load {
    let arrivals = Arrivals::Constant { rate: 10.0 };
    let schedule = Schedule::draw(Mix::named("chat").unwrap(), arrivals, 60_000 * MS, 4096, 1).unwrap();
    Load::new(schedule, 1, 1)
}

fn context(client: Client) -> Context {
    let epoch = jiff::Timestamp::UNIX_EPOCH;
    Context {
        started: epoch,
        ended: epoch,
        zone: jiff::tz::TimeZone::UTC,
        base_url: "http://127.0.0.1:1".to_owned(),
        model: "m".to_owned(),
        context_detected: true,
        chars_per_token: (4.0, false),
        client,
        prefix_cache_hit_rate: None,
        unrecorded: None,
    }
}

/// Request `id` of ten a second: sent `lag` late, first token after `ttft`, over after another 90 ms.
fn record(id: u32, lag: Duration, ttft: Duration) -> Record {
    let intended = 100 * id * MS;
    let mut record = Record::new(id, 0, intended, 50, 10);
    record.sent = intended + lag;
    record.piece(record.sent + ttft);
    record.piece(record.sent + ttft + 90 * MS);
    record.ended = record.sent + ttft + 91 * MS;
    record.usage = Some(Usage { prompt_tokens: 50, completion_tokens: 10 });
    record.finish = Some(Finish::Length);
    record.status = Some(200);
    record
}

/// How late a request is sent, by its id.
type Lag = fn(u32) -> Duration;

fn totals(load: &Load, lag: Lag) -> Totals {
    let mut tally = Tally::new(&load.schedule, Slo::default());
    for id in 0..500 {
        let record = record(id, lag(id), (40 + id % 5) * MS);
        tally.sent(&record);
        tally.ended(&record);
    }
    tally.finish(None)
}

fn healthy() -> Client {
    let loop_lag_ms = Latency { n: 100, mean: 1.0, p50: 1.0, p90: 1.2, p99: 1.5, max: 2.0 };
    Client { cpu_pct: Some(12.0), loop_lag_ms }
}

#[test]
fn a_result_whose_client_was_the_bottleneck_says_so() {
    let load = load();
    let late: Lag = |id| if id.is_multiple_of(20) { 45 * MS } else { MS };
    let busy = Client { cpu_pct: Some(93.0), ..healthy() };
    let stalled = Client { loop_lag_ms: Latency { p99: 31.0, ..healthy().loop_lag_ms }, ..healthy() };
    let unknown = Client { cpu_pct: None, loop_lag_ms: Latency::default() };
    let cases: [(Client, Lag, Option<&str>); 5] = [
        (healthy(), |_| MS, None),
        (unknown, |_| MS, None),
        (busy, |_| MS, Some("more than 80 % of a core")),
        (stalled, |_| MS, Some("timers of the client fired 31 ms late")),
        (healthy(), late, Some("sent requests 45 ms late")),
    ];
    for (client, lag, want) in cases {
        let (totals, context) = (totals(&load, lag), context(client));
        let result: Value = serde_json::from_str(&json(&load, &totals, &context).unwrap()).unwrap();
        let client = &result["load"]["client"];
        assert_eq!(client["bottleneck"], want.is_some(), "{client}");
        let warnings = warnings(&load, &totals, &context);
        assert_eq!(client["warnings"], serde_json::json!(warnings));
        assert_eq!(warnings.len(), usize::from(want.is_some()), "{warnings:?}");
        let log = log_tail(&totals, &warnings, "benchmark.json");
        if let Some(want) = want {
            assert!(warnings[0].contains(want) && log.contains(want), "{warnings:?} {log}");
        }
    }
    // Behind a limit the wait is what was asked for.
    let limited = Load { max_concurrency: Some(1), ..load };
    assert_eq!(warnings(&limited, &totals(&limited, late), &context(healthy())), Vec::<String>::new());
}

#[test]
fn the_live_percentiles_are_those_of_the_records_to_three_digits() {
    let load = load();
    let mut tally = Tally::new(&load.schedule, Slo::default());
    assert_eq!((tally.progress().ttft_p50_us, tally.progress().ttft_p99_us), (0, 0));
    for id in 0..1000 {
        let record = record(id, Duration::ZERO, Duration::from_micros(u64::from(id + 1) * 997));
        tally.sent(&record);
        tally.ended(&record);
    }
    let live = tally.progress();
    for (got, rank) in [(live.ttft_p50_us, 500.0), (live.ttft_p99_us, 990.0)] {
        let want = rank * 997.0;
        assert!((got as f64 / want - 1.0).abs() < 0.001, "{got} {want}");
    }
    let words = varcas_guard::event::words::progress(&live);
    assert!(words.contains(", TTFT p50 498."), "{words}");
}

#[test]
fn a_server_that_falls_behind_is_noticed_while_the_load_goes_on_and_one_that_keeps_up_is_not() {
    let load = load();
    // 50 requests a second; all are answered in time, or only four of five ever are.
    let behind = |seconds: u32, answered: u32| {
        let mut tally = Tally::new(&load.schedule, Slo::default());
        for id in 0..seconds * 50 {
            let mut record = record(0, Duration::ZERO, 40 * MS);
            for at in [&mut record.intended, &mut record.sent, &mut record.ended] {
                *at += 20 * id * MS;
            }
            tally.sent(&record);
            if id % 5 < answered {
                tally.ended(&record);
            }
        }
        tally.is_falling_behind()
    };
    assert!(behind(20, 4));
    assert!(!behind(20, 5));
    assert!(!behind(5, 0), "a few seconds show nothing");
}

#[test]
fn the_gaps_of_one_workload_are_not_those_of_another() {
    let mixed =
        Schedule::draw(Mix::named("mixed").unwrap(), Arrivals::Constant { rate: 10.0 }, 60_000 * MS, 4096, 1);
    let mut tally = Tally::new(&mixed.unwrap(), Slo::default());
    for (workload, gap) in [(0, 10), (1, 30), (2, 50), (1, 30)] {
        tally.piece(workload, 100 * MS, None);
        tally.piece(workload, (100 + gap) * MS, Some(100 * MS));
    }
    let summary = tally.finish(None).summary();
    let seen: Vec<(u64, f64)> = summary.by_workload.iter().map(|w| (w.itl_ms.n, w.itl_ms.p50)).collect();
    assert_eq!(seen, [(1, 10.0), (2, 30.0), (1, 50.0)]);
    assert_eq!((summary.itl_ms.n, summary.itl_ms.max), (4, 50.0));
}

#[test]
fn every_key_that_scripts_read_is_there() {
    let load = load();
    let mut tally = Tally::new(&load.schedule, Slo { ttft: Some(42 * MS), ..Slo::default() });
    for id in 0..100 {
        let mut record = record(id, Duration::ZERO, (40 + id % 5) * MS);
        if id == 99 {
            record.fault = Some(Fault::new(ErrorClass::Cancelled, "it was stopped"));
        }
        tally.sent(&record);
        tally.piece(0, record.first.unwrap(), None);
        tally.piece(0, record.last.unwrap(), record.first);
        tally.ended(&record);
    }
    let totals = tally.finish(Some("it was stopped".to_owned()));
    let result: Value = serde_json::from_str(&json(&load, &totals, &context(healthy())).unwrap()).unwrap();
    // `vllm bench serve --save-result` of 0.15.1, with all four metrics.
    let mut keys: Vec<String> = [
        "date",
        "endpoint_type",
        "backend",
        "label",
        "model_id",
        "tokenizer_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        // The user's harness.
        "experiment_id",
        "profile_name",
        "config",
        "start_time",
        "end_time",
        "metrics",
        // Ours.
        "is_complete",
        "incomplete_reason",
        "by_workload",
        "timeseries",
        "errors",
        "load",
    ]
    .map(str::to_owned)
    .to_vec();
    for metric in ["ttft", "tpot", "itl", "e2el"] {
        keys.extend(["mean", "median", "std", "p99"].map(|what| format!("{what}_{metric}_ms")));
    }
    for key in keys {
        assert!(result.get(&key).is_some(), "{key} is missing");
    }
    assert_eq!(
        (&result["is_complete"], &result["incomplete_reason"]),
        (&false.into(), &"it was stopped".into())
    );
    assert_eq!((&result["completed"], &result["cancelled"]), (&99.into(), &1.into()));
    // TTFT is 40 to 44 ms, each as often; 60 of 99 keep 42 ms (the cancelled one had 44).
    let good = &result["by_workload"]["chat"]["good"];
    assert_eq!(good, 60);
    // 90 ms for nine further tokens; the gap between the two pieces is 90 ms.
    assert!((result["median_tpot_ms"].as_f64().unwrap() - 10.0).abs() < 1e-6);
    assert!((result["median_itl_ms"].as_f64().unwrap() - 90.0).abs() < 1e-6);
    assert_eq!(result["by_workload"]["chat"]["itl_ms"]["p50"], 90.0);
    assert!((result["median_ttft_ms"].as_f64().unwrap() - 42.0).abs() < 1e-6);
    assert!((result["median_e2el_ms"].as_f64().unwrap() - 132.0).abs() < 1e-6);
    let steady = &result["steady_state"];
    let whole = 10 * (steady["to_s"].as_u64().unwrap() - steady["from_s"].as_u64().unwrap());
    assert_eq!((&steady["to_s"], &steady["completed"]), (&9.into(), &whole.into()));
    let seconds = result["timeseries"].as_array().unwrap();
    let sent: u64 = seconds.iter().map(|s| s["sent"].as_u64().unwrap()).sum();
    assert_eq!((seconds.len(), sent), (11, 100));
}
