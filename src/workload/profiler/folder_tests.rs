use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use tempfile::TempDir;

fn trace(name: &str) -> String {
    json!({"baseTimeNanoseconds": 5, "distributedInfo": {"rank": 4}, "traceEvents": [
        {"ph": "X", "cat": "cpu_op", "name": name, "pid": 9, "tid": 9, "ts": 1, "dur": 1_000_000},
        {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#40", "pid": 9, "tid": 9, "ts": 1, "dur": 5},
        {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 3, "dur": 1},
    ]})
    .to_string()
}

fn packed(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(1));
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

#[test]
fn traces_of_any_name_are_found_and_other_json_is_not() {
    let whole = trace("aten::mm");
    let gz = packed(&whole);
    let dir = folder(&[
        ("host_1.123.pt.trace.json", whole.as_bytes()),
        ("plain-name.json.gz", &gz),
        ("misnamed.json", &gz),
        ("report.json", b"{\"schema\": 1}"),
        ("notes.txt", b"x"),
        ("window-0002-rank1.pt.trace.json.gz", &gz),
        ("window-0002-rank0.pt.trace.json.gz", &gz),
        ("window-0001-rank0.pt.trace.json", &whole.as_bytes()[..100]),
        ("window-0001-rank0.salvaged.pt.trace.json.gz", &gz),
        ("windows.jsonl", br#"{"event":"closed","rank":1,"window":2,"t":1,"phase":"measuring"}"#),
    ]);
    let found = survey(dir.path(), 15).unwrap();
    let seen: Vec<_> = found
        .traces
        .iter()
        .map(|e| (e.file.as_str(), e.window, e.rank, e.complete, e.steps, e.events))
        .collect();
    let whole = |file, window, rank| (file, window, rank, true, Some(1), Some(3));
    assert_eq!(
        seen,
        [
            ("window-0001-rank0.pt.trace.json", Some(1), Some(0), false, None, None),
            whole("window-0002-rank0.pt.trace.json.gz", Some(2), Some(0)),
            whole("window-0002-rank1.pt.trace.json.gz", Some(2), Some(1)),
            whole("host_1.123.pt.trace.json", None, Some(4)),
            whole("misnamed.json", None, Some(4)),
            whole("plain-name.json.gz", None, Some(4)),
            whole("window-0001-rank0.salvaged.pt.trace.json.gz", None, Some(4)),
        ]
    );
    assert_eq!(found.traces[2].phase.as_deref(), Some("measuring"));
    assert!(found.traces[0].problem.is_some());
    let profile = found.profile.unwrap();
    // The salvaged one is left out; the ranks of window 2 are one window.
    assert_eq!((profile.traces, profile.windows), (5, 4));
}

#[test]
fn a_window_that_is_being_compressed_counts_once() {
    let whole = trace("x");
    let dir = folder(&[
        ("window-0002-rank0.pt.trace.json", whole.as_bytes()),
        ("window-0002-rank0.pt.trace.json.gz", &packed(&whole)[..20]),
        ("window-0002-rank1.pt.trace.json", whole.as_bytes()),
    ]);
    let found = survey(dir.path(), 15).unwrap();
    assert_eq!(found.traces.len(), 2);
    assert!(found.traces.iter().all(|entry| entry.complete));
    assert_eq!(merge_window(dir.path(), 2, None).unwrap().1.parts, 2);
}

#[test]
fn one_file_is_enough() {
    let dir = folder(&[("a.pt.trace.json", trace("x").as_bytes())]);
    assert_eq!(survey(&dir.path().join("a.pt.trace.json"), 15).unwrap().traces.len(), 1);
    assert!(survey(&dir.path().join("b.pt.trace.json"), 15).is_err());
}

#[test]
fn a_merged_window_lies_beside_its_parts_and_is_counted_with_none() {
    let gz = packed(&trace("x"));
    let dir =
        folder(&[("window-0002-rank1.pt.trace.json.gz", &gz), ("window-0002-rank0.pt.trace.json.gz", &gz)]);
    let before = survey(dir.path(), 15).unwrap().profile;
    let (path, merged) = merge_window(dir.path(), 2, None).unwrap();
    assert_eq!(path, dir.path().join("window-0002-merged.pt.trace.json.gz"));
    assert_eq!(merged, Merged { parts: 2, events: 6 });
    let after = survey(dir.path(), 15).unwrap();
    assert_eq!(after.profile, before);
    let entry = after.traces.iter().find(|entry| entry.made == Some("merged")).unwrap();
    assert!(entry.complete);
    // Six events and the names of four processes that had none.
    assert_eq!(entry.events, Some(10));
    let (traces, problems) = super::super::windows::collect(dir.path());
    assert_eq!((traces.len(), problems), (2, Vec::<String>::new()));
}

#[test]
fn what_cannot_be_merged_leaves_nothing_behind() {
    let whole = trace("x");
    let dir = folder(&[
        ("window-0002-rank0.pt.trace.json", whole.as_bytes()),
        ("window-0003-rank0.pt.trace.json", whole.as_bytes()),
        ("window-0003-rank1.pt.trace.json", &whole.as_bytes()[..90]),
    ]);
    let error = |window| merge_window(dir.path(), window, None).unwrap_err().to_string();
    assert!(error(2).contains("one rank only"), "{}", error(2));
    assert!(error(9).contains("only 2, 3"), "{}", error(9));
    assert!(error(3).starts_with("window-0003-rank1.pt.trace.json is not a complete trace"), "{}", error(3));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
}
