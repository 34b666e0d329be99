//! Watching a run from elsewhere: `--listen`. `state` is what is known, folded from the events on the dispatcher's thread;
//! everything else happens on a thread of its own (`server`), so that nobody who watches can hold up the run.

mod access;
pub mod metrics;
mod page;
mod server;
mod state;
mod streams;

pub use access::{Access, Refusal, SHORTEST_TOKEN};
pub use server::{Ended, Messages, Server, random};
pub use state::Watched;
