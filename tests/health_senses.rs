//! The senses against real processes and real sockets.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tokio::sync::{mpsc::unbounded_channel, watch};
use varcas_guard::event::{EngineSample, EventKind, GpuDetails, GpuSample, ProcId, ProcSample, Reading};
use varcas_guard::health::gpu::ScriptedGpu;
use varcas_guard::health::metrics::{self, Health, health, scrape};
use varcas_guard::health::process::Sampler;
use varcas_guard::health::sampler::{DiskPlaces, SamplerConfig, spawn};

/// A child that is killed and reaped with its group when the test is over.
struct Running(Child);

impl Running {
    fn shell(script: &str) -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(self.pid());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        drop(self.0.wait());
    }
}

fn proc_of(sampler: &mut Sampler, pid: i32) -> ProcId {
    sampler.stat(pid).unwrap().proc
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    tokio::time::timeout(Duration::from_secs(60), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_stopped_process_shows_its_state_and_a_busy_one_its_cpu_time() {
    let busy = Running::shell("while :; do :; done");
    let mut sampler = Sampler::new();
    let proc = proc_of(&mut sampler, busy.pid());
    until("cpu time", || sampler.sample(&[proc])[0].cpu_s > 0.02).await;
    let sample = sampler.sample(&[proc]).remove(0);
    assert_eq!((sample.comm.as_str(), sample.threads), ("sh", 1));
    assert!(sample.rss > 100_000 && sample.rss < 1 << 30, "{sample:?}");
    let pid = nix::unistd::Pid::from_raw(busy.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    until("state T", || sampler.sample(&[proc])[0].state == 'T').await;
    assert!(sampler.status(busy.pid()).unwrap().rss.unwrap() > 100_000);
    assert!(sampler.io(busy.pid()).unwrap().read_chars > 0);
    sampler.wchan(busy.pid()).unwrap();
}

#[tokio::test]
async fn details_of_a_process_are_what_the_kernel_says_of_it() {
    let running = Running::shell("read x");
    let mut sampler = Sampler::new();
    let proc = proc_of(&mut sampler, running.pid());
    until("sleep", || sampler.sample(&[proc])[0].state == 'S').await;
    let io = sampler.io(running.pid()).unwrap();
    let wchan = sampler.wchan(running.pid()).unwrap();
    let plain = sampler.sample(&[proc]).remove(0);
    assert_eq!((plain.read_bytes, plain.written_bytes, &plain.wchan), (None, None, &None));
    let details = sampler.sample_details(&[proc]).remove(0);
    let expected =
        ProcSample { read_bytes: Some(io.read_bytes), written_bytes: Some(io.written_bytes), wchan, ..plain };
    assert_eq!(details, expected);
}

#[test]
fn a_sample_of_an_older_journal_is_read_and_what_is_unknown_is_not_written() {
    let old =
        r#"{"proc":{"pid":7,"start":1},"ppid":1,"comm":"x","state":"S","cpu_s":1.0,"rss":1,"threads":1}"#;
    let process: ProcSample = serde_json::from_str(old).unwrap();
    assert_eq!(serde_json::to_string(&process).unwrap(), old);
    let old = r#"{"gpu":0,"util":{"value":9},"mem_util":"stale","power_w":{"value":1.5},"mem_used":{"value":1},"mem_total":{"value":2}}"#;
    let mut gpu: GpuSample = serde_json::from_str(old).unwrap();
    assert_eq!(serde_json::to_string(&gpu).unwrap(), old);
    gpu.details = Some(Box::new(GpuDetails { sm_mhz: Some(1980), ..GpuDetails::default() }));
    let text = serde_json::to_string(&gpu).unwrap();
    assert!(text.ends_with(r#","details":{"sm_mhz":1980}}"#), "{text}");
    assert_eq!(serde_json::from_str::<GpuSample>(&text).unwrap(), gpu);
}

#[tokio::test]
async fn a_process_that_is_gone_or_another_one_with_its_pid_is_left_out() {
    let mut sampler = Sampler::new();
    let running = Running::shell("read x");
    let proc = proc_of(&mut sampler, running.pid());
    assert_eq!(sampler.sample(&[proc]).len(), 1);
    assert!(sampler.sample(&[ProcId { start: proc.start + 1, ..proc }]).is_empty());
    drop(running);
    assert!(sampler.sample(&[proc]).is_empty());
}

#[tokio::test]
async fn the_tree_finds_a_grandchild() {
    let running = Running::shell("sh -c 'sh -c \"read x\"; :'; :");
    let mut sampler = Sampler::new();
    until("three processes", || sampler.tree(running.pid(), None).len() == 3).await;
    let tree = sampler.tree(running.pid(), Some(running.pid()));
    assert_eq!(tree.len(), 3);
    assert!(tree.iter().any(|process| process.proc.pid == running.pid()));
}

/// Answers each connection with `answer`, whatever was asked, until nobody connects any more or the test ends.
struct Server {
    url: String,
    stop: mpsc::Sender<()>,
    /// Every connection, so that the end of the test can hang them all up.
    open: Arc<Mutex<Vec<TcpStream>>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn with(answer: impl Fn(&mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = mpsc::channel::<()>();
        let open = Arc::new(Mutex::new(Vec::new()));
        let opened = Arc::clone(&open);
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if !matches!(stopped.try_recv(), Err(mpsc::TryRecvError::Empty)) {
                    return;
                }
                opened.lock().unwrap().push(stream.try_clone().unwrap());
                let mut request = [0; 4096];
                drop(stream.read(&mut request));
                answer(&mut stream);
                // The clone above would keep it open.
                drop(stream.shutdown(Shutdown::Both));
            }
        });
        Self { url: format!("http://{address}"), stop, open, thread: Some(thread) }
    }

    fn page(status: &str, body: &str) -> Self {
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        Self::with(move |stream| drop(stream.write_all(answer.as_bytes())))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        for stream in self.open.lock().unwrap().iter() {
            drop(stream.shutdown(Shutdown::Both));
        }
        // Wakes accept.
        drop(TcpStream::connect(self.url.trim_start_matches("http://")));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

const PAGE: &str = "vllm:iteration_tokens_total_count{engine=\"0\"} 5.0\nvllm:prompt_tokens_total{engine=\"0\"} 40.0\n\
                    vllm:generation_tokens_total{engine=\"0\"} 7.0\nvllm:num_requests_running{engine=\"0\"} 2.0\n\
                    vllm:num_requests_waiting{engine=\"0\"} 1.0\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n";

fn why<T: std::fmt::Debug>(reading: Reading<T>) -> String {
    match reading {
        Reading::Unavailable { why } => why,
        other => panic!("expected no value: {other:?}"),
    }
}

fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[tokio::test]
async fn a_metrics_page_becomes_a_sample() {
    let server = Server::page("200 OK", PAGE);
    let sample = scrape(&metrics::client().unwrap(), &server.url).await;
    let expected = EngineSample {
        iterations: 5.0,
        prompt_tokens: 40.0,
        generation_tokens: 7.0,
        running: 2.0,
        waiting: 1.0,
        kv_usage: 0.5,
    };
    assert_eq!(sample, Reading::Value(expected));
}

#[tokio::test]
async fn a_metrics_page_without_end_is_given_up() {
    let server = Server::with(|stream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"));
        let line = b"vllm:noise_total 1\n".repeat(4096);
        // Ends when the other side hangs up.
        while stream.write_all(&line).is_ok() {}
    });
    assert!(why(scrape(&metrics::client().unwrap(), &server.url).await).contains("more than 8 MiB"));
}

#[tokio::test]
async fn every_way_of_not_answering_has_its_own_words() {
    let client = metrics::client().unwrap();
    let html = Server::page("200 OK", "<html>hello</html>");
    assert!(why(scrape(&client, &html.url).await).contains("HTML"));
    let missing = Server::page("404 Not Found", "{}");
    assert!(why(scrape(&client, &missing.url).await).contains("HTTP status 404"));
    let garbage = Server::with(|stream| drop(stream.write_all(b"\x00\x01 this is not HTTP\r\n\r\n")));
    assert!(why(scrape(&client, &garbage.url).await).contains("HTTP"));
    let broken = Server::with(|stream| {
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nvllm:"));
    });
    assert!(why(scrape(&client, &broken.url).await).starts_with("GET http://127.0.0.1:"));
    assert!(why(scrape(&client, &closed_port()).await).contains("refused"));
}

#[tokio::test]
async fn health_tells_dead_from_refusing_from_silent() {
    let client = metrics::client().unwrap();
    let long = Duration::from_secs(60);
    assert_eq!(health(&client, &Server::page("200 OK", "").url, long).await, Health::Ok);
    assert_eq!(
        health(&client, &Server::page("503 Service Unavailable", "").url, long).await,
        Health::Status(503)
    );
    assert_eq!(health(&client, &closed_port(), long).await, Health::Refused);
    // Bound and listening, but nobody takes the connection from the queue: a stopped server.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", listener.local_addr().unwrap());
    assert_eq!(health(&client, &silent, Duration::from_millis(50)).await, Health::TimedOut);
}

#[tokio::test]
async fn the_sampler_tells_what_each_sense_says_and_a_missing_driver_only_once() {
    let server = Server::page("200 OK", PAGE);
    let running = Running::shell("read x");
    let proc = proc_of(&mut Sampler::new(), running.pid());
    let (_url, base_url) = watch::channel(Some(server.url.clone()));
    let (_processes, processes) = watch::channel(vec![proc]);
    let gone = Reading::<Vec<GpuSample>>::Unavailable { why: "no driver".to_owned() };
    let gpu = ScriptedGpu::new().then_sample(gone.clone()).then_sample(gone);
    let (send, mut events) = unbounded_channel();
    let mut config = SamplerConfig::new(base_url, processes, Box::new(gpu));
    config.interval = Duration::from_millis(5);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("traces")).unwrap();
    std::fs::write(dir.path().join("traces/window-0.json"), b"12345").unwrap();
    std::fs::write(dir.path().join("server.log"), b"123").unwrap();
    config.disk = Some(DiskPlaces {
        volume: dir.path().to_owned(),
        traces: dir.path().join("traces"),
        logs: vec![dir.path().join("server.log"), dir.path().join("not-yet.log")],
    });
    let handle = spawn(config, send).unwrap();
    let (mut engine, mut tree, mut gpus, mut disk) = (0, 0, 0, 0);
    tokio::time::timeout(Duration::from_secs(60), async {
        while engine < 3 || tree < 20 || disk < 3 {
            match events.recv().await.unwrap() {
                EventKind::EngineSampled(Reading::Value(sample)) => {
                    assert_eq!(sample.iterations, 5.0);
                    engine += 1;
                }
                EventKind::ProcessesSampled { processes } => {
                    assert_eq!(processes[0].proc, proc);
                    assert_eq!(processes[0].read_bytes.is_some(), tree % 5 == 0, "sample {tree}");
                    tree += 1;
                }
                EventKind::GpusSampled(Reading::Unavailable { .. }) => gpus += 1,
                EventKind::DiskSampled { free: Reading::Value(free), traces, logs } => {
                    assert!(free > 0);
                    assert_eq!((traces, logs), (Reading::Value(5), Reading::Value(3)));
                    disk += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await
    .unwrap();
    assert_eq!(gpus, 1);
    drop(handle);
    // The tasks are gone and with them every sender.
    tokio::time::timeout(Duration::from_secs(60), async { while events.recv().await.is_some() {} })
        .await
        .unwrap();
}
