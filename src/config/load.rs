//! The benchmark's part of the plan.

use crate::time::{opt_secs, secs};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// When requests are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Process {
    /// Independent arrivals.
    #[default]
    Poisson,
    /// Equal gaps.
    Constant,
    /// Gamma-distributed gaps.
    Gamma,
    /// Bursts that set off further ones.
    Hawkes,
    /// A rate that swings.
    Cyclic,
    /// A rate that climbs or falls.
    Ramp,
    /// Each stream sends when its last request has ended.
    Closed,
}

impl Process {
    /// Their names in guard.toml and on the command line.
    pub const NAMES: [&'static str; 7] =
        ["poisson", "constant", "gamma", "hawkes", "cyclic", "ramp", "closed"];

    /// By its name; Poisson for a name that is none.
    pub fn named(name: &str) -> Self {
        match name {
            "constant" => Self::Constant,
            "gamma" => Self::Gamma,
            "hawkes" => Self::Hawkes,
            "cyclic" => Self::Cyclic,
            "ramp" => Self::Ramp,
            "closed" => Self::Closed,
            _ => Self::Poisson,
        }
    }
}

/// Which endpoint is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// `/v1/completions`, as the user's harness.
    #[default]
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

/// A `[[load.workload]]` table of guard.toml, kept as it stands: what it means is known where the load is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OwnWorkload {
    /// The line it begins at.
    pub line: usize,
    /// The table.
    pub table: serde_json::Value,
}

/// The benchmark. Journals of older versions lack some fields; the defaults stand for what those versions did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadPlan {
    /// How long requests are sent.
    #[serde(with = "secs")]
    pub duration: Duration,
    /// Mean arrivals per second.
    pub rate: f64,
    /// Seed of schedule, mix, lengths and words.
    pub seed: u64,
    /// After the last send, how long open requests may take before they are cancelled.
    #[serde(with = "secs")]
    pub drain: Duration,
    /// One request may take this long.
    #[serde(with = "secs")]
    pub request_timeout: Duration,
    /// A larger share of failed requests fails the attempt.
    pub max_failure_share: f64,
    /// Requests before the measurement; the second of them is sampled.
    pub warmup_requests: u32,
    /// A built-in mix, or a TOML file with `[[workload]]` tables.
    pub mix: String,
    /// Workloads of guard.toml; when there are any, they are the mix.
    pub workloads: Vec<OwnWorkload>,
    /// When requests are sent.
    pub arrivals: Process,
    /// Gamma: below 1 is burstier than Poisson, above 1 more regular.
    pub burstiness: f64,
    /// Hawkes: mean number of requests that one request sets off.
    pub branching: f64,
    /// Hawkes: how fast the excitement fades, per second.
    pub decay: f64,
    /// Cyclic: swing around the mean rate, 0 to 1.
    pub amplitude: f64,
    /// Cyclic: one swing.
    #[serde(with = "secs")]
    pub period: Duration,
    /// Ramp: the rate at the end.
    pub to_rate: f64,
    /// Closed: requests open at any time.
    pub streams: u32,
    /// A trace or result file of the user's harness, replayed up to `duration`.
    pub trace: Option<PathBuf>,
    /// Which endpoint is asked.
    pub endpoint: Endpoint,
    /// No more requests than this are open at once.
    pub max_concurrency: Option<u32>,
    /// Have the server write until `max_tokens`.
    pub ignore_eos: bool,
    /// Of sampling; 0 is greedy.
    pub temperature: f64,
    /// A request fails when nothing comes for this long.
    #[serde(with = "opt_secs")]
    pub idle_timeout: Option<Duration>,
    /// A good request has its first token within this.
    #[serde(with = "opt_secs")]
    pub slo_ttft: Option<Duration>,
    /// A good request takes no longer than this per token.
    #[serde(with = "opt_secs")]
    pub slo_tpot: Option<Duration>,
    /// A good request is over within this.
    #[serde(with = "opt_secs")]
    pub slo_e2el: Option<Duration>,
}

impl Default for LoadPlan {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(120),
            rate: 25.0,
            seed: 42,
            drain: Duration::from_secs(120),
            request_timeout: Duration::from_secs(300),
            max_failure_share: 0.1,
            warmup_requests: 3,
            mix: "mixed".to_owned(),
            workloads: Vec::new(),
            arrivals: Process::Poisson,
            burstiness: 1.0,
            branching: 0.6,
            decay: 2.0,
            amplitude: 0.8,
            period: Duration::from_secs(60),
            to_rate: 50.0,
            streams: 8,
            trace: None,
            endpoint: Endpoint::Completions,
            max_concurrency: None,
            ignore_eos: false,
            temperature: 0.0,
            idle_timeout: None,
            slo_ttft: None,
            slo_tpot: None,
            slo_e2el: None,
        }
    }
}
