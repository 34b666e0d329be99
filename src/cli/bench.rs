//! `varcas-guard bench --url URL`: the load alone, against any OpenAI-compatible server that is already there.

use crate::error::{ExitCode as Code, Failure};
use crate::event::{BenchSummary, EventKind, Latency};
use crate::workload::load::arrivals::Arrivals;
use crate::workload::load::dataset;
use crate::workload::load::driver::{self, Api, Limits, Load, LoadFiles, Target};
use crate::workload::load::mix::Mix;
use crate::workload::load::ready::{self, ReadyInfo};
use crate::workload::load::schedule::Schedule;
use crate::workload::load::tally::Slo;
use clap::{Args as ClapArgs, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// The signal that asked for the stop; 0 when none did.
static STOPPED_BY: AtomicI32 = AtomicI32::new(0);

/// Run the load alone against a server that is already there.
#[derive(Debug, Clone, ClapArgs)]
pub struct Args {
    /// Address of the server, like <http://127.0.0.1:8000>
    #[arg(long)]
    pub url: String,
    /// Model to ask for; the first one the server lists, if not given
    #[arg(long)]
    pub model: Option<String>,
    /// What is asked: mixed, chat, rag, code, or a TOML file with `workload` tables
    #[arg(long, default_value = "mixed")]
    pub mix: String,
    /// When requests are sent
    #[arg(long, value_enum, default_value_t = Process::Poisson)]
    pub arrivals: Process,
    /// Mean requests per second
    #[arg(long, default_value_t = 25.0, allow_negative_numbers = true)]
    pub rate: f64,
    /// gamma: below 1 is burstier than Poisson, above 1 more regular
    #[arg(long, default_value_t = 1.0)]
    pub burstiness: f64,
    /// hawkes: mean number of requests that one request sets off
    #[arg(long, default_value_t = 0.6)]
    pub branching: f64,
    /// hawkes: how fast the excitement fades, per second
    #[arg(long, default_value_t = 2.0)]
    pub decay: f64,
    /// cyclic: swing around the mean rate, 0 to 1
    #[arg(long, default_value_t = 0.8)]
    pub amplitude: f64,
    /// cyclic: seconds of one swing
    #[arg(long, default_value_t = 60.0)]
    pub period: f64,
    /// ramp: rate at the end; --rate is the one at the start
    #[arg(long, default_value_t = 50.0)]
    pub to_rate: f64,
    /// closed: requests open at any time
    #[arg(long, default_value_t = 8)]
    pub streams: u32,
    /// Replay the moments, prompts and lengths of a trace or result file of the load harness
    #[arg(long, value_name = "FILE", conflicts_with_all = ["arrivals", "mix"])]
    pub trace: Option<PathBuf>,
    /// How long requests are sent (90s, 10m)
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub duration: Duration,
    /// Seed of arrivals, mix and lengths
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Seed of the words; give another one to a server that has seen these prompts
    #[arg(long, default_value_t = 42)]
    pub word_seed: u64,
    /// Which endpoint is asked
    #[arg(long, value_enum, default_value_t = Endpoint::Completions)]
    pub endpoint: Endpoint,
    /// No more requests than this are open at once; the wait of the others is counted
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_concurrency: Option<u32>,
    /// Have the server write until max_tokens
    #[arg(long)]
    pub ignore_eos: bool,
    /// Sampling temperature
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// A good request has its first token within this
    #[arg(long, value_parser = duration)]
    pub slo_ttft: Option<Duration>,
    /// A good request takes no longer than this per token
    #[arg(long, value_parser = duration)]
    pub slo_tpot: Option<Duration>,
    /// A good request is over within this
    #[arg(long, value_parser = duration)]
    pub slo_e2el: Option<Duration>,
    /// One request may take this long
    #[arg(long, default_value = "300s", value_parser = duration)]
    pub timeout: Duration,
    /// A request fails when nothing comes for this long
    #[arg(long, value_parser = duration)]
    pub idle_timeout: Option<Duration>,
    /// After the last send, how long open requests may take
    #[arg(long, default_value = "120s", value_parser = duration)]
    pub drain: Duration,
    /// Requests before the measurement; the second is sampled
    #[arg(long, default_value_t = 3)]
    pub warmup: u32,
    /// Go on although the server sends no token counts
    #[arg(long)]
    pub without_usage: bool,
    /// A larger share of failed requests makes the exit code 75
    #[arg(long, default_value_t = 0.1)]
    pub max_failure_share: f64,
    /// Name of an environment variable that holds the bearer token
    #[arg(long, value_name = "NAME")]
    pub api_key_env: Option<String>,
    /// Start at --rate and double it until the server no longer keeps up
    #[arg(long, conflicts_with = "trace")]
    pub sweep: bool,
    /// How long to wait for the server to be healthy
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub wait: Duration,
    /// Folder of requests.jsonl, benchmark.json and benchmark_output.log
    #[arg(long, short, default_value = "output/bench")]
    pub output: PathBuf,
}

/// Arrival processes of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Process {
    /// Independent arrivals
    Poisson,
    /// Equal gaps
    Constant,
    /// Gamma-distributed gaps
    Gamma,
    /// Self-exciting bursts
    Hawkes,
    /// A rate that swings
    Cyclic,
    /// A rate that climbs or falls
    Ramp,
    /// Each stream sends when its last request has ended
    Closed,
}

/// Endpoints of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// `90s`, `10m`, `1h`, `250ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("a duration looks like 250ms, 90s, 10m or 1h".to_owned()),
    };
    let number: f64 = digits.parse().map_err(|_| "a duration looks like 250ms, 90s, 10m or 1h".to_owned())?;
    Duration::try_from_secs_f64(number * factor).map_err(|e| e.to_string())
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(Err(Failure::new(Code::Bug, format!("cannot start the runtime: {error}"))));
        }
    };
    let result = runtime.block_on(bench(&args));
    runtime.shutdown_background();
    report(result)
}

fn report(result: Result<Code, Failure>) -> ExitCode {
    match result {
        Ok(code) => code.into(),
        Err(failure) => {
            eprintln!("{failure}");
            failure.exit.into()
        }
    }
}

fn usage(problem: impl Into<String>) -> Failure {
    Failure::new(Code::Usage, problem)
}

async fn bench(args: &Args) -> Result<Code, Failure> {
    // Whatever can be wrong without a server is found before one is asked.
    let mix = read_mix(args)?;
    let arrivals = arrivals(args, args.rate);
    let mut problems = if args.trace.is_some() { Vec::new() } else { mix.problems() };
    problems.extend(arrivals.problems());
    if args.duration.is_zero() {
        problems.push("--duration 0: there would be nothing to send".to_owned());
    }
    if args.sweep && args.arrivals == Process::Closed {
        problems
            .push("--sweep raises a rate, and a closed loop has none: choose another --arrivals".to_owned());
    }
    if !(args.temperature.is_finite() && args.temperature >= 0.0) {
        problems.push(format!("--temperature {}: it must be a number of at least 0", args.temperature));
    }
    if !problems.is_empty() {
        return Err(Failure { exit: Code::Usage, problems, hint: None });
    }
    let key = args.api_key_env.as_ref().map(|name| {
        std::env::var(name)
            .map_err(|_| usage(format!("the environment has no {name} to take the api key from")))
    });
    let key = key.transpose()?;
    let mut stop = stop_on_signals()?;

    let info = tokio::select! {
        info = tokio::time::timeout(args.wait, ready::wait_ready(&args.url, args.model.as_deref())) => info,
        _ = stop.wait_for(|stop| *stop) => return Ok(interrupted()),
    };
    let info = info
        .map_err(|_| {
            let waited = args.wait.as_secs_f64();
            Failure::new(Code::Refused, format!("{} was not ready within {waited} s", args.url))
                .hint("is the server up? --wait gives it more time")
        })?
        .map_err(|e| Failure::new(Code::Refused, e))?;
    let mut target = info.target();
    target.api_key = key;
    describe(&info, args, &mix, &mut target).await?;
    let warm = tokio::select! {
        warm = ready::warm_up(&target, args.warmup) => warm,
        _ = stop.wait_for(|stop| *stop) => return Ok(interrupted()),
    };
    let (requests, slowest) = warm.map_err(|e| Failure::new(Code::AttemptsFailed, e))?;
    println!("Warm-up: {requests} requests, slowest {:.2} s, not counted", slowest.as_secs_f64());

    if args.sweep {
        return sweep(args, &mix, &target, &stop).await;
    }
    let schedule = match &args.trace {
        Some(path) => {
            let text = read(path)?;
            let trace = dataset::parse_trace(&text).map_err(|e| usage(format!("{}: {e}", path.display())))?;
            Schedule::from_trace(trace, target.max_model_len)
        }
        None => Schedule::draw(mix, arrivals, args.duration, target.max_model_len, args.seed),
    };
    let (summary, files) = one(args, schedule.map_err(usage)?, &target, &stop, &args.output).await?;
    print!("{}", read(&files.benchmark_log)?);
    println!("Folder: {}", args.output.display());
    Ok(verdict(&summary, args.max_failure_share))
}

/// 0 for a complete load of which enough succeeded.
fn verdict(summary: &BenchSummary, max_failure_share: f64) -> Code {
    let lost = summary.progress.failed + summary.cancelled;
    if STOPPED_BY.load(Ordering::SeqCst) != 0 {
        interrupted()
    } else if !summary.is_complete
        || summary.progress.completed == 0
        || lost as f64 > max_failure_share * summary.progress.sent as f64
    {
        Code::AttemptsFailed
    } else {
        Code::Success
    }
}

fn interrupted() -> Code {
    if STOPPED_BY.load(Ordering::SeqCst) == signal_hook::consts::SIGTERM {
        Code::Terminated
    } else {
        Code::Interrupted
    }
}

async fn describe(info: &ReadyInfo, args: &Args, mix: &Mix, target: &mut Target) -> Result<(), Failure> {
    for note in &info.notes {
        eprintln!("note: {note}");
    }
    if !info.has_usage && !args.without_usage {
        return Err(Failure::new(Code::Refused, format!("{} sends no usage with a stream", args.url))
            .hint("token counts would be unknown; --without-usage goes on without them"));
    }
    // The built-in templates were measured with the readiness check; others need their own measurement.
    if info.tokens.is_measured()
        && Mix::named(&mix.name).as_ref() != Some(mix)
        && let Ok(tokens) = ready::calibrate(&target.base_url, &target.model, mix).await
    {
        target.tokens = tokens;
    }
    Ok(())
}

async fn one(
    args: &Args,
    schedule: Schedule,
    target: &Target,
    stop: &watch::Receiver<bool>,
    folder: &Path,
) -> Result<(BenchSummary, LoadFiles), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| {
        usage(format!("create the folder {}: {e}", folder.display())).hint("choose another --output")
    })?;
    let files = LoadFiles {
        requests: folder.join("requests.jsonl"),
        benchmark_json: folder.join("benchmark.json"),
        benchmark_log: folder.join("benchmark_output.log"),
    };
    let load = Load {
        api: match args.endpoint {
            Endpoint::Completions => Api::Completions,
            Endpoint::Chat => Api::Chat,
        },
        limits: Limits { total: args.timeout, idle: args.idle_timeout },
        drain: args.drain,
        max_concurrency: args.max_concurrency,
        slo: Slo { ttft: args.slo_ttft, tpot: args.slo_tpot, e2el: args.slo_e2el },
        ignore_eos: args.ignore_eos,
        temperature: args.temperature,
        ..Load::new(schedule, args.seed, args.word_seed)
    };
    let live = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let summary = driver::run_load(target, load, &files, stop.clone(), |event| match event {
        EventKind::LoadProgressed(p) if live => eprint!(
            "\r\x1b[Ksent {} open {} done {} failed {} tokens {}",
            p.sent, p.in_flight, p.completed, p.failed, p.output_tokens
        ),
        EventKind::Trouble { what, error } => eprintln!("warning: {what}: {error}"),
        _ => {}
    })
    .await
    .map_err(|e| Failure::new(Code::AttemptsFailed, e))?;
    if live {
        eprintln!();
    }
    Ok((summary, files))
}

/// Doubles the rate until the server answers less than 90 % of it or fails, then stops early.
async fn sweep(
    args: &Args,
    mix: &Mix,
    target: &Target,
    stop: &watch::Receiver<bool>,
) -> Result<Code, Failure> {
    println!(
        "{:>9} {:>9} {:>10} {:>10} {:>10} {:>7}",
        "rate", "done/s", "ttft p50", "ttft p99", "tpot p50", "failed"
    );
    let (mut rate, mut step, mut last) = (args.rate, 1_u64, None);
    loop {
        // Other words at each step, or the later steps would measure the prefix cache.
        let args = Args { word_seed: args.word_seed + step, ..args.clone() };
        let schedule = Schedule::draw(
            mix.clone(),
            arrivals(&args, rate),
            args.duration,
            target.max_model_len,
            args.seed + step,
        )
        .map_err(usage)?;
        let offered = schedule.requests.len() as f64 / args.duration.as_secs_f64();
        let folder = args.output.join(format!("rate-{rate}"));
        let (summary, _) = one(&args, schedule, target, stop, &folder).await?;
        let Latency { p50, p99, .. } = summary.ttft_ms;
        let done = summary.request_throughput;
        println!(
            "{rate:>9.2} {done:>9.2} {p50:>10.1} {p99:>10.1} {:>10.2} {:>7}",
            summary.tpot_ms.p50, summary.progress.failed
        );
        if !summary.is_complete {
            return Ok(verdict(&summary, args.max_failure_share));
        }
        let lost = summary.progress.failed + summary.cancelled;
        if done < 0.9 * offered || lost * 100 > summary.progress.sent {
            match last {
                Some(good) => println!("Saturated between {good} and {rate} requests per second"),
                None => println!("Saturated already at {rate} requests per second: start the sweep lower"),
            }
            return Ok(Code::Success);
        }
        last = Some(rate);
        rate *= 2.0;
        step += 1;
    }
}

fn arrivals(args: &Args, rate: f64) -> Arrivals {
    match args.arrivals {
        Process::Poisson => Arrivals::Poisson { rate },
        Process::Constant => Arrivals::Constant { rate },
        Process::Gamma => Arrivals::Gamma { rate, burstiness: args.burstiness },
        Process::Hawkes => Arrivals::Hawkes { rate, branching: args.branching, decay: args.decay },
        Process::Cyclic => Arrivals::Cyclic { rate, amplitude: args.amplitude, period: args.period },
        Process::Ramp => Arrivals::Ramp { from: rate, to: args.to_rate * rate / args.rate },
        Process::Closed => Arrivals::Closed { streams: args.streams },
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| usage(format!("read {}: {e}", path.display())))
}

fn read_mix(args: &Args) -> Result<Mix, Failure> {
    if let Some(mix) = Mix::named(&args.mix) {
        return Ok(mix);
    }
    let path = Path::new(&args.mix);
    if !path.exists() {
        return Err(usage(format!("--mix {}: neither a built-in mix nor a file", args.mix))
            .hint("built in are mixed, chat, rag and code"));
    }
    let text = read(path)?;
    let mut mix = Mix::from_toml(&text).map_err(|e| usage(format!("{}: {e}", path.display())))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    for workload in &mut mix.workloads {
        let Some(name) = &workload.dataset else { continue };
        let data = folder.join(name);
        let text = read(&data)?;
        workload.examples = dataset::parse(&text, crate::workload::load::prompt::CHARS_PER_TOKEN)
            .map_err(|e| usage(format!("{}: {e}", data.display())))?;
    }
    Ok(mix)
}

/// The first signal asks for a partial result; the default action of a second one ends the process.
fn stop_on_signals() -> Result<watch::Receiver<bool>, Failure> {
    let (ask, asked) = watch::channel(false);
    let mut signals =
        signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])
            .map_err(|e| Failure::new(Code::Bug, format!("cannot watch for signals: {e}")))?;
    std::thread::Builder::new()
        .name("bench-signals".to_owned())
        .spawn(move || {
            let mut signals = signals.forever();
            STOPPED_BY.store(signals.next().unwrap_or(0), Ordering::SeqCst);
            let _ = ask.send(true);
            if let Some(signal) = signals.next() {
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        })
        .map_err(|e| Failure::new(Code::Bug, format!("cannot watch for signals: {e}")))?;
    Ok(asked)
}
