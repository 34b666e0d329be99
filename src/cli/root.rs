//! The one definition of the command line: help, man page and completions come from it.

use super::{
    bench, check, clean, diagnose, drill, explain, install, notify, reap, replay, report, run, runs, salvage,
    status, top, traces,
};
use crate::error::{Context, ExitCode, Failure};
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExit;

/// Brings a profiled vLLM benchmark home with nobody watching.
#[derive(Debug, Parser)]
#[command(name = "varcas-guard", version, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 success, 2 usage, 69 preflight refused, 70 bug, 75 every attempt failed, \
    93 hopeless, 94 drill not as expected, 124 deadline, 130 SIGINT, 143 SIGTERM."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the server, profile it under load, and leave traces, results and a report
    Run(run::Args),
    /// Run the preflight alone; starts nothing
    Check(check::Args),
    /// Look on at a run, live or over, from another terminal
    Top(top::Args),
    /// Say in one screenful how a run goes or how it ended
    Status(status::Args),
    /// List runs and how they ended
    Runs(runs::Args),
    /// Remove old runs; never a live one
    Clean(clean::Args),
    /// Show the report of a run, also of one that was killed half-way
    Report(report::Args),
    /// Say what a vLLM server log, or a run, failed of
    Diagnose(diagnose::Args),
    /// Feed a run's journal to the state machine again and compare
    Replay(replay::Args),
    /// End what runs whose guard is dead have left
    Reap(reap::Args),
    /// Run the load alone against any OpenAI-compatible server
    Bench(bench::Args),
    /// Repair cut or broken profiler traces
    Salvage(salvage::Args),
    /// List the traces of a run or of any folder, say what they show, or merge the ranks of a window
    Traces(traces::Args),
    /// Let a simulated server fail in every known way, and see whether each failure is noticed, cleaned up and survived
    Drill(drill::Args),
    /// Show who is told of a run, send a test message, or deliver what a run could not
    Notify(notify::Args),
    /// Say what a cause, an exit code or a key of guard.toml means
    Explain(explain::Args),
    /// Write what starts a run by itself: for systemd, Slurm or Kubernetes
    Install(install::Args),
    /// Print the man page, or write one for each command
    Man {
        /// Write varcas-guard.1, varcas-guard-run.1 and so on into this folder
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Print completions for a shell
    Completions {
        /// bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
}

/// Runs the command line and returns the exit code.
pub fn main(arguments: &[String]) -> ProcessExit {
    if let Some(code) = crate::supervisor::init::attend() {
        return code;
    }
    // Two internal entrances that never meet clap: the keeper and the simulator are this same binary, started again.
    match arguments.get(1).map(String::as_str) {
        Some("__keeper") => return crate::supervisor::keeper::main(&arguments[2..]),
        Some("__sim") => return crate::workload::sim::main(&arguments[2..]),
        _ => {}
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Where help or usage is printed to cannot be told any better.
            drop(error.print());
            return if error.use_stderr() { ExitCode::Usage.into() } else { ExitCode::Success.into() };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Runs(args) => runs::run(&args),
        Command::Clean(args) => clean::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Diagnose(args) => diagnose::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Reap(args) => reap::run(&args),
        Command::Bench(args) => return bench::run(args),
        Command::Salvage(args) => return salvage::run(&args),
        Command::Traces(args) => traces::run(&args),
        Command::Install(args) => install::run(&args),
        Command::Drill(args) => drill::run(&args),
        Command::Notify(args) => notify::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Man { out } => man(out.as_deref()),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "varcas-guard", &mut std::io::stdout());
            Ok(ProcessExit::SUCCESS)
        }
    };
    result.unwrap_or_else(|failure| tell(&failure))
}

fn tell(failure: &Failure) -> ProcessExit {
    complain(failure);
    failure.exit.into()
}

/// Says it on standard error. Nobody may be there any more, which is no reason to die.
pub(super) fn complain(words: impl std::fmt::Display) {
    drop(writeln!(std::io::stderr(), "{words}"));
}

fn man(out: Option<&Path>) -> Result<ProcessExit, Failure> {
    if let Some(folder) = out {
        std::fs::create_dir_all(folder).context(format_args!("make {}", folder.display()))?;
        clap_mangen::generate_to(Cli::command(), folder)
            .context(format_args!("write man pages into {}", folder.display()))?;
        return Ok(ProcessExit::SUCCESS);
    }
    clap_mangen::Man::new(Cli::command()).render(&mut std::io::stdout()).context("print the man page")?;
    Ok(ProcessExit::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
