//! Waits until what a server held is back: its port and its GPU memory.

use super::layout::AttemptDir;
use super::log_limit::close_up;
use super::mask::mask_folder;
use super::{port, reap};
use crate::event::{EventKind, GpuSample, Leftover, Reading};
use crate::health::gpu::{BoxFuture, GpuMemory, GpuSource};
use crate::redact::Redactor;
use crate::time;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedSender;

/// How long port and GPU memory may take to come back; below the machine's own budget for draining.
const RETURN_PATIENCE: Duration = Duration::from_secs(40);
/// GPU memory that is not worth a word: contexts of other processes come and go.
const GPU_TOLERANCE: u64 = 512 << 20;
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The sampler's view of the one NVML thread.
pub(super) struct SharedGpu(pub(super) Arc<Mutex<Box<dyn GpuSource>>>);

impl GpuSource for SharedGpu {
    fn sample(&mut self) -> BoxFuture<'_, Reading<Vec<GpuSample>>> {
        Box::pin(async { self.0.lock().await.sample().await })
    }

    fn memory(&mut self) -> BoxFuture<'_, Reading<Vec<GpuMemory>>> {
        Box::pin(async { self.0.lock().await.memory().await })
    }
}

pub(super) fn used(list: &[GpuMemory]) -> Vec<(u32, u64)> {
    list.iter().filter_map(|gpu| Some((gpu.gpu, *gpu.used.value()?))).collect()
}

pub(super) async fn port_left(port: u16) -> Vec<Leftover> {
    port_left_within(port, RETURN_PATIENCE / 2, port::probe).await
}

async fn port_left_within<F>(port: u16, patience: Duration, probe: F) -> Vec<Leftover>
where
    F: Fn(u16) -> io::Result<port::PortState> + Clone + Send + 'static,
{
    let began = time::instant_now();
    loop {
        let probe = probe.clone();
        let state = tokio::task::spawn_blocking(move || probe(port)).await;
        let held = match state {
            Ok(Ok(
                port::PortState::Held { listening: list }
                | port::PortState::BoundNotListening { holders: list },
            )) => list,
            _ => return Vec::new(),
        };
        if began.elapsed() > patience {
            let holder: Vec<String> = held.iter().map(ToString::to_string).collect();
            return vec![Leftover::Port { port, holder: holder.join(" and ") }];
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(super) async fn gpu_left(gpu: &Mutex<Box<dyn GpuSource>>, before: &[(u32, u64)]) -> Vec<Leftover> {
    let began = time::instant_now();
    while !before.is_empty() {
        let Reading::Value(list) = gpu.lock().await.memory().await else { break };
        let left: Vec<Leftover> = used(&list)
            .into_iter()
            .filter_map(|(gpu, now)| {
                let level = before.iter().find(|(index, _)| *index == gpu)?.1;
                let bytes = now.saturating_sub(level);
                (bytes > GPU_TOLERANCE).then_some(Leftover::GpuMemory { gpu, bytes })
            })
            .collect();
        if left.is_empty() || began.elapsed() > RETURN_PATIENCE {
            return left;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Vec::new()
}

/// Takes out of the file system what the attempt left there, and its secrets out of what stays.
pub(super) async fn clean_up(
    scratch: PathBuf,
    dir: AttemptDir,
    shm_before: Vec<String>,
    redactor: Arc<Redactor>,
    facts: &UnboundedSender<EventKind>,
) -> (Vec<String>, Vec<Leftover>) {
    let work = tokio::task::spawn_blocking(move || {
        let cleaned = reap::clean(&scratch, &dir.tmp(), &shm_before);
        let mut problems: Vec<String> = close_up(&dir.server_log()).err().into_iter().collect();
        problems.extend(mask_folder(dir.root(), &redactor));
        (cleaned, problems)
    });
    let (cleaned, problems) = work.await.unwrap_or_default();
    for error in problems {
        let what = "tidy up the attempt's files".to_owned();
        drop(facts.send(EventKind::Trouble { what, error }));
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::gpu::ScriptedGpu;

    fn memory(used: u64) -> Reading<Vec<GpuMemory>> {
        Reading::Value(vec![GpuMemory {
            gpu: 0,
            name: "H100".to_owned(),
            used: Reading::Value(used),
            total: Reading::Value(80 << 30),
            processes: Reading::Value(Vec::new()),
        }])
    }

    #[tokio::test]
    async fn gpu_memory_is_awaited_and_what_does_not_come_back_is_told() {
        let back = ScriptedGpu::new()
            .then_memory(memory(70 << 30))
            .then_memory(memory(9 << 30))
            .then_memory(memory(1 << 30));
        let gpu: Mutex<Box<dyn GpuSource>> = Mutex::new(Box::new(back));
        assert_eq!(gpu_left(&gpu, &[(0, 1 << 30)]).await, []);
        let Reading::Value(list) = gpu.lock().await.memory().await else { panic!("no value") };
        assert_eq!(used(&list), [(0, 1 << 30)], "it waited for the last word");
    }

    #[tokio::test]
    async fn a_port_that_somebody_has_is_awaited() {
        let stranger = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = stranger.local_addr().expect("its address").port();
        let held = Arc::new(std::sync::Mutex::new((0, Some(stranger))));
        let looks = Arc::clone(&held);
        let probe = move |port| {
            let state = port::probe(port);
            let mut held = looks.lock().expect("no panic");
            held.0 += 1;
            // Gone after the second look.
            if held.0 == 2 {
                held.1 = None;
            }
            state
        };
        assert_eq!(port_left_within(port, RETURN_PATIENCE, probe).await, []);
        assert_eq!(held.lock().expect("no panic").0, 3);
    }

    #[tokio::test]
    async fn a_port_that_stays_taken_is_told_with_its_holder() {
        let stranger = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let port = stranger.local_addr().expect("its address").port();
        let left = port_left_within(port, Duration::ZERO, port::probe).await;
        let [Leftover::Port { port: told, holder }] = left.as_slice() else { panic!("{left:?}") };
        assert_eq!(*told, port);
        assert!(holder.contains(&std::process::id().to_string()), "{holder}");
    }

    #[tokio::test]
    async fn a_gpu_that_says_nothing_is_not_waited_for() {
        let gpu: Mutex<Box<dyn GpuSource>> = Mutex::new(Box::new(ScriptedGpu::new()));
        assert_eq!(gpu_left(&gpu, &[(0, 1 << 30)]).await, []);
    }
}
