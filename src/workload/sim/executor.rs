//! Who executes the model: the engine's own main thread with one rank, worker processes with more.

use super::fault::{Crash, Faults, Phase, Who};
use super::knobs::Knobs;
use super::log::Log;
use super::tree::{Boot, End, set_comm, sleep, strike, tell_tracker};
use super::windows::Recorder;
use super::wire::{self, FromWorker, ToWorker};
use crate::time::instant_now;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// One rank's model: it sleeps, records and comes to harm.
#[derive(Debug)]
pub(super) struct Rank {
    rank: u32,
    recorder: Option<Recorder>,
    faults: Faults,
    steps: u64,
}

impl Rank {
    pub(super) fn new(rank: u32, knobs: &Knobs) -> Self {
        let recorder = Recorder::from_env(rank, knobs.window_events, knobs.seed, &knobs.torch, &knobs.faults);
        Self { rank, recorder, faults: knobs.faults.clone(), steps: 0 }
    }

    fn execute(&mut self, time: Duration) -> Result<(), End> {
        self.steps += 1;
        if let Some(recorder) = &mut self.recorder {
            recorder.before_step();
        }
        strike(&self.faults, Who::Worker(self.rank), Phase::Step, self.steps)?;
        sleep(time);
        if let Some(recorder) = &mut self.recorder {
            recorder.after_step();
        }
        Ok(())
    }

    fn tick(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.tick();
        }
    }

    fn shutdown(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.shutdown();
        }
    }
}

#[derive(Debug)]
enum Said {
    Done,
    Gone,
}

/// A worker process as the engine sees it.
#[derive(Debug)]
struct Link {
    rank: u32,
    child: Child,
    to: UnixStream,
    from: Receiver<Said>,
}

/// Where the model runs.
#[derive(Debug)]
pub(super) enum Executor {
    /// In the engine itself.
    InProcess(Rank),
    /// In worker processes, which share a memory segment with the engine.
    Workers(Workers),
}

/// The worker processes.
#[derive(Debug)]
pub(super) struct Workers {
    links: Vec<Link>,
    ring_warning: Duration,
    timeout: Duration,
    tracker: i32,
    segment: String,
    /// Held open, so that whoever looks for users of the segment finds the engine.
    _file: std::fs::File,
}

impl Executor {
    /// Starts the workers, if any, and waits until they are up.
    pub(super) fn start(boot: &Boot, knobs: &Knobs, log: &Log) -> Result<Self, End> {
        if boot.args.tensor_parallel == 1 {
            return Ok(Self::InProcess(Rank::new(0, knobs)));
        }
        let segment = format!("/psm_{:08x}", rand::random::<u32>());
        tell_tracker(boot.tracker, "REGISTER", &segment, "shared_memory");
        let path = PathBuf::from(format!("/dev/shm{segment}"));
        super::marks::made(&path);
        let file = std::fs::File::create(path).map_err(|_| End::Exit(1))?;
        // Sparse: it counts as a leftover, not as memory.
        let _ = file.set_len(16 << 20);
        let mut links = Vec::new();
        for rank in 0..boot.args.tensor_parallel {
            links.push(start_worker(boot, rank).map_err(|_| End::Exit(1))?);
        }
        let timeout = std::env::var("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS")
            .ok()
            .and_then(|text| text.parse().ok())
            .map_or(Duration::from_secs(300), Duration::from_secs);
        let mut workers = Workers {
            links,
            ring_warning: knobs.ring_warning,
            timeout,
            tracker: boot.tracker,
            segment,
            _file: file,
        };
        workers.wait_for_all(log)?;
        Ok(Self::Workers(workers))
    }

    /// Executes one step of that length.
    pub(super) fn execute(&mut self, time: Duration, log: &Log) -> Result<(), End> {
        match self {
            Self::InProcess(rank) => rank.execute(time),
            Self::Workers(workers) => {
                let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                for link in &mut workers.links {
                    // A worker that is gone is noticed while waiting for its answer.
                    let _ = wire::send(&mut link.to, &ToWorker::Execute { micros });
                }
                workers.wait_for_all(log)
            }
        }
    }

    /// From time to time while idle.
    pub(super) fn tick(&mut self, log: &Log) -> Result<(), End> {
        match self {
            Self::InProcess(rank) => {
                rank.tick();
                Ok(())
            }
            Self::Workers(workers) => workers.notice_deaths(log),
        }
    }

    /// Closes windows and ends the workers, as long as vLLM gives them.
    pub(super) fn shutdown(self) {
        match self {
            Self::InProcess(mut rank) => rank.shutdown(),
            Self::Workers(workers) => workers.shutdown(),
        }
    }
}

fn start_worker(boot: &Boot, rank: u32) -> std::io::Result<Link> {
    let (ours, theirs) = UnixStream::pair()?;
    let boot = Boot { rank, ..boot.clone() };
    let child = super::tree::spawn(
        &format!("VLLM::Worker_TP{rank}"),
        "worker",
        &boot,
        Stdio::from(OwnedFd::from(theirs)),
    )?;
    let (sender, from) = channel();
    wire::pump(ours.try_clone()?, move |message: Option<FromWorker>| {
        sender.send(message.map_or(Said::Gone, |FromWorker::Done| Said::Done)).is_ok()
    });
    Ok(Link { rank, child, to: ours, from })
}

impl Workers {
    fn wait_for_all(&mut self, log: &Log) -> Result<(), End> {
        let began = instant_now();
        for index in 0..self.links.len() {
            loop {
                match self.links[index].from.recv_timeout(self.ring_warning) {
                    Ok(Said::Done) => break,
                    Ok(Said::Gone) | Err(RecvTimeoutError::Disconnected) => return Err(self.died(index, log)),
                    Err(RecvTimeoutError::Timeout) if began.elapsed() >= self.timeout => {
                        log.error("multiproc_executor.py:355", "RPC call to execute_model timed out.");
                        return Err(End::Crash(Crash::RpcTimeout));
                    }
                    Err(RecvTimeoutError::Timeout) => log.info(
                        "shm_broadcast.py:542",
                        &format!(
                            "No available shared memory broadcast block found in {} seconds. This typically happens \
                             when some processes are hanging or doing some time-consuming work (e.g. compilation, \
                             weight/kv cache quantization).",
                            self.ring_warning.as_secs()
                        ),
                    ),
                }
            }
        }
        Ok(())
    }

    fn notice_deaths(&mut self, log: &Log) -> Result<(), End> {
        for index in 0..self.links.len() {
            if matches!(self.links[index].from.try_recv(), Ok(Said::Gone)) {
                return Err(self.died(index, log));
            }
        }
        Ok(())
    }

    fn died(&self, index: usize, log: &Log) -> End {
        let rank = self.links[index].rank;
        log.error(
            "multiproc_executor.py:246",
            &format!("Worker proc VllmWorker-{rank} died unexpectedly, shutting down executor."),
        );
        End::Crash(Crash::Executor)
    }

    fn shutdown(self) {
        for link in &self.links {
            // The death pipe: a worker that reads its end closes its window and goes.
            let _ = link.to.shutdown(std::net::Shutdown::Both);
        }
        let mut children: Vec<Child> = self.links.into_iter().map(|link| link.child).collect();
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let until = instant_now() + Duration::from_secs(4);
            while instant_now() < until
                && children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None)))
            {
                sleep(Duration::from_millis(20));
            }
            for child in &mut children {
                if matches!(child.try_wait(), Ok(None)) {
                    let _ = kill(Pid::from_raw(child.id() as i32), signal);
                }
            }
        }
        let _ = std::fs::remove_file(format!("/dev/shm{}", self.segment));
        tell_tracker(self.tracker, "UNREGISTER", &self.segment, "shared_memory");
    }
}

enum Inbox {
    Engine(ToWorker),
    EngineGone,
    Term,
}

/// A worker's whole life.
pub(super) fn worker_main() -> ExitCode {
    let Some(boot) = Boot::read() else { return ExitCode::FAILURE };
    let rank = boot.rank;
    if let Ok(name) = CString::new(format!("VLLM::Worker_TP{rank}")) {
        set_comm(&name);
    }
    let Ok(knobs) = super::api::knobs() else { return ExitCode::FAILURE };
    let log = Log::new(&format!("Worker_TP{rank}"));
    let Ok(stdin) = std::io::stdin().as_fd().try_clone_to_owned() else { return ExitCode::FAILURE };
    let mut link = UnixStream::from(stdin);
    let (sender, inbox) = channel();
    super::engine::forward_signals(sender.clone(), || Inbox::Term);
    let Ok(reader) = link.try_clone() else { return ExitCode::FAILURE };
    wire::pump(reader, move |message| sender.send(message.map_or(Inbox::EngineGone, Inbox::Engine)).is_ok());

    super::lines::worker_loading(&log, &boot);
    if strike(&knobs.faults, Who::Worker(rank), Phase::Loading, 1).is_err() {
        log.error("multiproc_executor.py:772", "WorkerProc failed to start.");
        return ExitCode::FAILURE;
    }
    let mut model = Rank::new(rank, &knobs);
    if wire::send(&mut link, &FromWorker::Done).is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        match inbox.recv_timeout(Duration::from_millis(50)) {
            Ok(Inbox::Engine(ToWorker::Execute { micros })) => {
                match model.execute(Duration::from_micros(micros)) {
                    Ok(()) => {}
                    Err(End::Exit(code)) => return ExitCode::from(code),
                    Err(End::Crash(crash)) => {
                        super::lines::worker_crash(&log, crash);
                        return ExitCode::FAILURE;
                    }
                }
                // An engine that is gone is noticed as the end of the pipe.
                let _ = wire::send(&mut link, &FromWorker::Done);
            }
            Ok(Inbox::EngineGone) => {
                log.info("multiproc_executor.py:730", "Parent process exited, terminating worker");
                break;
            }
            Ok(Inbox::Term) | Err(RecvTimeoutError::Disconnected) => {
                log.warn("multiproc_executor.py:786", "WorkerProc was terminated");
                break;
            }
            Err(RecvTimeoutError::Timeout) => model.tick(),
        }
    }
    model.shutdown();
    ExitCode::SUCCESS
}
