//! What the profiler's windows of an attempt show together: those of the measuring phase, where phases are known. Everything here
//! is said of the recorded windows only; how far it may be believed follows from their number ([`confidence`]).

use serde::{Deserialize, Serialize};
use std::fmt;

/// A figure of each window, over the windows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Windows that count.
    pub windows: u32,
    /// 95 % interval of the mean by Student's t, from three windows on. It takes the windows for independent draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ci95: Option<[f64; 2]>,
}

/// Time of one kernel, or of one kind of copy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KernelShare {
    /// As in the trace; a long one is cut.
    pub name: String,
    /// In all windows and ranks.
    pub count: u64,
    /// Seconds in all windows and ranks.
    pub total_s: f64,
    /// Of all GPU work of a window, copies included.
    pub share: Spread,
}

/// Time of one operator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OperatorShare {
    /// As in the trace; a long one is cut.
    pub name: String,
    /// Calls in all windows and ranks.
    pub count: u64,
    /// Seconds, with the operators it called.
    pub total_s: f64,
    /// Seconds, without them.
    pub self_s: f64,
    /// Self time of all operators' self time of a window.
    pub share: Spread,
}

/// Stretches in which a GPU had nothing to do, between two in which it had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Gaps {
    /// In all windows and ranks.
    pub count: u64,
    /// Seconds together.
    pub total_s: f64,
    /// Microseconds; half of the gaps are no longer. Exact to three digits, like the next.
    pub median_us: f64,
    /// 99 of 100 are no longer.
    pub p99_us: f64,
    /// The longest.
    pub longest_us: f64,
    /// Share of the gaps' time in which the host was in an operator.
    pub in_operators: f64,
    /// In an engine step, but in no operator: Python, waiting for the GPU. None where steps were not recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_steps: Option<f64>,
}

/// What the GPUs did.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuProfile {
    /// Share of a window in which a GPU had work; the mean of its ranks. None if there was too much work to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<Spread>,
    /// The same by rank, `[rank, mean]`, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub busy_by_rank: Vec<(u32, f64)>,
    /// None without a single gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps: Option<Gaps>,
    /// Seconds of kernels, summed over streams and ranks.
    pub kernel_s: f64,
    /// Seconds of copies and fills.
    pub copy_s: f64,
    /// Kinds of kernels.
    pub distinct_kernels: u64,
}

/// What a step had to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Prompt tokens, perhaps beside output tokens.
    Prefill,
    /// Output tokens only.
    Decode,
    /// Nobody wrote it down.
    Unknown,
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefill => "with prefill",
            Self::Decode => "decode only",
            Self::Unknown => "not known which",
        })
    }
}

/// Steps of one kind, of one rank of each window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepGroup {
    /// Which.
    pub kind: StepKind,
    /// How many.
    pub steps: u64,
    /// In how many windows.
    pub windows: u32,
    /// Median length on the host, in milliseconds.
    pub wall_ms: f64,
    /// Median GPU work launched by a step, in milliseconds. None where the traces do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_ms: Option<f64>,
    /// Mean prompt tokens of a step; none for unknown ones, like the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill_tokens: Option<f64>,
    /// Mean output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_tokens: Option<f64>,
    /// Mean requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<f64>,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProfileSummary {
    /// Windows; the ranks of one count once.
    pub windows: u32,
    /// Ranks that recorded; none where the file names do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ranks: Option<u32>,
    /// Files.
    pub traces: u32,
    /// Recorded engine steps; of a window the rank that saw most.
    pub steps: u64,
    /// Trace events.
    pub events: u64,
    /// Seconds recorded; of a window the longest rank.
    pub recorded_s: f64,
    /// Seconds from the opening of the first window to the end of the last. None where no index says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_s: Option<f64>,
    /// None: no GPU work in any window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuProfile>,
    /// By total time.
    pub kernels: Vec<KernelShare>,
    /// By total time.
    pub copies: Vec<KernelShare>,
    /// By self time.
    pub operators: Vec<OperatorShare>,
    /// By total time.
    pub operators_by_total: Vec<OperatorShare>,
    /// One row a kind.
    pub step_groups: Vec<StepGroup>,
    /// What was left out and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl ProfileSummary {
    /// `in the 12 recorded windows (1.3 s of the 118 s between the first and the last)`.
    pub fn sample(&self) -> String {
        let windows = if self.windows == 1 {
            "the one recorded window".to_owned()
        } else {
            format!("the {} recorded windows", self.windows)
        };
        match self.observed_s {
            Some(observed) if self.windows > 1 => format!(
                "in {windows} ({} of the {} from the opening of the first to the end of the last)",
                span(self.recorded_s),
                span(observed)
            ),
            _ => format!("in {windows} ({})", span(self.recorded_s)),
        }
    }
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 0.1 => format!("{:.1} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.2} s"),
        s => format!("{s:.0} s"),
    }
}

/// What a figure from so many windows is worth, in words.
pub fn confidence(windows: u32) -> String {
    match windows {
        0 => "no window: nothing is known".to_owned(),
        1 => "one window: an example, not a measurement".to_owned(),
        2 => "two windows: no spread can be told".to_owned(),
        3..=9 => format!("{windows} windows: rough"),
        _ => format!("{windows} windows"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_claimed_beyond_the_sample() {
        let mut summary =
            ProfileSummary { windows: 12, recorded_s: 1.3, observed_s: Some(118.2), ..Default::default() };
        assert_eq!(
            summary.sample(),
            "in the 12 recorded windows (1.30 s of the 118 s from the opening of the first to the end of the last)"
        );
        summary.observed_s = None;
        assert_eq!(summary.sample(), "in the 12 recorded windows (1.30 s)");
        summary.windows = 1;
        summary.recorded_s = 0.0213;
        assert_eq!(summary.sample(), "in the one recorded window (21.3 ms)");
    }

    #[test]
    fn one_window_is_an_example() {
        assert_eq!(confidence(1), "one window: an example, not a measurement");
        assert_eq!(confidence(40), "40 windows");
    }
}
