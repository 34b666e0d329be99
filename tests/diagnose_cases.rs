//! `diagnose` against labelled failure logs and whole server logs that lie beside the checkout. Nothing of them is copied
//! here; without them these tests say that they did nothing. The figures are printed (`-- --nocapture`).

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod cases_support;

use cases_support::{cases, shared};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn diagnose_text(log: &str) -> Value {
    let mut child = Command::new(env!("CARGO_BIN_EXE_varcas-guard"))
        .args(["diagnose", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn diagnose_file(path: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_varcas-guard"))
        .args(["diagnose", "--json"])
        .arg(path)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every line with this text.
fn numbers_of(log: &str, line: &str) -> Vec<u64> {
    let is = |candidate: &str| candidate.trim_end() == line.trim_end();
    (1..).zip(log.split('\n')).filter(|(_, text)| is(text)).map(|(number, _)| number).collect()
}

#[derive(Default)]
struct Score {
    all: usize,
    cause: usize,
    outcome: usize,
    line: usize,
    retry: usize,
}

#[test]
fn the_labelled_cases_get_their_cause_outcome_and_line() {
    let Some(cases) = cases() else { return };
    let mut scores: BTreeMap<&str, Score> = BTreeMap::new();
    let (mut total, mut verbatim) = (Score::default(), Score::default());
    let mut wrong = Vec::new();
    for case in &cases {
        let verdict = diagnose_text(&case.log);
        let cause = verdict["cause"] == case.class.as_str();
        let outcome = verdict["outcome"] == case.outcome.as_str();
        let number = verdict["line_number"].as_u64().unwrap_or_default();
        let line = numbers_of(&case.log, &case.decisive_line).contains(&number);
        let retry = verdict["retry"] == case.retry_helps.as_str();
        if !(cause && outcome && line) {
            wrong.push(format!(
                "{}: {} {} {} line {number} {}\n     wanted {:?}",
                case.id,
                case.outcome,
                verdict["cause"],
                verdict["outcome"],
                verdict["decisive_line"],
                case.decisive_line
            ));
        }
        let misled: Vec<&String> = case
            .misleading_lines
            .iter()
            .filter(|line| numbers_of(&case.log, line).contains(&number))
            .collect();
        assert!(misled.is_empty(), "{}: a misleading line is decisive: {misled:?}", case.id);
        let count = |score: &mut Score| {
            score.all += 1;
            score.cause += usize::from(cause);
            score.outcome += usize::from(outcome);
            score.line += usize::from(line);
            score.retry += usize::from(retry);
        };
        count(scores.entry(&case.class).or_default());
        count(&mut total);
        if case.provenance.ends_with("verbatim") {
            count(&mut verbatim);
        }
    }
    let row = |name: &str, score: &Score| {
        println!(
            "{name:<28} {:>4} {:>6} {:>8} {:>5} {:>6}",
            score.all, score.cause, score.outcome, score.line, score.retry
        );
    };
    println!("{:<28} {:>4} {:>6} {:>8} {:>5} {:>6}", "class", "all", "cause", "outcome", "line", "retry");
    for (class, score) in &scores {
        row(class, score);
    }
    row("all", &total);
    row("verbatim", &verbatim);
    println!("{}", wrong.join("\n"));
    assert_eq!((verbatim.all, verbatim.cause, verbatim.outcome), (29, 29, 29));
    let enough = total.all - total.all / 20;
    assert!(total.cause >= enough && total.outcome >= enough && total.line >= enough, "{}", wrong.join("\n"));
}

#[test]
fn the_whole_logs_get_their_cause_and_outcome() {
    let logs = [
        ("user/healthy-eager-graceful-stop.log", "graceful-shutdown", "harmless"),
        ("user/profiler-404.log", "profiler-404", "degraded"),
        ("user/start-profile-then-flush-stall.log", "profiler-flush-stall", "hang"),
        ("user/benchmark_output.log", "healthy", "harmless"),
        ("measured/cpu-0.15.1-basic.log", "graceful-shutdown", "harmless"),
        // Killed without a word, or still loading: the log alone cannot tell.
        ("measured/cpu-0.15.1-kill-api-during-load.log", "healthy", "harmless"),
        ("measured/cpu-0.15.1-kill-engine-during-load.log", "killed-externally", "crash"),
        ("measured/cpu-0.15.1-port-in-use.log", "healthy", "harmless"),
        ("measured/cpu-0.15.1-profiled-enospc.log", "graceful-shutdown", "harmless"),
        ("measured/cpu-0.15.1-profiled-worker.log", "killed-externally", "crash"),
        ("measured/cpu-0.15.1-sigterm-load.log", "graceful-shutdown", "harmless"),
        ("measured/cpu-0.15.1-stock-profiler.log", "kineto-thread-mismatch", "degraded"),
        ("measured/h100-0.22.1-healthy-then-killed.log", "healthy", "harmless"),
        ("measured/h100-0.22.1-missing-flashinfer-module.log", "python-dependency-error", "startup-failure"),
        ("measured/h100-0.22.1-stock-profiler-flush-stall.log", "profiler-flush-stall", "hang"),
    ];
    let mut wrong = Vec::new();
    for (name, cause, outcome) in logs {
        let Some(path) = shared(&format!("logs/{name}")) else { return };
        let verdict = diagnose_file(&path);
        println!("{name}: {} {} line {}", verdict["cause"], verdict["outcome"], verdict["line_number"]);
        if verdict["cause"] != cause || verdict["outcome"] != outcome {
            wrong.push(format!("{name}: {cause} {outcome}: {verdict:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
