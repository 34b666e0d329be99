//! Owns the run: the pure machine decides, the dispatcher acts, the keeper owns the processes, the journal remembers.

mod autopsy;
pub mod dispatcher;
mod family;
pub mod init;
pub mod journal;
pub mod judge;
pub mod keeper;
pub mod layout;
pub mod leftovers;
mod log_limit;
pub mod machine;
pub mod mask;
pub mod os;
mod packer;
pub mod performer;
pub mod port;
pub mod preflight;
pub mod proc;
pub mod reap;
mod returned;
pub mod run_id;
mod server_log;
pub mod state;
mod steps;
mod stop;
mod window_watch;
