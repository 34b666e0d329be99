//! A full disk: the journal tells how the run ended, what the benchmark measured is kept, and nothing that is written
//! later is mixed up with what could not be written.

mod e2e_support;
mod storage_support;

use e2e_support::{FAST, Place, wait_for};
use std::process::Command;
use storage_support::{Fault, arm, assert_journal_complete, disarm, start, told};
use varcas_guard::event::EventKind;

/// Linux's number for "no space left on device".
const ENOSPC: (&str, &str) = ("ERRNO", "28");

#[test]
fn a_journal_that_finds_no_room_for_a_while_loses_nothing_and_has_no_torn_line() {
    let place = Place::new();
    let fault = Fault { at: "events.jsonl", how: ENOSPC, only_sync: false };
    let Some(mut running) = start(&place, fault, "", &["--duration", "4s", "--json"]) else { return };
    running.until_under_load();
    arm(&place);
    // It says so to everybody who listens, although it cannot write it down.
    wait_for("the trouble to be told", || running.said().contains("keep the journal").then_some(()));
    disarm(&place);
    let done = running.wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    let events = assert_journal_complete(&done.out);
    let trouble = |kind: &EventKind| matches!(kind, EventKind::Trouble { error, .. } if error.contains("No space left"));
    assert!(told(&events, trouble), "{}", done.told());
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

/// A real disk of 600 MB, which is filled to the last byte while the benchmark runs, and a run that is not to stop for
/// that. The mount is in a namespace of its own and ends with it.
#[test]
fn on_a_disk_that_fills_up_the_results_the_journal_and_the_report_are_kept() {
    let place = Place::new();
    let config = place.config(FAST, "[profile]\nmode = \"off\"\n[disk]\nmin-free = \"0MB\"\n");
    let (port, config) = (place.port.to_string(), config.to_string_lossy().into_owned());
    let script = r#"
mkdir disk && mount -t tmpfs -o size=600m none disk || exit 77
( while [ ! -s disk/out/attempt-1/requests.jsonl ]; do sleep 0.05; done
  fallocate -l 500m disk/most; cat /dev/zero > disk/filler; : > full ) &
"$@"
code=$?
cp -a disk/out kept
wait
exit $code
"#;
    let probe = Command::new("unshare").args(["-m", "true"]).output();
    let unshare = if probe.is_ok_and(|output| output.status.success()) { "-m" } else { "-Urm" };
    let guard = env!("CARGO_BIN_EXE_varcas-guard");
    let mut command = Command::new("unshare");
    command.args([unshare, "sh", "-c", script, "sh", guard, "run", "--server", "sim", "--port", &port]);
    command.args(["--config", &config, "--retries", "0", "--duration", "4s", "disk/out"]);
    command.args(["--", "--max-model-len", "160"]).current_dir(place.path("")).env("TMPDIR", place.path("t"));
    let output = match command.output() {
        Ok(output) if output.status.code() != Some(77) => output,
        other => return println!("SKIPPED: no mount in a namespace of its own: {other:?}"),
    };
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(place.path("full").exists(), "the disk was not filled: {said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
    let kept = place.path("kept");
    let events = assert_journal_complete(&kept);
    assert!(told(&events, |kind| matches!(kind, EventKind::LoadFinished { .. })));
    for name in ["benchmark.json", "report.json"] {
        let path = if name == "report.json" { kept.join(name) } else { kept.join("attempt-1").join(name) };
        let text = std::fs::read_to_string(&path).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
    let benchmark = std::fs::read_to_string(kept.join("attempt-1/benchmark.json")).unwrap();
    assert!(benchmark.contains("records of single requests are incomplete"), "{benchmark}");
    let page = std::fs::read_to_string(kept.join("report.html")).unwrap();
    assert!(page.trim_end().ends_with("</html>"));
    place.assert_no_scratch();
}

#[test]
fn a_benchmark_that_has_no_room_for_its_result_is_not_begun() {
    let place = Place::new();
    let fault = Fault { at: "benchmark.json", how: ENOSPC, only_sync: false };
    let Some(running) = start(&place, fault, "", &["--duration", "1s"]) else { return };
    arm(&place);
    let done = running.wait();
    assert_eq!(done.code, Some(75), "{}", done.told());
    let events = assert_journal_complete(&done.out);
    assert!(!told(&events, |kind| matches!(kind, EventKind::LoadStarted { .. })));
    assert!(
        done.said().contains("benchmark.json") && done.said().contains("No space left"),
        "{}",
        done.said()
    );
    done.assert_nothing_left(&place);
}
