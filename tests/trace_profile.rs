//! The analysis of real traces against a slow and simple one, and `varcas-guard traces` as a user meets it. The traces of an H100 lie
//! beside the project and not in it; without them a line says so.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its ground has failed")]

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use varcas_guard::workload::profiler::analyse::{Analyser, WindowProfile};
use varcas_guard::workload::profiler::read::read;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/traces")
}

/// Every complete trace at hand.
fn real() -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = ["2.9", "2.10", "2.13"]
        .iter()
        .map(|v| fixtures().join(format!("torch{v}.pt.trace.json.gz")))
        .collect();
    let shared = root().join("../shared/traces");
    for name in ["h100_torch2.11_full", "small_plain", "small_stack_shapes_mem"] {
        let path = shared.join(format!("{name}.pt.trace.json.gz"));
        if path.is_file() {
            list.push(path);
        } else {
            eprintln!("SKIPPED: {} is not there", path.display());
        }
    }
    list
}

fn analyse(path: &Path) -> WindowProfile {
    let mut analyser = Analyser::default();
    read(MultiGzDecoder::new(File::open(path).unwrap()), |_| false, |event| analyser.event(event)).unwrap();
    analyser.finish()
}

fn slices(path: &Path) -> Vec<Value> {
    let document: Value = serde_json::from_reader(MultiGzDecoder::new(File::open(path).unwrap())).unwrap();
    let events = document["traceEvents"].as_array().unwrap();
    events.iter().filter(|event| event["ph"] == "X").cloned().collect()
}

/// Start and end in nanoseconds.
fn span(event: &Value) -> (i64, i64) {
    let ns = |key: &str| (event[key].as_f64().unwrap() * 1000.0).round() as i64;
    (ns("ts"), ns("ts") + ns("dur"))
}

fn of<'a>(events: &'a [Value], cats: &[&str]) -> Vec<&'a Value> {
    events.iter().filter(|event| cats.iter().any(|cat| event["cat"] == *cat)).collect()
}

fn totals(events: &[&Value]) -> BTreeMap<String, (u64, u64)> {
    let mut out: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for event in events {
        let (start, end) = span(event);
        let name: String = event["name"].as_str().unwrap().chars().take(1024).collect();
        let row = out.entry(name).or_default();
        row.0 += 1;
        row.1 += end.abs_diff(start);
    }
    out
}

/// Duration less that of the direct children, which lie within it on the same thread.
fn self_times(operators: &[&Value]) -> BTreeMap<String, i64> {
    let mut threads: BTreeMap<String, Vec<(i64, i64, String)>> = BTreeMap::new();
    for event in operators {
        let (start, end) = span(event);
        let name = event["name"].as_str().unwrap().to_owned();
        threads.entry(event["tid"].to_string()).or_default().push((start, end, name));
    }
    let mut out: BTreeMap<String, i64> = BTreeMap::new();
    for list in threads.values_mut() {
        list.sort_by_key(|(start, end, _)| (*start, -*end));
        let mut open: Vec<(i64, String)> = Vec::new();
        for (start, end, name) in list.iter() {
            open.retain(|(until, _)| until > start);
            *out.entry(name.clone()).or_default() += end - start;
            if let Some((until, parent)) = open.last() {
                *out.entry(parent.clone()).or_default() -= end.min(until) - start;
            }
            open.push((*end, name.clone()));
        }
    }
    out
}

/// Time in which at least one of them ran, counted border by border.
fn busy(events: &[&Value]) -> u64 {
    let mut borders: Vec<(i64, i64)> = Vec::new();
    for event in events {
        let (start, end) = span(event);
        borders.extend([(start, 1), (end, -1)]);
    }
    borders.sort_unstable();
    let (mut depth, mut since, mut sum) = (0, 0, 0);
    for (at, change) in borders {
        if depth > 0 {
            sum += at.abs_diff(since);
        }
        depth += change;
        since = at;
    }
    sum
}

#[test]
fn real_traces_give_what_a_slow_and_simple_count_gives() {
    for path in real() {
        let (events, profile) = (slices(&path), analyse(&path));
        let name = path.display();
        let table =
            |rows: &[varcas_guard::workload::profiler::analyse::NameTime]| -> BTreeMap<String, (u64, u64)> {
                rows.iter().map(|row| (row.name.clone(), (row.count, row.total_ns))).collect()
            };
        let (kernels, copies) = (of(&events, &["kernel"]), of(&events, &["gpu_memcpy", "gpu_memset"]));
        assert_eq!(table(&profile.kernel_times), totals(&kernels), "{name}");
        assert_eq!(table(&profile.copies), totals(&copies), "{name}");
        let operators = of(&events, &["cpu_op"]);
        let rows: Vec<_> = profile.operators.iter().map(|operator| operator.time.clone()).collect();
        assert_eq!(table(&rows), totals(&operators), "{name}");
        let own: BTreeMap<String, i64> = profile
            .operators
            .iter()
            .map(|o| (o.time.name.clone(), i64::try_from(o.self_ns.unwrap()).unwrap()))
            .collect();
        assert_eq!(own, self_times(&operators), "{name}");
        let work: Vec<&Value> = kernels.into_iter().chain(copies).collect();
        let devices = profile.devices.unwrap();
        assert_eq!(devices.iter().map(|d| d.busy_ns).sum::<u64>(), busy(&work), "{name}");
        let first = work.iter().map(|event| span(event).0).min();
        let last = work.iter().map(|event| span(event).1).max();
        if let (Some(first), Some(last), [device]) = (first, last, &devices[..]) {
            assert_eq!(device.busy_ns + device.gaps_ns.iter().sum::<u64>(), last.abs_diff(first), "{name}");
        }
    }
}

#[test]
fn the_gpu_time_of_real_steps_is_that_of_the_kernels_they_launched() {
    let path = root().join("../shared/traces/h100_torch2.11_full.pt.trace.json.gz");
    if !path.is_file() {
        eprintln!("SKIPPED: {} is not there", path.display());
        return;
    }
    // Its 150 annotations are called s_0 to s_149; with the recorder's name they are steps.
    let mut text = String::new();
    MultiGzDecoder::new(File::open(&path).unwrap()).read_to_string(&mut text).unwrap();
    let text = text.replace("\"name\": \"s_", "\"name\": \"ProfilerStep#");
    let mut analyser = Analyser::default();
    read(text.as_bytes(), |_| false, |event| analyser.event(event)).unwrap();
    let profile = analyser.finish();

    let document: Value = serde_json::from_str(&text).unwrap();
    let events: Vec<Value> = document["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["ph"] == "X")
        .cloned()
        .collect();
    let launches: BTreeMap<u64, i64> = of(&events, &["cuda_runtime", "cuda_driver"])
        .iter()
        .filter_map(|event| Some((event["args"]["correlation"].as_u64()?, span(event).0)))
        .collect();
    let mut steps: Vec<((i64, i64), u64)> = of(&events, &["user_annotation"])
        .iter()
        .filter(|event| event["name"].as_str().unwrap().starts_with("ProfilerStep#"))
        .map(|event| (span(event), 0))
        .collect();
    let mut rest = 0;
    for work in of(&events, &["kernel", "gpu_memcpy", "gpu_memset"]) {
        let (start, end) = span(work);
        let at = launches.get(&work["args"]["correlation"].as_u64().unwrap());
        let step = steps.iter_mut().find(|((from, to), _)| at.is_some_and(|at| from <= at && at < to));
        *step.map_or(&mut rest, |(_, sum)| sum) += end.abs_diff(start);
    }
    steps.sort_unstable();
    assert_eq!(steps.len(), 150);
    let expected: Vec<_> =
        steps.iter().map(|((from, to), gpu)| (*from, to.abs_diff(*from), Some(*gpu))).collect();
    let found: Vec<_> = profile.steps.iter().map(|step| (step.start_ns, step.wall_ns, step.gpu_ns)).collect();
    assert_eq!(found, expected);
    assert_eq!(profile.unattributed_ns, Some(rest));
    assert!(found.iter().all(|(_, _, gpu)| gpu.unwrap() > 0), "each of them trained");
}

fn guard(arguments: &[&str], path: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_varcas-guard")).arg("traces").arg(path).args(arguments).output().unwrap()
}

#[test]
fn a_folder_of_foreign_traces_is_listed_and_shown_and_an_invalid_one_is_named() {
    let output = guard(&["--json"], &fixtures());
    assert_eq!(output.status.code(), Some(1), "weird_names.pt.trace.json.gz is not JSON");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let complete: Vec<(&str, bool)> = found["traces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|trace| (trace["file"].as_str().unwrap(), trace["complete"].as_bool().unwrap()))
        .collect();
    assert_eq!(
        complete,
        [
            ("torch2.10.pt.trace.json.gz", true),
            ("torch2.13.pt.trace.json.gz", true),
            ("torch2.9.pt.trace.json.gz", true),
            ("weird_names.pt.trace.json.gz", false),
        ]
    );
    assert_eq!(found["profile"]["windows"], 3);
    assert_eq!(found["profile"]["gpu"], Value::Null, "nothing of a GPU in traces of a CPU");
    let text = String::from_utf8(guard(&["--top", "3"], &fixtures()).stdout).unwrap();
    assert!(text.contains("No GPU work was recorded"), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("| `")).count(), 3, "{text}");
}

#[test]
fn mistakes_are_told_with_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    for (arguments, path, part) in [
        (&[][..], empty.path().join("nowhere"), "does not exist"),
        (&[], empty.path().to_owned(), "there is no trace in"),
        (&["--merge", "3"], fixtures(), "only windows of varcas-guard can be merged"),
        (&["--out", "x"], fixtures(), "--merge"),
    ] {
        let output = guard(arguments, &path);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(part), "{error}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn two_ranks_become_one_trace_wherever_it_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    for rank in 0..2 {
        let name = format!("window-0007-rank{rank}.pt.trace.json.gz");
        fs::copy(fixtures().join("torch2.13.pt.trace.json.gz"), dir.path().join(name)).unwrap();
    }
    let out = dir.path().join("both.json.gz");
    let output = guard(&["--merge", "7", "--out", out.to_str().unwrap()], dir.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (one, both) = (slices(&fixtures().join("torch2.13.pt.trace.json.gz")), slices(&out));
    assert_eq!(both.len(), 2 * one.len());
    // Nothing of the first rank was changed but its pseudo processes.
    for (before, after) in one.iter().zip(&both).filter(|(before, _)| before["pid"].is_number()) {
        assert_eq!(before, after);
    }
    let pids = |list: &[Value]| {
        list.iter().map(|event| event["pid"].to_string()).collect::<std::collections::BTreeSet<_>>()
    };
    assert!(pids(&both[..one.len()]).is_disjoint(&pids(&both[one.len()..])));
    let (single, double) = (analyse(&fixtures().join("torch2.13.pt.trace.json.gz")), analyse(&out));
    assert_eq!(
        double.self_ns().unwrap(),
        2 * single.self_ns().unwrap(),
        "the operators nest as before, on threads of their own"
    );
}
