//! What the preflight saw.

use serde::{Deserialize, Serialize};

/// How serious a preflight finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Checked and good.
    Ok,
    /// Worth knowing, nothing to do.
    Note,
    /// May spoil the run.
    Warn,
    /// Nothing may be started.
    Refuse,
}

/// One line of the preflight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Short name: `port`, `model`, `vllm`, `disk`, ...
    pub check: String,
    /// How serious.
    pub severity: Severity,
    /// What was seen.
    pub saw: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What the preflight learned about the server that will be started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `vllm.__version__`, or of the simulator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The device vLLM will use: `cuda`, `cpu`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The torch version beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
    /// Of the command-line flags and environment variables that varcas-guard would use, those this server knows. Empty when
    /// nobody could look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}
