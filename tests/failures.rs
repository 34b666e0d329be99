//! Logs of real failures of a real vLLM that were provoked on purpose (`benches/failures/provoke_cpu.py` and
//! `provoke_gpu.sh`): each verdict is right. What a log cannot say is expected to be told so: one whose engine the kernel
//! killed looks like any other killed engine.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/failures")
}

/// Log, cause, outcome, words.
fn expected() -> Vec<[String; 4]> {
    let text = std::fs::read_to_string(folder().join("expected.tsv")).unwrap();
    let row = |line: &str| {
        let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
        <[String; 4]>::try_from(fields).unwrap_or_else(|fields| panic!("{fields:?}"))
    };
    text.lines().filter(|line| !line.starts_with('#')).map(row).collect()
}

#[test]
fn every_provoked_failure_gets_its_cause_outcome_and_line() {
    let mut wrong = Vec::new();
    for [log, cause, outcome, words] in expected() {
        let path = folder().join(format!("{log}.log"));
        let output = Command::new(env!("CARGO_BIN_EXE_varcas-guard"))
            .args(["diagnose", "--json"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let verdict: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let line = verdict["decisive_line"].as_str().unwrap_or_default();
        println!("{log}: {} {}", verdict["cause"], verdict["outcome"]);
        if verdict["cause"] != *cause || verdict["outcome"] != *outcome || !line.contains(words.as_str()) {
            wrong.push(format!(
                "{log}: {cause} {outcome} {words:?}, not {} {} {line:?}",
                verdict["cause"], verdict["outcome"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_log_has_its_expectation_and_names_nobody_s_machine() {
    let names: BTreeSet<String> = expected().into_iter().map(|[log, ..]| log).collect();
    let mut logs = BTreeSet::new();
    for entry in std::fs::read_dir(folder()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let Some(log) = name.strip_suffix(".log") else { continue };
        logs.insert(log.to_owned());
        let text = std::fs::read_to_string(entry.path()).unwrap();
        assert!(text.len() < 200_000, "{log} is {} bytes long", text.len());
        for folder in ["home", "root", "Users"] {
            let path = format!("/{folder}/");
            let own = text.split(&path).skip(1).any(|rest| !rest.starts_with("user/"));
            assert!(!own, "{log} names something below {path}");
        }
    }
    assert_eq!(logs, names);
    assert!(logs.len() >= 20);
}
