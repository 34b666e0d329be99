//! How the profiler records.

use crate::time::{secs, secs_list};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Whether the profiler records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProfileMode {
    /// Bounded windows inside the worker.
    Windows,
    /// Not at all.
    Off,
}

/// When windows open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rhythm {
    /// Whenever the budget has saved up for one.
    #[default]
    Budget,
    /// Back to back, whatever it costs.
    Full,
    /// At given times of the load.
    Once,
}

/// The share that `standard` may take.
const STANDARD: f64 = 0.05;
/// The share that `light` may take.
const LIGHT: f64 = 0.02;

/// How the profiler records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfilePlan {
    /// On or off.
    pub mode: ProfileMode,
    /// When windows open.
    #[serde(default)]
    pub rhythm: Rhythm,
    /// The share of its working time that recording and flushing may take from the engine; between 0 and 1.
    #[serde(default = "standard")]
    pub budget: f64,
    /// For [`Rhythm::Once`]: seconds after the load began.
    #[serde(default, with = "secs_list")]
    pub at: Vec<Duration>,
    /// A window closes after this many engine steps ...
    pub window_steps: u32,
    /// ... or after this long, whichever comes first.
    #[serde(with = "secs")]
    pub window: Duration,
    /// It is made no longer than so many events fit into it, as far as can be told beforehand.
    #[serde(default = "most_events")]
    pub window_events: u32,
    /// The shortest rest between two windows.
    #[serde(with = "secs")]
    pub rest: Duration,
    /// A window in which no step happens for this long is closed.
    #[serde(with = "secs")]
    pub idle: Duration,
}

const fn standard() -> f64 {
    STANDARD
}

/// Viewers in a browser die beyond some 50 MB of JSON; so many events are less than 40.
const fn most_events() -> u32 {
    150_000
}

/// When `once` is asked for without times: three windows, the first when the load has settled.
pub const ONCE_AT: [Duration; 3] =
    [Duration::from_secs(15), Duration::from_secs(45), Duration::from_secs(90)];

impl Default for ProfilePlan {
    fn default() -> Self {
        Self {
            mode: ProfileMode::Windows,
            rhythm: Rhythm::Budget,
            budget: STANDARD,
            at: Vec::new(),
            window_steps: 20,
            window: Duration::from_secs(2),
            window_events: most_events(),
            rest: Duration::from_secs(1),
            idle: Duration::from_secs(1),
        }
    }
}

impl ProfilePlan {
    /// The words of `--profile`.
    pub const PRESETS: &'static [&'static str] = &["windows", "light", "standard", "full", "once", "off"];

    /// Takes one of [`Self::PRESETS`] over. `windows` is `standard`, unless a budget is given.
    pub fn set_preset(&mut self, word: &str) {
        self.mode = if word == "off" { ProfileMode::Off } else { ProfileMode::Windows };
        self.rhythm = match word {
            "full" => Rhythm::Full,
            "once" => Rhythm::Once,
            _ => Rhythm::Budget,
        };
        match word {
            "light" => self.budget = LIGHT,
            "standard" => self.budget = STANDARD,
            _ => {}
        }
    }

    /// What the engine pays, in words, for a person who is about to start.
    pub fn price(&self) -> Option<String> {
        match (self.mode, self.rhythm) {
            (ProfileMode::Off, _) => None,
            (_, Rhythm::Budget) => Some(format!("windows may take {} % of the engine's time", percent(self.budget))),
            (_, Rhythm::Full) => Some(
                "windows back to back: on an H100 with a small model this took more than half of the throughput, so the \
                 benchmark's figures say little"
                    .to_owned(),
            ),
            (_, Rhythm::Once) => Some(format!(
                "{} windows, each of which stops the engine for as long as its flush takes (some 7 µs an event)",
                self.at.len().max(if self.at.is_empty() { ONCE_AT.len() } else { 0 })
            )),
        }
    }
}

/// `5`, `2.5`: without superfluous zeros.
pub fn percent(share: f64) -> String {
    format!("{}", (share * 10_000.0).round() / 100.0)
}
