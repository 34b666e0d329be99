//! Starts a simulator, talks to it, and takes it down again with everything it started.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[expect(clippy::disallowed_methods, reason = "a test has no run whose clock it could use")]
fn now() -> Instant {
    Instant::now()
}

/// Waits for an event; the deadline is generous because it only bounds a broken test.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = now() + Duration::from_secs(30);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) ppid: i32,
    pub(crate) pgrp: i32,
    pub(crate) state: char,
    pub(crate) comm: String,
    pub(crate) cmdline: String,
}

/// One process, from /proc.
pub(crate) fn process(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let mut fields = stat[close + 2..].split(' ');
    let state = fields.next()?.chars().next()?;
    let (ppid, pgrp) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let cmdline = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?.replace('\0', " ");
    Some(Process { pid, ppid, pgrp, state, comm: stat[open + 1..close].to_owned(), cmdline })
}

fn all_pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

fn marked(pid: i32, mark: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment.split(|byte| *byte == 0).any(|entry| entry == format!("VARCAS_RUN_ID={mark}").as_bytes())
}

pub(crate) struct Sim {
    pub(crate) pid: i32,
    pub(crate) port: u16,
    pub(crate) folder: tempfile::TempDir,
    mark: String,
    status: Option<WaitStatus>,
}

#[derive(Default)]
pub(crate) struct Options<'a> {
    pub(crate) knobs: &'a str,
    pub(crate) arguments: &'a [&'a str],
    pub(crate) env: &'a [(&'a str, &'a str)],
    pub(crate) profile: bool,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Sim {
    /// Starts it; it may not be ready yet.
    pub(crate) fn start(options: &Options) -> Self {
        Self::start_on(free_port(), options)
    }

    pub(crate) fn start_on(port: u16, options: &Options) -> Self {
        // Orphans come to us, so that we can reap what we kill.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (tmp, traces) = (folder.path().join("t"), folder.path().join("traces"));
        std::fs::create_dir(&tmp).unwrap();
        std::fs::create_dir(&traces).unwrap();
        let mark = format!("test-{}", folder.path().file_name().unwrap().to_str().unwrap());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_varcas-guard"));
        command
            .args([
                "__sim",
                "--model",
                "/srv/vllm/tiny",
                "--served-model-name",
                "tiny",
                "--host",
                "127.0.0.1",
            ])
            .args(["--port", &port.to_string(), "--max-model-len", "1024"])
            .args(options.arguments)
            .env("TMPDIR", &tmp)
            .env("NO_COLOR", "1")
            .env("VARCAS_RUN_ID", &mark)
            .env(
                "VARCAS_SIM",
                format!("load=50ms,step=2ms,ttft=1ms,sampled_compile=1ms,watchdog=200ms,{}", options.knobs),
            )
            .env_remove("VARCAS_TRACE_DIR")
            .env_remove("VARCAS_ATTEMPT")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        if options.profile {
            command.env("VARCAS_TRACE_DIR", &traces).env("VARCAS_REST_SECONDS", "0.05");
            command.env("VARCAS_IDLE_SECONDS", "60").env("VARCAS_WINDOW_SECONDS", "60");
        }
        command.envs(options.env.iter().copied());
        let pid = command.spawn().unwrap().id() as i32;
        Self { pid, port, folder, mark, status: None }
    }

    /// Starts it and waits until it answers.
    pub(crate) fn ready(options: &Options) -> Self {
        let sim = Self::start(options);
        until("the simulator is healthy", || (sim.get("/health")?.status == 200).then_some(()));
        sim
    }

    pub(crate) fn with(knobs: &str) -> Self {
        Self::ready(&Options { knobs, ..Options::default() })
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn traces(&self) -> PathBuf {
        self.folder.path().join("traces")
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.folder.path().join("t")
    }

    /// Every living process of this server.
    pub(crate) fn tree(&self) -> Vec<Process> {
        let ours = all_pids().into_iter().filter(|pid| marked(*pid, &self.mark));
        ours.filter_map(process).filter(|process| process.state != 'Z').collect()
    }

    pub(crate) fn named(&self, comm: &str) -> Option<Process> {
        self.tree().into_iter().find(|process| process.comm == comm)
    }

    pub(crate) fn engine(&self) -> i32 {
        until("the engine exists", || self.named("VLLM::EngineCor")).pid
    }

    pub(crate) fn signal(&self, pid: i32, signal: Signal) {
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// How the launched process ended.
    pub(crate) fn wait(&mut self) -> WaitStatus {
        let pid = Pid::from_raw(self.pid);
        let status =
            until("the API server ends", || match waitpid(pid, Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::StillAlive => None,
                status => Some(status),
            });
        self.status = Some(status);
        status
    }

    pub(crate) fn code(&mut self) -> i32 {
        match self.wait() {
            WaitStatus::Exited(_, code) => code,
            other => panic!("ended by {other:?}:\n{}", self.log()),
        }
    }

    pub(crate) fn gone(&self) {
        until("every process is gone", || self.tree().is_empty().then_some(()));
    }

    pub(crate) fn get(&self, path: &str) -> Option<Reply> {
        request(self.port, "GET", path, "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        request(self.port, "POST", path, body).unwrap()
    }

    pub(crate) fn stream(&self, path: &str, body: &str) -> Stream {
        let mut reader = BufReader::new(send(self.port, "POST", path, body).unwrap());
        let (status, _) = head(&mut reader).unwrap();
        assert_eq!(status, 200);
        Stream { reader }
    }

    /// A completion stream that has begun.
    pub(crate) fn long_stream(&self) -> Stream {
        let body = r#"{"prompt":"a","max_tokens":1000,"temperature":0,"ignore_eos":true,"stream":true}"#;
        let mut stream = self.stream("/v1/completions", body);
        stream.next().unwrap();
        stream
    }

    pub(crate) fn complete(&self, tokens: u32) -> Reply {
        let body =
            format!(r#"{{"prompt":"a b c d","max_tokens":{tokens},"temperature":0,"ignore_eos":true}}"#);
        self.post("/v1/completions", &body)
    }

    /// The value of a `vllm:` series without labels of its own.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.get("/metrics").unwrap().body;
        let start = format!("vllm:{name}{{engine=\"0\",model_name=\"tiny\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&start)?.parse().ok()).unwrap()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Everything but the resource tracker, which then removes the shared memory and ends by itself.
        let end = now() + Duration::from_secs(10);
        loop {
            let tree = self.tree();
            if tree.is_empty() {
                break;
            }
            let late = now() > end;
            for process in tree {
                if late || !process.cmdline.contains("resource_tracker") {
                    let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if self.status.is_none() {
            let _ = waitpid(Pid::from_raw(self.pid), None);
        }
        while let Ok(status) = waitpid(Pid::from_raw(-self.pid), Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn send(port: u16, method: &str, path: &str, body: &str) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    Some(stream)
}

fn head(reader: &mut BufReader<TcpStream>) -> Option<(u16, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some((head.split(' ').nth(1)?.parse().ok()?, head))
}

fn request(port: u16, method: &str, path: &str, body: &str) -> Option<Reply> {
    let mut reader = BufReader::new(send(port, method, path, body)?);
    let (status, head) = head(&mut reader)?;
    let mut body = String::new();
    reader.read_to_string(&mut body).ok()?;
    Some(Reply { status, head, body })
}

/// A chunked answer, one HTTP chunk at a time.
pub(crate) struct Stream {
    reader: BufReader<TcpStream>,
}

impl Stream {
    /// The next chunk; none at the proper end of the stream.
    pub(crate) fn next(&mut self) -> Option<String> {
        chunk(&mut self.reader)
    }

    pub(crate) fn rest(mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

/// Reads one HTTP chunk.
pub(crate) fn chunk(reader: &mut impl BufRead) -> Option<String> {
    let mut size = String::new();
    reader.read_line(&mut size).unwrap();
    let size = usize::from_str_radix(size.trim(), 16).unwrap();
    let mut data = vec![0; size + 2];
    reader.read_exact(&mut data).unwrap();
    data.truncate(size);
    (size > 0).then(|| String::from_utf8(data).unwrap())
}

/// A recording of the real server.
pub(crate) fn fixture(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm-0.15.1");
    std::fs::read_to_string(folder.join(name)).unwrap()
}
