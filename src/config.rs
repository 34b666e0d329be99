//! guard.toml and flags become one validated [`Plan`]; after that nobody looks at flags again.

use crate::time::{opt_secs, secs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerKind {
    /// `python -m vllm.entrypoints.openai.api_server`.
    Vllm,
    /// The simulated vLLM in this binary.
    Sim,
    /// Any OpenAI-compatible server; its command line stands after `--`.
    Command,
}

/// Whether the profiler records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileMode {
    /// Bounded windows inside the worker.
    Windows,
    /// Not at all.
    Off,
}

/// Everything a run needs to know, validated. It is the first line of the journal, so a replay needs nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The run folder, absolute.
    pub output: PathBuf,
    /// Attempts after the first.
    pub retries: u32,
    /// The server.
    pub server: ServerPlan,
    /// The profiler.
    pub profile: ProfilePlan,
    /// The benchmark.
    pub load: LoadPlan,
    /// Budgets.
    pub budgets: Budgets,
    /// Pauses between attempts.
    pub backoff: BackoffPlan,
}

/// The server to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerPlan {
    /// Which kind.
    pub kind: ServerKind,
    /// The interpreter that has vLLM.
    pub python: PathBuf,
    /// A path or a hub name.
    pub model: String,
    /// The port on 127.0.0.1.
    pub port: u16,
    /// Further arguments, or the whole command line of `--server command`.
    pub extra: Vec<String>,
    /// Environment variables the user wants the server to have.
    pub env: BTreeMap<String, String>,
}

/// How the profiler records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfilePlan {
    /// On or off.
    pub mode: ProfileMode,
    /// A window closes after this many engine steps ...
    pub window_steps: u32,
    /// ... or after this long, whichever comes first.
    #[serde(with = "secs")]
    pub window: Duration,
    /// The rest between two windows.
    #[serde(with = "secs")]
    pub rest: Duration,
    /// A window in which no step happens for this long is closed.
    #[serde(with = "secs")]
    pub idle: Duration,
}

/// The benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadPlan {
    /// How long requests are sent.
    #[serde(with = "secs")]
    pub duration: Duration,
    /// Mean arrivals per second (Poisson).
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
}

/// The budget of each phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Budgets {
    /// Spawn to ready.
    #[serde(with = "secs")]
    pub startup: Duration,
    /// All warm-up requests together.
    #[serde(with = "secs")]
    pub warmup: Duration,
    /// Nothing moved while requests were open.
    #[serde(with = "secs")]
    pub stall: Duration,
    /// Request to close until every window is closed.
    #[serde(with = "secs")]
    pub flush: Duration,
    /// SIGTERM to the end of the tree.
    #[serde(with = "secs")]
    pub stop: Duration,
    /// SIGKILL until port, memory and names are back.
    #[serde(with = "secs")]
    pub drain: Duration,
    /// The whole run.
    #[serde(with = "opt_secs")]
    pub run: Option<Duration>,
}

/// Pauses between attempts: exponential with jitter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackoffPlan {
    /// Before the second attempt.
    #[serde(with = "secs")]
    pub initial: Duration,
    /// The longest pause.
    #[serde(with = "secs")]
    pub max: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            output: PathBuf::from("output"),
            retries: 3,
            server: ServerPlan {
                kind: ServerKind::Vllm,
                python: PathBuf::from("python3"),
                model: "TinyLlama/TinyLlama-1.1B-Chat-v1.0".to_owned(),
                port: 8000,
                extra: Vec::new(),
                env: BTreeMap::new(),
            },
            profile: ProfilePlan {
                mode: ProfileMode::Windows,
                window_steps: 20,
                window: Duration::from_secs(2),
                rest: Duration::from_secs(5),
                idle: Duration::from_secs(1),
            },
            load: LoadPlan {
                duration: Duration::from_secs(120),
                rate: 25.0,
                seed: 42,
                drain: Duration::from_secs(120),
                request_timeout: Duration::from_secs(300),
                max_failure_share: 0.1,
                warmup_requests: 3,
            },
            budgets: Budgets {
                startup: Duration::from_secs(1800),
                warmup: Duration::from_secs(600),
                stall: Duration::from_secs(180),
                flush: Duration::from_secs(120),
                stop: Duration::from_secs(30),
                drain: Duration::from_secs(60),
                run: None,
            },
            backoff: BackoffPlan { initial: Duration::from_secs(5), max: Duration::from_secs(120) },
        }
    }
}
