//! What somebody who watches can know, folded from the events. The dispatcher pushes, which takes microseconds; whoever
//! answers a request copies what it needs and lets go.

use crate::event::{Event, EventKind};
use crate::time::{Clock, SystemClock};
use crate::view::course::Course;
use crate::view::now::Now;
use crate::view::series::{Series, Track};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Events of the journal that can be asked for again; more than any run without hundreds of attempts has.
const KEPT_EVENTS: usize = 20_000;
/// And of no more bytes than this.
const KEPT_BYTES: usize = 16 << 20;
/// The loop that decides turns at least once a second; silent for longer than this it is stuck.
pub(super) const STUCK: Duration = Duration::from_secs(15);

/// A line of the journal as it is sent out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number in the journal.
    pub(super) seq: u64,
    /// The event as JSON.
    pub(super) json: Arc<str>,
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) now: Now,
    pub(super) course: Course,
    series: Series,
    lines: VecDeque<Line>,
    bytes: usize,
    /// The first event that may be missing from the lines kept.
    pub(super) first: u64,
    /// How many events there were.
    pub(super) version: u64,
    /// Sentences, the last one at the end.
    pub(super) told: VecDeque<(Duration, u32, String)>,
    /// When the loop last turned, on the run's clock.
    beat: Duration,
    /// Where the report lies, once it is written.
    pub(super) report: Option<String>,
}

/// Sentences that the page shows.
const TOLD: usize = 40;

/// What is known of the run, shared by those who push and those who ask. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watched {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
    finished: Arc<watch::Sender<bool>>,
    clock: SystemClock,
}

impl Watched {
    /// Nothing is known yet. The clock is that of the run.
    pub fn new(clock: SystemClock) -> Self {
        let (changed, finished) = (watch::channel(0).0, watch::channel(false).0);
        Self { state: Arc::default(), changed: Arc::new(changed), finished: Arc::new(finished), clock }
    }

    /// Takes the next event. Never waits for anybody but a copy being made.
    pub fn push(&self, event: &Event) {
        let mut state = self.lock();
        state.push(event);
        let version = state.version;
        drop(state);
        self.changed.send_replace(version);
    }

    /// The loop that decides has turned.
    pub fn beat(&self) {
        let now = self.clock.now().mono;
        self.lock().beat = now;
    }

    /// Nothing more will come.
    pub(super) fn finish(&self, report: Option<String>) {
        self.lock().report = report;
        self.finished.send_replace(true);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A fold that panicked has left something that can still be shown.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Becomes true when nothing more will come.
    pub(super) fn finished(&self) -> watch::Receiver<bool> {
        self.finished.subscribe()
    }

    /// The moment on the run's clock.
    pub(super) fn moment(&self) -> Duration {
        self.clock.now().mono
    }

    /// How long the loop that decides has not turned.
    pub(super) fn silence(&self) -> Duration {
        let now = self.moment();
        now.saturating_sub(self.lock().beat)
    }
}

impl State {
    fn push(&mut self, event: &Event) {
        self.now.push(event);
        self.series.push(event);
        self.course.push(event);
        self.version = event.seq + 1;
        self.beat = self.beat.max(event.at.mono);
        if let Some(sentence) = crate::event::words::sentence(&event.kind) {
            self.told.push_back((event.at.mono, event.attempt, sentence));
            if self.told.len() > TOLD {
                self.told.pop_front();
            }
        }
        if event.kind.is_milestone() {
            self.keep(event);
        }
    }

    fn keep(&mut self, event: &Event) {
        let Some(json) = outgoing(event) else { return };
        self.bytes += json.len();
        self.lines.push_back(Line { seq: event.seq, json: json.into() });
        while self.lines.len() > KEPT_EVENTS || self.bytes > KEPT_BYTES {
            let Some(line) = self.lines.pop_front() else { return };
            self.bytes -= line.json.len();
            self.first = line.seq + 1;
        }
    }

    /// The charts' values of the present attempt as if it ended now: what is open is shown as far as it has come.
    pub(super) fn track(&self) -> Option<Track> {
        self.series.so_far(self.now.attempt)
    }

    /// The first kept line with a number of at least `seq`.
    pub(super) fn line_from(&self, seq: u64) -> Option<&Line> {
        let at = self.lines.partition_point(|line| line.seq < seq);
        self.lines.get(at)
    }
}

/// The event for others: what may hold a secret (settings, command line, environment) stays in the journal.
fn outgoing(event: &Event) -> Option<String> {
    let mut value = serde_json::to_value(event).ok()?;
    let secret = match &event.kind {
        EventKind::RunStarted { .. } => "plan",
        EventKind::ServerSpawned { .. } => "argv",
        EventKind::ServerEnvironment { .. } => "env",
        _ => "",
    };
    if let Some(data) = value.get_mut("data").and_then(serde_json::Value::as_object_mut) {
        data.remove(secret);
    }
    value["text"] = crate::event::words::sentence(&event.kind).into();
    Some(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{JOURNAL_VERSION, ProcId};
    use crate::time::Stamp;

    fn event(seq: u64, kind: EventKind) -> Event {
        let at = Stamp { mono: Duration::from_secs(seq), wall: jiff::Timestamp::UNIX_EPOCH };
        Event { v: JOURNAL_VERSION, seq, at, attempt: 1, kind }
    }

    fn trouble(text: String) -> EventKind {
        EventKind::Trouble { what: "x".to_owned(), error: text }
    }

    #[test]
    fn lines_are_found_by_number_and_samples_are_not_among_them() {
        let mut state = State::default();
        state.push(&event(0, EventKind::AttemptStarted {}));
        state.push(&event(1, EventKind::ProcessesSampled { processes: Vec::new() }));
        state.push(&event(2, EventKind::WindowsClosed { workers: 1 }));
        let seq = |from| state.line_from(from).map(|line| line.seq);
        assert_eq!([seq(0), seq(1), seq(2), seq(3)], [Some(0), Some(2), Some(2), None]);
        assert_eq!(state.first, 0);
    }

    #[test]
    fn what_is_kept_is_bounded_and_says_where_it_begins() {
        let mut state = State::default();
        for seq in 0..200 {
            state.push(&event(seq, trouble("y".repeat(200_000))));
        }
        assert!(state.bytes <= KEPT_BYTES);
        let first = state.line_from(0).unwrap().seq;
        assert!(first > 100);
        assert_eq!(state.first, first);
    }

    #[test]
    fn settings_command_line_and_environment_are_not_sent_out() {
        let proc = ProcId { pid: 7, start: 1 };
        let mut plan = crate::config::Plan::default();
        plan.server.env.insert("HF_TOKEN".to_owned(), "hush".to_owned());
        let kinds = [
            EventKind::RunStarted {
                run_id: "r".to_owned(),
                guard_version: "0".to_owned(),
                guard: proc,
                plan: Box::new(plan),
            },
            EventKind::ServerSpawned { proc, argv: vec!["--api-key".to_owned(), "hush".to_owned()] },
            EventKind::ServerEnvironment { env: [("HF_TOKEN".to_owned(), "hush".to_owned())].into() },
        ];
        for (seq, kind) in (0..).zip(kinds) {
            let json = outgoing(&event(seq, kind)).unwrap();
            assert!(!json.contains("hush"), "{json}");
        }
    }
}
