//! NVML on a thread of its own. Its calls have been seen to sleep in the kernel for ever while a driver was ill, so
//! whoever asks waits only until a deadline and the thread is given up with the call it hangs in.

mod library;

use super::gpu::{GpuMemory, GpuSource};
use crate::event::{GpuSample, Reading};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::mpsc::{Receiver, Sender, channel};
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
        Self::with_thread(DEADLINE, library::answer)
    }

    fn with_thread(
        deadline: Duration,
        answer: impl FnOnce(Questions) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (requests, todo) = channel();
        // Never joined: it may hang in a system call that no signal interrupts.
        std::thread::Builder::new().name("nvml".to_owned()).spawn(move || answer(Questions(todo)))?;
        Ok(Self { requests, sample: Asked::default(), memory: Asked::default(), deadline })
    }
}

/// What the thread is asked.
struct Questions(Receiver<Request>);

impl Questions {
    /// Waits for the first question; `None` when nobody will ask any more.
    fn first(&self) -> Option<Request> {
        self.0.recv().ok()
    }

    /// Answers that one and all that follow.
    fn answer(&self, first: Request, driver: &mut dyn Driver) {
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Sample(answer) => drop(answer.send(driver.samples())),
                Request::Memory(answer) => drop(answer.send(driver.memory())),
            }
            next = self.0.recv().ok();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let thread = |questions: Questions| {
            if let Some(first) = questions.first() {
                questions.answer(first, &mut Gated(gate));
            }
        };
        (NvmlSource::with_thread(deadline, thread).unwrap(), allow)
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
