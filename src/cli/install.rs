//! `varcas-guard install`: writes what others need to start a run: systemd, Slurm, Kubernetes. Each gets the exit codes of
//! the README as its own kind of "never again" and "once more", and lets a stop take its time.

mod kubernetes;
mod slurm;
mod systemd;

use super::root::Cli;
use crate::error::{Context, ExitCode, Failure};
use clap::Parser as _;
use std::path::Path;
use std::process::ExitCode as ProcessExit;

/// Flags of `install`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write varcas-guard.service and varcas-guard.timer for `systemctl --user`
    Systemd(systemd::Args),
    /// Write a batch script for `sbatch`
    Slurm(slurm::Args),
    /// Write the manifest of a Job for `kubectl create`
    Kubernetes(kubernetes::Args),
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    match &args.what {
        What::Systemd(args) => systemd::run(args),
        What::Slurm(args) => slurm::run(args),
        What::Kubernetes(args) => kubernetes::run(args),
    }?;
    Ok(ProcessExit::SUCCESS)
}

/// What `run` would refuse is said now and not in the night. `output` stands for the run folder that we choose.
fn check_run(output: Option<&str>, run: &[String]) -> Result<(), Failure> {
    let words = ["varcas-guard", "run"].into_iter().chain(output).chain(run.iter().map(String::as_str));
    if let Err(error) = Cli::try_parse_from(words) {
        let told = error.render().to_string();
        let problem = told.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let failure = Failure::new(ExitCode::Usage, format!("`run` would refuse: {problem}"));
        return Err(match output {
            Some(output) => failure.hint(format!("the run folder is chosen here: {output}")),
            None => failure,
        });
    }
    Ok(())
}

/// Whether this flag is among those for `run`, and not behind their `--`.
fn has_flag(run: &[String], flag: &str) -> bool {
    run.iter()
        .take_while(|word| *word != "--")
        .any(|word| word.strip_prefix(flag).is_some_and(|rest| rest.is_empty() || rest.starts_with('=')))
}

/// A value that goes into a line of its own.
fn one_line(what: &str, value: &str) -> Result<(), Failure> {
    if value.is_empty() || value.chars().any(char::is_control) {
        return Err(Failure::new(ExitCode::Usage, format!("{what} must be one line, not {value:?}")));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    std::fs::write(path, text).context(format_args!("write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_run_would_refuse_is_refused_before_the_night() {
        assert!(check_run(Some("out"), &words("--model x -- --port 9")).is_ok());
        let failure = check_run(Some("out"), &words("--modle x")).unwrap_err();
        assert!(failure.problems[0].contains("--modle"), "{failure}");
        assert!(check_run(Some("out"), &words("another-folder")).is_err());
        assert!(check_run(None, &words("a-folder")).is_ok());
    }

    #[test]
    fn the_flags_of_the_server_are_not_those_of_run() {
        assert!(has_flag(&words("--port 1"), "--port") && has_flag(&words("--port=1"), "--port"));
        assert!(!has_flag(&words("--portal 1"), "--port"));
        assert!(!has_flag(&words("--retries 1 -- --port 1"), "--port"));
    }
}
