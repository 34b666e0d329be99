//! What an attempt failed of, and what is changed for the next one.

use super::Outcome;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How sure a verdict is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confidence {
    /// Circumstances only.
    Weak,
    /// One source says so.
    Likely,
    /// The source that must know says so, or two independent ones agree.
    Certain,
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weak => "weak",
            Self::Likely => "likely",
            Self::Certain => "certain",
        })
    }
}

/// Whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Retry {
    /// As it was.
    Yes,
    /// Never: exit 93.
    No,
    /// Only with something changed.
    WithMitigation,
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::WithMitigation => "with-mitigation",
        })
    }
}

/// Words of a source, with the place where they stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quote {
    /// `vllm_server.log`, `/dev/kmsg`, `NVML`, `exit status`, ...
    pub source: String,
    /// Line number in it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// What it says.
    pub text: String,
}

/// A cause that was considered and not taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuledOut {
    /// Which.
    pub cause: String,
    /// Why not.
    pub why: String,
}

/// What an attempt failed of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The class in kebab case: `cuda-oom`, `engine-hang`, ..., `undetermined`.
    pub cause: String,
    /// The kind of end it explains.
    pub outcome: Outcome,
    /// How sure.
    pub confidence: Confidence,
    /// What happened, in a sentence or two for people.
    pub explanation: String,
    /// What to do, for people.
    pub advice: String,
    /// The line that shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decisive: Option<Quote>,
    /// Lines that only follow from it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consequences: Vec<Quote>,
    /// What else speaks for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supports: Vec<String>,
    /// What speaks against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contradicts: Vec<String>,
    /// What it was not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ruled_out: Vec<RuledOut>,
    /// Sources that could not be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
    /// Where it is known from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// Whether trying again can help.
    pub retry: Retry,
    /// Equal for two failures that are the same failure.
    pub fingerprint: String,
}

impl Verdict {
    /// What counts for what is decided after later attempts, without the words for people: those stand in the journal.
    #[must_use]
    pub fn gist(self) -> Self {
        Self {
            explanation: String::new(),
            advice: String::new(),
            decisive: None,
            consequences: Vec::new(),
            supports: Vec::new(),
            contradicts: Vec::new(),
            ruled_out: Vec::new(),
            missing: Vec::new(),
            references: Vec::new(),
            ..self
        }
    }
}

/// A setting changed for the next attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mitigation {
    /// Short name: `lower-gpu-memory`, `enforce-eager`, `smaller-profile-budget`, ...
    pub id: String,
    /// The flag, variable or key: `--gpu-memory-utilization`.
    pub setting: String,
    /// Value before; none when it was not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Value for the next attempt; none when it is taken away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// One sentence.
    pub why: String,
}

impl fmt::Display for Mitigation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Some(to) if to.is_empty() => f.write_str(&self.setting)?,
            Some(to) => write!(f, "{} {to}", self.setting)?,
            None => write!(f, "no {}", self.setting)?,
        }
        match &self.from {
            Some(from) if from.is_empty() => {}
            Some(from) => write!(f, " instead of {from}")?,
            None => {}
        }
        write!(f, " ({})", self.why)
    }
}
