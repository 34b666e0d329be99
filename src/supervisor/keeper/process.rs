//! The keeper's side: one loop around `poll`, no threads, no runtime, so that little can go wrong in the process that
//! must outlive everything else.

use crate::event::{EventKind, ProcId};
use crate::supervisor::keeper::heir::Heir;
use crate::supervisor::keeper::kill::{self, Killed};
use crate::supervisor::keeper::tree::{Member, Stance, Tree};
use crate::supervisor::keeper::wire::{self, KeeperSpec, Order, Target};
use crate::supervisor::os::{self, Interest};
use crate::supervisor::{proc, reap};
use crate::time::instant_now;
use nix::sys::signalfd::SignalFd;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Between two looks for new processes.
const SCAN_EVERY: Duration = Duration::from_millis(250);
/// Every so many looks, strangers are examined again.
const THOROUGH_EVERY: u32 = 20;
/// Every so many looks, the shared memory of the tree is noted. Seldom: the kernel holds the process's address space
/// while it prints the map, which a measured server might feel.
const NOTE_SHM_EVERY: u32 = 120;

/// Entrance of `varcas-guard __keeper`; standard input is the socket to the guard.
pub fn main(_arguments: &[String]) -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Nobody listens on the socket yet or any more; the guard's terminal is the last place left.
            let _ = writeln!(io::stderr(), "varcas-guard keeper: {error}");
            ExitCode::FAILURE
        }
    }
}

/// True if nothing of ours is left.
fn run() -> io::Result<bool> {
    let guard = os::parent_pid();
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    if socket.local_addr().is_err() {
        return Err(io::Error::other(
            "this is started by the guard, on a socket, and is no command for people",
        ));
    }
    os::reset_ignored_signals()?;
    let deaths = os::block_signals()?;
    os::become_session_leader()?;
    os::become_subreaper()?;
    os::set_own_name(c"varcas-keeper")?;
    os::stdin_to_null()?;
    os::close_on_exec_above_stdio()?;
    socket.set_nonblocking(true)?;
    let mut line = Line { socket, inbox: Vec::new(), outbox: VecDeque::new(), closed: false };
    let Some(spec) = line.receive_spec()? else {
        // The guard died before it could ask for anything: there is nothing to clean up after.
        return Ok(true);
    };
    // Without the lock somebody who cleans up could take the folder for abandoned once the guard is dead; the spec's
    // tests use folders that are.
    let _hold = os::share_lock_of_folder(&spec.scratch);
    let heir = Heir::leave(&spec);
    let keep_out: Vec<i32> = heir.as_ref().ok().map(Heir::pid).into_iter().chain([guard]).collect();
    let tree = Tree::new(&spec.run_id, Stance::Keeper, &keep_out);
    let mut keeper = Keeper { spec, line, deaths, tree, next_scan: instant_now(), scans: 0 };
    if let Err(error) = &heir {
        keeper.trouble("leave an heir", error);
    }
    let gone = keeper.serve();
    if let Ok(heir) = heir {
        heir.dismiss();
    }
    Ok(gone)
}

/// The socket with its buffers. Sending never blocks: a guard that is stopped must not stop the keeper.
struct Line {
    socket: UnixStream,
    inbox: Vec<u8>,
    outbox: VecDeque<u8>,
    closed: bool,
}

impl Line {
    fn receive_spec(&mut self) -> io::Result<Option<KeeperSpec>> {
        while !self.closed {
            os::poll(&[Interest { fd: self.socket.as_fd(), write: false }], Duration::from_secs(60))?;
            self.fill();
            // Only the first line: orders may already follow it.
            if let Some(end) = memchr::memchr(b'\n', &self.inbox) {
                let line: Vec<u8> = self.inbox.drain(..=end).collect();
                let spec = serde_json::from_slice(&line);
                return spec
                    .map(Some)
                    .map_err(|error| io::Error::other(format!("cannot read the spec: {error}")));
            }
        }
        Ok(None)
    }

    fn fill(&mut self) {
        let mut chunk = [0; 16 * 1024];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => self.closed = true,
                Ok(n) => {
                    self.inbox.extend_from_slice(&chunk[..n]);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.closed = true,
            }
            return;
        }
    }

    fn say(&mut self, kind: &EventKind) {
        // An event always encodes; if ever not, silence about it is better than the keeper's death.
        if let Ok(bytes) = wire::encode(kind) {
            self.outbox.extend(bytes);
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            let (front, _) = self.outbox.as_slices();
            match self.socket.write(front) {
                Ok(sent) => drop(self.outbox.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // The reading side will say that the guard is gone; nobody wants these any more.
                Err(_) => self.outbox.clear(),
            }
        }
    }
}

struct Keeper {
    spec: KeeperSpec,
    line: Line,
    deaths: SignalFd,
    tree: Tree,
    next_scan: Instant,
    scans: u32,
}

impl Keeper {
    fn serve(mut self) -> bool {
        loop {
            for order in wire::take_lines(&mut self.line.inbox) {
                match serde_json::from_slice(&order) {
                    Ok(Order::Quit) => return self.quit(),
                    Ok(order) => self.obey(order),
                    Err(error) => self.trouble("read an order of the guard", &error),
                }
            }
            if self.line.closed {
                return self.guard_died();
            }
            self.wait();
            os::drain(&self.deaths);
            self.line.fill();
            self.line.flush();
            self.tree.bury(&mut |kind| self.line.say(&kind));
            if instant_now() >= self.next_scan {
                self.scan();
            }
        }
    }

    fn wait(&self) {
        let timeout = self.next_scan.saturating_duration_since(instant_now());
        let mut interests = self.tree.interests();
        interests.push(Interest { fd: self.deaths.as_fd(), write: false });
        interests.push(Interest { fd: self.line.socket.as_fd(), write: !self.line.outbox.is_empty() });
        if os::poll(&interests, timeout).is_err() {
            // Only memory can be short here. Scans go on finding everything; just do not spin.
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn scan(&mut self) {
        self.scans = self.scans.wrapping_add(1);
        self.tree.scan(self.scans.is_multiple_of(THOROUGH_EVERY), &mut |kind| self.line.say(&kind));
        if self.scans.is_multiple_of(NOTE_SHM_EVERY) {
            self.note_shm();
        }
        self.next_scan = instant_now() + SCAN_EVERY;
    }

    fn note_shm(&mut self) {
        let pids = self.tree.members().map(|member| member.stat.id.pid);
        // The scratch folder may be full or gone; then the cleaning is more careful, no more.
        drop(reap::note_shm(&self.spec.scratch, pids));
    }

    fn trouble(&mut self, what: &str, error: &dyn std::fmt::Display) {
        self.line.say(&EventKind::Trouble { what: what.to_owned(), error: error.to_string() });
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Spawn { argv, env, cwd, log } => self.spawn(argv, env, &cwd, &log),
            Order::Signal { signal, target, why } => self.signal(signal, target, why),
            Order::KillAll { why } => {
                let Killed { leftovers, .. } = self.kill_all(&why);
                self.line.say(&EventKind::TreeGone { unkillable: leftovers });
            }
            // Handled where the loop can end.
            Order::Quit => {}
        }
    }

    fn spawn(&mut self, argv: Vec<String>, env: Vec<(String, String)>, cwd: &Path, log: &Path) {
        if self.tree.main().is_some() {
            let error = "the server was started before; a keeper starts one".to_owned();
            self.line.say(&EventKind::SpawnFailed { error });
            return;
        }
        match start(&argv, env, cwd, log, self.spec.umask) {
            Ok(stat) => {
                let proc = stat.id;
                self.tree.set_main(stat);
                self.line.say(&EventKind::ServerSpawned { proc, argv });
            }
            Err(error) => self.line.say(&EventKind::SpawnFailed { error }),
        }
    }

    fn signal(&mut self, signal: i32, target: Target, why: String) {
        self.tree.scan(true, &mut |kind| self.line.say(&kind));
        let main = self.tree.main();
        let wanted = |member: &&Member| match target {
            Target::Main => Some(member.stat.id) == main,
            Target::Group => Some(member.stat.pgrp) == main.map(|main| main.pid),
            Target::Essential => member.stat.comm.starts_with("VLLM::"),
        };
        let members: Vec<&Member> = self.tree.members().filter(wanted).collect();
        if members.is_empty() {
            let what = format!("send {} to {target:?}", crate::event::signal_name(signal));
            self.trouble(&what, &"no such process is left");
            return;
        }
        let targets: Vec<ProcId> = members.iter().map(|member| member.stat.id).collect();
        // Said first: if the signal takes us or the machine down, the journal knows who sent it.
        self.line.say(&EventKind::SignalSent { signal, targets, why });
        for member in members {
            if let Some(trouble) = kill::send(member, signal) {
                self.line.say(&trouble);
            }
        }
    }

    fn kill_all(&mut self, why: &str) -> Killed {
        self.note_shm();
        kill::kill_all(&mut self.tree, why, &mut |kind| self.line.say(&kind))
    }

    fn quit(mut self) -> bool {
        let killed = self.kill_all("the keeper was told to quit");
        // The guard waits for us, so it reads; still, a stopped guard must not hold us for ever.
        let patience = instant_now() + Duration::from_secs(2);
        while !self.line.outbox.is_empty() && instant_now() < patience {
            self.wait();
            self.line.flush();
        }
        self.line.fill();
        if self.line.closed {
            // It died after it had said so, and has not cleaned up.
            return self.guard_died();
        }
        killed.leftovers.is_empty()
    }

    fn guard_died(mut self) -> bool {
        let Killed { killed, leftovers } = self.kill_all("the guard died");
        let closed = reap::close(&self.spec, killed, leftovers);
        for problem in &closed.problems {
            let _ = writeln!(io::stderr(), "varcas-guard keeper: {problem}");
        }
        closed.leftovers.is_empty()
    }
}

/// Starts the server. It inherits no ignored signal: those were reset when the keeper began.
fn start(
    argv: &[String],
    env: Vec<(String, String)>,
    cwd: &Path,
    log: &Path,
    umask: Option<u32>,
) -> Result<proc::Stat, String> {
    let (program, arguments) = argv.split_first().ok_or("the command line of the server is empty")?;
    let open = || File::options().append(true).create(true).mode(0o600).open(log);
    let log_error = |error: io::Error| format!("cannot open the server's log {}: {error}", log.display());
    let out = open().map_err(log_error)?;
    let err = out.try_clone().map_err(log_error)?;
    if !cwd.is_dir() {
        // Or the system's "no such file" would be taken for one about the program.
        return Err(format!("cannot start `{program}` in {}: there is no such folder", cwd.display()));
    }
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(env)
        .current_dir(cwd)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .process_group(0);
    let child = os::start_unblocked(&mut command, umask)
        .map_err(|error| format!("cannot start `{program}`: {error}"))?;
    let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    // It may be dead already, but it is not reaped, so it is still there to be read.
    proc::stat(pid).ok_or_else(|| format!("cannot read /proc/{pid}/stat of `{program}` just started"))
}
