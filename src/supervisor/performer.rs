//! Performs what the machine asks for. Every action runs in a task of its own and answers with a fact, so that the
//! dispatcher never waits; an action that belongs to an attempt is dropped when the attempt is killed.

use super::autopsy::Autopsy;
use super::keeper::{Keeper, KeeperSpec, Order, Target};
use super::layout::{AttemptDir, RunDir};
use super::leftovers::Leftovers;
use super::packer::{self, Packer};
use super::preflight;
use super::returned::{SharedGpu, clean_up, gpu_left, port_left, used};
use super::run_id::RunId;
use super::server_log::{ServerLog, last_words};
use super::state::Action;
use super::window_watch::follow_windows;
use super::{os, port, reap};
use crate::config::{Plan, ProfileMode};
use crate::cut_log;
use crate::event::{EventKind, ExitHow, Phase, ProcId, Reading, ServerFacts};
use crate::health::gpu::GpuSource;
use crate::health::gpu_script;
use crate::health::log_rules::Rules;
use crate::health::sampler::{self, DiskPlaces, SamplerConfig, SamplerHandle};
use crate::recovery::evidence::{self, Request};
use crate::recovery::{backoff, salvage};
use crate::time;
use crate::workload::load::{compose, driver, ready};
use crate::workload::profiler::windows;
use crate::workload::server::{self, Places, RunMark};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;

/// How long a kill waits for the load, which was told to stop, to close its connections.
const LOAD_CLOSES: Duration = Duration::from_secs(1);
/// A server that has not answered a request for one token by now is not about to.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// SIGUSR1: a worker writes its Python stacks (`_register_stacks` in worker.py).
const ASK_STACKS: i32 = 10;
/// A client sees the death of a server before anybody has reaped it. The failed request is only a symptom, so it is told
/// this much later than the cause.
const SYMPTOM_DELAY: Duration = Duration::from_secs(2);

/// What does not change during an attempt.
#[derive(Debug, Clone)]
pub struct Run {
    /// Everything that was asked for, and what was changed for this attempt.
    pub plan: Plan,
    /// Where it goes.
    pub dir: RunDir,
    /// Its mark.
    pub id: RunId,
    /// This very program.
    pub exe: PathBuf,
    /// The environment the server inherits.
    pub env: BTreeMap<String, String>,
    /// What the lines of its log mean.
    pub rules: Arc<Rules>,
    /// What must not be written anywhere.
    pub redactor: Arc<crate::redact::Redactor>,
    /// The user's own mask for new files.
    pub umask: Option<u32>,
}

/// See the module.
pub struct Performer {
    run: Arc<Run>,
    facts: UnboundedSender<EventKind>,
    gpu: Arc<Mutex<Box<dyn GpuSource>>>,
    server: ServerFacts,
    /// The level to which GPU memory must come back, read before anything is started.
    gpu_before: Arc<std::sync::Mutex<Vec<(u32, u64)>>>,
    phase: watch::Sender<Phase>,
    /// The phase in which the server wrote what is read now: what it said last is read while it is being killed.
    log_phase: watch::Sender<Phase>,
    attempt: Option<Attempt>,
    /// Outlives the attempt's processes.
    packer: Option<Packer>,
    number: u32,
}

/// The edges of one attempt.
struct Attempt {
    dir: AttemptDir,
    scratch: PathBuf,
    _hold: std::fs::File,
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
    /// The one-token request under way.
    probe: Option<Task>,
    /// Dropped with the attempt.
    _senses: Vec<Task>,
    sampler: Option<SamplerHandle>,
    log: ServerLog,
    autopsy: Autopsy,
}

impl Attempt {
    /// Nobody but the load speaks with the server any more.
    fn hang_up(&mut self) {
        self.waiting = None;
        self.probe = None;
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
        let gpu = gpu_script::source()?;
        Ok(Self {
            run,
            facts,
            gpu: Arc::new(Mutex::new(gpu)),
            server: ServerFacts::default(),
            gpu_before: Arc::default(),
            phase: watch::channel(Phase::Preflight).0,
            log_phase: watch::channel(Phase::Preflight).0,
            attempt: None,
            packer: None,
            number: 0,
        })
    }

    /// Hears every fact before the machine does.
    pub fn observe(&mut self, fact: &EventKind) {
        if let EventKind::PreflightFinished { server, .. } = fact {
            self.server = server.clone();
        }
        if let Some(packer) = &mut self.packer {
            packer.observe(fact);
        }
        let Some(attempt) = &mut self.attempt else { return };
        attempt.autopsy.observe(fact, *self.phase.borrow(), &self.facts);
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
            Action::Probe => self.probe(),
            Action::SaveEvidence { within } => self.save_evidence(within),
            Action::CloseWindows => self.close_windows(),
            Action::Terminate => self.terminate(),
            Action::KillAll => self.kill_all(),
            Action::Drain => self.drain(),
            Action::CollectTraces => self.collect(),
            Action::UsePlan(plan) => {
                self.run = Arc::new(Run { plan: *plan, ..Run::clone(&self.run) });
            }
            Action::DrawBackoff => {
                self.say(EventKind::BackoffDrawn { delay: backoff::delay(&self.run.plan.backoff, number) });
            }
        }
    }

    /// Is told after every fact.
    pub fn phase(&self, phase: Phase) {
        if phase != Phase::Draining {
            self.log_phase.send_replace(phase);
        }
        if self.phase.send_if_modified(|now| std::mem::replace(now, phase) != phase)
            && let Some(attempt) = &self.attempt
        {
            self.tell_workers(&attempt.dir.traces(), phase);
        }
    }

    fn tell_workers(&self, traces: &Path, phase: Phase) {
        if self.run.plan.profile.mode == ProfileMode::Off {
            return;
        }
        if let Err(error) = packer::tell_workers(traces, phase) {
            self.trouble("tell the workers which phase it is", &error);
        }
    }

    fn say(&self, fact: EventKind) {
        // The dispatcher holds the receiver for as long as there is anything to say.
        drop(self.facts.send(fact));
    }

    fn trouble(&self, what: &str, error: &dyn std::fmt::Display) {
        self.say(EventKind::Trouble { what: what.to_owned(), error: error.to_string() });
    }

    fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.run.plan.server.port)
    }
    fn preflight(&mut self) {
        let (run, gpu, facts) = (Arc::clone(&self.run), Arc::clone(&self.gpu), self.facts.clone());
        let before = Arc::clone(&self.gpu_before);
        tokio::spawn(async move {
            let mut gpu = gpu.lock().await;
            let (checks, server) = preflight::check(&run.plan, &run.env, &mut **gpu, Leftovers::End).await;
            let level = match gpu.memory().await {
                Reading::Value(list) => used(&list),
                Reading::Unavailable { .. } | Reading::Stale => Vec::new(),
            };
            *before.lock().unwrap_or_else(PoisonError::into_inner) = level;
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
        self.tell_workers(&dir.traces(), Phase::Loading);
        let scratch = reap::make_scratch_somewhere()?;
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
            secrets: run.redactor.values().to_vec(),
            umask: run.umask,
        };
        let hold = reap::own_scratch(&spec).map_err(|error| format!("{}: {error}", scratch.display()))?;
        let keeper = Keeper::start(&run.exe, &spec, self.facts.clone())
            .map_err(|failure| failure.problems.join("; "))?;
        self.say(EventKind::ServerEnvironment { env: command.ours });
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
        let mut config = SamplerConfig::new(base_url_seen, processes_seen, gpu);
        config.disk = Some(DiskPlaces {
            volume: dir.root().to_owned(),
            traces: dir.traces(),
            logs: vec![dir.server_log(), cut_log::piece(&dir.server_log())],
        });
        let sampler = match sampler::spawn(config, self.facts.clone()) {
            Ok(sampler) => Some(sampler),
            Err(error) => {
                self.trouble("start the samplers", &error);
                None
            }
        };
        let log = ServerLog::start(&dir, run, self.log_phase.subscribe(), &self.facts);
        let mut senses = Vec::new();
        if run.plan.profile.mode == ProfileMode::Windows {
            let packer = Packer::start(&dir.traces(), run, self.number, self.facts.clone());
            let following = follow_windows(dir.traces(), closing_seen, packer.lines(), self.facts.clone());
            senses.push(Task(tokio::spawn(following)));
            self.packer = Some(packer);
        }
        self.attempt = Some(Attempt {
            dir,
            scratch,
            _hold: hold,
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
            probe: None,
            _senses: senses,
            sampler,
            log,
            autopsy: Autopsy::default(),
        });
        Ok(())
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
            // Also when it failed: half of our requests may have gone to somebody else.
            let ours: Vec<i32> = tree.borrow().iter().map(|proc| proc.pid).collect();
            let foreign = tokio::task::spawn_blocking(move || port::foreign_listeners(port, &ours)).await;
            let fact = match (foreign.unwrap_or_default().first(), ready) {
                (Some(holder), _) => EventKind::PortStolen { holder: holder.to_string() },
                (None, Err(error)) => {
                    tokio::time::sleep(SYMPTOM_DELAY).await;
                    EventKind::SpawnFailed { error }
                }
                (None, Ok(info)) => {
                    for note in &info.notes {
                        let what = "read what the server says of itself".to_owned();
                        drop(facts.send(EventKind::Trouble { what, error: note.clone() }));
                    }
                    *target.lock().await = Some(info.target());
                    url.send_replace(Some(base));
                    EventKind::ServerReady { model: info.model.clone(), max_model_len: info.max_model_len }
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

    fn probe(&mut self) {
        let (facts, api) = (self.facts.clone(), self.run.plan.load.endpoint.into());
        let Some(attempt) = &mut self.attempt else { return };
        let target = Arc::clone(&attempt.target);
        attempt.probe = Some(Task(tokio::spawn(async move {
            let Some(target) = target.lock().await.clone() else { return };
            let began = time::instant_now();
            let error = ready::one_token(&target, api, PROBE_PATIENCE).await.err();
            drop(facts.send(EventKind::Probed { error, took: began.elapsed() }));
        })));
    }

    fn save_evidence(&self, within: Duration) {
        let facts = self.facts.clone();
        let Some(attempt) = &self.attempt else {
            return self.say(EventKind::EvidenceSaved { items: Vec::new() });
        };
        let gpu = Arc::clone(&self.gpu);
        let request = Request {
            dir: attempt.dir.evidence(),
            processes: attempt.tree.iter().map(|(proc, comm)| (*proc, comm.clone())).collect(),
            gpus: Box::pin(async move {
                let sample = gpu.lock().await.sample().await;
                serde_json::to_value(sample).unwrap_or_default()
            }),
            log: attempt.dir.server_log(),
            base_url: attempt.base_url.borrow().clone(),
            ask_stacks: Arc::new(|proc| match os::signal(proc, ASK_STACKS)? {
                os::Delivery::Sent => Ok(()),
                os::Delivery::Gone => Err(std::io::Error::other("the process is gone")),
            }),
            py_spy: evidence::find_py_spy(&self.run.plan.server.python, std::env::var_os("PATH").as_deref()),
            nccl_ras: evidence::NCCL_RAS,
            redactor: Arc::clone(&self.run.redactor),
            within,
        };
        let (log, dying) = (request.log.clone(), request.processes.clone());
        tokio::spawn(async move {
            let items = evidence::save(request).await;
            last_words(&log, &dying).await;
            drop(facts.send(EventKind::EvidenceSaved { items }));
        });
    }

    fn close_windows(&self) {
        let Some(attempt) = &self.attempt else { return };
        let request = attempt.dir.traces().join(windows::CLOSE_REQUEST);
        if let Err(error) = std::fs::write(&request, b"") {
            self.trouble(&format!("write {}", request.display()), &error);
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
        let before = self.gpu_before.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(attempt) = self.attempt.take() else {
            return self.say(EventKind::Drained { leftovers: Vec::new(), removed: Vec::new() });
        };
        tokio::spawn(async move {
            let Attempt { dir, scratch, shm_before, keeper, log, .. } = attempt;
            log.finish().await;
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
            let (removed, files) = clean_up(scratch, dir, shm_before, run.redactor.clone(), &facts).await;
            leftovers.extend(files);
            drop(facts.send(EventKind::Drained { leftovers, removed }));
        });
    }

    fn collect(&mut self) {
        let (facts, run, number) = (self.facts.clone(), Arc::clone(&self.run), self.number);
        let (dir, packer) = (run.dir.attempt(number), self.packer.take());
        tokio::task::spawn_blocking(move || {
            let collected = match packer {
                Some(packer) if dir.traces().is_dir() => packer.finish(run.id.as_str(), number),
                _ => windows::Collected::default(),
            };
            let windows::Collected { traces, problems, profile, .. } = collected;
            if let Some(profile) = profile {
                drop(facts.send(EventKind::Profiled(Box::new(profile))));
            }
            let places: Vec<PathBuf> =
                [dir.traces(), dir.tmp()].into_iter().filter(|path| path.is_dir()).collect();
            let whole: Vec<PathBuf> = traces.iter().map(|trace| dir.traces().join(&trace.file)).collect();
            let saved = salvage::salvage_folder(&places, &dir.traces(), &whole);
            drop(facts.send(EventKind::TracesCollected { traces, problems, saved }));
        });
    }
}
