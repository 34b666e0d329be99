//! Merged windows in the tools that people open traces with. `VARCAS_TEST_HTA` names an interpreter that has HolisticTraceAnalysis,
//! `VARCAS_TEST_VIEWER` a program that imports traces into the Chrome trace viewer and prints a line of JSON for each; without
//! them nothing is tested, and a line says so.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its ground has failed")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use varcas_guard::workload::profiler::folder::merge_window;

fn tool(variable: &str) -> Option<PathBuf> {
    let tool = std::env::var_os(variable).filter(|value| !value.is_empty());
    if tool.is_none() {
        eprintln!("SKIPPED: {variable} is not set");
    }
    tool.map(PathBuf::from)
}

/// The same trace as two ranks, and both merged: the part's path and the whole's.
fn merged(trace: &Path) -> (TempDir, PathBuf, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for rank in 0..2 {
        fs::copy(trace, dir.path().join(format!("window-0001-rank{rank}.pt.trace.json.gz"))).unwrap();
    }
    let (whole, _) = merge_window(dir.path(), 1, None).unwrap();
    let part = dir.path().join("window-0001-rank0.pt.trace.json.gz");
    (dir, part, whole)
}

/// One of a CPU, and one of an H100 if it lies beside the project.
fn traces() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let cuda = root.join("../shared/traces/h100_torch2.11_full.pt.trace.json.gz");
    let mut list = vec![root.join("tests/fixtures/traces/torch2.13.pt.trace.json.gz")];
    if cuda.is_file() {
        list.push(cuda);
    } else {
        eprintln!("SKIPPED: {} is not there", cuda.display());
    }
    list
}

#[test]
fn the_chrome_trace_viewer_imports_a_merged_window_with_no_warning_that_its_parts_do_not_give() {
    let Some(viewer) = tool("VARCAS_TEST_VIEWER") else { return };
    for trace in traces() {
        let (_dir, part, whole) = merged(&trace);
        let output = Command::new(&viewer).args([&part, &whole]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        let said: Vec<&str> =
            text.lines().filter_map(|line| line.split_once('\t')).map(|(_, said)| said).collect();
        let [of_part, of_whole] = said[..] else { panic!("{text}") };
        // The program may cut a long answer off.
        let (Ok(of_part), Ok(of_whole)) = (serde_json::from_str(of_part), serde_json::from_str(of_whole))
        else {
            eprintln!("SKIPPED: the answers for {} are cut off; both were imported", trace.display());
            continue;
        };
        let (of_part, of_whole): (Value, Value) = (of_part, of_whole);
        assert_eq!(of_whole["slices"].as_u64().unwrap(), 2 * of_part["slices"].as_u64().unwrap(), "{text}");
        // Numbers differ from rank to rank; what is complained about must not.
        let kinds = |value: &Value| -> BTreeSet<String> {
            let list = value["warnings"].as_array().unwrap();
            list.iter()
                .map(|w| w.as_str().unwrap().chars().filter(|c| !c.is_ascii_digit()).collect())
                .collect()
        };
        assert!(kinds(&of_whole).is_subset(&kinds(&of_part)), "{text}");
        let names = of_whole["processes"].as_array().unwrap();
        assert!(names.iter().all(|name| name.as_str().unwrap().contains("rank ")), "{names:?}");
    }
}

#[test]
fn holistic_trace_analysis_reads_a_merged_window() {
    let Some(python) = tool("VARCAS_TEST_HTA") else { return };
    let script = "import sys\nfrom hta.trace_analysis import TraceAnalysis\nfor name in sys.argv[1:]:\n    \
                  print('rows', len(TraceAnalysis(trace_files={0: name}, trace_dir='').t.traces[0]))";
    for trace in traces() {
        let (_dir, part, whole) = merged(&trace);
        let output = Command::new(&python).args(["-c", script]).args([&part, &whole]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let rows: Vec<u64> =
            text.lines().filter_map(|line| line.strip_prefix("rows ")?.parse().ok()).collect();
        let [of_part, of_whole] = rows[..] else {
            panic!("{text}{}", String::from_utf8_lossy(&output.stderr))
        };
        assert_eq!(of_whole, 2 * of_part);
    }
}

/// One window of a real vLLM on an H100, and those in the folders that `VARCAS_TEST_WINDOWS` names, apart by colons.
fn windows() -> Vec<PathBuf> {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/windows");
    let named = std::env::var_os("VARCAS_TEST_WINDOWS").unwrap_or_default();
    let folders = std::iter::once(fixtures).chain(std::env::split_paths(&named));
    let files = folders.filter(|folder| folder.is_dir()).flat_map(|folder| fs::read_dir(folder).unwrap());
    let paths = files.map(|entry| entry.unwrap().path());
    let mut windows: Vec<PathBuf> =
        paths.filter(|path| path.to_string_lossy().ends_with(".pt.trace.json.gz")).collect();
    windows.sort();
    println!("{} windows", windows.len());
    windows
}

fn read_gz(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(fs::File::open(path)?).read_to_end(&mut text)?;
    Ok(text)
}

/// Event counts by the tools' own measure: Kineto's events that last.
fn slices(trace: &Path) -> usize {
    let text = read_gz(trace).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    events.iter().filter(|event| event["ph"] == "X").count()
}

#[test]
fn the_chrome_trace_viewer_imports_every_window_with_no_warning_that_kineto_does_not_cause() {
    let Some(viewer) = tool("VARCAS_TEST_VIEWER") else { return };
    for window in windows() {
        let output = Command::new(&viewer).arg(&window).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        // The program may cut a long answer off, so it is not parsed.
        let count = text.split("\"slices\":").nth(1).and_then(|rest| rest.split(',').next()).unwrap();
        assert_eq!(count.parse::<usize>().unwrap(), slices(&window), "{text}");
        let warnings = text.split("\"warnings\":[").nth(1).unwrap();
        for warning in warnings.split('"').filter(|part| part.len() > 3) {
            // Kineto draws arrows to GPU work from calls that it does not record as their begin.
            assert!(
                "Found flow phase f for id: ".starts_with(warning)
                    || warning.starts_with("Found flow phase f for id: "),
                "{text}"
            );
        }
    }
}

#[test]
fn holistic_trace_analysis_reads_every_window() {
    let Some(python) = tool("VARCAS_TEST_HTA") else { return };
    let script = "import sys\nfrom hta.common.trace_parser import parse_trace_dict\nfrom hta.trace_analysis import TraceAnalysis\n\
                  for name in sys.argv[1:]:\n    meta = parse_trace_dict(name)\n    \
                  rows = len(TraceAnalysis(trace_files={0: name}, trace_dir='').t.traces[0])\n    \
                  print('rows', rows, meta['varcas_window'], meta['varcas_first_step'], meta['varcas_phase'] != '')";
    let windows = windows();
    let output = Command::new(&python).args(["-c", script]).args(&windows).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let read: Vec<&str> = text.lines().filter(|line| line.starts_with("rows ")).collect();
    assert_eq!(read.len(), windows.len(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for (line, window) in read.iter().zip(&windows) {
        let rows: usize = line.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(rows >= slices(window) / 2 && line.ends_with("True"), "{}: {line}", window.display());
    }
}
