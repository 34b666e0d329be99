//! One scenario from its folder to its verdict: a guard of its own, a port of its own, and a look at what is left.

use super::config::{self, Users};
use super::judge::{self, Seen, Times};
use super::leaks;
use super::port::{Port, Ports};
use super::scenario::{Before, Fault, Scenario};
use super::stage::{self, Stage};
use crate::cli::replay;
use crate::error::{Context, Failure};
use crate::event::{Event, EventKind, ProcId};
use crate::health::gpu_script::GpuScript;
use crate::health::log_rules::Rules;
use crate::supervisor::layout::RunDir;
use crate::supervisor::{journal, os, proc};
use crate::time::instant_now;
use crate::workload::sim::{Mark, Marked};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Longer than any scenario takes, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// A guard that was told to stop, twice, is killed after this.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What all scenarios of a drill share.
#[derive(Debug)]
pub(super) struct Shared {
    /// This program.
    pub(super) exe: PathBuf,
    /// The scratch folder.
    pub(super) base: PathBuf,
    /// What of the user's guard.toml holds.
    pub(super) users: Users,
    /// For the example lines.
    pub(super) rules: Rules,
    /// Gives out ports.
    pub(super) ports: RefCell<Ports>,
    /// The guards under way.
    pub(super) guards: RefCell<BTreeSet<i32>>,
    /// Becomes true when the drill is to end.
    pub(super) interrupted: watch::Receiver<bool>,
}

/// What came of one run of a scenario.
#[derive(Debug, Clone)]
pub(super) struct Played {
    /// Its place in the list.
    pub(super) index: usize,
    /// Where it was not as expected.
    pub(super) wrong: Vec<String>,
    /// What was left behind.
    pub(super) leaks: Vec<String>,
    /// What it came to.
    pub(super) seen: Seen,
    /// How long things took.
    pub(super) times: Times,
    /// A healthy server was killed.
    pub(super) false_kill: bool,
    /// From the guard's start to its end.
    pub(super) took: Duration,
    /// Where to look when something was wrong.
    pub(super) folder: PathBuf,
    /// Broken off because the drill is to end.
    pub(super) interrupted: bool,
}

impl Played {
    /// As expected, and nothing left behind.
    pub(super) fn is_good(&self) -> bool {
        self.wrong.is_empty() && self.leaks.is_empty()
    }
}

/// The folder of one run.
struct Place {
    root: PathBuf,
    temporary: PathBuf,
    run: PathBuf,
    config: PathBuf,
    marks: PathBuf,
    stage: PathBuf,
}

impl Place {
    fn make(base: &Path, name: &str, number: usize) -> Result<Self, Failure> {
        // Short: the sockets of the server lie below.
        let temporary = base.join(number.to_string());
        let root = base.join(format!("{name}.{number}"));
        for folder in [&root, &temporary] {
            std::fs::create_dir(folder).context(format_args!("make {}", folder.display()))?;
        }
        Ok(Self {
            temporary,
            run: root.join("run"),
            config: root.join("guard.toml"),
            marks: root.join("marks.jsonl"),
            stage: root.join("stage.json"),
            root,
        })
    }
}

/// Plays it. `number` is unique within the drill. An error means that it could not be played at all.
pub(super) async fn play(
    shared: &Shared,
    scenario: &Scenario,
    index: usize,
    number: usize,
) -> Result<Played, Failure> {
    let place = Place::make(&shared.base, scenario.name(), number)?;
    let port = shared.ports.borrow_mut().take().context("find a free port")?;
    prepare(shared, scenario, &place, port.number)?;
    let before = before(scenario, &place, &port).await.context("set the scene")?;
    let began = instant_now();
    let (status, late) = guard(shared, scenario, &place).await?;
    let took = began.elapsed();
    before.end().await;

    let dir = RunDir::new(&place.run);
    // A run that was refused before it had a folder has no journal.
    let events = journal::read(&dir.journal()).map(|read| read.events).unwrap_or_default();
    let marks = marks(&place.marks);
    let seen = judge::seen(&events, status.code(), status.signal());
    let mut wrong = judge::differences(&scenario.expect, &seen);
    wrong.extend(late.then(|| format!("it was not over after {} s", LIMIT.as_secs())));
    wrong.extend(unstruck(scenario, &marks, &seen));
    wrong.extend(unlike_its_replay(&events));
    let made: Vec<PathBuf> = marks.iter().filter_map(|mark| made(&mark.what)).collect();
    let ended = status.code().is_some();
    let leaks = left_behind(shared, &place, &port, run_id(&events), made, ended).await;
    let interrupted = *shared.interrupted.borrow();
    let played = Played {
        index,
        false_kill: judge::is_false_kill(&scenario.expect, &seen),
        times: judge::times(&events, &marks),
        wrong,
        leaks,
        seen,
        took,
        folder: place.root.clone(),
        interrupted,
    };
    drop(std::fs::remove_dir_all(&place.temporary));
    if played.is_good() || interrupted {
        drop(std::fs::remove_dir_all(&place.root));
    }
    Ok(played)
}

fn made(what: &Marked) -> Option<PathBuf> {
    match what {
        Marked::Made(path) => Some(path.clone()),
        Marked::Fault { .. } => None,
    }
}

/// Writes guard.toml and what else the guard and the simulator read.
fn prepare(shared: &Shared, scenario: &Scenario, place: &Place, port: u16) -> Result<(), Failure> {
    let mut texts: Vec<(PathBuf, String)> = Vec::new();
    let simulator = scenario.simulator(|index, fault| {
        let path = place.root.join(format!("say-{index}.txt"));
        texts.push((path.clone(), line(shared, fault)));
        path.to_string_lossy().into_owned()
    });
    let config = config::text(&shared.users, scenario, &simulator, &place.marks, port, &place.run);
    texts.push((place.config.clone(), config));
    let gpu = (!scenario.gpu.is_empty())
        .then(|| GpuScript { steps: scenario.gpu.clone(), marks: place.marks.clone() });
    let clock = scenario.clock.iter().map(|jump| jump.jump()).collect();
    let stage = Stage { drill: proc::own_id(), gpu, clock };
    texts.push((place.stage.clone(), serde_json::to_string(&stage).context("write down the stage")?));
    for (path, text) in texts {
        std::fs::write(&path, text).context(format_args!("write {}", path.display()))?;
    }
    Ok(())
}

/// What a `say` fault says.
fn line(shared: &Shared, fault: &Fault) -> String {
    let example = fault.rule.as_ref().and_then(|id| {
        let rule = shared.rules.rules().iter().find(|rule| rule.id == *id)?;
        Some(rule.example.clone())
    });
    format!("{}\n", example.or_else(|| fault.text.clone()).unwrap_or_default())
}

/// What is there before the guard begins, as long as it is kept.
enum Scene {
    Listening(#[expect(dead_code, reason = "held for its port")] TcpListener),
    Bound(#[expect(dead_code, reason = "held for its port")] TcpSocket),
    Joins(JoinHandle<()>),
    Nothing,
}

impl Scene {
    async fn end(self) {
        if let Self::Joins(task) = self {
            task.abort();
            // Its socket is closed when it is over, and not before. That it was aborted is what it says.
            drop(task.await);
        }
    }
}

/// Waits for the server to be there, listens beside it, answers what vLLM never would, and goes when the guard has noticed.
async fn join(marks: PathBuf, journal: PathBuf, port: u16) {
    while self::marks(&marks).is_empty() {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let Ok(listener) = bound(port, true).and_then(|socket| socket.listen(16)) else { return };
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((mut stream, _)) = accepted else { return };
                let page = b"HTTP/1.1 200 OK\r\nserver: stranger\r\ncontent-length: 9\r\nconnection: close\r\n\r\nnot vllm\n";
                // Whom it is sent to may be gone.
                drop(stream.write_all(page).await);
            }
            () = tokio::time::sleep(LOOK_AGAIN) => {
                if std::fs::read_to_string(&journal).is_ok_and(|text| text.contains("\"port-stolen\"")) {
                    return;
                }
            }
        }
    }
}

fn bound(port: u16, share: bool) -> std::io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(share)?;
    socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
    Ok(socket)
}

async fn before(scenario: &Scenario, place: &Place, port: &Port) -> std::io::Result<Scene> {
    Ok(match scenario.before {
        None => Scene::Nothing,
        Some(Before::PortHeld) => Scene::Listening(bound(port.number, false)?.listen(16)?),
        Some(Before::PortShared) => Scene::Listening(bound(port.number, true)?.listen(16)?),
        Some(Before::PortBound) => Scene::Bound(bound(port.number, true)?),
        Some(Before::StrangerJoins) => {
            let journal = RunDir::new(&place.run).journal();
            Scene::Joins(tokio::task::spawn(join(place.marks.clone(), journal, port.number)))
        }
        Some(Before::Leak) => {
            std::fs::write(place.temporary.join("planted"), "")?;
            let mut sleep = std::process::Command::new("sleep");
            sleep.arg("600").env_clear().current_dir(&place.root);
            // Ended and reaped like any other leak.
            drop(sleep.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
            Scene::Nothing
        }
        Some(Before::FolderIsAFile) => {
            std::fs::write(&place.run, "not a folder\n")?;
            Scene::Nothing
        }
    })
}

/// Runs the guard to its end. True when it had to be killed because it took too long.
async fn guard(shared: &Shared, scenario: &Scenario, place: &Place) -> Result<(ExitStatus, bool), Failure> {
    let told = File::create(place.root.join("guard.txt")).context("make a file for the guard's words")?;
    let mut command = tokio::process::Command::new(&shared.exe);
    command.arg("run").arg("--config").arg(&place.config);
    command.stdin(Stdio::null()).stdout(told.try_clone().context("share a file")?).stderr(told);
    command.current_dir(&place.root);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("VARCAS_") {
            command.env_remove(name);
        }
    }
    command.env("TMPDIR", &place.temporary).env(stage::VARIABLE, &place.stage);
    // A group of its own: a Ctrl-C is for the drill, which tells its guards.
    command.process_group(0);
    let mut child = command.spawn().context(format_args!("start the guard of {}", scenario.name()))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
    shared.guards.borrow_mut().insert(pid);
    // Not yet waited for, so the number is still its own.
    let id = proc::id(pid);
    let mut interrupted = shared.interrupted.clone();
    let mut late = false;
    let status = tokio::select! {
        status = child.wait() => status,
        () = async { drop(interrupted.wait_for(|now| *now).await) } => {
            end(id, &mut child, false).await
        }
        () = tokio::time::sleep(LIMIT) => {
            late = true;
            end(id, &mut child, true).await
        }
    };
    shared.guards.borrow_mut().remove(&pid);
    Ok((status.context(format_args!("wait for the guard of {}", scenario.name()))?, late))
}

/// Ends a guard: by a second Ctrl-C, which it takes for "at once"; if that does not help, or it is late, by SIGKILL, after
/// which its keeper cleans up.
async fn end(
    id: Option<ProcId>,
    child: &mut tokio::process::Child,
    at_once: bool,
) -> std::io::Result<ExitStatus> {
    const SIGINT: i32 = 2;
    if let Some(id) = id.filter(|_| !at_once) {
        for _ in 0..2 {
            drop(os::signal(id, SIGINT));
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        if let Ok(status) = tokio::time::timeout(STOP_PATIENCE, child.wait()).await {
            return status;
        }
    }
    child.start_kill()?;
    child.wait().await
}

/// The simulator's notes; a line that was cut is left out.
fn marks(path: &Path) -> Vec<Mark> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// A fault that did not happen was not survived. What comes in a later attempt than there were is no matter.
fn unstruck(scenario: &Scenario, marks: &[Mark], seen: &Seen) -> Vec<String> {
    let struck: BTreeSet<usize> = marks
        .iter()
        .filter_map(|mark| match &mark.what {
            Marked::Fault { index, .. } => Some(*index),
            Marked::Made(_) => None,
        })
        .collect();
    let reached = |fault: &Fault| {
        let first = fault.attempts.as_deref().and_then(|list| list.split('-').next()?.parse::<usize>().ok());
        seen.attempts >= first.unwrap_or(1)
    };
    // A line that ends the attempt is found in less than a millisecond: its writer may be dead before it could stand still.
    let is_forestalled = |index: usize, fault: &Fault| {
        let before = index.checked_sub(1).and_then(|before| Some((before, scenario.fault.get(before)?)));
        before.is_some_and(|(before, line)| {
            fault.what.as_ref() == "hang"
                && line.what.as_ref() == "say"
                && struck.contains(&before)
                && (&line.who, &line.at, line.n, &line.attempts)
                    == (&fault.who, &fault.at, fault.n, &fault.attempts)
        })
    };
    let missing = scenario.fault.iter().enumerate().filter(|(index, fault)| {
        // How a process takes SIGTERM shows when it is told to go, and only then.
        fault.what.as_ref() != "ignore-term"
            && !struck.contains(index)
            && reached(fault)
            && !is_forestalled(*index, fault)
    });
    missing
        .map(|(index, fault)| format!("fault {} never struck: {}", index + 1, fault.what.as_ref()))
        .collect()
}

fn unlike_its_replay(events: &[Event]) -> Option<String> {
    let finished = events.iter().any(|event| matches!(event.kind, EventKind::RunFinished { .. }));
    (finished && replay::replay(events) != events).then(|| "the journal does not replay".to_owned())
}

fn run_id(events: &[Event]) -> Option<String> {
    events.iter().find_map(|event| match &event.kind {
        EventKind::RunStarted { run_id, .. } => Some(run_id.clone()),
        _ => None,
    })
}

/// Waits for what was killed last to be gone; what stays is a leak, and is ended.
async fn left_behind(
    shared: &Shared,
    place: &Place,
    port: &Port,
    run_id: Option<String>,
    made: Vec<PathBuf>,
    ended: bool,
) -> Vec<String> {
    let began = instant_now();
    let mut leaks = Vec::new();
    loop {
        let guards = shared.guards.borrow().clone();
        let living = leaks::processes(run_id.as_deref(), &place.root, &guards);
        if living.is_empty() || began.elapsed() > leaks::GRACE * 2 {
            break;
        }
        // Told once and ended; then its death is waited for, or it would be told again as an orphan.
        if leaks.is_empty() && began.elapsed() > leaks::GRACE {
            leaks.extend(
                living.iter().map(|process| format!("process {} ({})", process.id.pid, process.comm)),
            );
            leaks::end(&living);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    drop(leaks::orphans(&shared.guards.borrow()));
    leaks.extend(leaks::port(port.number));
    // In the run folder of a guard that was killed everything may lie.
    let run = ended.then_some(place.run.as_path());
    leaks.extend(leaks::files(&place.temporary, run, &made));
    leaks
}
