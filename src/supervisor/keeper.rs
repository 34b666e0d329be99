//! The keeper: a small, single-threaded process that owns the server's processes, and the guard's handle on it.
//!
//! The guard starts `varcas-guard __keeper` with one end of a socket pair as standard input. The keeper becomes
//! session leader and subreaper, starts the server, reports every process of the tree and its death, and obeys orders.
//! When the socket closes, the guard is dead: the keeper kills and reaps everything, cleans up, and writes the
//! journal's last line. When both are dead, the heir, a copy of the keeper that only waits for this, does it.
//!
//! `wire` is what the two say to each other, `process` the keeper's loop, `tree` who belongs to the server, `kill` the
//! way to get rid of them, `last_words` the journal line after the guard's death, `handle` the guard's side.

mod handle;
mod heir;
pub(crate) mod kill;
pub(crate) mod last_words;
mod process;
pub(crate) mod tree;
mod wire;

pub use handle::Keeper;
pub use process::main;
pub use wire::{KeeperSpec, Order, Target};
