//! Windows of a real vLLM on the CPU: started by `server::command`, loaded, stopped and killed. `VARCAS_TEST_PYTHON` names an
//! interpreter that has vLLM; without it nothing is tested, and a line says so.

#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its ground has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use varcas_guard::config::Plan;
use varcas_guard::event::{ServerFacts, Trace, WindowEvent, WindowLine};
use varcas_guard::supervisor::reap::{clean, shm_names};
use varcas_guard::time::instant_now;
use varcas_guard::workload::profiler::windows::{CLOSE_REQUEST, INDEX, collect, parse_line, parse_name};
use varcas_guard::workload::server::{PROBE_PY, PYTHON_FILES, Places, RunMark, command, parse_probe};

/// One server at a time: two on a small machine starve each other.
static TURN: Mutex<()> = Mutex::new(());

fn interpreter() -> Option<(PathBuf, ServerFacts)> {
    let Some(python) = std::env::var_os("VARCAS_TEST_PYTHON").filter(|value| !value.is_empty()) else {
        eprintln!("SKIPPED: VARCAS_TEST_PYTHON names no interpreter with vLLM; no real server was started");
        return None;
    };
    let python = PathBuf::from(python);
    let output = Command::new(&python).args(["-c", PROBE_PY]).output().unwrap();
    let facts = parse_probe(&String::from_utf8_lossy(&output.stdout)).unwrap();
    Some((python, facts))
}

/// A Llama of toy size with invented words; the weights come from `--load-format dummy`.
fn write_model(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let words = 2048_u32;
    let vocabulary: BTreeMap<String, u32> = ["<unk>", "<s>", "</s>"]
        .into_iter()
        .map(str::to_owned)
        .chain((3..words).map(|number| format!("w{number}")))
        .zip(0..)
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    let tokenizer_config = serde_json::json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    });
    // CPU attention wants heads of 32.
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": words, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
    });
    for (name, value) in
        [("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer_config), ("config.json", config)]
    {
        fs::write(dir.join(name), value.to_string()).unwrap();
    }
}

/// The open connections of the load, so that they can be cut: vLLM does not end while a client waits.
type Streams = Arc<Mutex<Vec<TcpStream>>>;

struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
    traces: PathBuf,
    load: Vec<JoinHandle<()>>,
    stop_load: Arc<AtomicBool>,
    tokens: Arc<AtomicU64>,
    streams: Streams,
    _folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
    shm_before: Vec<String>,
}

impl Server {
    fn start(python: &Path, facts: &ServerFacts, extra: &[&str], shape: impl FnOnce(&mut Plan)) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let shm_before = shm_names();
        let folder = tempfile::Builder::new().prefix("vw").tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let places =
            Places { traces: at("traces"), scratch: at("t"), evidence: at("evidence"), python: at("python") };
        for dir in [&places.traces, &places.scratch, &places.evidence, &places.python] {
            fs::create_dir(dir).unwrap();
        }
        for (name, text) in PYTHON_FILES {
            fs::write(places.python.join(name), text).unwrap();
        }
        write_model(&at("model"));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut plan = Plan::default();
        plan.server.python = python.to_owned();
        plan.server.model = at("model").to_string_lossy().into_owned();
        plan.server.port = port;
        plan.server.extra = [
            "--load-format",
            "dummy",
            "--dtype",
            "bfloat16",
            "--max-model-len",
            "1024",
            "--served-model-name",
            "tiny",
        ]
        .iter()
        .chain(extra)
        .map(|&word| word.to_owned())
        .collect();
        plan.server.env = [
            ("VLLM_CPU_KVCACHE_SPACE", "1"),
            ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
            ("OMP_NUM_THREADS", "1"),
            ("HF_HUB_OFFLINE", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        shape(&mut plan);
        let mark = RunMark { run_id: format!("windows-test-{port}"), attempt: 1 };
        let built = command(&plan, facts, &places, &mark, &std::env::vars().collect(), Path::new("unused"));
        assert!(!built.refused(), "{:?}", built.notes);
        let log = at("log");
        let output = fs::File::create(&log).unwrap();
        let child = Command::new(&built.argv[0])
            .args(&built.argv[1..])
            .env_clear()
            .envs(&built.env)
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap();
        let mut server = Self {
            child,
            port,
            log,
            traces: places.traces,
            load: Vec::new(),
            stop_load: Arc::default(),
            tokens: Arc::default(),
            streams: Arc::default(),
            _folder: folder,
            _turn: turn,
            shm_before,
        };
        server.until("the server is ready", 600, |server| {
            assert!(server.child.try_wait().unwrap().is_none(), "the server ended: {}", server.log_tail());
            get(server.port, "/health").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        // The first sampled request compiles, which may take a minute.
        assert!(complete(port, 4, 0.0).is_some(), "{}", server.log_tail());
        assert!(complete(port, 4, 0.8).is_some(), "{}", server.log_tail());
        server
    }

    fn until(&mut self, what: &str, seconds: u64, mut condition: impl FnMut(&mut Self) -> bool) {
        let begun = instant_now();
        while !condition(self) {
            assert!(begun.elapsed().as_secs() < seconds, "never happened: {what}\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn index(&self) -> Vec<WindowLine> {
        fs::read_to_string(self.traces.join(INDEX))
            .unwrap_or_default()
            .lines()
            .filter_map(parse_line)
            .collect()
    }

    fn load(&mut self) {
        for _ in 0..4 {
            let (port, stop, tokens) = (self.port, Arc::clone(&self.stop_load), Arc::clone(&self.tokens));
            let streams = Arc::clone(&self.streams);
            self.load.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match complete_on(&streams, port, 32, 0.0) {
                        Some(count) => tokens.fetch_add(count, Ordering::Relaxed),
                        None => return,
                    };
                }
            }));
        }
    }

    fn cut_load(&mut self) {
        self.stop_load.store(true, Ordering::Relaxed);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _closed = stream.shutdown(Shutdown::Both);
        }
        self.end_load();
    }

    fn end_load(&mut self) {
        self.stop_load.store(true, Ordering::Relaxed);
        for thread in self.load.drain(..) {
            thread.join().unwrap();
        }
    }

    /// The whole group, as the guard does.
    fn signal(&self, signal: nix::sys::signal::Signal) {
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _gone = nix::sys::signal::killpg(group, signal);
    }

    /// Processes of the group that are not zombies.
    fn members(&self) -> Vec<i32> {
        let group = i32::try_from(self.child.id()).unwrap();
        let all = procfs::process::all_processes().unwrap();
        all.filter_map(|process| process.ok()?.stat().ok())
            .filter(|stat| stat.pgrp == group && stat.state != 'Z')
            .map(|stat| stat.pid)
            .collect()
    }

    fn kill(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        let _ended = self.child.wait();
        self.until("everything of the server is gone", 60, |server| server.members().is_empty());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        let _ended = self.child.wait();
        self.stop_load.store(true, Ordering::Relaxed);
        for thread in self.load.drain(..) {
            // With the server gone, its connections are.
            let _ended = thread.join();
        }
        // Shared memory of a killed vLLM stays; its last users may still be dying.
        let nowhere = self._folder.path().join("none");
        let is_new = |name: &String| !self.shm_before.contains(name);
        for _ in 0..100 {
            clean(&nowhere, &nowhere, &self.shm_before);
            if !shm_names().iter().any(is_new) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn exchange(streams: &Streams, port: u16, request: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(180))).ok()?;
    {
        let mut streams = streams.lock().unwrap();
        streams.retain(|stream| stream.peer_addr().is_ok());
        streams.push(stream.try_clone().ok()?);
    }
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let _closed = stream.shutdown(Shutdown::Both);
    Some(answer)
}

fn get(port: u16, path: &str) -> Option<String> {
    exchange(
        &Streams::default(),
        port,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
}

/// Output tokens by the server's usage; `None` when the request failed.
fn complete(port: u16, tokens: u32, temperature: f64) -> Option<u64> {
    complete_on(&Streams::default(), port, tokens, temperature)
}

fn complete_on(streams: &Streams, port: u16, tokens: u32, temperature: f64) -> Option<u64> {
    let body = serde_json::json!({
        "model": "tiny", "prompt": "w5 w6 w7 w8 w9", "max_tokens": tokens, "temperature": temperature, "ignore_eos": true,
    })
    .to_string();
    let answer = exchange(
        streams,
        port,
        &format!(
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    )?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let value: serde_json::Value =
        head.starts_with("HTTP/1.1 200").then(|| serde_json::from_str(body).ok())??;
    value["usage"]["completion_tokens"].as_u64()
}

fn closed(lines: &[WindowLine]) -> usize {
    lines.iter().filter(|line| matches!(line.what, WindowEvent::Closed { .. })).count()
}

fn last_is_open(lines: &[WindowLine]) -> bool {
    lines.last().is_some_and(|line| matches!(line.what, WindowEvent::Opened { .. }))
}

/// Python's own reader takes every file that the guard calls complete.
fn python_loads(python: &Path, traces: &Path, found: &[Trace]) {
    let script = "import gzip, json, sys\nfor name in sys.argv[1:]:\n    with gzip.open(name) as f:\n        \
                  print(len(json.load(f)['traceEvents']))";
    let files = found.iter().map(|trace| traces.join(&trace.file));
    let output = Command::new(python).args(["-c", script]).args(files).output().unwrap();
    let counts: Vec<u64> =
        String::from_utf8_lossy(&output.stdout).lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(counts, found.iter().map(|trace| trace.events).collect::<Vec<_>>());
}

#[test]
fn a_real_vllm_leaves_whole_windows_and_sigterm_in_the_middle_of_one_loses_none() {
    let Some((python, facts)) = interpreter() else { return };
    let mut server = Server::start(&python, &facts, &[], |plan| {
        plan.profile.rest = Duration::from_millis(200);
        plan.profile.window = Duration::from_secs(30);
        plan.profile.idle = Duration::from_millis(300);
    });
    // Nothing but the steps of a loaded server closes three windows on steps.
    server.load();
    server.until("three more windows", 120, |server| closed(&server.index()) >= 4);
    server.end_load();
    server.until("the idle server closes its window", 30, |server| !last_is_open(&server.index()));
    let profile_route = get(server.port, "/start_profile").unwrap();
    assert!(profile_route.starts_with("HTTP/1.1 404"), "{profile_route}");
    server.stop_load.store(false, Ordering::Relaxed);
    server.load();
    server.until("a window is open", 60, |server| last_is_open(&server.index()));
    server.signal(nix::sys::signal::Signal::SIGTERM);
    server.until("the worker has closed its window", 60, |server| {
        server.index().iter().any(|line| matches!(line.what, WindowEvent::Finished {}))
    });
    server.cut_load();
    server.until("everything of the server is gone", 120, |server| {
        server.child.try_wait().unwrap().is_some() && server.members().is_empty()
    });
    let (found, problems) = collect(&server.traces);
    assert_eq!(problems, [""; 0]);
    assert_eq!(found.len(), closed(&server.index()));
    assert!(found.len() >= 5, "{found:?}");
    // The last window may hold a single step.
    let rich = |trace: &Trace| trace.events > 100 || trace.steps.is_some_and(|steps| steps < 5);
    assert!(found.iter().all(|trace| trace.events > 0 && rich(trace)), "{found:?}");
    python_loads(&python, &server.traces, &found);
    let log = fs::read_to_string(&server.log).unwrap();
    assert!(
        !log.contains("registerClient"),
        "the first profile did not start on the thread that imported torch"
    );
}

#[test]
fn ranks_open_on_the_same_step_answer_a_request_to_close_and_sigkill_spares_finished_windows() {
    let Some((python, facts)) = interpreter() else { return };
    let mut server = Server::start(&python, &facts, &["-tp", "2"], |plan| {
        plan.profile.rest = Duration::from_millis(200);
        plan.profile.window_steps = 10;
        plan.profile.window = Duration::from_secs(60);
    });
    server.load();
    server.until("four windows of each rank", 120, |server| closed(&server.index()) >= 8);
    let mut steps: BTreeMap<u32, BTreeSet<(u32, u64)>> = BTreeMap::new();
    server.until("both ranks have the same windows open", 60, |server| {
        steps.clear();
        for line in server.index() {
            if let WindowEvent::Opened { window, step, .. } = line.what {
                steps.entry(line.rank).or_default().insert((window, step));
            }
        }
        steps.len() == 2 && steps[&0].len() == steps[&1].len()
    });
    assert_eq!(steps[&0], steps[&1]);

    server.until("a window is open", 60, |server| last_is_open(&server.index()));
    server.kill();
    let finished: BTreeSet<String> = server
        .index()
        .into_iter()
        .filter_map(|line| match line.what {
            WindowEvent::Closed { file, .. } => Some(file + ".gz"),
            _ => None,
        })
        .collect();
    let (found, problems) = collect(&server.traces);
    // A window whose file was renamed, but whose line was not yet written, is there as well.
    let names: BTreeSet<String> = found.iter().map(|trace| trace.file.clone()).collect();
    assert!(names.is_superset(&finished), "{names:?} {problems:?}");
    assert!(names.iter().all(|name| parse_name(name).is_some()));
    assert!(problems.iter().all(|problem| !problem.contains("not a complete trace")), "{problems:?}");
    python_loads(&python, &server.traces, &found);
}

#[test]
fn a_request_to_close_is_answered_by_both_ranks_under_load_and_the_server_goes_on() {
    let Some((python, facts)) = interpreter() else { return };
    let mut server = Server::start(&python, &facts, &["-tp", "2"], |plan| {
        plan.profile.rest = Duration::from_millis(200);
        plan.profile.window_steps = 1_000_000;
        plan.profile.window = Duration::from_secs(600);
        plan.profile.idle = Duration::from_secs(600);
    });
    server.load();
    server.until("a window is open", 60, |server| last_is_open(&server.index()));
    fs::write(server.traces.join(CLOSE_REQUEST), "").unwrap();
    server.until("both ranks have finished", 60, |server| {
        server.index().iter().filter(|line| matches!(line.what, WindowEvent::Finished {})).count() == 2
    });
    let before = server.tokens.load(Ordering::Relaxed);
    server.until("the load goes on", 60, |server| server.tokens.load(Ordering::Relaxed) > before + 200);
    server.end_load();
    let (found, problems) = collect(&server.traces);
    assert_eq!(problems, [""; 0]);
    assert!(found.len() >= 2, "{found:?}");
    server.kill();
}
