//! How far the numbers can be trusted: the part of the load in which the server was in a steady state, and confidence
//! intervals. Pure.

use super::stats::{Second, Sorted};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// The steady part of the load, in whole seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// Its first second.
    pub from_s: usize,
    /// One past its last second.
    pub to_s: usize,
    /// Open requests rose through the whole load: the server did not keep up, and no steady state was reached.
    pub growing: bool,
}

/// Finds the steady part of the `sending` seconds: the start is cut off where the mean of the open requests becomes most
/// certain (the marginal standard error rule, White 1997, at most the first half), the drain is never part of it.
pub fn window(series: &[Second], sending: usize) -> Option<Window> {
    let open: Vec<f64> = series.iter().take(sending).map(|s| s.in_flight as f64).collect();
    if open.len() < 4 {
        return None;
    }
    let score = |from: usize| {
        let rest = &open[from..];
        let n = rest.len() as f64;
        let mean = rest.iter().sum::<f64>() / n;
        rest.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n * n)
    };
    let from = (0..=open.len() / 2).min_by(|a, b| score(*a).total_cmp(&score(*b)))?;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    let third = open.len() / 3;
    let (middle, end) = (mean(&open[third..2 * third]), mean(&open[open.len() - third.max(1)..]));
    // Noise of a queue is about the square root of its length; a backlog grows in proportion to time.
    let growing = third > 0 && end - middle > 5.0 + 3.0 * middle.sqrt() && end > 1.25 * middle;
    Some(Window { from_s: from, to_s: open.len(), growing })
}

/// A 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// 2.5 % of resamples lie below.
    pub low: f64,
    /// 2.5 % of resamples lie above.
    pub high: f64,
}

/// Resamples; the ends of the interval are their 25th from either side.
const RESAMPLES: usize = 1000;
/// Larger samples are resampled less often, so that the work stays bounded.
const MAX_DRAWS: usize = 4_000_000;

/// Percentile bootstrap of several percentiles of one sample. None with fewer than 10 values: an interval would pretend.
pub fn bootstrap<const N: usize>(sample: &Sorted, percents: [f64; N], seed: u64) -> Option<[Interval; N]> {
    let values = sample.values();
    let n = values.len();
    if n < 10 {
        return None;
    }
    let resamples = RESAMPLES.min(MAX_DRAWS / n).max(40);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut results = vec![Vec::with_capacity(resamples); N];
    let mut counts = vec![0_u32; n];
    for _ in 0..resamples {
        counts.fill(0);
        for _ in 0..n {
            counts[rng.random_range(0..n)] += 1;
        }
        for (percent, results) in percents.iter().zip(&mut results) {
            results.push(percentile(values, &counts, *percent));
        }
    }
    let mut ends = results.into_iter().map(|results| {
        let sorted = Sorted::new(results);
        Interval { low: sorted.percentile(2.5), high: sorted.percentile(97.5) }
    });
    Some(std::array::from_fn(|_| ends.next().unwrap_or(Interval { low: 0.0, high: 0.0 })))
}

/// Seconds that are drawn together: what happens in one second has to do with the next.
const BLOCK: usize = 5;

/// The same for a rate, by a circular block bootstrap of what was counted second by second. None below 10 blocks.
pub fn bootstrap_rate(seconds: &[f64], seed: u64) -> Option<Interval> {
    let n = seconds.len();
    if n < 10 * BLOCK {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let blocks = n.div_ceil(BLOCK);
    let resamples = RESAMPLES.min(MAX_DRAWS / n).max(40);
    let means = (0..resamples).map(|_| {
        let starts = (0..blocks).map(|_| rng.random_range(0..n));
        let sum: f64 = starts.flat_map(|from| (from..from + BLOCK).map(|at| seconds[at % n])).sum();
        sum / (blocks * BLOCK) as f64
    });
    let sorted = Sorted::new(means.collect());
    Some(Interval { low: sorted.percentile(2.5), high: sorted.percentile(97.5) })
}

/// The percentile of the sorted `values`, each taken as often as `counts` says; they count to as many as there are values.
fn percentile(values: &[f64], counts: &[u32], percent: f64) -> f64 {
    let rank = percent / 100.0 * (values.len() - 1) as f64;
    let (below, share) = (rank.floor() as u64, rank - rank.floor());
    let (mut seen, mut first) = (0_u64, None);
    for (value, count) in values.iter().zip(counts) {
        seen += u64::from(*count);
        if first.is_none() && seen > below {
            first = Some(*value);
        }
        if let Some(first) = first
            && (share == 0.0 || seen > below + 1)
        {
            return first + (value - first) * if share == 0.0 { 0.0 } else { share };
        }
    }
    first.unwrap_or(0.0)
}
