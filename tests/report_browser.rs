//! The page in a real browser: five runs of the simulator, each opened as a phone and as a desk would, light and dark.
//!
//! `VARCAS_TEST_BROWSER=/usr/bin/chromium cargo test --test report_browser -- --nocapture` runs it; without a browser it says
//! so and passes. `VARCAS_TEST_SCREENSHOTS=FOLDER` keeps the pictures.

mod e2e_support;

use e2e_support::{Finished, Place, wait_for};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use varcas_guard::event::EventKind;

/// A simulator that takes a moment for everything, so that there is something to draw.
const CALM: &str = "load=6s,step=10ms,ttft=20ms,sampled_compile=500ms,window_events=200,watchdog=200ms";
const WINDOWS: &str = "[profile]\nwindow-steps = 40\nrest = \"2s\"\n";
const PATIENCE: &str = "[patience]\nsuspect-after = \"2s\"\nidle = \"6s\"\n";

/// Every run, and whether it has a benchmark to draw.
const RUNS: [(&str, bool); 5] =
    [("success", true), ("retried", true), ("hang", true), ("hopeless", false), ("killed", true)];

fn run(name: &str) -> (Place, PathBuf) {
    let place = Place::new();
    let (fault, more, args): (_, _, &[&str]) = match name {
        "success" => ("", WINDOWS.to_owned(), &["--duration", "12s"]),
        "retried" => (
            ",fault=crash(oom)@step:400,only_attempt=1",
            WINDOWS.to_owned(),
            &["--duration", "12s", "--retries", "2"],
        ),
        "hang" => (",fault=hang@step:700", format!("{WINDOWS}{PATIENCE}"), &["--duration", "1m"]),
        "hopeless" => (",fault=crash(weights)@loading", WINDOWS.to_owned(), &["--retries", "3"]),
        _ => ("", WINDOWS.to_owned(), &["--duration", "1m"]),
    };
    let mut running = place.run(name, &place.config(&format!("{CALM}{fault}"), &more), args);
    if name == "killed" {
        running.until("some progress", |kind| match kind {
            EventKind::LoadProgressed(progress) if progress.completed > 60 => Some(()),
            _ => None,
        });
        running.signal(9);
    }
    let Finished { out, .. } = running.wait();
    wait_for("the page", || out.join("report.html").is_file().then_some(()));
    (place, out)
}

#[test]
fn every_page_is_drawn_in_a_browser_and_asks_for_nothing() {
    let Some(browser) = std::env::var_os("VARCAS_TEST_BROWSER").filter(|name| !name.is_empty()) else {
        println!("SKIPPED: VARCAS_TEST_BROWSER names no browser, so no page was opened in one");
        return;
    };
    let (_places, pages): (Vec<Place>, Vec<PathBuf>) = std::thread::scope(|scope| {
        let runs = RUNS.map(|(name, _)| scope.spawn(move || run(name)));
        runs.map(|run| run.join().unwrap()).into_iter().unzip()
    });
    let temporary = tempfile::tempdir().unwrap();
    let pictures =
        std::env::var_os("VARCAS_TEST_SCREENSHOTS").map_or(temporary.path().to_owned(), PathBuf::from);
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/report_browser.py");
    let mut command = Command::new("python3");
    command.arg(helper).arg(browser).arg(pictures).args(pages.iter().map(|page| page.join("report.html")));
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let looks: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(looks.len(), RUNS.len() * 4, "{said}");
    for look in &looks {
        let name = |key: &str| look[key].as_str().unwrap().to_owned();
        let what = format!("{} {} {}", name("page"), name("screen"), name("scheme"));
        println!("{what}: {} charts, {} pixels high", look["charts"], look["height"]);
        let nothing = serde_json::json!([]);
        for key in ["console", "requests", "wide", "pale"] {
            assert_eq!(look[key], nothing, "{what}: {key}");
        }
        assert_eq!(look["scroll_width"], look["width"], "{what} is wider than the screen");
        for key in ["empty", "small", "scripts"] {
            assert_eq!(look[key], 0, "{what}: {key}");
        }
        let (_, drawn) = RUNS.iter().find(|(run, _)| name("page").contains(&format!("/{run}/"))).unwrap();
        let least = if *drawn { 6 } else { 1 };
        assert!(look["shown"].as_u64().unwrap() >= least, "{what}: too few charts: {look}");
    }
    for screen in ["phone", "desk"] {
        let colours =
            looks.iter().filter(|look| look["screen"] == screen).map(|look| look["background"].to_string());
        assert_eq!(
            colours.collect::<std::collections::BTreeSet<_>>().len(),
            2,
            "light and dark look the same"
        );
    }
}
