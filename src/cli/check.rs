//! `varcas-guard check`: the preflight alone.

use super::options::{Options, environment, rules, runtime};
use crate::error::{Context, ExitCode, Failure};
use crate::event::{Check, Severity};
use crate::health::nvml::NvmlSource;
use crate::supervisor::leftovers::Leftovers;
use crate::supervisor::preflight;
use std::process::ExitCode as ProcessExit;

/// Flags of `check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Print the checks as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let plan = args.options.plan()?;
    rules(&plan)?;
    let mut gpu = NvmlSource::start().context("start the thread that asks the GPUs")?;
    let env = environment();
    let (mut checks, server) = runtime()?.block_on(preflight::check(&plan, &env, &mut gpu, Leftovers::Tell));
    checks.push(super::run::output_check(&plan.output));
    if args.json {
        let value = serde_json::json!({ "server": server, "checks": checks });
        println!("{value}");
    } else {
        for check in &checks {
            println!("{}", line(check));
        }
    }
    let refused = checks.iter().any(|check| check.severity == Severity::Refuse);
    Ok(if refused { ExitCode::Refused } else { ExitCode::Success }.into())
}

/// `warn  disk: only 2 GB free` and the hint below it.
pub fn line(check: &Check) -> String {
    let word = match check.severity {
        Severity::Ok => "ok",
        Severity::Note => "note",
        Severity::Warn => "warn",
        Severity::Refuse => "REFUSE",
    };
    let hint = check.hint.as_ref().map(|hint| format!("\n        -> {hint}")).unwrap_or_default();
    format!("{word:<7} {}: {}{hint}", check.check, check.saw)
}
