//! Numbers from many requests: exact percentiles, counts by time. Pure.

use crate::event::Latency;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Values in milliseconds, kept one by one and sorted at the end: 3,000 requests are cheap and need no approximation.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one, if there is one.
    pub fn add(&mut self, value: Option<Duration>) {
        if let Some(value) = value {
            self.0.push(value.as_secs_f64() * 1e3);
        }
    }

    /// Sorts them.
    pub fn finish(mut self) -> Sorted {
        self.0.sort_by(f64::total_cmp);
        Sorted(self.0)
    }
}

/// Sorted values in milliseconds.
#[derive(Debug, Clone, Default)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    /// From raw values in milliseconds.
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values, ascending.
    pub fn values(&self) -> &[f64] {
        &self.0
    }

    /// Percentile with linear interpolation between the two nearest ranks, as numpy computes it; 0 without values.
    pub fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        let rank = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
        let below = rank.floor() as usize;
        let above = (below + 1).min(last);
        let share = rank - below as f64;
        self.0[below] + (self.0[above] - self.0[below]) * share
    }

    /// Arithmetic mean; 0 without values.
    pub fn mean(&self) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.iter().sum::<f64>() / self.0.len() as f64 }
    }

    /// Population standard deviation; 0 without values.
    pub fn std(&self) -> f64 {
        if self.0.is_empty() {
            return 0.0;
        }
        let mean = self.mean();
        (self.0.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / self.0.len() as f64).sqrt()
    }

    /// The short form that events carry.
    pub fn latency(&self) -> Latency {
        Latency {
            n: self.0.len() as u64,
            mean: self.mean(),
            p50: self.percentile(50.0),
            p90: self.percentile(90.0),
            p99: self.percentile(99.0),
            max: self.0.last().copied().unwrap_or(0.0),
        }
    }
}

/// Gaps below this are counted in an array, longer ones in a tree.
const DENSE: usize = 1 << 16;

/// Gaps between pieces, counted per whole microsecond: exact to the microsecond, and an hour of streaming needs no more
/// memory than a minute.
#[derive(Debug, Clone, Default)]
pub struct Gaps {
    dense: Vec<u32>,
    sparse: BTreeMap<u64, u64>,
    count: u64,
}

impl Gaps {
    /// Adds one.
    pub fn add(&mut self, gap: Duration) {
        let micros = gap.as_micros() as u64;
        self.count += 1;
        if (micros as usize) < DENSE {
            if self.dense.is_empty() {
                self.dense = vec![0; DENSE];
            }
            let slot = &mut self.dense[micros as usize];
            if let Some(more) = slot.checked_add(1) {
                *slot = more;
                return;
            }
        }
        *self.sparse.entry(micros).or_default() += 1;
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn ascending(&self) -> Vec<(u64, u64)> {
        let mut all: BTreeMap<u64, u64> = self.sparse.clone();
        for (micros, count) in self.dense.iter().enumerate().filter(|(_, count)| **count > 0) {
            *all.entry(micros as u64).or_default() += u64::from(*count);
        }
        all.into_iter().collect()
    }

    /// Mean and population standard deviation in milliseconds.
    pub fn moments(&self) -> (f64, f64) {
        if self.count == 0 {
            return (0.0, 0.0);
        }
        let (n, all) = (self.count as f64, self.ascending());
        let mean = all.iter().map(|(v, c)| *v as f64 * *c as f64).sum::<f64>() / n;
        let variance = all.iter().map(|(v, c)| (*v as f64 - mean).powi(2) * *c as f64).sum::<f64>() / n;
        (mean / 1e3, variance.sqrt() / 1e3)
    }

    /// The short form that events carry.
    pub fn latency(&self) -> Latency {
        let [p50, p90, p99, max] = self.percentiles([50.0, 90.0, 99.0, 100.0]);
        Latency { n: self.count, mean: self.moments().0, p50, p90, p99, max }
    }

    /// Percentiles in milliseconds, each in 0 to 100.
    pub fn percentiles<const N: usize>(&self, percents: [f64; N]) -> [f64; N] {
        let all = self.ascending();
        percents.map(|percent| {
            if self.count == 0 {
                return 0.0;
            }
            let rank = percent / 100.0 * (self.count - 1) as f64;
            let (below, above) = (value_at(&all, rank.floor() as u64), value_at(&all, rank.ceil() as u64));
            (below + (above - below) * (rank - rank.floor())) / 1e3
        })
    }
}

fn value_at(all: &[(u64, u64)], rank: u64) -> f64 {
    let mut seen = 0;
    for (value, count) in all {
        seen += count;
        if rank < seen {
            return *value as f64;
        }
    }
    all.last().map_or(0.0, |(value, _)| *value as f64)
}

/// One second of the load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Second {
    /// Requests sent in it.
    pub sent: u64,
    /// Requests that ended well in it.
    pub completed: u64,
    /// Requests that failed in it.
    pub failed: u64,
    /// Requests given up in it.
    pub cancelled: u64,
    /// Pieces with text that came in it.
    pub pieces: u64,
    /// Output tokens of the requests that ended in it.
    pub output_tokens: u64,
    /// Requests open at its end.
    pub in_flight: u64,
}

/// Beyond this many seconds the series stops growing: a day is enough.
const MAX_SECONDS: usize = 86_400;

/// The load second by second.
#[derive(Debug, Clone, Default)]
pub struct Series(Vec<Second>);

impl Series {
    /// The second that `at` lies in.
    pub fn at(&mut self, at: Duration) -> &mut Second {
        let index = (at.as_secs() as usize).min(MAX_SECONDS);
        if self.0.len() <= index {
            self.0.resize(index + 1, Second::default());
        }
        &mut self.0[index]
    }

    /// All of them, with the open requests counted.
    pub fn finish(mut self) -> Vec<Second> {
        let mut open = 0_u64;
        for second in &mut self.0 {
            open = (open + second.sent).saturating_sub(second.completed + second.failed + second.cancelled);
            second.in_flight = open;
        }
        self.0
    }
}
