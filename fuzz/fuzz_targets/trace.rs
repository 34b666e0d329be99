//! A trace as a stream: the same events as a reading of the whole document, whatever the types of the fields; what is counted
//! adds up; two such traces become one that is strict JSON and has all events.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use std::io::Read;
use varcas_guard::workload::profiler::analyse::{Analyser, Limits};
use varcas_guard::workload::profiler::merge::{Part, merge};
use varcas_guard::workload::profiler::read::{Category, TraceEvent, read};
use varcas_guard_fuzz::amplified;

fn events(data: &[u8]) -> Result<Vec<TraceEvent>, serde_json::Error> {
    let mut out = Vec::new();
    read(data, |_| false, |event| out.push(event.clone()))?;
    Ok(out)
}

/// Of one event, where the reading of a `Value` is sure: keys stand once, times are whole.
fn compare(event: &TraceEvent, value: &Value) {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    assert_eq!(event.name, text("name").unwrap_or_default());
    assert_eq!(event.phase, text("ph").and_then(|ph| ph.bytes().next()).unwrap_or(0));
    let kernel = text("cat") == Some("kernel");
    assert_eq!(event.category == Category::Kernel, kernel);
    if let Some(us) = value.get("ts").and_then(Value::as_i64) {
        let expected = us.checked_mul(1000).filter(|ns| ns.unsigned_abs() <= 2_000_000_000_000_000_000);
        assert_eq!(event.start_ns, expected);
    }
    if !value.get("dur").is_some_and(Value::is_number) {
        assert_eq!(event.duration_ns, None);
    }
    if let Some(id) = value.get("pid").and_then(Value::as_i64) {
        assert_eq!(event.pid, id);
    }
    let inner = value.get("args").and_then(|args| args.get("correlation"));
    if inner.is_none() {
        assert_eq!(event.correlation, None);
    }
    if let Some(id) = inner.and_then(Value::as_i64) {
        assert_eq!(event.correlation, Some(id));
    }
}

/// Whether any object has a key twice: then the reader and a `Value` may keep different ones.
fn has_twins(data: &[u8], value: &Value) -> bool {
    fn keys(value: &Value) -> usize {
        match value {
            Value::Object(object) => object.len() + object.values().map(keys).sum::<usize>(),
            Value::Array(list) => list.iter().map(keys).sum(),
            _ => 0,
        }
    }
    // Colons inside texts only make this stricter.
    data.iter().filter(|byte| **byte == b':').count() != keys(value)
}

fn analyse(events: &[TraceEvent]) {
    for limits in [Limits::default(), Limits { calls: 2, work: 2, steps: 1 }] {
        let mut analyser = Analyser::new(limits);
        events.iter().for_each(|event| analyser.event(event));
        let profile = analyser.finish();
        assert_eq!(profile.events, events.len() as u64);
        assert!(profile.kernels <= profile.events);
        let span = profile.span_ns.unwrap_or(0);
        for device in profile.devices.iter().flatten() {
            assert!(device.busy_ns.saturating_add(device.gaps_ns.iter().sum()) <= span, "{profile:?}");
            assert!(device.gap_in_operator_ns <= device.gaps_ns.iter().sum());
        }
        for operator in &profile.operators {
            assert!(operator.self_ns.is_none_or(|own| own <= operator.time.total_ns), "{operator:?}");
        }
        if let Some(share) = profile.busy_share() {
            assert!((0.0..=1.0).contains(&share), "{share}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let found = events(data);
    let value = serde_json::from_slice::<Value>(data);
    let list = value.as_ref().ok().and_then(|value| value.get("traceEvents")?.as_array());
    match (&found, list) {
        (Ok(events), Some(list)) if !has_twins(data, value.as_ref().expect("it has a list")) => {
            assert_eq!(events.len(), list.len());
            events.iter().zip(list).for_each(|(event, value)| compare(event, value));
        }
        (Err(error), Some(list)) if list.iter().all(Value::is_object) => {
            assert!(has_twins(data, value.as_ref().expect("it has a list")), "{error}");
        }
        // What the `Value` refuses: a number beyond f64, or half a character written as an escape.
        _ => {}
    }
    if let Ok(events) = &found {
        analyse(events);
    }
    let bytes = data.to_vec();
    let source =
        move || -> std::io::Result<Box<dyn Read>> { Ok(Box::new(std::io::Cursor::new(bytes.clone()))) };
    let parts = [
        Part { file: "a".to_owned(), rank: 0, open: &source },
        Part { file: "b".to_owned(), rank: 3, open: &source },
    ];
    let mut out = Vec::new();
    if let Ok(merged) = merge(&parts, "both", &mut out) {
        let value: Value = serde_json::from_slice(&out)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&out)));
        let list = value["traceEvents"].as_array().expect("a list");
        assert!(list.len() as u64 >= merged.events, "names may be added");
        assert!(events(&out).is_ok(), "what was merged can be read again");
    }
    if let Some(long) = amplified(data) {
        let mut text = b"{\"traceEvents\":[".to_vec();
        text.extend_from_slice(&long);
        let mut analyser = Analyser::default();
        let _ = read(&text[..], |_| false, |event| analyser.event(event));
        analyser.finish();
    }
});
