//! A run whose guard and keeper are both dead: killed together, or the machine lost power. Its scratch folder says to
//! which run it belongs, its journal which processes it had, and nobody holds the folder's lock any more.

use super::clean::{clean, owner_of, shm_names};
use super::kill_left;
use crate::event::{EventKind, Leftover, ProcId};
use crate::redact::Redactor;
use crate::supervisor::keeper::kill::Killed;
use crate::supervisor::keeper::{KeeperSpec, last_words};
use crate::supervisor::layout::RunDir;
use crate::supervisor::layout::SERVER_LOG;
use crate::supervisor::log_limit::close_up;
use crate::supervisor::mask::mask_folder;
use crate::supervisor::{journal, os, proc};
use crate::time::wall_now;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A scratch folder without word in it was made a moment ago, or by somebody who died in that moment.
const MOMENT: Duration = Duration::from_secs(60);
/// Others who close the same run are done long before.
const OTHERS: Duration = Duration::from_secs(10);
/// The clock of the system's start is given in whole seconds.
const CLOCK_SLACK: jiff::SignedDuration = jiff::SignedDuration::from_secs(2);

/// What is left of a run that nobody owns.
#[derive(Debug)]
pub struct Abandoned {
    /// What its keeper knew.
    pub spec: KeeperSpec,
    /// Whose session it was, if that is certain: later, another could have got its number.
    keeper: Option<ProcId>,
    /// Held while it is being cleaned up.
    _lock: Option<File>,
}

/// What closing it did.
#[derive(Debug, Default)]
pub struct Closed {
    /// Who was ended.
    pub killed: Vec<ProcId>,
    /// What was removed.
    pub removed: Vec<String>,
    /// What would not go.
    pub leftovers: Vec<Leftover>,
    /// What else did not work.
    pub problems: Vec<String>,
}

impl Abandoned {
    /// Left by this keeper, which its heir saw die.
    pub(crate) fn left_by(spec: KeeperSpec, keeper: ProcId) -> Self {
        Self { spec, keeper: Some(keeper), _lock: None }
    }

    /// The run folder.
    pub fn run_folder(&self) -> &Path {
        self.spec.journal.parent().unwrap_or(&self.spec.journal)
    }

    /// Ends its processes, cleans up after them, and closes its journal.
    pub fn close(self) -> Closed {
        let known = named_in(&self.spec.journal);
        let exclude = [os::own_pid()];
        let Killed { killed, leftovers } = kill_left(&self.spec.run_id, &known, self.keeper, &exclude);
        close(&self.spec, killed, leftovers)
    }
}

/// Cleans up after a dead guard when its processes are gone, writes the journal's last line and the report. Whoever
/// does this first does it alone.
pub fn close(spec: &KeeperSpec, killed: Vec<ProcId>, mut leftovers: Vec<Leftover>) -> Closed {
    let mut problems = Vec::new();
    let (removed, stuck) = clean(&spec.scratch, &spec.save_to, &spec.shm_before);
    leftovers.extend(stuck);
    if let Some(attempt) = spec.save_to.parent() {
        problems.extend(close_up(&attempt.join(SERVER_LOG)).err());
        problems.extend(mask_folder(attempt, &Redactor::of_values(spec.secrets.clone())));
    }
    if let Some(run) = spec.journal.parent().filter(|run| run.is_dir()) {
        let alone = wait_for_lock(&RunDir::new(run).lock());
        if !spec.journal.exists() || is_open(run) {
            let kind = EventKind::GuardDied {
                killed: killed.clone(),
                leftovers: leftovers.clone(),
                removed: removed.clone(),
            };
            if let Err(error) = last_words::append(&spec.journal, spec.attempt, kind) {
                problems.push(format!("cannot append to {}: {error}", spec.journal.display()));
            }
        }
        // Or the report would say that the run is alive.
        drop(alone);
        problems.extend(write_report(run));
    }
    Closed { killed, removed, leftovers, problems }
}

fn wait_for_lock(path: &Path) -> Option<File> {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(20);
    loop {
        match os::try_lock(path) {
            Ok(None) if waited < OTHERS => {
                std::thread::sleep(step);
                waited += step;
            }
            other => return other.ok().flatten(),
        }
    }
}

/// Nobody else is left to write it, and somebody will look for it in the morning.
fn write_report(run: &Path) -> Option<String> {
    let status = std::env::current_exe().and_then(|exe| {
        let mut command = Command::new(exe);
        command.arg("report").arg(run).arg("--write").stdin(Stdio::null()).stdout(Stdio::null()).status()
    });
    match status {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("cannot write the report of {}: {status}", run.display())),
        Err(error) => Some(format!("cannot write the report of {}: {error}", run.display())),
    }
}

/// Where the journal of a run folder lies.
pub fn journal_of(run: &Path) -> PathBuf {
    RunDir::new(run).journal()
}

/// Whether the journal of this run folder exists and has no end. Who holds the folder's lock is another question.
pub fn is_open(run: &Path) -> bool {
    let last = journal::last(&RunDir::new(run).journal());
    let ended =
        |kind: &EventKind| matches!(kind, EventKind::RunFinished { .. } | EventKind::GuardDied { .. });
    last.is_ok_and(|last| last.is_none_or(|event| !ended(&event.kind)))
}

/// Every scratch folder of this user that nobody holds, in the places where guards make them. Those of the living are
/// locked, also by a guard in a container that shares the folder and whose processes are not to be seen from here.
pub fn find_abandoned() -> Vec<Abandoned> {
    let mut places = vec![std::env::temp_dir(), PathBuf::from("/tmp")];
    places.dedup();
    let entries = places.into_iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    entries.filter_map(|entry| abandoned(&entry.path())).collect()
}

fn abandoned(path: &Path) -> Option<Abandoned> {
    if !path.file_name()?.to_string_lossy().starts_with("vg-") {
        return None;
    }
    // Of the entry itself, not of what a link points to.
    let meta = fs::symlink_metadata(path).ok()?;
    if !meta.is_dir() || meta.uid() != os::own_uid() || meta.mode() & 0o077 != 0 {
        return None;
    }
    let lock = os::try_lock_folder(path).ok()??;
    match owner_of(path) {
        // One that was copied or moved here is not what a keeper had.
        Some(spec) if spec.scratch == path => Some(Abandoned { spec, keeper: None, _lock: Some(lock) }),
        Some(_) => None,
        None => {
            let age = wall_now().as_second().saturating_sub(meta.mtime());
            if u64::try_from(age).is_ok_and(|age| age > MOMENT.as_secs()) {
                // Only succeeds if it is empty, which is the whole point.
                drop(fs::remove_dir(path));
            }
            None
        }
    }
}

/// The same for one run folder: none if its guard lives or it came to its end.
pub fn of_run(run: &Path) -> io::Result<Option<Abandoned>> {
    let dir = RunDir::new(run);
    if !dir.journal().exists() || !is_open(run) || os::try_lock(&dir.lock())?.is_none() {
        return Ok(None);
    }
    let (mut run_id, mut attempt, mut scratch) = (String::new(), 0, None);
    journal::each(&dir.journal(), |event| {
        attempt = event.attempt;
        match event.kind {
            EventKind::RunStarted { run_id: id, .. } => run_id = id,
            EventKind::ServerEnvironment { env } => scratch = env.get("TMPDIR").map(PathBuf::from),
            _ => {}
        }
    })?;
    if let Some(found) = scratch.as_deref().and_then(abandoned) {
        return Ok(Some(found));
    }
    let spec = KeeperSpec {
        run_id,
        attempt,
        journal: dir.journal(),
        // Gone, or never made; a name that cannot exist is cleaned at once.
        scratch: scratch.filter(|path| !path.exists()).unwrap_or_else(|| dir.root().join("vg-none")),
        save_to: dir.attempt(attempt).tmp(),
        // Without the list of the time before, none may be touched.
        shm_before: shm_names(),
        secrets: Vec::new(),
        umask: None,
    };
    Ok(Some(Abandoned { spec, keeper: None, _lock: None }))
}

/// The processes that a journal names as the server's and does not say the end of. None of a time before the machine was
/// last started: pids and start times begin anew then.
fn named_in(path: &Path) -> Vec<ProcId> {
    let mut known: Vec<(ProcId, jiff::Timestamp)> = Vec::new();
    let read = journal::each(path, |event| match event.kind {
        EventKind::ServerSpawned { proc, .. } | EventKind::ProcessSeen { proc, .. } => {
            known.push((proc, event.at.wall));
        }
        EventKind::ProcessExited { proc, .. } => known.retain(|(other, _)| *other != proc),
        _ => {}
    });
    if read.is_err() {
        return Vec::new();
    }
    let same_boot = |(id, told): &(ProcId, jiff::Timestamp)| {
        proc::started_at(*id).is_some_and(|started| started <= *told + CLOCK_SLACK)
    };
    known.retain(same_boot);
    known.into_iter().map(|(id, _)| id).collect()
}
