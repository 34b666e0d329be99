//! Faults of a real vLLM on the CPU, provoked on purpose: each is noticed, named, recorded with evidence, and cleaned up.
//! `VARCAS_TEST_PYTHON` names an interpreter that has vLLM; without it nothing is tested, and a line says so. The times from
//! fault to decision are printed (`-- --nocapture --test-threads=1`).
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{Finished, Place, Running, wait_for};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use varcas_guard::event::{
    Ending, Event, EventKind, HangKind, LoadProgress, Outcome, Phase, ProcId, SuspicionStep,
};
use varcas_guard::supervisor::os;
use varcas_guard::time::wall_now;

/// Short, so that the tests are; the defaults are the same kinds at 60 and 180 s.
const PATIENCE: &str = "[patience]\nsuspect-after = \"3s\"\nstopped = \"8s\"\nidle = \"8s\"\nhost-busy = \"12s\"\n\
                        undetermined = \"20s\"\nadapt-factor = 1.0\n";

/// The toy model of `real_vllm.rs`.
const MAKE_MODEL: &str = r#"
import json, os, sys
out = sys.argv[1]
os.makedirs(out)
words = ["<unk>", "<s>", "</s>"] + [f"w{n}" for n in range(3, 2048)]
tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
             "model": {"type": "WordLevel", "vocab": {w: n for n, w in enumerate(words)}, "unk_token": "<unk>"}}
config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
         "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32,
         "vocab_size": 2048, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
         "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16"}
for name, value in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config), ("config.json", model)]:
    json.dump(value, open(os.path.join(out, name), "w"))
"#;

/// A place with a toy model and the folder with the faults.
struct Bench {
    place: Place,
    python: PathBuf,
}

impl Bench {
    fn new() -> Option<Self> {
        let Some(python) = std::env::var_os("VARCAS_TEST_PYTHON").filter(|value| !value.is_empty()) else {
            eprintln!(
                "SKIPPED: VARCAS_TEST_PYTHON names no interpreter with vLLM; no real fault was provoked"
            );
            return None;
        };
        let (place, python) = (Place::new(), PathBuf::from(python));
        let made = Command::new(&python).args(["-c", MAKE_MODEL]).arg(place.path("model")).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::create_dir(place.path("faults")).unwrap();
        let text = include_str!("real_support/sitecustomize.py");
        std::fs::write(place.path("faults/sitecustomize.py"), text).unwrap();
        Some(Self { place, python })
    }

    fn start(&self, workers: u32) -> Running<'_> {
        self.start_with(workers, PATIENCE)
    }

    fn start_with(&self, workers: u32, patience: &str) -> Running<'_> {
        let config = self.place.path("guard.toml");
        let text = format!(
            "retries = 0\n[server.env]\nVLLM_CPU_KVCACHE_SPACE = \"1\"\nVLLM_CPU_OMP_THREADS_BIND = \"nobind\"\n\
             OMP_NUM_THREADS = \"1\"\nHF_HUB_OFFLINE = \"1\"\nPYTHONPATH = {:?}\nVARCAS_TEST_FAULT = {:?}\n\
             TORCHINDUCTOR_CACHE_DIR = {:?}\n[load]\nrate = 3.0\n{patience}",
            self.place.path("faults"),
            self.place.path("fault"),
            // One for all tests, or each would compile for half a minute.
            concat!(env!("CARGO_TARGET_TMPDIR"), "/inductor"),
        );
        std::fs::write(&config, text).unwrap();
        let (config, python, model) =
            (text_of(config), text_of(self.python.clone()), text_of(self.place.path("model")));
        let (port, workers) = (self.place.port.to_string(), workers.to_string());
        self.place.start(
            "out",
            &[
                "run",
                "--duration",
                "10m",
                "--port",
                &port,
                "--config",
                &config,
                "--python",
                &python,
                "--model",
                &model,
                "out",
                "--",
                "--load-format",
                "dummy",
                "--dtype",
                "bfloat16",
                "--max-model-len",
                "1024",
                "-tp",
                &workers,
            ],
        )
    }

    /// The engine's next step does this. Returns when (Unix seconds).
    fn provoke(&self, fault: &str) -> f64 {
        let now = unix_now();
        std::fs::write(self.place.path("fault.new"), fault).unwrap();
        std::fs::rename(self.place.path("fault.new"), self.place.path("fault")).unwrap();
        now
    }
}

fn text_of(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

fn unix_now() -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds are enough")]
    let now = wall_now().as_microsecond() as f64 / 1e6;
    now
}

fn under_load(running: &mut Running<'_>) {
    running.until("answers", |kind| match kind {
        EventKind::LoadProgressed(LoadProgress { completed, .. }) if *completed > 2 => Some(()),
        _ => None,
    });
}

fn process(running: &mut Running<'_>, title: &str) -> ProcId {
    running.until(title, |kind| match kind {
        EventKind::ProcessSeen { proc, comm, .. } if comm.starts_with(title) => Some(*proc),
        _ => None,
    })
}

fn at(event: &Event) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds are enough")]
    let at = event.at.wall.as_microsecond() as f64 / 1e6;
    at
}

/// What every lost attempt must leave, and its ending.
fn checked(done: &Finished, bench: &Bench) -> Ending {
    assert_eq!(done.code, Some(75), "{}", done.told());
    done.assert_nothing_left(&bench.place);
    done.assert_replays(&bench.place);
    let endings = done.endings();
    let [ending] = endings.as_slice() else { panic!("{endings:?}") };
    println!("  {}: {}", ending.outcome, ending.reason);
    ending.clone()
}

/// Seconds from the fault to the decision that follows from a standstill of this kind.
fn hang(done: &Finished, bench: &Bench, since: f64, kind: HangKind, patience: f64) {
    let ending = checked(done, bench);
    assert_eq!((ending.outcome, ending.phase), (Outcome::Hang, Phase::Measuring), "{ending:?}");
    let events = done.events();
    let acted = events.iter().find_map(|event| match &event.kind {
        EventKind::Suspicion(s) if s.step == SuspicionStep::Act => Some((s.kind, at(event) - since, s.still)),
        _ => None,
    });
    let (seen, took, still) = acted.unwrap();
    println!("  {seen}: decided {took:.1} s after the fault, patience {patience} s, still {still:.1?}");
    assert_eq!(seen, kind, "{ending:?}");
    assert!(still >= Duration::from_secs_f64(patience), "not before patience was over");
    let items = events.iter().find_map(|event| match &event.kind {
        EventKind::EvidenceSaved { items } => Some(items.clone()),
        _ => None,
    });
    let items = items.unwrap();
    for item in &items {
        println!(
            "    {} {:?} {} bytes in {:.2?} {}",
            item.what,
            item.file,
            item.bytes,
            item.took,
            item.problem.as_deref().unwrap_or("")
        );
    }
    assert!(items.iter().any(|item| item.what == "processes" && item.bytes > 0), "{items:?}");
}

/// The stacks that a worker wrote name this function.
fn assert_stacks(done: &Finished, function: &str) {
    let folder = done.out.join("attempt-1/evidence");
    let stacks: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("stacks-"))
        .filter_map(|entry| std::fs::read_to_string(entry.path()).ok())
        .collect();
    assert!(stacks.iter().any(|text| text.contains(function)), "{stacks:?}");
}

fn death(done: &Finished, bench: &Bench, victim: ProcId, since: f64, outcome: Outcome) -> Ending {
    let ending = checked(done, bench);
    assert_eq!(ending.outcome, outcome, "{ending:?}");
    let seen = done.events().iter().find_map(|event| match &event.kind {
        EventKind::ProcessExited { proc, .. } if *proc == victim => Some(at(event) - since),
        _ => None,
    });
    println!("  its exit was an event {:.1} ms after the signal", seen.unwrap() * 1e3);
    ending
}

fn kill(victim: ProcId) -> f64 {
    let now = unix_now();
    os::signal(victim, 9).unwrap();
    now
}

#[test]
fn a_stopped_engine_is_named_stopped() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start(1);
    under_load(&mut running);
    let engine = process(&mut running, "VLLM::Engine");
    let since = unix_now();
    os::signal(engine, 19).unwrap();
    hang(&running.wait(), &bench, since, HangKind::Stopped, 8.0);
}

#[test]
fn a_loop_in_the_worker_is_named_host_busy_and_its_stack_is_saved() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start(1);
    under_load(&mut running);
    let since = bench.provoke("loop");
    let done = running.wait();
    hang(&done, &bench, since, HangKind::HostBusy, 12.0);
    assert_stacks(&done, "in _loop");
}

#[test]
fn a_worker_that_waits_for_a_lock_is_a_deadlock_and_its_stack_is_saved() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start(1);
    under_load(&mut running);
    let since = bench.provoke("lock");
    let done = running.wait();
    hang(&done, &bench, since, HangKind::GpuIdleHostIdle, 8.0);
    assert_stacks(&done, "in _lock");
}

#[test]
fn a_killed_engine_is_a_crash() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start(1);
    under_load(&mut running);
    let engine = process(&mut running, "VLLM::Engine");
    let since = kill(engine);
    death(&running.wait(), &bench, engine, since, Outcome::Crash);
}

#[test]
fn a_killed_worker_of_two_is_a_crash() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start(2);
    under_load(&mut running);
    let worker = process(&mut running, "VLLM::Worker");
    let since = kill(worker);
    death(&running.wait(), &bench, worker, since, Outcome::Crash);
}

#[test]
fn an_engine_killed_while_it_loads_is_a_failed_start() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start(1);
    let engine = process(&mut running, "VLLM::Engine");
    let since = kill(engine);
    death(&running.wait(), &bench, engine, since, Outcome::StartupFailure);
}

/// Root, and a memory cgroup of version 1 or 2 that may be made.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(limit: u64) -> Option<Self> {
        let name = format!("varcas-test-{}", std::process::id());
        for (root, file) in
            [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]
        {
            let dir = PathBuf::from(root).join(&name);
            if std::fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Self(dir);
            if std::fs::write(group.0.join(file), limit.to_string()).is_ok() {
                return Some(group);
            }
        }
        eprintln!("SKIPPED: no memory cgroup can be made here; the OOM killer was not provoked");
        None
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        wait_for("the cgroup to be empty", || std::fs::remove_dir(&self.0).ok());
    }
}

#[test]
fn the_oom_killer_of_a_small_cgroup_is_named() {
    let Some(bench) = Bench::new() else { return };
    let Some(group) = Cgroup::new(6 << 30) else { return };
    let mut running = bench.start(1);
    // The guard too, as in a container.
    std::fs::write(group.0.join("cgroup.procs"), running.id.pid.to_string()).unwrap();
    under_load(&mut running);
    let engine = process(&mut running, "VLLM::Engine");
    let since = bench.provoke("memory");
    let done = running.wait();
    let ending = death(&done, &bench, engine, since, Outcome::Crash);
    drop(group);
    let clues: Vec<_> = done
        .events()
        .into_iter()
        .filter_map(|event| match event.kind {
            EventKind::Clue(clue) => Some(clue),
            _ => None,
        })
        .collect();
    println!("  {clues:?}");
    assert!(clues.iter().any(|clue| clue.cause.contains("oom")), "{ending:?} {clues:?}");
}

/// A small file system over a folder, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(over: PathBuf) -> Option<Self> {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=300k", "tmpfs"]).arg(&over).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: nothing may be mounted here; the trace folder was not filled");
            return None;
        }
        Some(Self(over))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_trace_folder_switches_the_profiler_off_and_the_engine_goes_on() {
    let Some(bench) = Bench::new() else { return };
    let mut running = bench.start(1);
    running.until("the server's first process", |kind| {
        matches!(kind, EventKind::ServerSpawned { .. }).then_some(())
    });
    let Some(small) = Small::new(bench.place.path("out/attempt-1/traces")) else { return };
    let reason = running.until("the worker's word", |kind| match kind {
        EventKind::Window(line) => match &line.what {
            varcas_guard::event::WindowEvent::Disabled { reason } => Some(reason.clone()),
            varcas_guard::event::WindowEvent::Failed { error, .. } => Some(error.clone()),
            _ => None,
        },
        _ => None,
    });
    println!("  {reason}");
    let before = running.events().len();
    // Requests still succeed afterwards.
    wait_for("answers after the disk was full", || {
        running.events().iter().skip(before).rev().find_map(|event| match &event.kind {
            EventKind::LoadProgressed(progress) if progress.completed > 5 => Some(()),
            _ => None,
        })
    });
    running.signal(2);
    let done = running.wait();
    drop(small);
    assert_eq!(done.code, Some(130), "{}", done.told());
    done.assert_nothing_left(&bench.place);
}
