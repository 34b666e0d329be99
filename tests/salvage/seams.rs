//! Two events that grew together where bytes went missing or came twice, in what torch does not number.
//!
//! `SALVAGE_ROUNDS=1000` makes the random ones longer; a trace of a GPU is read from `../shared` if it is there.

use crate::common::*;
use rand::{Rng, RngExt};
use serde_json::Value;
use std::collections::HashMap;
use varcas_guard::recovery::salvage::Status;

/// A launch as Kineto writes it: kernel, arrow, call, arrow.
fn launch(number: usize) -> [String; 4] {
    let names = [
        (
            "void vectorized_elementwise_kernel<4, Functor_add<float>, array<char*, 3ul> >(int, Functor_add<float>)",
            32,
            0,
        ),
        (
            "void reduce_kernel<512, 1, ReduceOp<float, sum_functor<float>::operator()(Iterator&)::{lambda(float)#1}> >(float)",
            54,
            16,
        ),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_nt_n_tilesize32x32x8_cublas", 90, 6144),
    ];
    let (name, registers, shared) = names[number % 3];
    let (call, cbid) =
        [("cudaLaunchKernel", 211), ("cudaLaunchKernel", 211), ("cudaLaunchKernelExC", 430)][number % 3];
    let id = 455_300 + 14 * number;
    let external = 140_000 + 5 * number;
    let start = |lag: usize| format!("{}.{:03}", 4_632_715_563_000 + 40 * number + lag, number * 37 % 1000);
    let (work, ask) = (start(9), start(1));
    let arrow = |phase: char, pid: u32, tid: u32, ts: &str, end: &str| {
        format!(
            "{{\n    \"ph\": \"{phase}\", \"id\": {id}, \"pid\": {pid}, \"tid\": {tid}, \"ts\": {ts},\n    \"cat\": \"ac2g\", \"name\": \"ac2g\"{end}\n  }}"
        )
    };
    [
        format!(
            "{{\n    \"ph\": \"X\", \"cat\": \"kernel\", \"name\": \"{name}\", \"pid\": 0, \"tid\": 7,\n    \"ts\": {work}, \"dur\": {}.{:03},\n    \"args\": {{\n      \"External id\": {external},      \"queued\": 0, \"device\": 0, \"context\": 1,      \"stream\": 7, \"correlation\": {id},      \"registers per thread\": {registers},      \"shared memory\": {shared},      \"blocks per SM\": 0.007576,      \"warps per SM\": 0.015152,      \"grid\": [{}, 1, 1],      \"block\": [64, 1, 1],      \"est. achieved occupancy %\": 0\n    }}\n  }}",
            1 + number % 5,
            number * 91 % 1000,
            1 + number % 7
        ),
        arrow('f', 0, 7, &work, ", \"bp\": \"e\""),
        format!(
            "{{\n    \"ph\": \"X\", \"cat\": \"cuda_runtime\", \"name\": \"{call}\", \"pid\": 404, \"tid\": 404,\n    \"ts\": {ask}, \"dur\": {}.{:03},\n    \"args\": {{\n      \"External id\": {external},      \"cbid\": {cbid}, \"correlation\": {id}\n    }}\n  }}",
            5 + number % 11,
            number * 53 % 1000
        ),
        arrow('s', 404, 404, &ask, ""),
    ]
}

/// A trace of launches, and its events.
fn gpu(launches: usize) -> (String, Vec<String>) {
    let events: Vec<String> = (0..launches).flat_map(launch).collect();
    let text = format!(
        "{{\n  \"schemaVersion\": 1,\n  \"traceEvents\": [\n  {}\n  ],\n  \"traceName\": \"t\"\n}}",
        events.join(",\n  ")
    );
    (text, events)
}

/// The events of an output that the original has not, or not as often, beside those a cut trace is given back.
pub(crate) fn strangers(output: &Value, original: &[u8]) -> Vec<String> {
    let mut known: HashMap<String, usize> = HashMap::new();
    for span in spans(original) {
        let value: Value = serde_json::from_slice(&original[span]).expect("an event");
        *known.entry(value.to_string()).or_default() += 1;
    }
    let mut strange = Vec::new();
    for event in events(output) {
        let text = event.to_string();
        let given_back =
            event["ph"] == "M" || (!known.contains_key(&text) && (event["ph"] == "s" || event["ph"] == "f"));
        match known.get_mut(&text) {
            Some(left) if *left > 0 => *left -= 1,
            _ if given_back => {}
            _ => strange.push(text),
        }
    }
    strange
}

fn joined(text: &str, head: &str, head_until: &str, tail: &str, tail_from: &str) -> (String, usize) {
    let from = text.find(head).expect("it is there") + head.find(head_until).expect("it is there");
    let to = text.find(tail).expect("it is there") + tail.find(tail_from).expect("it is there");
    (format!("{}{}", &text[..from], &text[to..]), from.abs_diff(to))
}

#[test]
fn a_trace_of_a_gpu_loses_nothing() {
    let bench = Bench::new();
    let (text, events) = gpu(200);
    let (record, _) = bench.one("g.pt.trace.json", text.as_bytes());
    assert_eq!((record.status, record.events_kept), (Status::Complete, events.len() as u64));
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/traces");
    let real = path.join("h100_torch2.11_full.pt.trace.json.gz");
    let Ok(raw) = std::fs::read(&real) else {
        eprintln!("skipped for a real one: {} is not there", real.display());
        return;
    };
    let (record, _) = bench.one("h.pt.trace.json", &unzip(&raw));
    assert_eq!((record.status, record.events_kept), (Status::Complete, 24_722));
}

#[test]
fn halves_of_two_events_of_a_gpu_that_grew_together_are_no_event() {
    let bench = Bench::new();
    let (text, events) = gpu(120);
    let part = |number: usize, kind: usize| &*events[4 * number + kind];
    for (what, kind, cut, goes_on) in [
        ("in a time", 0, "\"dur\"", "\"dur\""),
        ("in args", 0, "\"stream\"", "\"stream\""),
        ("with a key twice", 0, "\"grid\"", "\"stream\""),
        ("without a key", 0, "\"queued\"", "\"registers"),
        ("in a call", 2, "\"dur\"", "\"dur\""),
        ("in an arrow", 1, "\"ts\"", "\"ts\""),
        ("in an id", 3, ", \"pid\"", ", \"pid\""),
    ] {
        for (one, two) in [(40, 46), (46, 40)] {
            let (broken, _) = joined(&text, part(one, kind), cut, part(two, kind), goes_on);
            let (record, output) = bench.one("j.pt.trace.json", broken.as_bytes());
            let strange = strangers(&output.unwrap(), text.as_bytes());
            assert_eq!(
                (record.status, strange),
                (Status::Salvaged, Vec::<String>::new()),
                "{what}, {one} to {two}"
            );
            let whole = if one < two { 4 * (120 - 7) } else { 4 * 120 - 4 };
            assert!(record.events_kept as usize >= whole, "{what}, {one} to {two}: {record:?}");
        }
    }
}

#[test]
fn names_that_grew_together_are_no_names() {
    let bench = Bench::new();
    let (text, events) = gpu(120);
    let part = |number: usize, kind: usize| &*events[4 * number + kind];
    for (kind, one, two, cut, goes_on) in [
        (0, 39, 46, "array<", "float>::operator"),
        (0, 40, 45, "ctor<float>::operator", "tor_add<float>, array"),
        (2, 39, 47, "Kernel\"", "nchKernelExC"),
    ] {
        let (broken, _) = joined(&text, part(one, kind), cut, part(two, kind), goes_on);
        let (record, output) = bench.one("n.pt.trace.json", broken.as_bytes());
        let strange = strangers(&output.unwrap(), text.as_bytes());
        assert_eq!((record.status, strange), (Status::Salvaged, Vec::<String>::new()), "{cut}");
    }
}

#[test]
fn what_came_twice_is_kept_once() {
    let bench = Bench::new();
    let (text, events) = gpu(120);
    // Between two events nothing is joined, and yet some come twice.
    let begin = |event: usize| text.find(&*events[event]).unwrap();
    let broken = format!("{}{}", &text[..begin(160)], &text[begin(130)..]);
    let (record, output) = bench.one("t.pt.trace.json", broken.as_bytes());
    assert_eq!(strangers(&output.unwrap(), text.as_bytes()), Vec::<String>::new());
    assert!((478..=480).contains(&record.events_kept), "{record:?}");
}

fn hurt(bytes: &[u8], double: bool, rng: &mut impl Rng) -> Vec<u8> {
    let at = rng.random_range(0..bytes.len());
    let len = rng.random_range(1..4096).min(bytes.len() - at);
    let rest = if double { at } else { at + len };
    [&bytes[..if double { at + len } else { at }], &bytes[rest..]].concat()
}

#[test]
fn a_trace_that_repeats_itself_loses_nothing() {
    let bench = Bench::new();
    let (text, events) = gpu(40);
    let again = text.replacen(&*events.join(",\n  "), &vec![events.join(",\n  "); 3].join(",\n  "), 1);
    let (record, _) = bench.one("a.pt.trace.json", again.as_bytes());
    assert_eq!((record.status, record.events_kept), (Status::Complete, 3 * 160));
    let same = text.replacen(&*events.join(",\n  "), &vec![events[0].clone(); 300].join(",\n  "), 1);
    let (record, _) = bench.one("s.pt.trace.json", same.as_bytes());
    assert_eq!((record.status, record.events_kept), (Status::Complete, 300));
}

/// What one value lost inside cannot be seen; everything else must be.
#[test]
fn bytes_removed_or_doubled_at_random_leave_next_to_no_false_event() {
    let bench = Bench::new();
    let rounds = std::env::var("SALVAGE_ROUNDS").map_or(100, |n| n.parse().unwrap());
    let (text, _) = gpu(150);
    for (double, seed) in [(false, 11), (true, 12)] {
        let mut rng = rng(seed);
        let mut strange = Vec::new();
        for _ in 0..rounds {
            let broken = hurt(text.as_bytes(), double, &mut rng);
            let (record, output) = bench.one("r.pt.trace.json", &broken);
            let output = output.or_else(|| (record.status == Status::Complete).then(|| read(&record.input)));
            strange.extend(output.map_or(Vec::new(), |output| strangers(&output, text.as_bytes())));
        }
        eprintln!("{} of {rounds}: {strange:#?}", strange.len());
        assert!(strange.len() * 100 <= rounds, "{strange:#?}");
    }
}
