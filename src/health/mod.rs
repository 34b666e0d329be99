//! The senses. Each edge turns what it reads into samples; unknown is a value, never 0.

pub mod assess;
pub mod deaths;
pub mod disk;
pub mod follow;
pub mod gpu;
pub mod gpu_script;
pub mod lines;
pub mod log_rules;
pub mod log_starts;
pub mod log_watch;
pub mod metrics;
pub mod nvml;
pub mod process;
pub mod sampler;
mod signs;
pub mod system;
pub mod tail;
