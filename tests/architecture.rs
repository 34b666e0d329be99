//! Holds the house together: who may use whom, what pure files may not touch, how large a file may grow, and where
//! `unsafe` may stand (docs in src/lib.rs).

use std::fs;
use std::path::{Path, PathBuf};

const ROOMS: [&str; 5] = ["supervisor", "recovery", "workload", "health", "console"];

/// Rooms that may use no other room.
const INNER: [&str; 4] = ["recovery", "workload", "health", "console"];

/// Files that must not touch the world. `mod.rs` files hold no code at all.
const PURE: &[&str] = &[
    "event.rs",
    "event/check.rs",
    "event/disk.rs",
    "event/finding.rs",
    "event/measured.rs",
    "event/profile.rs",
    "event/signal.rs",
    "event/verdict.rs",
    "event/window.rs",
    "event/words.rs",
    "config.rs",
    "config/defaults.rs",
    "config/disk.rs",
    "config/file.rs",
    "config/health.rs",
    "config/listen.rs",
    "config/load.rs",
    "config/recipients.rs",
    "config/profile.rs",
    "config/settings.rs",
    "console/lines.rs",
    "console/live/frame.rs",
    "console/top/draw.rs",
    "console/top/state.rs",
    "config/values.rs",
    "console/notify/forms.rs",
    "console/notify/message.rs",
    "console/notify/pause.rs",
    "console/watch/access.rs",
    "console/watch/metrics.rs",
    "console/watch/page.rs",
    "view/chart.rs",
    "view/charts.rs",
    "view/clean.rs",
    "view/course.rs",
    "view/meter.rs",
    "view/names.rs",
    "view/now.rs",
    "view/page.rs",
    "view/phrases.rs",
    "view/series.rs",
    "view/snapshot.rs",
    "view/tiles.rs",
    "view/units.rs",
    "view/windows.rs",
    "redact.rs",
    "supervisor/machine.rs",
    "supervisor/state.rs",
    "supervisor/steps.rs",
    "supervisor/stop.rs",
    "supervisor/family.rs",
    "supervisor/judge.rs",
    "supervisor/layout.rs",
    "supervisor/journal/ration.rs",
    "supervisor/keeper/wire.rs",
    "health/assess.rs",
    "health/lines.rs",
    "health/log_rules.rs",
    "health/log_starts.rs",
    "health/system.rs",
    "workload/server.rs",
    "workload/profiler/listing.rs",
    "workload/profiler/analyse.rs",
    "workload/profiler/analyse/intervals.rs",
    "workload/profiler/analyse/names.rs",
    "workload/profiler/analyse/nesting.rs",
    "workload/profiler/composition.rs",
    "workload/profiler/merge.rs",
    "workload/profiler/read.rs",
    "workload/profiler/retention.rs",
    "workload/profiler/summary.rs",
    "workload/load/arrivals.rs",
    "workload/load/dataset.rs",
    "workload/load/http1.rs",
    "workload/load/mix.rs",
    "workload/load/outcome.rs",
    "workload/load/prompt.rs",
    "workload/load/result.rs",
    "workload/load/schedule.rs",
    "workload/load/spec.rs",
    "workload/load/stats.rs",
    "workload/load/steady.rs",
    "workload/load/stream.rs",
    "workload/load/tally.rs",
    "recovery/backoff.rs",
    "recovery/causes.rs",
    "recovery/verdict.rs",
    "recovery/verdict/lines.rs",
    "recovery/policy.rs",
    "recovery/mitigation.rs",
    "recovery/mitigation/catalogue.rs",
    "recovery/report/html.rs",
    "recovery/report/html/attempts.rs",
    "recovery/report/html/charts.rs",
    "recovery/report/html/profile.rs",
    "recovery/report/html/repeat.rs",
    "recovery/report/html/results.rs",
    "recovery/report/html/verdict.rs",
    "recovery/report/markdown.rs",
    "recovery/report/missing.rs",
    "recovery/report/model.rs",
    "recovery/report/profile.rs",
    "gz/deflate.rs",
    "gz/seam.rs",
    "recovery/report/safe.rs",
    "recovery/report/story.rs",
    "recovery/report/text.rs",
    "recovery/report/view.rs",
    "recovery/salvage/anchors.rs",
    "recovery/salvage/damage.rs",
    "recovery/salvage/facts.rs",
    "recovery/salvage/flip.rs",
    "recovery/salvage/habits.rs",
    "recovery/salvage/inflate.rs",
    "recovery/salvage/names.rs",
    "recovery/salvage/scan.rs",
    "recovery/salvage/signs.rs",
    "recovery/salvage/stream.rs",
    "recovery/salvage/turns.rs",
    "recovery/salvage/weave.rs",
    "recovery/salvage/repair.rs",
];

const WORLD: &[&str] = &[
    "tokio",
    "nix",
    "procfs",
    "nvml_wrapper",
    "reqwest",
    "notify",
    "libc",
    "std::fs",
    "std::net",
    "std::env",
    "std::process::Command",
    "instant_now",
    "wall_now",
    "SystemClock",
];

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut out = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read a source folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let name = path.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
                out.push((name, fs::read_to_string(&path).expect("read a source file")));
            }
        }
    }
    assert!(out.len() > 30, "the walk found only {} files", out.len());
    out
}

/// The code without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn inner_rooms_use_neither_the_supervisor_nor_each_other() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let Some(room) = INNER.iter().find(|room| name.starts_with(&format!("{room}/"))) else { continue };
        for other in ROOMS.iter().chain(&["cli"]).filter(|other| *other != room) {
            if code(&text).contains(&format!("crate::{other}")) {
                wrong.push(format!("{name} uses {other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_shared_vocabulary_uses_no_room() {
    for (name, text) in sources() {
        let shared = ["event", "time", "config", "error", "gz", "redact", "cut_log", "view"];
        if shared.iter().any(|file| name == format!("{file}.rs") || name.starts_with(&format!("{file}/"))) {
            for room in ROOMS.iter().chain(&["cli"]) {
                assert!(!code(&text).contains(&format!("crate::{room}")), "{name} uses {room}");
            }
        }
    }
}

#[test]
fn pure_files_touch_neither_the_world_nor_a_clock() {
    let sources = sources();
    let mut wrong = Vec::new();
    for pure in PURE {
        let (name, text) =
            sources.iter().find(|(name, _)| name == pure).unwrap_or_else(|| panic!("no file {pure}"));
        for word in WORLD {
            let code = code(text);
            if code.contains(&format!("{word}::"))
                || code.contains(&format!("use {word}"))
                || code.contains(&format!("{word}("))
            {
                wrong.push(format!("{name} uses {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_too_large_to_know() {
    let large: Vec<_> = sources()
        .into_iter()
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > 600)
        .collect();
    assert!(large.is_empty(), "{large:?}");
}

#[test]
fn unsafe_stands_only_in_os_rs_and_each_with_its_reason() {
    let words = ["{", "fn", "impl", "trait", "extern"].map(|next| format!("unsafe {next}"));
    let attributes = ["unsafe{", "#[unsafe(", "expect(unsafe_code", "allow(unsafe_code"].map(str::to_owned);
    for (name, text) in sources() {
        if name == "supervisor/os.rs" {
            let blocks = code(&text).matches(&words[0]).count();
            assert!(blocks > 0, "the test looks for the wrong words");
            assert!(text.matches("// SAFETY:").count() >= blocks, "{blocks} unsafe blocks, fewer reasons");
            continue;
        }
        // Tests included.
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for word in words.iter().chain(&attributes) {
            assert!(!code.contains(word), "{word} in {name}");
        }
    }
}

#[test]
fn no_logic_in_mod_rs() {
    for (name, text) in sources().into_iter().filter(|(name, _)| name.ends_with("mod.rs")) {
        assert!(!code(&text).contains("fn "), "{name} holds code");
    }
}
