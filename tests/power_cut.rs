//! What a power cut can leave of a run: a journal that is cut anywhere, whose last block was never written and reads as
//! zeros, or that lost everything after its last sync; names that had not reached the disk. None of it hides what was
//! durable, and a run in each such state is told as interrupted, can be reported, closed and removed.
//!
//! No power is cut here. What was durable at each moment is written down by a library that is loaded into the guard
//! (`storage_support/syncs.c`), and the states that could be found afterwards are made from that.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;
mod storage_support;

use e2e_support::{FAST, Place, alive};
use serde_json::Value;
use std::path::{Path, PathBuf};
use varcas_guard::event::{Event, EventKind};
use varcas_guard::supervisor::{journal, os, proc};

const SIGKILL: i32 = 9;
/// Of most file systems.
const BLOCK: usize = 4096;

/// The journal of a whole run.
fn whole(place: &Place) -> Vec<u8> {
    place.run_well("whole", &place.config(FAST, ""));
    std::fs::read(place.path("whole/events.jsonl")).unwrap()
}

/// Where each line ends, behind its line break.
fn ends(journal: &[u8]) -> Vec<usize> {
    journal.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect()
}

fn events(journal: &[u8]) -> Vec<Event> {
    journal.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

#[test]
fn a_journal_cut_at_any_byte_keeps_every_whole_line_before_the_cut() {
    let place = Place::new();
    let text = whole(&place);
    let (all, path, ends) = (events(&text), place.path("cut.jsonl"), ends(&text));
    let mut kinds = std::collections::BTreeSet::new();
    for (number, end) in ends.iter().copied().enumerate() {
        // Lines are read one by one, so the one before is enough to see that it is kept.
        let start = |number: usize| number.checked_sub(1).map_or(0, |before| ends[before]);
        let (from, begin) = (start(number.saturating_sub(1)), start(number));
        // Every byte of the first line of each kind; one line of engine samples is like the next.
        let kind = serde_json::to_value(&all[number]).unwrap()["event"].to_string();
        let step = if kinds.insert(kind) { 1 } else { 37 };
        for cut in (begin..end).step_by(step).chain([end - 1]) {
            // Without its line break, the event is there nevertheless.
            let kept = if cut == end - 1 { number + 1 } else { number };
            let kept = &all[number.saturating_sub(1)..kept];
            let tails: &[usize] = if cut.is_multiple_of(16) || cut == end - 1 { &[0, BLOCK] } else { &[0] };
            for zeros in tails.iter().copied() {
                let mut left = text[from..cut].to_vec();
                left.resize(left.len() + zeros, 0);
                std::fs::write(&path, &left).unwrap();
                // The zeros go with the line that they stand in.
                let kept = if zeros > 0 && cut == end - 1 { &kept[..kept.len() - 1] } else { kept };
                let read = journal::read(&path).unwrap();
                assert_eq!(read.events, kept, "line {number} cut at {}, {zeros} zeros", cut - begin);
                let torn = zeros > 0 || (cut > begin && cut < end - 1);
                assert_eq!(read.unread.len(), usize::from(torn), "line {number} cut at {}", cut - begin);
                if zeros > 0 {
                    assert_eq!(journal::last(&path).unwrap().as_ref(), kept.last());
                }
            }
        }
    }
}

#[test]
fn a_block_that_was_never_written_costs_the_lines_that_lie_in_it_and_no_other() {
    let place = Place::new();
    let text = whole(&place);
    let path = place.path("hole.jsonl");
    let mut begins: Vec<usize> = ends(&text);
    begins.insert(0, 0);
    for block in 0..text.len().div_ceil(BLOCK) {
        let hole = block * BLOCK..text.len().min((block + 1) * BLOCK);
        let mut left = text.clone();
        left[hole.clone()].fill(0);
        std::fs::write(&path, &left).unwrap();
        // A line that begins where the hole ends has lost the line break before it.
        let intact = begins.windows(2).filter(|line| line[1] <= hole.start || line[0] > hole.end);
        let intact: Vec<Event> = intact.flat_map(|line| events(&text[line[0]..line[1]])).collect();
        let read = journal::read(&path).unwrap();
        assert_eq!(read.events, intact, "block {block}");
        assert!(!read.unread.is_empty(), "nobody is told that lines are missing");
    }
}

/// What became durable, in order: what was written so far, and what of it a sync has covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Noted {
    Written(usize),
    Synced(usize),
}

fn noted(log: &Path) -> Vec<Noted> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let parse = |line: &str| {
        let (what, size) = line.split_once(' ').unwrap();
        let size = size.parse().unwrap();
        if what == "w" { Noted::Written(size) } else { Noted::Synced(size) }
    };
    text.lines().map(parse).collect()
}

fn recorded(place: &Place, of: &str, name: &str) -> Option<Vec<Noted>> {
    let library = storage_support::library(place, "syncs")?;
    let (port, config) = (place.port.to_string(), place.config(FAST, "").display().to_string());
    let all = ["run", "--server", "sim", "--port", &port, "--config", &config, "--retries", "0"];
    let all = [&all[..], &["--duration", "2s", name, "--", "--max-model-len", "160"]].concat();
    let log = place.path(&format!("{name}.syncs"));
    let env = [
        ("LD_PRELOAD", library.display().to_string()),
        ("VARCAS_SYNC_OF", place.path(of).display().to_string()),
        ("VARCAS_SYNC_LOG", log.display().to_string()),
    ];
    let done = place.start_with(name, &all, &env.map(|(name, value)| (name.to_owned(), value))).wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    Some(noted(&log))
}

#[test]
fn a_milestone_is_durable_after_at_most_one_sync_that_was_already_under_way() {
    let place = Place::new();
    let Some(noted) = recorded(&place, "out/events.jsonl", "out") else { return };
    let text = std::fs::read(place.path("out/events.jsonl")).unwrap();
    let ends = ends(&text);
    let mut milestones = 0;
    for (number, note) in noted.iter().enumerate() {
        let Noted::Written(end) = *note else { continue };
        let begin = ends.iter().rev().find(|other| **other < end).copied().unwrap_or(0);
        let [event] = &events(&text[begin..end])[..] else {
            panic!("one write is one line, but {begin} to {end}")
        };
        let syncs = noted[number..].iter().filter_map(|note| match note {
            Noted::Synced(size) => Some(*size),
            Noted::Written(_) => None,
        });
        if event.kind.is_milestone() {
            milestones += 1;
            assert!(syncs.take(2).any(|size| size >= end), "not durable: {:?}", event.kind);
        }
    }
    assert!(milestones > 20, "{milestones}");
    let last = noted.iter().rev().find(|note| matches!(note, Noted::Synced(_)));
    assert_eq!(last, Some(&Noted::Synced(text.len())), "the end of the run is durable when it is told");
}

#[test]
fn the_journal_is_readable_up_to_its_last_sync_whatever_became_of_the_rest() {
    let place = Place::new();
    let Some(noted) = recorded(&place, "out/events.jsonl", "out") else { return };
    let text = std::fs::read(place.path("out/events.jsonl")).unwrap();
    let path = place.path("left.jsonl");
    let (mut written, mut synced) = (0, 0);
    for note in noted {
        match note {
            Noted::Written(size) => written = size,
            Noted::Synced(size) => synced = size,
        }
        // Of what was written and not synced: nothing, all, half, zeros in its place, and its end without its beginning.
        let half = synced + (written - synced) / 2;
        let mut blank = text[..written].to_vec();
        blank[synced..].fill(0);
        let mut holed = text[..written].to_vec();
        holed[synced..half].fill(0);
        for left in [&text[..synced], &text[..written], &text[..half], &blank, &holed] {
            std::fs::write(&path, left).unwrap();
            let (read, durable) = (journal::read(&path).unwrap().events, events(&text[..synced]));
            assert_eq!(
                read.get(..durable.len()),
                Some(&durable[..]),
                "{synced} of {written} bytes were durable"
            );
        }
    }
}

#[test]
fn the_name_of_the_journal_is_made_durable_too() {
    let place = Place::new();
    let Some(noted) = recorded(&place, "out", "out") else { return };
    assert!(noted.contains(&Noted::Synced(0)), "the folder was never synced");
}

/// The folder of a run in the middle of its load whose guard, keeper and heir are gone, as are its processes.
fn interrupted(place: &Place) -> PathBuf {
    let mut running = place.run("cut", &place.config(FAST, ""), &["--duration", "20m"]);
    running.until_under_load();
    let child = |parent: i32| {
        let is = |pid: &i32| {
            proc::stat(*pid).is_some_and(|stat| stat.ppid == parent)
                && proc::command_line(*pid).is_some_and(|line| line.contains("__keeper"))
        };
        proc::pids().into_iter().find(is).and_then(proc::stat).unwrap().id
    };
    let keeper = child(running.id.pid);
    for victim in [child(keeper.pid), keeper, running.id] {
        os::signal(victim, SIGKILL).unwrap();
    }
    let done = running.wait();
    let kept = place.path("states/kept");
    copy(&done.out, &kept);
    // Power takes the server too.
    assert_eq!(place.ask(&["reap"]).code, Some(0));
    assert!(alive(&done.out).is_empty());
    place.assert_no_scratch();
    kept
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What the power cut left of a journal, with its name for people.
fn states(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    let ends = ends(text);
    let middle = ends[ends.len() / 2];
    let cuts = [
        ("nothing", 0),
        ("half-a-plan", ends[0] / 2),
        ("the-plan", ends[0]),
        ("three-lines", ends[2]),
        ("torn-in-the-middle", middle + 20),
        ("half", middle),
        ("torn-at-the-end", text.len() - 9),
        ("all", text.len()),
    ];
    let states = cuts.into_iter().flat_map(|(name, cut)| {
        let mut zeros = text[..cut].to_vec();
        zeros.resize(cut.next_multiple_of(BLOCK).max(BLOCK), 0);
        [(name.to_owned(), text[..cut].to_vec()), (format!("{name}-and-zeros"), zeros)]
    });
    states.collect()
}

#[test]
fn a_run_in_any_state_that_a_power_cut_can_leave_is_interrupted_and_can_be_reported_closed_and_removed() {
    let place = Place::new();
    let kept = interrupted(&place);
    let text = std::fs::read(kept.join("events.jsonl")).unwrap();
    let states = states(&text);
    for (name, left) in &states {
        let state = place.path(&format!("states/{name}"));
        copy(&kept, &state);
        std::fs::write(state.join("events.jsonl"), left).unwrap();
        let run = format!("states/{name}");
        let had = journal::read(&state.join("events.jsonl")).unwrap().events;

        let listed = |when: &str| {
            let told = place.ask(&["runs", "states", "--json"]);
            let runs: Value = serde_json::from_str(&told.out).unwrap();
            let one = runs.as_array().unwrap().iter().find(|one| one["run"] == *run).cloned();
            let one = one.unwrap_or_else(|| panic!("{name}: not listed {when}: {runs:#}"));
            assert_eq!(one["standing"], "interrupted", "{name} {when}: {one:#}");
        };
        listed("after the cut");
        let report = place.ask(&["report", &run, "--json"]);
        if had.is_empty() {
            assert!(report.code == Some(2) && report.err.contains("holds no event"), "{name}: {report:?}");
        } else {
            let report: Value = serde_json::from_str(&report.out).unwrap();
            assert_eq!(report["outcome"], "interrupted", "{name}");
        }
        let again = place.ask(&["run", "--server", "sim", &run]);
        assert_eq!(again.code, Some(69), "{name}: {again:?}");
        assert!(again.err.contains("holds a run that was interrupted"), "{name}: {again:?}");

        let closed = place.ask(&["reap", &run]);
        assert_eq!(closed.code, Some(0), "{name}: {closed:?}");
        let now = journal::read(&state.join("events.jsonl")).unwrap().events;
        assert_eq!(now.get(..had.len()), Some(&had[..]), "{name}: what was there is gone");
        assert!(
            now.len() == had.len() + 1 && matches!(now[had.len()].kind, EventKind::GuardDied { .. }),
            "{name}: {:?}",
            &now[had.len()..]
        );
        assert!(state.join("report.html").exists(), "{name}");
        listed("after reap");
        let before = std::fs::read(state.join("events.jsonl")).unwrap();
        assert_eq!(place.ask(&["reap", &run]).code, Some(0));
        assert_eq!(std::fs::read(state.join("events.jsonl")).unwrap(), before, "{name}: closed twice");
    }
    let cleaned = place.ask(&["clean", "states", "--keep-last", "0", "--json"]);
    let cleaned: Value = serde_json::from_str(&cleaned.out).unwrap();
    assert_eq!(cleaned["removed"].as_array().map(Vec::len), Some(states.len() + 1), "{cleaned:#}");
    assert_eq!(std::fs::read_dir(place.path("states")).unwrap().count(), 0);
    place.run_well("next", &place.config(FAST, "")).assert_nothing_left(&place);
}

#[test]
fn a_run_folder_whose_names_did_not_all_reach_the_disk_is_not_mistaken_for_a_new_one() {
    let place = Place::new();
    let kept = interrupted(&place);
    for lost in [".guard.lock", "events.jsonl", "attempt-1", "guard.log"] {
        let state = place.path(&format!("states/{lost}"));
        copy(&kept, &state);
        let path = state.join(lost);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap()
        } else {
            std::fs::remove_file(path).unwrap()
        }
        let again = place.ask(&["run", "--server", "sim", &format!("states/{lost}")]);
        assert_eq!(again.code, Some(69), "without {lost}: {again:?}");
        assert!(again.err.contains("which is not overwritten"), "without {lost}: {again:?}");
    }
}
