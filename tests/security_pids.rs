//! A signal never reaches a process that is not ours, however often pids are given to others, and a run in a container is
//! nobody's business outside.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::process::{Child, Command, Stdio};
use varcas_guard::event::ProcId;
use varcas_guard::supervisor::os::{self, Delivery, PidFd};
use varcas_guard::supervisor::{proc, reap};

const SIGKILL: i32 = 9;
const ROUNDS: usize = 1000;

/// Starts `unshare` with a pid namespace of its own around a command; none where that is not allowed.
fn in_namespace(command: &[&str]) -> Option<Command> {
    for flags in ["-pf", "-Urpf"] {
        let base = [flags, "--kill-child", "--mount-proc"];
        let probe = Command::new("unshare").args(base).arg("true").output();
        if probe.is_ok_and(|output| output.status.success()) {
            let mut unshare = Command::new("unshare");
            unshare.args(base).args(command);
            return Some(unshare);
        }
    }
    println!("SKIPPED: no pid namespace of its own can be had here (unshare)");
    None
}

#[test]
fn over_a_thousand_reused_pids_no_signal_reaches_the_new_owner() {
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let Some(mut inside) =
        in_namespace(&[own, "--exact", "inside_the_namespace", "--ignored", "--nocapture"])
    else {
        return;
    };
    let output = inside.env("VARCAS_IN_NAMESPACE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("{ROUNDS} reused pids")) || said.contains("SKIPPED"), "{said}");
}

#[test]
#[ignore = "is started by the test above in a pid namespace"]
fn inside_the_namespace() {
    if std::env::var_os("VARCAS_IN_NAMESPACE").is_none() {
        return;
    }
    let mut reused = 0;
    while reused < ROUNDS {
        let mut first = sleeper();
        let id = id(&first);
        let handle = PidFd::open(id).unwrap().unwrap();
        first.kill().unwrap();
        first.wait().unwrap();
        let Some(mut second) = with_pid(id) else { return };
        assert_eq!(os::signal(id, SIGKILL).unwrap(), Delivery::Gone);
        assert_eq!(handle.signal(SIGKILL).unwrap(), Delivery::Gone);
        assert!(PidFd::open(id).unwrap().is_none());
        assert!(!proc::is_alive(id));
        if reused % 20 == 0 {
            let run = format!("20260101_000000-{}-{}", id.pid, id.start);
            let (killed, left) = reap::kill_marked(&run, &[id], &[]);
            assert!(killed.is_empty() && left.is_empty(), "{killed:?} {left:?}");
        }
        assert!(second.try_wait().unwrap().is_none(), "a signal for another reached it");
        second.kill().unwrap();
        second.wait().unwrap();
        reused += 1;
    }
    println!("{reused} reused pids");
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
}

fn id(child: &Child) -> ProcId {
    proc::id(i32::try_from(child.id()).unwrap()).unwrap()
}

/// Another process with the same pid, and a later start: within one tick of the clock the two could not be told apart,
/// for which the kernel would have to give out all its pids in a hundredth of a second.
fn with_pid(before: ProcId) -> Option<Child> {
    loop {
        let last = (before.pid - 1).to_string();
        if let Err(error) = std::fs::write("/proc/sys/kernel/ns_last_pid", last) {
            println!("SKIPPED: the next pid cannot be chosen here: {error}");
            return None;
        }
        let mut child = sleeper();
        let now = id(&child);
        if now.pid == before.pid && now.start != before.start {
            return Some(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_marked_process_in_a_container_is_not_taken_for_a_leftover() {
    // The guard of this mark is dead, as seen from here.
    let run = "20260101_000000-3999999-7";
    let script = "echo started; VARCAS_RUN_ID=$1 exec sleep 1000";
    let Some(mut inside) = in_namespace(&["/bin/sh", "-c", script, "sh", run]) else { return };
    let mut child = inside.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    let is_there = || {
        proc::pids().into_iter().any(|pid| {
            proc::environ(pid).is_some_and(|environ| memchr::memmem::find(&environ, run.as_bytes()).is_some())
        })
    };
    while !is_there() {
        std::thread::yield_now();
    }
    let found: Vec<_> =
        reap::find_marked().into_iter().filter(|found| found.run_id.as_str() == run).collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(found.is_empty(), "{found:?}");
}
