//! A disk that takes its time: the run goes on at its own pace, a kill does not wait, and in the end everything is in the
//! journal.

mod e2e_support;
mod storage_support;

use e2e_support::{Place, alive, wait_for};
use storage_support::{Fault, arm, assert_journal_complete, disarm, start};

#[test]
fn on_a_slow_disk_the_run_succeeds_and_the_journal_is_complete() {
    let place = Place::new();
    let fault = Fault { at: "events.jsonl", how: ("SLOW", "250"), only_sync: false };
    let Some(running) = start(&place, fault, "", &["--duration", "1s"]) else { return };
    arm(&place);
    let done = running.wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_journal_complete(&done.out);
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn a_kill_does_not_wait_for_a_disk_that_hangs() {
    let place = Place::new();
    // Longer than the kill can take.
    let fault = Fault { at: "events.jsonl", how: ("SLOW", "8000"), only_sync: false };
    let Some(mut running) = start(&place, fault, "", &["--duration", "20m"]) else { return };
    running.until_under_load();
    let events = running.events().len();
    arm(&place);
    running.signal(15);
    running.signal(15);
    wait_for("the end of the server", || alive(&running.out).is_empty().then_some(()));
    let written = running.events().len();
    assert!(written <= events + 3, "the journal was not hanging: {events} lines, then {written}");
    disarm(&place);
    let done = running.wait();
    assert_eq!(done.code, Some(143), "{}", done.told());
    assert_journal_complete(&done.out);
}
