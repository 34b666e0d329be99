//! A keeper with its folders, as the tests of the keeper need it.
#![expect(dead_code, reason = "every test file uses another part of this")]
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use varcas_guard::event::{EventKind, ExitHow, Leftover, ProcId};
use varcas_guard::supervisor::keeper::{Keeper, KeeperSpec, Order, Target};
use varcas_guard::supervisor::reap::{make_scratch, shm_names};
use varcas_guard::supervisor::run_id::MARK;
use varcas_guard::supervisor::{os, proc};
use varcas_guard::time::instant_now;

/// Long: the machine may be busy. A test that works never waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn guard_exe() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_varcas-guard"))
}

/// The interpreter itself and not a wrapper script around it, whose processes would confuse the tests.
pub(crate) fn python() -> &'static str {
    static PYTHON: OnceLock<String> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let output =
            std::process::Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output();
        String::from_utf8(output.expect("python3 is needed by these tests").stdout).unwrap().trim().to_owned()
    })
}

/// Waits until `poll` gives something. The rest of the test goes on meanwhile: orders still have to be written.
pub(crate) async fn wait_for<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let began = instant_now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The pid that a script wrote into a file, with its start time, once it is there.
pub(crate) async fn pid_in(file: &Path) -> ProcId {
    let read = || {
        let text = std::fs::read_to_string(file).ok()?;
        proc::id(text.strip_suffix('\n')?.parse().ok()?)
    };
    wait_for(&format!("a pid in {}", file.display()), read).await
}

pub(crate) async fn text_in(file: &Path) -> String {
    let read = || std::fs::read_to_string(file).ok().filter(|text| text.ends_with('\n'));
    wait_for(&file.display().to_string(), read).await
}

/// Folders of an attempt, and the spec of its keeper.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) spec: KeeperSpec,
}

impl Place {
    pub(crate) fn new() -> Self {
        // Two runs of one guard must differ, and all tests of a file are one process: number the date.
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let own = proc::own_id();
        let dir = tempfile::tempdir().unwrap();
        let spec = KeeperSpec {
            run_id: format!("20260101_{count:06}-{}-{}", own.pid, own.start),
            attempt: 1,
            journal: dir.path().join("events.jsonl"),
            scratch: make_scratch(dir.path()).unwrap(),
            save_to: dir.path().join("saved"),
            shm_before: shm_names(),
            secrets: Vec::new(),
            umask: None,
        };
        Self { dir, spec }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What starts a server: marked, in this place.
    pub(crate) fn spawn<S: AsRef<str>>(&self, argv: &[S]) -> Order {
        Order::Spawn {
            argv: argv.iter().map(|word| word.as_ref().to_owned()).collect(),
            env: vec![
                (MARK.to_owned(), self.spec.run_id.clone()),
                ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
                ("TMPDIR".to_owned(), self.spec.scratch.display().to_string()),
            ],
            cwd: self.dir.path().to_owned(),
            log: self.file("server.log"),
        }
    }
}

/// A keeper under test, seen from the guard.
pub(crate) struct Rig {
    pub(crate) place: Place,
    pub(crate) keeper: Keeper,
    facts: UnboundedReceiver<EventKind>,
    /// Everything reported so far, in order.
    pub(crate) seen: Vec<EventKind>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let place = Place::new();
        let (tell, facts) = unbounded_channel();
        let keeper = Keeper::start(guard_exe(), &place.spec, tell).unwrap();
        Self { place, keeper, facts, seen: Vec::new() }
    }

    /// A keeper with a server that is a Python script. Its helper `note` writes a pid or text for the test to read.
    pub(crate) async fn python(script: &str) -> (Self, ProcId) {
        let mut rig = Self::new();
        rig.keeper.order(&rig.place.spawn(&[python(), "-c", &with_helpers(script)]));
        let main = rig.spawned().await;
        (rig, main)
    }

    pub(crate) async fn shell(script: &str) -> (Self, ProcId) {
        let mut rig = Self::new();
        rig.keeper.order(&rig.place.spawn(&["/bin/sh", "-c", script]));
        let main = rig.spawned().await;
        (rig, main)
    }

    async fn spawned(&mut self) -> ProcId {
        self.until("the server's start", |kind| match kind {
            EventKind::ServerSpawned { proc, .. } => Some(*proc),
            EventKind::SpawnFailed { error } => panic!("{error}"),
            _ => None,
        })
        .await
    }

    /// The first report, old or new, of which `pick` makes something.
    pub(crate) async fn until<T>(&mut self, what: &str, pick: impl Fn(&EventKind) -> Option<T>) -> T {
        if let Some(found) = self.seen.iter().find_map(&pick) {
            return found;
        }
        self.until_new(what, pick).await
    }

    /// The same among those to come.
    pub(crate) async fn until_new<T>(&mut self, what: &str, pick: impl Fn(&EventKind) -> Option<T>) -> T {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.facts.recv()).await;
            let Ok(Some(kind)) = next else {
                panic!("waited in vain for {what} ({next:?}); seen: {:#?}", self.seen);
            };
            let picked = pick(&kind);
            self.seen.push(kind);
            if let Some(found) = picked {
                return found;
            }
        }
    }

    pub(crate) async fn exit_of(&mut self, proc: ProcId) -> ExitHow {
        self.until("an exit", |kind| exit(kind).filter(|(who, _)| *who == proc).map(|(_, how)| how)).await
    }

    pub(crate) async fn seen_as(&mut self, name: &str) -> ProcId {
        self.until(name, |kind| match kind {
            EventKind::ProcessSeen { proc, comm, .. } if comm == name => Some(*proc),
            _ => None,
        })
        .await
    }

    pub(crate) fn signal(&self, signal: i32, target: Target) {
        self.keeper.order(&Order::Signal { signal, target, why: "test".to_owned() });
    }

    pub(crate) async fn kill_all(&mut self) -> Vec<Leftover> {
        self.keeper.order(&Order::KillAll { why: "test".to_owned() });
        self.until_new("the end of the tree", |kind| match kind {
            EventKind::TreeGone { unkillable } => Some(unkillable.clone()),
            _ => None,
        })
        .await
    }

    /// Everybody a SIGKILL was announced for, in order.
    pub(crate) fn killed(&self) -> Vec<ProcId> {
        let targets = self.seen.iter().filter_map(|kind| match kind {
            EventKind::SignalSent { signal: os::SIGKILL, targets, .. } => Some(targets.clone()),
            _ => None,
        });
        targets.flatten().collect()
    }

    pub(crate) fn position(&self, wanted: impl Fn(&EventKind) -> bool) -> Option<usize> {
        self.seen.iter().position(wanted)
    }

    /// The keeper goes, and says that nothing is left.
    pub(crate) async fn quit(self) -> Place {
        let pid = self.keeper.proc();
        assert_eq!(self.keeper.quit().await, ExitHow::Code { code: 0 });
        assert!(proc::stat(pid.pid).is_none_or(|stat| stat.id != pid), "the keeper is not reaped");
        self.place
    }
}

pub(crate) fn exit(kind: &EventKind) -> Option<(ProcId, ExitHow)> {
    match kind {
        EventKind::ProcessExited { proc, how, .. } => Some((*proc, *how)),
        _ => None,
    }
}

/// `proc` is not there any more, not even as a zombie.
pub(crate) fn assert_reaped(id: ProcId) {
    assert!(
        proc::stat(id.pid).is_none_or(|stat| stat.id != id),
        "{id} is still there: {:?}",
        proc::stat(id.pid)
    );
}

/// What scripts of servers may use: `note(name, what)` for the test, `child(f)`, `forever()`.
pub(crate) fn with_helpers(script: &str) -> String {
    format!(
        r#"
import ctypes, os, signal, subprocess, sys, time
def note(name, what):
    with open(name + ".part", "w") as f: f.write(str(what) + "\n")
    os.rename(name + ".part", name)
def forever():
    # Not quite for ever, should a test fail to clean up.
    end = time.monotonic() + 180
    while time.monotonic() < end: time.sleep(1)
    os._exit(99)
def child(f):
    pid = os.fork()
    if pid == 0:
        try: f()
        finally: os._exit(0)
    return pid
def title(name):
    with open("/proc/self/comm", "w") as f: f.write(name)
{script}
"#
    )
}

pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str().map(str::to_owned)).collect();
    names.sort();
    names
}

/// Without the heir that every keeper has.
pub(crate) fn children_of(pid: i32) -> Vec<i32> {
    let child = |stat: proc::Stat| stat.ppid == pid && stat.comm != "varcas-heir";
    proc::pids().into_iter().filter(|other| proc::stat(*other).is_some_and(child)).collect()
}

pub(crate) fn status_field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

pub(crate) fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.trim().parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (major, minor)
}
