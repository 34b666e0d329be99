use super::*;
use crate::event::{Finding, GpuSample, Gravity, ProcId, ProcSample, WindowLine};

/// A server and its surroundings, second by second.
struct World {
    assessor: Assessor,
    second: u64,
    /// Seconds by which the wall clock is ahead.
    wall: i64,
    engine: EngineSample,
    load: LoadProgress,
    process: ProcSample,
    gpu: Option<Reading<Vec<GpuSample>>>,
    traces: u64,
    told: Vec<(u64, Suspicion)>,
}

impl World {
    fn new() -> Self {
        let process = ProcSample {
            proc: ProcId { pid: 7, start: 1 },
            ppid: 1,
            comm: "VLLM::EngineCor".to_owned(),
            state: 'S',
            cpu_s: 10.0,
            rss: 2 << 30,
            threads: 48,
            read_bytes: None,
            written_bytes: None,
            wchan: None,
        };
        Self {
            assessor: Assessor::new(Patience::default()),
            second: 0,
            wall: 0,
            engine: EngineSample { running: 4.0, ..EngineSample::default() },
            load: LoadProgress { sent: 10, in_flight: 4, ..LoadProgress::default() },
            process,
            gpu: None,
            traces: 0,
            told: Vec::new(),
        }
    }

    fn serving() -> Self {
        let mut world = Self::new();
        world.enter(Phase::Measuring);
        world.run(30, Self::progress);
        world
    }

    fn progress(&mut self) {
        self.engine.iterations += 10.0;
        self.load.chunks += 40;
        self.process.cpu_s += 0.4;
    }

    fn event(&mut self, event: &EventKind) {
        let at = Stamp {
            mono: Duration::from_secs(self.second),
            wall: jiff::Timestamp::from_second(self.second as i64 + self.wall).unwrap(),
        };
        if let Some(suspicion) = self.assessor.feed(at, event) {
            self.told.push((self.second, suspicion));
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.event(&EventKind::PhaseEntered { phase, budget: None });
    }

    /// One second: `change` what is seen, then every sense reports.
    fn second(&mut self, change: impl Fn(&mut Self)) {
        self.second += 1;
        change(self);
        self.event(&EventKind::EngineSampled(Reading::Value(self.engine)));
        self.event(&EventKind::LoadProgressed(self.load));
        self.surroundings();
    }

    fn surroundings(&mut self) {
        if let Some(gpu) = self.gpu.clone() {
            self.event(&EventKind::GpusSampled(gpu));
        }
        let (free, logs) = (Reading::Value(1 << 40), Reading::Value(1000));
        self.event(&EventKind::DiskSampled { free, traces: Reading::Value(self.traces), logs });
        self.event(&EventKind::ProcessesSampled { processes: vec![self.process.clone()] });
    }

    fn run(&mut self, seconds: u64, change: impl Fn(&mut Self)) {
        for _ in 0..seconds {
            self.second(&change);
        }
    }

    /// The first decision to act: seconds since `from`, and the kind.
    fn act(&self, from: u64) -> Option<(u64, HangKind)> {
        self.told
            .iter()
            .find(|(_, suspicion)| suspicion.step == SuspicionStep::Act)
            .map(|(second, suspicion)| (second - from, suspicion.kind))
    }
}

fn gpu(util: u32, mem_util: u32, power: f64) -> Option<Reading<Vec<GpuSample>>> {
    Some(Reading::Value(vec![GpuSample {
        gpu: 0,
        util: Reading::Value(util),
        mem_util: Reading::Value(mem_util),
        power_w: Reading::Value(power),
        mem_used: Reading::Value(70 << 30),
        mem_total: Reading::Value(80 << 30),
        xid: None,
        details: None,
    }]))
}

fn finding(cause: &str) -> EventKind {
    EventKind::Finding(Finding {
        rule: cause.to_owned(),
        cause: cause.to_owned(),
        gravity: Gravity::Suspect,
        line: 1,
        offset: 0,
        text: String::new(),
        count: 1,
        outranks: Vec::new(),
    })
}

fn window(what: WindowEvent) -> EventKind {
    EventKind::Window(WindowLine { rank: 0, pid: 7, t: 0.0, what })
}

/// Serves for a while, then only `change` happens; expects the kind and the time of the decision.
fn expect(kind: HangKind, after: u64, change: impl Fn(&mut World)) {
    let mut world = World::serving();
    let from = world.second;
    world.run(after - 1, &change);
    assert_eq!(world.act(from), None, "too early: {:?}", world.told);
    world.run(3, &change);
    let (seconds, named) = world.act(from).unwrap_or_else(|| panic!("never: {:?}", world.told));
    assert_eq!(named, kind);
    assert!(seconds <= after + 2, "{seconds} s");
    // Each step was told once and in order.
    let steps: Vec<_> = world.told.iter().map(|(_, suspicion)| suspicion.step).collect();
    assert_eq!(steps, [SuspicionStep::Confirmed, SuspicionStep::Act], "{:?}", world.told);
}

#[test]
fn a_stopped_engine_is_named_and_borne_for_a_minute() {
    expect(HangKind::Stopped, 60, |world| world.process.state = 'T');
}

#[test]
fn a_deadlock_is_idle_on_both_sides() {
    expect(HangKind::GpuIdleHostIdle, 60, |world| world.gpu = gpu(0, 0, 122.0));
    expect(HangKind::GpuIdleHostIdle, 60, |world| world.process.cpu_s += 0.01);
}

#[test]
fn a_spinning_kernel_is_named_although_its_host_thread_polls() {
    expect(HangKind::GpuSpin, 60, |world| {
        world.gpu = gpu(97, 0, 120.0);
        world.process.cpu_s += 1.0;
    });
}

#[test]
fn a_busy_host_has_three_minutes() {
    expect(HangKind::HostBusy, 180, |world| world.process.cpu_s += 1.0);
}

#[test]
fn what_was_busy_before_the_standstill_does_not_delay_its_name() {
    let mut world = World::new();
    let s = Duration::from_secs;
    let short = Patience { suspect_after: s(3), idle: s(8), adapt_factor: 1.0, ..Patience::default() };
    world.assessor = Assessor::new(short);
    world.enter(Phase::Measuring);
    world.run(30, |world| {
        world.progress();
        world.process.cpu_s += 1.0;
    });
    let from = world.second;
    world.run(11, |_| {});
    let (after, kind) = world.act(from).unwrap();
    assert_eq!(kind, HangKind::GpuIdleHostIdle);
    assert!(after <= 10, "{after} s");
}

#[test]
fn a_process_that_waits_for_a_cpu_of_a_busy_machine_is_not_idle() {
    expect(HangKind::HostBusy, 180, |world| world.process.state = 'R');
    expect(HangKind::HostBusy, 180, |world| world.process.cpu_s += 0.25);
}

#[test]
fn a_driver_that_fell_silent_is_named() {
    let mut world = World::new();
    world.gpu = gpu(10, 4, 140.0);
    world.enter(Phase::Measuring);
    world.run(30, World::progress);
    let from = world.second;
    world.run(62, |world| world.gpu = Some(Reading::Stale));
    assert_eq!(world.act(from).map(|(_, kind)| kind), Some(HangKind::DriverDead));
    expect(HangKind::DriverDead, 60, |world| world.process.state = 'D');
}

#[test]
fn a_machine_without_a_driver_has_no_dead_one() {
    expect(HangKind::GpuIdleHostIdle, 60, |world| {
        world.gpu = Some(Reading::Unavailable { why: "none".to_owned() })
    });
}

#[test]
fn one_rank_that_spins_while_the_others_idle_is_enough() {
    expect(HangKind::GpuSpin, 60, |world| {
        let (Some(Reading::Value(idle)), Some(Reading::Value(spin))) = (gpu(0, 0, 130.0), gpu(100, 0, 152.0))
        else {
            panic!("two samples");
        };
        world.gpu = Some(Reading::Value([idle, spin].concat()));
    });
}

#[test]
fn a_server_that_moves_again_is_told_and_forgiven() {
    let mut world = World::serving();
    world.run(40, |_| {});
    world.run(5, World::progress);
    let steps: Vec<_> = world.told.iter().map(|(_, suspicion)| suspicion.step).collect();
    assert_eq!(steps, [SuspicionStep::Confirmed, SuspicionStep::Cleared]);
    world.run(59, |_| {});
    assert_eq!(world.act(0), None);
}

#[test]
fn an_idle_hour_is_no_standstill() {
    let mut world = World::serving();
    world.load.in_flight = 0;
    // The gauges of a server whose clients went away may stay up.
    world.engine.running = 4.0;
    world.run(3600, |_| {});
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn a_gpu_at_100_percent_for_an_hour_is_no_standstill_while_it_brings_tokens() {
    for mem_util in [0, 40] {
        let mut world = World::serving();
        world.gpu = gpu(100, mem_util, 690.0);
        world.run(3600, World::progress);
        assert!(world.told.is_empty(), "{:?}", world.told);
    }
}

#[test]
fn a_failed_scrape_is_no_standstill_while_streams_move() {
    let mut world = World::serving();
    for _ in 0..600 {
        world.second += 1;
        world.load.chunks += 1;
        world.event(&EventKind::EngineSampled(Reading::Unavailable {
            why: "no answer within 5 s".to_owned(),
        }));
        let load = world.load;
        world.event(&EventKind::LoadProgressed(load));
        world.surroundings();
    }
    assert!(world.told.is_empty(), "{:?}", world.told);
}

#[test]
fn without_any_counter_nothing_is_done_but_a_suspicion_told() {
    let mut world = World::serving();
    for _ in 0..600 {
        world.second += 1;
        world.event(&EventKind::EngineSampled(Reading::Unavailable { why: "refused".to_owned() }));
        world.surroundings();
    }
    assert_eq!(world.act(0), None);
    assert_eq!(world.told[0].1.step, SuspicionStep::Suspect);
}

#[test]
fn counters_that_go_back_are_a_new_baseline_and_no_standstill() {
    let mut world = World::serving();
    world.run(50, |_| {});
    world.run(1, |world| world.engine.iterations = 0.0);
    world.run(50, |_| {});
    assert_eq!(world.act(0), None);
}

#[test]
fn a_compile_of_seventy_seconds_is_borne_also_when_its_end_looks_idle() {
    let mut world = World::serving();
    world.run(65, |world| world.process.cpu_s += 1.0);
    world.run(20, |_| {});
    world.run(5, World::progress);
    assert_eq!(world.act(0), None, "{:?}", world.told);
}

#[test]
fn a_flush_that_grows_for_five_minutes_is_borne_and_named() {
    for grow in [|world: &mut World| world.process.rss += 5 << 20, |world: &mut World| world.traces += 1] {
        let mut world = World::serving();
        world.event(&finding("profiler-flush-stall"));
        world.run(300, grow);
        world.run(5, World::progress);
        assert_eq!(world.act(0), None, "{:?}", world.told);
        assert_eq!(world.told[0].1.kind, HangKind::ProfilerFlush);
        assert_eq!(world.told.last().unwrap().1.step, SuspicionStep::Cleared);
        // And afterwards a standstill is a standstill again.
        let from = world.second;
        world.run(62, |_| {});
        assert_eq!(world.act(from).unwrap().1, HangKind::GpuIdleHostIdle);
    }
}

/// As seen on an H100 with vLLM 0.22.1: the recording is stopped, the engine takes one step, and the export goes on.
#[test]
fn one_step_in_the_middle_does_not_end_the_flush_of_the_stock_profiler() {
    let mut world = World::serving();
    world.event(&finding("profiler-flush-stall"));
    let work = |world: &mut World| {
        world.process.cpu_s += 1.0;
        world.process.rss += 1 << 20;
    };
    world.run(70, work);
    world.run(1, World::progress);
    world.run(200, work);
    assert_eq!(world.act(0), None, "{:?}", world.told);
    let kinds: Vec<_> = world.told.iter().map(|(_, suspicion)| suspicion.kind).collect();
    assert!(kinds.iter().all(|kind| *kind == HangKind::ProfilerFlush), "{kinds:?}");
}

#[test]
fn a_flush_that_writes_a_file_grows() {
    let mut world = World::serving();
    world.event(&finding("profiler-flush-stall"));
    world.process.written_bytes = Some(0);
    world.run(300, |world| {
        world.process.written_bytes = world.process.written_bytes.map(|sum| sum + (1 << 20))
    });
    assert_eq!(world.act(0), None, "{:?}", world.told);
    assert_eq!(world.told[0].1.kind, HangKind::ProfilerFlush);
}

#[test]
fn a_flush_that_no_longer_grows_is_judged_as_any_standstill() {
    let mut world = World::serving();
    world.event(&window(WindowEvent::Flushing { window: 3 }));
    world.run(100, |world| world.process.rss += 5 << 20);
    let from = world.second;
    world.run(59, |_| {});
    assert_eq!(world.act(from), None);
    world.run(3, |_| {});
    assert_eq!(world.act(from).unwrap().1, HangKind::GpuIdleHostIdle);
}

#[test]
fn a_flush_has_a_budget_although_it_grows() {
    let mut world = World::serving();
    world.enter(Phase::Flushing);
    let from = world.second;
    world.run(1799, |world| world.process.rss += 1 << 20);
    assert_eq!(world.act(from), None);
    world.run(3, |world| world.process.rss += 1 << 20);
    assert_eq!(world.act(from).unwrap().1, HangKind::ProfilerFlush);
}

#[test]
fn a_closed_window_ends_its_flush() {
    let mut world = World::serving();
    world.event(&window(WindowEvent::Flushing { window: 3 }));
    world.event(&window(WindowEvent::Failed { window: 3, error: "x".to_owned() }));
    let from = world.second;
    world.run(62, |world| world.process.rss += 5 << 20);
    assert_eq!(world.act(from).unwrap().1, HangKind::GpuIdleHostIdle);
}

#[test]
fn streams_that_stand_still_while_the_server_progresses_are_told_and_not_killed_for() {
    let mut world = World::serving();
    world.run(900, |world| world.engine.iterations += 10.0);
    assert_eq!(world.act(0), None);
    let (_, last) = world.told.last().unwrap();
    assert_eq!((last.kind, last.step), (HangKind::Client, SuspicionStep::Confirmed));
}

#[test]
fn a_model_that_loads_for_twenty_minutes_is_alive_and_one_that_does_nothing_for_ten_is_not() {
    let mut world = World::new();
    world.enter(Phase::Loading);
    world.run(1200, |world| world.process.rss += 300 << 10);
    assert!(world.told.is_empty(), "{:?}", world.told);
    let from = world.second;
    world.run(599, |world| world.process.cpu_s += 0.005);
    assert_eq!(world.act(from), None);
    world.run(3, |_| {});
    assert!(world.act(from).is_some());
}

#[test]
fn a_stopped_server_is_noticed_while_it_loads() {
    let mut world = World::new();
    world.enter(Phase::Loading);
    world.run(20, |world| world.process.cpu_s += 1.0);
    let from = world.second;
    world.run(75, |world| world.process.state = 'T');
    let (seconds, kind) = world.act(from).unwrap();
    assert_eq!(kind, HangKind::Stopped);
    // The CPU time of the last busy seconds counts for as long as it is averaged over.
    assert!((60..=70).contains(&seconds), "{seconds}");
}

#[test]
fn a_laptop_that_slept_and_a_guard_that_stood_still_begin_anew() {
    let mut world = World::serving();
    world.run(50, |_| {});
    world.wall += 3600;
    world.run(50, |_| {});
    assert_eq!(world.act(0), None);
    world.second += 300;
    world.run(50, |_| {});
    assert_eq!(world.act(0), None);
    world.wall -= 7200;
    world.run(50, |_| {});
    assert_eq!(world.act(0), None);
    world.run(15, |_| {});
    assert!(world.act(0).is_some());
}

#[test]
fn patience_grows_with_the_gaps_of_the_run_and_never_shrinks_below_the_plan() {
    let mut world = World::serving();
    // A step every 20 s: 5 times that is more than the minute of the plan.
    for _ in 0..80 {
        world.run(19, |_| {});
        world.run(1, World::progress);
    }
    world.told.clear();
    let from = world.second;
    world.run(98, |_| {});
    assert_eq!(world.act(from), None);
    world.run(4, |_| {});
    assert_eq!(world.act(from).unwrap().1, HangKind::GpuIdleHostIdle);
}

#[test]
fn the_kineto_message_halves_the_patience_and_does_nothing_alone() {
    let mut world = World::serving();
    world.event(&finding("kineto-thread-mismatch"));
    world.run(600, World::progress);
    assert!(world.told.is_empty());
    let from = world.second;
    world.run(29, |_| {});
    assert_eq!(world.act(from), None);
    world.run(3, |_| {});
    assert!(world.act(from).is_some());
}

#[test]
fn a_new_attempt_knows_nothing_of_the_old_one() {
    let mut world = World::serving();
    world.event(&finding("kineto-thread-mismatch"));
    world.run(20, |_| {});
    world.event(&EventKind::AttemptStarted {});
    world.enter(Phase::Measuring);
    let from = world.second;
    world.run(59, |_| {});
    assert_eq!(world.act(from), None);
}

#[test]
fn phases_with_clocks_of_their_own_are_not_watched() {
    for phase in [Phase::Preflight, Phase::Stopping, Phase::Draining, Phase::Collecting, Phase::Waiting] {
        let mut world = World::serving();
        world.enter(phase);
        world.run(1000, |world| world.process.state = 'T');
        assert!(world.told.is_empty(), "{phase}");
    }
}

#[path = "assess_noise_tests.rs"]
mod noise;

#[path = "assess_edge_tests.rs"]
mod edges;
