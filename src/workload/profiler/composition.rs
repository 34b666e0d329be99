//! What the workers' index says beside a trace: what each recorded step had to compute, in which phase, and over how long a
//! time windows were opened at all. Pure. Old indexes lack some of it; then it is unknown.

use super::analyse::Step;
use crate::event::profile::StepKind;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What one step had to compute: `[prefill tokens, decode tokens, requests]`, each none where the worker could not tell.
pub type Batch = [Option<u64>; 3];

/// What the index says of one window of one rank.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WindowFacts {
    /// Number of the first step.
    pub first_step: Option<u64>,
    /// One past the last step.
    pub last_step: Option<u64>,
    /// One entry a step, from the first one; a worker may stop telling after some of them.
    pub batch: Option<Vec<Batch>>,
    /// The phase of the run in which it was recorded.
    pub phase: Option<String>,
    /// When it was opened, in Unix seconds.
    pub opened_s: Option<f64>,
    /// When it was complete.
    pub closed_s: Option<f64>,
}

/// What the benchmark measures is recorded in this phase.
const MEASURING: &str = "measuring";

/// What the index says of all windows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// By rank and window.
    pub windows: BTreeMap<(u32, u32), WindowFacts>,
}

impl Facts {
    /// Whether a window belongs to the phase that counts. Where no window does, or nobody wrote phases down, all count.
    pub fn counts(&self, place: Option<(u32, u32)>) -> bool {
        let phase = |window: &WindowFacts| window.phase.clone();
        let measured = |window: &WindowFacts| window.phase.as_deref() == Some(MEASURING);
        match place.and_then(|place| self.windows.get(&place)).and_then(phase) {
            Some(phase) if phase != MEASURING => !self.windows.values().any(measured),
            _ => true,
        }
    }

    /// Seconds from the opening of the first window that counts to the end of the last.
    pub fn observed_s(&self) -> Option<f64> {
        let counting =
            || self.windows.iter().filter(|(place, _)| self.counts(Some(**place))).map(|(_, window)| window);
        let begin = counting().filter_map(|window| window.opened_s).min_by(f64::total_cmp)?;
        let end = counting().filter_map(|window| window.closed_s).max_by(f64::total_cmp)?;
        (end > begin).then_some(end - begin)
    }
}

#[derive(Deserialize)]
struct Line {
    event: String,
    rank: u32,
    window: u32,
    t: Option<f64>,
    first_step: Option<u64>,
    last_step: Option<u64>,
    batch: Option<Vec<Batch>>,
    phase: Option<String>,
}

/// Reads `windows.jsonl`; what is torn, unknown or no line of a window is passed over.
pub fn parse(index: &str) -> Facts {
    let mut facts = Facts::default();
    for line in index.lines().filter_map(|line| serde_json::from_str::<Line>(line.trim()).ok()) {
        let window = facts.windows.entry((line.rank, line.window)).or_default();
        window.first_step = line.first_step.or(window.first_step);
        window.last_step = line.last_step.or(window.last_step);
        window.batch = line.batch.or(window.batch.take());
        match line.event.as_str() {
            "opened" => window.opened_s = line.t,
            "closed" => window.closed_s = line.t,
            _ => {}
        }
        window.phase = line.phase.filter(|phase| !phase.is_empty()).or(window.phase.take());
    }
    facts
}

/// A step and what it had to compute, where that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownStep {
    /// From the trace.
    pub step: Step,
    /// From the index.
    pub batch: Option<Batch>,
}

impl KnownStep {
    /// By its tokens.
    pub fn kind(&self) -> StepKind {
        match self.batch {
            Some([Some(prefill), ..]) if prefill > 0 => StepKind::Prefill,
            Some([Some(0), Some(decode), _]) if decode > 0 => StepKind::Decode,
            _ => StepKind::Unknown,
        }
    }
}

/// Brings steps of a trace and the index's account of them together, by their numbers.
pub fn join(steps: &[Step], facts: Option<&WindowFacts>) -> Vec<KnownStep> {
    let known = facts.and_then(|facts| facts.first_step.zip(facts.batch.as_deref()));
    steps
        .iter()
        .map(|step| {
            let batch = known.and_then(|(first, batch)| {
                let index = usize::try_from(step.number.checked_sub(first)?).ok()?;
                batch.get(index).copied()
            });
            KnownStep { step: *step, batch }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = r#"{"event":"hello","rank":0,"pid":9,"t":1.0,"torch":"2.10","activities":["CPU"]}
{"event":"opened","rank":0,"pid":9,"t":3.0,"window":0,"step":40,"phase":"warm-up"}
{"event":"flushing","rank":0,"pid":9,"t":3.5,"window":0}
{"event":"closed","rank":0,"pid":9,"t":4.0,"window":0,"file":"w","first_step":40,"last_step":43,"batch":[[128,0,1],[0,3,null],[null,3,3]]}
{"event":"closed","rank":1,"pid":9,"t":5.5,"window":0,"file":"w","first_step":40,"last_step":42}
{"event":"closed","rank":1,"pi"#;

    fn step(number: u64) -> Step {
        Step { number, start_ns: 0, wall_ns: 1, gpu_ns: None }
    }

    #[test]
    fn the_index_tells_steps_phase_and_time() {
        let facts = parse(INDEX);
        assert_eq!(facts.observed_s(), Some(2.5));
        let window = &facts.windows[&(0, 0)];
        assert_eq!(
            (window.first_step, window.last_step, window.phase.as_deref()),
            (Some(40), Some(43), Some("warm-up"))
        );
        let batch = [[Some(128), Some(0), Some(1)], [Some(0), Some(3), None], [None, Some(3), Some(3)]];
        assert_eq!(window.batch.as_deref(), Some(&batch[..]));
        assert_eq!(facts.windows[&(1, 0)].batch, None);
        assert_eq!(parse(""), Facts::default());
    }

    #[test]
    fn steps_are_told_apart_by_what_they_computed() {
        let facts = parse(INDEX);
        let kinds = |facts: Option<&WindowFacts>| -> Vec<StepKind> {
            join(&[39, 40, 41, 42, 43].map(step), facts).iter().map(KnownStep::kind).collect()
        };
        let unknown = StepKind::Unknown;
        assert_eq!(
            kinds(facts.windows.get(&(0, 0))),
            [unknown, StepKind::Prefill, StepKind::Decode, unknown, unknown]
        );
        assert_eq!(kinds(facts.windows.get(&(1, 0))), [unknown; 5]);
        assert_eq!(kinds(None), [unknown; 5]);
    }

    #[test]
    fn where_something_was_measured_the_warm_up_does_not_count() {
        let line = |window: u32, event: &str, t: f64, phase: &str| {
            format!(r#"{{"event":"{event}","rank":0,"window":{window},"t":{t},"phase":"{phase}"}}"#) + "\n"
        };
        let warm = line(0, "opened", 1.0, "warm-up") + &line(0, "closed", 2.0, "warm-up");
        let facts = parse(&warm);
        assert!(facts.counts(Some((0, 0))) && facts.counts(None));
        assert_eq!(facts.observed_s(), Some(1.0));
        // Opened before the benchmark, closed within it.
        let all = warm + &line(1, "opened", 5.0, "warm-up") + &line(1, "closed", 6.5, "measuring");
        let facts = parse(&all);
        assert_eq!([0, 1, 2].map(|window| facts.counts(Some((0, window)))), [false, true, true]);
        assert_eq!(facts.observed_s(), Some(1.5));
    }

    proptest::proptest! {
        #[test]
        fn no_index_makes_the_parser_panic(text in ".{0,300}") {
            let _ = parse(&text);
        }
    }
}
