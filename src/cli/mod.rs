//! One file per subcommand.

pub mod bench;
pub mod check;
pub mod clean;
pub mod diagnose;
pub mod drill;
pub mod explain;
pub mod install;
pub mod notify;
pub mod options;
pub mod reap;
pub mod replay;
pub mod report;
pub mod root;
pub mod run;
pub mod runs;
pub mod salvage;
pub mod status;
mod sweep;
pub mod top;
pub mod traces;
pub mod watching;

pub use root::main;
