//! The entrance: which of the simulated processes is this?

use super::{api, engine, executor, harm, tree};
use std::process::ExitCode;

/// Entrance of `varcas-guard __sim`. The first argument names a role of the tree; without one it is the API server.
pub fn main(arguments: &[String]) -> ExitCode {
    match arguments.first().map(String::as_str) {
        Some("engine") => engine::main(),
        Some("worker") => executor::worker_main(),
        Some("-c") => tree::tracker_main(),
        Some("escape") => tree::escape_main(&arguments[1..]),
        Some("zombie") => ExitCode::SUCCESS,
        Some("bomb") => harm::bomb_main(&arguments[1..]),
        Some("chain") => harm::chain_main(&arguments[1..]),
        Some("stranger") => tree::stranger_main(&arguments[1..]),
        _ => api::main(arguments),
    }
}
