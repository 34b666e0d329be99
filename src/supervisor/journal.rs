//! `events.jsonl`: append, reach the disk when a state changed, read back.
//!
//! A journal may end in a torn line, because the machine lost power or the guard was killed in mid-write. Whatever
//! stands before it is true. On a disk that refused for long, lines can be missing: then the numbers have a gap. It does
//! not grow for ever (`ration.rs`).

mod ration;
mod scribe;

pub use ration::{FULL, WHOLE};
pub use scribe::{Problem, Tell};

use crate::event::{Event, EventKind, JOURNAL_VERSION};
use crate::supervisor::os;
use crate::time::{Stamp, instant_now};
use ration::Ration;
use scribe::{Note, Scribe};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// A disk that is quicker than this is waited for, so that what was told to anybody stands in the file.
const QUICK: Duration = Duration::from_millis(200);
/// At the end, a slow disk is waited for, but a dead one does not hold up the exit for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// The writing end. One line is one `write`, so a second writer (the keeper, after the guard's death) cannot mix in.
/// A write survives the death of this process; to survive a power cut it must also be synced. Threads do both
/// (`scribe.rs`), because nothing may hold up a kill.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    next_seq: u64,
    /// Lines that were handed to the thread.
    sent: u64,
    ration: Ration,
    notes: Sender<Note>,
    written: Arc<Mutex<u64>>,
    woken: Receiver<()>,
    /// The disk has not caught up yet, so it is not waited for.
    behind: bool,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    /// Creates the file; an existing one is an error, because it belongs to another run. `tell` hears what the disk does
    /// to it, on another thread.
    pub fn create(path: &Path, tell: Tell) -> io::Result<Self> {
        Self::with_limits(path, tell, WHOLE, FULL)
    }

    /// The same with other limits than [`WHOLE`] and [`FULL`].
    pub fn with_limits(path: &Path, tell: Tell, whole: u64, full: u64) -> io::Result<Self> {
        let file = os::create_new_private(path)?;
        let (notes, inbox) = channel();
        let (wake, woken) = sync_channel(1);
        let scribe = Scribe::new(path, file, tell, wake)?;
        let written = scribe.written();
        let thread =
            std::thread::Builder::new().name("journal".to_owned()).spawn(move || scribe.work(&inbox))?;
        Ok(Self {
            path: path.to_owned(),
            next_seq: 0,
            sent: 0,
            ration: Ration::new(whole, full),
            notes,
            written,
            woken,
            behind: false,
            thread: Some(thread),
        })
    }

    /// Appends one event and returns it; it is written when this returns, unless the disk is slow or refuses, or it is a
    /// sample for which there is no room any more. A milestone is synced soon; samples ride along with the next one.
    pub fn append(&mut self, at: Stamp, attempt: u32, kind: EventKind) -> io::Result<Event> {
        let event = Event { v: JOURNAL_VERSION, seq: self.next_seq, at, attempt, kind };
        self.next_seq += 1;
        if !self.ration.admits(at.mono, &event.kind) {
            return Ok(event);
        }
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        self.ration.take(line.len());
        self.sent += 1;
        // The thread lives until it is told to end.
        let _ = self.notes.send(Note::Line(line, event.kind.is_milestone()));
        if self.behind {
            self.behind = !self.is_written();
        } else {
            self.wait(QUICK);
        }
        Ok(event)
    }

    /// What must be appended because from here on not everything will be: once for each step.
    pub fn thinned(&mut self) -> Option<EventKind> {
        self.ration.news()
    }

    fn is_written(&self) -> bool {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) >= self.sent
    }

    fn wait(&mut self, patience: Duration) {
        let began = instant_now();
        while !self.is_written() {
            let left = patience.saturating_sub(began.elapsed());
            if left.is_zero() || self.woken.recv_timeout(left).is_err() {
                self.behind = !self.is_written();
                return;
            }
        }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until everything is durable. False if it is not, and will not be.
    pub fn close(&mut self) -> bool {
        if let Some(thread) = self.thread.take() {
            let _ = self.notes.send(Note::End);
            let began = instant_now();
            while !thread.is_finished() && began.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        self.is_written()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a journal file holds.
#[derive(Debug, Clone, Default)]
pub struct Read {
    /// Every whole event, in order.
    pub events: Vec<Event>,
    /// Lines that are not events: a torn last line, or an event kind of a newer version. Line number and reason.
    pub unread: Vec<(usize, String)>,
}

/// Reads a journal. Only a file that cannot be read at all is an error.
pub fn read(path: &Path) -> io::Result<Read> {
    let mut events = Vec::new();
    let unread = each(path, |event| events.push(event))?;
    Ok(Read { events, unread })
}

/// Hands every whole event to `take`, in order, without keeping any. Returns the lines that are not events.
pub fn each(path: &Path, mut take: impl FnMut(Event)) -> io::Result<Vec<(usize, String)>> {
    let mut unread = Vec::new();
    let mut reader = BufReader::new(File::open(path)?);
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(unread);
        }
        number += 1;
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        match serde_json::from_slice::<Event>(text) {
            Ok(event) if event.v > JOURNAL_VERSION => {
                unread.push((number, format!("journal version {} is newer than this program", event.v)));
            }
            Ok(event) => take(event),
            Err(error) => unread.push((number, error.to_string())),
        }
    }
}

/// Looked at from the end of a journal. Only the very first line, which holds the plan, comes near this size.
pub(crate) const TAIL: u64 = 1 << 20;

/// The last whole event, without reading all before it.
pub fn last(path: &Path) -> io::Result<Option<Event>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    Ok(tail.rsplit(|byte| *byte == b'\n').find_map(|line| serde_json::from_slice(line).ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{LoadProgress, Phase, Timer};
    use crate::time::{Clock, ManualClock};
    use std::time::Duration;

    fn journal_of(kinds: &[EventKind]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let clock = ManualClock::new();
        let mut journal = Journal::create(&path, Arc::new(|problem| panic!("{problem:?}"))).unwrap();
        for kind in kinds {
            clock.advance(Duration::from_micros(1_234_567));
            journal.append(clock.now(), 1, kind.clone()).unwrap();
        }
        (dir, path)
    }

    #[test]
    fn what_was_written_is_read_back_with_microsecond_stamps() {
        let kinds = [
            EventKind::PhaseEntered { phase: Phase::Loading, budget: Some(Duration::from_secs(9)) },
            EventKind::TimerFired { timer: Timer::Phase },
            EventKind::LoadProgressed(LoadProgress { sent: 3, ..LoadProgress::default() }),
            EventKind::AttemptStarted {},
        ];
        let (_dir, path) = journal_of(&kinds);
        let read = read(&path).unwrap();
        assert!(read.unread.is_empty(), "{:?}", read.unread);
        assert_eq!(read.events.iter().map(|e| e.kind.clone()).collect::<Vec<_>>(), kinds);
        assert_eq!(read.events[3].at.mono, Duration::from_micros(4 * 1_234_567));
        assert_eq!(read.events.iter().map(|e| e.seq).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_torn_last_line_loses_nothing_before_it() {
        let (_dir, path) =
            journal_of(&[EventKind::AttemptStarted {}, EventKind::WindowsClosed { workers: 2 }]);
        let whole = std::fs::read(&path).unwrap();
        let first_end = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in first_end..whole.len() - 1 {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let read = read(&path).unwrap();
            assert_eq!(read.events.len(), 1, "cut at {cut}");
            assert_eq!(read.unread.len(), usize::from(cut > first_end), "cut at {cut}");
        }
    }

    #[test]
    fn a_second_run_cannot_write_into_an_existing_journal() {
        let (_dir, path) = journal_of(&[EventKind::AttemptStarted {}]);
        assert_eq!(
            Journal::create(&path, Arc::new(|_| ())).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }
}
