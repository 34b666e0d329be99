//! The profile of a whole run against the simulator: in the journal, in both reports, and computed afresh from the files.

mod e2e_support;

use e2e_support::{FAST, Place};
use serde_json::{Value, json};
use varcas_guard::event::{EventKind, ProfileSummary};

#[test]
fn a_run_with_two_ranks_tells_what_its_windows_saw_and_replays_and_merges() {
    let place = Place::new();
    let config = place.config(FAST, "[profile]\nwindow-steps = 10\nrest = \"50ms\"\n");
    let done = place.run("out", &config, &["--", "-tp", "2", "--max-model-len", "160"]).wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    let events = done.events();
    let profiled = events.iter().position(|event| matches!(event.kind, EventKind::Profiled(_))).unwrap();
    let collected = events.iter().position(|event| matches!(event.kind, EventKind::TracesCollected { .. }));
    assert!(Some(profiled) < collected, "the machine goes on with the traces");
    let EventKind::Profiled(profile) = &events[profiled].kind else { unreachable!() };
    let report = done.report();
    let run = done.out.to_string_lossy();
    let answer = place.ask(&["traces", &run, "--json"]);
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    let afresh: Value = serde_json::from_str(&answer.out).unwrap();
    assert_eq!(afresh["profile"], report["attempts"][0]["profile"]);
    let rows = afresh["traces"].as_array().unwrap();
    assert_eq!(rows.len(), report["traces"].as_array().unwrap().len());
    assert_eq!((&rows[1]["window"], &rows[1]["rank"]), (&json!(0), &json!(1)));

    let phases = rows.iter().any(|row| row["phase"] == "measuring");
    let counted: Vec<&Value> = rows.iter().filter(|row| !phases || row["phase"] == "measuring").collect();
    // The last window of one rank may lack its other: they are stopped one after the other.
    let steps: std::collections::BTreeMap<u64, u64> =
        counted.iter().map(|row| (row["window"].as_u64().unwrap(), row["steps"].as_u64().unwrap())).collect();
    assert_eq!(
        (profile.traces as usize, profile.windows as usize, profile.ranks),
        (counted.len(), steps.len(), Some(2))
    );
    assert!(
        profile.steps.abs_diff(steps.values().sum::<u64>()) <= 10,
        "the ranks share their steps: {steps:?}"
    );
    assert!(profile.gpu.as_ref().unwrap().busy.unwrap().mean > 0.0);
    assert!(profile.observed_s.unwrap() >= profile.recorded_s, "{profile:?}");
    let of_report: ProfileSummary = serde_json::from_value(report["attempts"][0]["profile"].clone()).unwrap();
    assert_eq!(of_report, **profile);
    let text = std::fs::read_to_string(done.out.join("report.md")).unwrap();
    assert!(text.contains("## What the windows saw") && text.contains(&profile.sample()), "{text}");
    done.assert_replays(&place);

    let index = std::fs::read_to_string(done.out.join("attempt-1/traces/index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let listed = index["windows"].as_array().unwrap();
    assert_eq!(listed.len(), rows.len());
    for (one, row) in listed.iter().zip(rows) {
        assert_eq!(
            (&one["file"], &one["events"], &one["state"]),
            (&row["file"], &row["events"], &json!("complete"))
        );
        assert!(["warm-up", "measuring"].contains(&one["phase"].as_str().unwrap()), "{one}");
        assert!(one["last_step"].as_u64() > one["first_step"].as_u64(), "{one}");
    }

    let answer = place.ask(&["traces", &run, "--merge", "0"]);
    assert_eq!(answer.code, Some(0), "{}", answer.err);
    assert!(
        done.out.join("attempt-1/traces/window-0000-merged.pt.trace.json.gz").is_file(),
        "{}",
        answer.out
    );
    let again: Value = serde_json::from_str(&place.ask(&["traces", &run, "--json"]).out).unwrap();
    assert_eq!(again["profile"], afresh["profile"], "a merged trace counts for nothing");
    done.assert_nothing_left(&place);
}

#[test]
fn a_run_without_windows_has_no_profile_and_says_so_to_who_asks() {
    let place = Place::new();
    let done = place.run_well("out", &place.config(FAST, "[profile]\nmode = \"off\"\n"));
    assert_eq!(done.report()["attempts"][0].get("profile"), None);
    let text = std::fs::read_to_string(done.out.join("report.md")).unwrap();
    assert!(!text.contains("What the windows saw"));
    let answer = place.ask(&["traces", &done.out.to_string_lossy()]);
    assert_eq!(answer.code, Some(2));
    assert!(answer.err.contains("no trace"), "{}", answer.err);
}

#[test]
fn windows_give_way_to_telling_ones_where_the_disk_is_limited() {
    let place = Place::new();
    // The run folder is larger than that before its first window, so only those stay that must.
    let more = "[profile]\nwindow-steps = 10\nrest = \"50ms\"\n[disk]\nmax = \"1kB\"\n";
    let done = place.run("out", &place.config(FAST, more), &["--duration", "2s"]).wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    let index = std::fs::read_to_string(done.out.join("attempt-1/traces/index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    let windows = index["windows"].as_array().unwrap();
    let state = |window: &Value| window["state"].as_str().unwrap().to_owned();
    let gone = windows.iter().filter(|window| state(window) == "removed").count();
    let kept: Vec<&Value> = windows.iter().filter(|window| state(window) == "complete").collect();
    assert!(gone > 0 && gone + kept.len() == windows.len(), "{index:#}");
    assert_eq!(state(&windows[0]), "complete", "the first of the warm-up stays");
    assert_eq!(state(windows.last().unwrap()), "complete", "the newest stays");
    let first = windows.iter().find(|window| window["phase"] == "measuring").unwrap();
    assert_eq!(state(first), "complete", "the first of the measurement stays");
    assert!(kept.len() <= 4, "two phases, the newest, the largest load: {index:#}");
    for window in &kept {
        assert!(done.out.join("attempt-1/traces").join(window["file"].as_str().unwrap()).is_file());
    }
    let told = done.report()["attempts"][0].to_string();
    assert!(told.contains("had to give way to others"), "{told}");
    done.assert_replays(&place);
}
