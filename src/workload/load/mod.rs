//! The benchmark: a precomputed schedule of prompts, streamed completions, and honest counts.
//!
//! Pure: [`mix`] (what is asked), [`arrivals`] (when), [`schedule`] (both, drawn once from one seed), [`prompt`] (the
//! words), [`http1`] and [`stream`] (bytes to facts), [`outcome`] (one request), [`stats`] and [`result`] (all of them).
//! Edge: [`compose`] (from the plan to a load), [`wire`] (sockets), [`driver`] (the threads), [`recorder`] and `kept` (files), [`ready`] (is the server there at all).

pub mod arrivals;
pub mod compose;
pub mod dataset;
pub mod driver;
pub mod http1;
mod kept;
pub mod mix;
pub mod outcome;
pub mod pacer;
pub mod prompt;
pub mod ready;
pub mod recorder;
pub mod result;
pub mod schedule;
pub mod spec;
pub mod stats;
pub mod steady;
pub mod stream;
pub mod tally;
pub mod wire;
