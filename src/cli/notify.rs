//! `varcas-guard notify`: who would be told of a run, a test message to each, and what a run could not deliver.

use super::options::{of_file, runtime};
use super::watching::{host, recipients};
use crate::console::notify::outbox::{told_the_end, waiting};
use crate::console::notify::{Composer, Outbox, Recipient, post};
use crate::error::{Context, ExitCode, Failure};
use crate::supervisor::layout::RunDir;
use crate::supervisor::{journal, os};
use crate::time::{Clock, SystemClock};
use std::path::PathBuf;
use std::process::ExitCode as ProcessExit;

/// Flags of `notify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Deliver what this run could not, and tell of its end if its guard was killed
    #[arg(long, value_name = "RUN", conflicts_with = "test")]
    resend: Option<PathBuf>,
    /// Send one message to each and show what they answer
    #[arg(long)]
    test: bool,
    /// An address, or the name of a [[notify]] table that is switched off. May be given several times
    #[arg(long, value_name = "URL|NAME")]
    notify: Vec<String>,
    /// Settings file; without it ./guard.toml is read if it exists
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let plan = of_file(args.config.as_ref(), args.notify.clone())?;
    let recipients = recipients(&plan)?;
    if let Some(run) = &args.resend {
        return resend(&RunDir::new(run), &recipients);
    }
    if recipients.is_empty() {
        return Err(nobody());
    }
    if args.test {
        return test(&recipients);
    }
    for recipient in &recipients {
        let on: Vec<&str> = recipient.plan.on.iter().map(|occasion| occasion.word()).collect();
        println!("{}: {}; {}", recipient.name(), recipient.shown(), on.join(", "));
    }
    Ok(ProcessExit::SUCCESS)
}

fn nobody() -> Failure {
    Failure::new(ExitCode::Usage, "nobody is to be told")
        .hint("write a [[notify]] table into guard.toml, or pass --notify URL")
}

/// Sends one message to each and shows what they answer.
pub fn test(recipients: &[Recipient]) -> Result<ProcessExit, Failure> {
    if recipients.is_empty() {
        return Err(nobody());
    }
    let message = Composer::new(host()).test(SystemClock::new().now());
    let mut failed = false;
    let runtime = runtime()?;
    for recipient in recipients {
        let (word, answer) = match runtime.block_on(recipient.deliver(&message)) {
            Ok(answer) => ("delivered", answer),
            Err(trouble) => {
                failed = true;
                ("NOT delivered", trouble.what)
            }
        };
        println!("{} ({}): {word}: {answer}", recipient.name(), recipient.shown());
    }
    runtime.shutdown_background();
    Ok(if failed { ExitCode::AttemptsFailed } else { ExitCode::Success }.into())
}

fn resend(dir: &RunDir, recipients: &[Recipient]) -> Result<ProcessExit, Failure> {
    let path = dir.notifications();
    if !dir.journal().exists() {
        let problem = format!("{} is no run folder: it has no events.jsonl", dir.root().display());
        return Err(Failure::new(ExitCode::Usage, problem));
    }
    let Some(_lock) = os::try_lock(&dir.lock()).context(format_args!("lock {}", dir.root().display()))?
    else {
        let problem =
            format!("{} belongs to a run that is alive and delivers by itself", dir.root().display());
        return Err(Failure::new(ExitCode::Refused, problem).hint("wait for its end"));
    };
    let mut outbox = Outbox::open(&path).context(format_args!("open {}", path.display()))?;
    let looked = told_the_end(&path).context(format_args!("read {}", path.display()))?;
    if !looked {
        let mut composer = Composer::new(host());
        journal::each(&dir.journal(), |event| drop(composer.push(&event)))
            .context(format_args!("read {}", dir.journal().display()))?;
        if let Some(message) = composer.orphaned() {
            for recipient in recipients.iter().filter(|who| who.plan.on.contains(&message.occasion)) {
                outbox.due(recipient.name(), &message);
            }
        }
    }
    let due = waiting(&path).context(format_args!("read {}", path.display()))?;
    if due.is_empty() {
        println!("everything was delivered");
        return Ok(ProcessExit::SUCCESS);
    }
    let runtime = runtime()?;
    let (arrived, problems) = runtime.block_on(post::again(recipients, due, &mut outbox));
    runtime.shutdown_background();
    println!("{arrived} delivered, {} not", problems.len());
    for problem in &problems {
        println!("  {problem}");
    }
    Ok(if problems.is_empty() { ExitCode::Success } else { ExitCode::AttemptsFailed }.into())
}
