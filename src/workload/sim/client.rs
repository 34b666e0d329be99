//! The API server's side of the engine: open requests, their queues, the metrics, and what happens when the engine dies.

use super::args::Args;
use super::fault::{Phase, What, Who};
use super::generate;
use super::knobs::Knobs;
use super::lines;
use super::log::Log;
use super::metrics::{Ended, Metrics};
use super::request::Wanted;
use super::tree::{End, strike};
use super::wire::{Finish, FromEngine, NewRequest, StepReport, ToEngine};
use crate::time::{instant_now, wall_now};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What the main loop of the API server hears.
#[derive(Debug)]
pub(super) enum Event {
    /// SIGTERM or SIGINT.
    Signal,
    /// The engine said something.
    Engine(FromEngine),
    /// The engine will say nothing more.
    EngineSilent,
    /// The engine's process is gone.
    EngineExited,
    /// The engine has been dead for long enough.
    Watchdog,
    /// A fault ends this process.
    End(End),
}

/// What a request's queue delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Got {
    /// One token, and whether it was the last.
    Token(Option<Finish>),
    /// The engine is dead.
    Dead,
}

#[derive(Debug)]
struct Open {
    queue: UnboundedSender<Got>,
    arrived: Instant,
    first: Option<Instant>,
    last: Instant,
    ended: Ended,
}

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    open: HashMap<u64, Open>,
    requests: u64,
    dead: bool,
    to_engine: Option<std::sync::mpsc::Sender<ToEngine>>,
}

/// Shared by the main loop and all connections.
#[derive(Debug)]
pub(super) struct Client {
    /// The command line.
    pub(super) args: Args,
    /// The settings.
    pub(super) knobs: Knobs,
    /// The API server's log.
    pub(super) log: Log,
    events: UnboundedSender<Event>,
    inner: Mutex<Inner>,
}

/// A request on its way. Dropping it tells the engine to forget the request.
#[derive(Debug)]
pub(super) struct Ticket {
    client: Arc<Client>,
    /// Counts from 1.
    pub(super) number: u64,
    queue: UnboundedReceiver<Got>,
}

impl Ticket {
    /// The next token.
    pub(super) async fn next(&mut self) -> Got {
        self.queue.recv().await.unwrap_or(Got::Dead)
    }

    /// The next token if it is there already.
    pub(super) fn ready(&mut self) -> Option<Got> {
        self.queue.try_recv().ok()
    }

    /// The server this belongs to.
    pub(super) fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.client.forget(self.number);
    }
}

impl Client {
    pub(super) fn new(args: Args, knobs: Knobs, log: Log, events: UnboundedSender<Event>) -> Arc<Self> {
        let created = wall_now().as_microsecond() as f64 / 1e6;
        let metrics =
            Metrics::new(&args.served_name, args.max_model_len, knobs.kv_blocks, knobs.block_size, created);
        let inner = Inner { metrics, open: HashMap::new(), requests: 0, dead: false, to_engine: None };
        Arc::new(Self { args, knobs, log, events, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where requests go from now on.
    pub(super) fn connect(&self, to_engine: std::sync::mpsc::Sender<ToEngine>) {
        self.inner().to_engine = Some(to_engine);
    }

    /// Whether the engine is known to be dead. A hung engine is not.
    pub(super) fn is_dead(&self) -> bool {
        self.inner().dead
    }

    /// Something for the main loop.
    pub(super) fn tell(&self, event: Event) {
        // The main loop ends first only when the whole process does.
        let _ = self.events.send(event);
    }

    /// Hands a request to the engine.
    pub(super) fn submit(self: &Arc<Self>, wanted: &Wanted) -> Ticket {
        let (queue, receiver) = unbounded_channel();
        let mut inner = self.inner();
        inner.requests += 1;
        let number = inner.requests;
        if inner.dead {
            let _ = queue.send(Got::Dead);
        } else {
            let (output, stops) = generate::length(
                self.knobs.seed,
                number,
                wanted.min_tokens,
                wanted.max_tokens,
                wanted.ignore_eos,
                self.knobs.eos,
            );
            let request =
                NewRequest { id: number, prompt: wanted.prompt, output, stops, sampled: wanted.sampled };
            let now = instant_now();
            let ended = Ended { prompt: wanted.prompt, max_tokens: wanted.max_tokens, ..Ended::default() };
            inner.open.insert(number, Open { queue, arrived: now, first: None, last: now, ended });
            if let Some(engine) = &inner.to_engine {
                // A writer that ended means a dead engine, which the main loop hears of by itself.
                let _ = engine.send(ToEngine::Add(request));
            }
        }
        drop(inner);
        if let Err(end) = strike(&self.knobs.faults, Who::Api, Phase::Request, number) {
            self.tell(Event::End(end));
        }
        Ticket { client: self.clone(), number, queue: receiver }
    }

    /// What goes wrong in the stream of this request.
    pub(super) fn stream_fault(&self, number: u64) -> Option<What> {
        let mut due = self.knobs.faults.due(Who::Api, Phase::Request, number).map(|fault| &fault.what);
        due.find(|what| {
            matches!(what, What::StreamError(_) | What::Cut(_) | What::Stall(_) | What::NeverEnds)
        })
        .cloned()
    }

    /// The client of a request went away, or has all it wanted.
    fn forget(&self, number: u64) {
        let mut inner = self.inner();
        let Some(open) = inner.open.remove(&number) else { return };
        if let Some(engine) = &inner.to_engine {
            let _ = engine.send(ToEngine::Abort { id: number });
        }
        let ended = finish(open, instant_now());
        inner.metrics.ended(Finish::Abort, &ended);
    }

    /// A step of the engine: metrics and queues.
    pub(super) fn step(&self, report: &StepReport) {
        let now = instant_now();
        let mut inner = self.inner();
        inner.metrics.step(report);
        for output in &report.outputs {
            let inner = &mut *inner;
            let Some(open) = inner.open.get_mut(&output.id) else { continue };
            open.ended.generated += 1;
            if open.first.is_none() {
                open.first = Some(now);
                open.ended.queued = output.queued_s;
                inner.metrics.first_token((now - open.arrived).as_secs_f64());
            } else {
                inner.metrics.next_token((now - open.last).as_secs_f64());
            }
            open.last = now;
            // A queue without a reader belongs to a connection that is just being dropped.
            let _ = open.queue.send(Got::Token(output.finish));
            if let (Some(why), Some(open)) =
                (output.finish, output.finish.and_then(|_| inner.open.remove(&output.id)))
            {
                let ended = finish(open, now);
                inner.metrics.ended(why, &ended);
            }
        }
    }

    /// The engine is dead: every open request hears of it.
    pub(super) fn die(&self) {
        let mut inner = self.inner();
        if std::mem::replace(&mut inner.dead, true) {
            return;
        }
        for (_, open) in inner.open.drain() {
            let _ = open.queue.send(Got::Dead);
        }
        drop(inner);
        lines::output_handler_failed(&self.log);
    }

    /// The metrics, for the page and for the statistics line.
    pub(super) fn metrics<T>(&self, look: impl FnOnce(&mut Metrics) -> T) -> T {
        look(&mut self.inner().metrics)
    }
}

fn finish(open: Open, now: Instant) -> Ended {
    let mut ended = open.ended;
    ended.latency = (now - open.arrived).as_secs_f64();
    if let Some(first) = open.first {
        ended.prefill = ((first - open.arrived).as_secs_f64() - ended.queued).max(0.0);
        ended.decode = (open.last - first).as_secs_f64();
    }
    ended
}
