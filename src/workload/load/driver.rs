//! Sends the load. An edge.
//!
//! Three threads beside the caller's: a *pacer* builds each request and hands it over at its moment, a *streamer* with a
//! small runtime of its own owns every socket, and a *recorder* writes. The caller's runtime does disk and kernel work
//! for the guard; a stall there must not look like a slow server.

use super::compose::Recipe;
use super::kept::Kept;
use super::outcome::{ErrorClass, Fault, Record};
use super::pacer::{Pacer, Shot};
use super::ready;
use super::recorder::Recorder;
use super::result::{self, Client as ClientHealth, Context};
use super::schedule::Planned;
pub use super::spec::{Api, Limits, Load, LoadFiles, Target};
use super::stats::Samples;
use super::stream::Meaning;
use super::tally::Tally;
use super::wire::{Client, Endpoint, Seen};
use crate::config::LoadPlan;
use crate::event::{BenchSummary, EventKind};
use crate::time::{instant_now, wall_now};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// Time between two progress events.
const TICK: Duration = Duration::from_secs(1);
/// When nobody listens for this long, the server is gone: to go on would only count refused connections.
const GONE_AFTER: Duration = Duration::from_secs(10);
/// Why a load that was to stop when saturated stopped.
pub const SATURATED: &str = "open requests kept growing: the server did not keep up with the rate";
/// A timer of the streaming thread is watched this often to see how late it fires.
const LAG_PROBE: Duration = Duration::from_millis(50);

/// Runs the load that the plan describes and writes its results. The shape of the load (arrivals, mix, lengths) comes from
/// `plan.seed`, the words from `seed`: give each attempt another `seed`, or it measures the prefix cache.
///
/// When `stop` turns true (or its sender goes), what is open is cancelled at once and the partial result is written, marked
/// incomplete. When the returned future is dropped, the sockets are closed and no result is written.
pub async fn run(
    target: &Target,
    plan: &LoadPlan,
    seed: u64,
    files: &LoadFiles,
    stop: watch::Receiver<bool>,
    events: impl Fn(EventKind) + Send,
) -> Result<BenchSummary, String> {
    let recipe = Recipe::read(plan).map_err(|problems| {
        problems.into_iter().map(|(_, problem)| problem).collect::<Vec<_>>().join("; ")
    })?;
    let load = recipe.load(target, plan.seed, seed)?;
    run_load(target, load, files, stop, events).await
}

/// Runs any load; see [`run`].
pub async fn run_load(
    target: &Target,
    mut load: Load,
    files: &LoadFiles,
    mut stop: watch::Receiver<bool>,
    events: impl Fn(EventKind) + Send,
) -> Result<BenchSummary, String> {
    let endpoint = Endpoint::parse(&target.base_url)?;
    tokio::select! {
        () = ready::count_examples(target, &mut load.schedule) => {}
        () = stopped(&mut stop) => {}
    }
    let names = load.schedule.mix.workloads.iter().map(|w| w.name.clone()).collect();
    let recorder = Recorder::start(&files.requests, names)?;
    let cache_before = ready::prefix_cache(&target.base_url).await;
    let mut context = Context {
        started: wall_now(),
        ended: wall_now(),
        zone: jiff::tz::TimeZone::system(),
        base_url: target.base_url.clone(),
        model: target.model.clone(),
        context_detected: target.context_detected,
        chars_per_token: (target.tokens.chars_per_token(), target.tokens.is_measured()),
        client: ClientHealth::default(),
        prefix_cache_hit_rate: None,
        unrecorded: None,
    };
    let head = result::log_head(&load, &context);
    Kept::start(&files.benchmark_log)?.write(&head)?;
    let (kept_json, kept_log) = (Kept::start(&files.benchmark_json)?, Kept::start(&files.benchmark_log)?);
    let planned = load.schedule.requests.len() as u64;
    events(EventKind::LoadStarted { planned, seed: load.word_seed });

    let load = Arc::new(load);
    let (news, mut inbox) = mpsc::unbounded_channel();
    let job = Job { target: target.clone(), endpoint, load: Arc::clone(&load), stop, news };
    let thread = std::thread::Builder::new()
        .name("load-streamer".to_owned())
        .spawn(move || job.stream(recorder))
        .map_err(|e| format!("start the thread that streams: {e}"))?;
    // The channel ends when the thread does; dropping it tells the thread that nobody waits any more.
    while let Some(event) = inbox.recv().await {
        events(event);
    }
    let done = thread.join().map_err(|_| "the thread that streams panicked".to_owned())??;
    if let Err(error) = done.recorded {
        events(EventKind::Trouble { what: "write the request records".to_owned(), error: error.clone() });
        context.unrecorded = Some(error);
    }
    context.ended = wall_now();
    context.client = done.client;
    // A load that was stopped is wanted back at once, and its server may be gone.
    let ask = done.incomplete.is_none() && cache_before.is_some();
    let cache_after = if ask { ready::prefix_cache(&target.base_url).await } else { None };
    if let (Some(before), Some(after)) = (cache_before, cache_after) {
        let queries = after.0 - before.0;
        context.prefix_cache_hit_rate = (queries > 0.0).then(|| (after.1 - before.1) / queries);
    }
    let totals = done.tally.finish(done.incomplete);
    let warnings = result::warnings(&load, &totals, &context);
    let json = result::json(&load, &totals, &context).map_err(|e| format!("write benchmark.json: {e}"))?;
    kept_json.write(&json)?;
    let saved =
        files.benchmark_json.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    kept_log.write(&(head + &result::log_tail(&totals, &warnings, &saved)))?;
    Ok(BenchSummary { warnings, ..totals.summary() })
}

/// What the streaming thread needs.
struct Job {
    target: Target,
    endpoint: Endpoint,
    load: Arc<Load>,
    stop: watch::Receiver<bool>,
    news: mpsc::UnboundedSender<EventKind>,
}

/// What it leaves behind.
struct Streamed {
    tally: Tally,
    client: ClientHealth,
    incomplete: Option<String>,
    recorded: Result<(), String>,
}

/// What all tasks of the streaming thread share.
struct Shared {
    start: Instant,
    tally: RefCell<Tally>,
    open: RefCell<HashMap<u32, Rc<RefCell<Record>>>>,
    recorder: Recorder,
    client: Client,
    limits: Limits,
    /// Every request that ended since then was refused.
    refused_since: Cell<Option<Duration>>,
    /// In a closed loop a request is meant to be sent when it can be.
    closed: bool,
    /// Nothing more is to be sent.
    over: Cell<bool>,
}

impl Job {
    fn stream(self, recorder: Recorder) -> Result<Streamed, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("start the runtime that streams: {e}"))?;
        let local = tokio::task::LocalSet::new();
        let done = local.block_on(&runtime, self.serve(recorder));
        drop(local);
        runtime.shutdown_background();
        done
    }

    async fn serve(mut self, recorder: Recorder) -> Result<Streamed, String> {
        prepare_open_files();
        let client = Client::new(&self.endpoint).await?;
        let streams = self.load.schedule.arrivals.streams();
        let closed = streams.is_some();
        let most = streams.or(self.load.max_concurrency).map_or(usize::MAX, |n| n as usize);
        let cpu = thread_cpu();
        let start = instant_now();
        let shared = Rc::new(Shared {
            start,
            tally: RefCell::new(Tally::new(&self.load.schedule, self.load.slo)),
            open: RefCell::default(),
            recorder,
            client,
            limits: self.load.limits,
            closed,
            over: Cell::new(false),
            refused_since: Cell::new(None),
        });
        let (shots, mut due) =
            mpsc::channel(if closed { 256 } else { self.load.schedule.requests.len().max(1) });
        let (alive, gone) = channel::<()>();
        let pacer = Pacer {
            target: self.target.clone(),
            endpoint: self.endpoint.clone(),
            load: Arc::clone(&self.load),
            start,
            talks: HashMap::new(),
        };
        let pacer = std::thread::Builder::new()
            .name("load-pacer".to_owned())
            .spawn(move || pacer.pace(&shots, &gone))
            .map_err(|e| format!("start the thread that paces: {e}"))?;

        let mut tasks = tokio::task::JoinSet::new();
        let mut tick = tokio::time::interval_at((start + TICK).into(), TICK);
        let mut probe = Probe::new(start);
        let mut drain_until: Option<Instant> = None;
        // Only a closed loop ends by the clock; a schedule ends with its last request.
        let send_until = closed.then(|| start + self.load.schedule.duration);
        let incomplete = loop {
            if drain_until.is_some() && tasks.is_empty() {
                break None;
            }
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => break Some("it was stopped".to_owned()),
                () = self.news.closed() => break Some("nobody waits for it any more".to_owned()),
                () = until(send_until), if drain_until.is_none() => {
                    due.close();
                    shared.over.set(true);
                    drain_until = Some(instant_now() + self.load.drain);
                }
                shot = due.recv(), if drain_until.is_none() && tasks.len() < most => match shot {
                    Some(shot) => {
                        let think = self.load.schedule.think(&shot.planned);
                        tasks.spawn_local(converse(Rc::clone(&shared), shot, think));
                    }
                    None => drain_until = Some(instant_now() + self.load.drain),
                },
                Some(_) = tasks.join_next() => {}
                _ = tick.tick() => {
                    let progress = shared.tally.borrow_mut().tick();
                    let _ = self.news.send(EventKind::LoadProgressed(progress));
                    if let Some(since) = shared.refused_since.get()
                        && instant_now().duration_since(start) >= since + GONE_AFTER
                    {
                        let at = &self.endpoint.authority;
                        break Some(format!("nobody listens at {at} since {:.1} s", since.as_secs_f64()));
                    }
                    if self.load.stop_when_saturated && shared.tally.borrow().is_falling_behind() {
                        break Some(SATURATED.to_owned());
                    }
                }
                () = probe.fired() => {}
                () = until(drain_until) => break None,
            }
        };
        drop(alive);
        drop(due);
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        shared.cancel_open(incomplete.as_deref().unwrap_or("the drain was over"));
        pacer.join().map_err(|_| "the thread that paces panicked".to_owned())?;
        let cpu = thread_cpu().zip(cpu).map(|(now, before)| now.saturating_sub(before));
        let wall = instant_now().duration_since(start);
        let shared = Rc::into_inner(shared).ok_or("a request outlived its cancellation")?;
        let mut tally = shared.tally.into_inner();
        let _ = self.news.send(EventKind::LoadProgressed(tally.tick()));
        Ok(Streamed {
            client: probe.finish(cpu, wall),
            tally,
            incomplete,
            recorded: shared.recorder.finish(),
        })
    }
}

impl Shared {
    fn end(&self, record: Record) {
        self.open.borrow_mut().remove(&record.id);
        let refused = record.fault.as_ref().is_some_and(|f| f.class == ErrorClass::ConnectRefused);
        self.refused_since.set(refused.then(|| self.refused_since.get().unwrap_or(record.ended)));
        self.tally.borrow_mut().ended(&record);
        self.recorder.record(record);
    }

    /// Closes the book on whatever is still open.
    fn cancel_open(&self, why: &str) {
        let mut open: Vec<_> = self.open.borrow_mut().drain().map(|(_, record)| record).collect();
        open.sort_by_key(|record| record.borrow().id);
        for record in open {
            let mut record = record.borrow().clone();
            record.ended = instant_now().duration_since(self.start);
            record.fault = Some(Fault::new(ErrorClass::Cancelled, why));
            self.end(record);
        }
    }
}

/// Sends one request, and in a closed loop the further turns of its conversation.
async fn converse(shared: Rc<Shared>, shot: Shot, think: Duration) {
    let Shot { planned, request, then } = shot;
    send(&shared, planned, request).await;
    for turn in then {
        tokio::time::sleep(think).await;
        if shared.over.get() {
            return;
        }
        send(&shared, turn.planned, turn.request).await;
    }
}

/// Sends one request and follows its answer.
async fn send(shared: &Shared, planned: Planned, request: Vec<u8>) {
    let mut record = Record::new(planned.id, planned.workload, planned.at, planned.input, planned.output);
    let start = shared.start;
    record.sent = instant_now().duration_since(start);
    if shared.closed {
        record.intended = record.sent;
    }
    shared.tally.borrow_mut().sent(&record);
    let record = Rc::new(RefCell::new(record));
    shared.open.borrow_mut().insert(planned.id, Rc::clone(&record));
    let mut done = false;
    let mut fault = None;
    let result = shared
        .client
        .exchange(request, shared.limits, |at, seen| {
            let mut record = record.borrow_mut();
            match seen {
                Seen::Head(status) => record.status = Some(status),
                Seen::Event(Meaning::Done) => done = true,
                Seen::Event(Meaning::Piece { text_bytes, has_text, finish, usage }) => {
                    // An empty text in the very last piece only says why the server stopped.
                    if text_bytes > 0 || (has_text && finish.is_none()) {
                        let at = at.duration_since(start);
                        shared.tally.borrow_mut().piece(record.workload, at, record.last);
                        record.piece(at);
                    }
                    record.finish = finish.or(record.finish);
                    record.usage = usage.or(record.usage);
                }
                Seen::Event(Meaning::Error { code, message }) => {
                    let code = code.map_or(String::new(), |code| format!("code {code}: "));
                    fault.get_or_insert(Fault::new(ErrorClass::StreamError, format!("{code}{message}")));
                }
                Seen::Event(Meaning::Unreadable) => {
                    fault.get_or_insert(Fault::new(
                        ErrorClass::BadResponse,
                        "an event that is not a completion",
                    ));
                }
            }
        })
        .await;
    let mut record = record.borrow().clone();
    record.ended = instant_now().duration_since(start);
    record.fault = fault.or_else(|| verdict(&record, done, result));
    shared.end(record);
}

/// Whether a request that is over succeeded.
fn verdict(record: &Record, done: bool, result: Result<(), Fault>) -> Option<Fault> {
    match result {
        // The answer was complete before the connection broke.
        Err(fault) if !done => return Some(fault),
        Ok(()) | Err(_) => {}
    }
    if record.finish == Some(super::stream::Finish::Abort) {
        return Some(Fault::new(ErrorClass::StreamError, "the server aborted the request"));
    }
    // Some servers leave the end mark out; a finish reason before a clean end says the same.
    if !done && record.finish.is_none() {
        return Some(Fault::new(ErrorClass::Truncated, "the stream ended without [DONE] or a finish reason"));
    }
    let tokens = record.output_tokens().unwrap_or(0);
    if record.pieces == 0 && tokens == 0 {
        return Some(Fault::new(ErrorClass::EmptyOutput, "the answer holds no token"));
    }
    None
}

/// Waits until a stop is asked for; a sender that is gone counts as one, or nobody could stop the load any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Watches how late a timer of the streaming thread fires.
struct Probe {
    next: Instant,
    late: Samples,
}

impl Probe {
    fn new(start: Instant) -> Self {
        Self { next: start + LAG_PROBE, late: Samples::default() }
    }

    async fn fired(&mut self) {
        tokio::time::sleep_until(self.next.into()).await;
        let now = instant_now();
        self.late.add(Some(now.saturating_duration_since(self.next)));
        self.next = now + LAG_PROBE;
    }

    fn finish(self, cpu: Option<Duration>, wall: Duration) -> ClientHealth {
        let cpu_pct = cpu.map(|cpu| 100.0 * cpu.as_secs_f64() / wall.as_secs_f64().max(1e-9));
        ClientHealth { cpu_pct, loop_lag_ms: self.late.finish().latency() }
    }
}

/// Room in the table of open files that is made before the first request.
const FILES_AT_ONCE: u64 = 1 << 16;

/// Every open request is an open file: the soft limit, often 1,024, is raised to the hard one. What cannot be raised shows
/// as connect-failed with the system's words.
///
/// Then the kernel's table is made large at once: it doubles when it is full, and in a process with several threads each
/// doubling waits for a grace period of RCU (`expand_fdtable`), 10 ms and more in which no request could be sent.
fn prepare_open_files() {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let raised = soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok();
    let last = if raised { hard } else { soft }.min(FILES_AT_ONCE).saturating_sub(1);
    if let Ok(file) = std::fs::File::open("/dev/null")
        && let Ok(last) = i32::try_from(last)
        && let Ok(copy) = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(last))
    {
        let _ = nix::unistd::close(copy);
    }
}

/// CPU time of the calling thread so far.
fn thread_cpu() -> Option<Duration> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    u64::try_from(micros).ok().map(Duration::from_micros)
}
