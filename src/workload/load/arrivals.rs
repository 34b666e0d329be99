//! When requests are sent: a precomputed, absolute list of moments, so that nothing that happens while sending can slow
//! the schedule down. Pure.

use rand::Rng;
use rand_distr::{Distribution, Exp, Gamma};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The arrival process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "process")]
pub enum Arrivals {
    /// Independent arrivals: exponential gaps.
    Poisson {
        /// Mean arrivals per second.
        rate: f64,
    },
    /// Equal gaps.
    Constant {
        /// Arrivals per second.
        rate: f64,
    },
    /// Gamma-distributed gaps. Burstiness 1 is Poisson, below 1 is burstier, above 1 is more regular, as vLLM defines it.
    Gamma {
        /// Mean arrivals per second.
        rate: f64,
        /// Shape of the gaps.
        burstiness: f64,
    },
}

/// A schedule beyond this many requests is a mistake in the rate, not a benchmark.
pub const MAX_ARRIVALS: usize = 50_000_000;

impl Arrivals {
    /// The mean rate that was asked for.
    pub fn rate(&self) -> f64 {
        match self {
            Self::Poisson { rate } | Self::Constant { rate } | Self::Gamma { rate, .. } => *rate,
        }
    }

    /// Its name in results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Poisson { .. } => "poisson",
            Self::Constant { .. } => "constant",
            Self::Gamma { .. } => "gamma",
        }
    }

    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let rate = self.rate();
        if !(rate.is_finite() && rate > 0.0) {
            problems.push(format!("rate {rate} must be a number above 0 requests per second"));
        }
        if let Self::Gamma { burstiness, .. } = self
            && !(burstiness.is_finite() && *burstiness > 0.0)
        {
            problems.push(format!("burstiness {burstiness} must be a number above 0"));
        }
        problems
    }

    /// Every arrival before `duration`, ascending. The first comes after the first gap, as in the user's own harness.
    pub fn times(&self, duration: Duration, rng: &mut impl Rng) -> Result<Vec<Duration>, String> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let end = duration.as_secs_f64();
        if self.rate() * end > MAX_ARRIVALS as f64 {
            return Err(format!(
                "rate {} for {end} s asks for more than {MAX_ARRIVALS} requests: lower one of them",
                self.rate()
            ));
        }
        let mut gap: Box<dyn FnMut() -> f64> = match *self {
            Self::Poisson { rate } => {
                let exp = Exp::new(rate).map_err(|e| format!("rate {rate}: {e}"))?;
                Box::new(move || exp.sample(rng))
            }
            Self::Constant { rate } => Box::new(move || 1.0 / rate),
            Self::Gamma { rate, burstiness } => {
                let gamma = Gamma::new(burstiness, 1.0 / (rate * burstiness))
                    .map_err(|e| format!("rate {rate}, burstiness {burstiness}: {e}"))?;
                Box::new(move || gamma.sample(rng))
            }
        };
        let mut times = Vec::with_capacity((self.rate() * end * 1.1) as usize);
        let mut at = 0.0;
        loop {
            at += gap();
            if at >= end || times.len() >= MAX_ARRIVALS {
                return Ok(times);
            }
            times.push(Duration::from_secs_f64(at));
        }
    }
}
