use super::*;
use std::io::Cursor;

fn trace(base: Option<i64>, events: &Value) -> String {
    let mut document = json!({"schemaVersion": 1, "deviceProperties": [{"id": 0}], "varcas_window": "3", "traceEvents": events});
    if let Some(base) = base {
        document["baseTimeNanoseconds"] = json!(base);
    }
    document.to_string()
}

fn opener(text: String) -> impl Fn() -> io::Result<Box<dyn Read>> {
    move || Ok(Box::new(Cursor::new(text.clone().into_bytes())))
}

fn merged(texts: &[String]) -> Result<Value, MergeError> {
    let openers: Vec<_> = texts.iter().cloned().map(opener).collect();
    let parts: Vec<Part<'_>> = (0..)
        .zip(&openers)
        .map(|(rank, open)| Part { file: format!("rank{rank}.json"), rank, open })
        .collect();
    let mut out = Vec::new();
    merge(&parts, "window-0003-merged.pt.trace.json", &mut out)?;
    Ok(serde_json::from_slice(&out).unwrap())
}

fn events(document: &Value) -> &Vec<Value> {
    document["traceEvents"].as_array().unwrap()
}

/// A launch with its flow and a kernel, and the names, as Kineto writes them.
fn rank(pid: i64) -> Value {
    json!([
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": pid, "tid": pid, "ts": 10.001, "dur": 1.5,
            "args": {"External id": 4, "correlation": 77}},
        {"ph": "s", "id": 77, "pid": pid, "tid": pid, "ts": 10.001, "cat": "ac2g", "name": "ac2g"},
        {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 12, "dur": 3, "args": {"device": 0, "stream": 7, "correlation": 77}},
        {"ph": "X", "cat": "overhead", "name": "Activity Buffer Request", "pid": -1, "tid": 0, "ts": 1, "dur": 2},
        {"name": "process_name", "ph": "M", "ts": 0, "pid": pid, "tid": 0, "args": {"name": "VLLM::Worker"}},
        {"name": "process_sort_index", "ph": "M", "ts": 0, "pid": pid, "tid": 0, "args": {"sort_index": pid}},
        {"name": "process_sort_index", "ph": "M", "ts": 0, "pid": 0, "tid": 0, "args": {"sort_index": 5_000_000}},
        {"name": "process_sort_index", "ph": "M", "ts": 0, "pid": "Spans", "tid": 0, "args": {"sort_index": 536_870_912}},
        {"name": "Record Window End", "ph": "i", "s": "g", "pid": "", "tid": "", "ts": 99.5},
    ])
}

#[test]
fn the_first_rank_keeps_its_numbers_and_no_other_shares_them() {
    let document = merged(&[trace(Some(5), &rank(404)), trace(Some(5), &rank(404))]).unwrap();
    let list = events(&document);
    let of = |rank: usize, index: usize| &list[rank * 11 + index];
    assert_eq!(list.len(), 22, "nine events and two names for the nameless of each rank");
    assert_eq!(
        (&of(0, 0)["pid"], &of(0, 0)["tid"], &of(0, 0)["args"]["correlation"]),
        (&json!(404), &json!(404), &json!(77))
    );
    assert_eq!((&of(1, 0)["pid"], &of(1, 0)["tid"]), (&json!(10_000_404), &json!(10_000_404)));
    assert_eq!(of(1, 0)["args"]["correlation"], of(1, 2)["args"]["correlation"]);
    assert_eq!(of(1, 0)["args"]["correlation"], json!(IDS + 77));
    assert_eq!(of(1, 1)["id"], json!(IDS + 77));
    assert_eq!(
        (&of(1, 2)["pid"], &of(1, 2)["tid"], &of(1, 2)["args"]["stream"]),
        (&json!(10_000_000), &json!(10_000_007), &json!(7))
    );
    assert_eq!((&of(0, 3)["pid"], &of(1, 3)["pid"]), (&json!(9_999_999), &json!(19_999_999)));
    let places = |rank: usize| -> BTreeSet<String> {
        list[rank * 11..(rank + 1) * 11].iter().map(|e| format!("{} {}", e["pid"], e["tid"])).collect()
    };
    assert!(places(0).is_disjoint(&places(1)));
}

#[test]
fn names_say_the_rank_and_ranks_stand_one_below_the_other() {
    let document = merged(&[trace(None, &rank(404)), trace(None, &rank(500))]).unwrap();
    let list = events(&document);
    let names: Vec<&str> = list
        .iter()
        .filter(|e| e["name"] == "process_name")
        .map(|e| e["args"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names[0], "rank 0: VLLM::Worker [404]");
    assert!(
        names.contains(&"rank 1: VLLM::Worker [500]") && names.contains(&"rank 1: process [0]"),
        "{names:?}"
    );
    let order: Vec<i64> = list
        .iter()
        .filter(|e| e["name"] == "process_sort_index")
        .map(|e| e["args"]["sort_index"].as_i64().unwrap())
        .collect();
    assert_eq!(order, [0, 1, 99, 100, 101, 199]);
    assert_eq!(list.last().unwrap()["ph"], "M");
    assert!(list.iter().any(|e| e["pid"] == "rank 1: Spans"));
}

#[test]
fn times_are_aligned_by_their_bases_to_the_nanosecond() {
    let late = 1_790_857_026_000_000_123;
    let document = merged(&[trace(Some(late), &rank(1)), trace(Some(late - 2_000_123), &rank(2))]).unwrap();
    assert_eq!(document["baseTimeNanoseconds"], json!(late - 2_000_123));
    let list = events(&document);
    assert_eq!((&list[0]["ts"], &list[11]["ts"]), (&json!(2010.124), &json!(10.001)));
    assert_eq!(list[2]["ts"], json!(2012.123));
    let same = merged(&[trace(Some(late), &rank(1)), trace(Some(late), &rank(2))]).unwrap();
    assert_eq!(events(&same)[0]["ts"], json!(10.001));
}

#[test]
fn the_metadata_lists_the_parts() {
    let document = merged(&[trace(Some(5), &rank(1)), trace(Some(5), &rank(2))]).unwrap();
    let parts = document["varcas_merged"].as_array().unwrap();
    assert_eq!(
        (&parts[1]["file"], &parts[1]["rank"], &parts[1]["events"]),
        (&json!("rank1.json"), &json!(1), &json!(9))
    );
    assert_eq!(parts[0]["metadata"]["varcas_window"], "3");
    assert_eq!(document["deviceProperties"], json!([{"id": 0}]));
    assert_eq!(document["traceName"], "window-0003-merged.pt.trace.json");
}

#[test]
fn what_cannot_be_aligned_or_read_is_an_error_with_the_files_name() {
    let error = merged(&[trace(Some(5), &rank(1)), trace(None, &rank(2))]).unwrap_err().to_string();
    assert!(error.contains("rank0.json counts from") && error.contains("rank1.json does not"), "{error}");
    let whole = trace(Some(5), &rank(1));
    let error = merged(&[whole.clone(), whole[..whole.len() / 2].to_owned()]).unwrap_err().to_string();
    assert!(error.starts_with("rank1.json is not a complete trace"), "{error}");
}

#[test]
fn a_full_disk_is_told() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let text = trace(None, &rank(1));
    let open = opener(text);
    let parts = [
        Part { file: "a".to_owned(), rank: 0, open: &open },
        Part { file: "b".to_owned(), rank: 1, open: &open },
    ];
    assert!(matches!(merge(&parts, "m", &mut Full), Err(MergeError::Write(_))));
}

#[test]
fn the_same_rank_twice_is_refused() {
    let text = trace(None, &rank(1));
    let open = opener(text);
    let parts = [
        Part { file: "a".to_owned(), rank: 0, open: &open },
        Part { file: "b".to_owned(), rank: 0, open: &open },
    ];
    assert!(matches!(merge(&parts, "m", &mut Vec::new()), Err(MergeError::Nothing(_))));
}

mod any {
    use super::*;
    use proptest::prelude::*;

    fn scalar() -> impl Strategy<Value = Value> {
        prop_oneof![
            Just(json!(null)),
            any::<i64>().prop_map(|n| json!(n)),
            any::<u64>().prop_map(|n| json!(n)),
            any::<f64>().prop_map(|n| json!(n)),
            (-3_i64..6).prop_map(|n| json!(n)),
            ".{0,6}".prop_map(|s| json!(s)),
            Just(json!([1])),
        ]
    }

    fn event() -> impl Strategy<Value = Value> {
        (scalar(), scalar(), scalar(), scalar(), scalar(), scalar()).prop_map(
            |(pid, tid, id, ts, link, name)| {
                json!({"ph": "M", "name": "process_name", "pid": pid, "tid": tid, "id": id, "ts": ts,
                "args": {"name": name, "correlation": link, "sort_index": link}})
            },
        )
    }

    proptest! {
        #[test]
        fn whatever_the_parts_the_whole_is_strict_json_with_all_events_and_no_shared_identity(
            a in proptest::collection::vec(event(), 0..8), b in proptest::collection::vec(event(), 0..8),
            shift in 0_i64..3_000_000,
        ) {
            let document = merged(&[trace(Some(7), &json!(a)), trace(Some(7 + shift), &json!(b))]).unwrap();
            let list = events(&document);
            prop_assert!(list.len() >= a.len() + b.len());
            let first: BTreeSet<String> = list[..a.len()].iter().map(|e| e["pid"].to_string()).collect();
            for event in &list[list.len() - b.len()..] {
                let pid = event["pid"].to_string();
                prop_assert!(!first.contains(&pid) || event["pid"].is_null() || event["pid"].is_array(), "{pid}");
            }
        }
    }
}

#[test]
fn times_of_ranks_that_began_apart_are_moved_exactly() {
    let list = |times: &[Value]| -> Value {
        times
            .iter()
            .map(
                |ts| json!({"ph": "X", "cat": "cpu_op", "name": "a", "pid": 1, "tid": 1, "ts": ts, "dur": 1}),
            )
            .collect()
    };
    let times = [json!(12), json!(10.001), json!(12.5)];
    let document = merged(&[trace(Some(5_000), &list(&times)), trace(Some(6_500), &list(&times))]).unwrap();
    let seen: Vec<String> =
        events(&document).iter().filter(|e| e["name"] == "a").map(|e| e["ts"].to_string()).collect();
    assert_eq!(seen, ["12", "10.001", "12.5", "13.5", "11.501", "14"]);
}

#[test]
fn a_thread_that_is_named_by_an_odd_number_stays_its_ranks_own() {
    let list = json!([{"ph": "X", "cat": "cpu_op", "name": "a", "pid": 1, "tid": 1.5, "ts": 1, "dur": 1}]);
    let document = merged(&[trace(None, &list), trace(None, &list)]).unwrap();
    let seen: Vec<&str> =
        events(&document).iter().filter(|e| e["name"] == "a").filter_map(|e| e["tid"].as_str()).collect();
    assert_eq!(seen, ["rank 0: 1.5", "rank 1: 1.5"]);
}

#[test]
fn a_link_that_is_too_large_for_its_ranks_share_of_numbers_becomes_a_text() {
    let list = |correlation: i64| {
        json!([{"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 1, "dur": 1,
            "args": {"correlation": correlation}}])
    };
    let seen = |correlation: i64| -> Vec<Value> {
        let document = merged(&[trace(None, &list(correlation)), trace(None, &list(correlation))]).unwrap();
        let kernels = events(&document).iter().filter(|e| e["name"] == "k");
        kernels.map(|e| e["args"]["correlation"].clone()).collect()
    };
    assert_eq!(seen(IDS - 1), [json!(IDS - 1), json!(2 * IDS - 1)]);
    assert_eq!(seen(IDS), [json!(format!("rank 0: {IDS}")), json!(format!("rank 1: {IDS}"))]);
    assert_eq!(seen(0), [json!(0), json!(0)], "none is none in every rank");
}
