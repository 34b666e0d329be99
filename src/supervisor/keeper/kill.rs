//! Getting rid of a tree: everything dies but Python's resource tracker, which gets a moment to remove the semaphores
//! and shared memory it knows of, and then dies too.

use crate::event::{EventKind, Leftover, ProcId};
use crate::supervisor::keeper::tree::{Member, Tell, Tree};
use crate::supervisor::os;
use crate::supervisor::proc::{self, Stat};
use crate::time::instant_now;
use std::collections::BTreeSet;
use std::time::Duration;

/// After this we give up on what is left: it sits in the kernel and no signal reaches it.
const LIMIT: Duration = Duration::from_secs(10);
/// What the resource tracker gets once everybody else is gone. It ignores SIGTERM, so it cannot be asked.
const TRACKER_GRACE: Duration = Duration::from_secs(3);
/// Rounds of finding ever new processes after which whole groups are struck at once.
const PATIENCE: u32 = 5;

/// What a kill did.
#[derive(Debug, Default)]
pub(crate) struct Killed {
    /// Everybody a SIGKILL was sent to.
    pub(crate) killed: Vec<ProcId>,
    /// Everybody who is still there.
    pub(crate) leftovers: Vec<Leftover>,
}

/// Kills until nobody is left, or the limit is over.
pub(crate) fn kill_all(tree: &mut Tree, why: &str, tell: Tell<'_>) -> Killed {
    let began = instant_now();
    let mut struck = BTreeSet::new();
    let mut known_trackers = BTreeSet::new();
    let mut trackers_alone = None;
    let mut hunted = 0;
    let mut pause = Duration::from_millis(2);
    loop {
        let was_empty = tree.is_empty();
        tree.scan(true, tell);
        // Whoever was found alive now and is dead a moment later may have forked in between.
        let found = was_empty && !tree.is_empty();
        let unexpected = if hunted > PATIENCE { tree.bury_striking_groups(tell) } else { tree.bury(tell) };
        // A process forked while we listed is found only by a look that began after its parent was gone; and whoever
        // forks and dies between two looks is in none of them, but we get its body.
        if was_empty && !found && !unexpected && tree.is_empty() {
            return Killed { killed: struck.into_iter().collect(), leftovers: Vec::new() };
        }
        if began.elapsed() > LIMIT {
            return Killed { killed: struck.into_iter().collect(), leftovers: leftovers(tree) };
        }
        let (trackers, others): (Vec<_>, Vec<_>) = tree.members().partition(|member| {
            // Once known, always known: a process that is exiting has no command line any more.
            known_trackers.contains(&member.stat.id) || is_tracker(tree, member)
        });
        known_trackers.extend(trackers.iter().map(|member| member.stat.id));
        let tracker_time_is_over =
            others.is_empty() && trackers_alone.get_or_insert_with(instant_now).elapsed() > TRACKER_GRACE;
        let victims = if tracker_time_is_over { trackers } else { others };
        let news = strike(&victims, why, &mut struck, tell) || unexpected || found;
        hunted = if news { hunted + 1 } else { 0 };
        pause = if news { Duration::from_millis(2) } else { (pause * 2).min(Duration::from_millis(100)) };
        tree.wait(pause);
    }
}

/// Sends SIGKILL to everybody named and reports the new ones first. True if there were any.
fn strike(victims: &[&Member], why: &str, struck: &mut BTreeSet<ProcId>, tell: Tell<'_>) -> bool {
    let new: Vec<ProcId> =
        victims.iter().map(|member| member.stat.id).filter(|id| !struck.contains(id)).collect();
    if !new.is_empty() {
        tell(EventKind::SignalSent { signal: os::SIGKILL, targets: new.clone(), why: why.to_owned() });
    }
    for member in victims {
        let sent = send(member, os::SIGKILL);
        // Said once and not in every round: somebody who is not ours to kill stays so.
        if let Some(trouble) = sent
            && new.contains(&member.stat.id)
        {
            tell(trouble);
        }
    }
    struck.extend(&new);
    !new.is_empty()
}

/// Sends a signal to a member; what comes back is to be reported.
pub(crate) fn send(member: &Member, signal: i32) -> Option<EventKind> {
    let id = member.stat.id;
    let sent = member.handle.as_ref().map_or_else(|| os::signal(id, signal), |handle| handle.signal(signal));
    sent.err().map(|error| EventKind::Trouble {
        what: format!("send {} to {id} ({})", crate::event::signal_name(signal), member.stat.comm),
        error: error.to_string(),
    })
}

fn is_tracker(tree: &Tree, member: &Member) -> bool {
    tree.main() != Some(member.stat.id)
        && proc::command_line(member.stat.id.pid).is_some_and(|line| line.contains("resource_tracker"))
}

fn leftovers(tree: &Tree) -> Vec<Leftover> {
    // Nobody in the list at the end of the limit: somebody forks and dies so fast that only the bodies are seen.
    let unseen = tree.last_reaped().filter(|_| tree.is_empty());
    tree.members().map(|member| &member.stat).chain(unseen).map(leftover).collect()
}

fn leftover(stat: &Stat) -> Leftover {
    Leftover::Process { proc: stat.id, comm: stat.comm.clone(), state: stat.state.to_string() }
}
