//! The borders of the rules, where a second more or a sign less decides.

use super::*;

fn only_engine(world: &mut World, seconds: u64) {
    for _ in 0..seconds {
        world.second += 1;
        world.event(&EventKind::EngineSampled(Reading::Value(world.engine)));
        world.surroundings();
    }
}

#[test]
fn processes_that_come_and_go_are_movement_only_while_the_server_starts() {
    let comes = |world: &mut World| {
        let proc = ProcId { pid: 99, start: world.second };
        world.event(&EventKind::ProcessSeen { proc, ppid: 7, comm: "cc1plus".to_owned() });
    };
    let mut world = World::serving();
    let from = world.second;
    world.run(63, comes);
    assert!(world.act(from).is_some(), "under load they are none");
    for phase in [Phase::Loading, Phase::WarmUp] {
        let mut world = World::new();
        world.enter(phase);
        world.run(700, comes);
        assert_eq!(world.act(0), None, "{phase}");
    }
}

#[test]
fn an_answered_request_is_life_only_where_requests_are_answered() {
    let answered =
        |world: &mut World| world.event(&EventKind::Probed { error: None, took: Duration::from_secs(1) });
    let mut world = World::serving();
    world.run(200, answered);
    assert!(world.told.is_empty(), "{:?}", world.told);
    let mut world = World::new();
    world.enter(Phase::Loading);
    world.run(610, answered);
    assert!(world.act(0).is_some(), "nobody serves yet, so it was somebody else");
}

#[test]
fn a_gap_of_half_a_minute_is_the_servers_and_a_longer_one_is_ours() {
    for (gap, acts) in [(30, true), (31, false)] {
        let mut world = World::serving();
        world.run(35, |_| {});
        world.second += gap - 1;
        world.run(3, |_| {});
        assert_eq!(world.act(0).is_some(), acts, "a gap of {gap} s: {:?}", world.told);
    }
    for (jump, acts) in [(30, true), (31, false), (-30, true), (-31, false)] {
        let mut world = World::serving();
        world.run(35, |_| {});
        world.wall += jump;
        world.run(28, |_| {});
        assert_eq!(world.act(0).is_some(), acts, "a wall clock that jumps {jump} s: {:?}", world.told);
    }
    // Looks that both clocks find far apart, but no farther than ours may be.
    let mut world = World::serving();
    for _ in 0..12 {
        world.second += 19;
        world.run(1, |_| {});
    }
    assert!(world.act(0).is_some(), "{:?}", world.told);
}

#[test]
fn only_gaps_of_a_measurement_with_work_pending_teach_patience() {
    let quick = |world: &World, from: u64| (60..=63).contains(&world.act(from).unwrap().0);
    // In the warm-up, whose first requests compile.
    let mut world = World::new();
    world.enter(Phase::WarmUp);
    for _ in 0..120 {
        world.run(19, |_| {});
        world.run(1, World::progress);
    }
    world.enter(Phase::Measuring);
    world.told.clear();
    let from = world.second;
    world.run(70, |_| {});
    assert!(quick(&world, from), "{:?}", world.told);
    // With nothing to do.
    let mut world = World::serving();
    world.load.in_flight = 0;
    for _ in 0..120 {
        world.run(19, |_| {});
        world.run(1, World::progress);
    }
    world.load.in_flight = 4;
    world.told.clear();
    let from = world.second;
    world.run(70, |_| {});
    assert!(quick(&world, from), "{:?}", world.told);
}

#[test]
fn a_hundred_gaps_are_needed_to_learn_from() {
    for (gaps, patience) in [(98, 60), (130, 100)] {
        let mut world = World::new();
        world.enter(Phase::Measuring);
        for _ in 0..gaps {
            world.run(19, |_| {});
            world.run(1, World::progress);
        }
        world.told.clear();
        let from = world.second;
        world.run(110, |_| {});
        let (seconds, _) = world.act(from).unwrap();
        assert!((patience..=patience + 3).contains(&seconds), "{gaps} gaps: {seconds} s");
    }
}

#[test]
fn five_moves_after_its_settling_end_the_flush_of_the_stock_profiler() {
    // What moves at once may have moved before the stop.
    let mut world = World::serving();
    world.event(&finding("profiler-flush-stall"));
    world.run(5, World::progress);
    world.run(90, |world| world.process.rss += 1 << 20);
    assert_eq!(world.act(0), None, "still flushing: {:?}", world.told);

    let mut world = World::serving();
    world.event(&finding("profiler-flush-stall"));
    world.run(10, |world| world.process.rss += 1 << 20);
    world.run(5, World::progress);
    let from = world.second;
    world.run(90, |world| world.process.rss += 1 << 20);
    let (seconds, kind) = world.act(from).expect("it is over, so this is a standstill");
    assert!(seconds <= 63 && kind != HangKind::ProfilerFlush, "{seconds} {kind}");

    let mut world = World::serving();
    world.event(&finding("profiler-flush-stall"));
    world.run(10, |world| world.process.rss += 1 << 20);
    world.run(4, World::progress);
    world.run(90, |world| world.process.rss += 1 << 20);
    assert_eq!(world.act(0), None, "four are not enough: {:?}", world.told);
}

#[test]
fn logs_that_grow_are_life_only_while_the_server_loads() {
    let talk = |world: &mut World, bytes: u64| {
        let (free, traces) = (Reading::Value(1 << 40), Reading::Value(0));
        world.event(&EventKind::DiskSampled { free, traces, logs: Reading::Value(bytes) });
    };
    for (phase, after) in [(Phase::Loading, 620), (Phase::Measuring, 80)] {
        let mut world = World::new();
        world.enter(phase);
        let mut bytes = 0;
        for _ in 0..after {
            world.second += 1;
            bytes += 10;
            if phase == Phase::Measuring {
                world.event(&EventKind::LoadProgressed(world.load));
                world.event(&EventKind::EngineSampled(Reading::Value(world.engine)));
            }
            world.event(&EventKind::ProcessesSampled { processes: vec![world.process.clone()] });
            talk(&mut world, bytes);
        }
        assert_eq!(world.act(0).is_none(), phase == Phase::Loading, "{phase}: {:?}", world.told);
    }
}

#[test]
fn before_the_client_speaks_the_engines_own_gauges_say_whether_work_is_pending() {
    for (running, waiting, pending) in
        [(0.0, 0.0, false), (1.0, 0.0, true), (0.0, 1.0, true), (2.0, 2.0, true)]
    {
        let mut world = World::new();
        world.enter(Phase::Measuring);
        (world.engine.running, world.engine.waiting) = (running, waiting);
        only_engine(&mut world, 70);
        assert_eq!(!world.told.is_empty(), pending, "{running} running, {waiting} waiting");
    }
    // Nobody has said anything yet.
    let mut world = World::new();
    world.enter(Phase::Measuring);
    for _ in 0..70 {
        world.second += 1;
        world.surroundings();
    }
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn a_compile_has_five_minutes_in_the_warm_up_and_three_under_load() {
    for (phase, patience) in [(Phase::WarmUp, 300), (Phase::Measuring, 180)] {
        let mut world = World::new();
        world.enter(phase);
        world.run(400, |world| world.process.cpu_s += 1.0);
        let (seconds, kind) = world.act(0).unwrap();
        assert_eq!(kind, HangKind::HostBusy);
        assert!((patience..=patience + 3).contains(&seconds), "{phase}: {seconds} s");
    }
}

#[test]
fn suspicion_begins_at_its_second_and_not_before() {
    let mut world = World::serving();
    let from = world.second;
    world.run(9, |_| {});
    assert!(world.told.is_empty());
    world.run(1, |_| {});
    assert_eq!(world.told.first().map(|(second, _)| second - from), Some(10));
}

#[test]
fn a_silent_client_is_told_of_at_half_its_patience_and_only_while_it_waits() {
    let moves = |world: &mut World| world.engine.iterations += 10.0;
    let mut world = World::serving();
    let from = world.second;
    world.run(89, moves);
    assert!(world.told.is_empty(), "{:?}", world.told);
    world.run(95, moves);
    let told: Vec<_> = world.told.iter().map(|(second, s)| (second - from, s.kind, s.step)).collect();
    let client = HangKind::Client;
    assert_eq!(told, [(90, client, SuspicionStep::Suspect), (180, client, SuspicionStep::Confirmed)]);
    // Nothing of ours is open.
    let mut world = World::serving();
    world.load.in_flight = 0;
    world.run(200, moves);
    assert!(world.told.is_empty(), "{:?}", world.told);
    // In the warm-up nobody counts streams.
    let mut world = World::new();
    world.enter(Phase::WarmUp);
    world.run(200, moves);
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn memory_that_shrinks_and_grows_again_has_grown() {
    let mut world = World::new();
    world.enter(Phase::Loading);
    world.run(5, |world| world.process.rss = 8 << 30);
    // A process that ended took its memory along; what is loaded from there on is life.
    world.run(5, |world| world.process.rss = 1 << 30);
    world.run(700, |world| world.process.rss += 300 << 10);
    assert_eq!(world.act(0), None, "{:?}", world.told);
    // A crumb a second adds up to a sign now and then.
    let mut world = World::new();
    world.enter(Phase::Loading);
    world.run(1300, |world| world.process.rss += 1 << 10);
    assert_eq!(world.act(0), None, "{:?}", world.told);
}
