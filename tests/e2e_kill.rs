//! `kill -9` of every process of a run in every phase: soon nothing of the run is alive, the run folder tells what
//! happened, and the next run on the same port works. The times from kill to gone are printed (`-- --nocapture`).
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{FAST, Finished, Place, Running, alive, named, wait_for};
use std::time::Duration;
use varcas_guard::event::{EventKind, ExitHow, Outcome, Phase, ProcId};
use varcas_guard::supervisor::{os, proc};
use varcas_guard::time::instant_now;

const SIGKILL: i32 = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Api,
    Engine,
    Worker,
    Keeper,
    Guard,
}

const VICTIMS: [Victim; 5] = [Victim::Api, Victim::Engine, Victim::Worker, Victim::Keeper, Victim::Guard];
const PHASES: [Phase; 4] = [Phase::Loading, Phase::WarmUp, Phase::Measuring, Phase::Flushing];

/// All at once: what takes time is waiting, mostly for connections of the killed server in TIME_WAIT.
#[test]
fn whoever_is_killed_whenever_nothing_stays_alive_and_the_next_run_works() {
    let mut table = Vec::new();
    let mut failed = Vec::new();
    std::thread::scope(|scope| {
        let cases: Vec<_> = VICTIMS.iter().flat_map(|who| PHASES.iter().map(move |at| (*who, *at))).collect();
        let threads: Vec<_> = cases
            .into_iter()
            .map(|(who, at)| (who, at, scope.spawn(move || kill_and_run_again(who, at))))
            .collect();
        for (who, at, thread) in threads {
            match thread.join() {
                Ok(took) => table.push(format!("{who:?} killed while {at}: all gone after {took:.2?}")),
                Err(_) => failed.push(format!("{who:?} killed while {at}")),
            }
        }
    });
    println!("{}", table.join("\n"));
    assert!(failed.is_empty(), "failed (see the panics above): {failed:#?}");
}

/// Returns how long it took from the kill until nothing of the run was alive.
fn kill_and_run_again(who: Victim, at: Phase) -> Duration {
    let place = Place::new();
    let mut running = start(&place, who, at);
    reach(&mut running, at);
    let victim = find(&mut running, who);
    os::signal(victim, SIGKILL).unwrap();
    let took = until_gone(&running);
    let done = running.wait();
    if who == Victim::Guard {
        assert_eq!(done.signal, Some(SIGKILL), "{}", done.told());
        assert_keeper_told(&done, &place);
    } else {
        assert_eq!(done.code, Some(75), "{}", done.told());
        assert_guard_told(&done, who, at, victim);
        done.assert_nothing_left(&place);
        done.assert_replays(&place);
    }
    let left = alive(&done.out);
    assert!(left.is_empty(), "alive: {left:?}");
    place.assert_no_scratch();
    place.assert_no_shm();
    place.run_well("next", &place.config(FAST, "")).assert_nothing_left(&place);
    took
}

/// A run that stays in the phase for as long as it is left alone.
fn start(place: &Place, who: Victim, at: Phase) -> Running<'_> {
    let endless = match (at, who) {
        // The workers come late in the loading of their engine.
        (Phase::Loading, Victim::Worker) => "fault=worker0.slow(20m)@loading",
        (Phase::Loading, _) => "load=20m",
        (Phase::WarmUp, _) => "sampled_compile=20m",
        (Phase::Flushing, _) => "fault=worker0.slow(20m)@window,fault=worker1.slow(20m)@window",
        _ => "seed=1",
    };
    // One window from the first step to the end of the load.
    let window = "[profile]\nwindow-steps = 100000\nwindow = \"20m\"\nidle = \"20m\"\n";
    let config = place.config(&format!("{FAST},{endless}"), window);
    let duration = if at == Phase::Measuring { "10m" } else { "1s" };
    let mut args = vec!["--duration", duration, "--", "--max-model-len", "160"];
    if who == Victim::Worker {
        args.extend(["-tp", "2"]);
    }
    place.run("out", &config, &args)
}

fn reach(running: &mut Running<'_>, at: Phase) {
    running.until_phase(at);
    if at == Phase::Measuring {
        running.until_under_load();
    }
}

fn find(running: &mut Running<'_>, who: Victim) -> ProcId {
    let titled = |kind: &EventKind, title: &str| match kind {
        EventKind::ProcessSeen { proc, comm, .. } if comm.starts_with(title) => Some(*proc),
        _ => None,
    };
    let guard = running.id;
    running.until(&format!("{who:?} to be seen"), |kind| match (who, kind) {
        (Victim::Api, EventKind::ServerSpawned { proc, .. }) => Some(*proc),
        (Victim::Keeper, EventKind::KeeperStarted { proc }) => Some(*proc),
        (Victim::Engine, kind) => titled(kind, "VLLM::Engine"),
        (Victim::Worker, kind) => titled(kind, "VLLM::Worker"),
        // The whole tree should be there when its guard dies.
        (Victim::Guard, kind) => titled(kind, "VLLM::Engine").map(|_| guard),
        _ => None,
    })
}

fn until_gone(running: &Running<'_>) -> Duration {
    let began = instant_now();
    wait_for("the end of everything that runs", || {
        // The cheap question first, because many tests ask at once.
        let some = named(&running.events()).into_iter().any(proc::is_alive);
        (!some && alive(&running.out).is_empty()).then(|| began.elapsed())
    })
}

/// The journal ends with the keeper's words, and a report can be made of it.
fn assert_keeper_told(done: &Finished, place: &Place) {
    let events = done.events();
    let last = events.last().map(|event| &event.kind);
    let Some(EventKind::GuardDied { killed, leftovers, removed }) = last else {
        panic!("the last words are missing: {last:?}");
    };
    assert!(!killed.is_empty() && leftovers.is_empty(), "{last:?}");
    assert!(removed.iter().any(|what| what.contains("/vg-")), "{last:?}");
    let report = place.ask(&["report", "out", "--json"]);
    assert_eq!(report.code, Some(0), "{}", report.err);
    let report: serde_json::Value = serde_json::from_str(&report.out).unwrap();
    assert_eq!(report["outcome"], "interrupted", "{report:#}");
    let written = std::fs::read_to_string(place.path("out/report.json")).unwrap();
    let written: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!(written, report, "the keeper wrote the report, because nobody else was left to");
    assert_eq!(report["left_behind"], serde_json::json!([]), "{report:#}");
}

fn assert_guard_told(done: &Finished, who: Victim, at: Phase, victim: ProcId) {
    let events = done.events();
    let told = |wanted: &dyn Fn(&EventKind) -> bool| events.iter().any(|event| wanted(&event.kind));
    match who {
        Victim::Keeper => {
            assert!(told(&|kind| matches!(kind, EventKind::KeeperLost { .. })), "{}", done.told());
        }
        Victim::Api => {
            let how = ExitHow::Signal { signal: SIGKILL, core: false };
            let exit = |kind: &EventKind| matches!(kind, EventKind::ProcessExited { proc, how: h, main: true, .. } if *proc == victim && *h == how);
            assert!(told(&exit), "{}", done.told());
        }
        _ => {
            let exit =
                |kind: &EventKind| matches!(kind, EventKind::ProcessExited { proc, .. } if *proc == victim);
            assert!(told(&exit), "{}", done.told());
        }
    }
    let endings = done.endings();
    let [ending] = endings.as_slice() else { panic!("{endings:?}") };
    let expected = match (who, at) {
        // The benchmark was home, the only window was not.
        (_, Phase::Flushing) => Outcome::Degraded,
        (Victim::Keeper, _) => Outcome::GuardFault,
        (_, Phase::Loading) => Outcome::StartupFailure,
        _ => Outcome::Crash,
    };
    assert_eq!((ending.outcome, ending.phase == at || at == Phase::Flushing), (expected, true), "{ending:?}");
}
