//! A simulated vLLM: the same process tree, endpoints, metrics, log lines and window files, without a GPU.
use std::process::ExitCode;

/// Entrance of `varcas-guard __sim`.
pub fn main(_arguments: &[String]) -> ExitCode {
    ExitCode::FAILURE
}
