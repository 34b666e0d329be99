//! Somebody removes the run folder, or moves it away, while the run goes on: the run stops and says so, and nothing is
//! left alive.

mod e2e_support;
mod storage_support;

use e2e_support::{FAST, Place};
use storage_support::assert_stopped_for_storage;
use varcas_guard::event::EventKind;

#[test]
fn a_run_whose_folder_is_removed_stops_and_says_so() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(FAST, ""), &["--duration", "20m"]);
    running.until_under_load();
    std::fs::remove_dir_all(place.path("out")).unwrap();
    let done = running.wait();
    assert_stopped_for_storage(&done, &place, "was removed or moved away");
}

#[test]
fn a_run_whose_folder_is_moved_away_stops_and_the_moved_journal_says_so() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(FAST, ""), &["--duration", "20m"]);
    running.until_under_load();
    std::fs::rename(place.path("out"), place.path("moved")).unwrap();
    let done = running.wait();
    assert_stopped_for_storage(&done, &place, "was removed or moved away");
    let events = e2e_support::events(&place.path("moved"));
    assert!(events.iter().any(|event| matches!(event.kind, EventKind::StorageLost { .. })));
    assert!(matches!(events.last().map(|e| &e.kind), Some(EventKind::RunFinished { exit_code: 75, .. })));
    let report = place.ask(&["report", "moved", "--format", "text"]);
    assert!(report.out.contains("the run folder was lost"), "{report:?}");
}
