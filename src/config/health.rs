//! What is done about a server that stands still, and how long that is borne.

#[cfg(doc)]
use crate::event::HangKind;
use crate::time::secs;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// What follows when patience is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnHang {
    /// Evidence is saved, then everything is killed.
    #[default]
    Kill,
    /// It is recorded, and the budgets of the phases alone end the attempt.
    Observe,
}

/// How the server is watched.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthPlan {
    /// What follows when patience is over.
    pub on_hang: OnHang,
    /// A file with further rules for lines of the server's log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rules: Option<PathBuf>,
    /// How long each kind of standstill is borne.
    pub patience: Patience,
}

/// How long each kind of standstill is borne.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Patience {
    /// Before this nothing is said.
    #[serde(with = "secs")]
    pub suspect_after: Duration,
    /// See [`HangKind::Stopped`].
    #[serde(with = "secs")]
    pub stopped: Duration,
    /// See [`HangKind::GpuSpin`].
    #[serde(with = "secs")]
    pub gpu_spin: Duration,
    /// See [`HangKind::GpuIdleHostIdle`].
    #[serde(with = "secs")]
    pub idle: Duration,
    /// See [`HangKind::HostBusy`].
    #[serde(with = "secs")]
    pub host_busy: Duration,
    /// The same during the warm-up: the first requests compile, for 60 s and more where the machine is busy.
    #[serde(with = "secs")]
    pub compile: Duration,
    /// See [`HangKind::DriverDead`].
    #[serde(with = "secs")]
    pub driver_dead: Duration,
    /// See [`HangKind::Client`]: told, never acted upon.
    #[serde(with = "secs")]
    pub client: Duration,
    /// See [`HangKind::Undetermined`]. Also the longest a standstill without a flush is borne, whatever its name.
    #[serde(with = "secs")]
    pub undetermined: Duration,
    /// A flush that grows.
    #[serde(with = "secs")]
    pub flush: Duration,
    /// A flush that has not grown for this long is judged as any other standstill.
    #[serde(with = "secs")]
    pub flush_still: Duration,
    /// Nothing moves while the server loads.
    #[serde(with = "secs")]
    pub loading: Duration,
    /// Patience is at least so many times the 99th percentile of the run's own gaps ...
    pub adapt_factor: f64,
    /// ... but not more than this.
    #[serde(with = "secs")]
    pub adapt_max: Duration,
    /// Patience is multiplied by this after the Kineto thread message.
    pub kineto_factor: f64,
}

impl Default for Patience {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            suspect_after: s(10),
            stopped: s(60),
            gpu_spin: s(60),
            idle: s(60),
            host_busy: s(180),
            compile: s(300),
            driver_dead: s(60),
            client: s(180),
            undetermined: s(180),
            flush: s(1800),
            flush_still: s(60),
            loading: s(600),
            adapt_factor: 5.0,
            adapt_max: s(1800),
            kineto_factor: 0.5,
        }
    }
}
