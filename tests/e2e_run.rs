//! The whole program against its simulator: a run that works, runs that are tried again, and runs that are stopped.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{FAST, Finished, Place, wait_for};
use serde_json::{Value, json};
use std::path::Path;
use varcas_guard::event::{EventKind, Outcome, Phase, SuspicionStep};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
/// Many small windows.
const WINDOWS: &str = "[profile]\nwindow-steps = 10\nrest = \"50ms\"\n";

fn json_in(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn traces(report: &Value) -> &Vec<Value> {
    report["traces"].as_array().unwrap()
}

/// Two attempts, of which the first failed like this, and both folders are there.
fn assert_second_try_worked(done: &Finished, place: &Place, first: Outcome) {
    assert_eq!(done.code, Some(0), "{}", done.told());
    let endings: Vec<Outcome> = done.endings().iter().map(|ending| ending.outcome).collect();
    assert_eq!(endings, [first, Outcome::Success], "{}", done.told());
    for attempt in ["attempt-1", "attempt-2"] {
        assert!(done.out.join(attempt).join("vllm_server.log").is_file(), "{attempt} is not kept");
    }
    let top = std::fs::canonicalize(done.out.join("benchmark.json")).unwrap();
    assert!(top.ends_with("attempt-2/benchmark.json"), "{}", top.display());
    assert_eq!(done.report()["counts"], 2);
    done.assert_nothing_left(place);
    done.assert_replays(place);
}

#[test]
fn a_good_run_leaves_traces_a_benchmark_and_a_report_and_nothing_else() {
    let place = Place::new();
    let done = place.run_well("out", &place.config(FAST, WINDOWS));
    let report = done.report();
    assert_eq!((&report["outcome"], &report["exit_code"]), (&json!("success"), &json!(0)));
    assert!(traces(&report).len() >= 3, "{report:#}");
    for trace in traces(&report) {
        let name = trace["file"].as_str().unwrap();
        assert!(name.ends_with(".pt.trace.json.gz"), "{name}");
        assert!(trace["events"].as_u64().unwrap() > 0 && trace["complete"] == true, "{trace}");
        let at_top = done.out.join(name);
        assert_eq!(std::fs::metadata(&at_top).unwrap().len(), trace["bytes"].as_u64().unwrap(), "{name}");
    }
    let named = ["vllm_server.log", "benchmark_output.log", "benchmark.json", "guard.log"];
    for name in named.into_iter().chain(["report.html", "report.md"]) {
        assert!(std::fs::metadata(done.out.join(name)).unwrap().len() > 0, "{name} is empty");
    }
    let benchmark = &report["benchmark"];
    assert_eq!(benchmark["is_complete"], true, "{benchmark:#}");
    assert!(benchmark["progress"]["completed"].as_u64().unwrap() > 0, "{benchmark:#}");
    let text = std::fs::read_to_string(done.out.join("benchmark.json")).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    for tokens in ["total_input_tokens", "total_output_tokens"] {
        assert!(file[tokens].as_u64().is_some_and(|count| count > 0), "{tokens}: {text}");
    }
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
    let shown = place.ask(&["report", "out", "--json"]);
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert_eq!(serde_json::from_str::<Value>(&shown.out).unwrap(), report);
    assert_report_is_shown_in_every_form(&place, &done.out);
    // One byte that differs is a difference.
    let stored = std::fs::read_to_string(done.out.join("report.json")).unwrap();
    std::fs::write(done.out.join("report.json"), stored.trim_end()).unwrap();
    assert_eq!(place.ask(&["replay", "out"]).code, Some(70));
}

/// Each form is printed as the run wrote it, and `--open` hands the page to the browser.
fn assert_report_is_shown_in_every_form(place: &Place, out: &Path) {
    for (format, file) in [("html", "report.html"), ("md", "report.md"), ("json", "report.json")] {
        let shown = place.ask(&["report", "out", "--format", format]);
        let written = std::fs::read_to_string(out.join(file)).unwrap();
        assert_eq!((shown.code, shown.out.trim_end()), (Some(0), written.trim_end()), "{format}");
    }
    let shown = place.ask(&["report", "out", "--format", "text"]);
    assert!(shown.out.starts_with("SUCCESS: ") && shown.out.lines().count() < 30, "{}", shown.out);
    let browser = place.path("browser");
    std::fs::write(&browser, "#!/bin/sh\necho \"$1\" > opened\n").unwrap();
    std::fs::set_permissions(&browser, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::remove_file(out.join("report.html")).unwrap();
    let opened = place.command(&["report", "out", "--open"]).env("BROWSER", &browser).output().unwrap();
    assert!(opened.status.success(), "{opened:?}");
    let page = std::fs::read_to_string(place.path("opened")).unwrap();
    assert!(place.path(page.trim()).is_file(), "{page}");
    let opened =
        place.command(&["report", "out", "--open"]).env("BROWSER", "no-such-browser").output().unwrap();
    let told = String::from_utf8(opened.stderr).unwrap();
    assert!(
        opened.status.code() == Some(2) && told.contains("no browser") && told.contains("report.html"),
        "{told}"
    );
}

#[test]
fn with_two_ranks_each_brings_its_windows_home() {
    let place = Place::new();
    let done = place.run("out", &place.config(FAST, WINDOWS), &["--", "-tp", "2", "--max-model-len", "160"]);
    let done = done.wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    let report = done.report();
    for rank in [0, 1] {
        let count = traces(&report).iter().filter(|trace| trace["rank"] == rank).count();
        assert!(count > 0, "rank {rank} has no window: {report:#}");
    }
    let comms: Vec<String> = done
        .events()
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::ProcessSeen { comm, .. } => Some(comm.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(comms.iter().filter(|comm| comm.starts_with("VLLM::Worker")).count(), 2, "{comms:?}");
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn after_a_crash_under_load_the_second_attempt_brings_the_result() {
    let place = Place::new();
    let knobs = format!("{FAST},fault=kill@step:60,only_attempt=1");
    let done = place.run("out", &place.config(&knobs, WINDOWS), &["--retries", "1"]).wait();
    assert_second_try_worked(&done, &place, Outcome::Crash);
}

#[test]
fn after_a_crash_at_the_start_the_second_attempt_brings_the_result() {
    let place = Place::new();
    let knobs = format!("{FAST},fault=crash(nccl)@loading,only_attempt=1");
    let done = place.run("out", &place.config(&knobs, WINDOWS), &["--retries", "1"]).wait();
    assert_second_try_worked(&done, &place, Outcome::StartupFailure);
}

#[test]
fn what_a_killed_export_left_is_saved_and_the_report_says_what_is_missing() {
    let place = Place::new();
    let knobs = format!("{FAST},fault=half@window,only_attempt=1");
    let done = place.run("out", &place.config(&knobs, WINDOWS), &["--retries", "1"]).wait();
    assert_second_try_worked(&done, &place, Outcome::Crash);
    let report = done.report();
    let saved = &report["attempts"][0]["saved"];
    assert_eq!(saved[0]["status"], "salvaged", "{saved:#}");
    let name = saved[0]["file"].as_str().unwrap();
    let traces = done.out.join("attempt-1/traces");
    assert!(traces.join(saved[0]["from"].as_str().unwrap()).is_file(), "the half itself is untouched");
    let text = flate2::read::GzDecoder::new(std::fs::File::open(traces.join(name)).unwrap());
    let trace: Value = serde_json::from_reader(text).unwrap();
    assert_eq!(trace["salvaged"]["events_kept"], saved[0]["events"]);
    assert!(saved[0]["events"].as_u64().unwrap() > 0, "{saved:#}");
    let shown = std::fs::read_to_string(done.out.join("report.md")).unwrap();
    assert!(shown.contains(&format!("| 1 | {} | {name} |", saved[0]["from"].as_str().unwrap())), "{shown}");
    assert_eq!(report["attempts"][1].get("saved"), Some(&json!([])));
}

#[test]
fn a_hang_in_the_first_attempt_does_not_take_the_second() {
    let place = Place::new();
    let knobs = format!("{FAST},fault=hang@step:60,only_attempt=1");
    let config =
        place.config(&knobs, &format!("{WINDOWS}[patience]\nsuspect-after = \"1s\"\nidle = \"2s\"\n"));
    let done = place.run("out", &config, &["--retries", "1"]).wait();
    assert_second_try_worked(&done, &place, Outcome::Hang);
    // The guard hung up before it killed, so the second server need not wait a minute for the port.
    let free = format!("port {} is free", place.port);
    let ports: Vec<String> = done
        .events()
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::PreflightFinished { checks, .. } => {
                checks.into_iter().find(|check| check.check == "port").map(|check| check.saw)
            }
            _ => None,
        })
        .collect();
    assert_eq!(ports, [free.clone(), free]);
}

#[test]
fn when_every_attempt_fails_the_run_says_so_and_keeps_all_of_them() {
    let place = Place::new();
    let knobs = format!("{FAST},fault=crash(oom)@loading");
    let done = place.run("out", &place.config(&knobs, ""), &["--retries", "2"]).wait();
    assert_eq!(done.code, Some(75), "{}", done.told());
    assert_eq!(done.endings().len(), 3);
    assert!((1..=3).all(|n| done.out.join(format!("attempt-{n}/vllm_server.log")).is_file()));
    assert_eq!(done.report()["outcome"], "startup-failure");
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn one_interrupt_stops_in_good_order_and_saves_what_was_measured() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(FAST, WINDOWS), &["--duration", "10m"]);
    running.until_under_load();
    let meanwhile = place.ask(&["report", "out", "--format", "text"]);
    assert!(meanwhile.out.starts_with("STILL RUNNING: "), "{}{}", meanwhile.out, meanwhile.err);
    running.signal(SIGINT);
    let done = running.wait();
    assert_eq!(done.code, Some(130), "{}", done.told());
    let report = done.report();
    assert_eq!(report["outcome"], "stopped");
    assert_eq!(report["attempts"][0]["benchmark"]["is_complete"], false, "{report:#}");
    let benchmark = json_in(&done.out.join("attempt-1/benchmark.json"));
    assert_eq!(benchmark["is_complete"], false, "{benchmark:#}");
    assert!(!report["attempts"][0]["traces"].as_array().unwrap().is_empty(), "{report:#}");
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn a_second_interrupt_does_not_wait_for_a_server_that_will_not_go() {
    let place = Place::new();
    // In good order this one would take ten minutes.
    let knobs = format!("{FAST},fault=slow(10m)@window");
    let more =
        "[profile]\nwindow-steps = 100000\nwindow = \"10m\"\nidle = \"10m\"\n[budgets]\nflush = \"10m\"\n";
    let mut running = place.run("out", &place.config(&knobs, more), &["--duration", "10m"]);
    running.until_under_load();
    running.signal(SIGINT);
    running.until_phase(Phase::Flushing);
    running.signal(SIGINT);
    let done = running.wait();
    assert_eq!(done.code, Some(130), "{}", done.told());
    let phases: Vec<Phase> = done
        .events()
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::PhaseEntered { phase, .. } => Some(*phase),
            _ => None,
        })
        .collect();
    assert!(!phases.contains(&Phase::Stopping), "it went on politely: {phases:?}");
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn an_end_by_the_scheduler_has_its_own_exit_code() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(&format!("{FAST},load=10m"), ""), &[]);
    running.until("the server", |kind| matches!(kind, EventKind::ServerSpawned { .. }).then_some(()));
    running.signal(SIGTERM);
    let done = running.wait();
    assert_eq!(done.code, Some(143), "{}", done.told());
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn at_its_deadline_a_run_stops_although_the_server_hangs() {
    let place = Place::new();
    let knobs = format!("{FAST},fault=hang@step:60");
    let config = place.config(&knobs, "[budgets]\nflush = \"1s\"\nstop = \"1s\"\n");
    let done = place.run("out", &config, &["--deadline", "8s", "--retries", "3"]).wait();
    assert_eq!(done.code, Some(124), "{}", done.told());
    assert_eq!(done.endings().len(), 1, "{}", done.told());
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn without_the_profiler_there_are_no_traces_and_that_is_a_success() {
    let place = Place::new();
    let done = place.run("out", &place.config(FAST, ""), &["--profile", "off"]).wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert!(traces(&done.report()).is_empty());
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn any_server_can_be_given_as_a_command_line() {
    let place = Place::new();
    let port = place.port.to_string();
    let exe = env!("CARGO_BIN_EXE_varcas-guard");
    let args = ["--server", "command", "--profile", "off", "--", exe, "__sim", "--port", &port];
    let done = place.run("out", &place.config(FAST, ""), &[&args[..], &["--max-model-len", "160"]].concat());
    let done = done.wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(done.report()["argv"][1], "__sim");
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn a_line_that_a_rule_of_the_user_calls_fatal_ends_the_attempt() {
    let place = Place::new();
    let rules = "[[rule]]\nid = \"mine\"\npattern = 'Application startup complete'\ncause = \"mine\"\nseverity = \"fatal\"\n\
                 source = \"us\"\nexample = \"INFO:     Application startup complete.\"\n";
    std::fs::write(place.path("rules.toml"), rules).unwrap();
    let config = place.config(FAST, "");
    let done = place.run("out", &config, &["--rules", "rules.toml"]).wait();
    assert_eq!(done.code, Some(75), "{}", done.told());
    let endings = done.endings();
    assert!(endings[0].reason.contains("Application startup complete"), "{endings:?}");
    let saved = done
        .events()
        .iter()
        .any(|event| matches!(&event.kind, EventKind::EvidenceSaved { items } if !items.is_empty()));
    assert!(saved, "{}", done.told());
    assert!(done.out.join("attempt-1/evidence/index.json").is_file());
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn an_observer_lets_a_hang_be_and_tells_it() {
    let place = Place::new();
    let config = place.config(
        &format!("{FAST},fault=hang@step:60"),
        "[patience]\nsuspect-after = \"1s\"\nidle = \"2s\"\n[health]\non-hang = \"observe\"\n",
    );
    let mut running = place.run("out", &config, &["--duration", "10m"]);
    running.until("the decision that is not made", |kind| match kind {
        EventKind::Suspicion(suspicion) if suspicion.step == SuspicionStep::Act => Some(()),
        _ => None,
    });
    let sampled = running.events().len();
    wait_for("the run to go on", || (running.events().len() > sampled + 10).then_some(()));
    running.signal(2);
    // Two that come at once are one to the kernel.
    running.until("the first signal", |kind| matches!(kind, EventKind::SignalReceived { .. }).then_some(()));
    running.signal(2);
    let done = running.wait();
    assert_eq!(done.code, Some(130), "{}", done.told());
    assert_eq!(done.endings()[0].outcome, Outcome::Stopped);
}

#[test]
fn a_mix_and_limits_of_guard_toml_are_what_is_sent_and_judged() {
    let place = Place::new();
    let own = "[[load.workload]]\nname = \"short\"\n\
               input = { dist = \"uniform\", min = 8, max = 16 }\noutput = { dist = \"fixed\", tokens = 4 }\n\
               slo = { e2el = 0.001 }\n[[load.workload]]\nname = \"shared\"\nprefix = { tokens = 16 }\nslo = { e2el = 60000 }\n\
               input = { dist = \"fixed\", tokens = 8 }\noutput = { dist = \"empirical\", tokens = [2, 6] }\n";
    let done = place.run_well("out", &place.config(FAST, own));
    let file = json_in(&done.out.join("benchmark.json"));
    assert_eq!(file["profile_name"], "guard.toml");
    let of = |name: &str, key: &str| file["by_workload"][name][key].as_u64().unwrap();
    assert!(of("short", "completed") > 0 && of("shared", "completed") > 0, "{file:#}");
    assert_eq!((of("short", "good"), of("shared", "good")), (0, of("shared", "completed")));
    let text = std::fs::read_to_string(done.out.join("attempt-1/requests.jsonl")).unwrap();
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        let output = line["planned_output"].as_u64().unwrap();
        match line["workload"].as_str().unwrap() {
            "short" => assert!(output == 4 && (8..=16).contains(&line["planned_input"].as_u64().unwrap())),
            _ => assert!([2, 6].contains(&output), "{line}"),
        }
    }
    done.assert_replays(&place);
}
