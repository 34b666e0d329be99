//! The built program run against its own simulator, as the end-to-end tests need it: a folder, a port and a journal of
//! its own for each run, and nothing that outlives the test.
#![expect(dead_code, reason = "every test file uses another part of this")]
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::collections::BTreeSet;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use varcas_guard::event::{Ending, Event, EventKind, Phase, ProcId};
use varcas_guard::supervisor::{journal, os, proc, reap};
use varcas_guard::time::instant_now;

/// Long: the machine may be busy, and a port may have to be waited for. A test that works never waits so long.
const PATIENCE: Duration = Duration::from_secs(300);

/// A simulator that is in no hurry for nothing.
pub(crate) const FAST: &str =
    "load=20ms,step=1ms,ttft=1ms,sampled_compile=10ms,window_events=20,watchdog=200ms";

/// Waits until `poll` gives something.
pub(crate) fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let began = instant_now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that nobody has, outside the range from which the kernel takes ports for outgoing connections: one of those
/// could be taken by any client between two runs.
pub(crate) fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let port = 11_000 + (std::process::id().wrapping_mul(61).wrapping_add(count)) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A folder and a port for one run or several in a row.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    shm_before: BTreeSet<String>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("e2e-").tempdir_in("/tmp").unwrap();
        std::fs::create_dir(dir.path().join("t")).unwrap();
        Self { dir, port: free_port(), shm_before: reap::shm_names().into_iter().collect() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a guard.toml for a short benchmark on a simulator with these knobs. `more` is appended.
    pub(crate) fn config(&self, knobs: &str, more: &str) -> PathBuf {
        let text = format!(
            "[server.env]\nVARCAS_SIM = \"{knobs}\"\n[load]\nrate = 15.0\nwarmup-requests = 2\n[backoff]\n\
             initial = \"10ms\"\nmax = \"20ms\"\n{more}"
        );
        // A new name each time: an earlier run must not read what belongs to a later one.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.path(&format!("guard-{}.toml", COUNT.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The program with a clean environment and a current folder without a guard.toml.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_varcas-guard"));
        command.args(args).current_dir(self.dir.path()).env("TMPDIR", self.path("t")).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("VARCAS_") || name == "VIRTUAL_ENV" {
                command.env_remove(name);
            }
        }
        command
    }

    /// A command that ends by itself soon.
    pub(crate) fn ask(&self, args: &[&str]) -> Answer {
        let output = self.command(args).output().unwrap();
        Answer {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts `run --server sim` into the folder `name` for one second of load; `args` come after the usual ones.
    pub(crate) fn run(&self, name: &str, config: &Path, args: &[&str]) -> Running<'_> {
        let port = self.port.to_string();
        let config = config.to_string_lossy();
        let split = args.iter().position(|arg| *arg == "--").unwrap_or(args.len());
        let mut all: Vec<&str> = vec!["run", "--server", "sim", "--duration", "1s", "--port", &port];
        all.extend(["--config", &config, "--retries", "0"]);
        // A later flag cannot win over an earlier one, so what the test says replaces ours.
        for pair in args[..split].chunks(2) {
            if let Some(at) = all.iter().position(|word| *word == pair[0]) {
                all.drain(at..at + 2);
            }
            all.extend(pair);
        }
        all.push(name);
        if split < args.len() {
            all.extend(&args[split..]);
        } else {
            all.extend(["--", "--max-model-len", "160"]);
        }
        self.start(name, &all)
    }

    /// Starts the program with these arguments, `name` among them as the run folder.
    pub(crate) fn start(&self, name: &str, all: &[&str]) -> Running<'_> {
        self.start_with(name, all, &[])
    }

    /// The same with these environment variables.
    pub(crate) fn start_with(&self, name: &str, all: &[&str], env: &[(String, String)]) -> Running<'_> {
        let text = self.path(&format!("{name}.txt"));
        let file = File::create(&text).unwrap();
        let error = file.try_clone().unwrap();
        let env = env.iter().map(|(name, value)| (name, value));
        let child = self.command(all).envs(env).stdout(file).stderr(error).spawn().unwrap();
        let id = proc::id(i32::try_from(child.id()).unwrap()).unwrap();
        Running { child, id, out: self.path(name), text, place: self }
    }

    /// Runs into `name` to the end, which must be good.
    pub(crate) fn run_well(&self, name: &str, config: &Path) -> Finished {
        let done = self.run(name, config, &[]).wait();
        assert_eq!(done.code, Some(0), "{}", done.told());
        done
    }

    /// No folder of a run's server is left.
    pub(crate) fn assert_no_scratch(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("t")).unwrap().map(|e| e.unwrap().path()).collect();
        assert!(left.is_empty(), "left in TMPDIR: {left:?}");
    }

    /// No shared memory came up while the place was there and stayed. Others may use the machine too, so a name only
    /// counts when it stays.
    pub(crate) fn assert_no_shm(&self) {
        wait_for("shared memory to be gone", || {
            let now: BTreeSet<String> = reap::shm_names().into_iter().collect();
            now.difference(&self.shm_before)
                .all(|name| !name.starts_with("psm_") || is_mapped(name))
                .then_some(())
        });
    }
}

fn is_mapped(name: &str) -> bool {
    proc::pids()
        .into_iter()
        .any(|pid| std::fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(name)))
}

/// What a short command said.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A guard under way. Dropped, it is killed, and its keeper ends the rest.
pub(crate) struct Running<'a> {
    child: Child,
    /// The guard's own process.
    pub(crate) id: ProcId,
    /// The run folder.
    pub(crate) out: PathBuf,
    text: PathBuf,
    place: &'a Place,
}

impl Running<'_> {
    /// What of `pick` comes first in the journal, now or later.
    pub(crate) fn until<T>(&mut self, what: &str, pick: impl Fn(&EventKind) -> Option<T>) -> T {
        let began = instant_now();
        let mut length = None;
        loop {
            let ended = self.child.try_wait().unwrap();
            let now = std::fs::metadata(self.out.join("events.jsonl")).map(|meta| meta.len()).ok();
            if now != length
                && let Some(found) = self.events().iter().find_map(|event| pick(&event.kind))
            {
                return found;
            }
            length = now;
            let told = || std::fs::read_to_string(&self.text).unwrap_or_default();
            assert!(ended.is_none(), "ended ({ended:?}) before {what}: {}", told());
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}: {}", told());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn until_phase(&mut self, wanted: Phase) {
        self.until(&format!("the phase {wanted}"), |kind| match kind {
            EventKind::PhaseEntered { phase, .. } if *phase == wanted => Some(()),
            _ => None,
        });
    }

    /// The benchmark is under way and requests are open.
    pub(crate) fn until_under_load(&mut self) {
        self.until("requests", |kind| match kind {
            EventKind::LoadProgressed(progress) if progress.sent > 0 => Some(()),
            _ => None,
        });
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        events(&self.out)
    }

    /// What it wrote to standard output and error so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.text).unwrap_or_default()
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn signal(&self, signal: i32) {
        os::signal(self.id, signal).unwrap();
    }

    /// Waits for the guard's end.
    pub(crate) fn wait(mut self) -> Finished {
        let status = wait_for("the guard's end", || self.child.try_wait().unwrap());
        Finished {
            code: status.code(),
            signal: status.signal(),
            out: self.out.clone(),
            text: std::fs::read_to_string(&self.text).unwrap_or_default(),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        drop(self.child.kill());
        drop(self.child.wait());
        let began = instant_now();
        while !alive(&self.out).is_empty() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A run that is over.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) out: PathBuf,
    text: String,
}

impl Finished {
    pub(crate) fn report(&self) -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(self.out.join("report.json")).unwrap()).unwrap()
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        events(&self.out)
    }

    /// How the attempts ended, in order.
    pub(crate) fn endings(&self) -> Vec<Ending> {
        let ending = |event: &Event| match &event.kind {
            EventKind::AttemptEnded(ending) => Some(ending.clone()),
            _ => None,
        };
        self.events().iter().filter_map(ending).collect()
    }

    /// What it wrote to standard output and error.
    pub(crate) fn said(&self) -> &str {
        &self.text
    }

    /// What the run said, for the message of a failed test.
    pub(crate) fn told(&self) -> String {
        let log = std::fs::read_to_string(self.out.join("attempt-1/vllm_server.log")).unwrap_or_default();
        format!("exit {:?}, signal {:?}\n{}\nserver log:\n{log}", self.code, self.signal, self.text)
    }

    /// Nothing of the run is alive, not even as a zombie, and the report says so too.
    pub(crate) fn assert_nothing_left(&self, place: &Place) {
        let left = alive(&self.out);
        assert!(left.is_empty(), "left alive: {left:?}\n{}", self.told());
        assert_eq!(self.report()["left_behind"], serde_json::json!([]), "{}", self.told());
        assert!(TcpListener::bind(("127.0.0.1", place.port)).is_ok(), "the port is still held");
        place.assert_no_scratch();
        place.assert_no_shm();
    }

    /// `replay` reaches the same states and the same report.
    pub(crate) fn assert_replays(&self, place: &Place) {
        let replay = place.ask(&["replay", &self.out.to_string_lossy()]);
        assert_eq!(replay.code, Some(0), "{}{}", replay.out, replay.err);
        assert!(replay.out.contains("the same states, decisions and report"), "{}", replay.out);
    }
}

/// The journal so far.
pub(crate) fn events(out: &Path) -> Vec<Event> {
    journal::read(&out.join("events.jsonl")).map(|read| read.events).unwrap_or_default()
}

/// Every process that the journal of a run has named, except the guard.
pub(crate) fn named(events: &[Event]) -> Vec<ProcId> {
    let named = |event: &Event| match &event.kind {
        EventKind::KeeperStarted { proc }
        | EventKind::ServerSpawned { proc, .. }
        | EventKind::ProcessSeen { proc, .. } => Some(*proc),
        _ => None,
    };
    events.iter().filter_map(named).collect()
}

/// Processes of the run that still live: by the mark and its inheritance, and by name in the journal. A zombie counts
/// when its parent is one of ours; one that waits for the machine's first process is nobody's fault.
pub(crate) fn alive(out: &Path) -> Vec<String> {
    let events = events(out);
    let Some(EventKind::RunStarted { run_id, .. }) = events.first().map(|event| &event.kind) else {
        return Vec::new();
    };
    let mut left: Vec<String> = reap::find_marked()
        .into_iter()
        .filter(|process| process.run_id.as_str() == run_id)
        .map(|process| format!("{} ({})", process.comm, process.proc))
        .collect();
    for id in named(&events) {
        let stat = proc::stat(id.pid).filter(|stat| stat.id == id && !(stat.is_dead() && stat.ppid == 1));
        left.extend(stat.map(|stat| format!("{} ({id})", stat.comm)));
    }
    left
}
