//! A server that prints without end fills no disk, and its log still says what it failed of, and where.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{FAST, Place};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use varcas_guard::cut_log::{Cut, Part, piece, read};
use varcas_guard::event::EventKind;

const LIMIT: u64 = 1_000_000;
/// Every line of a flood in the simulator.
const FLOOD: &str =
    "INFO 11-24 03:10:01 [flood.py:1] a line of no importance, and of the length that lines of a log have\n";

/// The lines that are left, with their numbers, and how many are missing.
fn numbered(log: &Path) -> (Vec<(u64, String)>, u64) {
    let (mut text, mut lines, mut number, mut missing) = (Vec::new(), Vec::new(), 0, 0);
    read(log, &File::open(log).unwrap(), &mut |part| {
        match part {
            Part::Bytes(bytes) => text.extend_from_slice(bytes),
            Part::Missing { first, last, .. } => {
                for line in String::from_utf8(std::mem::take(&mut text)).unwrap().lines() {
                    number += 1;
                    lines.push((number, line.to_owned()));
                }
                (missing, number) = (last + 1 - first, last);
            }
        }
        Ok(())
    })
    .unwrap();
    for line in String::from_utf8(text).unwrap().lines() {
        number += 1;
        lines.push((number, line.to_owned()));
    }
    (lines, missing)
}

#[test]
fn a_flood_takes_no_more_than_it_may_and_the_run_does_not_mind() {
    let place = Place::new();
    let config = place.config(&format!("{FAST},fault=flood(4)@step:30"), "");
    let done = place.run("run", &config, &["--max-log", "1MB"]).wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(done.report()["outcome"], "success");
    done.assert_replays(&place);
    let log = done.out.join("attempt-1/vllm_server.log");
    let (length, kept) = (std::fs::metadata(&log).unwrap().len(), std::fs::metadata(piece(&log)).unwrap());
    assert!(length + kept.len() < LIMIT, "{length} and {}", kept.len());
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);

    // What was told is what the log says of itself, and no line is unaccounted for.
    let cuts: Vec<EventKind> = done
        .events()
        .into_iter()
        .map(|event| event.kind)
        .filter(|kind| matches!(kind, EventKind::LogCut(_)))
        .collect();
    let Some(EventKind::LogCut(told)) = cuts.last() else { panic!("{cuts:?}") };
    let cut = Cut::of(&File::open(&log).unwrap()).unwrap().unwrap();
    assert_eq!((cut.first, cut.last, cut.kept, cut.is_hole), (told.first, told.last, told.kept, false));
    assert!(done.told().contains("the server's log is too long"), "{}", done.told());
    let (lines, missing) = numbered(&log);
    let of_flood = lines.iter().filter(|(_, line)| line == FLOOD.trim_end()).count() as u64;
    let written = 4 * ((1 << 20) / FLOOD.len() as u64);
    // A line of the server itself may be among the missing ones.
    assert!((written..written + 20).contains(&(of_flood + missing)), "{of_flood} and {missing} of {written}");
    assert!(lines[..200].iter().any(|(_, line)| line.contains("startup complete")), "{:?}", &lines[..200]);
}

#[test]
fn a_crash_behind_a_flood_is_found_at_the_line_where_it_stands() {
    let place = Place::new();
    let config = place.config(&format!("{FAST},fault=flood(4)@loading,fault=crash(oom)@step:60"), "");
    let done = place.run("run", &config, &["--max-log", "1MB"]).wait();
    let verdict = done.events().into_iter().map(|event| event.kind).find_map(|kind| match kind {
        EventKind::Judged { verdict } => Some(verdict),
        _ => None,
    });
    let verdict = verdict.unwrap();
    assert_eq!(verdict.cause, "cuda-oom", "{verdict:?}");
    let log = done.out.join("attempt-1/vllm_server.log");
    let (lines, missing) = numbered(&log);
    assert!(missing > 0 || piece(&log).exists());
    let decisive = verdict.decisive.unwrap();
    let at = lines.iter().find(|(number, _)| Some(*number) == decisive.line).unwrap();
    assert!(at.1.contains("CUDA out of memory"), "{at:?}");
    // The same for whoever has nothing but the log, and for the excerpt in the report.
    let told = place.ask(&["diagnose", &log.to_string_lossy(), "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["cause"], told["line_number"].as_u64()), (&"cuda-oom".into(), decisive.line));
    let page = std::fs::read_to_string(done.out.join("report.html")).unwrap();
    assert!(page.contains("CUDA out of memory"));
}

#[test]
fn a_decisive_line_that_was_taken_out_decides_as_long_as_it_is_kept() {
    let place = Place::new();
    let fatal = "(EngineCore_DP0 pid=7) ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.00 GiB.\n";
    let line = |n: u64| format!("INFO 11-24 03:10:01 [flood.py:1] line {n} of no importance\n");
    let lines = |range: std::ops::RangeInclusive<u64>| {
        range.map(|n| if n == 700 { fatal.to_owned() } else { line(n) }).collect::<String>()
    };
    let whole = place.path("whole.log");
    std::fs::write(&whole, lines(1..=2000)).unwrap();
    let diagnose = |log: &Path| {
        let told = place.ask(&["diagnose", &log.to_string_lossy(), "--json"]);
        serde_json::from_str::<serde_json::Value>(&told.out).unwrap()
    };
    let before = diagnose(&whole);
    assert_eq!((&before["cause"], &before["line_number"]), (&"cuda-oom".into(), &700.into()));

    let log = place.path("cut.log");
    let (from, to) = (lines(1..=100).len() as u64, lines(1..=1900).len() as u64);
    let cut = Cut { from, to, first: 101, last: 1900, kept: 800, is_hole: false };
    let text = [lines(1..=100).into_bytes(), cut.note("cut.log.cut.gz"), lines(1901..=2000).into_bytes()];
    std::fs::write(&log, text.concat()).unwrap();
    let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    member.write_all(lines(101..=800).as_bytes()).unwrap();
    std::fs::write(piece(&log), member.finish().unwrap()).unwrap();
    let after = diagnose(&log);
    for key in ["cause", "line_number", "decisive_line", "confidence"] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert!(after["missing"].to_string().contains("lines 801 to 1900"), "{}", after["missing"]);
    let page = place.ask(&["diagnose", &log.to_string_lossy()]).out;
    assert!(page.contains("line 699 of") && page.contains("line 701 of"), "{page}");

    // Without what was kept it is said that something is missing.
    std::fs::remove_file(piece(&log)).unwrap();
    let after = diagnose(&log);
    assert_ne!(after["cause"], "cuda-oom");
    assert!(after["missing"].to_string().contains("lines 101 to 1900"), "{}", after["missing"]);
}
