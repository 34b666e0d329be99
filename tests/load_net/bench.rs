//! `varcas-guard bench` from its arguments to its exit code.

use super::support::{Mock, good, json};
use clap::Parser;
use std::path::Path;
use std::process::ExitCode;
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
    let server = server();
    let url = server.url();
    // One stream at a time and a drain of nothing: some rate is too much for it.
    let line = format!(
        "--url {url} --rate 200 --arrivals constant --duration 1s --mix chat --sweep --max-concurrency 1 --drain 0s"
    );
    assert!(is(run(&line, dir.path()), Code::Success));
    assert!(dir.path().join("rate-200/benchmark.json").is_file());
    assert!(dir.path().join("rate-400/benchmark.json").is_file());
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
