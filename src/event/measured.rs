//! What the senses and the load driver measure, as values inside events.

use super::ProcId;
use crate::time::secs;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A measurement that may not be there. Never 0 for "could not read".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading<T> {
    /// It was read.
    Value(T),
    /// It cannot be read, and this is why.
    Unavailable {
        /// Says what was tried and what answered.
        why: String,
    },
    /// The source answered before but does not now; the last value may mislead.
    Stale,
}

impl<T> Reading<T> {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Unavailable { .. } | Self::Stale => None,
        }
    }
}

/// Progress of the load driver, about once a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadProgress {
    /// Requests sent.
    pub sent: u64,
    /// Requests without a last byte yet.
    pub in_flight: u64,
    /// Requests that succeeded.
    pub completed: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Streamed chunks so far, the finest sign of life the client has.
    pub chunks: u64,
    /// Prompt tokens by the server's usage.
    pub prompt_tokens: u64,
    /// Output tokens by the server's usage.
    pub output_tokens: u64,
    /// Median time to first token so far, in microseconds; 0 while no request has succeeded.
    #[serde(default)]
    pub ttft_p50_us: u64,
    /// Its 99th percentile.
    #[serde(default)]
    pub ttft_p99_us: u64,
    /// Median over the requests that have succeeded since the last progress; 0 when none has.
    #[serde(default)]
    pub recent_ttft_p50_us: u64,
    /// The longest of them.
    #[serde(default)]
    pub recent_ttft_max_us: u64,
}

/// The engine's own counters, from `/metrics`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineSample {
    /// `vllm:iteration_tokens_total_count`.
    pub iterations: f64,
    /// `vllm:prompt_tokens_total`.
    pub prompt_tokens: f64,
    /// `vllm:generation_tokens_total`.
    pub generation_tokens: f64,
    /// `vllm:num_requests_running`.
    pub running: f64,
    /// `vllm:num_requests_waiting`.
    pub waiting: f64,
    /// `vllm:kv_cache_usage_perc`, 0 to 1.
    pub kv_usage: f64,
}

/// One process of the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcSample {
    /// Which.
    pub proc: ProcId,
    /// Parent's pid.
    pub ppid: i32,
    /// Command name, at most 15 bytes.
    pub comm: String,
    /// State letter of `/proc/PID/stat`.
    pub state: char,
    /// CPU seconds so far, user and system, with those of its reaped children.
    pub cpu_s: f64,
    /// Resident bytes.
    pub rss: u64,
    /// Threads.
    pub threads: u64,
    /// Bytes fetched from storage so far, also by page faults of a mapped file. Like the two below only in every fifth
    /// sample, and only where the kernel lets us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes sent to storage so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
    /// The kernel function that the main thread sleeps in. In state D it is always asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wchan: Option<String>,
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuSample {
    /// NVML index.
    pub gpu: u32,
    /// Percent of time with at least one kernel running.
    pub util: Reading<u32>,
    /// Percent of time the memory was read or written.
    pub mem_util: Reading<u32>,
    /// Watts.
    pub power_w: Reading<f64>,
    /// Bytes in use.
    pub mem_used: Reading<u64>,
    /// Bytes in all.
    pub mem_total: Reading<u64>,
    /// Number of a critical error (Xid) that the driver has reported since the last sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<u64>,
    /// What costs more and changes slowly: in every fifth sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<GpuDetails>>,
}

/// More of one GPU. What is not there is none, and why is told once in `unavailable`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuDetails {
    /// Clock of the multiprocessors in MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_mhz: Option<u32>,
    /// Their highest clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_max_mhz: Option<u32>,
    /// Clock of the memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_mhz: Option<u32>,
    /// What holds the clocks down: `idle`, `power cap`, `hot`, ...; empty when nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_limits: Option<Vec<String>>,
    /// From the GPU over PCIe, in KB/s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_tx_kbs: Option<u32>,
    /// To the GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_rx_kbs: Option<u32>,
    /// Compute processes. Inside a container the list may be empty although memory is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub holders: Option<Vec<GpuHolder>>,
    /// Uncorrected memory errors since the driver was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecc_uncorrected: Option<u64>,
    /// Percent of time that tensor cores worked since the last details (Hopper and later).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor_util: Option<f64>,
    /// Percent of the memory's bandwidth that was used meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dram_util: Option<f64>,
    /// Percent of time that a multiprocessor had work meanwhile, averaged over all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sm_util: Option<f64>,
    /// What cannot be read and why, each once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unavailable: Vec<String>,
}

/// A process that holds memory of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuHolder {
    /// Its pid as the driver knows it: that of the host, which inside a container matches nothing.
    pub pid: u32,
    /// Bytes it holds, if the driver says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Percentiles of one latency, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Requests or gaps that count.
    pub n: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// The benchmark in short; the whole is `benchmark.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BenchSummary {
    /// False when the load was cut short.
    pub is_complete: bool,
    /// Why it was cut short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete_reason: Option<String>,
    /// First send to last byte.
    #[serde(with = "secs")]
    pub duration: Duration,
    /// Counts as in [`LoadProgress`].
    pub progress: LoadProgress,
    /// Requests open at the end and given up.
    pub cancelled: u64,
    /// Completed requests per second.
    pub request_throughput: f64,
    /// Output tokens per second.
    pub output_throughput: f64,
    /// Time to first token.
    pub ttft_ms: Latency,
    /// Time per output token after the first.
    pub tpot_ms: Latency,
    /// Between two pieces of a stream. None of them in the summary of an older version.
    #[serde(default)]
    pub itl_ms: Latency,
    /// Send to last token.
    pub e2el_ms: Latency,
    /// Requests per second that kept every limit; none when no limit was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_goodput: Option<f64>,
    /// The same split by workload name.
    pub by_workload: Vec<WorkloadSummary>,
    /// Error class to count.
    pub errors: std::collections::BTreeMap<String, u64>,
    /// What makes the numbers doubtful.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One workload of the mix.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkloadSummary {
    /// `chat`, `rag`, `code`.
    pub name: String,
    /// Requests that succeeded.
    pub completed: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Mean prompt tokens by the server's usage.
    pub mean_prompt_tokens: f64,
    /// Mean output tokens by the server's usage.
    pub mean_output_tokens: f64,
    /// Requests that kept every limit; none when no limit was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub good: Option<u64>,
    /// Time to first token.
    pub ttft_ms: Latency,
    /// Time per output token after the first. None of them in the summary of an older version.
    #[serde(default)]
    pub tpot_ms: Latency,
    /// Between two pieces of a stream. None of them in the summary of an older version.
    #[serde(default)]
    pub itl_ms: Latency,
    /// Send to last token.
    pub e2el_ms: Latency,
}
