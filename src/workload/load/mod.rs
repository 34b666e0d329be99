//! The benchmark: a precomputed schedule of prompts, streamed completions, and honest counts.

pub mod driver;
pub mod outcome;
pub mod prompt;
pub mod schedule;
pub mod stream;
