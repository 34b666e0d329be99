//! What is asked of the driver: where, what, how, and where the results go. Pure.

use super::prompt::TokenModel;
use super::schedule::Schedule;
use super::tally::Slo;
use std::path::PathBuf;
use std::time::Duration;

/// Where the load goes.
#[derive(Clone, PartialEq)]
pub struct Target {
    /// `http://host:port`, with a prefix if the server has one.
    pub base_url: String,
    /// The name to send.
    pub model: String,
    /// Context length.
    pub max_model_len: u32,
    /// Whether the server told it.
    pub context_detected: bool,
    /// How text turns into tokens.
    pub tokens: TokenModel,
    /// Sent as a bearer token.
    pub api_key: Option<String>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target")
            .field("base_url", &self.base_url)
            .field("model", &self.model)
            .field("max_model_len", &self.max_model_len)
            .field("api_key", &self.api_key.as_ref().map(|_| "..."))
            .finish_non_exhaustive()
    }
}

/// Where the results go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadFiles {
    /// One line a request, written as they end.
    pub requests: PathBuf,
    /// The result for programs.
    pub benchmark_json: PathBuf,
    /// The result in the words of the user's harness.
    pub benchmark_log: PathBuf,
}

/// How long a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Send to end.
    pub total: Duration,
    /// Between two reads.
    pub idle: Option<Duration>,
}

/// Which endpoint is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`, as the user's harness.
    #[default]
    Completions,
    /// `/v1/chat/completions`.
    Chat,
}

impl Api {
    /// Its path, without the prefix of the server.
    pub fn path(self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

impl From<crate::config::Endpoint> for Api {
    fn from(endpoint: crate::config::Endpoint) -> Self {
        match endpoint {
            crate::config::Endpoint::Completions => Self::Completions,
            crate::config::Endpoint::Chat => Self::Chat,
        }
    }
}

/// A load, ready to be sent.
#[derive(Debug, Clone)]
pub struct Load {
    /// When and what.
    pub schedule: Schedule,
    /// The seed it was drawn from.
    pub shape_seed: u64,
    /// Seed of the words.
    pub word_seed: u64,
    /// Which endpoint.
    pub api: Api,
    /// How long a request may take.
    pub limits: Limits,
    /// After the last send, how long open requests may take before they are cancelled.
    pub drain: Duration,
    /// No more requests than this are open at once; the wait of the others counts into their latency from the intended
    /// send, and shows as send lag.
    pub max_concurrency: Option<u32>,
    /// What a request must keep to be good.
    pub slo: Slo,
    /// Whether the server is to write until `max_tokens`.
    pub ignore_eos: bool,
    /// Of sampling; 0 is greedy.
    pub temperature: f64,
    /// End early, marked incomplete, once it is clear that the server does not keep up.
    pub stop_when_saturated: bool,
}

impl Load {
    /// A load with the settings of the user's harness.
    pub fn new(schedule: Schedule, shape_seed: u64, word_seed: u64) -> Self {
        Self {
            schedule,
            shape_seed,
            word_seed,
            api: Api::Completions,
            limits: Limits { total: Duration::from_secs(300), idle: None },
            drain: Duration::from_secs(120),
            max_concurrency: None,
            slo: Slo::default(),
            ignore_eos: false,
            temperature: 0.0,
            stop_when_saturated: false,
        }
    }
}
