//! Watches the server log: follows the file and tells every line that a rule knows, at once, as an event. It has a
//! thread of its own, so a log that grows by 200 MB a second takes nothing from the rest of the guard.

use super::follow::Piece;
use super::log_rules::{LogScanner, Rules};
use super::tail::{Reader, Shared, follow};
use crate::event::{EventKind, Finding, Phase};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{mpsc::UnboundedSender, oneshot, watch};

/// The thread ends when this is dropped.
#[derive(Debug)]
pub struct LogWatch {
    shared: Arc<Shared>,
    waiting: Arc<Mutex<Vec<oneshot::Sender<()>>>>,
    bytes: Arc<AtomicU64>,
    place: Arc<AtomicU64>,
}

impl LogWatch {
    /// Begins at the beginning of the file, which may not exist yet. A finding's gravity is that of the phase at the
    /// moment of reading.
    pub fn spawn(
        path: impl Into<PathBuf>,
        rules: &Rules,
        phase: watch::Receiver<Phase>,
        events: UnboundedSender<EventKind>,
    ) -> std::io::Result<Self> {
        let path = path.into();
        let watch = Self {
            shared: Arc::default(),
            waiting: Arc::default(),
            bytes: Arc::default(),
            place: Arc::default(),
        };
        let shared = Arc::clone(&watch.shared);
        let reader = Scanning {
            // What the search of this thread takes goes with it.
            rules: rules.clone(),
            phase,
            events,
            scanner: LogScanner::new(),
            findings: Vec::new(),
            waiting: Arc::clone(&watch.waiting),
            answering: Vec::new(),
            bytes: Arc::clone(&watch.bytes),
            place: Arc::clone(&watch.place),
            shared: Arc::clone(&watch.shared),
        };
        // Not joined: it ends by itself, and one that a dead disk holds must not hold us.
        std::thread::Builder::new()
            .name("log-watch".to_owned())
            .spawn(move || follow(&path, reader, &shared))?;
        Ok(watch)
    }

    /// Returns when everything that stands in the log now has been looked at, also a last line without a line break,
    /// and its findings have been sent. A disk that does not answer holds this up: the caller brings the deadline.
    pub async fn drain(&self) {
        let (tell, told) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(tell);
        self.shared.tell(|state| state.drain = true);
        // An error means that the thread is gone, and then there is nothing to wait for.
        drop(told.await);
    }

    /// Bytes looked at so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Up to where the file that is read now was looked at.
    pub fn place(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.place)
    }

    /// Why the log cannot be read at present, if it exists and cannot.
    pub fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }
}

impl Drop for LogWatch {
    fn drop(&mut self) {
        self.shared.tell(|state| state.stop = true);
    }
}

struct Scanning {
    rules: Rules,
    phase: watch::Receiver<Phase>,
    events: UnboundedSender<EventKind>,
    scanner: LogScanner,
    findings: Vec<Finding>,
    waiting: Arc<Mutex<Vec<oneshot::Sender<()>>>>,
    /// Whoever asked before the look that is going on.
    answering: Vec<oneshot::Sender<()>>,
    bytes: Arc<AtomicU64>,
    place: Arc<AtomicU64>,
    shared: Arc<Shared>,
}

impl Scanning {
    fn tell(&mut self) -> bool {
        if !self.findings.is_empty() && self.shared.lock().stop {
            // Whoever ended us may have changed the file since, and what stands in it is known.
            self.findings.clear();
        }
        self.findings.drain(..).all(|finding| self.events.send(EventKind::Finding(finding)).is_ok())
    }
}

impl Reader for Scanning {
    fn piece(&mut self, piece: Piece<'_>) {
        let phase = *self.phase.borrow();
        match piece {
            Piece::Bytes(bytes) => {
                self.scanner.push(&self.rules, phase, bytes, &mut self.findings);
                self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                self.place.fetch_add(bytes.len() as u64, Ordering::Release);
            }
            Piece::Break(_) => {
                self.place.store(0, Ordering::Release);
                self.scanner.restart(&self.rules, phase, &mut self.findings);
            }
        }
        self.tell();
    }

    fn looking(&mut self) {
        self.answering.append(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn looked(&mut self, drained: bool) -> bool {
        if drained {
            let phase = *self.phase.borrow();
            self.scanner.end_of_text(&self.rules, phase, &mut self.findings);
            self.tell();
            for waiting in self.answering.drain(..) {
                // Whoever asked may have lost patience.
                let _ = waiting.send(());
            }
        }
        !self.events.is_closed()
    }
}
