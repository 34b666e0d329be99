//! `varcas-guard run`: from a plan to an exit code.

use super::options::{Options, environment, rules, runtime};
use super::report;
use super::root::complain;
use super::watching::{self, Notifier, Watch, Watching};
use crate::config::Plan;
use crate::console::lines::Style;
use crate::console::live::Live;
use crate::console::systemd;
use crate::console::watch::Messages;
use crate::error::{Context, ExitCode, Failure};
use crate::event::{Check, Event, EventKind, Outcome, Severity};
use crate::recovery::report::model::Report;
use crate::redact::Redactor;
use crate::supervisor::dispatcher::{Dispatcher, Sink};
use crate::supervisor::journal::{self, Journal, Problem};
use crate::supervisor::layout::{RunDir, SEED_NAMES};
use crate::supervisor::performer::Run;
use crate::supervisor::run_id::RunId;
use crate::supervisor::{os, proc, reap};
use crate::time::{SystemClock, instant_now};
use crate::workload::server::{self, Places, RunMark};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExit;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    watching: Watching,
    /// Print the exact command line, environment and plan; start nothing
    #[arg(long)]
    dry_run: bool,
    /// Print events as JSON lines instead of sentences
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

/// Kept free for the reports, in bytes; charts and excerpts of a long run take two or three MB.
const REPORTS: u64 = 4 << 20;

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    // A run can be long, and each of its attempts has threads of its own.
    os::keep_heap_small();
    let mut plan = args.options.plan_with(args.watching.flags(), args.watching.notify.clone())?;
    if args.watching.no_notify {
        plan.notify.clear();
    }
    let recipients = watching::recipients(&plan)?;
    if args.watching.notify_test {
        return super::notify::test(&recipients);
    }
    let rules = Arc::new(rules(&plan)?);
    let exe = std::env::current_exe().context("find this program's own file")?;
    if args.dry_run {
        return dry_run(&plan, &exe, args.json);
    }
    super::drill::stage::enter(&plan);
    let address = watching::claim(&plan)?;
    let dir = RunDir::new(&plan.output);
    let (_lock, umask) = claim(&dir)?;
    let _log = own_log(&dir);
    // The report is what is wanted most of a run that filled the disk.
    if let Ok(file) = os::create_new_private(&dir.reserve()) {
        drop(os::reserve(&file, 0, REPORTS));
    }
    os::become_subreaper().context("become the parent of orphans")?;
    let style = match (args.json, args.quiet) {
        (true, _) => Style::Json,
        (_, true) => Style::Quiet,
        _ => Style::Live,
    };
    let id = RunId::new(&jiff::ZonedDateTime::now());
    let redactor = Arc::new(redactor(&plan, &environment()));
    let clock = SystemClock::new();
    let mut notifier = Notifier::start(&plan, recipients, &dir.notifications(), &clock)?;
    let messages = notifier.as_ref().map_or_else(|| Arc::new(|| None) as Messages, Notifier::messages);
    let mut watch = address.map(|address| address.start(&clock, messages)).transpose()?;
    if let Some(watch) = watch.as_ref().filter(|_| !args.json && !args.quiet) {
        complain(format_args!("live page: {}", watch.url()));
    }
    let mut live =
        Live::on_stdout(style, clock.clone()).context("start the thread that writes to the terminal")?;
    let env = watching::inherited(&plan);
    let run = Run { plan, dir: dir.clone(), id, exe, env, rules, redactor, umask: Some(umask) };
    let code = go(Arc::new(run), clock, &mut live, watch.as_mut(), notifier.as_mut())?;
    live.settle();
    drop(std::fs::remove_file(dir.reserve()));
    let told = match report::of_run(&dir) {
        Ok(told) => told,
        Err(failure) => {
            complain(failure);
            notifier.map(Notifier::end);
            // Nothing of what the exit code 0 promises can be counted on.
            let failed = if code == 0 { ExitCode::AttemptsFailed.code() } else { code };
            return Ok(ProcessExit::from(failed));
        }
    };
    let report = &told.report;
    for failure in [link(&dir, report), report::write(&dir, &told)].into_iter().filter_map(Result::err) {
        complain(failure);
    }
    if let Some(watch) = watch {
        watch.end(&dir.report_html());
    }
    for check in report.attempts.iter().flat_map(|attempt| &attempt.checks) {
        if code == ExitCode::Refused.code() && check.severity == Severity::Refuse {
            let failure = Failure::new(ExitCode::Refused, &check.saw);
            complain(failure.hint(check.hint.clone().unwrap_or_default()));
        }
    }
    let mut last = farewell(&dir, report);
    let undelivered = notifier.map_or(0, Notifier::end);
    if undelivered > 0 {
        last.push(format!(
            "notifications: {undelivered} not delivered; `varcas-guard notify --resend {}` tries again",
            dir.root().display()
        ));
    }
    let is_for_people = matches!(live.style(), Style::Live | Style::Plain);
    live.finish(is_for_people.then_some(last).into_iter().flatten());
    Ok(ProcessExit::from(code))
}

fn redactor(plan: &Plan, env: &BTreeMap<String, String>) -> Redactor {
    let given = env.iter().chain(&plan.server.env).map(|(name, value)| (name.as_str(), value.as_str()));
    Redactor::new(given, &plan.server.extra)
}

fn go(
    run: Arc<Run>,
    clock: SystemClock,
    live: &mut Live,
    watch: Option<&mut Watch>,
    notifier: Option<&mut Notifier>,
) -> Result<u8, Failure> {
    let (facts, received) = unbounded_channel();
    let say = facts.clone();
    let tell = move |problem| {
        // At the end nobody listens any more, and `close` says it.
        drop(say.send(match problem {
            Problem::Trouble(error) => EventKind::Trouble { what: "keep the journal".to_owned(), error },
            Problem::Lost(error) => EventKind::StorageLost { error },
        }));
    };
    let path = run.dir.journal();
    let journal =
        Journal::create(&path, Arc::new(tell)).context(format_args!("create {}", path.display()))?;
    let first = EventKind::RunStarted {
        run_id: run.id.as_str().to_owned(),
        guard_version: env!("CARGO_PKG_VERSION").to_owned(),
        guard: proc::own_id(),
        plan: Box::new(run.plan.clone()),
    };
    let mut console = Console { live };
    let mut log = Log;
    let watchdog = std::env::var("WATCHDOG_USEC").ok();
    let mut systemd =
        Systemd(systemd::Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref(), watchdog.as_deref()));
    runtime()?.block_on(async {
        let handle = forward_signals(facts.clone()).context("listen for signals")?;
        let mut sinks: Vec<&mut dyn Sink> = vec![&mut console, &mut log, &mut systemd];
        if let Some(watch) = watch {
            watch.beat();
            sinks.push(watch);
        }
        if let Some(notifier) = notifier {
            sinks.push(notifier);
        }
        let code = Dispatcher::new(run, clock, journal, facts, sinks)?.run(first, received).await;
        handle.close();
        Ok(code)
    })
}

struct Console<'a> {
    live: &'a mut Live,
}

impl Sink for Console<'_> {
    fn event(&mut self, event: &Event) {
        self.live.event(event);
    }
}

struct Systemd(systemd::Notifier);

impl Sink for Systemd {
    fn event(&mut self, event: &Event) {
        self.0.show(event);
    }

    fn alive(&mut self) {
        self.0.alive(instant_now());
    }
}

/// The guard's own log has the same sentences, with the time of day.
struct Log;

impl Sink for Log {
    fn event(&mut self, event: &Event) {
        if let Some(words) = crate::event::words::sentence(&event.kind) {
            tracing::info!(attempt = event.attempt, "{words}");
        }
    }
}

fn forward_signals(facts: UnboundedSender<EventKind>) -> std::io::Result<signal_hook::iterator::Handle> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let handle = signals.handle();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for signal in signals.forever() {
            if facts.send(EventKind::SignalReceived { signal }).is_err() {
                return;
            }
        }
    })?;
    Ok(handle)
}

/// Lines of the guard's own log that may wait for the disk.
const LOG_LINES: usize = 4096;

fn own_log(dir: &RunDir) -> Option<tracing_appender::non_blocking::WorkerGuard> {
    let path = dir.guard_log();
    let folder = path.parent()?;
    let appender = tracing_appender::rolling::never(folder, path.file_name()?);
    // The default buffer has room for 128,000 lines, which are 4 MB before the first of them.
    let (writer, guard) = tracing_appender::non_blocking::NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_LINES)
        .finish(appender);
    let subscriber =
        tracing_subscriber::fmt().with_writer(writer).with_ansi(false).with_target(false).finish();
    // Somebody else's subscriber (a test's) may be there already, and is as good.
    drop(tracing::subscriber::set_global_default(subscriber));
    Some(guard)
}

/// Makes the folder ours: it must hold no older run and no live one. Nothing in it is touched otherwise.
/// New files are private from here on; the mask before comes back with the lock.
fn claim(dir: &RunDir) -> Result<(File, u32), Failure> {
    let check = output_check(dir.root());
    if check.severity == Severity::Refuse {
        return Err(Failure::new(ExitCode::Refused, check.saw).hint(check.hint.unwrap_or_default()));
    }
    let refused = |error: std::io::Error| {
        Failure::new(ExitCode::Refused, format!("cannot use {} as run folder: {error}", dir.root().display()))
            .hint("give an OUTPUT_DIR that you may write to")
    };
    // What lies above is made as the user makes folders; the run folder itself is nobody else's business.
    std::fs::create_dir_all(dir.root().parent().unwrap_or(dir.root())).map_err(refused)?;
    let umask = os::make_new_files_private();
    std::fs::create_dir_all(dir.root()).map_err(refused)?;
    match os::try_lock(&dir.lock()).map_err(refused)? {
        Some(lock) => {
            put_refused_aside(dir).map_err(refused)?;
            Ok((lock, umask))
        }
        None => Err(live(dir.root())),
    }
}

/// A run that the preflight refused started nothing, so the same folder may be given again; its report moves aside.
fn put_refused_aside(dir: &RunDir) -> std::io::Result<()> {
    if !dir.journal().exists() {
        return Ok(());
    }
    let free = (1..).map(|n| dir.root().join(format!("refused-{n}"))).find(|path| !path.exists());
    let aside = free.unwrap_or_else(|| dir.root().join("refused"));
    std::fs::create_dir(&aside)?;
    let files = [
        dir.journal(),
        dir.guard_log(),
        dir.report_json(),
        dir.report_html(),
        dir.report_md(),
        dir.notifications(),
    ];
    for path in files {
        if let Some(name) = path.file_name().filter(|_| path.exists()) {
            std::fs::rename(&path, aside.join(name))?;
        }
    }
    Ok(())
}

fn was_refused(dir: &RunDir) -> bool {
    let refused =
        |event: &Event| matches!(&event.kind, EventKind::RunFinished { outcome: Outcome::Refused, .. });
    !dir.attempt(1).root().exists()
        && journal::read(&dir.journal()).is_ok_and(|read| read.events.last().is_some_and(refused))
}

fn live(root: &Path) -> Failure {
    Failure::new(ExitCode::Refused, format!("{} belongs to a run that is alive", root.display()))
        .hint("give another OUTPUT_DIR")
}

/// Whether a run could have this folder.
pub fn output_check(root: &Path) -> Check {
    let dir = RunDir::new(root);
    let refuse = |saw: String, hint: &str| Check {
        check: "output".to_owned(),
        severity: Severity::Refuse,
        saw,
        hint: Some(hint.to_owned()),
    };
    if root.exists() && !root.is_dir() {
        return refuse(format!("{} is not a folder", root.display()), "give another OUTPUT_DIR");
    }
    if let Some(why) = shared(&dir) {
        return refuse(why, "give an OUTPUT_DIR that is yours alone");
    }
    if dir.lock().exists() && matches!(os::try_lock(&dir.lock()), Ok(None)) {
        return refuse(
            format!("{} belongs to a run that is alive", root.display()),
            "give another OUTPUT_DIR",
        );
    }
    if (dir.journal().exists() || dir.attempt(1).root().exists()) && !was_refused(&dir) {
        // Whoever asks has just seen that nobody holds the lock.
        let kind = if reap::is_open(root) { "a run that was interrupted" } else { "an older run" };
        let saw = format!("{} holds {kind}, which is not overwritten", root.display());
        return refuse(saw, "give another OUTPUT_DIR, or move the old one away");
    }
    let existing = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if let Err(error) = tempfile::tempfile_in(existing) {
        let saw = format!("cannot write to {}: {error}", existing.display());
        return refuse(saw, "give an OUTPUT_DIR that you may write to");
    }
    Check { check: "output".to_owned(), severity: Severity::Ok, saw: root.display().to_string(), hint: None }
}

/// Why this folder is no place for a run: somebody else could put files and links in our way.
fn shared(dir: &RunDir) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let root = dir.root().display();
    let meta = std::fs::metadata(dir.root()).ok()?;
    let me = os::own_uid();
    // In a container, root often writes into a folder that its user has mounted.
    if meta.uid() != me && me != 0 {
        return Some(format!("{root} belongs to user {}", meta.uid()));
    }
    if meta.mode() & 0o002 != 0 {
        return Some(format!("anybody may write to {root}"));
    }
    let link = [dir.lock(), dir.guard_log(), dir.journal(), dir.reserve(), dir.attempt(1).root().to_owned()]
        .into_iter()
        .find(|path| path.is_symlink())?;
    Some(format!("{} is a symbolic link", link.display()))
}

/// The seed's file names at the top, as links to the attempt that counts.
fn link(dir: &RunDir, report: &Report) -> Result<(), Failure> {
    let Some(number) = report.counts else { return Ok(()) };
    let attempt = dir.attempt(number);
    let names = SEED_NAMES.iter().map(|name| ((*name).to_owned(), attempt.root().join(name)));
    let traces = report.traces.iter().map(|trace| (trace.file.clone(), attempt.traces().join(&trace.file)));
    for (name, target) in names.chain(traces).filter(|(_, target)| target.exists()) {
        let relative = target.strip_prefix(dir.root()).unwrap_or(&target);
        std::os::unix::fs::symlink(relative, dir.root().join(&name)).context(format_args!("link {name}"))?;
    }
    Ok(())
}

fn farewell(dir: &RunDir, report: &Report) -> Vec<String> {
    let mut lines = vec![String::new(), format!("{}: {}", report.outcome, report.reason)];
    if let Some(bench) = &report.benchmark {
        lines.push(format!(
            "benchmark: {} requests, {:.2} requests/s, {:.1} output tokens/s, TTFT p50 {:.0} ms",
            bench.progress.completed, bench.request_throughput, bench.output_throughput, bench.ttft_ms.p50
        ));
    }
    let events: u64 = report.traces.iter().map(|trace| trace.events).sum();
    lines.push(format!("traces: {} windows with {events} events", report.traces.len()));
    let left = if report.left_behind.is_empty() { "nothing" } else { "see the report" };
    lines.push(format!("left behind: {left}"));
    lines.push(format!("report: {}", dir.report_html().display()));
    lines
}

fn dry_run(plan: &Plan, exe: &Path, json: bool) -> Result<ProcessExit, Failure> {
    let env = watching::inherited(plan);
    let mut gpu = crate::health::nvml::NvmlSource::start().context("start the thread that asks the GPUs")?;
    let leftovers = crate::supervisor::leftovers::Leftovers::Tell;
    let (checks, facts) =
        runtime()?.block_on(crate::supervisor::preflight::check(plan, &env, &mut gpu, leftovers));
    let attempt = RunDir::new(&plan.output).attempt(1);
    let places = Places {
        traces: attempt.traces(),
        scratch: PathBuf::from("/tmp/vg-XXXXXX"),
        evidence: attempt.evidence(),
        python: attempt.python(),
    };
    let mark = RunMark { run_id: RunId::new(&jiff::ZonedDateTime::now()).as_str().to_owned(), attempt: 1 };
    let command = server::command(plan, &facts, &places, &mark, &env, exe);
    let redactor = redactor(plan, &env);
    if json {
        let mut value = serde_json::json!({
            "argv": command.argv, "env": command.ours, "plan": plan, "server": facts,
            "checks": checks, "notes": command.notes,
        });
        redactor.value(&mut value);
        println!("{value}");
    } else {
        let argv = command.argv.join(" ");
        let mut text = format!("command line:\n  {argv}\n\nenvironment, beside what is inherited:\n");
        for (name, value) in &command.ours {
            let _ = writeln!(text, "  {name}={value}");
        }
        let plan = serde_json::to_string_pretty(plan).context("print the plan")?;
        let _ = writeln!(text, "\nplan:\n{plan}\n\npreflight:");
        for check in checks.iter().chain(&command.notes) {
            let _ = writeln!(text, "{}", super::check::line(check));
        }
        print!("{}", redactor.text(&text));
    }
    let refused = command.refused() || checks.iter().any(|check| check.severity == Severity::Refuse);
    Ok(if refused { ExitCode::Refused } else { ExitCode::Success }.into())
}
