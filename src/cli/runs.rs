//! `varcas-guard runs`: the runs of a folder and how they ended; and what finds a run for other subcommands.

use crate::error::{Context, ExitCode, Failure};
use crate::event::{Event, EventKind, Outcome, Phase, ProcId};
use crate::health::disk;
use crate::supervisor::layout::RunDir;
use crate::supervisor::{journal, proc};
use crate::view::now::Now;
use crate::view::phrases;
use crate::view::snapshot::{Standing, standing};
use crate::view::units::{bytes, count};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExit;
use std::time::Duration;

/// Where runs are without anybody saying so.
const USUAL: &str = "output";

/// The end of a journal holds its last words; the middle of a long one is not read just to list it.
const END: u64 = 1 << 20;

/// A first line that is longer is none of ours.
const FIRST: u64 = 16 << 20;

/// Flags of `runs`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of runs, or one run [default: output]
    dir: Option<PathBuf>,
    /// Print an array with one object a run
    #[arg(long)]
    json: bool,
}

/// A run in short.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its folder.
    pub run: PathBuf,
    /// Its mark.
    pub run_id: String,
    /// When it began.
    pub started: Option<jiff::Timestamp>,
    /// Until its last event.
    #[serde(rename = "duration_s", with = "crate::time::secs")]
    pub duration: Duration,
    /// Whether anybody still guards it.
    pub standing: Standing,
    /// The phase of the last event.
    pub phase: Option<Phase>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// See `error::ExitCode`.
    pub exit_code: Option<u8>,
    /// The last attempt.
    pub attempts: u32,
    /// Recorded windows of the last attempt.
    pub windows: u64,
    /// Bytes of the folder; at least so many when `size_is_partial`.
    pub bytes: u64,
    /// Not everything could be counted.
    pub size_is_partial: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let folder = args.dir.as_deref().unwrap_or(Path::new(USUAL));
    let runs: Vec<Listed> = all(folder)?.iter().filter_map(|dir| glance(dir).ok().flatten()).collect();
    let shown = if args.json {
        serde_json::to_string_pretty(&runs).context("write the runs as JSON")?
    } else if runs.is_empty() {
        format!("no run in {}", folder.display())
    } else {
        table(&runs)
    };
    print(&shown)
}

/// A reader that has seen enough (`| head`) is no failure of ours.
pub(super) fn print(text: &str) -> Result<ProcessExit, Failure> {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(ProcessExit::SUCCESS),
    }
}

/// The runs in a folder, or the folder itself if it is one, the oldest first. Links are not followed.
pub(super) fn all(folder: &Path) -> Result<Vec<RunDir>, Failure> {
    if RunDir::new(folder).journal().is_file() {
        return Ok(vec![RunDir::new(folder)]);
    }
    let entries = std::fs::read_dir(folder).map_err(|error| {
        Failure::new(ExitCode::Usage, format!("cannot read {}: {error}", folder.display()))
            .hint("give a folder of runs, or a run: the one that holds events.jsonl")
    })?;
    let mut runs: Vec<(jiff::Timestamp, RunDir)> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| RunDir::new(entry.path()))
        .filter_map(|dir| Some((began(&dir)?, dir)))
        .collect();
    runs.sort_by(|a, b| (a.0, a.1.root()).cmp(&(b.0, b.1.root())));
    Ok(runs.into_iter().map(|(_, dir)| dir).collect())
}

/// When a run began; none if the folder is no run. A power cut can have taken the first line: then it is when the journal
/// was last written.
fn began(dir: &RunDir) -> Option<jiff::Timestamp> {
    match first(dir).ok()? {
        Some(begin) => Some(begin.at.wall),
        None if is_beheaded(dir) => {
            let written = std::fs::metadata(dir.journal()).and_then(|meta| meta.modified()).ok()?;
            jiff::Timestamp::try_from(written).ok()
        }
        None => None,
    }
}

/// A journal without a beginning beside our lock: nobody else puts these two into one folder.
fn is_beheaded(dir: &RunDir) -> bool {
    dir.lock().is_file() && dir.journal().is_file()
}

/// The run that is meant: the one given, the newest of a folder that is given, or the newest of all.
pub(super) fn find(given: Option<&Path>) -> Result<RunDir, Failure> {
    let folder = given.unwrap_or(Path::new(USUAL));
    if given.is_none() && !folder.exists() {
        return Err(Failure::new(ExitCode::Usage, format!("there is no folder {USUAL} here"))
            .hint("give the folder of a run, the one that holds events.jsonl"));
    }
    let newest = all(folder)?.pop();
    newest.ok_or_else(|| {
        Failure::new(ExitCode::Usage, format!("no run in {}", folder.display()))
            .hint("give the folder of a run, the one that holds events.jsonl")
    })
}

/// Everything that the journal says of the present.
pub(super) fn fold(dir: &RunDir) -> Result<Now, Failure> {
    let mut now = Now::default();
    journal::each(&dir.journal(), |event| now.push(&event))
        .context(format_args!("read {}", dir.journal().display()))?;
    Ok(now)
}

/// Whether the guard of a run lives. Only asks: a guard that starts at this moment must not find its lock taken by us.
pub(super) fn is_guarded(dir: &RunDir, guard: Option<ProcId>) -> bool {
    let is_there = |id: ProcId| proc::stat(id.pid).is_some_and(|stat| stat.id == id && stat.state != 'Z');
    if guard.is_some_and(is_there) {
        return true;
    }
    // It may live in another container, where it has another pid.
    let held = |file: File| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock));
    File::open(dir.lock()).is_ok_and(held)
}

/// A run in short, from the two ends of its journal where that is enough. None if it is no run.
pub(super) fn glance(dir: &RunDir) -> io::Result<Option<Listed>> {
    let mut now = Now::default();
    match first(dir)? {
        Some(begin) => now.push(&begin),
        None if is_beheaded(dir) => {}
        None => return Ok(None),
    }
    for event in last(dir)? {
        now.push(&event);
    }
    if now.end.is_none() {
        now = Now::default();
        journal::each(&dir.journal(), |event| now.push(&event))?;
    }
    let size = disk::folder_size(dir.root());
    Ok(Some(Listed {
        run: dir.root().to_owned(),
        run_id: now.run_id.clone(),
        started: now.started,
        duration: now.last.map_or(Duration::ZERO, |last| last.mono),
        standing: standing(&now, now.end.is_none() && is_guarded(dir, now.guard)),
        phase: now.phase,
        outcome: now.end.as_ref().map(|end| end.outcome),
        exit_code: now.end.as_ref().map(|end| end.exit_code),
        attempts: now.attempt,
        windows: now.recorded.unwrap_or(now.windows.finished),
        bytes: size.bytes,
        size_is_partial: size.partial,
    }))
}

fn first(dir: &RunDir) -> io::Result<Option<Event>> {
    let mut line = Vec::new();
    BufReader::new(File::open(dir.journal())?.take(FIRST)).read_until(b'\n', &mut line)?;
    let event: Option<Event> = serde_json::from_slice(&line).ok();
    Ok(event.filter(|event| matches!(event.kind, EventKind::RunStarted { .. })))
}

/// The last events, but never the first one.
fn last(dir: &RunDir) -> io::Result<Vec<Event>> {
    let mut file = File::open(dir.journal())?;
    let from = file.metadata()?.len().saturating_sub(END);
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.take(2 * END).read_to_end(&mut text)?;
    // The first line is half, or it is the first of all.
    let whole = text.iter().position(|byte| *byte == b'\n').map_or(&[][..], |at| &text[at + 1..]);
    Ok(whole.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn table(runs: &[Listed]) -> String {
    let head = ["RUN", "STARTED", "TOOK", "OUTCOME", "EXIT", "ATTEMPTS", "WINDOWS", "SIZE"];
    let mut rows: Vec<[String; 8]> = vec![head.map(str::to_owned)];
    rows.extend(runs.iter().map(|run| {
        let size = if run.size_is_partial { "at least " } else { "" };
        [
            run.run.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            run.started.map_or_else(String::new, local),
            phrases::clock(run.duration),
            outcome(run),
            run.exit_code.map_or_else(|| "-".to_owned(), |code| code.to_string()),
            run.attempts.to_string(),
            count(run.windows),
            format!("{size}{}", bytes(run.bytes)),
        ]
    }));
    let widths: Vec<usize> =
        (0..8).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 | 1 | 3 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        out += cells.join("  ").trim_end();
        out.push('\n');
    }
    out
}

fn outcome(run: &Listed) -> String {
    let phase = run.phase.map_or_else(|| "the beginning".to_owned(), |phase| phase.to_string());
    match (run.standing, run.outcome) {
        (Standing::Running, _) => format!("running, {phase}"),
        (Standing::Interrupted, _) => format!("interrupted in {phase}"),
        (Standing::Finished, outcome) => {
            outcome.map_or_else(|| "?".to_owned(), |outcome| outcome.to_string())
        }
    }
}

/// As a clock on the wall here shows it.
pub(super) fn local(at: jiff::Timestamp) -> String {
    at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}
