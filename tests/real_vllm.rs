//! The whole job against a real vLLM on the CPU: `VARCAS_TEST_PYTHON` names an interpreter that has it; without it nothing
//! is tested, and a line says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use varcas_guard::recovery::report::model::Report;

/// Writes a Llama of toy size with invented words; the weights come from `--load-format dummy`.
const MAKE_MODEL: &str = include_str!("real_support/make_model.py");

/// Parses every trace with Python's own json, as the analysers do.
const LOAD_TRACES: &str = r#"
import glob, gzip, json, sys
for name in sorted(glob.glob(sys.argv[1] + "/*.pt.trace.json.gz")):
    events = json.loads(gzip.open(name).read())["traceEvents"]
    names = {e["name"] for e in events if e.get("ph") == "M"}
    assert "process_name" in names and "thread_name" in names, (name, names)
    assert any(e.get("cat") == "cpu_op" for e in events), name
    print(len(events))
"#;

fn python() -> Option<PathBuf> {
    let python = std::env::var_os("VARCAS_TEST_PYTHON").filter(|value| !value.is_empty());
    if python.is_none() {
        eprintln!(
            "SKIPPED: VARCAS_TEST_PYTHON names no interpreter with vLLM; the whole job was not tested on it"
        );
    }
    python.map(PathBuf::from)
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a free port");
    listener.local_addr().expect("its address").port()
}

fn script(python: &Path, text: &str, argument: &Path) -> String {
    let output = Command::new(python).arg("-c").arg(text).arg(argument).output().expect("start Python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn shared_memory() -> Vec<String> {
    let entries = std::fs::read_dir("/dev/shm").expect("list /dev/shm");
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn whole_job(workers: u32) {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    script(&python, MAKE_MODEL, &model);
    let config = folder.path().join("guard.toml");
    std::fs::write(
        &config,
        "retries = 0\n[server.env]\nVLLM_CPU_KVCACHE_SPACE = \"1\"\nVLLM_CPU_OMP_THREADS_BIND = \"nobind\"\n\
         OMP_NUM_THREADS = \"1\"\nHF_HUB_OFFLINE = \"1\"\n[load]\nrate = 3.0\n",
    )
    .expect("write guard.toml");
    let before = shared_memory();
    let out = folder.path().join("run");
    let status = Command::new(env!("CARGO_BIN_EXE_varcas-guard"))
        .args(["run", "--duration", "30s", "--port", &free_port().to_string(), "--config"])
        .arg(&config)
        .arg("--python")
        .arg(&python)
        .arg("--model")
        .arg(&model)
        .arg(&out)
        .args(["--", "--load-format", "dummy", "--dtype", "bfloat16", "--max-model-len", "1024", "-tp"])
        .arg(workers.to_string())
        .status()
        .expect("start varcas-guard");
    let log = || std::fs::read_to_string(out.join("vllm_server.log")).unwrap_or_default();
    assert_eq!(status.code(), Some(0), "{}", log());

    let text = std::fs::read_to_string(out.join("report.json")).expect("report.json");
    let report: Report = serde_json::from_str(&text).expect("a report");
    assert_eq!(report.outcome, "success");
    assert!(report.left_behind.is_empty(), "{:?}", report.left_behind);
    let bench = report.benchmark.expect("a benchmark");
    assert!(bench.progress.prompt_tokens > 0 && bench.progress.output_tokens > 0, "the server's own counts");
    for rank in 0..workers {
        let windows = report.traces.iter().filter(|trace| trace.rank == Some(rank) && trace.complete).count();
        assert!(windows >= 3, "rank {rank} has {windows} windows");
    }
    assert_eq!(script(&python, LOAD_TRACES, &out).lines().count(), report.traces.len());
    let registered = log().contains("must run in same thread as registerClient");
    assert!(
        !registered,
        "the recorder starts on the thread that imported torch, so Kineto has nothing to complain about"
    );

    // Nothing is left: no process that carries the mark, no segment.
    let mark = format!("VARCAS_RUN_ID={}", report.run_id);
    for entry in std::fs::read_dir("/proc").expect("list /proc").flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        assert!(
            !environ.split(|b| *b == 0).any(|pair| pair == mark.as_bytes()),
            "{:?} is alive",
            entry.path()
        );
    }
    let new: Vec<String> = shared_memory().into_iter().filter(|name| !before.contains(name)).collect();
    assert!(new.is_empty(), "left in /dev/shm: {new:?}");

    let replay =
        Command::new(env!("CARGO_BIN_EXE_varcas-guard")).arg("replay").arg(&out).output().expect("replay");
    assert!(replay.status.success(), "{}", String::from_utf8_lossy(&replay.stdout));
}

#[test]
fn one_worker_brings_benchmark_and_windows_home() {
    whole_job(1);
}

#[test]
fn two_workers_each_bring_their_windows_home() {
    whole_job(2);
}
