//! `runs`, `status`, `top` and `clean` on runs that are over, alive and killed.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;
mod terminal_support;

use e2e_support::{FAST, Place, Running, alive, wait_for};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use terminal_support::{Tmux, no_tmux};

const SIGKILL: i32 = 9;

/// A run whose benchmark lasts until it is stopped.
fn long<'a>(place: &'a Place, name: &str, knobs: &str) -> Running<'a> {
    let mut running = place.run(name, &place.config(knobs, ""), &["--duration", "300s"]);
    running.until_under_load();
    running
}

fn kill(place: &Place, running: Running<'_>) {
    running.signal(SIGKILL);
    let done = running.wait();
    wait_for("the keeper's work", || alive(&done.out).is_empty().then_some(()));
    place.assert_no_scratch();
}

fn listed(place: &Place) -> Value {
    let told = place.ask(&["runs", ".", "--json"]);
    assert_eq!(told.code, Some(0), "{}", told.err);
    serde_json::from_str(&told.out).unwrap()
}

fn field(runs: &Value, name: &str) -> Vec<Value> {
    runs.as_array().unwrap().iter().map(|run| run[name].clone()).collect()
}

#[test]
fn runs_that_are_over_killed_and_alive_are_told_apart_and_only_the_dead_ones_are_removed() {
    let place = Place::new();
    let config = place.config(FAST, "");
    place.run_well("over", &config);
    kill(&place, long(&place, "killed", FAST));
    let running = long(&place, "alive", FAST);
    // Neither a run nor ours.
    std::fs::create_dir(place.path("notes")).unwrap();
    symlink(place.path("over"), place.path("link")).unwrap();

    let runs = listed(&place);
    assert_eq!(field(&runs, "run"), ["./over", "./killed", "./alive"].map(Value::from));
    assert_eq!(field(&runs, "standing"), ["finished", "interrupted", "running"].map(Value::from));
    assert_eq!(field(&runs, "outcome"), [json!("success"), Value::Null, Value::Null]);
    assert_eq!(field(&runs, "exit_code"), [json!(0), Value::Null, Value::Null]);
    assert_eq!(runs[1]["phase"], "measuring");
    assert!(
        runs[0]["windows"].as_u64().unwrap() > 0 && runs[0]["bytes"].as_u64().unwrap() > 1000,
        "{runs:#}"
    );
    let table = place.ask(&["runs", "."]).out;
    assert!(table.contains("interrupted in measuring") && table.contains("running, measuring"), "{table}");

    let short = |run: &str| place.ask(&["status", run, "--short"]).out;
    assert!(
        short("over").starts_with("success: ") && short("over").ends_with("(exit code 0)\n"),
        "{}",
        short("over")
    );
    assert!(short("killed").starts_with("interrupted in measuring, attempt 1 of 1"), "{}", short("killed"));
    // The newest one, as nothing else is said.
    assert!(short(".").starts_with("measuring, attempt 1 of 1: "), "{}", short("."));
    let status: Value = serde_json::from_str(&place.ask(&["status", "alive", "--json"]).out).unwrap();
    assert_eq!(
        (&status["format"], &status["standing"], &status["phase"]),
        (&json!(1), &json!("running"), &json!("measuring"))
    );
    let progress = &status["load"]["progress"];
    assert!(
        progress["sent"].as_u64().unwrap() > 0 && status["load_left"].as_f64().unwrap() > 200.0,
        "{status:#}"
    );
    let screen = place.ask(&["status", "killed"]).out;
    assert!(screen.starts_with("killed: interrupted: nobody guards it any more, begun 2"), "{screen}");

    let dry = place.ask(&["clean", ".", "--keep-last", "0", "--dry-run", "--json"]);
    let told: Value = serde_json::from_str(&dry.out).unwrap();
    assert_eq!(field(&told["removed"], "run"), ["./over", "./killed"].map(Value::from));
    assert_eq!(told["kept"], json!([{ "run": "./alive", "why": "it is alive" }]));
    assert!(told["freed"].as_u64().unwrap() > 0);
    assert_eq!(listed(&place).as_array().unwrap().len(), 3, "a dry run removes nothing");

    // A link in a run to something that is not of it.
    std::fs::write(place.path("notes/mine"), "keep").unwrap();
    symlink(place.path("notes"), place.path("over/attempt-1/elsewhere")).unwrap();
    let cleaned = place.ask(&["clean", ".", "--keep-last", "0"]);
    assert_eq!(cleaned.code, Some(0), "{}", cleaned.err);
    assert!(
        cleaned.out.contains("removed ./over, ") && cleaned.out.contains("of 2 runs freed"),
        "{}",
        cleaned.out
    );
    assert!(!place.path("over").exists() && !place.path("killed").exists());
    assert_eq!(std::fs::read_to_string(place.path("notes/mine")).unwrap(), "keep");
    assert!(place.path("link").symlink_metadata().is_ok() && place.path("alive/events.jsonl").is_file());
    kill(&place, running);
}

#[test]
fn the_newest_runs_are_kept_and_a_run_is_no_folder_of_runs() {
    let place = Place::new();
    let config = place.config(FAST, "");
    for name in ["one", "two", "three"] {
        place.run_well(name, &config);
    }
    let wrong = place.ask(&["clean", "one", "--keep-last", "0"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.err);
    assert_eq!(place.ask(&["clean", "."]).code, Some(2), "how many to keep must be said");
    assert_eq!(place.ask(&["clean", ".", "--keep-last", "2"]).code, Some(0));
    assert_eq!(field(&listed(&place), "run"), ["./two", "./three"].map(Value::from));
    let none = place.ask(&["clean", ".", "--keep-last", "2"]);
    assert_eq!(none.out, "nothing to remove from .\n");
}

#[test]
fn a_folder_without_runs_and_one_that_is_not_there_are_told_apart() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    let empty = place.ask(&["runs", "empty"]);
    assert_eq!((empty.code, empty.out.as_str()), (Some(0), "no run in empty\n"));
    for args in [["runs", "nowhere"], ["status", "empty"], ["status", "nowhere"]] {
        let told = place.ask(&args);
        assert_eq!(told.code, Some(2), "{args:?}: {}", told.err);
        assert!(told.err.contains("hint: "), "{args:?}: {}", told.err);
    }
    let usual = place.ask(&["status"]);
    assert!(usual.err.contains("there is no folder output here"), "{}", usual.err);
}

fn top(place: &Place, size: (u32, u32), env: &[(&str, &str)], run: &str) -> Tmux {
    Tmux::start(size, &place.path(""), env, &["top", run])
}

#[test]
fn top_follows_a_run_at_every_size_shows_what_its_keys_ask_for_and_says_when_the_guard_is_gone() {
    if let Some(why) = no_tmux() {
        return eprintln!("{why}");
    }
    let place = Place::new();
    let running = long(&place, "out", FAST);
    let tmux = top(&place, (80, 24), &[("LC_ALL", "C.UTF-8")], "out");
    let charts = |screen: &str| {
        screen.contains("tokens/s ") && screen.contains("TTFT ") && screen.contains(", at most ")
    };
    let screen = tmux.until("charts", charts);
    assert!(screen.starts_with("running  ") && screen.contains("─[log]─"), "{screen}");
    assert!(screen.contains("q quit") && screen.contains("APIServer pid="), "{screen}");
    for (columns, rows) in [(40, 12), (120, 40), (80, 24)] {
        tmux.resize(columns, rows);
        let fits = |screen: &str| {
            let rule = screen
                .lines()
                .find(|line| line.starts_with("─[log]─"))
                .map_or(0, |line| line.chars().count());
            rule == columns as usize && screen.lines().count() == rows as usize
        };
        let screen = tmux.until(&format!("{columns} columns"), fits);
        assert!(screen.lines().last().unwrap().starts_with("q quit"), "{screen}");
    }
    tmux.keys(&["p"]);
    let screen = tmux.until("processes", |screen| screen.contains("─[processes]─"));
    assert!(screen.contains("VLLM::EngineCor"), "{screen}");
    tmux.keys(&["g"]);
    tmux.until("GPUs", |screen| screen.contains("─[GPUs]─") && screen.contains("GPU readings"));
    tmux.keys(&["f"]);
    tmux.until("findings", |screen| screen.contains("nothing was found wrong"));
    kill(&place, running);
    tmux.until("the news", |screen| screen.starts_with("the guard died, and what it had left was ended"));
    tmux.keys(&["q"]);
    let all = tmux.until_ended(0);
    assert!(!all.contains("[findings]"), "the terminal is as it was before:\n{all}");
}

#[test]
fn top_marks_the_lines_of_a_failure_also_in_ascii_without_colours_and_after_the_end() {
    if let Some(why) = no_tmux() {
        return eprintln!("{why}");
    }
    let place = Place::new();
    let knobs = format!("{FAST},fault=crash(oom)@step:20");
    let done = place.run("out", &place.config(&knobs, ""), &["--duration", "30s"]).wait();
    assert_ne!(done.code, Some(0), "{}", done.told());
    let tmux = top(&place, (120, 40), &[("LC_ALL", "C"), ("NO_COLOR", "1")], "out");
    let screen = tmux.until("marks", |screen| screen.lines().any(|line| line.starts_with("!! ")));
    assert!(screen.is_ascii() && screen.starts_with("finished"), "{screen}");
    assert!(!tmux.painted().contains("\x1b[3"), "{}", tmux.painted());
    tmux.keys(&["f"]);
    tmux.until("the cause", |screen| screen.contains("cuda-oom") && screen.contains("what to do: "));
    tmux.keys(&["C-c"]);
    tmux.until_ended(0);
}

#[test]
fn top_without_a_terminal_says_what_to_use_instead() {
    let place = Place::new();
    place.run_well("out", &place.config(FAST, ""));
    let told = place.ask(&["top", "out"]);
    assert_eq!(told.code, Some(2));
    assert!(
        told.err.contains("top needs a terminal") && told.err.contains("varcas-guard status"),
        "{}",
        told.err
    );
}
