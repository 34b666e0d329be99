//! What faces a person while a run goes on. It only consumes events.

pub mod lines;
pub mod systemd;
