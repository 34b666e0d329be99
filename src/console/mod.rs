//! What faces a person while a run goes on. It only consumes events.

pub mod lines;
pub mod live;
pub mod notify;
pub mod systemd;
pub mod top;
pub mod watch;
