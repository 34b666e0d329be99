use super::*;
use std::path::PathBuf;
use tempfile::TempDir;

const TRACE: &str = r#"{
  "schemaVersion": 1, "deviceProperties": [], "varcas_run": "r",
  "traceEvents": [
  {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 1.5, "dur": 2, "args": {"Ev Idx": 1, "cat": "kernel"}},
  {"ph": "X", "cat": "kernel", "name": "void gemm<float>(\"a\")", "pid": 0, "tid": 7, "ts": 2.0, "dur": 1.0},
  {"ph": "X", "cat": "kernel", "name": "relu", "pid": 0, "tid": 7, "ts": 4.0, "dur": 1.0, "args": {}},
  {"name": "process_name", "ph": "M", "ts": 0, "pid": 1, "tid": 0, "args": {"name": "python"}}
  ],
  "traceName": "x.json"
}
"#;

fn line(json: &str) -> String {
    format!("{json}\n")
}

fn closed(window: u32) -> String {
    line(&format!(
        r#"{{"event":"closed","rank":0,"pid":9,"t":1.5,"window":{window},"file":"window-{window:04}-rank0.pt.trace.json","bytes":700,"first_step":40,"last_step":60,"recorded_s":0.1,"stop_s":0.1,"export_s":0.1,"why":"steps","rss":12,"unknown":[1]}}"#
    ))
}

fn opened(window: u32) -> String {
    line(&format!(
        r#"{{"event":"opened","rank":0,"pid":9,"t":1.0,"window":{window},"step":40,"start_s":0.001}}"#
    ))
}

fn folder(files: &[(&str, &str)]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let path = dir.path().to_owned();
    (dir, path)
}

fn names(path: &Path) -> Vec<String> {
    list(path).unwrap().into_iter().collect()
}

fn unpack(path: &Path) -> String {
    let mut text = String::new();
    MultiGzDecoder::new(BufReader::new(File::open(path).unwrap())).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_complete_window_is_counted_compressed_and_the_plain_file_goes() {
    let index = opened(3) + &closed(3);
    let (_dir, path) = folder(&[("windows.jsonl", &index), ("window-0003-rank0.pt.trace.json", TRACE)]);
    let (traces, problems) = collect(&path);
    assert_eq!(problems, [""; 0]);
    let [trace] = &traces[..] else { panic!("{traces:?}") };
    assert_eq!(trace.file, "window-0003-rank0.pt.trace.json.gz");
    assert_eq!((trace.events, trace.kernels, trace.json_bytes), (4, 2, TRACE.len() as u64));
    assert_eq!((trace.rank, trace.window, trace.steps, trace.complete), (Some(0), Some(3), Some(20), true));
    assert_eq!(trace.bytes, fs::metadata(path.join(&trace.file)).unwrap().len());
    assert_eq!(names(&path), ["window-0003-rank0.pt.trace.json.gz", "windows.jsonl"]);
    assert_eq!(unpack(&path.join(&trace.file)), TRACE);
}

#[test]
fn collecting_again_finds_the_same() {
    let (_dir, path) = folder(&[("windows.jsonl", &closed(0)), ("window-0000-rank0.pt.trace.json", TRACE)]);
    let first = collect(&path);
    let files = names(&path);
    assert_eq!(collect(&path), first);
    assert_eq!(names(&path), files);
}

#[test]
fn a_trace_cut_anywhere_is_left_as_it_lies_and_named() {
    for cut in 0..TRACE.trim_end().len() {
        let (_dir, path) = folder(&[("window-0000-rank0.pt.trace.json", &TRACE[..cut])]);
        let (traces, problems) = collect(&path);
        assert_eq!(traces, [], "cut at {cut}");
        assert_eq!(problems.len(), 1, "cut at {cut}: {problems:?}");
        assert_eq!(names(&path), ["window-0000-rank0.pt.trace.json"], "cut at {cut}");
        assert_eq!(fs::read_to_string(path.join("window-0000-rank0.pt.trace.json")).unwrap(), TRACE[..cut]);
    }
}

#[test]
fn something_after_the_end_or_no_events_at_all_is_not_a_complete_trace() {
    for text in [&format!("{TRACE}{{"), "{}", "[]", "{\"traceEvents\": 3}"] {
        let (_dir, path) = folder(&[("window-0000-rank0.pt.trace.json", text)]);
        let (traces, problems) = collect(&path);
        assert_eq!((traces.len(), problems.len()), (0, 1), "{text}");
    }
}

#[test]
fn a_compressed_trace_that_was_cut_is_named_and_left() {
    let (_dir, path) = folder(&[("window-0000-rank0.pt.trace.json", TRACE)]);
    assert_eq!(collect(&path).0.len(), 1);
    let packed = path.join("window-0000-rank0.pt.trace.json.gz");
    let whole = fs::read(&packed).unwrap();
    for cut in [0, 5, whole.len() / 2, whole.len() - 4] {
        fs::write(&packed, &whole[..cut]).unwrap();
        let (traces, problems) = collect(&path);
        assert_eq!((traces.len(), problems.len()), (0, 1), "cut at {cut}: {problems:?}");
        assert_eq!(fs::read(&packed).unwrap(), whole[..cut]);
    }
}

#[test]
fn leftovers_of_a_killed_writer_are_named_and_stay() {
    let (_dir, path) = folder(&[
        (".window-0002-rank0.pt.trace.json.part", ""),
        (".window-0002-rank0.pt.trace.json.part.tmp", "{ \"traceEv"),
    ]);
    let (traces, problems) = collect(&path);
    assert_eq!((traces.len(), problems.len()), (0, 2), "{problems:?}");
    assert!(problems[1].contains("10 bytes"), "{problems:?}");
    assert_eq!(names(&path).len(), 2);
}

#[test]
fn an_interrupted_collection_is_taken_up_again() {
    let (_dir, path) = folder(&[
        ("window-0000-rank0.pt.trace.json", TRACE),
        (".window-0000-rank0.pt.trace.json.gz.tmp", "half"),
        ("window-0001-rank0.pt.trace.json", TRACE),
        ("window-0001-rank0.pt.trace.json.gz", "renamed, but the plain file was not removed yet"),
    ]);
    let (traces, problems) = collect(&path);
    assert_eq!(traces.len(), 2);
    assert_eq!(problems, [""; 0]);
    assert_eq!(names(&path), ["window-0000-rank0.pt.trace.json.gz", "window-0001-rank0.pt.trace.json.gz"]);
    assert_eq!(unpack(&path.join("window-0001-rank0.pt.trace.json.gz")), TRACE);
}

#[test]
fn a_trace_that_cannot_be_compressed_is_still_a_trace() {
    let (_dir, path) = folder(&[("window-0000-rank0.pt.trace.json", TRACE)]);
    // A folder in the place of the temporary file: creating it fails, as on a full disk.
    fs::create_dir(path.join(".window-0000-rank0.pt.trace.json.gz.tmp")).unwrap();
    let (traces, problems) = collect(&path);
    assert_eq!(traces[0].file, "window-0000-rank0.pt.trace.json");
    assert_eq!(traces[0].events, 4);
    assert!(problems.iter().any(|problem| problem.contains("could not be compressed")), "{problems:?}");
}

#[test]
fn lost_and_failed_windows_are_told() {
    let index = opened(0)
        + &closed(0)
        + &opened(1)
        + &line(r#"{"event":"failed","rank":0,"pid":9,"t":1,"window":1,"error":"OSError: no space"}"#)
        + &line(r#"{"event":"disabled","rank":1,"pid":9,"t":1,"reason":"no Kineto"}"#)
        + &opened(2)
        + &line(r#"{"event":"flushing","rank":0,"pid":9,"t":1,"window":2}"#);
    let (_dir, path) = folder(&[("windows.jsonl", &index)]);
    let (_, problems) = collect(&path);
    assert_eq!(problems.len(), 4, "{problems:?}");
    for (problem, part) in problems.iter().zip(["is not there", "no space", "still open", "no Kineto"]) {
        assert!(problem.contains(part), "{problem}");
    }
}

#[test]
fn a_folder_that_is_gone_is_a_problem_not_a_panic() {
    let (dir, path) = folder(&[]);
    drop(dir);
    let (traces, problems) = collect(&path);
    assert_eq!((traces.len(), problems.len()), (0, 1));
}

#[test]
fn torn_and_unknown_lines_of_the_index_are_passed_over() {
    let hello = line(r#"{"event":"hello","rank":1,"pid":9,"t":1.0,"torch":"2.10","activities":["CPU"]}"#);
    let text = format!(
        "{hello}{}garbage\n{}\n{}",
        closed(0),
        r#"{"event":"primed","rank":0,"pid":1,"t":1}"#,
        &closed(1)[..60]
    );
    let index = parse_index(&text);
    assert_eq!(index.windows.len(), 1);
    assert_eq!(index.workers, BTreeSet::from([1]));
    assert!(!index.all_finished());
    assert!(parse_line(&closed(0)).is_some());
    assert!(parse_line("").is_none());
}

#[test]
fn all_workers_must_have_finished() {
    let hello = |rank: u32| line(&format!(r#"{{"event":"hello","rank":{rank},"pid":9,"t":1}}"#));
    let finished = |rank: u32| line(&format!(r#"{{"event":"finished","rank":{rank},"pid":9,"t":1}}"#));
    assert!(!parse_index("").all_finished());
    assert!(!parse_index(&(hello(0) + &hello(1) + &finished(1))).all_finished());
    assert!(parse_index(&(hello(0) + &hello(1) + &finished(1) + &finished(0))).all_finished());
}

#[test]
fn names_tell_rank_and_window() {
    assert_eq!(parse_name("window-0012-rank3.pt.trace.json.gz"), Some((3, 12)));
    assert_eq!(parse_name("window-12345-rank10.pt.trace.json"), Some((10, 12345)));
    assert_eq!(parse_name("host_1.123.pt.trace.json.gz"), None);
}

proptest::proptest! {
    #[test]
    fn no_index_makes_the_parser_panic(text in ".{0,400}") {
        let _ = parse_index(&text);
    }
}

#[test]
fn a_window_is_packed_as_soon_as_its_worker_closes_it_and_the_end_takes_only_the_rest() {
    let (_dir, path) = folder(&[
        ("window-0003-rank0.pt.trace.json", TRACE),
        ("window-0004-rank0.pt.trace.json", TRACE),
        ("window-0005-rank0.pt.trace.json", &TRACE[..200]),
    ]);
    let mut gatherer = Gatherer::new(&path);
    for said in [opened(3), closed(3), closed(3), closed(5), closed(9), "torn".to_owned()] {
        gatherer.hear(&said);
    }
    assert!(path.join("window-0003-rank0.pt.trace.json.gz").is_file(), "{:?}", names(&path));
    assert!(!path.join("window-0003-rank0.pt.trace.json").exists());
    assert!(path.join("window-0004-rank0.pt.trace.json").is_file(), "nobody has called it closed");
    fs::write(path.join("windows.jsonl"), opened(3) + &closed(3) + &closed(4)).unwrap();
    let collected = gatherer.finish();
    let files: Vec<&str> = collected.traces.iter().map(|trace| trace.file.as_str()).collect();
    assert_eq!(files, ["window-0003-rank0.pt.trace.json.gz", "window-0004-rank0.pt.trace.json.gz"]);
    assert_eq!(collected.traces[0].steps, Some(20));
    // The same as when all is taken at once, but for what lies there by then.
    assert_eq!(collected.profile, collect_and_profile(&path).profile);
    assert!(
        collected.problems.iter().any(|problem| problem.contains("window-0005")),
        "{:?}",
        collected.problems
    );
}
