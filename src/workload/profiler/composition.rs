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
    /// Of one trace.
    pub fn of(&self, place: Option<(u32, u32)>) -> Option<&WindowFacts> {
        self.windows.get(&place?)
    }
}

impl WindowFacts {
    /// Whether it was recorded while the benchmark measured, or nobody wrote down when.
    pub fn is_measured(&self) -> bool {
        self.phase.as_deref().is_none_or(|phase| phase == MEASURING)
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
    for line in index.lines() {
        facts.push(line);
    }
    facts
}

impl Facts {
    /// Takes one line of the index in.
    pub fn push(&mut self, line: &str) {
        let Ok(line) = serde_json::from_str::<Line>(line.trim()) else { return };
        let window = self.windows.entry((line.rank, line.window)).or_default();
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
    fn a_step_is_named_by_its_tokens_and_unknown_where_they_are() {
        let kind = |batch| KnownStep { step: step(1), batch }.kind();
        assert_eq!(kind(Some([Some(1), Some(0), None])), StepKind::Prefill);
        assert_eq!(kind(Some([Some(1), Some(9), None])), StepKind::Prefill);
        assert_eq!(kind(Some([Some(0), Some(1), None])), StepKind::Decode);
        for unknown in
            [Some([Some(0), Some(0), None]), Some([None, Some(1), None]), Some([Some(0), None, None]), None]
        {
            assert_eq!(kind(unknown), StepKind::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn the_index_tells_steps_phase_and_time() {
        let facts = parse(INDEX);
        assert_eq!(
            (facts.windows[&(0, 0)].opened_s, facts.windows[&(1, 0)].closed_s),
            (Some(3.0), Some(5.5))
        );
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
            kinds(facts.of(Some((0, 0)))),
            [unknown, StepKind::Prefill, StepKind::Decode, unknown, unknown]
        );
        assert_eq!(kinds(facts.of(Some((1, 0)))), [unknown; 5]);
        assert_eq!(kinds(None), [unknown; 5]);
    }

    proptest::proptest! {
        #[test]
        fn no_index_makes_the_parser_panic(text in ".{0,300}") {
            let _ = parse(&text);
        }
    }
}
