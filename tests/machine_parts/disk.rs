//! A run without room is stopped while there is still room for that.

use super::*;

fn disk(free: u64, traces: u64) -> EventKind {
    EventKind::DiskSampled {
        free: Reading::Value(free),
        traces: Reading::Value(traces),
        logs: Reading::Value(0),
    }
}

const ROOMY: u64 = 10_000_000_000;

#[test]
fn little_space_stops_the_run_in_good_order_and_nothing_follows() {
    let mut run = Driven::measuring(plan());
    run.give_only(disk(250_000_000, 0));
    assert!(!run.did(&Action::StopLoad), "as much as must be free is enough");
    run.give_only(disk(249_999_999, 0));
    assert!(run.did(&Action::StopLoad), "first the load, then windows and server: {:?}", run.last);
    assert_eq!(run.machine.phase(), Phase::Measuring);
    run.give(finished(5, 4, false));
    assert_eq!(run.machine.phase(), Phase::Flushing);
    assert_eq!(run.ending(), (Outcome::Stopped, Phase::Measuring));
}

#[test]
fn a_folder_that_is_too_large_is_borne_until_windows_had_time_to_give_way() {
    let mut plan = plan();
    plan.disk.get_or_insert_default().max = Some(1000);
    let mut run = Driven::measuring(plan);
    let stands = |run: &mut Driven, traces: u64, seconds: u64| {
        (0..seconds).find(|_| {
            run.clock.advance(Duration::from_secs(1));
            run.give_only(disk(ROOMY, traces));
            run.did(&Action::StopLoad)
        })
    };
    assert_eq!(stands(&mut run, 1001, 50), None);
    assert_eq!(stands(&mut run, 1000, 1), None, "a window gave way, and the clock begins anew");
    assert_eq!(stands(&mut run, 1001, 60), None);
    assert!(stands(&mut run, 1001, 3).is_some());
}

#[test]
fn a_journal_from_before_there_were_limits_is_replayed_without_them() {
    let mut run = Driven::measuring(Plan { disk: None, ..plan() });
    run.give_only(disk(0, u64::MAX));
    assert!(!run.did(&Action::StopLoad));
}
