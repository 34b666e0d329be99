//! What the program says about itself comes from the tables that it works with, and the documents say the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its stage must fail")]

use std::path::Path;
use std::process::{Command, Output};
use varcas_guard::config::settings::SETTINGS;
use varcas_guard::error::ExitCode;
use varcas_guard::recovery::causes;

fn guard(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_varcas-guard")).args(arguments).output().unwrap()
}

fn text(arguments: &[&str]) -> String {
    let output = guard(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn every_cause_exit_code_and_key_is_explained() {
    let mut arguments = vec!["explain", "--json"];
    let codes: Vec<String> = ExitCode::ALL.iter().map(|code| code.code().to_string()).collect();
    arguments.extend(causes::ALL.iter().map(|cause| cause.name));
    arguments.extend(codes.iter().map(String::as_str));
    arguments.extend(SETTINGS.iter().map(|setting| setting.key));
    let topics: Vec<serde_json::Value> = serde_json::from_str(&text(&arguments)).unwrap();
    assert_eq!(topics.len(), arguments.len() - 2);
    for topic in &topics {
        assert!(["cause", "exit-code", "key"].contains(&topic["kind"].as_str().unwrap()), "{topic}");
        assert!(topic["meaning"].as_str().is_some_and(|meaning| !meaning.is_empty()), "{topic}");
        assert!(topic["kind"] != "exit-code" || topic["advice"].is_string(), "{topic}");
        assert!(topic["kind"] != "cause" || topic["retry"].is_string(), "{topic}");
        assert!(topic["kind"] != "key" || topic["type"].is_string(), "{topic}");
    }
    let listed: Vec<serde_json::Value> =
        serde_json::from_str(&text(&["explain", "--list", "--json"])).unwrap();
    assert_eq!(listed.len(), topics.len());
    assert_eq!(text(&["explain", "--list"]).lines().count(), topics.len());
}

#[test]
fn the_default_is_the_one_that_the_plan_has() {
    for (key, default) in [
        ("retries", "3"),
        ("profile.budget", "\"5%\""),
        ("load.duration", "\"120s\""),
        ("budgets.startup", "\"30m\""),
        ("policy.mitigate", "true"),
        ("server.port-auto", "false"),
    ] {
        assert!(
            text(&["explain", key]).contains(&format!("default  {default}\n")),
            "{key}: {}",
            text(&["explain", key])
        );
    }
    for key in ["budgets.run", "profile.mode", "profile.at"] {
        assert!(!text(&["explain", key]).contains("\n  default"), "{key}");
    }
}

#[test]
fn the_last_part_of_a_key_is_enough_and_an_unknown_word_gets_a_suggestion() {
    assert!(text(&["explain", "window-steps"]).starts_with("profile.window-steps (key of guard.toml)"));
    for (word, near) in [("cuda-omo", "cuda-oom"), ("patience.idel", "patience.idle"), ("95", "93")] {
        let output = guard(&["explain", word]);
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains(&format!("`{word}` is no cause, exit code or key")), "{told}");
        assert!(told.contains(&format!("did you mean `{near}`?")) || word == "95", "{told}");
    }
}

#[test]
fn the_reference_of_guard_toml_is_the_one_in_the_documentation() {
    let made = text(&["explain", "--reference"]);
    assert_eq!(
        made,
        document("docs/guard-toml.md"),
        "make it again: varcas-guard explain --reference > docs/guard-toml.md"
    );
    assert!(SETTINGS.iter().all(|setting| made.contains(&format!("| `{}` |", setting.key))));
}

#[test]
fn the_readme_has_every_key_and_every_exit_code() {
    let readme = document("README.md");
    for setting in SETTINGS {
        assert!(readme.contains(&format!("| `{}` |", setting.key)), "{} is not in the README", setting.key);
    }
    for code in ExitCode::ALL {
        let row = format!("| {} | {} |", code.code(), code.meaning());
        assert!(readme.contains(&row), "the README lacks: {row}");
    }
}

#[test]
fn every_command_has_a_man_page_and_every_shell_completions() {
    let folder = tempfile::tempdir().unwrap();
    text(&["man", "--out", folder.path().to_str().unwrap()]);
    let names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in ["varcas-guard.1", "varcas-guard-run.1", "varcas-guard-salvage.1", "varcas-guard-explain.1"] {
        assert!(names.contains(&page.to_owned()), "{names:?}");
    }
    assert!(text(&["man"]).contains(".TH varcas-guard 1"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(text(&["completions", shell]).contains("explain"), "{shell}");
    }
}
