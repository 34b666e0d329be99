//! The first process of a container, when that is us. It has two duties that no other process has: to reap whoever lost
//! its parent, also processes that are not ours (of a `kubectl exec`, of the shell that we were `exec`ed from), and to
//! mind signals, of which the kernel gives a first process none that it did not ask for. The run should have neither on
//! its mind: a wait for any child would take from it the ends of those it waits for itself. So the first process only
//! does this, and the command runs as its child. That is what `docker run --init` would do, and what more there is to do:
//! a guard that was killed is survived until its keeper has cleaned up, which the end of the first process would kill.

use super::os::{self, Interest};
use super::proc;
use crate::error::ExitCode;
use crate::event::ExitHow;
use crate::time::instant_now;
use nix::sys::signalfd::SignalFd;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode as ProcessExit};
use std::time::Duration;

/// A keeper or heir whose guard is dead gets this long. It bounds itself at ten seconds for the kill; the rest is for
/// salvage and report.
const TIME_TO_CLEAN: Duration = Duration::from_secs(60);
/// Between two looks whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// If we are the first process, runs this very command line in a child, looks after everybody until that ends, and
/// returns its exit code. `None`: we are not.
pub fn attend() -> Option<ProcessExit> {
    if os::own_pid() != 1 {
        return None;
    }
    Some(match serve() {
        Ok(code) => ProcessExit::from(code),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: cannot start as the first process: {error}");
            ExitCode::Bug.into()
        }
    })
}

fn serve() -> io::Result<u8> {
    // Before there is a child: what is sent meanwhile waits for it.
    let signals = os::block_signals_to_pass_on()?;
    let mut words = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(name) = words.next() {
        command.arg0(name);
    }
    let child = os::start_unblocked(command.args(words), None)?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let how = until_ended(pid, &signals);
    let patience = instant_now() + TIME_TO_CLEAN;
    while somebody_cleans_up() && instant_now() < patience {
        wait(&signals, LOOK_EVERY);
        os::drain(&signals);
        while reap_one().is_some() {}
    }
    Ok(code(how))
}

fn until_ended(pid: i32, signals: &SignalFd) -> ExitHow {
    loop {
        wait(signals, Duration::from_secs(3600));
        for signal in os::sent_signals(signals) {
            // Not reaped yet, so the number is still its own.
            if let Some(id) = proc::id(pid) {
                drop(os::signal(id, signal));
            }
        }
        while let Some((dead, how)) = reap_one() {
            if dead == pid {
                return how;
            }
        }
    }
}

fn wait(signals: &SignalFd, timeout: Duration) {
    drop(os::poll(&[Interest { fd: signals.as_fd(), write: false }], timeout));
}

fn reap_one() -> Option<(i32, ExitHow)> {
    let pid = os::peek_dead_child()?;
    os::reap_child(pid).map(|how| (pid, how))
}

/// A keeper or heir has become our child, which it does when its guard is dead.
fn somebody_cleans_up() -> bool {
    let inherited = |pid: i32| {
        proc::stat(pid).is_some_and(|stat| {
            stat.ppid == 1 && !stat.is_dead() && matches!(stat.comm.as_str(), "varcas-keeper" | "varcas-heir")
        })
    };
    proc::pids().into_iter().any(inherited)
}

/// As a shell would say it.
fn code(how: ExitHow) -> u8 {
    let code = match how {
        ExitHow::Code { code } => code,
        ExitHow::Signal { signal, .. } => 128 + signal,
        ExitHow::Unknown => i32::from(ExitCode::Bug.code()),
    };
    u8::try_from(code).unwrap_or(ExitCode::Bug.code())
}
