//! What a GPU says about itself, behind a trait, so that a run without a driver and a test with an invented GPU are
//! the same to everybody else.

use crate::event::{GpuSample, Reading};
use futures_util::FutureExt;
pub use futures_util::future::BoxFuture;
use std::collections::VecDeque;

/// A process that holds memory of a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuProcess {
    /// Its pid as the driver knows it: that of the host, which inside a container matches nothing.
    pub pid: u32,
    /// Bytes it holds.
    pub used: Reading<u64>,
}

/// Memory of one GPU and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuMemory {
    /// NVML index.
    pub gpu: u32,
    /// `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Bytes in use. The driver itself holds some hundred MB.
    pub used: Reading<u64>,
    /// Bytes in all.
    pub total: Reading<u64>,
    /// Compute processes. Inside a container the list may be empty although memory is held.
    pub processes: Reading<Vec<GpuProcess>>,
}

/// Where samples of GPUs come from. Every answer comes within a bounded time.
pub trait GpuSource: Send {
    /// One sample of every GPU.
    fn sample(&mut self) -> BoxFuture<'_, Reading<Vec<GpuSample>>>;
    /// Memory and compute processes of every GPU, for the preflight and the wait for its release.
    fn memory(&mut self) -> BoxFuture<'_, Reading<Vec<GpuMemory>>>;
}

/// A source that gives what it was told, in order; the last answer is repeated.
#[derive(Debug, Clone, Default)]
pub struct ScriptedGpu {
    samples: VecDeque<Reading<Vec<GpuSample>>>,
    memory: VecDeque<Reading<Vec<GpuMemory>>>,
}

impl ScriptedGpu {
    /// A machine without a GPU until something is added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an answer to [`GpuSource::sample`].
    #[must_use]
    pub fn then_sample(mut self, sample: Reading<Vec<GpuSample>>) -> Self {
        self.samples.push_back(sample);
        self
    }

    /// Adds an answer to [`GpuSource::memory`].
    #[must_use]
    pub fn then_memory(mut self, memory: Reading<Vec<GpuMemory>>) -> Self {
        self.memory.push_back(memory);
        self
    }
}

fn next<T: Clone>(script: &mut VecDeque<Reading<T>>) -> Reading<T> {
    if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
        .unwrap_or_else(|| Reading::Unavailable { why: "the script has no GPU".to_owned() })
}

impl GpuSource for ScriptedGpu {
    fn sample(&mut self) -> BoxFuture<'_, Reading<Vec<GpuSample>>> {
        std::future::ready(next(&mut self.samples)).boxed()
    }

    fn memory(&mut self) -> BoxFuture<'_, Reading<Vec<GpuMemory>>> {
        std::future::ready(next(&mut self.memory)).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_script_repeats_its_last_answer() {
        let mut gpu = ScriptedGpu::new().then_sample(Reading::Stale).then_sample(Reading::Value(Vec::new()));
        assert_eq!(gpu.sample().await, Reading::Stale);
        assert_eq!(gpu.sample().await, Reading::Value(Vec::new()));
        assert_eq!(gpu.sample().await, Reading::Value(Vec::new()));
        assert!(matches!(gpu.memory().await, Reading::Unavailable { .. }));
    }
}
