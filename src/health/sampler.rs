//! Asks every sense once an interval and tells what it said as events. Each sense has a task of its own, so a server
//! that answers late or a driver that does not answer holds up neither the others nor anybody else.

use super::gpu::GpuSource;
use super::process::Sampler;
use super::{disk, metrics, metrics::scrape};
use crate::event::{EventKind, ProcId, Reading};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc::UnboundedSender, watch};
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior};

/// What is sampled.
pub struct SamplerConfig {
    /// `http://127.0.0.1:8000`, or `None` while no server is expected to answer.
    pub base_url: watch::Receiver<Option<String>>,
    /// The processes of the tree.
    pub processes: watch::Receiver<Vec<ProcId>>,
    /// Where GPU samples come from.
    pub gpu: Box<dyn GpuSource>,
    /// What is looked at on the disk, if anything.
    pub disk: Option<DiskPlaces>,
    /// Time between two samples of each sense.
    pub interval: Duration,
}

/// Where the run writes.
#[derive(Debug, Clone)]
pub struct DiskPlaces {
    /// Its filesystem's free room counts.
    pub volume: PathBuf,
    /// The trace folder.
    pub traces: PathBuf,
    /// The logs.
    pub logs: Vec<PathBuf>,
}

/// Details of processes are in the first sample and in every so many after it.
const DETAILS_EVERY: u64 = 5;

/// A disk that answers later than this is told as such.
const DISK_DEADLINE: Duration = Duration::from_secs(5);

impl SamplerConfig {
    /// Once a second, nothing of the disk.
    pub fn new(
        base_url: watch::Receiver<Option<String>>,
        processes: watch::Receiver<Vec<ProcId>>,
        gpu: Box<dyn GpuSource>,
    ) -> Self {
        Self { base_url, processes, gpu, disk: None, interval: Duration::from_secs(1) }
    }
}

/// Sampling stops when this is dropped.
#[derive(Debug)]
pub struct SamplerHandle {
    tasks: Vec<JoinHandle<()>>,
}

impl SamplerHandle {
    /// Ends the questions to the server and closes their connection, before the server does: who closes first keeps the
    /// port in TIME_WAIT, and the next server needs it.
    pub fn hang_up(&self) {
        self.tasks[0].abort();
    }
}

impl Drop for SamplerHandle {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Starts the tasks on the current runtime. They also end when nobody receives the events any more.
pub fn spawn(config: SamplerConfig, events: UnboundedSender<EventKind>) -> reqwest::Result<SamplerHandle> {
    let SamplerConfig { base_url, processes, gpu, disk, interval } = config;
    let client = metrics::client()?;
    let mut tasks = vec![
        tokio::spawn(sample_engine(client, base_url, ticks(interval), events.clone())),
        tokio::spawn(sample_processes(processes, ticks(interval), events.clone())),
        tokio::spawn(sample_gpus(gpu, ticks(interval), events.clone())),
    ];
    if let Some(places) = disk {
        tasks.push(tokio::spawn(sample_disk(places, ticks(interval), events)));
    }
    Ok(SamplerHandle { tasks })
}

fn ticks(interval: Duration) -> Interval {
    let mut ticks = tokio::time::interval(interval);
    // After a stall one sample is as good as the five that were missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn sample_engine(
    client: reqwest::Client,
    base_url: watch::Receiver<Option<String>>,
    mut ticks: Interval,
    events: UnboundedSender<EventKind>,
) {
    loop {
        ticks.tick().await;
        let url = base_url.borrow().clone();
        let Some(url) = url else {
            if events.is_closed() {
                return;
            }
            continue;
        };
        if events.send(EventKind::EngineSampled(scrape(&client, &url).await)).is_err() {
            return;
        }
    }
}

async fn sample_processes(
    processes: watch::Receiver<Vec<ProcId>>,
    mut ticks: Interval,
    events: UnboundedSender<EventKind>,
) {
    let mut sampler = Sampler::new();
    for round in 0u64.. {
        ticks.tick().await;
        let processes = if round.is_multiple_of(DETAILS_EVERY) {
            sampler.sample_details(&processes.borrow())
        } else {
            sampler.sample(&processes.borrow())
        };
        if events.send(EventKind::ProcessesSampled { processes }).is_err() {
            return;
        }
    }
}

async fn sample_gpus(mut gpu: Box<dyn GpuSource>, mut ticks: Interval, events: UnboundedSender<EventKind>) {
    let mut last_was_missing = false;
    loop {
        ticks.tick().await;
        let reading = gpu.sample().await;
        // A machine without a driver says so once, not once a second for a whole night. A driver that stops answering
        // is Stale and is told every time.
        let missing = matches!(reading, Reading::Unavailable { .. });
        if missing && last_was_missing {
            if events.is_closed() {
                return;
            }
            continue;
        }
        last_was_missing = missing;
        if events.send(EventKind::GpusSampled(reading)).is_err() {
            return;
        }
    }
}

async fn sample_disk(places: DiskPlaces, mut ticks: Interval, events: UnboundedSender<EventKind>) {
    loop {
        ticks.tick().await;
        let free = match disk::space_within(places.volume.clone(), DISK_DEADLINE).await {
            Reading::Value(space) => Reading::Value(space.free),
            Reading::Unavailable { why } => Reading::Unavailable { why },
            Reading::Stale => Reading::Stale,
        };
        let traces = size_of(vec![places.traces.clone()]).await;
        let logs = size_of(places.logs.clone()).await;
        if events.send(EventKind::DiskSampled { free, traces, logs }).is_err() {
            return;
        }
    }
}

/// Sum over files and folders; what does not exist yet has no size.
async fn size_of(paths: Vec<PathBuf>) -> Reading<u64> {
    let mut sum = 0;
    for path in paths {
        match disk::folder_size_within(path, DISK_DEADLINE).await {
            Reading::Value(size) => sum += size.bytes,
            Reading::Unavailable { why } => return Reading::Unavailable { why },
            Reading::Stale => return Reading::Stale,
        }
    }
    Reading::Value(sum)
}
