//! The part of the preflight that looks for what earlier runs have left: processes, scratch folders, journals without an
//! end. `run` ends what is nobody's any more, `check` only tells. What belongs to a living guard is not touched.

use super::{os, reap};
use crate::event::{Check, Severity};
use crate::supervisor::layout::RunDir;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Runs without an end that are named in a preflight; the newest.
const MOST_NAMED: usize = 3;

/// What leftovers of dead runs mean: `run` ends them, `check` only tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// End those whose guard is dead.
    End,
    /// Say so.
    Tell,
}

/// Looks for all of them. `beside` is the folder in which run folders of this kind lie.
pub(super) fn checks(what: Leftovers, beside: Option<&Path>) -> Vec<Check> {
    let mut checks = marked(what);
    checks.extend(scratch(what));
    checks.extend(beside.and_then(interrupted));
    if checks.is_empty() {
        let saw = "no process or folder of an earlier run".to_owned();
        checks.push(Check { check: "leftovers".to_owned(), severity: Severity::Ok, saw, hint: None });
    }
    checks
}

fn check(severity: Severity, saw: String, hint: Option<&str>) -> Check {
    Check { check: "leftovers".to_owned(), severity, saw, hint: hint.map(str::to_owned) }
}

const END_THEM: &str = "end them with `varcas-guard reap`; `run` does it by itself";

fn marked(leftovers: Leftovers) -> Vec<Check> {
    if leftovers == Leftovers::End {
        reap::let_keepers_finish();
    }
    let mine = os::own_uid();
    let mut dead: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut alive: BTreeMap<String, usize> = BTreeMap::new();
    let own = os::own_pid();
    for process in reap::find_marked() {
        if process.run_id.guard().pid == own && process.guard_alive {
            continue;
        }
        if process.guard_alive {
            *alive.entry(process.run_id.as_str().to_owned()).or_default() += 1;
        } else if process.uid == mine {
            let text = format!("{} ({})", process.comm, process.proc);
            dead.entry(process.run_id.as_str().to_owned()).or_default().push(text);
        }
    }
    let mut checks: Vec<Check> = alive
        .into_iter()
        .map(|(run, n)| {
            check(Severity::Note, format!("another run, {run}, is alive with {n} processes"), None)
        })
        .collect();
    for (run, processes) in dead {
        let list = processes.join(", ");
        if leftovers == Leftovers::Tell {
            let saw =
                format!("{} of run {run}, whose guard is dead: {list}", count(processes.len(), "process"));
            checks.push(check(Severity::Warn, saw, Some(END_THEM)));
            continue;
        }
        let (killed, left) = reap::kill_marked(&run, &[], &[own]);
        checks.push(if left.is_empty() {
            let saw = format!("ended {} that run {run} had left: {list}", count(killed.len(), "process"));
            check(Severity::Note, saw, None)
        } else {
            let saw = format!("run {run} left processes that SIGKILL does not end: {left:?}");
            check(Severity::Refuse, saw, Some("only the kernel can end them: reboot, or wait for the driver"))
        });
    }
    checks
}

fn scratch(leftovers: Leftovers) -> Vec<Check> {
    let mut checks = Vec::new();
    for abandoned in reap::find_abandoned() {
        let (run, folder) = (abandoned.spec.run_id.clone(), abandoned.spec.scratch.display().to_string());
        if leftovers == Leftovers::Tell {
            let saw = format!("{folder} of run {run}, whose guard is dead");
            checks.push(check(Severity::Warn, saw, Some(END_THEM)));
            continue;
        }
        let run_folder = abandoned.run_folder().display().to_string();
        let closed = abandoned.close();
        checks.push(if closed.leftovers.is_empty() {
            let saw = format!("cleaned up after run {run} in {run_folder}, which was interrupted");
            check(Severity::Note, saw, None)
        } else {
            let saw =
                format!("run {run} was interrupted and left what does not go away: {:?}", closed.leftovers);
            check(Severity::Warn, saw, Some("move away what is still wanted, and remove the rest"))
        });
    }
    checks
}

/// Run folders in `beside` whose journal has no end and whose guard is dead.
fn interrupted(beside: &Path) -> Option<Check> {
    let entries = std::fs::read_dir(beside).ok()?;
    let mut runs: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| RunDir::new(path).journal().is_file() && reap::is_open(path))
        .filter(|path| is_nobodys(path))
        .collect();
    runs.sort();
    let newest = runs.iter().rev().take(MOST_NAMED).map(|path| path.display().to_string());
    let newest: Vec<String> = newest.collect();
    let more = runs.len().saturating_sub(newest.len());
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let saw = format!("interrupted, without a word about their end: {}{more}", newest.join(", "));
    let hint = "`varcas-guard report RUN` tells of them, `varcas-guard reap RUN` closes them";
    (!runs.is_empty()).then(|| check(Severity::Note, saw, Some(hint)))
}

fn is_nobodys(run: &Path) -> bool {
    let lock = RunDir::new(run).lock();
    // A look must not leave a file where there was none.
    lock.exists() && matches!(os::try_lock(&lock), Ok(Some(_)))
}

fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}es") }
}
