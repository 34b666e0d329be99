//! What a worker says about its profiler: the lines of `windows.jsonl`.

use serde::{Deserialize, Serialize};

/// A line that `worker.py` (or the simulator) appends to `windows.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WindowLine {
    /// Rank of the worker.
    pub rank: u32,
    /// Pid of the worker.
    pub pid: i32,
    /// Unix seconds.
    pub t: f64,
    /// What happened.
    #[serde(flatten)]
    pub what: WindowEvent,
}

/// What was made of a trace that its writer did not finish.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedTrace {
    /// File name of the half that was taken.
    pub from: String,
    /// File name inside the attempt's `traces/`; none if there was nothing to save.
    pub file: Option<String>,
    /// `repaired`, `salvaged` or `nothing-to-save`.
    pub status: String,
    /// Events kept.
    pub events: u64,
    /// Events of which something was there but that could not be kept.
    pub dropped: u64,
    /// Categories of which nothing is there although such a recording has them.
    pub missing: Vec<String>,
    /// In words, or why it could not be saved.
    pub note: String,
}

/// What a window saw; empty where a worker does not tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WindowContent {
    /// The phase of the run in which it closed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Resident memory of the worker after it, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rss: Option<u64>,
    /// Bytes by which it grew in all stops and exports so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grown: Option<i64>,
    /// For each step, in order, up to 256: prefill tokens, decode tokens, requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batch: Vec<[Option<u32>; 3]>,
}

/// What a worker says about its profiler.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum WindowEvent {
    /// The worker is up and will record.
    Hello {
        /// torch version.
        #[serde(default)]
        torch: String,
        /// `CPU`, `CUDA`.
        #[serde(default)]
        activities: Vec<String>,
    },
    /// Recording began before this step.
    Opened {
        /// Counts from 0 per rank.
        window: u32,
        /// Steps the worker had executed before.
        step: u64,
        /// The phase of the run, as far as the worker was told.
        #[serde(default)]
        phase: String,
    },
    /// Recording ended; stop and export are running, which can take long.
    Flushing {
        /// The window.
        window: u32,
    },
    /// The trace is complete under its final name.
    Closed {
        /// The window.
        window: u32,
        /// File name inside the trace folder.
        file: String,
        /// Size of the file.
        bytes: u64,
        /// First and last step recorded (last is exclusive).
        first_step: u64,
        /// One past the last step.
        last_step: u64,
        /// Seconds between open and the end of recording.
        recorded_s: f64,
        /// Seconds in `profiler.stop()`.
        stop_s: f64,
        /// Seconds in the export.
        export_s: f64,
        /// `steps | time | memory | idle | asked | shutdown`.
        why: String,
        /// What it saw.
        #[serde(flatten)]
        content: WindowContent,
    },
    /// What the window took from the engine in all, known a few steps after it, and what follows from it.
    Planned {
        /// The window.
        window: u32,
        /// Start, slower steps, stop, export, and what still waited behind it.
        cost_s: f64,
        /// Of this: the recorded steps were slower than their like at rest.
        slower_s: f64,
        /// Of this: the steps behind it were slower.
        after_s: f64,
        /// Share of the engine's working time that all windows together have taken so far.
        taken: f64,
        /// The engine's working time so far, in seconds.
        worked_s: f64,
        /// Length chosen for the next window.
        next_steps: u64,
        /// Work until it can be paid for, in seconds.
        rest_s: f64,
    },
    /// No window opens for now.
    Held {
        /// Why.
        reason: String,
    },
    /// The first profile of the process, which initialises Kineto and CUPTI, was made when loading was over.
    Primed {
        /// How long it took, in seconds.
        seconds: f64,
    },
    /// This window is lost.
    Failed {
        /// The window.
        window: u32,
        /// What went wrong.
        error: String,
    },
    /// Profiling switched itself off for this worker; the engine goes on.
    Disabled {
        /// What went wrong.
        reason: String,
    },
    /// Every window is closed and no further one will open: the answer to a request to close.
    Finished {},
}
