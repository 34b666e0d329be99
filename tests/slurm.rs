//! The batch script in a real Slurm: who gets the signal, which exit code brings a job back, and what is left of it.

#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;
mod slurm_support;

use e2e_support::{FAST, Place, alive, events, wait_for};
use slurm_support::{Cluster, Job};
use std::collections::BTreeMap;
use std::path::PathBuf;
use varcas_guard::event::{EventKind, Outcome, Phase};

/// Its first attempt dies in the middle of the export of a window.
const CUT_FIRST: &str = "load=20ms,step=1ms,ttft=1ms,sampled_compile=10ms,window_events=20,watchdog=200ms,\
                         fault=half@window,only_attempt=1";

const SCRIPT: &str = "varcas-guard.sbatch";

/// Writes the script with these arguments for `run`.
fn write_script(place: &Place, retries: &str, run: &[&str]) {
    let fixed = ["install", "slurm", "--sbatch=--cpus-per-task=2", "--", "--server", "sim"];
    let port = place.port.to_string();
    let answer = place.ask(&[&fixed[..], &["--retries", retries, "--port", &port], run].concat());
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

/// The same for a simulated server that has these settings, and load for `duration`.
fn write_script_for_simulator(place: &Place, retries: &str, duration: &str, knobs: &str) {
    let config = place.config(knobs, "");
    let config = config.to_string_lossy();
    write_script(
        place,
        retries,
        &["--duration", duration, "--config", &config, "--", "--max-model-len", "160"],
    );
}

/// Writes it, and hands in the job.
fn submit_simulated<'a>(
    cluster: &'a Cluster,
    place: &Place,
    retries: &str,
    duration: &str,
    knobs: &str,
) -> Job<'a> {
    write_script_for_simulator(place, retries, duration, knobs);
    cluster.submit(place, SCRIPT)
}

/// What Slurm says of a job that must end so.
fn ended(place: &Place, job: &Job<'_>, state: &str, exit: &str) -> BTreeMap<String, String> {
    let facts = job.wait();
    let seen = (facts["JobState"].as_str(), facts["ExitCode"].as_str());
    assert_eq!(seen, (state, exit), "{}", log(place, job));
    facts
}

fn folder(place: &Place, job: &Job<'_>, start: u32) -> PathBuf {
    place.path(&format!("output/slurm-{}-{start}", job.id))
}

fn report(run: &std::path::Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(run.join("report.json")).unwrap()).unwrap()
}

fn log(place: &Place, job: &Job<'_>) -> String {
    std::fs::read_to_string(place.path(&format!("varcas-guard-{}.log", job.id))).unwrap_or_default()
}

fn assert_nothing_left(place: &Place, run: &std::path::Path) {
    assert_eq!(alive(run), Vec::<String>::new());
    assert_eq!(report(run)["left_behind"], serde_json::json!([]));
    place.assert_no_scratch();
    place.assert_no_shm();
}

/// Requests are open in this attempt.
fn until_under_load(run: &std::path::Path, attempt: u32) {
    wait_for("requests", || {
        let sent = |kind: &EventKind| matches!(kind, EventKind::LoadProgressed(load) if load.sent > 0);
        events(run).iter().any(|event| event.attempt == attempt && sent(&event.kind)).then_some(())
    });
}

/// Bash's `wait` also ends, with 143 like the guard, when the shell gets SIGTERM; it must not be taken for the guard's end.
fn assert_the_shell_outlived_the_guard(place: &Place, job: &Job<'_>) {
    let log = log(place, job);
    let (_, after) = log.split_once("varcas-guard ended with 143").unwrap();
    assert!(!after.lines().any(|line| line.starts_with('[')), "the guard was still at work: {log}");
}

/// Stopped in good order by one SIGTERM while it measured, its windows whole, and the half of [`CUT_FIRST`] saved.
fn assert_stopped_in_good_order(run: &std::path::Path) {
    let events = events(run);
    let signals: Vec<i32> = events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::SignalReceived { signal } => Some(signal),
            _ => None,
        })
        .collect();
    assert_eq!(signals, [15], "the guard is asked once");
    let phases: Vec<Phase> = events
        .iter()
        .filter_map(|event| match event.kind {
            EventKind::PhaseEntered { phase, .. } => Some(phase),
            _ => None,
        })
        .collect();
    assert!(phases.contains(&Phase::Flushing) && phases.contains(&Phase::Stopping), "{phases:?}");
    let stopped = events.iter().any(
        |event| matches!(&event.kind, EventKind::AttemptEnded(ending) if ending.outcome == Outcome::Stopped),
    );
    assert!(stopped);
    let report = report(run);
    assert_eq!(report["exit_code"], 143);
    let traces = report["traces"].as_array().unwrap();
    assert!(!traces.is_empty() && traces.iter().all(|trace| trace["complete"] == true), "{traces:?}");
    let saved = report["attempts"][0]["saved"].as_array().unwrap();
    assert!(saved.iter().any(|trace| trace["status"] == "salvaged"), "{saved:?}");
    assert!(run.join("report.html").exists());
}

#[test]
fn a_job_that_ends_well_is_completed_and_leaves_its_report() {
    let Some(cluster) = Cluster::start() else { return };
    let place = Place::new();
    let job = submit_simulated(&cluster, &place, "0", "1s", FAST);
    ended(&place, &job, "COMPLETED", "0:0");
    let run = folder(&place, &job, 0);
    assert_eq!(report(&run)["exit_code"], 0);
    assert!(run.join("report.html").exists() && run.join("benchmark.json").exists());
    assert_nothing_left(&place, &run);
}

#[test]
fn a_hopeless_job_fails_with_93_and_is_not_started_again() {
    let Some(cluster) = Cluster::start() else { return };
    let place = Place::new();
    let config = place.config(&format!("{FAST},fault=crash(not-found)@loading"), "");
    let config = config.to_string_lossy();
    write_script(&place, "0", &["--duration", "1s", "--config", &config]);
    let job = cluster.submit(&place, SCRIPT);
    let facts = ended(&place, &job, "FAILED", "93:0");
    assert_eq!(facts["Restarts"], "0");
    assert!(!folder(&place, &job, 1).exists());
    assert_nothing_left(&place, &folder(&place, &job, 0));
}

#[test]
fn a_job_whose_attempts_all_failed_is_started_once_more_in_a_folder_of_its_own() {
    let Some(cluster) = Cluster::start() else { return };
    let place = Place::new();
    let job = submit_simulated(&cluster, &place, "0", "1s", &format!("{FAST},fault=kill@step:5"));
    let facts = ended(&place, &job, "FAILED", "75:0");
    assert_eq!(facts["Restarts"], "1");
    for start in [0, 1] {
        let run = folder(&place, &job, start);
        assert_eq!(report(&run)["exit_code"], 75);
        assert_nothing_left(&place, &run);
    }
    let log = log(&place, &job);
    assert_eq!(log.matches("varcas-guard ended with 75").count(), 2, "both starts write to one log: {log}");
    assert_eq!(log.matches("back into the queue").count(), 1, "{log}");
}

#[test]
fn a_signal_to_the_batch_shell_stops_the_run_in_good_order() {
    let Some(cluster) = Cluster::start() else { return };
    let place = Place::new();
    let job = submit_simulated(&cluster, &place, "1", "10m", CUT_FIRST);
    let run = folder(&place, &job, 0);
    until_under_load(&run, 2);
    cluster.ask("scancel", &["--batch", "--signal=TERM", &job.id]);
    let facts = ended(&place, &job, "FAILED", "143:0");
    assert_eq!(facts["Restarts"], "0");
    assert_stopped_in_good_order(&run);
    assert_the_shell_outlived_the_guard(&place, &job);
    assert_nothing_left(&place, &run);
}

#[test]
fn before_the_time_limit_slurm_itself_has_the_run_stopped_in_good_order() {
    let Some(cluster) = Cluster::start() else { return };
    let place = Place::new();
    write_script_for_simulator(&place, "1", "10m", CUT_FIRST);
    // Slurm counts limits in minutes and may send the signal a minute early; the run needs some seconds to measure. The
    // script's own lines are made shorter: options of sbatch would win over them.
    let mut script = std::fs::read_to_string(place.path(SCRIPT)).unwrap();
    for (line, shorter) in [("--time=08:00:00", "--time=2"), ("TERM@120", "TERM@50")] {
        assert_eq!(script.matches(line).count(), 1, "{script}");
        script = script.replace(line, shorter);
    }
    std::fs::write(place.path(SCRIPT), script).unwrap();
    let job = cluster.submit(&place, SCRIPT);
    ended(&place, &job, "FAILED", "143:0");
    let run = folder(&place, &job, 0);
    assert_stopped_in_good_order(&run);
    assert_the_shell_outlived_the_guard(&place, &job);
    assert_nothing_left(&place, &run);
}

#[test]
fn a_job_that_is_cancelled_leaves_a_report_and_no_process() {
    let Some(cluster) = Cluster::start() else { return };
    let place = Place::new();
    let job = submit_simulated(&cluster, &place, "0", "10m", FAST);
    let run = folder(&place, &job, 0);
    until_under_load(&run, 1);
    // Everything of the job gets SIGTERM at once: shell, guard, keeper and server.
    cluster.ask("scancel", &[&job.id]);
    let facts = job.wait();
    assert_eq!(facts["JobState"], "CANCELLED", "{}", log(&place, &job));
    assert_eq!(report(&run)["exit_code"], 143);
    assert_the_shell_outlived_the_guard(&place, &job);
    assert_nothing_left(&place, &run);
}
