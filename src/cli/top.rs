//! `varcas-guard top [RUN]`: looks on at a run, live or over, from another terminal.

use super::options::runtime;
use super::runs::{find, is_guarded};
use crate::console::top::state::LogLine;
use crate::console::top::{Message, show};
use crate::cut_log::Cut;
use crate::error::{Context, ExitCode, Failure};
use crate::event::{Event, EventKind, ProcId};
use crate::health::tail::Tail;
use crate::supervisor::layout::RunDir;
use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::process::ExitCode as ProcessExit;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Messages that may wait for the screen: a long journal is read no faster than it is folded.
const WAITING: usize = 4096;

/// The longest line of a journal that is shown.
const LONGEST: usize = 64 << 20;

/// Of a log that is there already, so much of the end.
const END: u64 = 256 << 10;

/// How often the log and the guard are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Flags of `top`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run folder, or a folder of runs of which the newest is meant [default: output]
    run: Option<PathBuf>,
}

/// What the journal says that the readers of other files need.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    attempt: u32,
    guard: Option<ProcId>,
    over: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let dir = find(args.run.as_deref())?;
    if !(std::io::stdout().is_terminal() && std::io::stdin().is_terminal()) {
        return Err(Failure::new(ExitCode::Usage, "top needs a terminal")
            .hint("`varcas-guard status` and `status --json` say the same elsewhere"));
    }
    let (tell, news) = sync_channel(WAITING);
    let known: Arc<Mutex<Known>> = Arc::default();
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop).context("start a thread")
    };
    let (twin, twin_dir, twin_known) = (tell.clone(), dir.clone(), Arc::clone(&known));
    spawn("journal", Box::new(move || follow_journal(&twin_dir, &twin, &twin_known)))?;
    let twin_dir = dir.clone();
    spawn("log", Box::new(move || follow_log(&twin_dir, &tell, &known)))?;
    show(dir.root().display().to_string(), &news).context("show the run on this terminal")?;
    Ok(ProcessExit::SUCCESS)
}

fn follow_journal(dir: &RunDir, tell: &SyncSender<Message>, known: &Mutex<Known>) {
    let trouble = |why: String| drop(tell.send(Message::Trouble(Some(why))));
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(failure) => return trouble(failure.to_string()),
    };
    let mut tail = match Tail::with_line_limit(dir.journal(), LONGEST) {
        Ok(tail) => tail,
        Err(error) => return trouble(format!("follow {}: {error}", dir.journal().display())),
    };
    loop {
        let lines = runtime.block_on(tail.next_lines());
        if lines.is_empty() {
            return trouble("the thread that follows the journal has ended".to_owned());
        }
        for line in lines {
            // A line of a newer version is not for us.
            let Ok(event) = serde_json::from_str::<Event>(&line.text) else { continue };
            let attempt = event.attempt;
            let guard = match &event.kind {
                EventKind::RunStarted { guard, .. } => Some(*guard),
                _ => None,
            };
            let over = matches!(event.kind, EventKind::RunFinished { .. } | EventKind::GuardDied { .. });
            if tell.send(Message::Event(Box::new(event))).is_err() {
                return;
            }
            // Only now: lines of the log of an attempt that has not begun on the screen would be thrown away.
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            known.attempt = known.attempt.max(attempt);
            known.guard = guard.or(known.guard);
            known.over |= over;
        }
    }
}

/// Also looks after the guard.
fn follow_log(dir: &RunDir, tell: &SyncSender<Message>, known: &Mutex<Known>) {
    let mut log = Log::default();
    let mut told = None;
    loop {
        let now = *known.lock().unwrap_or_else(PoisonError::into_inner);
        if now.guard.is_some() {
            let orphaned = !now.over && !is_guarded(dir, now.guard);
            if told.replace(orphaned) != Some(orphaned) && tell.send(Message::Orphaned(orphaned)).is_err() {
                return;
            }
        }
        if now.attempt > 0 {
            if log.attempt != now.attempt {
                log = Log { attempt: now.attempt, ..Log::default() };
            }
            let (anew, lines) = log.look(dir);
            let more = !lines.is_empty();
            if (more || anew) && tell.send(Message::Log { attempt: now.attempt, anew, lines }).is_err() {
                return;
            }
            if more {
                continue;
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// The end of a log that grows. Lines keep their places in the file, by which findings name them.
#[derive(Debug, Default)]
struct Log {
    attempt: u32,
    file: Option<(u64, u64)>,
    offset: u64,
    /// What was taken out of it.
    cut: Option<Cut>,
    /// Where `rest` begins.
    rest_at: u64,
    rest: Vec<u8>,
}

impl Log {
    /// Further lines, and whether the file began anew.
    fn look(&mut self, dir: &RunDir) -> (bool, Vec<LogLine>) {
        let Ok(file) = File::open(dir.attempt(self.attempt).server_log()) else { return (false, Vec::new()) };
        let Ok(meta) = file.metadata() else { return (false, Vec::new()) };
        let is_new = self.file != Some((meta.dev(), meta.ino())) || meta.len() < self.offset;
        let anew = is_new && self.file.is_some();
        if is_new {
            self.file = Some((meta.dev(), meta.ino()));
            self.offset = meta.len().saturating_sub(END);
            (self.rest_at, self.rest) = (self.offset, Vec::new());
            self.cut = Cut::of(&file).ok().flatten();
        }
        let mut piece = vec![0; usize::try_from(END).unwrap_or(1 << 18)];
        let Ok(n @ 1..) = file.read_at(&mut piece, self.offset) else { return (anew, Vec::new()) };
        // The first line of a piece from the middle is half.
        let is_half = is_new && self.offset > 0;
        self.offset += n as u64;
        self.rest.extend_from_slice(&piece[..n]);
        let mut lines = Vec::new();
        let written = |place| self.cut.map_or(place, |cut| cut.written(place));
        let mut from = 0;
        while let Some(at) = self.rest[from..].iter().position(|byte| *byte == b'\n') {
            let text = String::from_utf8_lossy(&self.rest[from..from + at]);
            lines.push(LogLine {
                offset: written(self.rest_at + from as u64),
                text: text.trim_end_matches('\r').to_owned(),
            });
            from += at + 1;
        }
        if is_half && !lines.is_empty() {
            lines.remove(0);
        }
        self.rest.drain(..from);
        self.rest_at += from as u64;
        if self.rest.len() as u64 > END {
            // Nobody reads a line that long.
            self.rest_at += self.rest.len() as u64;
            self.rest.clear();
        }
        (anew, lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn texts(lines: &[LogLine]) -> Vec<(u64, &str)> {
        lines.iter().map(|line| (line.offset, line.text.as_str())).collect()
    }

    #[test]
    fn lines_of_a_log_have_their_places_and_a_log_that_was_cut_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::new(folder.path());
        let path = dir.attempt(1).server_log();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut log = Log { attempt: 1, ..Log::default() };
        assert_eq!(log.look(&dir), (false, Vec::new()));
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        file.write_all(b"one\ntw").unwrap();
        let (anew, lines) = log.look(&dir);
        assert_eq!((anew, texts(&lines)), (false, vec![(0, "one")]));
        file.write_all(b"o\nthree\n").unwrap();
        let (_, lines) = log.look(&dir);
        assert_eq!(texts(&lines), [(4, "two"), (8, "three")]);
        file.set_len(0).unwrap();
        file.write_all(b"x\n").unwrap();
        let (anew, lines) = log.look(&dir);
        assert_eq!((anew, texts(&lines)), (true, vec![(0, "x")]));
    }

    #[test]
    fn of_a_long_log_only_whole_lines_of_its_end_are_shown() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::new(folder.path());
        let path = dir.attempt(1).server_log();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "0123456789\n".repeat(100_000)).unwrap();
        let mut log = Log { attempt: 1, ..Log::default() };
        let (_, lines) = log.look(&dir);
        assert!(lines.iter().all(|line| line.text == "0123456789" && line.offset % 11 == 0));
        assert_eq!(lines.last().unwrap().offset, 99_999 * 11);
    }
}
