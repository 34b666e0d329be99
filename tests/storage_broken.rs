//! A disk that answers with errors, or became read-only: the run stops, says why, with an exit code that says that trying
//! later may help, and leaves nothing alive. An error that takes nothing away is told and no more.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;
mod storage_support;

use e2e_support::Place;
use storage_support::{Fault, arm, assert_journal_complete, assert_stopped_for_storage, start, told};
use varcas_guard::event::EventKind;

const EIO: (&str, &str) = ("ERRNO", "5");
const EROFS: (&str, &str) = ("ERRNO", "30");

fn a_run_stops_when(how: (&'static str, &'static str), why: &str) {
    let place = Place::new();
    let Some(mut running) =
        start(&place, Fault { at: "/out/", how, only_sync: false }, "", &["--duration", "20m"])
    else {
        return;
    };
    running.until_under_load();
    let before = running.events().len();
    arm(&place);
    let done = running.wait();
    assert_stopped_for_storage(&done, &place, why);
    let read = varcas_guard::supervisor::journal::read(&done.out.join("events.jsonl")).unwrap();
    assert_eq!(read.unread, [], "what was there before is whole");
    assert!(read.events.len() >= before);
}

#[test]
fn a_run_on_a_disk_that_breaks_stops_and_says_so() {
    a_run_stops_when(EIO, "Input/output error");
}

#[test]
fn a_run_on_a_disk_that_becomes_read_only_stops_and_says_so() {
    a_run_stops_when(EROFS, "Read-only file system");
}

#[test]
fn a_sync_that_fails_is_told_and_costs_nothing_else() {
    let place = Place::new();
    let fault = Fault { at: "events.jsonl", how: EIO, only_sync: true };
    let Some(running) = start(&place, fault, "", &["--duration", "1s"]) else { return };
    arm(&place);
    let done = running.wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    let events = assert_journal_complete(&done.out);
    let trouble = |kind: &EventKind| matches!(kind, EventKind::Trouble { error, .. } if error.contains("make it durable"));
    assert!(told(&events, trouble), "{}", done.told());
    done.assert_nothing_left(&place);
}

#[test]
fn a_run_folder_that_is_read_only_is_refused_before_anything_starts() {
    let place = Place::new();
    let fault = Fault { at: "/out/", how: EROFS, only_sync: false };
    arm(&place);
    let Some(running) = start(&place, fault, "", &[]) else { return };
    let done = running.wait();
    assert_eq!(done.code, Some(69), "{}", done.told());
    assert!(
        done.said().contains("Read-only file system") && done.said().contains("hint: "),
        "{}",
        done.said()
    );
}
