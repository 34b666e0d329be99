//! The walk over arbitrary bytes: it ends, how the bytes are cut into slices changes nothing, the output is strict JSON
//! that a second salvage leaves alone, and what serde_json accepts is complete.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use varcas_guard::recovery::salvage::facts::Facts;
use varcas_guard::recovery::salvage::stream::Walker;
use varcas_guard::recovery::salvage::weave::{Mark, Weaver};

/// Walks in slices of at least `step` bytes.
fn walk(data: &[u8], step: usize) -> (Walker, Facts) {
    let (mut walker, mut facts) = (Walker::new(), Facts::default());
    let (mut from, mut to) = (0, step.min(data.len()));
    loop {
        let last = to == data.len();
        let fed = walker.feed(&data[from..to], last, &mut facts);
        if last {
            return (walker, facts);
        }
        from += fed.used;
        to = (from + fed.want).max(to + step).min(data.len());
    }
}

fn doubled_or_odd(value: &Value) -> bool {
    // What is damage to us although it is JSON: Kineto's head promises complete events.
    value.get("schemaVersion").is_some() || value.get("deviceProperties").is_some()
}

fuzz_target!(|data: &[u8]| {
    let (walker, facts) = walk(data, data.len());
    let step = 1 + data.first().map_or(0, |byte| usize::from(*byte) % 40);
    let (pieces, piece_facts) = walk(data, step);
    assert_eq!(walker.is_whole(), pieces.is_whole());
    if walker.is_whole() {
        assert_eq!(facts.events, piece_facts.events);
    }
    if let Ok(value) = serde_json::from_slice::<Value>(data)
        && !doubled_or_odd(&value)
    {
        let text = std::str::from_utf8(data).expect("JSON is UTF-8");
        let list = value.as_array().or_else(|| value.get("traceEvents")?.as_array());
        // A key that stands twice in one event is damage to us, and only its last value is left to compare with.
        let keys =
            text.matches("\"ph\"").count() + text.matches("\"ts\"").count() + text.matches('\\').count();
        if let Some(list) = list
            && (value.is_array() || text.matches("traceEvents").count() == 1)
            && keys == 0
            && !["id", "cat", "pid", "tid", "dur", "name", "args"]
                .iter()
                .any(|key| text.contains(&format!("\"{key}\"")))
        {
            assert!(walker.is_whole(), "serde_json accepts {text}");
            assert_eq!(facts.events + facts.oddities, list.len() as u64);
        }
    }
    let restore = !walker.list_closed() || walker.damage.lost_events > 0;
    let mark = Mark {
        by: String::new(),
        source: String::new(),
        status: String::new(),
        events_kept: facts.events,
        events_dropped: walker.damage.lost_events,
        mended: walker.damage.mended,
        bytes_read: data.len() as u64,
        bytes_lost: walker.damage.lost_bytes,
        missing_categories: facts.missing(),
        arrows_closed: 0,
        note: String::new(),
    };
    let mut weaver = Weaver::new(Vec::new(), &facts, &mark, "fuzz", restore).expect("memory takes it");
    Walker::new().feed(data, true, &mut weaver);
    assert_eq!(weaver.events, facts.events);
    let output = weaver.finish().expect("memory takes it");
    let value: Value = serde_json::from_slice(&output).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output));
    });
    assert!(value["traceEvents"].as_array().expect("a list").len() as u64 >= facts.events);
    let (again, _) = walk(&output, output.len());
    assert!(again.is_whole(), "{}", String::from_utf8_lossy(&output));
    // What contradicts the rest is dropped in another walk: exactly that.
    let contradicting = walker.signs.verdict();
    let (mut sound, mut left) = (Walker::new(), Facts::default());
    sound.signs.drop_these(&contradicting);
    sound.feed(data, true, &mut left);
    assert_eq!(left.events + contradicting.len() as u64, facts.events);
    assert!(contradicting.is_empty() || sound.signs.verdict().is_empty());
});
