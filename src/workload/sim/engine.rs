//! `VLLM::EngineCore`: loads, schedules, executes, reports. Like the real one it has no idea whether its API server still
//! lives, and nothing reaches its main thread while that is inside a step.

use super::executor::Executor;
use super::fault::{Crash, Phase, What, Who};
use super::knobs::Knobs;
use super::lines;
use super::log::Log;
use super::scheduler::Scheduler;
use super::tree::{Boot, End, set_comm, strike};
use super::wire::{self, FromEngine, ToEngine};
use crate::time::instant_now;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

enum Inbox {
    Api(ToEngine),
    ApiGone,
    Term,
}

/// Why the loop ended without an error.
enum Over {
    Asked,
    Orphaned,
}

struct Engine {
    boot: Boot,
    knobs: Knobs,
    log: Log,
    api: UnixStream,
    inbox: Receiver<Inbox>,
    began: Instant,
    orphan_since: Option<Instant>,
    sampler_compiled: bool,
}

/// Sends SIGTERM and SIGINT into a channel: the main thread sees them when it looks, not earlier.
pub(super) fn forward_signals<T: Send + 'static>(to: Sender<T>, make: fn() -> T) {
    let signals = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    let Ok(mut signals) = signal_hook::iterator::Signals::new(signals) else { return };
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if to.send(make()).is_err() {
                return;
            }
        }
    });
}

/// The engine's whole life.
pub(super) fn main() -> ExitCode {
    set_comm(c"VLLM::EngineCore");
    let Some(boot) = Boot::read() else { return ExitCode::FAILURE };
    let Ok(knobs) = super::api::knobs() else { return ExitCode::FAILURE };
    let Ok(api) = UnixStream::connect(&boot.socket) else { return ExitCode::FAILURE };
    let Ok(reader) = api.try_clone() else { return ExitCode::FAILURE };
    let (sender, inbox) = channel();
    forward_signals(sender.clone(), || Inbox::Term);
    wire::pump(reader, move |message| sender.send(message.map_or(Inbox::ApiGone, Inbox::Api)).is_ok());
    let mut engine = Engine {
        boot,
        knobs,
        log: Log::new("EngineCore_DP0"),
        api,
        inbox,
        began: instant_now(),
        orphan_since: None,
        sampler_compiled: false,
    };
    let mut executor = None;
    let loaded = engine.load(&mut executor);
    let ended = match (loaded, &mut executor) {
        (Ok(None), Some(executor)) => engine.serve(executor),
        (Ok(over), _) => Ok(over.unwrap_or(Over::Asked)),
        (Err(End::Crash(crash)), _) => {
            lines::startup_crash(&engine.log, crash);
            Err(End::Exit(1))
        }
        (Err(end), _) => Err(end),
    };
    match ended {
        Err(End::Exit(code)) => return ExitCode::from(code),
        Err(End::Crash(crash)) => {
            lines::engine_crash(&engine.log, crash, &engine.boot.args);
            let _ = wire::send(&mut engine.api, &FromEngine::Dead);
            if let Some(executor) = executor {
                executor.shutdown();
            }
            return ExitCode::FAILURE;
        }
        Ok(Over::Asked | Over::Orphaned) => {}
    }
    if let Some(executor) = executor {
        executor.shutdown();
    }
    ExitCode::SUCCESS
}

impl Engine {
    /// Loads the model; `Some` when it was asked to end before it was done.
    fn load(&mut self, executor: &mut Option<Executor>) -> Result<Option<Over>, End> {
        let faults = self.knobs.faults.clone();
        strike(&faults, Who::Engine, Phase::Start, 1)?;
        lines::engine_initializing(&self.log, &self.boot.args, &self.knobs);
        if self.pause(self.knobs.load / 2) {
            return Ok(Some(Over::Asked));
        }
        strike(&faults, Who::Engine, Phase::Loading, 1)?;
        *executor = Some(Executor::start(&self.boot, &self.knobs, &self.log)?);
        if self.knobs.kv_blocks * self.knobs.block_size < self.boot.args.max_model_len {
            return Err(End::Crash(Crash::KvCache));
        }
        lines::engine_model_loaded(&self.log, &self.boot.args, &self.knobs);
        if self.pause(self.knobs.load / 2) {
            return Ok(Some(Over::Asked));
        }
        lines::engine_ready(&self.log, self.began.elapsed());
        let _ = wire::send(&mut self.api, &FromEngine::Ready);
        strike(&faults, Who::Engine, Phase::Ready, 1)?;
        Ok(None)
    }

    /// Whether SIGTERM has no effect on this engine.
    fn deaf(&self) -> bool {
        self.knobs.faults.is_due(Who::Engine, Phase::Stop, 1, &What::IgnoreTerm)
    }

    /// Waits; true when asked to end meanwhile.
    fn pause(&mut self, time: Duration) -> bool {
        let until = instant_now() + time;
        loop {
            let left = until.saturating_duration_since(instant_now());
            match self.inbox.recv_timeout(left) {
                Ok(Inbox::Term) if self.deaf() => {}
                Ok(Inbox::Term) => return true,
                Ok(Inbox::ApiGone) => self.orphan_since = Some(instant_now()),
                Ok(Inbox::Api(_)) => {}
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    // Both senders are gone: nobody can wake us any more, but the time still has to pass.
                    super::tree::sleep(left);
                    return false;
                }
            }
        }
    }

    fn serve(&mut self, executor: &mut Executor) -> Result<Over, End> {
        let knobs = self.knobs.clone();
        let args = &self.boot.args;
        let mut scheduler =
            Scheduler::new(knobs.kv_blocks, knobs.block_size, args.max_num_seqs, args.max_num_batched_tokens);
        let mut step = 0;
        loop {
            if self.take_messages(&mut scheduler) {
                return Ok(Over::Asked);
            }
            if !scheduler.has_work() {
                executor.tick(&self.log)?;
                if self.orphan_since.is_some_and(|since| since.elapsed() >= knobs.orphan) {
                    return Ok(Over::Orphaned);
                }
                continue;
            }
            step += 1;
            strike(&knobs.faults, Who::Engine, Phase::Step, step)?;
            let plan = scheduler.plan(self.began.elapsed());
            let mut time = knobs.step + knobs.per_token * u32::try_from(plan.tokens).unwrap_or(u32::MAX);
            if plan.starts > 0 {
                time += knobs.ttft;
            }
            if plan.sampled && !std::mem::replace(&mut self.sampler_compiled, true) {
                time += knobs.sampled_compile;
            }
            executor.execute(time, &self.log)?;
            let report = scheduler.complete();
            // An API server that is gone does not stop the engine, neither here nor in vLLM.
            let _ = wire::send(&mut self.api, &FromEngine::Step(report));
        }
    }

    /// Takes what has arrived, waiting a little when there is nothing to do; true when asked to end.
    fn take_messages(&mut self, scheduler: &mut Scheduler) -> bool {
        let mut patience = if scheduler.has_work() { Duration::ZERO } else { Duration::from_millis(50) };
        loop {
            match self.inbox.recv_timeout(patience) {
                Ok(Inbox::Api(ToEngine::Add(request))) => scheduler.add(request, self.began.elapsed()),
                Ok(Inbox::Api(ToEngine::Abort { id })) => scheduler.abort(id),
                Ok(Inbox::ApiGone) => self.orphan_since = Some(instant_now()),
                Ok(Inbox::Term) if self.deaf() => {}
                Ok(Inbox::Term) => return true,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return false,
            }
            patience = Duration::ZERO;
        }
    }
}
