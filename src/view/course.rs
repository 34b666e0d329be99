//! The attempts of a run and their phases, as bars over its time. Pure.

use super::charts::{Row, Stretch};
use super::names::cause;
use crate::event::{Event, EventKind, Outcome, Phase};
use std::time::Duration;

/// Attempts that are kept: the first and the last ones, like everything that shows many.
const KEEP_FIRST: usize = 12;
const KEEP_LAST: usize = 12;

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct Course {
    rows: Vec<Bar>,
    now: Duration,
}

#[derive(Debug, Clone)]
struct Bar {
    number: u32,
    outcome: Option<Outcome>,
    cause: Option<String>,
    phases: Vec<(Phase, Duration)>,
    end: Duration,
}

impl Course {
    /// Takes the next event of the journal.
    pub fn push(&mut self, event: &Event) {
        self.now = event.at.mono;
        if event.attempt == 0 {
            return;
        }
        if self.rows.last().is_none_or(|row| row.number != event.attempt) {
            if self.rows.len() >= KEEP_FIRST + KEEP_LAST {
                self.rows.remove(KEEP_FIRST);
            }
            let number = event.attempt;
            self.rows.push(Bar { number, outcome: None, cause: None, phases: Vec::new(), end: self.now });
        }
        let Some(row) = self.rows.last_mut() else { return };
        row.end = event.at.mono;
        match &event.kind {
            EventKind::PhaseEntered { phase, .. } => row.phases.push((*phase, event.at.mono)),
            EventKind::AttemptEnding(ending) | EventKind::AttemptEnded(ending) => {
                row.outcome = Some(ending.outcome);
            }
            EventKind::Judged { verdict } => row.cause = Some(verdict.cause.clone()),
            _ => {}
        }
    }

    /// A row for each attempt that is kept; the last one ends at `at` while it goes on.
    pub fn rows(&self, at: Duration, over: bool) -> Vec<Row> {
        let last = self.rows.len().saturating_sub(1);
        let row = |(index, bar): (usize, &Bar)| {
            let end = if index == last && !over { at.max(bar.end) } else { bar.end };
            Row {
                number: bar.number,
                ending: bar.ending(index == last && !over),
                class: bar.class(index == last && !over),
                phases: bar.stretches(end),
            }
        };
        self.rows.iter().enumerate().map(row).collect()
    }

    /// The phases of an attempt up to now.
    pub fn phases(&self, attempt: u32) -> Vec<Stretch> {
        let bar = self.rows.iter().find(|bar| bar.number == attempt);
        bar.map(|bar| bar.stretches(bar.end)).unwrap_or_default()
    }

    /// The last event.
    pub fn now(&self) -> Duration {
        self.now
    }
}

impl Bar {
    fn stretches(&self, end: Duration) -> Vec<Stretch> {
        let ends = self.phases.iter().skip(1).map(|(_, at)| *at).chain([end]);
        let spans = self.phases.iter().zip(ends).filter(|((phase, _), _)| *phase != Phase::Done);
        spans.map(|((phase, from), to)| Stretch { phase: *phase, from: *from, to }).collect()
    }

    fn ending(&self, open: bool) -> String {
        match (self.outcome, &self.cause) {
            (Some(Outcome::Success), _) => "success".to_owned(),
            (_, Some(name)) => cause(name),
            (Some(outcome), None) => outcome.to_string(),
            (None, None) if open => "under way".to_owned(),
            (None, None) => "cut off".to_owned(),
        }
    }

    fn class(&self, open: bool) -> &'static str {
        match self.outcome {
            Some(Outcome::Success) => "good",
            Some(Outcome::Stopped) => "mixed",
            None if open => "open",
            _ => "bad",
        }
    }
}
