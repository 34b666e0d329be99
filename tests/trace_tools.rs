//! Merged windows in the tools that people open traces with. `VARCAS_TEST_HTA` names an interpreter that has HolisticTraceAnalysis,
//! `VARCAS_TEST_VIEWER` a program that imports traces into the Chrome trace viewer and prints a line of JSON for each; without
//! them nothing is tested, and a line says so.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its ground has failed")]

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
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
