//! Which processes of the server are vLLM's own and not somebody's helper. Pure.

use crate::event::ProcId;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of the tree by what was seen of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Family {
    /// Command names by pid.
    names: BTreeMap<i32, String>,
    helpers: BTreeSet<ProcId>,
}

impl Family {
    /// A process joined the tree or changed its name.
    pub(super) fn seen(&mut self, proc: ProcId, ppid: i32, comm: &str) {
        // Whatever a worker forks has the worker's name until it takes another: torch compiles in such children.
        let forked = self.names.get(&ppid).is_some_and(|parent| parent == comm);
        if forked {
            self.helpers.insert(proc);
        } else {
            self.helpers.remove(&proc);
        }
        self.names.insert(proc.pid, comm.to_owned());
    }

    /// Whether the death of this process ends the attempt. vLLM names its own; helpers such as compilers come and go.
    pub(super) fn is_essential(&self, proc: ProcId, comm: &str) -> bool {
        comm.starts_with("VLLM::") && !self.helpers.contains(&proc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proc(pid: i32) -> ProcId {
        ProcId { pid, start: 1 }
    }

    #[test]
    fn a_child_that_a_worker_forks_is_no_worker() {
        let mut family = Family::default();
        family.seen(proc(10), 1, "python");
        family.seen(proc(11), 10, "VLLM::EngineCor");
        family.seen(proc(12), 11, "VLLM::EngineCor");
        assert!(!family.is_essential(proc(12), "VLLM::EngineCor"));
        // Until it takes a name of its own.
        family.seen(proc(12), 11, "VLLM::Worker_TP");
        family.seen(proc(13), 12, "VLLM::Worker_TP");
        assert!(family.is_essential(proc(11), "VLLM::EngineCor"));
        assert!(family.is_essential(proc(12), "VLLM::Worker_TP"));
        assert!(!family.is_essential(proc(13), "VLLM::Worker_TP"));
        assert!(!family.is_essential(proc(10), "python"));
        // Better one false alarm than a death that nobody notices.
        assert!(family.is_essential(proc(99), "VLLM::Worker_TP"));
    }
}
