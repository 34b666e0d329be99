//! `varcas-guard drill`: a simulated server fails in every known way, and each time a real guard has to notice it, clean
//! up, and do what is right. It is the machine and the guard.toml of the user that are tried.

mod config;
mod judge;
mod leaks;
mod lines;
mod play;
mod port;
mod scenario;
pub mod stage;
mod tell;

use crate::config::{Given, Plan, plan};
use crate::error::{Context, ExitCode, Failure};
use crate::health::log_rules::Rules;
use crate::supervisor::os;
use crate::time::instant_now;
use config::Users;
use futures_util::{StreamExt, stream};
use play::{Played, Shared};
use port::Ports;
use scenario::Scenario;
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExit;
use tell::{Row, Sums};
use tokio::sync::watch;

/// Flags of `drill`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name the scenarios and what each is about; run nothing
    #[arg(long)]
    list: bool,
    /// Only this scenario, or those that begin so (`metrics-*`); may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Run a file of your own scenarios instead (see docs/drill.md)
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Run each so many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// So many at a time [default: three a processor, at most 12]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// The guard.toml that is tried; without it ./guard.toml if it exists. Its policy, rules and environment hold; times and the
    /// server are the drill's own
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print a JSON object a run, and one of all at the end
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let file = config_file(args.config.as_deref())?;
    let (users, rules) = users(file.as_ref())?;
    let scenarios = scenarios(args, &rules)?;
    if args.list {
        for scenario in &scenarios {
            println!("{:<28} {}", scenario.name(), scenario.about);
        }
        return Ok(ProcessExit::SUCCESS);
    }
    let jobs = args.jobs.map_or_else(default_jobs, |jobs| jobs as usize);
    if !args.json {
        let name = file.as_ref().map(|(name, _)| name.as_str());
        println!("{}", tell::head(scenarios.len(), args.repeat, jobs, name, &users));
    }
    // Whatever escapes from a guard comes to us and is seen.
    os::become_subreaper().context("become the parent of orphans")?;
    let base = scratch()?;
    let (interrupt, interrupted) = watch::channel(false);
    let signals = forward_signals(interrupt)?;
    let shared = Shared {
        exe: std::env::current_exe().context("find this program's own file")?,
        base: base.clone(),
        users,
        rules,
        ports: RefCell::new(Ports::new(os::own_pid().unsigned_abs().wrapping_mul(131))),
        guards: RefCell::default(),
        interrupted,
    };
    let began = instant_now();
    let result = crate::cli::options::runtime()?.block_on(all(&shared, &scenarios, args, jobs));
    signals.handle.close();
    let orphans = leaks::orphans(&shared.guards.borrow());
    leaks::end(&orphans);
    let played = result.inspect_err(|_| drop(std::fs::remove_dir_all(&base)))?;
    let rows = rows(&scenarios, &played);
    let mut sums = Sums::of(&rows);
    sums.leaks += orphans.len();
    // Not empty when something is to be looked at.
    drop(std::fs::remove_dir(&base));
    let took = began.elapsed();
    if args.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        println!("{}", serde_json::json!({"summary": sums.json(took), "scenarios": rows}));
    } else {
        if args.repeat > 1 {
            println!("{}", tell::table(&rows));
        }
        for orphan in &orphans {
            println!("left behind by nobody knows which: process {} ({})", orphan.id.pid, orphan.comm);
        }
        println!("{}", sums.line(took));
        if !sums.are_good() && !shared.users.kept.is_empty() {
            println!("settings of yours were in force: {}", shared.users.kept.join(", "));
        }
    }
    Ok(match signals.got() {
        Some(signal_hook::consts::SIGINT) => ExitCode::Interrupted,
        Some(_) => ExitCode::Terminated,
        None if sums.are_good() => ExitCode::Success,
        None => ExitCode::Unexpected,
    }
    .into())
}

/// Most of a scenario is waiting.
fn default_jobs() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).saturating_mul(3).min(12)
}

async fn all(
    shared: &Shared,
    scenarios: &[Scenario],
    args: &Args,
    jobs: usize,
) -> Result<Vec<Played>, Failure> {
    let repeat = args.repeat as usize;
    let runs = (0..repeat * scenarios.len()).map(|number| (number, number % scenarios.len()));
    let runs = runs.map(|(number, index)| async move {
        if *shared.interrupted.borrow() {
            return Ok(None);
        }
        play::play(shared, &scenarios[index], index, number).await.map(Some)
    });
    let mut runs = stream::iter(runs).buffer_unordered(jobs);
    let mut played = Vec::new();
    let mut failure = None;
    while let Some(one) = runs.next().await {
        match one {
            Ok(None) => {}
            Ok(Some(one)) => {
                let scenario = &scenarios[one.index];
                let line =
                    if args.json { tell::json_line(scenario, &one) } else { tell::line(scenario, &one) };
                println!("{line}");
                played.push(one);
            }
            // The others are let go on to their end: each has a guard to look after.
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(played),
    }
}

fn rows<'a>(scenarios: &'a [Scenario], played: &'a [Played]) -> Vec<Row<'a>> {
    let of = |index: usize| played.iter().filter(move |run| run.index == index && !run.interrupted).collect();
    let rows = scenarios.iter().enumerate().map(|(index, scenario)| Row { scenario, runs: of(index) });
    rows.filter(|row| !row.runs.is_empty()).collect()
}

fn read(path: &Path) -> Result<(String, String), Failure> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(ExitCode::Usage, format!("cannot read {name}: {error}")))?;
    Ok((name, text))
}

fn config_file(given: Option<&Path>) -> Result<Option<(String, String)>, Failure> {
    let usual = Path::new("guard.toml");
    match given {
        Some(path) => read(path).map(Some),
        None if usual.is_file() => read(usual).map(Some),
        None => Ok(None),
    }
}

/// What of the user's file holds. A mistake in it is told as `run` would.
fn users(file: Option<&(String, String)>) -> Result<(Users, Rules), Failure> {
    let Some((name, text)) = file else { return Ok((Users::default(), Rules::builtin())) };
    let given = Given { file: Some((name.clone(), text.clone())), ..Given::default() };
    let plan = plan(Plan::default(), &given)?;
    let mut users = Users::read(text);
    if let Some(path) = &plan.health.rules {
        let absolute = std::path::absolute(path).context(format_args!("find {}", path.display()))?;
        users.set_rules(&absolute);
    }
    Ok((users, crate::cli::options::rules(&plan)?))
}

fn scenarios(args: &Args, rules: &Rules) -> Result<Vec<Scenario>, Failure> {
    let all = match &args.scenario {
        Some(path) => {
            let (name, text) = read(path)?;
            scenario::read(&name, &text).map_err(|problems| Failure {
                exit: ExitCode::Usage,
                problems,
                hint: Some("docs/drill.md says how to write scenarios".to_owned()),
            })?
        }
        None => scenario::shipped().into_iter().chain(lines::scenarios(rules)).collect(),
    };
    let ids: Vec<&str> = rules.rules().iter().map(|rule| rule.id.as_str()).collect();
    for rule in all.iter().flat_map(|scenario| &scenario.fault).filter_map(|fault| fault.rule.as_deref()) {
        if !ids.contains(&rule) {
            let hint = crate::config::settings::suggestion(rule, &ids);
            return Err(Failure::new(ExitCode::Usage, format!("no rule is called `{rule}`{hint}")));
        }
    }
    scenario::choose(all, &args.only).map_err(|problem| Failure::new(ExitCode::Usage, problem))
}

/// A private folder with a short path.
fn scratch() -> Result<PathBuf, Failure> {
    let temporary = std::env::temp_dir();
    let base = if temporary.as_os_str().len() > 20 { Path::new("/tmp") } else { temporary.as_path() };
    let made = tempfile::Builder::new().prefix("vd-").tempdir_in(base);
    Ok(made.context(format_args!("make a folder in {}", base.display()))?.keep())
}

/// Tells the drill to end, and remembers why.
struct Signals {
    handle: signal_hook::iterator::Handle,
    got: std::sync::Arc<std::sync::atomic::AtomicI32>,
}

impl Signals {
    fn got(&self) -> Option<i32> {
        Some(self.got.load(std::sync::atomic::Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}

fn forward_signals(interrupt: watch::Sender<bool>) -> Result<Signals, Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("listen for signals")?;
    let handle = signals.handle();
    let got: std::sync::Arc<std::sync::atomic::AtomicI32> = std::sync::Arc::default();
    let first = std::sync::Arc::clone(&got);
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for signal in signals.forever() {
                let unset = std::sync::atomic::Ordering::Relaxed;
                let _ = first.compare_exchange(0, signal, unset, unset);
                interrupt.send_replace(true);
            }
            // Keeps the sender, and with it every waiter, until the end.
            drop(interrupt);
        })
        .context("start a thread for signals")?;
    Ok(Signals { handle, got })
}
