//! The workers' index of profiler windows: every reader of it takes any text, line by line the same as at once; the listing
//! has each window once, with the state that its last line gives it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use varcas_guard::event::{Trace, WindowEvent, WindowLine};
use varcas_guard::workload::profiler::composition::{self, Facts};
use varcas_guard::workload::profiler::listing::{Listing, LoadSample, listing};
use varcas_guard::workload::profiler::windows::{Index, WindowFate, parse_index, parse_line, parse_name};
use varcas_guard_fuzz::{amplified, hash};

fn trace(place: u64) -> Trace {
    let (window, rank) =
        (u32::try_from(place % 5).expect("small"), u32::try_from(place / 5 % 3).expect("small"));
    Trace {
        file: format!("window-{window:04}-rank{rank}.pt.trace.json.gz"),
        bytes: 1,
        json_bytes: 2,
        events: 3,
        kernels: 4,
        rank: Some(rank),
        window: Some(window),
        steps: None,
        complete: true,
    }
}

fn window_of(line: &WindowLine) -> Option<(u32, u32)> {
    match &line.what {
        WindowEvent::Opened { window, .. }
        | WindowEvent::Closed { window, .. }
        | WindowEvent::Failed { window, .. }
        | WindowEvent::Planned { window, .. } => Some((*window, line.rank)),
        _ => None,
    }
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<WindowLine> = text.lines().filter_map(parse_line).collect();
    let (mut index, mut facts) = (Index::default(), Facts::default());
    for line in &lines {
        index.push(line);
        // What the journal keeps of a line is the line; figures may lose their last bit.
        let again = serde_json::to_string(line).expect("a line can be written");
        let again: WindowLine = serde_json::from_str(&again).expect("and read");
        assert_eq!(again.rank, line.rank);
        assert_eq!(std::mem::discriminant(&again.what), std::mem::discriminant(&line.what));
        assert!((again.t - line.t).abs() <= line.t.abs() * 1e-15);
    }
    text.lines().for_each(|line| facts.push(line));
    assert_eq!(index, parse_index(&text));
    assert_eq!(facts, composition::parse(&text));
    assert!(!index.all_finished() || index.workers.is_subset(&index.finished));
    let traces: Vec<Trace> = (0..hash(data) % 4).map(|n| trace(hash(data) >> (8 * n))).collect();
    let load: Vec<LoadSample> =
        (0..5).map(|n| LoadSample { t: f64::from(n), running: f64::from(n), waiting: 0.5 }).collect();
    let list = listing("run", 1, &text, &traces, &load);
    let places: Vec<_> = list.windows.iter().map(|one| (one.window, one.rank)).collect();
    let expected: BTreeSet<_> = lines
        .iter()
        .filter_map(window_of)
        .chain(traces.iter().filter_map(|trace| Some((trace.window?, trace.rank?))))
        .collect();
    assert_eq!(places, expected.into_iter().collect::<Vec<_>>());
    for one in &list.windows {
        let complete = traces.iter().any(|t| (t.window, t.rank) == (Some(one.window), Some(one.rank)));
        assert_eq!(one.state == "complete", complete);
        match index.windows.get(&(one.rank, one.window)) {
            _ if complete => {}
            Some(WindowFate::Failed { error }) => {
                assert!(
                    one.error.as_ref() == Some(error) && ["failed", "missing"].contains(&one.state.as_str())
                );
            }
            Some(WindowFate::Closed { .. }) => {
                assert!(["failed", "missing"].contains(&one.state.as_str()), "{one:?}");
            }
            Some(WindowFate::Open) | None => assert_eq!(one.state, "open"),
        }
        for spread in [one.requests, one.running, one.waiting].into_iter().flatten() {
            assert!(spread.least <= spread.mean + 0.001 && spread.mean <= spread.most + 0.001, "{spread:?}");
        }
        if let (Some(prefill), Some(decode)) = (one.prefill_steps, one.decode_steps) {
            assert!(prefill + decode > 0);
        }
    }
    let json = serde_json::to_string(&list).expect("a listing can be written");
    let again: Listing = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(again.windows.len(), list.windows.len());
    if let Some((rank, window)) = parse_name(&text) {
        assert!(text.contains(&rank.to_string()) && text.contains(&window.to_string()));
    }
    if let Some(long) = amplified(data) {
        let text = String::from_utf8_lossy(&long);
        composition::parse(&text);
        listing("run", 1, &text, &traces, &load);
    }
});
