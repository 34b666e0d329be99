//! `kill -9` of the guard, of its keeper, and of both, at random moments of a run: soon nothing of the run is alive, the
//! journal holds every event that was told to anybody, and the next run works. Even when the last one who would clean up
//! is killed too, `reap` finds everything.
//!
//! Ten deaths in every test run; as a benchmark, whose table stands in docs/measurements-drill.md:
//! `VARCAS_DEATHS=200 cargo test --test e2e_guard_death -- --ignored --nocapture`.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{FAST, Finished, Place, Running, alive, wait_for};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use varcas_guard::event::{Event, EventKind, ProcId};
use varcas_guard::supervisor::{journal, os, proc};
use varcas_guard::time::instant_now;

const SIGKILL: i32 = 9;
const SIGCONT: i32 = 18;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victims {
    Guard,
    Keeper,
    GuardThenKeeper,
    KeeperThenGuard,
    GuardKeeperAndHeir,
}

const ALL: [Victims; 5] = [
    Victims::Guard,
    Victims::Keeper,
    Victims::GuardThenKeeper,
    Victims::KeeperThenGuard,
    Victims::GuardKeeperAndHeir,
];

/// One death, drawn before anything is started.
#[derive(Debug, Clone, Copy)]
struct Death {
    who: Victims,
    /// Of the length of a run.
    at: f64,
    /// Between two kills.
    gap: Duration,
    /// Whether `reap` or the next run finds what was left.
    reap: bool,
}

/// What came of it.
struct Seen {
    death: Death,
    /// Until nothing was alive; none when `reap` had to do it.
    took: Option<Duration>,
    /// A keeper was there to be killed.
    keeper: bool,
    scratch_left: bool,
    events: usize,
    torn: bool,
}

#[test]
fn whoever_of_guard_and_keeper_is_killed_at_any_moment_nothing_stays_and_the_next_run_works() {
    deaths(10, 20_261_124);
}

#[test]
#[ignore = "a benchmark of some minutes"]
fn two_hundred_deaths() {
    let count = std::env::var("VARCAS_DEATHS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    deaths(count, u64::from(std::process::id()));
}

fn deaths(count: usize, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let plan: Vec<Death> = (0..count)
        .map(|number| Death {
            who: ALL[number % ALL.len()],
            // Four at a time take longer than one alone.
            at: random.random_range(0.0..1.8),
            gap: Duration::from_millis(random.random_range(0..200)) * u32::from(random.random_bool(0.7)),
            reap: random.random_bool(0.5),
        })
        .collect();
    let place = Place::new();
    let began = instant_now();
    place.run_well("measured", &place.config(FAST, ""));
    let length = began.elapsed();
    let next = AtomicUsize::new(0);
    let seen = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let work = || {
            while let Some(death) = plan.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = die(*death, length);
                seen.lock().unwrap().push(result);
            }
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.len(), count);
    table(&seen, seed, length);
}

fn die(death: Death, length: Duration) -> Seen {
    let place = Place::new();
    let running = place.run("out", &place.config(FAST, ""), &["--json"]);
    std::thread::sleep(length.mul_f64(death.at));
    let keeper = child_of(running.id, "__keeper");
    let heir = keeper.and_then(|keeper| child_of(keeper, "__keeper"));
    let guard = Some(running.id);
    let victims = match death.who {
        Victims::Guard => vec![guard],
        Victims::Keeper => vec![keeper],
        Victims::GuardThenKeeper => vec![guard, keeper],
        Victims::KeeperThenGuard => vec![keeper, guard],
        Victims::GuardKeeperAndHeir => vec![heir, keeper, guard],
    };
    for (number, victim) in victims.into_iter().flatten().enumerate() {
        if number > 0 && death.who != Victims::GuardKeeperAndHeir {
            std::thread::sleep(death.gap);
        }
        os::signal(victim, SIGKILL).unwrap();
    }
    let began = instant_now();
    // After all three, somebody must come and look; the guard alone is waited for as long as it does its work.
    let alone = death.who == Victims::GuardKeeperAndHeir && heir.is_some();
    let took = (!alone).then(|| {
        wait_for(&format!("the end of everything after {death:?}"), || {
            survivors(&place, &running).is_empty().then(|| began.elapsed())
        })
    });
    let done = running.wait();
    let scratch = std::fs::read_dir(place.path("t")).unwrap().count() > 0;
    let (events, torn) = assert_journal_is_whole(&done, death);
    if alone {
        reap(&place, &[]);
        wait_for("the end of everything after reap", || alive(&done.out).is_empty().then_some(()));
        assert_closed(&done, &place, death);
    } else if keeper.is_some() && !was_let_go(&done) {
        assert_closed(&done, &place, death);
    }
    if scratch && death.reap {
        reap(&place, &[]);
        place.assert_no_scratch();
    }
    place.run_well("next", &place.config(FAST, "")).assert_nothing_left(&place);
    if done.out.join("events.jsonl").exists() && events > 0 {
        reap(&place, &["out"]);
        assert_closed(&done, &place, death);
    }
    Seen { death, took, keeper: keeper.is_some(), scratch_left: scratch, events, torn }
}

/// The server was gone and the keeper was leaving, or had left: a guard that dies then leaves no process, only a journal
/// without an end.
fn was_let_go(done: &Finished) -> bool {
    let events = done.events();
    let last = events.iter().rev().find(|event| {
        matches!(
            event.kind,
            EventKind::ServerSpawned { .. } | EventKind::TreeGone { .. } | EventKind::GuardDied { .. }
        )
    });
    matches!(last.map(|event| &event.kind), Some(EventKind::TreeGone { .. }))
}

/// The child of `parent` with this word in its command line.
fn child_of(parent: ProcId, word: &str) -> Option<ProcId> {
    proc::pids().into_iter().find_map(|pid| {
        let stat = proc::stat(pid).filter(|stat| stat.ppid == parent.pid && !stat.is_dead())?;
        proc::command_line(pid).filter(|line| line.contains(word)).map(|_| stat.id)
    })
}

/// Whatever runs in this place: what carries its folder in the environment, and what belongs to the run.
fn survivors(place: &Place, running: &Running<'_>) -> Vec<String> {
    let mark = place.path("t").display().to_string();
    let of_place = |pid: &i32| {
        proc::stat(*pid).is_some_and(|stat| !stat.is_dead())
            && proc::environ(*pid)
                .is_some_and(|environ| memchr::memmem::find(&environ, mark.as_bytes()).is_some())
    };
    let mut left: Vec<String> = proc::pids()
        .into_iter()
        .filter(of_place)
        .map(|pid| format!("{pid}: {}", proc::command_line(pid).unwrap_or_default()))
        .collect();
    if left.is_empty() {
        left = alive(&running.out);
    }
    left
}

/// Every event that was told on standard output stands in the journal, the numbers have no gap, and only the line
/// that was being written at the moment of death may be torn.
fn assert_journal_is_whole(done: &Finished, death: Death) -> (usize, bool) {
    let path = done.out.join("events.jsonl");
    if !path.exists() {
        return (0, false);
    }
    let read = journal::read(&path).unwrap();
    assert!(read.unread.len() <= 1, "{death:?}: {:?}", read.unread);
    for (number, event) in read.events.iter().enumerate() {
        assert_eq!(event.seq, number as u64, "{death:?}");
    }
    let told: Vec<Event> =
        done.said().lines().filter_map(|line| serde_json::from_str::<Event>(line).ok()).collect();
    for event in &told {
        let kept = read.events.get(usize::try_from(event.seq).unwrap());
        assert_eq!(kept, Some(event), "{death:?}: told, but not kept");
    }
    (read.events.len(), !read.unread.is_empty())
}

/// The journal has an end, and there is a report.
fn assert_closed(done: &Finished, place: &Place, death: Death) {
    let read = journal::read(&done.out.join("events.jsonl")).unwrap();
    let last = read.events.last().map(|event| &event.kind);
    let ends = |kind: &EventKind| matches!(kind, EventKind::GuardDied { .. } | EventKind::RunFinished { .. });
    let ended = read.events.iter().filter(|event| ends(&event.kind)).count();
    assert!(ended == 1 && last.is_some_and(ends), "{death:?}: {ended} endings, {last:?}");
    let died = matches!(last, Some(EventKind::GuardDied { .. }));
    let report = place.ask(&["report", &done.out.to_string_lossy(), "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report.out).unwrap();
    assert_eq!(report["outcome"] == "interrupted", died, "{death:?}: {report:#}");
    if died {
        assert!(done.out.join("report.html").exists(), "{death:?}");
    }
}

fn reap(place: &Place, args: &[&str]) {
    let answer = place.ask(&[&["reap"], args].concat());
    assert_eq!(answer.code, Some(0), "{answer:?}");
}

fn table(seen: &[Seen], seed: u64, length: Duration) {
    let mut rows: BTreeMap<Victims, Vec<&Seen>> = BTreeMap::new();
    for one in seen {
        rows.entry(one.death.who).or_default().push(one);
    }
    println!("seed {seed}, a run takes {length:.2?}, {} deaths", seen.len());
    println!(
        "| killed | deaths | with a keeper | median until nothing lives | worst | longer than 5 s | scratch left for reap or the next run | torn last lines | events in the journals |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (who, rows) in rows {
        let mut took: Vec<Duration> = rows.iter().filter_map(|seen| seen.took).collect();
        took.sort();
        let median = took.get(took.len() / 2).map_or_else(|| "-".to_owned(), |took| format!("{took:.2?}"));
        let worst = took.last().map_or_else(|| "-".to_owned(), |took| format!("{took:.2?}"));
        let late = took.iter().filter(|took| **took > Duration::from_secs(5)).count();
        let count = |what: fn(&Seen) -> bool| rows.iter().filter(|seen| what(seen)).count();
        let (few, many) = (
            rows.iter().map(|seen| seen.events).min().unwrap_or(0),
            rows.iter().map(|seen| seen.events).max().unwrap_or(0),
        );
        println!(
            "| {who:?} | {} | {} | {median} | {worst} | {late} | {} | {} | {few} to {many} |",
            rows.len(),
            count(|seen| seen.keeper),
            count(|seen| seen.scratch_left),
            count(|seen| seen.torn),
        );
    }
}

#[test]
fn a_power_cut_leaves_nothing_that_reap_and_the_next_run_do_not_find() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(&format!("{FAST},load=20m"), ""), &[]);
    running.until("the server", |kind| matches!(kind, EventKind::ServerSpawned { .. }).then_some(()));
    for word in ["check", "reap"] {
        let args =
            if word == "check" { &["check", "--server", "sim", "o2"][..] } else { &["reap", "--dry-run"] };
        let answer = place.ask(args);
        assert!(!answer.out.contains("/t/vg-"), "a living run is told of as left: {answer:?}");
    }
    let keeper = child_of(running.id, "__keeper").unwrap();
    let heir = child_of(keeper, "__keeper").unwrap();
    for victim in [heir, keeper, running.id] {
        os::signal(victim, SIGKILL).unwrap();
    }
    let done = running.wait();
    let report = place.ask(&["report", "out", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report.out).unwrap();
    assert_eq!(report["outcome"], "interrupted");
    let run = report["run_id"].as_str().unwrap();
    let check = place.ask(&["check", "--server", "sim", "o2"]);
    assert!(check.out.contains(run) && check.out.contains("varcas-guard reap"), "{check:?}");
    assert!(check.out.contains("interrupted, without a word about their end"), "{check:?}");
    let again = place.ask(&["run", "--server", "sim", "out"]);
    assert_eq!(again.code, Some(69), "{again:?}");
    assert!(again.err.contains("holds a run that was interrupted"), "{again:?}");
    let planned = place.ask(&["reap", "--dry-run", "--json"]);
    let planned: serde_json::Value = serde_json::from_str(&planned.out).unwrap();
    let planned = planned.as_array().unwrap().iter().find(|one| one["run_id"] == run).unwrap();
    assert_eq!(planned["folder"].as_str().map(Path::new), Some(&*done.out));
    // Processes are no proof: any other run on this machine ends those whose guard is dead.
    assert!(!done.out.join("report.json").exists(), "a dry run closed something");
    reap(&place, &[]);
    assert!(alive(&done.out).is_empty());
    place.assert_no_scratch();
    let report = std::fs::read_to_string(done.out.join("report.json")).unwrap();
    assert!(report.contains("what it had left was ended"), "{report}");
    place.run_well("next", &place.config(FAST, "")).assert_nothing_left(&place);
}

#[test]
fn a_keeper_that_is_at_work_is_left_to_finish_and_says_whom_it_ended() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(FAST, ""), &["--duration", "20m"]);
    running.until_under_load();
    let keeper = child_of(running.id, "__keeper").unwrap();
    // As if the machine were busy with others.
    os::signal(keeper, os::SIGSTOP).unwrap();
    running.signal(SIGKILL);
    let done = running.wait();
    let mut reap = place.command(&["reap"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    let reads = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
        let reads = text.lines().find_map(|line| line.strip_prefix("syscr: "));
        reads.and_then(|number| number.parse::<usize>().ok()).unwrap_or(0)
    };
    // Every look at all processes takes some reads of each.
    wait_for("reap to look again and again, or to be over", || {
        let over = reap.try_wait().unwrap().is_some();
        (over || reads(reap.id()) > 20 * proc::pids().len()).then_some(())
    });
    os::signal(keeper, SIGCONT).unwrap();
    assert!(reap.wait().unwrap().success());
    let killed = wait_for("the keeper's last words", || {
        done.events().into_iter().find_map(|event| match event.kind {
            EventKind::GuardDied { killed, .. } => Some(killed),
            _ => None,
        })
    });
    assert!(!killed.is_empty(), "somebody else has ended them");
    wait_for("the end of the keeper", || alive(&done.out).is_empty().then_some(()));
    place.assert_no_scratch();
}
