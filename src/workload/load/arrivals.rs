//! When requests are sent: a precomputed, absolute list of moments, so that nothing that happens while sending can slow
//! the schedule down. Pure.

use rand::{Rng, RngExt};
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
    /// Arrivals that excite further ones (Hawkes, exponential kernel): bursts out of nothing.
    Hawkes {
        /// Mean arrivals per second, those of the bursts included.
        rate: f64,
        /// Mean number of arrivals that one arrival sets off, below 1.
        branching: f64,
        /// How fast the excitement of one arrival fades, per second.
        decay: f64,
    },
    /// Poisson with a rate that swings like a sine: day and night.
    Cyclic {
        /// Mean arrivals per second.
        rate: f64,
        /// Swing around the mean, as a share of it, at most 1.
        amplitude: f64,
        /// Seconds of one swing.
        period: f64,
    },
    /// Poisson with a rate that changes in a straight line from the first second to the last.
    Ramp {
        /// Arrivals per second at the start.
        from: f64,
        /// Arrivals per second at the end.
        to: f64,
    },
    /// At the moments of a trace, in seconds from its start.
    Trace {
        /// Ascending.
        times: Vec<f64>,
    },
    /// Closed loop: each of these streams sends its next request when its last one has ended.
    Closed {
        /// Requests open at any time.
        streams: u32,
    },
}

/// A schedule beyond this many requests is a mistake in the rate, not a benchmark.
pub const MAX_ARRIVALS: usize = 50_000_000;

impl Arrivals {
    /// The mean rate that was asked for; none in a closed loop, where the server makes the rate.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Self::Poisson { rate }
            | Self::Constant { rate }
            | Self::Gamma { rate, .. }
            | Self::Hawkes { rate, .. }
            | Self::Cyclic { rate, .. } => Some(*rate),
            Self::Ramp { from, to } => Some(f64::midpoint(*from, *to)),
            Self::Trace { times } => {
                let span = times.last().copied().unwrap_or(0.0);
                Some(if span > 0.0 { times.len() as f64 / span } else { times.len() as f64 })
            }
            Self::Closed { .. } => None,
        }
    }

    /// Its name in results.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Poisson { .. } => "poisson",
            Self::Constant { .. } => "constant",
            Self::Gamma { .. } => "gamma",
            Self::Hawkes { .. } => "hawkes",
            Self::Cyclic { .. } => "cyclic",
            Self::Ramp { .. } => "ramp",
            Self::Trace { .. } => "trace",
            Self::Closed { .. } => "closed",
        }
    }

    /// vLLM's measure of regularity, where it has one.
    pub fn burstiness(&self) -> Option<f64> {
        match self {
            Self::Poisson { .. } => Some(1.0),
            Self::Gamma { burstiness, .. } => Some(*burstiness),
            _ => None,
        }
    }

    /// Streams of a closed loop.
    pub fn streams(&self) -> Option<u32> {
        match self {
            Self::Closed { streams } => Some(*streams),
            _ => None,
        }
    }

    /// Everything that is wrong with it.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut positive = |what: &str, value: f64| {
            if !(value.is_finite() && value > 0.0) {
                problems.push(format!("{what} {value} must be a number above 0"));
            }
        };
        match self {
            Self::Poisson { rate } | Self::Constant { rate } => positive("rate", *rate),
            Self::Gamma { rate, burstiness } => {
                positive("rate", *rate);
                positive("burstiness", *burstiness);
            }
            Self::Hawkes { rate, branching, decay } => {
                positive("rate", *rate);
                positive("decay", *decay);
                if !(0.0..1.0).contains(branching) {
                    problems.push(format!("branching {branching} must be at least 0 and below 1"));
                }
            }
            Self::Cyclic { rate, amplitude, period } => {
                positive("rate", *rate);
                positive("period", *period);
                if !(0.0..=1.0).contains(amplitude) {
                    problems.push(format!("amplitude {amplitude} must be between 0 and 1"));
                }
            }
            Self::Ramp { from, to } => {
                if !(from.is_finite() && to.is_finite() && *from >= 0.0 && *to >= 0.0 && from + to > 0.0) {
                    problems.push(format!("ramp {from} to {to} must be numbers of at least 0, not both 0"));
                }
            }
            Self::Trace { times } => {
                if times.is_empty() {
                    problems.push("the trace holds no request".to_owned());
                }
                if times.iter().any(|t| !t.is_finite() || *t < 0.0) || !times.is_sorted() {
                    problems.push("the times of the trace are not ascending numbers".to_owned());
                }
            }
            Self::Closed { streams } => {
                if *streams == 0 {
                    problems.push("0 streams would send nothing".to_owned());
                }
            }
        }
        problems
    }

    /// Every arrival before `duration`, ascending; none for a closed loop, whose moments nobody knows before. The first
    /// comes after the first gap, as in the user's own harness.
    pub fn times(&self, duration: Duration, rng: &mut impl Rng) -> Result<Vec<Duration>, String> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let end = duration.as_secs_f64();
        let rate = self.rate().unwrap_or(0.0);
        if rate * end > MAX_ARRIVALS as f64 {
            return Err(format!(
                "rate {rate} for {end} s asks for more than {MAX_ARRIVALS} requests: lower one of them"
            ));
        }
        let mut times = match self {
            Self::Poisson { rate } => thinned(*rate, end, rng, |_| *rate),
            Self::Constant { rate } => {
                (1..).map(|i| f64::from(i) / rate).take_while(|at| *at < end).collect()
            }
            Self::Gamma { rate, burstiness } => {
                let gamma = Gamma::new(*burstiness, 1.0 / (rate * burstiness))
                    .map_err(|e| format!("rate {rate}, burstiness {burstiness}: {e}"))?;
                let mut at = 0.0;
                std::iter::repeat_with(|| {
                    at += gamma.sample(rng);
                    at
                })
                .take_while(|at| *at < end)
                .take(MAX_ARRIVALS)
                .collect()
            }
            Self::Hawkes { rate, branching, decay } => hawkes(*rate, *branching, *decay, end, rng),
            Self::Cyclic { rate, amplitude, period } => thinned(rate * (1.0 + amplitude), end, rng, |t| {
                rate * (1.0 + amplitude * (std::f64::consts::TAU * t / period).sin())
            }),
            Self::Ramp { from, to } => thinned(from.max(*to), end, rng, |t| from + (to - from) * t / end),
            Self::Trace { times } => times.iter().copied().filter(|t| *t < end).collect(),
            Self::Closed { .. } => Vec::new(),
        };
        times.truncate(MAX_ARRIVALS);
        Ok(times.into_iter().map(Duration::from_secs_f64).collect())
    }
}

/// Poisson arrivals with a rate that changes (thinning, Lewis and Shedler 1979): candidates at the highest rate, each kept
/// with the share that the rate has of it. A constant rate keeps all and draws nothing more.
fn thinned(highest: f64, end: f64, rng: &mut impl Rng, rate: impl Fn(f64) -> f64) -> Vec<f64> {
    let Ok(exp) = Exp::new(highest) else { return Vec::new() };
    let mut times = Vec::new();
    let mut at = 0.0;
    loop {
        at += exp.sample(rng);
        if at >= end || times.len() >= MAX_ARRIVALS {
            return times;
        }
        let share = rate(at) / highest;
        if share >= 1.0 || rng.random::<f64>() < share {
            times.push(at);
        }
    }
}

/// Ogata's thinning (1981) with an exponential kernel, whose sum over the past is one number that decays.
fn hawkes(rate: f64, branching: f64, decay: f64, end: f64, rng: &mut impl Rng) -> Vec<f64> {
    let base = rate * (1.0 - branching);
    let jump = branching * decay;
    let (mut times, mut at, mut excited) = (Vec::new(), 0.0, 0.0_f64);
    loop {
        let bound = base + excited;
        let Ok(exp) = Exp::new(bound) else { return times };
        let gap = exp.sample(rng);
        at += gap;
        if at >= end || times.len() >= MAX_ARRIVALS {
            return times;
        }
        excited *= (-decay * gap).exp();
        if rng.random::<f64>() * bound < base + excited {
            times.push(at);
            excited += jump;
        }
    }
}
