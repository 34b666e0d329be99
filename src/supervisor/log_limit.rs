//! Keeps the server's log from filling the disk. How, and why nothing can be lost by it, is told in [`crate::cut_log`].
//!
//! Three quarters of the limit are the log's: when it takes more, all but its head and the newest quarter is taken out. The first
//! that is taken out, where a flood begins, is compressed: as much text as a sixteenth of the limit in any case, and more until
//! the compressed has become a quarter or the log outgrows the compressing; from then on it is dropped. Nothing is taken out before the rules have seen it.

use super::os;
use crate::cut_log::{Cut, MOST_HEAD, NOTE, piece};
use crate::event::{EventKind, LogCut};
use crate::gz::GzipWriter;
use crate::health::log_watch::LogWatch;
use crate::redact::Redactor;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;

/// How often the length is looked at; more often while the log grows by more than a thirty-second of the limit meanwhile.
const LOOK: Duration = Duration::from_millis(250);
const SOONEST: Duration = Duration::from_millis(5);
/// Taken out at once, but never more than a sixteenth of the limit.
const CHUNK: u64 = 4 << 20;
/// Whoever follows the log knows it again by the bytes just before where he is (`health::follow`).
const REMEMBERED: u64 = 4096;
/// No file system has larger blocks.
const BLOCK: u64 = 64 << 10;
/// The fastest level: a log has lines that are alike, and a flood does not wait.
const LEVEL: u8 = 1;

/// Ends when this is dropped.
#[derive(Debug)]
pub(super) struct LogLimit {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl LogLimit {
    /// The log need not exist yet. `watch` has read it up to where it may be cut.
    pub(super) fn start(
        log: PathBuf,
        limit: u64,
        watch: Option<&LogWatch>,
        redactor: Arc<Redactor>,
        facts: UnboundedSender<EventKind>,
    ) -> io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let seen = watch.map_or_else(|| Arc::new(AtomicU64::new(u64::MAX)), LogWatch::place);
        let mut limiter = Limiter { limit, redactor, log, held: None, told: 0, length: 0 };
        let body = move || {
            let mut pause = LOOK;
            loop {
                let is_over = {
                    let (flag, changed) = &*stopped;
                    let flag = flag.lock().unwrap_or_else(PoisonError::into_inner);
                    let waited = changed.wait_timeout_while(flag, pause, |stop| !*stop);
                    *waited.unwrap_or_else(PoisonError::into_inner).0
                };
                // Also at the end: the log may have grown since the last look.
                match limiter.look(&|| seen.load(Ordering::Acquire), is_over) {
                    Ok(grown) => {
                        limiter.tell(is_over, &facts);
                        pause = pause_after(grown, limit, pause);
                    }
                    Err(error) => {
                        let what = "keep the server's log below disk.max-log".to_owned();
                        drop(facts.send(EventKind::Trouble { what, error: error.to_string() }));
                        return;
                    }
                }
                if is_over {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("log-limit".to_owned()).spawn(body)?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Nothing is taken out any more when this returns.
    pub(super) fn finish(mut self) {
        self.say_stop();
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed; the log is as it was left.
            drop(thread.join());
        }
    }

    fn say_stop(&self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_one();
    }
}

impl Drop for LogLimit {
    fn drop(&mut self) {
        self.say_stop();
    }
}

/// The log as it was opened.
#[derive(Debug)]
struct Held {
    file: File,
    id: (u64, u64),
    cut: Option<Cut>,
    /// False from the first line on that is not kept: what is kept is one range.
    keeping: bool,
    /// Bytes of the piece, and of the text in it.
    piece: u64,
    text: u64,
}

#[derive(Debug)]
struct Limiter {
    log: PathBuf,
    limit: u64,
    redactor: Arc<Redactor>,
    held: Option<Held>,
    /// The last line that was told to be taken out.
    told: u64,
    /// Of the log when it was looked at last.
    length: u64,
}

/// So long that at the pace of the last pause the log grows by a thirty-second of the limit.
fn pause_after(grown: u64, limit: u64, pause: Duration) -> Duration {
    let wanted = limit as f64 / 32.0 / grown.max(1) as f64;
    pause.mul_f64(wanted.min(64.0)).clamp(SOONEST, LOOK)
}

impl Limiter {
    /// Bytes that the log has grown by since the last look.
    fn look(&mut self, seen: &dyn Fn() -> u64, is_over: bool) -> io::Result<u64> {
        let Ok(named) = fs::symlink_metadata(&self.log) else { return Ok(0) };
        let grown = named.len().saturating_sub(self.length);
        self.length = named.len();
        let id = (named.dev(), named.ino());
        let was = self.held.as_ref().map(|held| (held.id, held.cut.map_or(0, |cut| cut.to)));
        if was.is_none_or(|(old, to)| old != id || named.len() < to) {
            // Somebody else rotated or cut it; who reads it will see that before the next look.
            self.held = Some(self.open(id)?);
            if was.is_some() {
                return Ok(grown);
            }
        }
        let limit = self.limit;
        let Some(held) = &mut self.held else { return Ok(grown) };
        // Closing the hole copies what is left, so at the end that must be half of the limit at most.
        let most = if is_over && held.cut.is_some() { limit / 2 } else { limit / 4 * 3 };
        if held.taken()? <= most {
            return Ok(grown);
        }
        let length = held.file.metadata()?.len();
        let end = seen().saturating_sub(REMEMBERED).min(length.saturating_sub(limit / 4));
        loop {
            match held.take_out(end, limit, &piece(&self.log), &self.redactor) {
                Ok(true) => {}
                Ok(false) => return Ok(grown),
                // It was cut by somebody else just now.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(grown),
                Err(error) => return Err(error),
            }
        }
    }

    fn open(&self, id: (u64, u64)) -> io::Result<Held> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(&self.log)?;
        let meta = file.metadata()?;
        if !meta.is_file() || (meta.dev(), meta.ino()) != id {
            return Err(io::Error::other("the log is no ordinary file"));
        }
        // One that was cut already is that of an earlier log with the same name.
        let piece = fs::symlink_metadata(piece(&self.log)).map_or(0, |meta| meta.len());
        Ok(Held { file, id, cut: None, keeping: piece == 0, piece, text: 0 })
    }

    /// Tells each time twice as much is gone, and at the end: a flood must not fill the journal instead.
    fn tell(&mut self, is_over: bool, facts: &UnboundedSender<EventKind>) {
        let Some((held, cut)) = self.held.as_ref().and_then(|held| Some((held, held.cut?))) else { return };
        if cut.last >= self.told.saturating_mul(2).max(1) || (is_over && cut.last > self.told) {
            self.told = cut.last;
            drop(facts.send(EventKind::LogCut(LogCut {
                first: cut.first,
                last: cut.last,
                kept: cut.kept,
                bytes: cut.to - cut.from,
                piece: held.piece,
            })));
        }
    }
}

impl Held {
    /// What the log and its piece take of the disk.
    fn taken(&self) -> io::Result<u64> {
        let hole = self.cut.map_or(0, |cut| cut.to - cut.from);
        Ok(self.file.metadata()?.len().saturating_sub(hole) + self.piece)
    }

    /// Takes out whole lines before `end`, at most a chunk of them; false when there are none.
    fn take_out(&mut self, end: u64, limit: u64, piece: &Path, redactor: &Redactor) -> io::Result<bool> {
        let before = match self.cut {
            Some(cut) => cut,
            None => self.head(limit)?,
        };
        let most = CHUNK.min(limit / 16);
        let room = end.saturating_sub(before.to).min(most);
        let mut chunk = vec![0; usize::try_from(room).unwrap_or(0)];
        self.file.read_exact_at(&mut chunk, before.to)?;
        match memchr::memrchr(b'\n', &chunk) {
            Some(at) => chunk.truncate(at + 1),
            // A line without an end is taken out in chunks.
            None if room == most => {}
            None => return Ok(false),
        }
        let to = before.to + chunk.len() as u64;
        if to - before.from < 2 * NOTE as u64 {
            return Ok(false);
        }
        let lines = memchr::memchr_iter(b'\n', &chunk).count() as u64;
        let mut cut = Cut { to, last: before.last + lines, ..before };
        // Some of it in any case: where a flood begins stands what set it off.
        let is_in_time = self.text < limit / 16 || self.taken()? <= limit;
        self.keeping = self.keeping && self.piece < limit / 4 && is_in_time;
        if self.keeping {
            match self.keep(chunk, piece, redactor) {
                Ok(()) => cut.kept = cut.last,
                // A full disk. What is kept so far stays.
                Err(_) => self.keeping = false,
            }
        }
        // First the note, so that whoever reads it skips what it says, whether it is a hole yet or not.
        let name = piece.file_name().unwrap_or_default().to_string_lossy();
        self.file.write_all_at(&cut.note(&name), cut.from)?;
        // The line break before the first line that stays is not part of the hole: no line begins with a million zeros.
        // It begins in the one before: only whole blocks are freed, and where two holes meet lies one.
        let hole = before.to.saturating_sub(BLOCK).max(cut.from + NOTE as u64);
        os::make_hole(&self.file, hole, cut.to - 1 - hole).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("this file system cannot free the middle of a file: {error}"),
            )
        })?;
        self.cut = Some(cut);
        Ok(true)
    }

    /// Where the head ends, as a cut of nothing.
    fn head(&self, limit: u64) -> io::Result<Cut> {
        let mut head = vec![0; usize::try_from(MOST_HEAD.min(limit / 8)).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut head, 0)?;
        let length = memchr::memrchr(b'\n', &head).map_or(head.len(), |at| at + 1);
        let lines = memchr::memchr_iter(b'\n', &head[..length]).count() as u64;
        let at = length as u64;
        Ok(Cut { from: at, to: at, first: lines + 1, last: lines, kept: lines, is_hole: true })
    }

    fn keep(&mut self, mut text: Vec<u8>, piece: &Path, redactor: &Redactor) -> io::Result<()> {
        for span in redactor.spans(&text) {
            text[span].fill(b'*');
        }
        let mut writer = GzipWriter::new(Vec::new(), LEVEL, 0)?;
        writer.write_all(&text)?;
        let member = writer.finish()?;
        let mut options = File::options();
        let mut file =
            options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW).open(piece)?;
        file.write_all(&member)?;
        self.piece += member.len() as u64;
        self.text += text.len() as u64;
        Ok(())
    }
}

/// Closes the hole in a log that nobody writes to any more: a file that seems to be a thousand times as long as it is
/// is no joy to copy. Nothing else is changed; where it cannot be done (a full disk), the hole stays.
pub(super) fn close_up(log: &Path) -> Result<(), String> {
    let closed = || -> io::Result<()> {
        let old = match File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(log)
        {
            Ok(file) if file.metadata()?.is_file() => file,
            _ => return Ok(()),
        };
        let Some(cut) = Cut::of(&old)?.filter(|cut| cut.is_hole) else { return Ok(()) };
        let mut unfinished = log.as_os_str().to_owned();
        unfinished.push(".tmp");
        let unfinished = PathBuf::from(unfinished);
        let name = piece(log).file_name().unwrap_or_default().to_string_lossy().into_owned();
        drop(fs::remove_file(&unfinished));
        let write = || -> io::Result<()> {
            let mut new = os::create_new_private(&unfinished)?;
            copy(&old, 0, cut.from, &mut new)?;
            new.write_all(&Cut { is_hole: false, ..cut }.note(&name))?;
            copy(&old, cut.to, u64::MAX, &mut new)?;
            fs::rename(&unfinished, log)
        };
        write().inspect_err(|_| drop(fs::remove_file(&unfinished)))
    };
    closed().map_err(|error| format!("close the hole in {}: {error}", log.display()))
}

fn copy(from: &File, mut at: u64, end: u64, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while at < end {
        let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let got = from.read_at(&mut buffer[..room], at)?;
        if got == 0 {
            break;
        }
        to.write_all(&buffer[..got])?;
        at += got as u64;
    }
    Ok(())
}

#[cfg(test)]
#[path = "log_limit_tests.rs"]
mod tests;
