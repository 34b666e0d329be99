//! When a fault has struck, and what of the server's lies outside of its folders, for whoever wants to know how long it
//! took to be noticed and what was left behind: lines of the file that `VARCAS_SIM_MARKS` names.

use super::fault::Fault;
use crate::time::wall_now;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The variable that names the file.
pub const MARKS: &str = "VARCAS_SIM_MARKS";

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Wall clock, in seconds since 1970.
    pub t: f64,
    /// The attempt; 0 for a server that has none.
    pub attempt: u32,
    /// Who wrote it.
    pub pid: i32,
    /// What happened.
    #[serde(flatten)]
    pub what: Marked,
}

/// What a [`Mark`] is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Marked {
    /// A fault begins now, for the first time in this process.
    Fault {
        /// Its place in `VARCAS_SIM`, from 0.
        index: usize,
        /// As it was asked for.
        text: String,
    },
    /// This file was made.
    Made(PathBuf),
}

/// A fault begins now. It is told once by each process.
pub(super) fn struck(fault: &Fault) {
    static TOLD: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());
    if TOLD.lock().unwrap_or_else(PoisonError::into_inner).insert(fault.index) {
        write(Marked::Fault { index: fault.index, text: fault.text.clone() });
    }
}

/// A file was made that is not in a folder of the server.
pub(super) fn made(path: &Path) {
    write(Marked::Made(path.to_owned()));
}

/// Wall clock, in seconds since 1970.
pub(super) fn now() -> f64 {
    wall_now().as_nanosecond() as f64 / 1e9
}

fn write(what: Marked) {
    let Some(path) = std::env::var_os(MARKS) else { return };
    let attempt = std::env::var("VARCAS_ATTEMPT").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let Ok(mut line) =
        serde_json::to_string(&Mark { t: now(), attempt, pid: std::process::id() as i32, what })
    else {
        return;
    };
    line.push('\n');
    // One write a line: all processes of the tree append to it. Without it nobody measures, and nothing else is lost.
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(path);
    let _ = opened.and_then(|mut file| file.write_all(line.as_bytes()));
}
