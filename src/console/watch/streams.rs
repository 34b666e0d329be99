//! Streams of server-sent events. A stream makes its next piece only when the last one was taken, from what is known by
//! then: a slow reader misses steps in between, and nothing waits in memory for it.

use super::page::{Copy, Parts};
use super::server::over;
use super::state::Watched;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::unfold;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// How often the page gets news.
const BEAT: Duration = Duration::from_secs(1);
/// A silent stream says so often that it is there, so that both sides notice when the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// After this a browser tries again.
const RETRY: &str = "retry: 3000\n\n";
/// Lines in one piece.
const AT_ONCE: usize = 100;

/// The parts of the page, drawn once for all who look on.
#[derive(Clone)]
pub(super) struct Drawn {
    watched: Watched,
    last: Arc<Mutex<Option<Drawing>>>,
}

#[derive(Clone)]
struct Drawing {
    version: u64,
    at: Duration,
    title: Arc<str>,
    parts: Arc<Parts>,
}

impl Drawn {
    pub(super) fn new(watched: Watched) -> Self {
        Self { watched, last: Arc::default() }
    }

    fn now(&self) -> Drawing {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.watched.moment();
        let version = self.watched.lock().version;
        let over = *self.watched.finished().borrow();
        if let Some(drawing) = &*last
            && (at.saturating_sub(drawing.at) < BEAT / 2 && !over || over && drawing.version == version)
        {
            return drawing.clone();
        }
        let copy = Copy::of(&self.watched.lock(), at);
        let drawing = Drawing { version, at, title: copy.title().into(), parts: Arc::new(copy.parts()) };
        *last = Some(drawing.clone());
        drawing
    }
}

struct Live {
    drawn: Drawn,
    finished: watch::Receiver<bool>,
    shown: Parts,
    begun: bool,
    over: bool,
}

/// `/live`: the parts of the page that have changed, about once a second.
pub(super) fn live(drawn: Drawn) -> impl Stream<Item = Bytes> {
    let finished = drawn.watched.finished();
    let first = Live { drawn, finished, shown: Parts::new(), begun: false, over: false };
    unfold(first, |mut live| async move {
        if live.over {
            return None;
        }
        if live.begun && !*live.finished.borrow() {
            // Whichever comes first; that the sender is gone cannot happen while we hold it.
            drop(tokio::time::timeout(BEAT, over(&mut live.finished)).await);
        }
        live.over = *live.finished.borrow();
        let drawing = live.drawn.now();
        let mut text = String::from(if live.begun { "" } else { RETRY });
        live.begun = true;
        let fresh: BTreeMap<&str, &str> = drawing
            .parts
            .iter()
            .filter(|part| !live.shown.contains(part))
            .map(|(id, part)| (*id, part.as_str()))
            .collect();
        let state = live.drawn.watched.lock();
        let news = serde_json::json!({ "run": state.now.run_id, "title": &*drawing.title, "parts": fresh });
        let _ = write!(text, "event: parts\ndata: {news}\n\n");
        if live.over {
            let _ = write!(text, "event: end\ndata: {}\n\n", serde_json::json!({ "report": state.report }));
        }
        drop(state);
        live.shown.clone_from(&drawing.parts);
        Some((Bytes::from(text), live))
    })
}

struct Journal {
    watched: Watched,
    changes: watch::Receiver<u64>,
    finished: watch::Receiver<bool>,
    next: u64,
    begun: bool,
    over: bool,
}

/// `/events`: the journal's milestones from number `next` on, those to come included.
pub(super) fn journal(watched: Watched, next: u64) -> impl Stream<Item = Bytes> {
    let (changes, finished) = (watched.changes(), watched.finished());
    let first = Journal { watched, changes, finished, next, begun: false, over: false };
    unfold(first, |mut journal| async move {
        if journal.over {
            return None;
        }
        let mut text = String::from(if journal.begun { "" } else { RETRY });
        journal.begun = true;
        loop {
            // Before the lines are looked at, or what comes in between would be missed.
            journal.changes.mark_unchanged();
            journal.over = *journal.finished.borrow();
            journal.take(&mut text);
            if journal.over {
                text.push_str("event: end\ndata: {}\n\n");
            }
            if !text.is_empty() {
                return Some((Bytes::from(text), journal));
            }
            let (changes, finished) = (&mut journal.changes, &mut journal.finished);
            tokio::select! {
                _ = changes.changed() => {}
                () = over(finished) => {}
                () = tokio::time::sleep(HEARTBEAT) => text.push_str(": still here\n\n"),
            }
        }
    })
}

impl Journal {
    fn take(&mut self, text: &mut String) {
        let state = self.watched.lock();
        if self.next < state.first {
            let gap = serde_json::json!({ "from": self.next, "to": state.first - 1 });
            let _ = write!(text, "event: gap\ndata: {gap}\n\n");
            self.next = state.first;
        }
        let mut count = 0;
        while let Some(line) = state.line_from(self.next) {
            let _ = write!(text, "id: {}\ndata: {}\n\n", line.seq, line.json);
            self.next = line.seq + 1;
            count += 1;
            if count >= AT_ONCE {
                // The rest comes with the next piece, and so does the end.
                self.over = false;
                self.changes.mark_changed();
                return;
            }
        }
    }
}
