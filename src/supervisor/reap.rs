//! What is left of a run: marked processes, shared memory, temporary files; finding it and getting rid of it. Used by
//! the keeper after the guard's death, by the guard after the keeper's, and by `varcas-guard reap` after both.

mod abandoned;
mod clean;

pub use abandoned::{Abandoned, Closed, close, find_abandoned, is_open, journal_of, of_run};
pub(crate) use clean::note_shm;
pub use clean::{clean, make_scratch, make_scratch_somewhere, own_scratch, shm_names};

use crate::event::{Leftover, ProcId};
use crate::supervisor::keeper::kill::{self, Killed};
use crate::supervisor::keeper::tree::{Stance, Tree};
use crate::supervisor::proc::{self, Stat};
use crate::supervisor::run_id::{MARK, RunId};
use crate::time::instant_now;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A keeper gives up after ten seconds of killing.
const KEEPERS: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A process that belongs to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// The run.
    pub run_id: RunId,
    /// Whether its guard lives; then the process is none of anybody else's business.
    pub guard_alive: bool,
    /// Whether the keeper in whose session it is lives.
    pub keeper_alive: bool,
    /// Which process.
    pub proc: ProcId,
    /// Its command name.
    pub comm: String,
    /// Its user.
    pub uid: u32,
}

/// Every process of any run that we may see. Besides those that carry the mark: vLLM's own processes overwrite it with
/// their title, so a process also counts when its parent counts, or when it shares the session of one that does and the
/// session's leader, a keeper, is dead.
pub fn find_marked() -> Vec<Marked> {
    let own = crate::supervisor::os::own_pid();
    let mut stats: Vec<Stat> =
        proc::pids().into_iter().filter(|pid| *pid != own).filter_map(proc::stat).collect();
    stats.retain(|stat| !stat.is_dead());
    let alive: BTreeSet<i32> = stats.iter().map(|stat| stat.id.pid).chain([own]).collect();
    let mut runs: BTreeMap<i32, RunId> =
        stats.iter().filter_map(|stat| Some((stat.id.pid, mark_of(stat.id.pid)?))).collect();
    loop {
        let mut sessions: BTreeMap<i32, RunId> = BTreeMap::new();
        for stat in &stats {
            if let Some(run) = runs.get(&stat.id.pid)
                && stat.session > 1
                && (!alive.contains(&stat.session) || runs.get(&stat.session) == Some(run))
            {
                sessions.insert(stat.session, run.clone());
            }
        }
        let more: Vec<(i32, RunId)> = stats
            .iter()
            .filter(|stat| !runs.contains_key(&stat.id.pid))
            .filter_map(|stat| {
                let run = runs.get(&stat.ppid).or_else(|| sessions.get(&stat.session))?;
                Some((stat.id.pid, run.clone()))
            })
            .collect();
        if more.is_empty() {
            break;
        }
        runs.extend(more);
    }
    let found = stats.into_iter().filter_map(|stat| {
        let run_id = runs.remove(&stat.id.pid)?;
        let uid = proc::uid(stat.id.pid)?;
        let keeper_alive = alive.contains(&stat.session)
            && proc::command_line(stat.session).is_some_and(|line| line.ends_with(" __keeper"));
        let guard_alive = run_id.guard_alive();
        Some(Marked { guard_alive, keeper_alive, run_id, proc: stat.id, comm: stat.comm, uid })
    });
    found.collect()
}

/// Waits, but not for ever, for keepers that clean up after a dead guard. They would find that somebody else has done it,
/// and could not write into the journal of their run who was ended.
pub fn let_keepers_finish() {
    let began = instant_now();
    let at_work = |process: &Marked| !process.guard_alive && process.keeper_alive;
    while began.elapsed() < KEEPERS && find_marked().iter().any(at_work) {
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Of a process in our own pid namespace: of one in a container, `/proc` here shows the mark, but the guard that the mark
/// names is numbered as in there, and would be taken for dead.
fn mark_of(pid: i32) -> Option<RunId> {
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).ok();
    if namespace(&pid.to_string()) != namespace("self") {
        return None;
    }
    let environ = proc::environ(pid)?;
    std::str::from_utf8(proc::variable(&environ, MARK)?).ok()?.parse().ok()
}

/// Kills and reaps what a dead keeper left: every process of this run, found by its mark, by `known` (what the keeper
/// had reported, [`Keeper::known`]), and by parents and sessions of these. Never a process in `exclude`, nor this one.
/// Only what is found here is reaped, so the caller's other children are safe. Blocks for up to ten seconds.
///
/// [`Keeper::known`]: crate::supervisor::keeper::Keeper::known
pub fn kill_marked(run_id: &str, known: &[ProcId], exclude: &[i32]) -> (Vec<ProcId>, Vec<Leftover>) {
    let Killed { killed, leftovers } = kill_left(run_id, known, None, exclude);
    (killed, leftovers)
}

/// The same, and everybody in the session of `keeper`, which is dead.
pub(crate) fn kill_left(run_id: &str, known: &[ProcId], keeper: Option<ProcId>, exclude: &[i32]) -> Killed {
    let mut tree = Tree::new(run_id, Stance::Outsider, exclude);
    if let Some(keeper) = keeper {
        tree.inherit_session(keeper);
    }
    for id in known {
        tree.adopt_known(*id);
    }
    kill::kill_all(&mut tree, "the keeper died", &mut |_| ())
}
