//! The heir: a copy of the keeper that does nothing but wait for the death of keeper and guard, and then does what the
//! keeper would have done after the guard's. Without it, two SIGKILLs (`pkill -9 varcas`, somebody who tidies up by
//! name) leave a server that holds the GPU until a person looks: vLLM's engine core does not watch its parent.
//!
//! It is forked before there is a server, is in a session of its own, and holds nothing that the keeper holds, least of
//! all the socket, whose closing is how the guard notices the keeper's death.

use super::wire::KeeperSpec;
use crate::event::ProcId;
use crate::supervisor::os::{self, Interest, PidFd};
use crate::supervisor::run_id::RunId;
use crate::supervisor::{proc, reap};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

/// Between two looks whether the guard, alive, has cleaned up after a dead keeper.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The keeper's end of it.
#[derive(Debug)]
pub(super) struct Heir {
    pid: i32,
}

impl Heir {
    /// Forks it. The keeper has one thread, which this needs.
    pub(super) fn leave(spec: &KeeperSpec) -> io::Result<Self> {
        let keeper = proc::own_id();
        let pid = os::fork_child(|| wait(spec, keeper))?;
        Ok(Self { pid })
    }

    /// Never a member of the server's tree.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Nothing is left to inherit.
    pub(super) fn dismiss(self) {
        os::end_child(self.pid);
    }
}

fn wait(spec: &KeeperSpec, keeper: ProcId) -> u8 {
    os::close_above_stdio();
    // Each of these only makes it easier to tell apart, or harder to hit by accident.
    drop(os::become_session_leader());
    drop(os::set_own_name(c"varcas-heir"));
    let _hold = os::share_lock_of_folder(&spec.scratch);
    until_dead(keeper, &|| true);
    let Ok(guard) = spec.run_id.parse::<RunId>().map(|run| run.guard()) else { return 1 };
    // A guard that lives cleans up itself, and its next attempt has a keeper and an heir of its own.
    if !until_dead(guard, &|| is_there(&spec.scratch)) {
        return 0;
    }
    let closed = reap::Abandoned::left_by(spec.clone(), keeper).close();
    for problem in &closed.problems {
        let _ = writeln!(io::stderr(), "varcas-guard heir: {problem}");
    }
    u8::from(!closed.leftovers.is_empty())
}

/// Waits for a death; false if `still` ended the wait before.
fn until_dead(id: ProcId, still: &dyn Fn() -> bool) -> bool {
    loop {
        match PidFd::open(id) {
            Ok(None) => return true,
            Ok(Some(handle)) => {
                let interest = [Interest { fd: handle.as_fd(), write: false }];
                if os::poll(&interest, LOOK_EVERY).is_ok_and(|ready| ready.contains(&true)) {
                    return true;
                }
            }
            Err(_) => {
                if !proc::is_alive(id) {
                    return true;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        }
        if !still() {
            return false;
        }
    }
}

fn is_there(folder: &Path) -> bool {
    std::fs::symlink_metadata(folder).is_ok()
}
