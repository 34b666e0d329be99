//! `events.jsonl`: append, reach the disk when a state changed, read back.
//!
//! A journal may end in a torn line, because the machine lost power or the guard was killed in mid-write. Whatever
//! stands before it is true, and readers stop there.

use crate::event::{Event, EventKind, JOURNAL_VERSION};
use crate::time::Stamp;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read as _, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// The writing end. One line is one `write`, so a second writer (the keeper, after the guard's death) cannot mix in.
/// A write survives the death of this process; to survive a power cut it must also be synced, which a slow disk can take
/// seconds for. A thread does that, because nothing may hold up a kill.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    next_seq: u64,
    syncer: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Journal {
    /// Creates the file; an existing one is an error, because it belongs to another run.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
        let (ask, asked) = sync_channel(1);
        let twin = file.try_clone()?;
        let thread = std::thread::Builder::new().name("journal-sync".to_owned()).spawn(move || {
            while asked.recv().is_ok() {
                // An error here comes back to the next write, which reports it.
                drop(twin.sync_data());
            }
        })?;
        Ok(Self { path: path.to_owned(), file, next_seq: 0, syncer: Some((ask, thread)) })
    }

    /// Appends one event and returns it. A milestone is synced soon; samples ride along with the next one.
    pub fn append(&mut self, at: Stamp, attempt: u32, kind: EventKind) -> io::Result<Event> {
        let event = Event { v: JOURNAL_VERSION, seq: self.next_seq, at, attempt, kind };
        let mut line = serde_json::to_vec(&event)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.next_seq += 1;
        if event.kind.is_milestone()
            && let Some((ask, _)) = &self.syncer
        {
            // Full means that a sync is about to begin, which will take this line along.
            let _ = ask.try_send(());
        }
        Ok(event)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until everything is durable.
    pub fn close(&mut self) {
        if let Some((ask, thread)) = self.syncer.take() {
            drop(ask);
            drop(thread.join());
            drop(self.file.sync_data());
        }
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
        let mut journal = Journal::create(&path).unwrap();
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
        assert_eq!(Journal::create(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }
}
