//! [`Now`] at a moment, as JSON: what `status --json` prints and `/api/run` answers. Pure.
//!
//! Times are seconds, sizes are bytes, shares are between 0 and 1. What is not known is null or not there, never 0; a
//! measurement is `{"value": ..}`, `{"unavailable": {"why": ..}}` or `"stale"`.

use super::now::{Now, TokensFrom};
use crate::time::opt_secs;
use serde::Serialize;
use std::time::Duration;

/// Rises when a reader must know about a change.
pub const FORMAT: u32 = 1;

/// Whether anybody still guards the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// Its guard is alive.
    Running,
    /// It came to its end.
    Finished,
    /// Its guard is gone, and it did not come to its end.
    Interrupted,
}

/// See the module.
#[derive(Debug, Serialize)]
pub struct Snapshot<'a> {
    /// [`FORMAT`].
    pub format: u32,
    /// Whether anybody still guards the run.
    pub standing: Standing,
    /// Since the run began.
    #[serde(with = "crate::time::secs")]
    pub elapsed: Duration,
    /// Of the phase's budget.
    #[serde(with = "opt_secs")]
    pub phase_left: Option<Duration>,
    /// Requests are sent for so much longer.
    #[serde(with = "opt_secs")]
    pub load_left: Option<Duration>,
    /// Until the deadline of the whole run.
    #[serde(with = "opt_secs")]
    pub deadline_left: Option<Duration>,
    /// Output tokens per second over the last seconds.
    pub tokens_per_s: Option<f64>,
    /// Who counted them.
    pub tokens_from: Option<TokensFrom>,
    /// Resident bytes of the server's processes.
    pub rss: Option<u64>,
    /// The sentence of [`super::phrases::so_far`].
    pub so_far: Option<String>,
    /// The rest.
    #[serde(flatten)]
    pub now: &'a Now,
}

impl<'a> Snapshot<'a> {
    /// `at` is the moment on the run's own clock ([`Now::moment`]); `alive` whether its guard lives.
    pub fn new(now: &'a Now, at: Duration, alive: bool) -> Self {
        let standing = standing(now, alive);
        let last = now.last.map_or(Duration::ZERO, |last| last.mono);
        let at = if standing == Standing::Running { at.max(last) } else { last };
        let over = standing != Standing::Running;
        let tokens = now.tokens_per_s(at).filter(|_| !over);
        Self {
            format: FORMAT,
            standing,
            elapsed: at,
            phase_left: now.phase_left(at).filter(|_| !over),
            load_left: now.load_left(at).filter(|_| !over),
            deadline_left: now.deadline_left(at).filter(|_| !over),
            tokens_per_s: tokens.map(|(rate, _)| rate),
            tokens_from: tokens.map(|(_, from)| from),
            rss: now.rss(),
            so_far: super::phrases::so_far(now).map(|(_, text)| text),
            now,
        }
    }
}

/// See [`Standing`].
pub fn standing(now: &Now, alive: bool) -> Standing {
    match (&now.end, alive && !now.guard_died) {
        (Some(_), _) => Standing::Finished,
        (None, true) => Standing::Running,
        (None, false) => Standing::Interrupted,
    }
}
