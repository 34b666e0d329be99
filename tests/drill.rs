//! The drill itself, run as a user runs it: what it finds, what it says of a wrong expectation and of a leak, and that
//! nothing is left when it is broken off.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{Answer, Place, wait_for};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use varcas_guard::supervisor::{os, proc};

/// A few of each kind that are over soon.
const FEW: [&str; 12] = [
    "healthy",
    "healthy-two-ranks",
    "engine-killed",
    "worker-segfaults",
    "third-time-lucky",
    "grandchild-escapes",
    "log-truncated",
    "metrics-garbage",
    "port-bound",
    "interrupted",
    "guard-killed",
    "weights-broken",
];

fn drill(place: &Place, args: &[&str]) -> Answer {
    place.ask(&[&["drill"], args].concat())
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

/// Folders of drills in the place's own temporary folder.
fn folders(place: &Place) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.path("t")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn scenario(place: &Place, text: &str) -> String {
    let path = place.path("scenario.toml");
    std::fs::write(&path, text).unwrap();
    path.to_string_lossy().into_owned()
}

#[test]
fn a_selection_is_survived_and_every_run_says_what_it_saw() {
    let place = Place::new();
    let only: Vec<&str> = FEW.iter().flat_map(|name| ["--only", name]).collect();
    let answer = drill(&place, &[&only[..], &["--json"]].concat());
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    let told = lines(&answer);
    let (last, runs) = told.split_last().unwrap();
    let names: BTreeSet<&str> = runs.iter().map(|run| run["scenario"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(FEW));
    for run in runs {
        assert_eq!((&run["ok"], &run["leaks"]), (&Value::Bool(true), &Value::Array(Vec::new())), "{run}");
        assert!(run["seen"]["attempts"].is_u64() && run["took_s"].is_f64(), "{run}");
    }
    let of = |name: &str| runs.iter().find(|run| run["scenario"] == name).unwrap();
    let killed = of("engine-killed");
    assert_eq!(killed["seen"]["causes"], serde_json::json!(["killed-externally"]));
    assert!(killed["times"]["detect"].is_f64() && killed["times"]["clean"].is_f64(), "{killed}");
    assert!(of("healthy")["times"]["detect"].is_null());
    assert_eq!(of("guard-killed")["seen"]["signal"], 9);
    let sums = &last["summary"];
    assert_eq!((&sums["wrong"], &sums["leaks"], &sums["false_kills"]), (&0.into(), &0.into(), &0.into()));
    assert_eq!(sums["runs"], FEW.len());
    assert_eq!(folders(&place), Vec::<PathBuf>::new());
    place.assert_no_shm();
}

#[test]
fn fatal_lines_of_a_users_own_rules_are_drilled_too() {
    let place = Place::new();
    let rule = "[[rule]]\nid = \"my-plugin\"\npattern = 'MyPlugin: giving up after [0-9]+ tries'\ncause = \"my-plugin\"\n\
                severity = \"fatal\"\nsource = \"our wiki\"\nexample = \"ERROR MyPlugin: giving up after 3 tries\"\n";
    std::fs::write(place.path("rules.toml"), rule).unwrap();
    std::fs::write(place.path("mine.toml"), "[health]\nrules = \"rules.toml\"\n").unwrap();
    let answer = drill(&place, &["--config", "mine.toml", "--list"]);
    let line = answer
        .out
        .lines()
        .find(|line| line.contains("my-plugin"))
        .unwrap_or_else(|| panic!("{}", answer.out));
    let name = line.split_whitespace().next().unwrap();
    let answer = drill(&place, &["--config", "mine.toml", "--only", name]);
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    assert!(answer.out.contains("of mine.toml holds: health.rules"), "{}", answer.out);
}

#[test]
fn every_scenario_is_listed_with_what_it_is_about() {
    let place = Place::new();
    let answer = drill(&place, &["--list"]);
    assert_eq!(answer.code, Some(0));
    let names: Vec<&str> = answer.out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(names.len() >= 60, "{}", names.len());
    assert!(FEW.iter().all(|name| names.contains(name)));
    assert!(answer.out.lines().all(|line| line.split_whitespace().count() > 3), "{}", answer.out);
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/drill.md")).unwrap();
    let missing: Vec<_> = names.iter().filter(|name| !docs.contains(&format!("| `{name}` |"))).collect();
    assert!(missing.is_empty(), "not in the table of docs/drill.md: {missing:?}");
}

#[test]
fn an_unknown_name_gets_the_near_one() {
    let place = Place::new();
    let answer = drill(&place, &["--only", "engine-kiled"]);
    assert_eq!(answer.code, Some(2));
    assert!(
        answer.err.contains("no scenario is called `engine-kiled`; did you mean `engine-killed`?"),
        "{}",
        answer.err
    );
}

#[test]
fn a_wrong_expectation_is_reported_as_wrong_with_both_sides_and_the_folder() {
    let place = Place::new();
    let file = scenario(
        &place,
        "[[scenario]]\nname = \"mine\"\nabout = \"expects what cannot be\"\n\
         fault = [{ what = \"kill\", at = \"step\", n = 60, attempts = \"1\" }]\n\
         expect = { exit = 0, attempts = 1, causes = [\"segfault\"] }\n",
    );
    let answer = drill(&place, &["--scenario", &file]);
    assert_eq!(answer.code, Some(94), "{}{}", answer.out, answer.err);
    for words in [
        "WRONG mine",
        "attempts: expected 1, saw 2",
        "causes: expected [\"segfault\"], saw [\"killed-externally\"]",
        "1 run: 1 WRONG, nothing left behind, 1 false kill in 1 healthy",
    ] {
        assert!(answer.out.contains(words), "no {words:?} in {}", answer.out);
    }
    let see = answer.out.lines().find_map(|line| line.trim().strip_prefix("see ")).unwrap();
    assert!(Path::new(see).join("run/events.jsonl").is_file(), "{see}");
}

#[test]
fn a_fault_that_never_strikes_is_not_survived() {
    let place = Place::new();
    let file = scenario(
        &place,
        "[[scenario]]\nname = \"mine\"\nabout = \"comes too late\"\n\
         fault = [{ what = \"slow(1ms)\", at = \"step\", n = 1000000 }]\nexpect = { exit = 0 }\n",
    );
    let answer = drill(&place, &["--scenario", &file]);
    assert_eq!(answer.code, Some(94), "{}{}", answer.out, answer.err);
    assert!(answer.out.contains("fault 1 never struck: slow(1ms)"), "{}", answer.out);
}

#[test]
fn a_planted_leak_is_seen_named_and_ended() {
    let place = Place::new();
    // Out of the guard's reach on purpose: neither child nor marked, only its working folder tells.
    let file = scenario(
        &place,
        "[[scenario]]\nname = \"mine\"\nabout = \"something stays\"\nbefore = \"leak\"\nexpect = { exit = 0 }\n",
    );
    let answer = drill(&place, &["--scenario", &file, "--json"]);
    assert_eq!(answer.code, Some(94), "{}{}", answer.out, answer.err);
    let told = lines(&answer);
    let leaks: Vec<&str> =
        told[0]["leaks"].as_array().unwrap().iter().map(|leak| leak.as_str().unwrap()).collect();
    assert_eq!(leaks.len(), 2, "{leaks:?}");
    let process = leaks.iter().find(|leak| leak.starts_with("process ")).unwrap();
    assert!(leaks.iter().any(|leak| leak.ends_with("in the temporary folder")), "{leaks:?}");
    assert_eq!(told[1]["summary"]["leaks"], 2);
    let pid: i32 = process.split_whitespace().nth(1).unwrap().parse().unwrap();
    wait_for("the end of what was left", || proc::stat(pid).is_none_or(|stat| stat.is_dead()).then_some(()));
}

#[test]
fn mistakes_in_a_scenario_file_and_in_guard_toml_are_told_with_their_lines() {
    let place = Place::new();
    let file = scenario(
        &place,
        "[[scenario]]\nname = \"a\"\nabout = \"b\"\nfault = [{ what = \"kil\", at = \"step\" }]\nexpect = { exit = 0 }\n",
    );
    let answer = drill(&place, &["--scenario", &file]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.err.contains("scenario.toml:4: no fault `kil`: did you mean `kill`?"), "{}", answer.err);
    assert!(answer.err.contains("docs/drill.md"), "{}", answer.err);
    std::fs::write(place.path("bad.toml"), "retires = 3\n").unwrap();
    let answer = drill(&place, &["--config", "bad.toml"]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.err.contains("bad.toml:1: unknown key `retires`"), "{}", answer.err);
    let unknown = "[[scenario]]\nname = \"a\"\nabout = \"b\"\nexpect = { exit = 0 }\n\
                   fault = [{ what = \"say\", at = \"step\", rule = \"cuda-om\" }]\n";
    let answer = drill(&place, &["--scenario", &scenario(&place, unknown)]);
    assert!(answer.err.contains("no rule is called `cuda-om`; did you mean `cuda-oom`?"), "{}", answer.err);
}

#[test]
fn a_policy_of_the_users_own_shows() {
    let place = Place::new();
    std::fs::write(place.path("guard.toml"), "[policy]\nmitigate = false\n[load]\nduration = \"9h\"\n")
        .unwrap();
    let answer = drill(&place, &["--only", "oom-while-loading"]);
    assert_eq!(answer.code, Some(94), "{}{}", answer.out, answer.err);
    assert!(answer.out.contains("of guard.toml holds: policy.mitigate"), "{}", answer.out);
    assert!(answer.out.contains("the drill sets itself: load.duration"), "{}", answer.out);
    assert!(answer.out.contains("settings of yours were in force: policy.mitigate"), "{}", answer.out);
}

#[test]
fn several_times_make_a_table_with_the_worst() {
    let place = Place::new();
    let answer = drill(&place, &["--only", "dies-at-start", "--repeat", "3", "--jobs", "2"]);
    assert_eq!(answer.code, Some(0), "{}{}", answer.out, answer.err);
    let row = answer.out.lines().rfind(|line| line.starts_with("dies-at-start")).unwrap();
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns[1..4], ["3", "0", "0"], "{row}");
    assert!(answer.out.contains("3 runs: all as expected"), "{}", answer.out);
}

#[test]
fn broken_off_or_killed_it_leaves_nothing_behind() {
    for signal in [2, 15, 9] {
        let place = Place::new();
        let mut child = place
            .command(&["drill", "--only", "endless-load", "--only", "healthy-two-ranks", "--repeat", "20"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let own = i32::try_from(child.id()).unwrap();
        // Under way: a guard and a keeper and a server.
        wait_for("servers", || (below(&place).len() > 4).then_some(()));
        os::signal(proc::id(own).unwrap(), signal).unwrap();
        let status = wait_for("the drill's end", || child.try_wait().unwrap());
        assert_eq!(
            status.code(),
            [(2, 130), (15, 143)].iter().find(|(s, _)| *s == signal).map(|(_, code)| *code)
        );
        wait_for("everybody to be gone", || below(&place).is_empty().then_some(()));
        if signal != 9 {
            // Killed, it cannot remove its folder.
            assert_eq!(folders(&place), Vec::<PathBuf>::new());
        }
        place.assert_no_shm();
    }
}

/// Processes that work below the place's temporary folder, where every drill has its scratch folder.
fn below(place: &Place) -> Vec<i32> {
    let root = place.path("t").canonicalize().unwrap();
    let here = |pid: &i32| {
        std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&root))
            && proc::stat(*pid).is_some_and(|stat| !stat.is_dead())
    };
    proc::pids().into_iter().filter(here).collect()
}

#[test]
fn what_a_drill_invents_means_nothing_to_another_run() {
    let place = Place::new();
    let stage = place.path("stage.json");
    std::fs::write(&stage, "{\"drill\":{\"pid\":1,\"start\":1},\"gpu\":null,\"clock\":[]}").unwrap();
    let mut command: Command =
        place.command(&["run", "--server", "sim", "--duration", "1s", "--retries", "0", "out"]);
    let port = place.port.to_string();
    command
        .args(["--port", &port, "--config"])
        .arg(place.config(e2e_support::FAST, ""))
        .env("VARCAS_DRILL", &stage);
    let output = command.args(["--", "--max-model-len", "160"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.contains("VARCAS_DRILL is set and means nothing here: this run was not started by the drill"),
        "{told}"
    );
}
