//! A cut at any byte keeps exactly the events whose last byte lies before it.

use crate::common::*;
use rand::RngExt;
use serde_json::Value;
use std::ops::Range;
use varcas_guard::recovery::salvage::Status;
use varcas_guard::recovery::salvage::scan::Event;
use varcas_guard::recovery::salvage::stream::{Part, Sink, Walker};

/// Remembers where in the whole text each event lay.
#[derive(Clone, Default)]
struct Where {
    base: usize,
    seen: Vec<Range<usize>>,
}

impl Sink for Where {
    fn entry(&mut self, _: Part, _: &[u8], _: &[u8]) {}

    fn event(&mut self, event: &Event, _: &[u8]) {
        self.seen.push(self.base + event.all.from as usize..self.base + event.all.to as usize);
    }

    fn oddity(&mut self, _: &[u8]) {
        panic!("no trace of torch has elements that are no objects");
    }
}

/// Walks up to each byte once; what a cut there would give is asked of a copy of the walk.
fn every_cut_of(name: &str) {
    let text = fixture(name);
    let spans = spans(&text);
    let mut walker = Walker::new();
    let mut sink = Where::default();
    let mut used = 0;
    let mut want = 0;
    for cut in 0..=text.len() {
        let mut end = walker.clone();
        let before = sink.seen.len();
        let mut tail = Where { base: used, seen: Vec::new() };
        end.feed(&text[used..cut], true, &mut tail);
        let whole = spans.partition_point(|span| span.end <= cut);
        assert_eq!(before + tail.seen.len(), whole, "{name} cut at {cut}");
        assert_eq!(tail.seen, spans[before..whole], "{name} cut at {cut}");
        if cut - used >= want {
            sink.base = used;
            let fed = walker.feed(&text[used..cut], false, &mut sink);
            used += fed.used;
            want = fed.want.min(cut - used + 1);
        }
    }
    assert_eq!(sink.seen, spans[..sink.seen.len()]);
}

#[test]
fn a_cut_at_any_byte_keeps_exactly_the_whole_events_of_torch_2_9() {
    every_cut_of("torch2.9");
}

#[test]
fn a_cut_at_any_byte_keeps_exactly_the_whole_events_of_torch_2_10() {
    every_cut_of("torch2.10");
}

#[test]
fn a_cut_at_any_byte_keeps_exactly_the_whole_events_of_torch_2_13() {
    every_cut_of("torch2.13");
}

fn values(text: &[u8], spans: &[Range<usize>]) -> Vec<Value> {
    spans.iter().map(|span| serde_json::from_slice(&text[span.clone()]).expect("an event")).collect()
}

/// The output begins with the whole events in their order; between them only the other ends of arrows were put in, and
/// behind them names.
fn assert_holds(output: &Value, whole: &[Value], what: &str) {
    let mut rest = events(output).iter();
    for event in whole {
        let found = rest.by_ref().find(|other| *other == event);
        assert!(found.is_some(), "{what}: {event} is missing");
    }
    for event in events(output) {
        let made_up = ["M", "s", "f"].contains(&event["ph"].as_str().unwrap_or_default());
        assert!(made_up || whole.contains(event), "{what}: {event} was invented");
    }
}

#[test]
fn cut_files_become_strict_traces_with_their_whole_events() {
    let bench = Bench::new();
    let mut rng = rng(6);
    for name in TRACES {
        let text = fixture(name);
        let spans = spans(&text);
        let values = values(&text, &spans);
        let raw = zip(&text);
        let given = text_per_prefix(&raw);
        assert_eq!(given[raw.len()], text.len());
        for _ in 0..12 {
            let cut = rng.random_range(0..text.len());
            let whole = spans.partition_point(|span| span.end <= cut);
            let (record, output) = bench.one("cut.pt.trace.json", &text[..cut]);
            assert_eq!(record.events_kept, whole as u64, "{name} cut at {cut}");
            match output {
                Some(output) => assert_holds(&output, &values[..whole], &format!("{name} cut at {cut}")),
                None => assert_eq!((record.status, whole), (Status::NothingToSave, 0)),
            }
            let cut = rng.random_range(0..raw.len());
            let whole = spans.partition_point(|span| span.end <= given[cut]);
            let (record, output) = bench.one("cut.pt.trace.json.gz", &raw[..cut]);
            assert_eq!(record.events_kept, whole as u64, "{name}.gz cut at {cut}");
            if let Some(output) = output {
                assert_holds(&output, &values[..whole], &format!("{name}.gz cut at {cut}"));
            }
        }
    }
}

#[test]
fn every_cut_of_a_gzip_counts_the_events_that_can_be_inflated() {
    let bench = Bench::new();
    let text = fixture("torch2.9");
    let text = &text[..40_000];
    let raw = zip(text);
    let given = text_per_prefix(&raw);
    let spans: Vec<Range<usize>> = spans(&fixture("torch2.9"));
    for cut in 0..raw.len() {
        let path = bench.put("cut.pt.trace.json.gz", &raw[..cut]);
        let exam = varcas_guard::recovery::salvage::job::examine(&path, None).unwrap();
        let whole = spans.partition_point(|span| span.end <= given[cut]);
        assert_eq!(exam.facts.events, whole as u64, "cut at {cut}");
    }
}

#[test]
fn a_complete_trace_is_left_alone() {
    let bench = Bench::new();
    for name in TRACES {
        let text = fixture(name);
        for (file, bytes) in [("a.pt.trace.json", text.clone()), ("a.pt.trace.json.gz", zip(&text))] {
            let (record, output) = bench.one(file, &bytes);
            assert_eq!((record.status, output), (Status::Complete, None), "{name}");
            assert_eq!(record.events_kept, spans(&text).len() as u64);
        }
    }
}
