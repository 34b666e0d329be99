//! The API server: starts the tree, waits for the engine, serves, and goes down the way vLLM goes down.

use super::args::Args;
use super::client::{Client, Event};
use super::fault::{Phase, What, Who};
use super::knobs::{BadKnob, Knobs};
use super::lines;
use super::log::Log;
use super::routes;
use super::tree::{self, Boot, End, strike};
use super::wire::{self, FromEngine, ToEngine};
use crate::time::instant_now;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpSocket, UnixListener};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// `VARCAS_SIM` and `VARCAS_ATTEMPT` of this process.
pub(super) fn knobs() -> Result<Knobs, BadKnob> {
    let attempt = std::env::var("VARCAS_ATTEMPT").ok().and_then(|text| text.parse().ok());
    Knobs::parse(&std::env::var("VARCAS_SIM").unwrap_or_default(), attempt, has)
}

/// Whether a setting is in force for this process: `VARIABLE`, `VARIABLE:VALUE`, or the name of a flag with underscores.
fn has(name: &str) -> bool {
    if name.starts_with(|c: char| c.is_ascii_uppercase()) {
        let (name, wanted) = name.split_once(':').map_or((name, None), |(name, value)| (name, Some(value)));
        return std::env::var(name).is_ok_and(|value| wanted.is_none_or(|wanted| value == wanted));
    }
    match super::tree::Boot::read() {
        Some(boot) => boot.args.shown.contains(&format!("'{name}':")),
        None => std::env::args().any(|word| {
            let word = word.split('=').next().unwrap_or_default();
            word.strip_prefix("--").is_some_and(|word| word.replace('-', "_") == name)
        }),
    }
}

/// The API server's whole life.
pub(super) fn main(arguments: &[String]) -> ExitCode {
    let parsed =
        Args::parse(arguments).and_then(|args| Ok((args, knobs().map_err(|error| error.to_string())?)));
    let (args, knobs) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            Log::new("").raw(&format!("api_server.py: error: {error}"));
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            Log::new("").raw(&format!("api_server.py: error: no runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = match runtime.block_on(run(args, knobs)) {
        Ok(code) => code,
        Err(End::Exit(code)) => code,
        Err(End::Crash(_)) => 1,
    };
    // Connections that are still open die with the process, as they do in vLLM.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// The engine's process, as its parent sees it. The thread that waits for it is the only one that reaps it.
#[derive(Debug, Clone)]
struct Engine {
    pid: i32,
    gone: Arc<(Mutex<bool>, Condvar)>,
}

impl Engine {
    fn watch(mut child: Child, client: &Arc<Client>) -> Self {
        let engine = Self { pid: child.id() as i32, gone: Arc::default() };
        let (gone, client) = (engine.gone.clone(), client.clone());
        std::thread::spawn(move || {
            // Only that it is gone matters: vLLM looks at no exit code either.
            let _ = child.wait();
            *gone.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            gone.1.notify_all();
            client.tell(Event::EngineExited);
        });
        engine
    }

    fn wait(&self, time: Duration) -> bool {
        let gone = self.gone.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.gone.1.wait_timeout_while(gone, time, |gone| !*gone);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// SIGTERM, and SIGKILL for the engine and its children when the grace is over. Blocks, as vLLM blocks its event
    /// loop: meanwhile nobody gets an answer.
    fn stop(&self, grace: Duration) {
        if self.wait(Duration::ZERO) {
            return;
        }
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
        if self.wait(grace) {
            return;
        }
        let children =
            std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid)).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()).chain([self.pid]) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        self.wait(Duration::from_secs(5));
    }
}

async fn run(args: Args, knobs: Knobs) -> Result<u8, End> {
    let log = Log::new("APIServer");
    let (sender, mut events) = unbounded_channel();
    let client = Client::new(args.clone(), knobs.clone(), log.clone(), sender);
    let signals = client.clone();
    forward_signals(move || signals.tell(Event::Signal));
    lines::api_start(&log, &args, &knobs);

    strike(&knobs.faults, Who::Api, Phase::Start, 1)?;
    let host = match args.host.as_deref() {
        None => Ipv4Addr::UNSPECIFIED,
        Some("localhost") => Ipv4Addr::LOCALHOST,
        Some(host) => host.parse().map_err(|_| End::Exit(2))?,
    };
    let mut strangers = Vec::new();
    steal(&client, host, Phase::Start, &mut strangers);
    // Bound early and not listening, as in vLLM, so that a taken port is known before the model is loaded.
    let Ok(port) = tree::bind_port(host, args.port, true) else {
        lines::port_in_use(&log);
        return Ok(1);
    };
    lines::api_config(&log, &args);

    let folder = std::env::var_os("VLLM_RPC_BASE_PATH").map_or_else(std::env::temp_dir, PathBuf::from);
    let (listener, socket, idle_sockets) = sockets(&folder).map_err(|error| start_failed(&log, &error))?;
    let (mut tracker, pipe) = tree::spawn_tracker().map_err(|error| start_failed(&log, &error))?;
    let semaphore = format!("/mp-{:08x}", rand::random::<u32>());
    tree::tell_tracker(pipe.as_raw_fd(), "REGISTER", &semaphore, "semaphore");
    let boot = Boot { args: args.clone(), socket, tracker: pipe.as_raw_fd(), rank: 0 };
    let child = tree::spawn("VLLM::EngineCore", "engine", &boot, Stdio::null())
        .map_err(|error| start_failed(&log, &error))?;
    let engine = Engine::watch(child, &client);

    if !wait_for_engine(&client, &listener, &mut events, &engine).await? {
        return Ok(1);
    }
    let address = format!("http://{host}:{}", args.port);
    let (stop, stopped) = watch::channel(false);
    let accepting = accept(port, client.clone(), stopped).map_err(|error| start_failed(&log, &error))?;
    steal(&client, host, Phase::Ready, &mut strangers);
    lines::api_ready(&log, &address);
    strike(&knobs.faults, Who::Api, Phase::Ready, 1)?;
    if args.log_stats {
        tokio::spawn(log_statistics(client.clone()));
    }

    let asked = serve(&client, &mut events).await?;
    if asked {
        log.info("launcher.py:110", "Shutting down FastAPI HTTP server.");
        strike(&knobs.faults, Who::Api, Phase::Stop, 1)?;
        engine.stop(knobs.engine_grace);
    }
    log.uvicorn("Shutting down");
    drain(accepting, &stop, &log).await;
    tree::sleep(knobs.shutdown_hang);
    log.uvicorn("Waiting for application shutdown.");
    log.uvicorn("Application shutdown complete.");
    if asked {
        tree::tell_tracker(pipe.as_raw_fd(), "UNREGISTER", &semaphore, "semaphore");
    } else {
        log.uvicorn(&format!("Finished server process [{}]", std::process::id()));
    }
    drop((idle_sockets, pipe, strangers));
    // Only a look: a tracker that waits for others is left to whoever reaps us.
    let _ = tracker.try_wait();
    Ok(0)
}

fn start_failed(log: &Log, error: &std::io::Error) -> End {
    log.raw(&format!("OSError: {error}"));
    End::Exit(1)
}

fn forward_signals(tell: impl Fn() + Send + 'static) {
    let signals = [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    let Ok(mut signals) = signal_hook::iterator::Signals::new(signals) else { return };
    std::thread::spawn(move || signals.forever().for_each(|_| tell()));
}

/// vLLM has three sockets, and leaves their files behind even after a clean end; so do we.
fn sockets(folder: &Path) -> std::io::Result<(UnixListener, PathBuf, [UnixListener; 2])> {
    let bind = || {
        let path = wire::socket_path(folder);
        UnixListener::bind(&path).map(|listener| (listener, path))
    };
    let (listener, path) = bind()?;
    Ok((listener, path, [bind()?.0, bind()?.0]))
}

fn steal(client: &Client, host: Ipv4Addr, phase: Phase, strangers: &mut Vec<Child>) {
    for fault in client.knobs.faults.due(Who::Api, phase, 1) {
        if let What::Steal(linger) = &fault.what {
            super::marks::struck(fault);
            let share = phase != Phase::Start;
            match tree::steal_port(host, client.args.port, share, *linger) {
                Ok(stranger) => strangers.push(stranger),
                Err(error) => client.log.raw(&format!("the stranger did not start: {error}")),
            }
        }
    }
}

/// Without a deadline, as in vLLM. False when the engine failed.
async fn wait_for_engine(
    client: &Arc<Client>,
    listener: &UnixListener,
    events: &mut UnboundedReceiver<Event>,
    engine: &Engine,
) -> Result<bool, End> {
    let mut connected = false;
    loop {
        tokio::select! {
            accepted = listener.accept(), if !connected => {
                let stream = accepted.and_then(|(stream, _)| stream.into_std());
                connected = stream.and_then(|stream| attach(client, stream)).is_ok();
                strike(&client.knobs.faults, Who::Api, Phase::Loading, 1)?;
            }
            Some(event) = events.recv() => match event {
                Event::Engine(FromEngine::Ready) => return Ok(true),
                Event::Engine(_) | Event::EngineSilent | Event::Watchdog => {}
                Event::End(end) => return Err(end),
                Event::EngineExited => {
                    lines::startup_failed(&client.log);
                    return Ok(false);
                }
                Event::Signal if is_deaf(client) => {}
                Event::Signal => {
                    lines::terminated_while_loading(&client.log);
                    engine.stop(client.knobs.engine_grace);
                    // Python ends by the signal when nobody catches its KeyboardInterrupt.
                    let _ = signal_hook::low_level::emulate_default_handler(signal_hook::consts::SIGINT);
                    return Ok(false);
                }
            },
        }
    }
}

fn is_deaf(client: &Client) -> bool {
    client.knobs.faults.is_due(Who::Api, Phase::Stop, 1, &What::IgnoreTerm)
}

/// One thread reads from the engine, one writes: a stopped engine must not stop the API server.
fn attach(client: &Arc<Client>, stream: UnixStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut writer = stream.try_clone()?;
    let (sender, receiver) = std::sync::mpsc::channel::<ToEngine>();
    client.connect(sender);
    std::thread::spawn(move || {
        for message in receiver {
            if wire::send(&mut writer, &message).is_err() {
                return;
            }
        }
    });
    let client = client.clone();
    wire::pump(stream, move |message: Option<FromEngine>| {
        client.tell(message.map_or(Event::EngineSilent, Event::Engine));
        true
    });
    Ok(())
}

/// True when asked to end, false when the engine died.
async fn serve(client: &Arc<Client>, events: &mut UnboundedReceiver<Event>) -> Result<bool, End> {
    let (mut exited, mut silent) = (false, false);
    while let Some(event) = events.recv().await {
        exited |= matches!(event, Event::EngineExited);
        silent |= matches!(event, Event::EngineSilent);
        match event {
            Event::Engine(FromEngine::Step(report)) => client.step(&report),
            Event::Engine(FromEngine::Ready) => {}
            Event::Engine(FromEngine::Dead) => died(client),
            // Its last words may still be on their way when the process is gone already.
            Event::EngineExited | Event::EngineSilent => {
                if exited && silent && !client.is_dead() {
                    lines::engine_vanished(&client.log);
                    died(client);
                }
            }
            Event::Watchdog => return Ok(false),
            Event::Signal if is_deaf(client) => {}
            Event::Signal => return Ok(true),
            // Without a word: the engine is left behind, as by `os._exit`.
            Event::End(end) => return Err(end),
        }
    }
    Ok(true)
}

fn died(client: &Arc<Client>) {
    client.die();
    let client = client.clone();
    tokio::spawn(async move {
        tokio::time::sleep(client.knobs.watchdog).await;
        client.tell(Event::Watchdog);
    });
}

type Connections = JoinSet<()>;

fn accept(
    port: TcpSocket,
    client: Arc<Client>,
    stopped: watch::Receiver<bool>,
) -> std::io::Result<JoinHandle<Connections>> {
    let listener = port.listen(2048)?;
    Ok(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        let mut stop = stopped.clone();
        loop {
            tokio::select! {
                _ = stop.changed() => return connections,
                accepted = listener.accept() => {
                    let Ok((stream, peer)) = accepted else { continue };
                    let _ = stream.set_nodelay(true);
                    let (client, mut stop) = (client.clone(), stopped.clone());
                    connections.spawn(async move {
                        let service = service_fn(move |request| {
                            let client = client.clone();
                            async move { Ok::<_, std::convert::Infallible>(routes::answer(client, peer, request).await) }
                        });
                        let connection =
                            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                        let mut connection = std::pin::pin!(connection);
                        tokio::select! {
                            // A client that breaks off is its own affair.
                            _ = connection.as_mut() => {}
                            _ = stop.changed() => {
                                connection.as_mut().graceful_shutdown();
                                let _ = connection.await;
                            }
                        }
                    });
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }))
}

/// Idle connections are closed; busy ones are waited for, without a limit.
async fn drain(accepting: JoinHandle<Connections>, stop: &watch::Sender<bool>, log: &Log) {
    let _ = stop.send(true);
    let Ok(mut connections) = accepting.await else { return };
    let all = async { while connections.join_next().await.is_some() {} };
    let mut all = std::pin::pin!(all);
    if tokio::time::timeout(Duration::from_millis(100), all.as_mut()).await.is_err() {
        log.uvicorn("Waiting for connections to close. (CTRL+C to force quit)");
        all.await;
    }
}

/// The line every ten seconds. vLLM is silent when nothing moved in two intervals, even with requests running.
async fn log_statistics(client: Arc<Client>) {
    let interval =
        std::env::var("VLLM_LOG_STATS_INTERVAL").ok().and_then(|text| text.parse().ok()).unwrap_or(10.0);
    let interval = Duration::try_from_secs_f64(interval)
        .unwrap_or(Duration::from_secs(10))
        .max(Duration::from_millis(50));
    let (mut prompt, mut generated, mut before) = (0, 0, (0.0, 0.0));
    let mut last = instant_now();
    loop {
        tokio::time::sleep(interval).await;
        let seconds = last.elapsed().as_secs_f64();
        last = instant_now();
        let (p, g, running, waiting, usage) = client.metrics(|metrics| {
            (
                metrics.prompt_tokens,
                metrics.generation_tokens,
                metrics.running,
                metrics.waiting,
                metrics.kv_usage,
            )
        });
        let now = ((p - prompt) as f64 / seconds, (g - generated) as f64 / seconds);
        (prompt, generated) = (p, g);
        if now != (0.0, 0.0) || before != (0.0, 0.0) {
            client.log.info(
                "loggers.py:257",
                &format!(
                    "Engine 000: Avg prompt throughput: {:.1} tokens/s, Avg generation throughput: {:.1} tokens/s, \
                     Running: {running} reqs, Waiting: {waiting} reqs, GPU KV cache usage: {:.1}%, Prefix cache hit \
                     rate: 0.0%",
                    now.0,
                    now.1,
                    usage * 100.0
                ),
            );
        }
        before = now;
    }
}
