//! One file per subcommand.

pub mod bench;

use std::process::ExitCode;

/// Runs the command line and returns the exit code.
pub fn main(arguments: &[String]) -> ExitCode {
    // Two internal entrances that never meet clap: the keeper and the simulator are this same binary, started again.
    match arguments.get(1).map(String::as_str) {
        Some("__keeper") => crate::supervisor::keeper::main(&arguments[2..]),
        Some("__sim") => crate::workload::sim::main(&arguments[2..]),
        _ => ExitCode::SUCCESS,
    }
}
