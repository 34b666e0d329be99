//! The live page in a real browser: while the run goes on, when it ends, and when its guard is killed.
//!
//! `VARCAS_TEST_BROWSER=/usr/bin/chromium cargo test --test watch_browser -- --nocapture` runs it; without a browser it says
//! so and passes. `VARCAS_TEST_SCREENSHOTS=FOLDER` keeps the pictures.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{Place, free_port};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use varcas_guard::event::EventKind;

/// A simulator that takes a moment for everything, so that there is something to draw.
const CALM: &str = "load=2s,step=10ms,ttft=20ms,sampled_compile=500ms,window_events=200,watchdog=200ms";

struct Browser {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Browser {
    fn open(program: &std::ffi::OsStr, pictures: &Path, name: &str, port: u16, words: &str) -> Self {
        let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/watch_browser.py");
        let mut child = Command::new("python3")
            .arg("-B")
            .arg(helper)
            .arg(program)
            .arg(pictures)
            .args([name, &format!("http://127.0.0.1:{port}/"), words])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn look(&mut self) -> Value {
        let line = self.lines.next().expect("the browser has ended").unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn report(&mut self, page: &Path) -> Value {
        let mut stdin = self.child.stdin.take().unwrap();
        writeln!(stdin, "{}", page.display()).unwrap();
        self.look()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Without a report to look at it ends by itself, and takes its browser along.
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// What must be so however the page is looked at.
fn is_sound(look: &Value, port: u16) {
    let what = format!("{} {} {}", look["screen"], look["scheme"], look["note"]);
    println!(
        "{what}: {} charts, {} pixels high",
        look["charts"].as_array().map_or(0, Vec::len),
        look["height"]
    );
    for key in ["wide", "pale"] {
        assert_eq!(look[key], serde_json::json!([]), "{what}: {key}");
    }
    assert_eq!(look["scroll_width"], look["width"], "{what} is wider than the screen");
    for key in ["empty", "small"] {
        assert_eq!(look[key], 0, "{what}: {key}");
    }
    let own = format!("http://127.0.0.1:{port}/");
    for url in look["requests"].as_array().unwrap() {
        assert!(
            url.as_str().unwrap().starts_with(&own) || url.as_str().unwrap().starts_with("data:"),
            "{url}"
        );
    }
}

#[test]
fn the_live_page_agrees_with_the_report_and_survives_the_guard() {
    let Some(program) = std::env::var_os("VARCAS_TEST_BROWSER").filter(|name| !name.is_empty()) else {
        println!("SKIPPED: VARCAS_TEST_BROWSER names no browser, so no page was opened in one");
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let pictures =
        std::env::var_os("VARCAS_TEST_SCREENSHOTS").map_or(temporary.path().to_owned(), PathBuf::from);
    for (name, words, killed) in
        [("live", "The run has ended", false), ("killed", "has not answered since", true)]
    {
        let place = Place::new();
        let port = free_port();
        let config = place.config(CALM, "[profile]\nwindow-steps = 40\nrest = \"2s\"\n");
        let address = port.to_string();
        let mut running = place.run(name, &config, &["--duration", "30s", "--listen", &address]);
        running.until("some progress", |kind| match kind {
            EventKind::LoadProgressed(progress) if progress.completed > 60 => Some(()),
            _ => None,
        });
        let mut browser = Browser::open(&program, &pictures, name, port, words);
        let nothing = serde_json::json!([]);
        for _ in 0..4 {
            let look = browser.look();
            is_sound(&look, port);
            assert_eq!(look["console"], nothing);
            assert!(look["charts"].as_array().unwrap().len() >= 6, "{}", look["charts"]);
            assert!(look["status"].as_str().unwrap().contains("MEASURING"), "{}", look["status"]);
        }
        assert_eq!(browser.look()["held"], true);
        if killed {
            running.signal(9);
        }
        let done = running.wait();
        let over = [browser.look(), browser.look()];
        for look in &over {
            is_sound(look, port);
        }
        if killed {
            continue;
        }
        assert_eq!(done.code, Some(0), "{}", done.told());
        assert_eq!(over[0]["console"], nothing);
        assert!(over[0]["note"].as_str().unwrap().contains(&*done.out.join("report.html").to_string_lossy()));
        assert!(over[0]["status"].as_str().unwrap().contains("SUCCESS"));
        let report = browser.report(&done.out.join("report.html"));
        assert_eq!(report["charts"], over[0]["charts"]);
        assert_eq!(report["bars"], over[0]["bars"]);
        let tiles = |look: &Value| -> Vec<Value> { look["tiles"].as_array().unwrap()[..5].to_vec() };
        assert_eq!(tiles(&report), tiles(&over[0]));
    }
}
