//! A simulated vLLM: the same process tree, endpoints, metrics, log lines and window files, without a GPU. It is how
//! anybody tries varcas-guard on a laptop, and what the tests run against.
//!
//! `varcas-guard __sim` stands where `python -m vllm.entrypoints.openai.api_server` stands and takes the same arguments.
//! How fast it is and what goes wrong in it comes from the environment variable `VARCAS_SIM` (`knobs.rs`, `fault.rs`). The
//! real server's observable contract was recorded from vLLM 0.15.1 on a CPU (`tests/fixtures/vllm-0.15.1`).

mod api;
mod args;
mod body;
mod client;
mod crash;
mod engine;
mod entry;
mod executor;
mod fault;
mod generate;
mod harm;
mod knobs;
mod lines;
mod log;
mod marks;
mod metrics;
mod request;
mod routes;
mod scheduler;
mod trace;
mod tree;
mod windows;
mod wire;

pub use entry::main;
pub use knobs::check;
pub use marks::{MARKS, Mark, Marked};
