//! Not built yet.

use std::process::ExitCode;

/// Entrance of `varcas-guard __keeper`.
pub fn main(_arguments: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
