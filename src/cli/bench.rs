//! `varcas-guard bench --url URL`: the load alone, against any OpenAI-compatible server that is already there.

use super::root::complain;
use crate::cli::sweep;
use crate::config::{Endpoint, LoadPlan, Process};
use crate::error::{ExitCode as Code, Failure};
use crate::event::words::progress;
use crate::event::{BenchSummary, EventKind};
use crate::workload::load::compose::Recipe;
use crate::workload::load::driver::{self, Load, LoadFiles, Target};
use crate::workload::load::ready::{self, ReadyInfo};
use clap::Args as ClapArgs;
use clap::builder::{PossibleValuesParser, TypedValueParser};
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
    #[arg(long, default_value = "poisson", value_parser = process())]
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
    /// cyclic: one swing
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub period: Duration,
    /// ramp: rate at the end; --rate is the one at the start
    #[arg(long, default_value_t = 50.0)]
    pub to_rate: f64,
    /// closed: requests open at any time
    #[arg(long, default_value_t = 8)]
    pub streams: u32,
    /// Replay the moments, prompts and lengths of a trace or result file of the load harness
    #[arg(long, value_name = "FILE", conflicts_with_all = ["arrivals", "mix"])]
    pub trace: Option<PathBuf>,
    /// How long requests are sent (90s, 10m) [default: 120s, or the whole trace]
    #[arg(long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Seed of arrivals, mix and lengths
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Seed of the words [default: another one each time, so that no run measures the prefix cache of the last]
    #[arg(long)]
    pub word_seed: Option<u64>,
    /// Which endpoint is asked
    #[arg(long, default_value = "completions", value_parser = endpoint())]
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
    /// Start at --rate, double it until the server no longer keeps up, then look between the last two
    #[arg(long, conflicts_with = "trace")]
    pub sweep: bool,
    /// How long to wait for the server to be healthy
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub wait: Duration,
    /// Folder of requests.jsonl, benchmark.json and benchmark_output.log
    #[arg(long, short, default_value = "output/bench")]
    pub output: PathBuf,
}

impl Args {
    /// The load in the words of guard.toml.
    pub(crate) fn plan(&self) -> LoadPlan {
        let whole = if self.trace.is_some() { Duration::MAX } else { LoadPlan::default().duration };
        LoadPlan {
            duration: self.duration.unwrap_or(whole),
            rate: self.rate,
            seed: self.seed,
            drain: self.drain,
            request_timeout: self.timeout,
            max_failure_share: self.max_failure_share,
            warmup_requests: self.warmup,
            mix: self.mix.clone(),
            workloads: Vec::new(),
            arrivals: self.arrivals,
            burstiness: self.burstiness,
            branching: self.branching,
            decay: self.decay,
            amplitude: self.amplitude,
            period: self.period,
            to_rate: self.to_rate,
            streams: self.streams,
            trace: self.trace.clone(),
            endpoint: self.endpoint,
            max_concurrency: self.max_concurrency,
            ignore_eos: self.ignore_eos,
            temperature: self.temperature,
            idle_timeout: self.idle_timeout,
            slo_ttft: self.slo_ttft,
            slo_tpot: self.slo_tpot,
            slo_e2el: self.slo_e2el,
        }
    }
}

fn process() -> impl TypedValueParser<Value = Process> {
    PossibleValuesParser::new(Process::NAMES).map(|name| Process::named(&name))
}

fn endpoint() -> impl TypedValueParser<Value = Endpoint> {
    PossibleValuesParser::new(["completions", "chat"])
        .map(|name| if name == "chat" { Endpoint::Chat } else { Endpoint::Completions })
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
            complain(&failure);
            failure.exit.into()
        }
    }
}

pub(crate) fn usage(problem: impl Into<String>) -> Failure {
    Failure::new(Code::Usage, problem)
}

async fn bench(args: &Args) -> Result<Code, Failure> {
    // Whatever can be wrong without a server is found before one is asked.
    let recipe = Recipe::read(&args.plan());
    let mut problems: Vec<String> = Vec::new();
    if let Err(wrong) = &recipe {
        problems.extend(wrong.iter().map(|(_, problem)| problem.clone()));
    }
    if args.sweep && args.arrivals == Process::Closed {
        problems
            .push("--sweep raises a rate, and a closed loop has none: choose another --arrivals".to_owned());
    }
    let Some(recipe) = recipe.ok().filter(|_| problems.is_empty()) else {
        return Err(Failure { exit: Code::Usage, problems, hint: None });
    };
    let key = args.api_key_env.as_ref().map(|name| {
        std::env::var(name)
            .map_err(|_| usage(format!("the environment has no {name} to take the api key from")))
    });
    let key = key.transpose()?;
    let mut stop = stop_on_signals()?;

    let info = tokio::select! {
        info = tokio::time::timeout(args.wait, ready::wait_ready(&args.url, args.model.as_deref(), args.endpoint.into(), &recipe.mix)) => info,
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
    describe(&info, args)?;
    let warm = tokio::select! {
        warm = ready::warm_up(&target, args.endpoint.into(), args.warmup) => warm,
        _ = stop.wait_for(|stop| *stop) => return Ok(interrupted()),
    };
    let (requests, slowest) = warm.map_err(|e| Failure::new(Code::AttemptsFailed, e))?;
    println!("Warm-up: {requests} requests, slowest {:.2} s, not counted", slowest.as_secs_f64());

    let word_seed = args.word_seed.unwrap_or_else(|| rand::random::<u32>().into());
    let bench = Bench { args, recipe: &recipe, target: &target, stop: &stop, word_seed };
    if args.sweep {
        return sweep::run(&bench).await;
    }
    let load = recipe.load(&target, args.seed, word_seed).map_err(usage)?;
    let (summary, files) = bench.one(load, &args.output).await?;
    print!("{}", read(&files.benchmark_log)?);
    println!("Folder: {}", args.output.display());
    Ok(verdict(&summary, args.max_failure_share))
}

/// What every load of the command shares.
pub(crate) struct Bench<'a> {
    pub(crate) args: &'a Args,
    pub(crate) recipe: &'a Recipe,
    pub(crate) target: &'a Target,
    pub(crate) stop: &'a watch::Receiver<bool>,
    pub(crate) word_seed: u64,
}

/// 0 for a complete load of which enough succeeded.
pub(crate) fn verdict(summary: &BenchSummary, max_failure_share: f64) -> Code {
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

fn describe(info: &ReadyInfo, args: &Args) -> Result<(), Failure> {
    for note in &info.notes {
        complain(format_args!("note: {note}"));
    }
    if !info.has_usage && !args.without_usage {
        return Err(Failure::new(Code::Refused, format!("{} sends no usage with a stream", args.url))
            .hint("token counts would be unknown; --without-usage goes on without them"));
    }
    Ok(())
}

impl Bench<'_> {
    /// Runs one load; its files go into `folder`.
    pub(crate) async fn one(&self, load: Load, folder: &Path) -> Result<(BenchSummary, LoadFiles), Failure> {
        std::fs::create_dir_all(folder).map_err(|e| {
            usage(format!("create the folder {}: {e}", folder.display())).hint("choose another --output")
        })?;
        let files = LoadFiles {
            requests: folder.join("requests.jsonl"),
            benchmark_json: folder.join("benchmark.json"),
            benchmark_log: folder.join("benchmark_output.log"),
        };
        let live = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let summary = driver::run_load(self.target, load, &files, self.stop.clone(), |event| match event {
            EventKind::LoadProgressed(p) if live => eprint!("\r\x1b[K{}", progress(&p)),
            EventKind::Trouble { what, error } => complain(format_args!("warning: {what}: {error}")),
            _ => {}
        })
        .await
        .map_err(|e| Failure::new(Code::AttemptsFailed, e))?;
        if live {
            eprintln!();
        }
        Ok((summary, files))
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|e| usage(format!("read {}: {e}", path.display())))
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
