//! NVML on a thread of its own. Its calls have been seen to sleep in the kernel for ever while a driver was ill, so
//! whoever asks waits only until a deadline and the thread is given up with the call it hangs in.

use super::gpu::{GpuMemory, GpuProcess, GpuSource};
use crate::event::{GpuSample, Reading};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use tokio::sync::oneshot;

/// One sample of an H100 takes 21 ms and was seen to take 127; eight GPUs are asked one after the other.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// What the thread does: the driver, or its stand-in in a test.
trait Driver {
    fn samples(&mut self) -> Reading<Vec<GpuSample>>;
    fn memory(&mut self) -> Reading<Vec<GpuMemory>>;
}

/// Every GPU of the machine, through the driver's library.
#[derive(Debug)]
pub struct NvmlSource {
    requests: Sender<Request>,
    sample: Asked<Vec<GpuSample>>,
    memory: Asked<Vec<GpuMemory>>,
    deadline: Duration,
}

enum Request {
    Sample(oneshot::Sender<Reading<Vec<GpuSample>>>),
    Memory(oneshot::Sender<Reading<Vec<GpuMemory>>>),
}

/// A question that may still be open from last time, and whether there was ever an answer.
#[derive(Debug)]
struct Asked<T> {
    open: Option<oneshot::Receiver<Reading<T>>>,
    answered: bool,
}

impl<T> Default for Asked<T> {
    fn default() -> Self {
        Self { open: None, answered: false }
    }
}

impl<T> Asked<T> {
    /// Waits for the answer to the open question, or asks anew. A question that was not answered in time stays open,
    /// so a thread that hangs is never given a second one.
    async fn ask(
        &mut self,
        deadline: Duration,
        requests: &Sender<Request>,
        request: impl FnOnce(oneshot::Sender<Reading<T>>) -> Request,
    ) -> Reading<T> {
        let answer = self.open.get_or_insert_with(|| {
            let (tell, told) = oneshot::channel();
            // When the thread is gone, the dropped sender says so below.
            drop(requests.send(request(tell)));
            told
        });
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(reading)) => {
                self.open = None;
                self.answered |= reading.value().is_some();
                reading
            }
            Ok(Err(_)) => {
                self.open = None;
                Reading::Unavailable { why: "the NVML thread has ended".to_owned() }
            }
            Err(_) if self.answered => Reading::Stale,
            Err(_) => Reading::Unavailable { why: format!("NVML did not answer within {deadline:?}") },
        }
    }
}

impl NvmlSource {
    /// Starts the thread; the library is loaded there with the first question, and only once.
    pub fn start() -> std::io::Result<Self> {
        Self::with_driver(DEADLINE, || Box::new(Library { nvml: None }))
    }

    fn with_driver(
        deadline: Duration,
        driver: impl FnOnce() -> Box<dyn Driver> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, todo) = channel();
        // Never joined: it may hang in a system call that no signal interrupts.
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || {
            let mut driver = driver();
            while let Ok(request) = todo.recv() {
                match request {
                    Request::Sample(answer) => drop(answer.send(driver.samples())),
                    Request::Memory(answer) => drop(answer.send(driver.memory())),
                }
            }
        })?;
        Ok(Self { requests, sample: Asked::default(), memory: Asked::default(), deadline })
    }
}

impl GpuSource for NvmlSource {
    fn sample(&mut self) -> BoxFuture<'_, Reading<Vec<GpuSample>>> {
        self.sample.ask(self.deadline, &self.requests, Request::Sample).boxed()
    }

    fn memory(&mut self) -> BoxFuture<'_, Reading<Vec<GpuMemory>>> {
        self.memory.ask(self.deadline, &self.requests, Request::Memory).boxed()
    }
}

struct Library {
    /// Absent until the first question; a failure is kept, because loading is expensive and the answer stays the same.
    nvml: Option<Result<Nvml, String>>,
}

impl Library {
    fn each<T>(&mut self, read: impl Fn(u32, &Device<'_>) -> T) -> Reading<Vec<T>> {
        let nvml =
            self.nvml.get_or_insert_with(|| Nvml::init().map_err(|error| format!("NVML: {}", chain(&error))));
        let nvml = match nvml {
            Ok(nvml) => nvml,
            Err(why) => return Reading::Unavailable { why: why.clone() },
        };
        let all = nvml.device_count().and_then(|count| {
            (0..count)
                .map(|index| Ok(read(index, &nvml.device_by_index(index)?)))
                .collect::<Result<Vec<T>, _>>()
        });
        match all {
            Ok(all) => Reading::Value(all),
            Err(error) => Reading::Unavailable { why: format!("NVML: {}", chain(&error)) },
        }
    }
}

/// The library's errors say little without their causes.
fn chain(error: &NvmlError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

fn reading<T>(what: &str, result: Result<T, NvmlError>) -> Reading<T> {
    match result {
        Ok(value) => Reading::Value(value),
        Err(error) => Reading::Unavailable { why: format!("{what}: {}", chain(&error)) },
    }
}

impl Driver for Library {
    fn samples(&mut self) -> Reading<Vec<GpuSample>> {
        self.each(|gpu, device| {
            // Not supported on a GPU that is cut into instances (MIG), and then unknown, not 0.
            let rates = || device.utilization_rates();
            let memory = || device.memory_info();
            GpuSample {
                gpu,
                util: reading("utilisation", rates().map(|rates| rates.gpu)),
                mem_util: reading("memory utilisation", rates().map(|rates| rates.memory)),
                power_w: reading(
                    "power",
                    device.power_usage().map(|milliwatts| f64::from(milliwatts) / 1000.0),
                ),
                mem_used: reading("memory", memory().map(|memory| memory.used)),
                mem_total: reading("memory", memory().map(|memory| memory.total)),
            }
        })
    }

    fn memory(&mut self) -> Reading<Vec<GpuMemory>> {
        self.each(|gpu, device| GpuMemory {
            gpu,
            name: device.name().unwrap_or_else(|_| format!("GPU {gpu}")),
            used: reading("memory", device.memory_info().map(|memory| memory.used)),
            total: reading("memory", device.memory_info().map(|memory| memory.total)),
            processes: reading(
                "compute processes",
                device.running_compute_processes().map(|all| {
                    all.into_iter()
                        .map(|process| GpuProcess {
                            pid: process.pid,
                            used: match process.used_gpu_memory {
                                UsedGpuMemory::Used(bytes) => Reading::Value(bytes),
                                UsedGpuMemory::Unavailable => {
                                    Reading::Unavailable { why: "the driver does not say".to_owned() }
                                }
                            },
                        })
                        .collect()
                }),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Receiver;

    /// Answers each question only when the test lets it.
    struct Gated(Receiver<()>);

    impl Driver for Gated {
        fn samples(&mut self) -> Reading<Vec<GpuSample>> {
            match self.0.recv() {
                Ok(()) => Reading::Value(Vec::new()),
                Err(_) => Reading::Unavailable { why: "the test is over".to_owned() },
            }
        }

        fn memory(&mut self) -> Reading<Vec<GpuMemory>> {
            Reading::Value(Vec::new())
        }
    }

    fn gated(deadline: Duration) -> (NvmlSource, Sender<()>) {
        let (allow, gate) = channel();
        (NvmlSource::with_driver(deadline, || Box::new(Gated(gate))).unwrap(), allow)
    }

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_driver_that_never_answered_is_unavailable_and_stalls_nobody() {
        let (mut source, _allow) = gated(SHORT);
        let Reading::Unavailable { why } = source.sample().await else { panic!("a value from nowhere") };
        assert!(why.contains("did not answer"), "{why}");
        // The thread hangs in the first question, so the second kind of question gets no answer either.
        assert!(matches!(source.memory().await, Reading::Unavailable { .. }));
    }

    #[tokio::test]
    async fn a_driver_that_stops_answering_is_stale_and_comes_back_with_its_late_answer() {
        let (mut source, allow) = gated(SHORT);
        allow.send(()).unwrap();
        source.deadline = LONG;
        assert_eq!(source.sample().await, Reading::Value(Vec::new()));
        source.deadline = SHORT;
        assert_eq!(source.sample().await, Reading::Stale);
        assert_eq!(source.sample().await, Reading::Stale);
        // One answer is enough for three questions: the open one was not asked again.
        allow.send(()).unwrap();
        source.deadline = LONG;
        assert_eq!(source.sample().await, Reading::Value(Vec::new()));
    }

    #[tokio::test]
    async fn the_real_library_gives_gpus_or_says_why_not() {
        let mut source = NvmlSource::start().unwrap();
        source.deadline = LONG;
        match source.memory().await {
            Reading::Value(gpus) => {
                for gpu in gpus {
                    assert!(gpu.total.value().is_none_or(|total| *total > 0), "{gpu:?}");
                    println!("{gpu:?}");
                }
                println!("{:?}", source.sample().await);
            }
            Reading::Unavailable { why } => {
                println!("{why}");
                assert!(why.starts_with("NVML: ") && why.len() > 10, "{why}");
                assert_eq!(source.sample().await, Reading::Unavailable { why });
            }
            Reading::Stale => panic!("stale without an earlier answer"),
        }
    }
}
