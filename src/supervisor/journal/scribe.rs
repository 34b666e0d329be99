//! The thread that writes the journal, so that a slow disk holds up neither the run nor a kill, and a full one costs the
//! journal as little as can be.
//!
//! A line that could not be written whole is taken back, so that no half line stands in the middle, and is kept and tried
//! again. Room for the end of the journal is reserved from its beginning: on a full disk it is still told how the run
//! ended. What is synced and what is written are two threads: a sync can take seconds, and a line that is written
//! survives at least our own death.

use crate::supervisor::os;
use crate::time::instant_now;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Held free behind the end of the journal.
const RESERVE: u64 = 1 << 20;
/// Lines that may wait for the disk, in bytes.
const MOST_WAITING: usize = 16 << 20;
/// Between two tries, and between two looks whether the file is still where it was.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// A disk that refuses for as long as this will not come back in time.
const LOST_AFTER: Duration = Duration::from_secs(5);

/// What the disk does to the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Lines wait, or were not synced; the run can go on.
    Trouble(String),
    /// Nothing can be kept in the run folder any more.
    Lost(String),
}

/// Is told of problems, each kind once until it is over.
pub type Tell = Arc<dyn Fn(Problem) + Send + Sync>;

/// To the thread.
pub(super) enum Note {
    /// One whole line; whether it must be synced soon.
    Line(Vec<u8>, bool),
    /// Write what waits, sync, release the reserve, and leave.
    End,
}

pub(super) struct Scribe {
    path: PathBuf,
    file: File,
    /// The end of the last whole line.
    end: u64,
    /// A half line could not be taken back.
    torn: bool,
    reserved_to: u64,
    can_reserve: bool,
    waiting: VecDeque<(Vec<u8>, bool)>,
    waiting_bytes: usize,
    dropped: u64,
    refused_since: Option<Instant>,
    looked: Instant,
    told: Option<Problem>,
    tell: Tell,
    sync: SyncSender<()>,
    written: Arc<Mutex<u64>>,
    wake: SyncSender<()>,
}

impl Scribe {
    pub(super) fn new(path: &Path, file: File, tell: Tell, wake: SyncSender<()>) -> io::Result<Self> {
        let (sync, asked) = sync_channel::<()>(1);
        let (twin, folder) = (file.try_clone()?, path.parent().map(Path::to_owned));
        let say = Arc::clone(&tell);
        std::thread::Builder::new().name("journal-sync".to_owned()).spawn(move || {
            // Or a power cut could take the name and leave the bytes.
            let named = folder.map(File::open).transpose().and_then(|f| f.map_or(Ok(()), |f| f.sync_all()));
            drop(named);
            let mut failed = false;
            while asked.recv().is_ok() {
                // The kernel tells of lost pages once and then takes them for clean.
                if let Err(error) = twin.sync_data()
                    && !std::mem::replace(&mut failed, true)
                {
                    say(Problem::Trouble(format!("cannot make it durable: {error}")));
                }
            }
        })?;
        let mut scribe = Self {
            path: path.to_owned(),
            file,
            end: 0,
            torn: false,
            reserved_to: 0,
            can_reserve: true,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            dropped: 0,
            refused_since: None,
            looked: instant_now(),
            told: None,
            tell,
            sync,
            written: Arc::default(),
            wake,
        };
        scribe.reserve();
        Ok(scribe)
    }

    /// How many lines are done with.
    pub(super) fn written(&self) -> Arc<Mutex<u64>> {
        Arc::clone(&self.written)
    }

    pub(super) fn work(mut self, notes: &Receiver<Note>) {
        loop {
            match notes.recv_timeout(TRY_AGAIN) {
                Ok(Note::Line(line, milestone)) => {
                    self.take(line, milestone);
                    self.write_waiting();
                }
                Err(RecvTimeoutError::Timeout) => self.write_waiting(),
                Ok(Note::End) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.look();
        }
        self.write_waiting();
        if self.reserved_to > self.end {
            os::release(&self.file, self.end, self.reserved_to - self.end);
        }
        drop(self.file.sync_data());
    }

    fn take(&mut self, line: Vec<u8>, milestone: bool) {
        self.waiting_bytes += line.len();
        self.waiting.push_back((line, milestone));
        while self.waiting_bytes > MOST_WAITING {
            // Samples first: they are the many, and the run can be told without them.
            let at = self.waiting.iter().position(|(_, milestone)| !milestone).unwrap_or(0);
            let Some((line, _)) = self.waiting.remove(at) else { break };
            self.waiting_bytes -= line.len();
            self.dropped += 1;
            self.done();
        }
    }

    fn done(&self) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        // Full: whoever waits is about to look anyway.
        let _ = self.wake.try_send(());
    }

    fn write_waiting(&mut self) {
        while let Some((line, milestone)) = self.waiting.pop_front() {
            match self.write(&line) {
                Ok(()) => {
                    self.waiting_bytes -= line.len();
                    self.done();
                    if milestone {
                        // Full means that a sync is about to begin, which will take this line along.
                        let _ = self.sync.try_send(());
                    }
                    if self.refused_since.take().is_some() {
                        self.told = None;
                    }
                    self.reserve();
                }
                Err(error) => {
                    self.waiting.push_front((line, milestone));
                    return self.refused(&error);
                }
            }
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.torn = false;
            self.end += 1;
        }
        if let Err(error) = self.file.write_all(line) {
            // Making a file shorter needs no room.
            self.torn = self.file.set_len(self.end).is_err()
                && self.file.metadata().map_or(true, |meta| meta.len() > self.end);
            self.reserved_to = self.reserved_to.min(self.end);
            if self.torn {
                self.end = self.file.metadata().map_or(self.end, |meta| meta.len());
            }
            return Err(error);
        }
        self.end += line.len() as u64;
        Ok(())
    }

    fn reserve(&mut self) {
        if self.can_reserve && self.reserved_to < self.end + RESERVE / 2 {
            match os::reserve(&self.file, self.end, RESERVE) {
                Ok(()) => self.reserved_to = self.end + RESERVE,
                // Some file systems cannot; a full one may be less full later.
                Err(error) => self.can_reserve = is_full(&error),
            }
        }
    }

    fn refused(&mut self, error: &io::Error) {
        let since = *self.refused_since.get_or_insert_with(instant_now);
        let path = self.path.display();
        let problem = if !is_full(error) && since.elapsed() > LOST_AFTER {
            Problem::Lost(format!("nothing can be written to {path} any more: {error}"))
        } else if self.dropped > 0 {
            Problem::Trouble(format!("cannot write {path}: {error}; some of it is lost"))
        } else {
            Problem::Trouble(format!("cannot write {path}: {error}; what is to be written waits"))
        };
        self.say(problem);
    }

    /// Whether the file is still where everybody looks for it.
    fn look(&mut self) {
        if self.refused_since.is_some() || self.looked.elapsed() < TRY_AGAIN {
            return;
        }
        self.looked = instant_now();
        let path = self.path.display();
        let gone = match (std::fs::metadata(&self.path), self.file.metadata()) {
            (Ok(there), Ok(ours)) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return,
            (Ok(_), Ok(_)) => format!("{path} was replaced by another file"),
            (Err(error), Ok(_)) if error.kind() == io::ErrorKind::NotFound => {
                format!("{path} is gone: the run folder was removed or moved away")
            }
            // Whatever else is wrong shows when something is written.
            _ => return,
        };
        self.say(Problem::Lost(gone));
    }

    fn say(&mut self, problem: Problem) {
        if self
            .told
            .as_ref()
            .is_none_or(|told| std::mem::discriminant(told) != std::mem::discriminant(&problem))
        {
            (self.tell)(problem.clone());
            self.told = Some(problem);
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
