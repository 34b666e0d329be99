//! One file per subcommand.

pub mod bench;
pub mod check;
pub mod diagnose;
pub mod install;
pub mod options;
pub mod reap;
pub mod replay;
pub mod report;
pub mod root;
pub mod run;
pub mod salvage;
mod sweep;
pub mod traces;

pub use root::main;
