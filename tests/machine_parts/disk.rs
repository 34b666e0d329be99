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
fn what_earlier_attempts_take_counts_until_it_gives_way() {
    // Each trace is a byte here.
    let second_attempt = |max_log: Option<u64>| {
        let mut plan = plan();
        let limits = plan.disk.get_or_insert_default();
        (limits.max, limits.max_log) = (Some(1000), max_log);
        let mut run = Driven::measuring(plan);
        run.give_only(EventKind::DiskSampled {
            free: Reading::Value(ROOMY),
            traces: Reading::Value(700),
            logs: Reading::Value(100),
        });
        run.give(exited("VLLM::EngineCor", false)).give_all([tree_gone(), finished(3, 1, false)]);
        run.give_all([drained(), traces(500)]).give(EventKind::BackoffDrawn { delay: Duration::ZERO });
        run.wait();
        run.give_all([passed(), spawned(), ready(), warm()]);
        assert_eq!((run.machine.attempt(), run.machine.phase()), (2, Phase::Measuring));
        run
    };
    let stops = |run: &mut Driven, traces: u64| {
        (0..62).any(|_| {
            run.clock.advance(Duration::from_secs(1));
            run.give_only(disk(ROOMY, traces));
            run.did(&Action::StopLoad)
        })
    };
    // 500 of traces and 100 of logs are there from the first attempt.
    assert!(!stops(&mut second_attempt(Some(1 << 30)), 400));
    assert!(stops(&mut second_attempt(Some(1 << 30)), 401));
    let mut run = second_attempt(Some(1 << 30));
    run.give_only(EventKind::WindowsGaveWay(GaveWay { of: 1, files: vec![], bytes: 300 }));
    assert!(!stops(&mut run, 700));
    assert_eq!(run.anomalies(), 0);
    // An old journal did not count them.
    assert!(!stops(&mut second_attempt(None), 1000));
}

#[test]
fn a_journal_from_before_there_were_limits_is_replayed_without_them() {
    let mut run = Driven::measuring(Plan { disk: None, ..plan() });
    run.give_only(disk(0, u64::MAX));
    assert!(!run.did(&Action::StopLoad));
}
