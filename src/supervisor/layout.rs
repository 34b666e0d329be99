//! The names of everything in a run folder, in one place. Pure: it makes paths, it touches nothing.

use std::path::{Path, PathBuf};

/// A run folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// `root` is absolute.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The journal.
    pub fn journal(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// Held with flock by the live guard.
    pub fn lock(&self) -> PathBuf {
        self.root.join(".guard.lock")
    }

    /// Room for the reports, taken at the beginning.
    pub fn reserve(&self) -> PathBuf {
        self.root.join(".reserve")
    }

    /// Messages to others, and whether they arrived.
    pub fn notifications(&self) -> PathBuf {
        self.root.join("notifications.jsonl")
    }

    /// The guard's own log.
    pub fn guard_log(&self) -> PathBuf {
        self.root.join("guard.log")
    }

    /// The post-mortem for programs.
    pub fn report_json(&self) -> PathBuf {
        self.root.join("report.json")
    }

    /// The post-mortem for people, with charts.
    pub fn report_html(&self) -> PathBuf {
        self.root.join("report.html")
    }

    /// The post-mortem for people, as text.
    pub fn report_md(&self) -> PathBuf {
        self.root.join("report.md")
    }

    /// The folder of one attempt; attempts count from 1.
    pub fn attempt(&self, number: u32) -> AttemptDir {
        AttemptDir { root: self.root.join(format!("attempt-{number}")) }
    }
}

/// The log of the server in the folder of an attempt.
pub(super) const SERVER_LOG: &str = "vllm_server.log";

/// The folder of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptDir {
    root: PathBuf,
}

impl AttemptDir {
    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Written by the server itself.
    pub fn server_log(&self) -> PathBuf {
        self.root.join(SERVER_LOG)
    }

    /// The benchmark in the seed's words.
    pub fn benchmark_log(&self) -> PathBuf {
        self.root.join("benchmark_output.log")
    }

    /// The benchmark for programs.
    pub fn benchmark_json(&self) -> PathBuf {
        self.root.join("benchmark.json")
    }

    /// One line a request, written as they finish.
    pub fn requests(&self) -> PathBuf {
        self.root.join("requests.jsonl")
    }

    /// Profiler windows and their index.
    pub fn traces(&self) -> PathBuf {
        self.root.join("traces")
    }

    /// What was saved before the kill.
    pub fn evidence(&self) -> PathBuf {
        self.root.join("evidence")
    }

    /// What was found in the private temporary folder of the server after its end.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Our Python module lies here while the attempt runs.
    pub fn python(&self) -> PathBuf {
        self.root.join("python")
    }
}

/// The seed's file names, at the top of the run folder, as links to the attempt that counts.
pub const SEED_NAMES: [&str; 3] = [SERVER_LOG, "benchmark_output.log", "benchmark.json"];

/// `safe_profile_YYYYMMDD_HHMMSS`, in local time, as the seed's script names its folders.
pub fn default_run_name(now: &jiff::ZonedDateTime) -> String {
    now.strftime("safe_profile_%Y%m%d_%H%M%S").to_string()
}
