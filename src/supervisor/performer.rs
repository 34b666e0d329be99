//! Performs what the machine asks for. Every action runs in a task of its own and answers with a fact, so that the
//! dispatcher never waits; an action that belongs to an attempt is dropped when the attempt is killed.

use super::keeper::{Keeper, KeeperSpec, Order, Target};
use super::layout::{AttemptDir, RunDir};
use super::preflight::{self, Leftovers};
use super::run_id::RunId;
use super::state::Action;
use super::{os, port, reap};
use crate::config::{Plan, ProfileMode};
use crate::event::{EventKind, ExitHow, Leftover, ProcId, Reading, ServerFacts};
use crate::health::gpu::GpuSource;
use crate::health::nvml::NvmlSource;
use crate::health::sampler::{self, SamplerConfig, SamplerHandle};
use crate::health::tail::Tail;
use crate::recovery::{backoff, salvage};
use crate::time;
use crate::workload::load::{compose, driver, ready};
use crate::workload::profiler::windows;
use crate::workload::server::{self, Places, RunMark};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// How long port and GPU memory may take to come back; below the machine's own budget for draining.
const RETURN_PATIENCE: Duration = Duration::from_secs(40);
/// GPU memory that is not worth a word: contexts of other processes come and go.
const GPU_TOLERANCE: u64 = 512 << 20;
/// How long a kill waits for the load, which was told to stop, to close its connections.
const LOAD_CLOSES: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// A client sees the death of a server before anybody has reaped it. The failed request is only a symptom, so it is told
/// this much later than the cause.
const SYMPTOM_DELAY: Duration = Duration::from_secs(2);

/// What does not change during a run.
#[derive(Debug)]
pub struct Run {
    /// Everything that was asked for.
    pub plan: Plan,
    /// Where it goes.
    pub dir: RunDir,
    /// Its mark.
    pub id: RunId,
    /// This very program.
    pub exe: PathBuf,
    /// The environment the server inherits.
    pub env: BTreeMap<String, String>,
}

/// See the module.
pub struct Performer {
    run: Arc<Run>,
    facts: UnboundedSender<EventKind>,
    gpu: Arc<Mutex<Box<dyn GpuSource>>>,
    server: ServerFacts,
    gpu_before: Vec<(u32, u64)>,
    attempt: Option<Attempt>,
    number: u32,
}

/// The edges of one attempt.
struct Attempt {
    dir: AttemptDir,
    scratch: PathBuf,
    shm_before: Vec<String>,
    keeper: Option<Keeper>,
    /// What the keeper knew when it was lost.
    orphans: Vec<ProcId>,
    tree: BTreeMap<ProcId, String>,
    processes: watch::Sender<Vec<ProcId>>,
    base_url: watch::Sender<Option<String>>,
    closing: watch::Sender<bool>,
    stop_load: watch::Sender<bool>,
    /// True from its start until all its connections are closed.
    load_open: watch::Sender<bool>,
    target: Arc<Mutex<Option<driver::Target>>>,
    /// Dropped when the attempt is killed.
    waiting: Option<Task>,
    /// Dropped with the attempt.
    _senses: Vec<Task>,
    sampler: Option<SamplerHandle>,
}

impl Attempt {
    /// Nobody but the load speaks with the server any more.
    fn hang_up(&mut self) {
        self.waiting = None;
        self.base_url.send_replace(None);
        if let Some(sampler) = &self.sampler {
            sampler.hang_up();
        }
    }
}

/// A task that ends when it is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Performer {
    /// Facts go to `facts`.
    pub fn new(run: Arc<Run>, facts: UnboundedSender<EventKind>) -> std::io::Result<Self> {
        let gpu: Box<dyn GpuSource> = Box::new(NvmlSource::start()?);
        Ok(Self {
            run,
            facts,
            gpu: Arc::new(Mutex::new(gpu)),
            server: ServerFacts::default(),
            gpu_before: Vec::new(),
            attempt: None,
            number: 0,
        })
    }

    /// Hears every fact before the machine does.
    pub fn observe(&mut self, fact: &EventKind) {
        if let EventKind::PreflightFinished { server, .. } = fact {
            self.server = server.clone();
        }
        let Some(attempt) = &mut self.attempt else { return };
        match fact {
            EventKind::ServerSpawned { proc, .. } => {
                attempt.tree.insert(*proc, String::new());
            }
            EventKind::ProcessSeen { proc, comm, .. } => {
                attempt.tree.insert(*proc, comm.clone());
            }
            EventKind::ProcessExited { proc, .. } => {
                attempt.tree.remove(proc);
            }
            EventKind::KeeperLost { .. } => {
                if let Some(keeper) = attempt.keeper.take() {
                    attempt.orphans = keeper.known();
                    tokio::spawn(async move { keeper.abandon().await });
                }
                return;
            }
            _ => return,
        }
        attempt.processes.send_replace(attempt.tree.keys().copied().collect());
    }

    /// Begins an action. `number` is the attempt it belongs to.
    pub fn perform(&mut self, action: Action, number: u32) {
        self.number = number;
        match action {
            Action::Conclude(_) | Action::Finish => {}
            Action::Preflight => self.preflight(),
            Action::StartServer => {
                if let Err(error) = self.start_server() {
                    self.say(EventKind::SpawnFailed { error });
                }
            }
            Action::WaitReady => self.wait_ready(),
            Action::WarmUp => self.warm_up(),
            Action::StartLoad => self.start_load(),
            Action::StopLoad => {
                if let Some(attempt) = &self.attempt {
                    attempt.stop_load.send_replace(true);
                }
            }
            Action::CloseWindows => self.close_windows(),
            Action::Terminate => self.terminate(),
            Action::KillAll => self.kill_all(),
            Action::Drain => self.drain(),
            Action::CollectTraces => self.collect(),
            Action::DrawBackoff => {
                self.say(EventKind::BackoffDrawn { delay: backoff::delay(&self.run.plan.backoff, number) });
            }
        }
    }

    fn say(&self, fact: EventKind) {
        // The dispatcher holds the receiver for as long as there is anything to say.
        drop(self.facts.send(fact));
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.run.plan.server.port)
    }

    fn preflight(&mut self) {
        let (run, gpu, facts) = (Arc::clone(&self.run), Arc::clone(&self.gpu), self.facts.clone());
        tokio::spawn(async move {
            let mut gpu = gpu.lock().await;
            let (checks, server) = preflight::check(&run.plan, &run.env, &mut **gpu, Leftovers::End).await;
            drop(facts.send(EventKind::PreflightFinished { checks, server }));
        });
    }

    fn start_server(&mut self) -> Result<(), String> {
        let run = &self.run;
        let dir = run.dir.attempt(self.number);
        for folder in [dir.root().to_owned(), dir.traces(), dir.evidence(), dir.python()] {
            std::fs::create_dir_all(&folder)
                .map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        }
        for (name, text) in server::PYTHON_FILES {
            let path = dir.python().join(name);
            std::fs::write(&path, text)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        }
        let temp = std::env::temp_dir();
        let base = if temp.as_os_str().len() > 40 { Path::new("/tmp") } else { temp.as_path() };
        let scratch = reap::make_scratch(base)
            .map_err(|error| format!("cannot make a private folder in {}: {error}", base.display()))?;
        let places = Places {
            traces: dir.traces(),
            scratch: scratch.clone(),
            evidence: dir.evidence(),
            python: dir.python(),
        };
        let mark = RunMark { run_id: run.id.as_str().to_owned(), attempt: self.number };
        let command = server::command(&run.plan, &self.server, &places, &mark, &run.env, &run.exe);
        if command.refused() {
            drop(std::fs::remove_dir(&scratch));
            let why: Vec<String> = command.notes.into_iter().map(|note| note.saw).collect();
            return Err(why.join("; "));
        }
        let shm_before = reap::shm_names();
        let spec = KeeperSpec {
            run_id: run.id.as_str().to_owned(),
            attempt: self.number,
            journal: run.dir.journal(),
            scratch: scratch.clone(),
            save_to: dir.tmp(),
            shm_before: shm_before.clone(),
        };
        let keeper = Keeper::start(&run.exe, &spec, self.facts.clone())
            .map_err(|failure| failure.problems.join("; "))?;
        keeper.order(&Order::Spawn {
            argv: command.argv,
            env: command.env.into_iter().collect(),
            cwd: dir.root().to_owned(),
            log: dir.server_log(),
        });
        let (processes, processes_seen) = watch::channel(Vec::new());
        let (base_url, base_url_seen) = watch::channel(None);
        let (closing, closing_seen) = watch::channel(false);
        let gpu: Box<dyn GpuSource> = Box::new(SharedGpu(Arc::clone(&self.gpu)));
        let config = SamplerConfig::new(base_url_seen, processes_seen, gpu);
        let sampler = match sampler::spawn(config, self.facts.clone()) {
            Ok(sampler) => Some(sampler),
            Err(error) => {
                self.say(EventKind::Trouble {
                    what: "start the samplers".to_owned(),
                    error: error.to_string(),
                });
                None
            }
        };
        let mut senses = Vec::new();
        if run.plan.profile.mode == ProfileMode::Windows {
            senses.push(Task(tokio::spawn(follow_windows(dir.traces(), closing_seen, self.facts.clone()))));
        }
        self.attempt = Some(Attempt {
            dir,
            scratch,
            shm_before,
            keeper: Some(keeper),
            orphans: Vec::new(),
            tree: BTreeMap::new(),
            processes,
            base_url,
            closing,
            stop_load: watch::channel(false).0,
            load_open: watch::channel(false).0,
            target: Arc::default(),
            waiting: None,
            _senses: senses,
            sampler,
        });
        self.remember_gpu();
        Ok(())
    }

    /// The level to which GPU memory must come back. Taken before the server can have allocated anything.
    fn remember_gpu(&mut self) {
        self.gpu_before.clear();
        if let Ok(mut gpu) = self.gpu.try_lock()
            && let Some(Reading::Value(list)) = futures_util::FutureExt::now_or_never(gpu.memory())
        {
            self.gpu_before = used(&list);
        }
    }

    fn wait_ready(&mut self) {
        let base = self.base_url();
        let port = self.run.plan.server.port;
        let (facts, run) = (self.facts.clone(), Arc::clone(&self.run));
        let Some(attempt) = &mut self.attempt else { return };
        let (target, url, tree) =
            (Arc::clone(&attempt.target), attempt.base_url.clone(), attempt.processes.subscribe());
        attempt.waiting = Some(Task(tokio::spawn(async move {
            // Datasets can be large, and this thread serves the whole guard.
            let api = run.plan.load.endpoint.into();
            let recipe = tokio::task::spawn_blocking(move || compose::Recipe::read(&run.plan.load)).await;
            let ready = match recipe {
                Ok(Ok(recipe)) => ready::wait_ready(&base, None, api, &recipe.mix).await,
                Ok(Err(problems)) => {
                    Err(problems.into_iter().map(|(_, problem)| problem).collect::<Vec<_>>().join("; "))
                }
                Err(error) => Err(format!("read the mix: {error}")),
            };
            let fact = match ready {
                Err(error) => {
                    tokio::time::sleep(SYMPTOM_DELAY).await;
                    EventKind::SpawnFailed { error }
                }
                Ok(info) => {
                    let ours: Vec<i32> = tree.borrow().iter().map(|proc| proc.pid).collect();
                    let foreign =
                        tokio::task::spawn_blocking(move || port::foreign_listeners(port, &ours)).await;
                    match foreign.unwrap_or_default().first() {
                        Some(holder) => EventKind::PortStolen { holder: holder.to_string() },
                        None => {
                            for note in &info.notes {
                                let what = "read what the server says of itself".to_owned();
                                drop(facts.send(EventKind::Trouble { what, error: note.clone() }));
                            }
                            *target.lock().await = Some(info.target());
                            url.send_replace(Some(base));
                            EventKind::ServerReady {
                                model: info.model.clone(),
                                max_model_len: info.max_model_len,
                            }
                        }
                    }
                }
            };
            drop(facts.send(fact));
        })));
    }

    fn warm_up(&mut self) {
        let (facts, plan) = (self.facts.clone(), &self.run.plan.load);
        let (api, requests) = (plan.endpoint.into(), plan.warmup_requests);
        let Some(attempt) = &mut self.attempt else { return };
        let target = Arc::clone(&attempt.target);
        attempt.waiting = Some(Task(tokio::spawn(async move {
            let Some(target) = target.lock().await.clone() else { return };
            drop(facts.send(match ready::warm_up(&target, api, requests).await {
                Ok((requests, slowest)) => EventKind::WarmupFinished { requests, slowest },
                Err(error) => {
                    tokio::time::sleep(SYMPTOM_DELAY).await;
                    EventKind::WarmupFailed { error }
                }
            }));
        })));
    }

    fn start_load(&mut self) {
        let (facts, run, number) = (self.facts.clone(), Arc::clone(&self.run), self.number);
        let Some(attempt) = &self.attempt else { return };
        let (target, stop) = (Arc::clone(&attempt.target), attempt.stop_load.subscribe());
        let files = driver::LoadFiles {
            requests: attempt.dir.requests(),
            benchmark_json: attempt.dir.benchmark_json(),
            benchmark_log: attempt.dir.benchmark_log(),
        };
        let load_open = attempt.load_open.clone();
        load_open.send_replace(true);
        // Not dropped with the attempt: a load that is told to stop still writes what it has.
        tokio::spawn(async move {
            let Some(target) = target.lock().await.clone() else { return };
            // The shape stays; other words in a second try, or it would measure the prefix cache.
            let seed = run.plan.load.seed.wrapping_add(u64::from(number.saturating_sub(1)));
            let say = facts.clone();
            let emit = move |kind| drop(say.send(kind));
            let result = driver::run(&target, &run.plan.load, seed, &files, stop, emit).await;
            load_open.send_replace(false);
            drop(facts.send(match result {
                Ok(summary) => EventKind::LoadFinished { summary: Box::new(summary) },
                Err(error) => EventKind::LoadFailed { error },
            }));
        });
    }

    fn close_windows(&self) {
        let Some(attempt) = &self.attempt else { return };
        let request = attempt.dir.traces().join(windows::CLOSE_REQUEST);
        if let Err(error) = std::fs::write(&request, b"") {
            self.say(EventKind::Trouble {
                what: format!("write {}", request.display()),
                error: error.to_string(),
            });
        }
        attempt.closing.send_replace(true);
    }

    fn terminate(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        attempt.hang_up();
        if let Some(keeper) = &attempt.keeper {
            let why = "stop the server in good order".to_owned();
            keeper.order(&Order::Signal { signal: 15, target: Target::Main, why });
        }
    }

    fn kill_all(&mut self) {
        let (facts, run) = (self.facts.clone(), Arc::clone(&self.run));
        let Some(attempt) = &mut self.attempt else {
            return self.say(EventKind::TreeGone { unkillable: Vec::new() });
        };
        attempt.hang_up();
        match &attempt.keeper {
            Some(keeper) => {
                let mut open = attempt.load_open.subscribe();
                let closed = async move {
                    drop(tokio::time::timeout(LOAD_CLOSES, open.wait_for(|open| !open)).await);
                };
                let why = "nothing of the server may be left".to_owned();
                keeper.order_after(closed, &Order::KillAll { why });
            }
            None => {
                let known = attempt.orphans.clone();
                tokio::task::spawn_blocking(move || {
                    let (killed, unkillable) = reap::kill_marked(run.id.as_str(), &known, &[os::own_pid()]);
                    if !killed.is_empty() {
                        let why = "the keeper is dead, so the guard kills".to_owned();
                        drop(facts.send(EventKind::SignalSent { signal: 9, targets: killed, why }));
                    }
                    drop(facts.send(EventKind::TreeGone { unkillable }));
                });
            }
        }
    }

    fn drain(&mut self) {
        let (facts, run, gpu) = (self.facts.clone(), Arc::clone(&self.run), Arc::clone(&self.gpu));
        let before = std::mem::take(&mut self.gpu_before);
        let Some(attempt) = self.attempt.take() else {
            return self.say(EventKind::Drained { leftovers: Vec::new(), removed: Vec::new() });
        };
        tokio::spawn(async move {
            let Attempt { dir, scratch, shm_before, keeper, .. } = attempt;
            let mut leftovers = port_left(run.plan.server.port).await;
            leftovers.extend(gpu_left(&gpu, &before).await);
            if let Some(keeper) = keeper {
                let how = keeper.quit().await;
                if how != (ExitHow::Code { code: 0 }) {
                    let what = "let the keeper go".to_owned();
                    drop(facts.send(EventKind::Trouble { what, error: format!("it ended with {how}") }));
                }
            }
            drop(std::fs::remove_dir_all(dir.python()));
            let cleaned =
                tokio::task::spawn_blocking(move || reap::clean(&scratch, &dir.tmp(), &shm_before)).await;
            let (removed, files) = cleaned.unwrap_or_default();
            leftovers.extend(files);
            drop(facts.send(EventKind::Drained { leftovers, removed }));
        });
    }

    fn collect(&self) {
        let (facts, run) = (self.facts.clone(), Arc::clone(&self.run));
        let dir = run.dir.attempt(self.number);
        tokio::task::spawn_blocking(move || {
            let (traces, mut problems) =
                if run.plan.profile.mode == ProfileMode::Windows && dir.traces().is_dir() {
                    windows::collect(&dir.traces())
                } else {
                    (Vec::new(), Vec::new())
                };
            if !problems.is_empty() {
                let places: Vec<PathBuf> =
                    [dir.traces(), dir.tmp()].into_iter().filter(|path| path.is_dir()).collect();
                for saved in salvage::salvage_folder(&places, &dir.traces()) {
                    if let (salvage::Status::Salvaged, Some(output)) = (saved.status, &saved.output) {
                        let name = output.file_name().unwrap_or_default().to_string_lossy();
                        problems.push(format!(
                            "{} events of a half trace were saved as {name}",
                            saved.events_kept
                        ));
                    }
                }
            }
            drop(facts.send(EventKind::TracesCollected { traces, problems }));
        });
    }
}

/// The sampler's view of the one NVML thread.
struct SharedGpu(Arc<Mutex<Box<dyn GpuSource>>>);

impl GpuSource for SharedGpu {
    fn sample(&mut self) -> crate::health::gpu::BoxFuture<'_, Reading<Vec<crate::event::GpuSample>>> {
        Box::pin(async { self.0.lock().await.sample().await })
    }

    fn memory(&mut self) -> crate::health::gpu::BoxFuture<'_, Reading<Vec<crate::health::gpu::GpuMemory>>> {
        Box::pin(async { self.0.lock().await.memory().await })
    }
}

fn used(list: &[crate::health::gpu::GpuMemory]) -> Vec<(u32, u64)> {
    list.iter().filter_map(|gpu| Some((gpu.gpu, *gpu.used.value()?))).collect()
}

async fn port_left(port: u16) -> Vec<Leftover> {
    let began = time::instant_now();
    loop {
        let state = tokio::task::spawn_blocking(move || port::probe(port)).await;
        let held = match state {
            Ok(Ok(
                port::PortState::Held { listening: list }
                | port::PortState::BoundNotListening { holders: list },
            )) => list,
            _ => return Vec::new(),
        };
        if began.elapsed() > RETURN_PATIENCE / 2 {
            let holder: Vec<String> = held.iter().map(ToString::to_string).collect();
            return vec![Leftover::Port { port, holder: holder.join(" and ") }];
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn gpu_left(gpu: &Mutex<Box<dyn GpuSource>>, before: &[(u32, u64)]) -> Vec<Leftover> {
    let began = time::instant_now();
    while !before.is_empty() {
        let Reading::Value(list) = gpu.lock().await.memory().await else { break };
        let left: Vec<Leftover> = used(&list)
            .into_iter()
            .filter_map(|(gpu, now)| {
                let level = before.iter().find(|(index, _)| *index == gpu)?.1;
                let bytes = now.saturating_sub(level);
                (bytes > GPU_TOLERANCE).then_some(Leftover::GpuMemory { gpu, bytes })
            })
            .collect();
        if left.is_empty() || began.elapsed() > RETURN_PATIENCE {
            return left;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Vec::new()
}

/// Turns the workers' index into events, and says when every worker has answered the request to close.
async fn follow_windows(
    traces: PathBuf,
    mut closing: watch::Receiver<bool>,
    facts: UnboundedSender<EventKind>,
) {
    let mut tail = match Tail::new(traces.join(windows::INDEX)) {
        Ok(tail) => tail,
        Err(error) => {
            let what = "follow the index of the profiler windows".to_owned();
            drop(facts.send(EventKind::Trouble { what, error: error.to_string() }));
            return;
        }
    };
    let mut index = windows::Index::default();
    let mut answered = false;
    loop {
        tokio::select! {
            lines = tail.next_lines() => {
                if lines.is_empty() {
                    return;
                }
                for line in lines.iter().filter_map(|line| windows::parse_line(&line.text)) {
                    index.push(&line);
                    drop(facts.send(EventKind::Window(line)));
                }
            }
            changed = closing.changed(), if !answered => {
                if changed.is_err() {
                    return;
                }
            }
        }
        if *closing.borrow() && !answered && (index.workers.is_empty() || index.all_finished()) {
            answered = true;
            let workers = u32::try_from(index.workers.len()).unwrap_or(u32::MAX);
            drop(facts.send(EventKind::WindowsClosed { workers }));
        }
    }
}
