//! Faults of a real vLLM on the CPU, provoked on purpose: each is noticed, named, recorded with evidence, and cleaned up.
//! `VARCAS_TEST_PYTHON` names an interpreter that has vLLM; without it nothing is tested, and a line says so. The times from
//! fault to decision are printed (`-- --nocapture --test-threads=1`).
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;
mod real_support;

use e2e_support::{Finished, wait_for};
use real_support::{Bench, process, under_load};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use varcas_guard::event::{Ending, Event, EventKind, HangKind, Outcome, Phase, ProcId, SuspicionStep};
use varcas_guard::supervisor::os;
use varcas_guard::time::wall_now;

/// Shorter than the defaults, 60 and 180 s, so that the tests are; long enough for a machine whose disk stands still.
const IDLE: f64 = 20.0;
const BUSY: f64 = 40.0;

fn patience() -> String {
    format!(
        "[patience]\nsuspect-after = \"5s\"\nstopped = \"{IDLE}s\"\nidle = \"{IDLE}s\"\nhost-busy = \"{BUSY}s\"\n\
         undetermined = \"90s\"\nadapt-factor = 1.0\n"
    )
}

/// The engine's next step does this. Returns when (Unix seconds).
fn provoke(bench: &Bench, fault: &str) -> f64 {
    let now = unix_now();
    std::fs::write(bench.place.path("fault.new"), fault).unwrap();
    std::fs::rename(bench.place.path("fault.new"), bench.place.path("fault")).unwrap();
    now
}

fn unix_now() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds are enough")]
    let now = wall_now().as_microsecond() as f64 / 1e6;
    now
}

fn at(event: &Event) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds are enough")]
    let at = event.at.wall.as_microsecond() as f64 / 1e6;
    at
}

/// What every lost attempt must leave, and its ending.
fn checked(done: &Finished, bench: &Bench) -> Ending {
    assert_eq!(done.code, Some(75), "{}", done.told());
    done.assert_nothing_left(&bench.place);
    done.assert_replays(&bench.place);
    let endings = done.endings();
    let [ending] = endings.as_slice() else { panic!("{endings:?}") };
    println!("  {}: {}", ending.outcome, ending.reason);
    ending.clone()
}

/// Seconds from the fault to the decision that follows from a standstill of this kind.
fn hang(done: &Finished, bench: &Bench, since: f64, kind: HangKind, patience: f64) {
    let ending = checked(done, bench);
    assert_eq!((ending.outcome, ending.phase), (Outcome::Hang, Phase::Measuring), "{ending:?}");
    let events = done.events();
    let acted = events.iter().find_map(|event| match &event.kind {
        EventKind::Suspicion(s) if s.step == SuspicionStep::Act => Some((s.kind, at(event) - since, s.still)),
        _ => None,
    });
    let (seen, took, still) = acted.unwrap();
    println!("  {seen}: decided {took:.1} s after the fault, patience {patience} s, still {still:.1?}");
    assert_eq!(seen, kind, "{ending:?}");
    assert!(still >= Duration::from_secs_f64(patience), "not before patience was over");
    let items = events.iter().find_map(|event| match &event.kind {
        EventKind::EvidenceSaved { items } => Some(items.clone()),
        _ => None,
    });
    let items = items.unwrap();
    for item in &items {
        println!(
            "    {} {:?} {} bytes in {:.2?} {}",
            item.what,
            item.file,
            item.bytes,
            item.took,
            item.problem.as_deref().unwrap_or("")
        );
    }
    assert!(items.iter().any(|item| item.what == "processes" && item.bytes > 0), "{items:?}");
}

/// The stacks that a worker wrote name this function.
fn assert_stacks(done: &Finished, function: &str) {
    let folder = done.out.join("attempt-1/evidence");
    let stacks: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("stacks-"))
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .collect();
    assert!(stacks.iter().any(|text| text.contains(function)), "{stacks:?}");
}

fn death(done: &Finished, bench: &Bench, victim: ProcId, since: f64, outcome: Outcome) -> Ending {
    let ending = checked(done, bench);
    assert_eq!(ending.outcome, outcome, "{ending:?}");
    let seen = done.events().iter().find_map(|event| match &event.kind {
        EventKind::ProcessExited { proc, .. } if *proc == victim => Some(at(event) - since),
        _ => None,
    });
    println!("  its exit was an event {:.1} ms after the signal", seen.unwrap() * 1e3);
    ending
}

fn kill(victim: ProcId) -> f64 {
    let now = unix_now();
    os::signal(victim, 9).unwrap();
    now
}

#[test]
fn a_stopped_engine_is_named_stopped() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 1, &patience());
    under_load(&mut running);
    let engine = process(&mut running, "VLLM::Engine");
    let since = unix_now();
    os::signal(engine, 19).unwrap();
    hang(&running.wait(), &bench, since, HangKind::Stopped, IDLE);
}

#[test]
fn a_loop_in_the_worker_is_named_host_busy_and_its_stack_is_saved() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 1, &patience());
    under_load(&mut running);
    let since = provoke(&bench, "loop");
    let done = running.wait();
    hang(&done, &bench, since, HangKind::HostBusy, BUSY);
    assert_stacks(&done, "in _loop");
}

#[test]
fn a_worker_that_waits_for_a_lock_is_a_deadlock_and_its_stack_is_saved() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 1, &patience());
    under_load(&mut running);
    let since = provoke(&bench, "lock");
    let done = running.wait();
    hang(&done, &bench, since, HangKind::GpuIdleHostIdle, IDLE);
    assert_stacks(&done, "in _lock");
}

#[test]
fn a_killed_engine_is_a_crash() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 1, &patience());
    under_load(&mut running);
    let engine = process(&mut running, "VLLM::Engine");
    let since = kill(engine);
    death(&running.wait(), &bench, engine, since, Outcome::Crash);
}

#[test]
fn a_killed_worker_of_two_is_a_crash() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 2, &patience());
    under_load(&mut running);
    let worker = process(&mut running, "VLLM::Worker");
    let since = kill(worker);
    death(&running.wait(), &bench, worker, since, Outcome::Crash);
}

#[test]
fn a_stopped_rank_of_two_is_named_stopped() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 2, &patience());
    under_load(&mut running);
    let worker = process(&mut running, "VLLM::Worker");
    let since = unix_now();
    os::signal(worker, 19).unwrap();
    let done = running.wait();
    hang(&done, &bench, since, HangKind::Stopped, IDLE);
    assert!(done.endings()[0].reason.contains(&worker.pid.to_string()), "{:?}", done.endings());
}

#[test]
fn a_rank_of_two_that_never_enters_the_collective_is_a_hang_and_its_stack_is_saved() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 2, &patience());
    under_load(&mut running);
    let since = provoke(&bench, "loop@1");
    let done = running.wait();
    hang(&done, &bench, since, HangKind::HostBusy, BUSY);
    assert_stacks(&done, "in _loop");
}

#[test]
fn an_engine_killed_while_it_loads_is_a_failed_start() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 1, &patience());
    let engine = process(&mut running, "VLLM::Engine");
    let since = kill(engine);
    death(&running.wait(), &bench, engine, since, Outcome::StartupFailure);
}

/// Root, and a memory cgroup of version 1 or 2 that may be made.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(limit: u64) -> Option<Self> {
        let name = format!("varcas-test-{}", std::process::id());
        for (root, file) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let dir = PathBuf::from(root).join(&name);
            if std::fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir);
            if std::fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        eprintln!("SKIPPED: no memory cgroup can be made here; the OOM killer was not provoked");
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        wait_for("the cgroup to be empty", || std::fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn the_oom_killer_of_a_small_cgroup_is_named() {
    let Some(bench) = Bench::new() else { return };
    let Some(group) = Cgroup::new(6 << 30) else { return };
    let mut running = bench.start("out", "10m", 1, &patience());
    // The guard too, as in a container.
    std::fs::write(group.0.join("cgroup.procs"), running.id.pid.to_string()).unwrap();
    under_load(&mut running);
    let engine = process(&mut running, "VLLM::Engine");
    let since = provoke(&bench, "memory");
    let done = running.wait();
    let ending = death(&done, &bench, engine, since, Outcome::Crash);
    drop(group);
    let clues: Vec<_> = done
        .events()
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::Clue(clue) => Some(clue),
            _ => None,
        })
        .collect();
    println!("  {clues:?}");
    assert!(clues.iter().any(|clue| clue.cause.contains("oom")), "{ending:?} {clues:?}");
}

/// A small file system over a folder, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(over: PathBuf) -> Option<Self> {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=300k", "tmpfs"]).arg(&over).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: nothing may be mounted here; the trace folder was not filled");
            return None;
        }
        Some(Self(over))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_trace_folder_switches_the_profiler_off_and_the_engine_goes_on() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start("out", "10m", 1, &patience());
    running.until("the server's first process", |kind| {
        matches!(kind, EventKind::ServerSpawned { .. }).then_some(())
    });
    let Some(small) = Small::new(bench.place.path("out/attempt-1/traces")) else { return };
    let reason = running.until("the worker's word", |kind| match kind {
        EventKind::Window(line) => match &line.what {
            varcas_guard::event::WindowEvent::Disabled { reason } => Some(reason.clone()),
            varcas_guard::event::WindowEvent::Failed { error, .. } => Some(error.clone()),
            _ => None,
        },
        _ => None,
    });
    println!("  {reason}");
    let before = running.events().len();
    // Requests still succeed afterwards.
    wait_for("answers after the disk was full", || {
        running.events().iter().skip(before).rev().find_map(|event| match &event.kind {
            EventKind::LoadProgressed(progress) if progress.completed > 5 => Some(()),
            _ => None,
        })
    });
    running.signal(2);
    let done = running.wait();
    drop(small);
    assert_eq!(done.code, Some(130), "{}", done.told());
    done.assert_nothing_left(&bench.place);
}
