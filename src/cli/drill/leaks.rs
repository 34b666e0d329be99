//! What a run has left behind: processes, its port, shared memory, files. Found without asking the guard, which may be
//! the one that is wrong.

use crate::event::ProcId;
use crate::supervisor::port::{self, PortState};
use crate::supervisor::{os, proc, reap};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process with the name it has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Process {
    /// Which.
    pub(super) id: ProcId,
    /// Its name.
    pub(super) comm: String,
}

/// Processes that live and belong to a run: by the run's mark and what inherits it, and by their working folder, which is
/// below the run's own even where a process has thrown its environment away.
pub(super) fn processes(run_id: Option<&str>, folder: &Path, guards: &BTreeSet<i32>) -> BTreeSet<Process> {
    let marked = reap::find_marked().into_iter().filter(|marked| Some(marked.run_id.as_str()) == run_id);
    let mut found: BTreeSet<Process> =
        marked.map(|marked| Process { id: marked.proc, comm: marked.comm }).collect();
    for pid in proc::pids() {
        let here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        if let Some(stat) = proc::stat(pid).filter(|stat| here && !stat.is_dead()) {
            found.insert(Process { id: stat.id, comm: stat.comm });
        }
    }
    found.retain(|process| process.id.pid != os::own_pid() && !guards.contains(&process.id.pid));
    found
}

/// Our children that are no guards: orphans, which come to us because we adopt them. The dead ones are reaped.
pub(super) fn orphans(guards: &BTreeSet<i32>) -> BTreeSet<Process> {
    let mut found = BTreeSet::new();
    for stat in proc::pids().into_iter().filter_map(proc::stat) {
        if stat.ppid != os::own_pid() || guards.contains(&stat.id.pid) {
            continue;
        }
        if stat.is_dead() {
            let _ = os::reap_child(stat.id.pid);
        } else {
            found.insert(Process { id: stat.id, comm: stat.comm });
        }
    }
    found
}

/// Ends what was found. It is a leak already, and must not become one of the drill.
pub(super) fn end(processes: &BTreeSet<Process>) {
    for process in processes {
        // One that is gone meanwhile is what we want.
        drop(os::signal(process.id, os::SIGKILL));
    }
}

/// How long what was killed last may take to be gone.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// Who holds the port, in words.
pub(super) fn port(port: u16) -> Option<String> {
    match port::probe(port) {
        Ok(PortState::Held { listening: holders } | PortState::BoundNotListening { holders }) => {
            let holders: Vec<String> = holders.iter().map(ToString::to_string).collect();
            Some(format!("port {port} is held by {}", holders.join(" and ")))
        }
        Ok(PortState::Free | PortState::Connected { .. } | PortState::TimeWait { .. }) => None,
        Err(error) => Some(format!("port {port} cannot be looked at: {error}")),
    }
}

/// Files that should be gone. Those in shared memory are removed.
pub(super) fn files(temporary: &Path, run: Option<&Path>, made: &[PathBuf]) -> Vec<String> {
    let mut left: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        left.push(format!("{} in the temporary folder", entry.path().display()));
    }
    for path in made.iter().filter(|path| path.exists()) {
        left.push(format!("shared memory {}", path.display()));
        drop(std::fs::remove_file(path));
    }
    let attempts = run.and_then(|run| std::fs::read_dir(run).ok());
    for attempt in attempts.into_iter().flatten().flatten() {
        let python = attempt.path().join("python");
        left.extend(python.exists().then(|| format!("{}", python.display())));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_planted_process_port_and_file_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (temporary, run) = (dir.path().join("t"), dir.path().join("run"));
        std::fs::create_dir_all(&temporary).unwrap();
        std::fs::create_dir_all(run.join("attempt-1/python")).unwrap();
        std::fs::write(temporary.join("left"), "").unwrap();
        let segment = dir.path().join("segment");
        std::fs::write(&segment, "").unwrap();
        let mut child = Command::new("sleep")
            .arg("600")
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&run)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = processes(None, dir.path(), &BTreeSet::new());
        assert!(found.iter().any(|process| process.id.pid == pid), "{found:?}");
        assert!(processes(None, dir.path(), &BTreeSet::from([pid])).is_empty());
        end(&found);
        child.wait().unwrap();
        assert!(processes(None, dir.path(), &BTreeSet::new()).is_empty());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let number = listener.local_addr().unwrap().port();
        assert!(port(number).unwrap().contains("is held by"));
        drop(listener);
        assert_eq!(port(number), None);
        let left = files(&temporary, Some(&run), std::slice::from_ref(&segment));
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(!segment.exists());
    }
}
