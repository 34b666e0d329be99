//! The processes of the simulated server: how they start each other, what they inherit, and how they come to harm.

use super::args::Args;
use super::fault::{Crash, Faults, Phase, What, Who};
use super::{harm, log, marks};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::ffi::CStr;
use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;
use tokio::net::TcpSocket;

/// What a child needs to know beyond its environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Boot {
    /// The server's arguments.
    pub(super) args: Args,
    /// Where the API server listens for the engine.
    pub(super) socket: PathBuf,
    /// The write end of the resource tracker's pipe, inherited by every process that may own shared memory.
    pub(super) tracker: i32,
    /// Of a worker.
    pub(super) rank: u32,
}

const BOOT: &str = "VARCAS_SIM_BOOT";

impl Boot {
    /// From the environment of this process.
    pub(super) fn read() -> Option<Self> {
        serde_json::from_str(&std::env::var(BOOT).ok()?).ok()
    }
}

/// This program again, in another role. `title` is what `ps` shows first.
pub(super) fn role(title: &str, arguments: &[&str]) -> Command {
    // The link stays valid when the file was replaced by a new build meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0(title).arg("__sim").args(arguments);
    command
}

/// A child with its boot record.
pub(super) fn spawn(title: &str, role_name: &str, boot: &Boot, stdin: Stdio) -> std::io::Result<Child> {
    role(title, &[role_name]).env(BOOT, serde_json::to_string(boot)?).stdin(stdin).spawn()
}

/// The kernel's name of this process; it keeps 15 bytes.
pub(super) fn set_comm(name: &CStr) {
    // Only cosmetic: a refusal changes nothing.
    let _ = nix::sys::prctl::set_name(name);
}

/// Starts the process that removes shared memory when everybody else is gone, as Python's multiprocessing does.
pub(super) fn spawn_tracker() -> std::io::Result<(Child, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let child = role("python3", &["-c", "from multiprocessing.resource_tracker import main;main(3)"])
        .stdin(Stdio::from(read))
        .spawn()?;
    // Every later child inherits the write end and so keeps the tracker alive.
    fcntl(&write, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok((child, write))
}

/// A resource for the tracker: `REGISTER:NAME:KIND` or `UNREGISTER:NAME:KIND`.
pub(super) fn tell_tracker(tracker: i32, verb: &str, name: &str, kind: &str) {
    let pipe = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{tracker}"));
    let _ = pipe.and_then(|mut pipe| pipe.write_all(format!("{verb}:{name}:{kind}\n").as_bytes()));
}

/// The tracker's whole life.
pub(super) fn tracker_main() -> ExitCode {
    set_comm(c"python3");
    ignore_signals();
    let mut known = std::collections::BTreeSet::new();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let mut parts = line.splitn(3, ':');
        let (verb, name, kind) = (parts.next(), parts.next(), parts.next());
        if let (Some(verb), Some(name), Some(kind)) = (verb, name, kind) {
            let entry = (kind.to_owned(), name.to_owned());
            if verb == "REGISTER" {
                known.insert(entry)
            } else {
                known.remove(&entry)
            };
        }
    }
    for kind in ["semaphore", "shared_memory"] {
        let names: Vec<&String> =
            known.iter().filter(|(known, _)| known == kind).map(|(_, name)| name).collect();
        if names.is_empty() {
            continue;
        }
        let text = format!(
            "/usr/lib/python3.12/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear \
             to be {} leaked {kind} objects to clean up at shutdown\n  warnings.warn('resource_tracker: There appear \
             to be %d '\n",
            names.len()
        );
        let _ = std::io::stderr().write_all(text.as_bytes());
        for name in names {
            let _ = std::fs::remove_file(PathBuf::from("/dev/shm").join(name.trim_start_matches('/')));
        }
    }
    ExitCode::SUCCESS
}

pub(super) fn ignore_signals() {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        // A handler that does nothing: as good as ignoring for a process that restarts its reads.
        let _ = signal_hook::flag::register(signal, std::sync::Arc::default());
    }
}

/// The end of a process that something hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Without a word.
    Exit(u8),
    /// With a Python traceback.
    Crash(Crash),
}

/// Lets happen what is due. What ends the process in order comes back as an error, for the caller to unwind.
pub(super) fn strike(faults: &Faults, who: Who, phase: Phase, n: u64) -> Result<(), End> {
    for fault in faults.due(who, phase, n) {
        marks::struck(fault);
        match &fault.what {
            What::Exit(code) => return Err(End::Exit(*code)),
            What::Crash(crash) => return Err(End::Crash(*crash)),
            What::Signal(signal) => kill_self(*signal),
            What::Hang => hang(),
            What::Spin => harm::spin(),
            What::Asleep => harm::asleep(),
            What::Slow(time) => sleep(*time),
            What::Escape(life) => escape(*life),
            What::Zombies(count) => harm::zombies(*count),
            What::Bomb(levels) => harm::bomb(*levels),
            What::Chain(count) => harm::chain(*count),
            What::Leak(mib) => harm::leak(*mib),
            What::Say(path) => log::say(path),
            What::Flood(mib) => {
                let mib = *mib;
                std::thread::spawn(move || log::flood(mib));
            }
            What::Silence => log::silence(),
            What::TruncateLog => told(log::truncate()),
            What::RotateLog => told(log::rotate()),
            What::Health(lie) => harm::lie(|lies| lies.health = *lie),
            What::Metrics(lie) => harm::lie(|lies| lies.metrics = *lie),
            What::Guard(signal) => harm::signal_guard(*signal),
            What::Keeper(signal) => harm::signal_keeper(*signal),
            What::IgnoreTerm
            | What::StreamError(_)
            | What::Cut(_)
            | What::Stall(_)
            | What::NeverEnds
            | What::Half
            | What::Fail
            | What::Disable
            | What::Grow(_)
            | What::Full
            | What::Steal(_) => {}
        }
    }
    Ok(())
}

/// A fault that did not work would make a drill say that it was survived.
fn told(result: std::io::Result<()>) {
    if let Err(error) = result {
        eprintln!("a fault did not work: {error}");
    }
}

/// A process hit by a signal of its own.
pub(super) fn kill_self(signal: i32) {
    if let Ok(signal) = Signal::try_from(signal) {
        signal_self(signal);
    }
}

const DEADLY: [Signal; 8] = [
    Signal::SIGKILL,
    Signal::SIGSEGV,
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGSYS,
];

/// Sends this process a signal until it is gone; a stopped process goes on when it is continued.
pub(super) fn signal_self(signal: Signal) {
    // No core file: the wait status still says which signal it was.
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    loop {
        // Rust's own SIGSEGV handler swallows the first one and restores the default for the second.
        let _ = kill(Pid::this(), signal);
        // Only these leave the process as it was, or are caught as a request to stop.
        if !DEADLY.contains(&signal) {
            return;
        }
        sleep(Duration::from_millis(10));
    }
}

/// The main thread never comes back.
pub(super) fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Simulated work.
pub(super) fn sleep(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

fn escape(life: Duration) {
    let spawned = role("sim-escapee", &["escape", "leave", &life.as_secs_f64().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    // The middle process ends at once; waiting for it makes the grandchild an orphan before we go on.
    let _ = spawned.and_then(|mut child| child.wait());
}

/// First call: leave the session and start the second. Second: stay, deaf to polite signals, for a bounded time.
pub(super) fn escape_main(arguments: &[String]) -> ExitCode {
    let life = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(1.0);
    close_tracker();
    if arguments.first().map(String::as_str) == Some("leave") {
        let _ = nix::unistd::setsid();
        let spawned = role("sim-escapee", &["escape", "stay", &format!("{life}")]).spawn();
        return if spawned.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    set_comm(c"sim-escapee");
    ignore_signals();
    let end =
        crate::time::instant_now() + Duration::try_from_secs_f64(life).unwrap_or(Duration::from_secs(1));
    while let Some(left) = end.checked_duration_since(crate::time::instant_now()) {
        sleep(left.min(Duration::from_secs(1)));
    }
    ExitCode::SUCCESS
}

/// Python closes what it did not pass on; a helper that kept the pipe would keep the tracker alive.
fn close_tracker() {
    if let Some(boot) = Boot::read() {
        let _ = nix::unistd::close(boot.tracker);
    }
}

/// A bound socket that does not listen yet, with the options of vLLM: two servers on one port do not disturb each other.
pub(super) fn bind_port(host: Ipv4Addr, port: u16, share: bool) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    if share {
        socket.set_reuseport(true)?;
    }
    socket.bind(SocketAddr::from((host, port)))?;
    Ok(socket)
}

/// Lets a stranger take the port. The child must be kept: the stranger goes when its standard input ends.
pub(super) fn steal_port(host: Ipv4Addr, port: u16, share: bool, linger: Duration) -> std::io::Result<Child> {
    let share = if share { "share" } else { "hold" };
    let (host, port, linger) = (host.to_string(), port.to_string(), linger.as_secs_f64().to_string());
    let mut child = role("stranger", &["stranger", "leave", &host, &port, share, &linger])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    // One byte when it listens.
    if let Some(out) = &mut child.stdout {
        let _ = out.read(&mut [0]);
    }
    child.wait_without_closing()?;
    Ok(child)
}

trait WaitWithoutClosing {
    fn wait_without_closing(&mut self) -> std::io::Result<()>;
}

impl WaitWithoutClosing for Child {
    /// `Child::wait` would close the pipe that keeps the stranger alive.
    fn wait_without_closing(&mut self) -> std::io::Result<()> {
        let stdin = self.stdin.take();
        self.wait()?;
        self.stdin = stdin;
        Ok(())
    }
}

fn listen_here(host: Ipv4Addr, port: u16, share: bool) -> std::io::Result<std::net::TcpListener> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    let listener = bind_port(host, port, share)?.listen(64)?.into_std()?;
    listener.set_nonblocking(false)?;
    Ok(listener)
}

/// The stranger: in a session of its own, without the run's mark, answering everything with a page that is not vLLM's.
pub(super) fn stranger_main(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [stage, host, port, share, linger] = words[..] else { return ExitCode::FAILURE };
    if stage == "leave" {
        let _ = nix::unistd::setsid();
        let spawned = role("stranger", &["stranger", "stay", host, port, share, linger]).spawn();
        return if spawned.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    set_comm(c"stranger");
    let (Ok(host), Ok(port)) = (host.parse(), port.parse()) else { return ExitCode::FAILURE };
    let Ok(listener) = listen_here(host, port, share == "share") else { return ExitCode::FAILURE };
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
            let _ = stream.read(&mut [0; 4096]);
            let page = "HTTP/1.1 200 OK\r\nserver: stranger\r\ncontent-length: 9\r\nconnection: close\r\n\r\nnot vllm\n";
            let _ = stream.write_all(page.as_bytes());
        }
    });
    let _ = std::io::stdout().write_all(b"\n").and_then(|()| std::io::stdout().flush());
    let _ = std::io::stdin().read(&mut [0]);
    sleep(linger.parse().ok().and_then(|text| Duration::try_from_secs_f64(text).ok()).unwrap_or_default());
    ExitCode::SUCCESS
}
