//! `varcas-guard bench` from its arguments to its exit code.

use super::support::{Mock, Step, chunk, good, json, piece, stream_head};
use clap::Parser;
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use varcas_guard::cli::bench;
use varcas_guard::error::ExitCode as Code;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: bench::Args,
}

fn run(line: &str, output: &Path) -> ExitCode {
    let words = line.split_whitespace().chain(["--output", output.to_str().unwrap()]);
    bench::run(Cli::try_parse_from(std::iter::once("bench").chain(words)).unwrap().args)
}

fn is(code: ExitCode, want: Code) -> bool {
    format!("{code:?}") == format!("{:?}", ExitCode::from(want))
}

/// A healthy server with one model, no tokenizer and streams of two pieces.
fn server() -> Mock {
    Mock::start(|request| match request.line.split(' ').nth(1).unwrap() {
        "/health" => json(200, ""),
        "/v1/models" => json(200, r#"{"data":[{"id":"m","max_model_len":2048}]}"#),
        "/v1/completions" => good(2),
        _ => json(404, ""),
    })
}

#[test]
fn a_good_bench_leaves_three_files_and_code_0() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep/folder");
    let server = server();
    let url = server.url();
    assert!(is(run(&format!("--url {url} --rate 50 --duration 1s --mix chat"), &out), Code::Success));
    for name in ["requests.jsonl", "benchmark.json", "benchmark_output.log"] {
        assert!(out.join(name).is_file(), "{name}");
    }
}

#[test]
fn a_sweep_has_a_folder_for_each_rate_and_ends_when_the_server_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let server = Mock::start(|request| match request.line.split(' ').nth(1).unwrap() {
        "/health" => json(200, ""),
        "/v1/models" => json(200, r#"{"data":[{"id":"m","max_model_len":2048}]}"#),
        "/v1/completions" => {
            [vec![stream_head(), Step::Pause(Duration::from_millis(50))], good(2)[1..].to_vec()].concat()
        }
        _ => json(404, ""),
    });
    let url = server.url();
    // One at a time, 50 ms each: 5 a second are nothing, 40 a second are twice too many.
    let line = format!(
        "--url {url} --rate 5 --arrivals constant --duration 1s --mix chat --sweep --max-concurrency 1"
    );
    assert!(is(run(&line, dir.path()), Code::Success));
    assert!(dir.path().join("rate-5/benchmark.json").is_file());
    assert!(dir.path().join("rate-10/benchmark.json").is_file());
    let sweep: Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("sweep.json")).unwrap()).unwrap();
    let steps = sweep["steps"].as_array().unwrap();
    let (good, bad) = (sweep["sustained_rate"].as_f64(), sweep["saturated_rate"].as_f64().unwrap());
    // Two rates that were halved to, between the last good one and the first bad one.
    assert!(steps.len() >= 3 && bad <= 40.0, "{sweep}");
    assert!(good.is_some_and(|good| good < bad && bad < 1.2 * good), "{sweep}");
    for step in steps {
        assert_eq!(step["saturated"], step["rate"].as_f64().unwrap() >= bad, "{sweep}");
        assert!(dir.path().join(step["folder"].as_str().unwrap()).join("requests.jsonl").is_file());
    }
}

fn prompts(server: &Mock) -> Vec<String> {
    let mut counts = server.counts.lock().unwrap();
    let taken = std::mem::take(&mut counts.requests);
    let load = taken.iter().filter(|r| r.body["seed"] == 42);
    load.map(|r| r.body["prompt"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn each_bench_has_other_words_unless_a_seed_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let server = server();
    let line = format!("--url {} --rate 50 --duration 300ms --mix chat", server.url());
    let sent = |seed: &str| {
        assert!(is(run(&format!("{line} {seed}"), dir.path()), Code::Success));
        let mut prompts = prompts(&server);
        prompts.sort_unstable();
        prompts
    };
    let (one, two) = (sent(""), sent(""));
    assert_eq!(one.len(), two.len());
    assert!(!one.is_empty() && one.iter().all(|prompt| !two.contains(prompt)));
    assert_eq!(sent("--word-seed 5"), sent("--word-seed 5"));
}

#[test]
fn a_result_file_of_the_harness_is_sent_again_prompt_by_prompt() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("result.json");
    let record = |at: f64, prompt: &str| {
        format!(
            r#"{{"workload_name":"chat","timestamp_sent":{at},"prompt_text":"{prompt}","input_tokens":2,"output_tokens":5}}"#
        )
    };
    let records = [record(100.2, "second"), record(100.0, "first"), record(100.3, "third")].join(",");
    std::fs::write(&trace, format!(r#"{{"records":[{records}]}}"#)).unwrap();
    let server = server();
    let out = dir.path().join("out");
    let code = run(&format!("--url {} --trace {}", server.url(), trace.display()), &out);
    assert!(is(code, Code::Success));
    let mut sent = prompts(&server);
    sent.sort_unstable();
    assert_eq!(sent, ["first", "second", "third"]);
    let mut moments: Vec<f64> = super::support::lines(&out.join("requests.jsonl"))
        .iter()
        .map(|line| line["intended_ms"].as_f64().unwrap().round())
        .collect();
    moments.sort_by(f64::total_cmp);
    assert_eq!(moments, [0.0, 200.0, 300.0]);
    let result: Value = serde_json::from_slice(&std::fs::read(out.join("benchmark.json")).unwrap()).unwrap();
    assert_eq!(result["config"]["arrival_process"], "trace");
    assert_eq!(result["by_workload"]["chat"]["completed"], 3);
}

#[test]
fn a_server_that_cannot_be_measured_is_refused_before_the_load() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("none");
    let refused = |server: &Mock, more: &str| {
        let code = run(&format!("--url {} --rate 50 --duration 300ms --mix chat {more}", server.url()), &out);
        assert!(!out.exists() && prompts(server).is_empty());
        code
    };
    let no_model = Mock::start(|request| match request.line.split(' ').nth(1).unwrap() {
        "/v1/models" => json(200, r#"{"data":[]}"#),
        _ => json(200, ""),
    });
    assert!(is(refused(&no_model, ""), Code::Refused));
    let tiny = Mock::start(|request| match request.line.split(' ').nth(1).unwrap() {
        "/v1/models" => json(200, r#"{"data":[{"id":"m","max_model_len":60}]}"#),
        "/v1/completions" => good(1),
        _ => json(200, ""),
    });
    assert!(is(refused(&tiny, ""), Code::Usage));
    let without_usage = Mock::start(|request| match request.line.split(' ').nth(1).unwrap() {
        "/v1/models" => json(200, r#"{"data":[{"id":"m","max_model_len":2048}]}"#),
        "/v1/completions" => {
            let end = [chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n".to_vec()].concat();
            vec![stream_head(), piece("a"), Step::Send(end)]
        }
        _ => json(200, ""),
    });
    assert!(is(refused(&without_usage, ""), Code::Refused));
    let line = format!("--url {} --rate 50 --duration 300ms --mix chat --without-usage", without_usage.url());
    assert!(is(run(&line, &out), Code::Success));
    let log = std::fs::read_to_string(out.join("benchmark_output.log")).unwrap();
    assert!(log.contains("without usage: their tokens are not counted"), "{log}");
    let result: Value = serde_json::from_slice(&std::fs::read(out.join("benchmark.json")).unwrap()).unwrap();
    assert!(result["median_tpot_ms"].is_null() && result["median_ttft_ms"].is_number());
}

#[test]
fn bad_input_is_refused_before_a_request_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("none");
    let mix = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    std::fs::write(dir.path().join("bad.jsonl"), "{\"prompt\":\"a\"}\nnope\n").unwrap();
    let output = "output = { dist = \"fixed\", tokens = 5 }\n";
    let zero = mix("zero.toml", &format!("name = \"z\"\n[[workload]]\nname = \"a\"\nweight = 0\n{output}"));
    let none = mix("none.toml", "name = \"z\"\nworkload = []\n");
    let data = mix(
        "data.toml",
        &format!("name = \"z\"\n[[workload]]\nname = \"a\"\ndataset = \"bad.jsonl\"\n{output}"),
    );
    let typo = mix("typo.toml", "name = \"z\"\n[[worklod]]\n");
    for line in [
        "--rate 0",
        "--rate nan",
        "--rate -1",
        "--duration 0s",
        "--mix nowhere",
        "--arrivals gamma --burstiness 0",
        "--arrivals closed --streams 0",
        "--arrivals closed --sweep",
        "--temperature nan",
        "--api-key-env VARCAS_GUARD_NO_SUCH_NAME",
        &format!("--mix {zero}"),
        &format!("--mix {none}"),
        &format!("--mix {data}"),
        &format!("--mix {typo}"),
    ] {
        // Nobody listens there: a request would be refused with another code.
        let code = run(&format!("--url http://127.0.0.1:1 --wait 1s {line}"), &out);
        assert!(is(code, Code::Usage), "{line}: {code:?}");
        assert!(!out.exists(), "{line}");
    }
    let away = run("--url http://127.0.0.1:1 --wait 300ms", &out);
    assert!(is(away, Code::Refused));
    assert!(is(run("--url nonsense", &out), Code::Refused));
}
