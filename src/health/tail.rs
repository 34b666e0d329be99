//! Follows a log as it grows. The file system's notifications are only hints to look now; the offset is ours, and
//! every quarter of a second we look without a hint (network file systems give none).
//!
//! Reading happens on a thread, so a dead disk holds up nobody but the log itself.

use super::follow::{Follower, Piece};
use super::lines::LineSplitter;
pub use super::lines::{Line, MAX_LINE};
use notify::Watcher;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// Without a hint the file is looked at this often.
pub const LOOK: Duration = Duration::from_millis(250);

/// Bytes handed over at once; also bounds what lies between the thread and a slow reader.
const BATCH_BYTES: usize = 1 << 20;
const BATCHES: usize = 4;

/// A file that is followed by a thread of its own, which ends when this is dropped.
#[derive(Debug)]
pub struct Tail {
    batches: mpsc::Receiver<Batch>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Batch {
    lines: Vec<Line>,
    /// Answers a request to read to the end.
    drained: bool,
}

/// Wakes a thread that follows a file, and tells how it fares.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct State {
    hint: bool,
    /// Read to the present end and say so.
    pub(super) drain: bool,
    pub(super) stop: bool,
    pub(super) trouble: Option<String>,
    discarded: u64,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, what: impl FnOnce(&mut State)) {
        what(&mut self.lock());
        self.changed.notify_one();
    }
}

/// What is done with the bytes of a followed file.
pub(super) trait Reader {
    /// The next bytes, or a new beginning.
    fn piece(&mut self, piece: Piece<'_>);
    /// Called before each look; what was asked for until now is answered by the next `looked(true)`.
    fn looking(&mut self) {}
    /// Called after each look, `drained` when the end was reached as asked. False ends the thread.
    fn looked(&mut self, drained: bool) -> bool;
}

impl Tail {
    /// Begins at the beginning of the file, which may not exist yet. Fails only when no thread can be started.
    pub fn new(path: impl Into<PathBuf>) -> std::io::Result<Self> {
        Self::with_line_limit(path, MAX_LINE)
    }

    /// As [`Tail::new`], with another limit for the length of a line.
    pub fn with_line_limit(path: impl Into<PathBuf>, limit: usize) -> std::io::Result<Self> {
        let path = path.into();
        let shared = Arc::new(Shared::default());
        let (send, batches) = mpsc::channel(BATCHES);
        let thread_shared = Arc::clone(&shared);
        // Not joined: it ends by itself, and one that a dead disk holds must not hold us.
        std::thread::Builder::new().name("tail".to_owned()).spawn(move || {
            let reader = LineReader {
                splitter: LineSplitter::new(limit),
                lines: Vec::new(),
                send,
                shared: Arc::clone(&thread_shared),
            };
            follow(&path, reader, &thread_shared);
        })?;
        Ok(Self { batches, shared })
    }

    /// Waits until there are new lines. Cancel-safe: lines are either returned or kept for the next call. Empty only
    /// when the thread that reads has ended, which means a bug or a panic in it.
    pub async fn next_lines(&mut self) -> Vec<Line> {
        while let Some(batch) = self.batches.recv().await {
            if !batch.lines.is_empty() {
                return batch.lines;
            }
        }
        Vec::new()
    }

    /// Reads to the present end of the file and hands out also a last line that has no line break: what a process said
    /// last before it died often has none. Not cancel-safe: lines received before a cancellation are lost.
    pub async fn drain(&mut self) -> Vec<Line> {
        self.shared.tell(|state| state.drain = true);
        let mut lines = Vec::new();
        while let Some(batch) = self.batches.recv().await {
            lines.extend(batch.lines);
            if batch.drained {
                break;
            }
        }
        lines
    }

    /// Why the file cannot be read at present, if it exists and cannot.
    pub fn trouble(&self) -> Option<String> {
        self.shared.lock().trouble.clone()
    }

    /// Bytes that were not handed out because their lines were too long.
    pub fn discarded(&self) -> u64 {
        self.shared.lock().discarded
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.shared.tell(|state| state.stop = true);
    }
}

struct LineReader {
    splitter: LineSplitter,
    lines: Vec<Line>,
    send: mpsc::Sender<Batch>,
    shared: Arc<Shared>,
}

impl Reader for LineReader {
    fn piece(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Bytes(bytes) => self.splitter.push(bytes, &mut self.lines),
            Piece::Break(_) => self.splitter.finish(&mut self.lines),
        }
    }

    fn looked(&mut self, drained: bool) -> bool {
        if drained {
            self.splitter.end_of_text(&mut self.lines);
        }
        self.shared.lock().discarded = self.splitter.discarded();
        let lines = std::mem::take(&mut self.lines);
        (lines.is_empty() && !drained) || self.send.blocking_send(Batch { lines, drained }).is_ok()
    }
}

/// The body of a thread that follows `path` until it is told to stop.
pub(super) fn follow(path: &Path, mut reader: impl Reader, shared: &Arc<Shared>) {
    let mut follower = Follower::new(path);
    let mut hints = None;
    loop {
        // The folder may come into being later than we do.
        if hints.is_none() {
            hints = hints_for(path, shared).ok();
        }
        // Taken before the look: what comes during the look is answered by the next one.
        let drain = std::mem::take(&mut shared.lock().drain);
        if drain {
            reader.looking();
        }
        let looked = follower.look(BATCH_BYTES, &mut |piece| reader.piece(piece));
        let more = *looked.as_ref().unwrap_or(&false);
        {
            let mut state = shared.lock();
            state.trouble = looked.err().map(|error| format!("read {}: {error}", path.display()));
            state.drain |= drain && more;
        }
        if !reader.looked(drain && !more) {
            return;
        }
        let mut state = shared.lock();
        if !more {
            let idle = |state: &mut State| !(state.hint || state.drain || state.stop);
            state = shared
                .changed
                .wait_timeout_while(state, LOOK, idle)
                .map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
        }
        if state.stop {
            return;
        }
        state.hint = false;
    }
}

/// Watches the folder and not the file: only the folder tells of a file that comes into being or is replaced.
fn hints_for(path: &Path, shared: &Arc<Shared>) -> notify::Result<notify::RecommendedWatcher> {
    let name = path.file_name().map(std::ffi::OsStr::to_owned);
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let shared = Arc::clone(shared);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // An error (a full queue) is a reason to look as well.
        let wanted = event.map_or(true, |event| {
            !event.kind.is_access()
                && (event.need_rescan() || event.paths.iter().any(|path| path.file_name() == name.as_deref()))
        });
        if wanted {
            shared.tell(|state| state.hint = true);
        }
    })?;
    watcher.watch(folder, notify::RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
