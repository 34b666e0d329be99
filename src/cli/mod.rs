//! One file per subcommand.

pub mod salvage;

use std::process::ExitCode;

/// Runs the command line and returns the exit code.
pub fn main(arguments: &[String]) -> ExitCode {
    // Two internal entrances that never meet clap: the keeper and the simulator are this same binary, started again.
    match arguments.get(1).map(String::as_str) {
        Some("__keeper") => crate::supervisor::keeper::main(&arguments[2..]),
        Some("__sim") => crate::workload::sim::main(&arguments[2..]),
        Some("salvage") => {
            use clap::{Args, FromArgMatches};
            let command = salvage::Args::augment_args(clap::Command::new("salvage"));
            match command
                .try_get_matches_from(&arguments[1..])
                .and_then(|m| salvage::Args::from_arg_matches(&m))
            {
                Ok(args) => salvage::run(&args),
                Err(error) => {
                    // Where help or usage is printed to cannot be told any better.
                    let _ = error.print();
                    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
                }
            }
        }
        _ => ExitCode::SUCCESS,
    }
}
