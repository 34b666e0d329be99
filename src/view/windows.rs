//! The profiler's windows of the present attempt. Pure.

use crate::event::{WindowEvent, WindowLine};
use serde::Serialize;
use std::collections::BTreeMap;

/// Ranks that are followed; the others do the same at the same time.
const RANKS: usize = 256;

/// What a rank does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Doing {
    #[default]
    Nothing,
    Recording,
    Flushing,
    Off,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Windows {
    /// Finished windows: of the rank that has finished most.
    pub finished: u64,
    /// Finished traces: a window is one in each rank.
    pub traces: u64,
    /// Windows that a rank has lost.
    pub lost: u64,
    /// Workers that record.
    pub ranks: u64,
    /// Ranks that record at this moment.
    pub recording: u64,
    /// Ranks that process and write what they have recorded.
    pub flushing: u64,
    /// Ranks that have switched their profiling off.
    pub disabled: u64,
    /// What the last window took from the engine, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_cost_s: Option<f64>,
    /// Share of the engine's working time that all windows have taken so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken: Option<f64>,
    /// Bytes of all finished traces as they were written.
    pub bytes: u64,
    /// Why no window opens for now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held: Option<String>,
    #[serde(skip)]
    by_rank: BTreeMap<u32, (Doing, u64)>,
}

impl Windows {
    /// A worker has told something.
    pub fn push(&mut self, line: &WindowLine) {
        if self.by_rank.len() >= RANKS && !self.by_rank.contains_key(&line.rank) {
            return;
        }
        let (doing, closed) = self.by_rank.entry(line.rank).or_default();
        match &line.what {
            WindowEvent::Hello { .. } | WindowEvent::Finished {} => *doing = Doing::Nothing,
            WindowEvent::Opened { .. } => {
                *doing = Doing::Recording;
                self.held = None;
            }
            WindowEvent::Flushing { .. } => *doing = Doing::Flushing,
            WindowEvent::Closed { bytes, .. } => {
                *doing = Doing::Nothing;
                *closed += 1;
                self.traces += 1;
                self.bytes = self.bytes.saturating_add(*bytes);
                self.finished = self.finished.max(*closed);
            }
            WindowEvent::Planned { cost_s, taken, .. } => {
                self.last_cost_s = Some(*cost_s);
                self.taken = Some(*taken);
            }
            WindowEvent::Held { reason } => self.held = Some(reason.clone()),
            WindowEvent::Primed { .. } => {}
            WindowEvent::Failed { .. } => {
                *doing = Doing::Nothing;
                self.lost += 1;
            }
            WindowEvent::Disabled { .. } => *doing = Doing::Off,
        }
        self.count();
    }

    /// Nobody is left who could record.
    pub fn end(&mut self) {
        for (doing, _) in self.by_rank.values_mut() {
            if matches!(doing, Doing::Recording | Doing::Flushing) {
                *doing = Doing::Nothing;
            }
        }
        self.count();
    }

    fn count(&mut self) {
        let of = |wanted: fn(&Doing) -> bool| {
            self.by_rank.values().filter(|(doing, _)| wanted(doing)).count() as u64
        };
        let recording = of(|doing| matches!(doing, Doing::Recording));
        let (flushing, disabled) = (of(|doing| *doing == Doing::Flushing), of(|doing| *doing == Doing::Off));
        (self.recording, self.flushing, self.disabled) = (recording, flushing, disabled);
        self.ranks = self.by_rank.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(rank: u32, what: WindowEvent) -> WindowLine {
        WindowLine { rank, pid: 7, t: 0.0, what }
    }

    fn opened() -> WindowEvent {
        WindowEvent::Opened { window: 0, step: 1, phase: String::new() }
    }

    fn closed() -> WindowEvent {
        serde_json::from_value(serde_json::json!({
            "event": "closed", "window": 0, "file": "a", "bytes": 10, "first_step": 0, "last_step": 1,
            "recorded_s": 1.0, "stop_s": 0.1, "export_s": 0.1, "why": "steps"
        }))
        .unwrap()
    }

    #[test]
    fn a_window_of_two_ranks_is_one_window_and_two_traces() {
        let mut windows = Windows::default();
        for rank in [0, 1] {
            windows.push(&line(rank, opened()));
        }
        assert_eq!((windows.recording, windows.finished), (2, 0));
        windows.push(&line(1, WindowEvent::Flushing { window: 0 }));
        assert_eq!((windows.recording, windows.flushing), (1, 1));
        windows.push(&line(1, closed()));
        windows.push(&line(0, closed()));
        assert_eq!((windows.finished, windows.traces, windows.bytes), (1, 2, 20));
        assert_eq!((windows.recording, windows.flushing, windows.ranks), (0, 0, 2));
    }

    #[test]
    fn a_lost_window_is_no_longer_recording_and_neither_is_one_of_a_dead_server() {
        let mut windows = Windows::default();
        windows.push(&line(0, opened()));
        windows.push(&line(0, WindowEvent::Failed { window: 0, error: "x".to_owned() }));
        assert_eq!((windows.recording, windows.lost), (0, 1));
        windows.push(&line(0, opened()));
        windows.end();
        assert_eq!(windows.recording, 0);
    }
}
