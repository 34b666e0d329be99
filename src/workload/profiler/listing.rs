//! `traces/index.json`: for each window of an attempt what it saw and what it cost, for people and scripts that look for one. Pure.

use super::windows::parse_line;
use crate::event::{Trace, WindowEvent};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Name of the file inside the trace folder.
pub const LISTING: &str = "index.json";

/// Version of the file.
pub const LISTING_SCHEMA: u32 = 1;

/// The server's own figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadSample {
    /// Unix seconds.
    pub t: f64,
    /// Requests in the batch.
    pub running: f64,
    /// Requests in the queue.
    pub waiting: f64,
}

/// Least, mean and most.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Least.
    pub least: f64,
    /// Mean.
    pub mean: f64,
    /// Most.
    pub most: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (mut least, mut most, mut sum, mut count) = (f64::INFINITY, f64::NEG_INFINITY, 0.0, 0.0);
        for value in values {
            least = least.min(value);
            most = most.max(value);
            sum += value;
            count += 1.0;
        }
        (count > 0.0).then(|| Self { least, mean: (sum / count * 1000.0).round() / 1000.0, most })
    }
}

/// One window of one rank. What nobody told is absent, never 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    /// Number of the window; the ranks of one window open on the same step.
    pub window: u32,
    /// Rank of the worker.
    pub rank: u32,
    /// `complete`, `open` (lost with its worker), `failed`, `removed` (to make room), or `missing`.
    pub state: String,
    /// The file, when there is a complete one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Phase of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opened_s: Option<f64>,
    /// Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_s: Option<f64>,
    /// First step recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_step: Option<u64>,
    /// One past the last step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_step: Option<u64>,
    /// Why it was closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Steps that held prefill tokens, and steps that held none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_steps: Option<u64>,
    /// See above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_steps: Option<u64>,
    /// Tokens of prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_tokens: Option<u64>,
    /// Tokens decoded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_tokens: Option<u64>,
    /// Requests in a step, as the worker saw them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Spread>,
    /// Requests in the server's batch, from its metrics around the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<Spread>,
    /// Requests in the server's queue, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Spread>,
    /// Seconds recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorded_s: Option<f64>,
    /// Seconds in the profiler's stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_s: Option<f64>,
    /// Seconds in the export.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export_s: Option<f64>,
    /// Seconds that it took from the engine in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_s: Option<f64>,
    /// Bytes of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Bytes of JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json_bytes: Option<u64>,
    /// Trace events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<u64>,
    /// Events of category `kernel`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernels: Option<u64>,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// [`LISTING_SCHEMA`].
    pub schema: u32,
    /// The run.
    pub run: String,
    /// The attempt.
    pub attempt: u32,
    /// Share of the engine's working time that all windows took, by the last word of each rank.
    pub taken: BTreeMap<u32, f64>,
    /// By window and rank.
    pub windows: Vec<Listed>,
    /// Why profiling was switched off, or held, by rank.
    pub remarks: Vec<String>,
}

/// From the workers' index, the complete traces, and what the server said of its load.
pub fn listing(run: &str, attempt: u32, index: &str, traces: &[Trace], load: &[LoadSample]) -> Listing {
    let mut windows: BTreeMap<(u32, u32), Listed> = BTreeMap::new();
    let mut taken = BTreeMap::new();
    let mut remarks = Vec::new();
    for line in index.lines().filter_map(parse_line) {
        let rank = line.rank;
        let at = |windows: &'_ mut BTreeMap<(u32, u32), Listed>, window: u32, set: &dyn Fn(&mut Listed)| {
            set(windows.entry((window, rank)).or_insert_with(|| Listed {
                window,
                rank,
                state: "open".to_owned(),
                ..Listed::default()
            }));
        };
        match &line.what {
            WindowEvent::Opened { window, step, phase } => at(&mut windows, *window, &|listed| {
                listed.opened_s = Some(line.t);
                listed.first_step = Some(*step);
                listed.phase = Some(phase.clone()).filter(|phase| !phase.is_empty());
            }),
            WindowEvent::Closed {
                window,
                first_step,
                last_step,
                recorded_s,
                stop_s,
                export_s,
                why,
                content,
                ..
            } => at(&mut windows, *window, &|listed| {
                listed.state = "missing".to_owned();
                listed.closed_s = Some(line.t);
                listed.first_step = Some(*first_step);
                listed.last_step = Some(*last_step);
                listed.why = Some(why.clone());
                listed.recorded_s = Some(*recorded_s);
                listed.stop_s = Some(*stop_s);
                listed.export_s = Some(*export_s);
                count(listed, &content.batch);
            }),
            WindowEvent::Failed { window, error } => at(&mut windows, *window, &|listed| {
                listed.state = "failed".to_owned();
                listed.error = Some(error.clone());
            }),
            WindowEvent::Planned { window, cost_s, taken: share, .. } => {
                taken.insert(rank, *share);
                at(&mut windows, *window, &|listed| listed.cost_s = Some(*cost_s));
            }
            WindowEvent::Disabled { reason } => {
                remarks.push(format!("rank {rank}: profiling switched itself off: {reason}"))
            }
            WindowEvent::Held { reason } => {
                remarks.push(format!("rank {rank}: no windows for a while: {reason}"))
            }
            WindowEvent::Hello { .. }
            | WindowEvent::Flushing { .. }
            | WindowEvent::Primed { .. }
            | WindowEvent::Finished {} => {}
        }
    }
    for trace in traces {
        let (Some(window), Some(rank)) = (trace.window, trace.rank) else { continue };
        let listed =
            windows.entry((window, rank)).or_insert_with(|| Listed { window, rank, ..Listed::default() });
        listed.state = "complete".to_owned();
        listed.file = Some(trace.file.clone());
        listed.bytes = Some(trace.bytes);
        listed.json_bytes = Some(trace.json_bytes);
        listed.events = Some(trace.events);
        listed.kernels = Some(trace.kernels);
    }
    let mut windows: Vec<Listed> = windows.into_values().collect();
    for listed in &mut windows {
        add_load(listed, load);
    }
    Listing { schema: LISTING_SCHEMA, run: run.to_owned(), attempt, taken, windows, remarks }
}

fn count(listed: &mut Listed, batch: &[[Option<u32>; 3]]) {
    let known: Option<Vec<[u32; 3]>> = batch.iter().map(|[p, d, r]| Some([(*p)?, (*d)?, (*r)?])).collect();
    let Some(known) = known.filter(|known| !known.is_empty()) else { return };
    let sum = |field: usize| known.iter().map(|step| u64::from(step[field])).sum::<u64>();
    let prefill = known.iter().filter(|step| step[0] > 0).count() as u64;
    listed.prefill_steps = Some(prefill);
    listed.decode_steps = Some(known.len() as u64 - prefill);
    listed.prefill_tokens = Some(sum(0));
    listed.decode_tokens = Some(sum(1));
    listed.requests = Spread::of(known.iter().map(|step| f64::from(step[2])));
}

/// The samples within the window and the last one before it: it is shorter than the time between two.
fn add_load(listed: &mut Listed, load: &[LoadSample]) {
    /// An older sample says nothing of the window.
    const OLDEST_S: f64 = 3.0;
    let Some(opened) = listed.opened_s else { return };
    let closed = listed.closed_s.unwrap_or(opened);
    let from = load.partition_point(|sample| sample.t < opened);
    let to = load.partition_point(|sample| sample.t <= closed);
    let before = from.checked_sub(1).filter(|index| opened - load[*index].t <= OLDEST_S);
    let seen = &load[before.unwrap_or(from)..to.max(before.unwrap_or(from))];
    listed.running = Spread::of(seen.iter().map(|sample| sample.running));
    listed.waiting = Spread::of(seen.iter().map(|sample| sample.waiting));
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = concat!(
        r#"{"event":"opened","rank":0,"pid":7,"t":100.0,"window":0,"step":5,"phase":"measuring"}"#,
        "\n",
        r#"{"event":"closed","rank":0,"pid":7,"t":100.5,"window":0,"file":"window-0000-rank0.pt.trace.json","bytes":9,"first_step":5,"last_step":7,"recorded_s":0.1,"stop_s":0.2,"export_s":0.1,"why":"steps","batch":[[300,1,2],[0,2,2]]}"#,
        "\n",
        r#"{"event":"planned","rank":0,"pid":7,"t":100.6,"window":0,"cost_s":0.35,"slower_s":0.05,"after_s":0,"taken":0.04,"worked_s":9,"next_steps":4,"rest_s":7}"#,
        "\n",
        r#"{"event":"opened","rank":0,"pid":7,"t":110.0,"window":1,"step":50,"phase":"measuring"}"#,
        "\n{\"event\":\"clo"
    );

    fn sample(t: f64, running: f64, waiting: f64) -> LoadSample {
        LoadSample { t, running, waiting }
    }

    #[test]
    fn a_window_without_a_phase_has_none() {
        let of = |phase: &str| {
            let index = format!(
                r#"{{"event":"opened","rank":0,"pid":7,"t":1,"window":0,"step":5,"phase":"{phase}"}}"#
            );
            listing("run", 1, &index, &[], &[]).windows[0].phase.clone()
        };
        assert_eq!((of(""), of("warm-up")), (None, Some("warm-up".to_owned())));
    }

    #[test]
    fn a_window_says_what_it_saw_and_what_it_cost() {
        let trace = Trace {
            file: "window-0000-rank0.pt.trace.json.gz".to_owned(),
            bytes: 9,
            json_bytes: 90,
            events: 12,
            kernels: 3,
            rank: Some(0),
            window: Some(0),
            steps: Some(2),
            complete: true,
        };
        let load = [
            sample(90.0, 9.0, 9.0),
            sample(99.0, 2.0, 0.0),
            sample(100.2, 4.0, 1.0),
            sample(101.0, 8.0, 8.0),
        ];
        let listing = listing("run", 1, INDEX, &[trace], &load);
        let first = &listing.windows[0];
        assert_eq!((first.state.as_str(), first.cost_s, first.events), ("complete", Some(0.35), Some(12)));
        assert_eq!((first.prefill_steps, first.decode_steps), (Some(1), Some(1)));
        assert_eq!((first.prefill_tokens, first.decode_tokens), (Some(300), Some(3)));
        assert_eq!(first.running, Some(Spread { least: 2.0, mean: 3.0, most: 4.0 }));
        assert_eq!(first.waiting, Some(Spread { least: 0.0, mean: 0.5, most: 1.0 }));
        assert_eq!(listing.taken[&0], 0.04);
    }

    #[test]
    fn a_window_that_died_open_is_listed_and_what_is_unknown_is_absent() {
        let listing = listing("run", 1, INDEX, &[], &[sample(1.0, 1.0, 1.0)]);
        let states: Vec<&str> = listing.windows.iter().map(|one| one.state.as_str()).collect();
        assert_eq!(states, ["missing", "open"]);
        let text = serde_json::to_value(&listing.windows[1]).unwrap();
        assert!(text.get("running").is_none() && text.get("events").is_none(), "{text}");
    }

    #[test]
    fn a_sample_of_three_seconds_before_still_speaks_of_a_window_and_an_older_one_does_not() {
        for (before, seen) in [(97.0, true), (96.9, false)] {
            let listing = listing("run", 1, INDEX, &[], &[sample(before, 2.0, 0.0)]);
            assert_eq!(listing.windows[0].running.is_some(), seen, "{before}");
        }
        // A sample of the very moment it was opened, and of the moment it was closed.
        for inside in [100.0, 100.5] {
            let listing = listing("run", 1, INDEX, &[], &[sample(inside, 2.0, 0.0)]);
            assert_eq!(listing.windows[0].running.map(|spread| spread.mean), Some(2.0), "{inside}");
        }
        let after = listing("run", 1, INDEX, &[], &[sample(100.6, 2.0, 0.0)]);
        assert_eq!(after.windows[0].running, None);
    }

    #[test]
    fn steps_with_one_prompt_token_are_prefill_and_an_unknown_step_leaves_all_unknown() {
        let with = |batch: &str| {
            let index = INDEX.replace("[[300,1,2],[0,2,2]]", batch);
            let listing = listing("run", 1, &index, &[], &[]);
            let first = &listing.windows[0];
            (first.prefill_steps, first.decode_steps, first.requests.map(|spread| spread.mean))
        };
        assert_eq!(with("[[1,0,1],[0,2,2],[0,1,3]]"), (Some(1), Some(2), Some(2.0)));
        assert_eq!(with("[[1,0,1],[0,null,2]]"), (None, None, None));
        assert_eq!(with("[]"), (None, None, None));
    }

    #[test]
    fn what_a_rank_says_of_itself_is_remembered_with_its_number() {
        let index = "{\"event\":\"disabled\",\"rank\":2,\"pid\":7,\"t\":1.0,\"reason\":\"x\"}\n\
            {\"event\":\"held\",\"rank\":3,\"pid\":7,\"t\":1.0,\"reason\":\"y\"}\n\
            {\"event\":\"failed\",\"rank\":3,\"pid\":7,\"t\":1.0,\"window\":4,\"error\":\"z\"}";
        let listing = listing("run", 1, index, &[], &[]);
        assert_eq!(
            listing.remarks,
            ["rank 2: profiling switched itself off: x", "rank 3: no windows for a while: y"]
        );
        let only = &listing.windows[0];
        assert_eq!(
            (only.window, only.rank, only.state.as_str(), only.error.as_deref()),
            (4, 3, "failed", Some("z"))
        );
    }

    proptest::proptest! {
        #[test]
        fn no_index_breaks_it(text in "(?s).{0,300}", cut in 0..INDEX.len()) {
            let _ = listing("run", 1, &text, &[], &[]);
            let _ = listing("run", 1, &INDEX[..cut], &[], &[sample(100.0, 1.0, 1.0)]);
        }
    }
}
