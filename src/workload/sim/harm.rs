//! What a process of the simulated server does to itself, its machine and those who watch it.

use super::fault::Lie;
use super::tree::{ignore_signals, role, set_comm, sleep};
use nix::fcntl::OFlag;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What the API server's endpoints say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lies {
    /// `/health`.
    pub(super) health: Lie,
    /// `/metrics`.
    pub(super) metrics: Lie,
}

static LIES: Mutex<Lies> = Mutex::new(Lies { health: Lie::Truth, metrics: Lie::Truth });

/// What they say now.
pub(super) fn lies() -> Lies {
    *LIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Changes what they say.
pub(super) fn lie(change: impl FnOnce(&mut Lies)) {
    change(&mut LIES.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Works for ever and gets nowhere.
pub(super) fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

/// Sleeps in the kernel where no polite signal reaches: the state letter is D, as of a process in a dead driver. It is the
/// parent of a `vfork` whose child never gets as far as its program, because it opens a pipe that nobody writes into. Other
/// than in a dead driver, SIGKILL still ends it.
pub(super) fn asleep() {
    let pipe = std::env::temp_dir().join(format!("asleep-{}", std::process::id()));
    if nix::unistd::mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).is_err() {
        return;
    }
    let (Ok(mut actions), Ok(attributes)) = (PosixSpawnFileActions::init(), PosixSpawnAttr::init()) else {
        return;
    };
    let environment: Vec<CString> = std::env::vars_os()
        .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
        .collect();
    let _ = actions.add_open(9, pipe.as_path(), OFlag::O_RDONLY, Mode::empty());
    let _ = posix_spawn(c"/proc/self/exe", &actions, &attributes, &[c"asleep"], &environment);
}

/// Takes memory and never gives it back, in steps that a sampler sees.
pub(super) fn leak(mib: u64) {
    std::thread::spawn(move || {
        let (step, pause) = ((mib / 20).max(1), Duration::from_millis(100));
        let mut taken = 0;
        while taken < mib {
            // Written to, or the kernel would not give it.
            std::mem::forget(vec![1u8; (step << 20) as usize]);
            taken += step;
            sleep(pause);
        }
    });
}

fn child(arguments: &[&str]) -> Command {
    let mut command = role("sim-child", arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Children that are gone at once and stay in the table, because nobody asks how they ended.
pub(super) fn zombies(count: u64) {
    for _ in 0..count {
        // Dropping a child does not wait for it.
        drop(child(&["zombie"]).spawn());
    }
}

/// How long what a fault has started lives if nobody ends it: longer than any drill, and not for ever.
const LIFE: Duration = Duration::from_secs(300);

/// A tree of processes: three by each, so many levels deep.
pub(super) fn bomb(levels: u64) {
    for _ in 0..3 {
        drop(child(&["bomb", &levels.to_string()]).spawn());
    }
}

/// One of the tree.
pub(super) fn bomb_main(arguments: &[String]) -> ExitCode {
    set_comm(c"sim-bomb");
    ignore_signals();
    let levels: u64 = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(1);
    if levels > 1 {
        bomb(levels - 1);
    }
    sleep(LIFE);
    ExitCode::SUCCESS
}

/// Processes of which each starts a successor and ends, so that whoever lists them is always late.
pub(super) fn chain(count: u64) {
    let until = super::marks::now() + LIFE.as_secs_f64();
    for _ in 0..count {
        drop(child(&["chain", &until.to_string()]).spawn());
    }
}

/// One link.
pub(super) fn chain_main(arguments: &[String]) -> ExitCode {
    set_comm(c"sim-chain");
    ignore_signals();
    sleep(Duration::from_millis(20));
    let until = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(0.0);
    if super::marks::now() < until {
        drop(child(&["chain", &until.to_string()]).spawn());
    }
    ExitCode::SUCCESS
}

/// Signals the guard of this run, whose pid is the second part of the run's id.
pub(super) fn signal_guard(signal: i32) {
    let id = std::env::var("VARCAS_RUN_ID").unwrap_or_default();
    send(id.split('-').nth(1).and_then(|pid| pid.parse().ok()), signal);
}

/// Signals the keeper, which is the parent of the API server.
pub(super) fn signal_keeper(signal: i32) {
    send(Some(nix::unistd::getppid().as_raw()), signal);
}

fn send(pid: Option<i32>, signal: i32) {
    if let (Some(pid), Ok(signal)) = (pid.filter(|pid| *pid > 1), Signal::try_from(signal)) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}
