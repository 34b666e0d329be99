//! What `top` knows and what its keys do. Pure.

use crate::event::{Event, EventKind, Gravity};
use crate::view::now::Now;
use crate::view::series::{Series, Track};
use crate::view::snapshot::{Standing, standing};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Log lines that are kept.
const LOG: usize = 5000;

/// Marks of log lines that are kept.
const MARKS: usize = 20_000;

/// What fills the lower part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tab {
    /// The end of the server's log.
    #[default]
    Log,
    /// Charts, where there is no room for them above.
    Charts,
    /// The tree of processes.
    Processes,
    /// The GPUs.
    Gpus,
    /// Findings, standstills and verdicts.
    Findings,
}

impl Tab {
    /// In the order in which they stand, each with its key.
    pub const ALL: [(Self, char, &'static str); 5] = [
        (Self::Log, 'l', "log"),
        (Self::Charts, 'c', "charts"),
        (Self::Processes, 'p', "processes"),
        (Self::Gpus, 'g', "GPUs"),
        (Self::Findings, 'f', "findings"),
    ];
}

/// What a key means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A letter.
    Letter(char),
    /// The next tab.
    Tab,
    /// So many lines towards the beginning; negative towards the end.
    Lines(i64),
    /// So many screens.
    Pages(i64),
    /// The beginning.
    Home,
    /// The end, which is followed.
    End,
}

/// A line of the server's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where it begins in the file.
    pub offset: u64,
    /// Without a line break.
    pub text: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct State {
    /// The fold.
    pub now: Now,
    /// Measurements over time.
    pub series: Series,
    /// Nobody guards the run any more.
    pub orphaned: bool,
    /// What is wrong with the journal itself.
    pub trouble: Option<String>,
    /// The end of the log.
    pub log: VecDeque<LogLine>,
    /// What is shown.
    pub tab: Tab,
    /// Lines between the end and what is shown.
    pub back: usize,
    marks: BTreeMap<u64, Gravity>,
    log_of: u32,
}

impl State {
    /// Takes the next event of the journal.
    pub fn event(&mut self, event: &Event) {
        self.now.push(event);
        self.series.push(event);
        match &event.kind {
            EventKind::AttemptStarted {} => {
                self.marks.clear();
                self.log.clear();
                self.log_of = event.attempt;
            }
            EventKind::Finding(finding) if self.marks.len() < MARKS => {
                self.marks.insert(finding.offset, finding.gravity);
            }
            _ => {}
        }
    }

    /// Takes lines of the log of an attempt. `anew` when the file began anew.
    pub fn log(&mut self, attempt: u32, anew: bool, lines: Vec<LogLine>) {
        if attempt != self.log_of {
            return;
        }
        if anew {
            self.log.clear();
        }
        if self.back > 0 && self.tab == Tab::Log {
            // Who has scrolled back keeps seeing the same lines.
            self.back += lines.len();
        }
        self.log.extend(lines);
        let surplus = self.log.len().saturating_sub(LOG);
        self.log.drain(..surplus);
    }

    /// What a rule says of a line of the log.
    pub fn mark(&self, line: &LogLine) -> Option<Gravity> {
        let end = line.offset + line.text.len() as u64;
        self.marks.range(line.offset..=end).map(|(_, gravity)| *gravity).max()
    }

    /// The track of the present attempt.
    pub fn track(&self) -> Option<&Track> {
        self.series.track(self.now.attempt)
    }

    /// See [`Standing`].
    pub fn standing(&self) -> Standing {
        standing(&self.now, !self.orphaned)
    }

    /// The moment that is shown: time stands still when nobody guards the run.
    pub fn at(&self, wall: jiff::Timestamp) -> Duration {
        match self.standing() {
            Standing::Running => self.now.moment(wall),
            _ => self.now.last.map_or(Duration::ZERO, |last| last.mono),
        }
    }

    /// A key was pressed; false ends the program. `page` is the height of the lower part, `lines` what it could show.
    pub fn key(&mut self, key: Key, page: usize, lines: usize) -> bool {
        let most = lines.saturating_sub(page);
        let by = |back: usize, n: i64| {
            let step = usize::try_from(n.unsigned_abs()).unwrap_or(usize::MAX);
            let to = if n < 0 { back.saturating_sub(step) } else { back.saturating_add(step) };
            to.min(most)
        };
        match key {
            Key::Letter('q') => return false,
            Key::Letter('k') => self.back = by(self.back, 1),
            Key::Letter('j') => self.back = by(self.back, -1),
            Key::Letter(letter) => {
                if let Some((tab, ..)) = Tab::ALL.iter().find(|(_, key, _)| *key == letter) {
                    (self.tab, self.back) = (*tab, 0);
                }
            }
            Key::Tab => {
                let at = Tab::ALL.iter().position(|(tab, ..)| *tab == self.tab).unwrap_or(0);
                (self.tab, self.back) = (Tab::ALL[(at + 1) % Tab::ALL.len()].0, 0);
            }
            Key::Lines(n) => self.back = by(self.back, n),
            Key::Pages(n) => {
                let page = i64::try_from(page.max(1)).unwrap_or(1);
                self.back = by(self.back, n.saturating_mul(page));
            }
            Key::Home => self.back = most,
            Key::End => self.back = 0,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(offset: u64, text: &str) -> LogLine {
        LogLine { offset, text: text.to_owned() }
    }

    #[test]
    fn a_line_is_marked_by_the_place_of_the_finding_also_within_it() {
        let mut state = State::default();
        state.marks.insert(105, Gravity::Suspect);
        state.marks.insert(108, Gravity::Fatal);
        assert_eq!(state.mark(&line(100, "0123456789")), Some(Gravity::Fatal));
        assert_eq!(state.mark(&line(120, "0123456789")), None);
    }

    #[test]
    fn who_has_scrolled_back_keeps_the_same_lines_while_the_log_grows() {
        let mut state = State::default();
        state.log(0, false, (0..50).map(|n| line(n, "x")).collect());
        state.key(Key::Lines(3), 10, 50);
        let shown = |state: &State| state.log[state.log.len() - 1 - state.back].offset;
        let before = shown(&state);
        state.log(0, false, (50..60).map(|n| line(n, "y")).collect());
        assert_eq!(shown(&state), before);
        state.key(Key::End, 10, 60);
        assert_eq!(shown(&state), 59);
    }

    #[test]
    fn lines_of_an_earlier_attempt_that_come_late_are_not_shown() {
        let mut state = State { log_of: 2, ..State::default() };
        state.log(1, false, vec![line(0, "old")]);
        assert!(state.log.is_empty());
    }

    proptest! {
        #[test]
        fn no_key_scrolls_beyond_the_beginning(keys in proptest::collection::vec(-100_i64..100, 0..50), page in 0..40_usize, lines in 0..200_usize) {
            let mut state = State::default();
            for n in keys {
                let key = if n % 2 == 0 { Key::Lines(n) } else { Key::Pages(n) };
                let goes_on = state.key(key, page, lines);
                prop_assert!(goes_on);
                prop_assert!(state.back <= lines.saturating_sub(page));
            }
        }
    }
}
