//! What cannot work is refused before anything is started, with a sentence that says what to do, an exit code of its own,
//! and without a change in any folder.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{Answer, FAST, Place};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use varcas_guard::event::EventKind;

/// Every file below, with its contents; a link with its target.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            if meta.is_symlink() {
                all.insert(
                    path.clone(),
                    std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                );
            } else if meta.is_dir() {
                all.insert(path.clone(), Vec::new());
                folders.push(path);
            } else {
                all.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// A refusal of the preflight leaves a folder that says why, and in it no attempt: nothing was started.
fn assert_refused(place: &Place, out: &str, answer: &Answer, words: &[&str]) {
    assert_eq!(answer.code, Some(69), "{answer:?}");
    let said = format!("{}{}", answer.out, answer.err);
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in: {said}");
    }
    let out = place.path(out);
    assert!(!out.join("attempt-1").exists(), "an attempt was made");
    let started =
        |kind: &EventKind| matches!(kind, EventKind::KeeperStarted { .. } | EventKind::ServerSpawned { .. });
    assert!(!e2e_support::events(&out).iter().any(|event| started(&event.kind)), "something was started");
    place.assert_no_scratch();
}

/// The command line or guard.toml is wrong: exit code 2, and no folder is made.
fn assert_usage(place: &Place, args: &[&str], words: &[&str]) {
    let before = tree(&place.path(""));
    let answer = place.ask(args);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    for word in words {
        assert!(answer.err.contains(word), "`{word}` is missing in: {}", answer.err);
    }
    assert_eq!(tree(&place.path("")), before, "something was written");
}

#[test]
fn a_port_that_is_taken_is_refused_with_the_name_of_its_holder() {
    let place = Place::new();
    let _taken = TcpListener::bind(("127.0.0.1", place.port)).unwrap();
    let port = place.port.to_string();
    let answer = place.ask(&["run", "--server", "sim", "--port", &port, "out"]);
    let pid = format!("pid {}", std::process::id());
    assert_refused(&place, "out", &answer, &[&pid, &port]);
    let check = place.ask(&["check", "--server", "sim", "--port", &port, "other"]);
    assert_eq!(check.code, Some(69), "{check:?}");
    assert!(check.out.contains(&pid) && check.out.contains("-> "), "{}", check.out);
    assert!(!place.path("other").exists());
}

#[test]
fn a_refused_run_says_what_to_do_and_its_folder_may_be_given_again() {
    let place = Place::new();
    let port = place.port.to_string();
    let args = ["run", "--server", "sim", "--port", &port, "--quiet", "out"];
    let taken = TcpListener::bind(("127.0.0.1", place.port)).unwrap();
    for times in 1..=2 {
        let answer = place.ask(&args);
        assert_eq!(answer.code, Some(69), "{answer:?}");
        assert!(answer.err.contains("error: port") && answer.err.contains("hint: "), "{}", answer.err);
        assert_eq!(place.path("out/refused-1/report.md").exists(), times == 2);
    }
    drop(taken);
    let config = place.config(FAST, "");
    let config = config.to_string_lossy();
    let answer = place.ask(&[
        "run",
        "--server",
        "sim",
        "--retries",
        "0",
        "--port",
        &port,
        "--duration",
        "2s",
        "--config",
        &config,
        "out",
    ]);
    assert_eq!(answer.code, Some(0), "{answer:?}");
    assert!(place.path("out/refused-2/events.jsonl").exists());
}

#[test]
fn a_model_folder_that_does_not_exist_is_refused() {
    let place = Place::new();
    let port = place.port.to_string();
    let args = ["--port", &port, "--python", "/bin/false", "--model", "/nonexistent/model"];
    let answer = place.ask(&[&["run"], &args[..], &["out"]].concat());
    assert_refused(&place, "out", &answer, &["there is no folder /nonexistent/model"]);
}

#[test]
fn a_python_without_vllm_is_refused() {
    let place = Place::new();
    let port = place.port.to_string();
    // An interpreter that finds no package at all, wherever this test runs.
    let python = place.path("python");
    std::fs::write(&python, "#!/bin/sh\nexec python3 -I -S \"$@\"\n").unwrap();
    std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let python = python.to_string_lossy();
    let answer = place.ask(&["run", "--port", &port, "--python", &python, "out"]);
    assert_refused(&place, "out", &answer, &["vLLM", &python]);
    let answer = place.ask(&["run", "--port", &port, "--python", "/nonexistent/python", "out2"]);
    assert_refused(&place, "out2", &answer, &["cannot start the Python interpreter /nonexistent/python"]);
}

#[test]
fn an_output_that_is_a_file_or_lies_below_one_is_refused() {
    let place = Place::new();
    std::fs::write(place.path("file"), "precious").unwrap();
    let before = tree(&place.path(""));
    for out in ["file", "file/below"] {
        let port = place.port.to_string();
        let answer = place.ask(&["run", "--server", "sim", "--port", &port, out]);
        assert_refused(&place, out, &answer, &["hint:", "file"]);
    }
    assert_eq!(tree(&place.path("")), before);
}

#[test]
fn the_folder_of_an_older_run_or_of_a_living_one_is_refused_and_not_touched() {
    let place = Place::new();
    let config = place.config(&format!("{FAST},load=10m"), "");
    let mut running = place.run("out", &config, &[]);
    running.until("the server", |kind| matches!(kind, EventKind::ServerSpawned { .. }).then_some(()));
    let other = e2e_support::free_port().to_string();
    let again = ["run", "--server", "sim", "--port", &other, "out"];
    let answer = place.ask(&again);
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.err.contains("belongs to a run that is alive"), "{answer:?}");
    running.signal(2);
    let done = running.wait();
    assert_eq!(done.code, Some(130), "{}", done.told());
    done.assert_nothing_left(&place);
    let before = tree(&done.out);
    let answer = place.ask(&again);
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.err.contains("holds an older run"), "{answer:?}");
    let check = place.ask(&["check", "--server", "sim", "--port", &other, "out"]);
    assert_eq!(check.code, Some(69), "{check:?}");
    assert_eq!(tree(&done.out), before, "the older run was touched");
}

#[test]
fn mistakes_of_the_command_line_are_usage_errors_and_make_no_folder() {
    let place = Place::new();
    assert_usage(&place, &["run", "--server", "sim", "--retries", "-1", "out"], &["--retries", "-1"]);
    assert_usage(&place, &["run", "--retires", "3", "out"], &["--retires", "--retries"]);
    assert_usage(&place, &["run", "--duration", "90", "out"], &["no unit", "90s"]);
    assert_usage(&place, &["run", "--port", "70000", "--duration", "x", "out"], &["--port", "--duration"]);
    assert_usage(&place, &["run", "--config", "nowhere.toml", "out"], &["nowhere.toml"]);
    assert_usage(&place, &["run", "--server", "command", "out"], &["--"]);
    assert_usage(&place, &["report", "nowhere"], &["nowhere", "hint:"]);
}

#[test]
fn all_mistakes_of_a_guard_toml_are_told_in_one_go_with_their_lines() {
    let place = Place::new();
    let text = "retires = 3\n[server]\nport = 99999\n\n[load]\nduration = 120\n";
    std::fs::write(place.path("guard.toml"), text).unwrap();
    // Also found without being named.
    for args in [&["run", "--server", "sim", "out"][..], &["check", "--config", "guard.toml"]] {
        let words = [
            "guard.toml:1:",
            "did you mean `retries`",
            "guard.toml:3:",
            "99999",
            "guard.toml:6:",
            "120 has no unit",
        ];
        assert_usage(&place, args, &words);
    }
}

#[test]
fn a_dry_run_tells_the_command_line_and_starts_nothing() {
    let place = Place::new();
    let config = place.config(FAST, "");
    let config = config.to_string_lossy();
    let port = place.port.to_string();
    let before = tree(&place.path(""));
    let args = ["run", "--dry-run", "--server", "sim", "--port", &port, "--config", &config, "out"];
    let answer = place.ask(&[&args[..], &["--", "-tp", "2"]].concat());
    assert_eq!(answer.code, Some(0), "{answer:?}");
    for word in [format!("--port {port}"), "-tp 2".to_owned(), format!("VARCAS_SIM={FAST}")] {
        assert!(answer.out.contains(&word), "`{word}` is missing in: {}", answer.out);
    }
    let answer = place.ask(&[&args[..], &["--json"]].concat());
    let value: serde_json::Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(value["argv"][1], "__sim", "{value:#}");
    let _taken = TcpListener::bind(("127.0.0.1", place.port)).unwrap();
    assert_eq!(place.ask(&args).code, Some(69));
    assert_eq!(tree(&place.path("")), before, "a dry run wrote something");
}

#[test]
fn check_says_yes_when_a_run_could_start() {
    let place = Place::new();
    let port = place.port.to_string();
    let before = tree(&place.path(""));
    let check = place.ask(&["check", "--server", "sim", "--port", &port, "out"]);
    assert_eq!(check.code, Some(0), "{check:?}");
    assert!(check.out.contains(&format!("port {port} is free")), "{}", check.out);
    assert_eq!(tree(&place.path("")), before, "a check wrote something");
}

#[test]
fn reap_leaves_a_living_run_alone() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(&format!("{FAST},load=10m"), ""), &[]);
    running.until("the server", |kind| matches!(kind, EventKind::ServerSpawned { .. }).then_some(()));
    let events = running.events();
    let Some(EventKind::RunStarted { run_id, .. }) = events.first().map(|event| &event.kind) else {
        panic!("{events:?}")
    };
    // Others on this machine may have left something, so this only looks.
    let reap = place.ask(&["reap", "--dry-run"]);
    assert_eq!(reap.code, Some(0), "{reap:?}");
    assert!(!reap.out.contains(run_id.as_str()), "{}", reap.out);
    assert!(!e2e_support::alive(&running.out).is_empty());
    running.signal(2);
    assert_eq!(running.wait().code, Some(130));
}

#[test]
fn a_file_of_rules_with_mistakes_is_refused_with_file_and_line() {
    let place = Place::new();
    let rule = |id: &str, pattern: &str, example: &str| {
        format!(
            "[[rule]]\nid = \"{id}\"\npattern = '{pattern}'\ncause = \"mine\"\nseverity = \"fatal\"\n\
             source = \"us\"\nexample = \"{example}\"\n\n"
        )
    };
    let text = rule("one", "something (bad", "something bad")
        + &rule("two", "something else", "nothing of the kind")
        + &rule("cuda-oom", "quite another", "quite another");
    std::fs::write(place.path("rules.toml"), text).unwrap();
    let answer = place.ask(&["run", "--server", "sim", "--rules", "rules.toml", "out"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    for told in ["rules.toml:3: ", "rules.toml:15: ", "rules.toml:18: ", "is taken by built-in rules:"] {
        assert!(answer.err.contains(told), "{told} in {}", answer.err);
    }
    assert!(!place.path("out").exists());
    let answer = place.ask(&["check", "--server", "sim", "--rules", "no-such.toml"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    assert!(answer.err.contains("no-such.toml"), "{}", answer.err);
}
