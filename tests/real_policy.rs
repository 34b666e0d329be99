//! Failures of a real vLLM on the CPU that the policy cures, and such that it gives up at once. `VARCAS_TEST_PYTHON` names
//! an interpreter that has vLLM; without it nothing is tested, and a line says so.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{Finished, Place};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Command;
use varcas_guard::event::Outcome;

const MAKE_MODEL: &str = include_str!("real_support/make_model.py");

struct Bench {
    place: Place,
    python: PathBuf,
}

impl Bench {
    fn new() -> Option<Self> {
        let Some(python) = std::env::var_os("VARCAS_TEST_PYTHON").filter(|value| !value.is_empty()) else {
            eprintln!("SKIPPED: VARCAS_TEST_PYTHON names no interpreter with vLLM; no real failure was met");
            return None;
        };
        let (place, python) = (Place::new(), PathBuf::from(python));
        let made = Command::new(&python).args(["-c", MAKE_MODEL]).arg(place.path("model")).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(Self { place, python })
    }

    fn configure(&self, key: &str, value: Value) {
        let path = self.place.path("model/config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(path, config.to_string()).unwrap();
    }

    /// A short run with up to two attempts; `env` are lines of `[server.env]`, `server` arguments of vLLM.
    fn run(&self, env: &str, server: &[&str]) -> Finished {
        // One cache for all tests, or each would compile for half a minute.
        let shared =
            format!("TORCHINDUCTOR_CACHE_DIR = {:?}", concat!(env!("CARGO_TARGET_TMPDIR"), "/inductor"));
        let env = if env.contains("TORCHINDUCTOR") { env.to_owned() } else { format!("{env}\n{shared}") };
        let config = self.place.path("guard.toml");
        let text = format!(
            "retries = 1\n[server.env]\nVLLM_CPU_KVCACHE_SPACE = \"1\"\nVLLM_CPU_OMP_THREADS_BIND = \"nobind\"\n\
             OMP_NUM_THREADS = \"1\"\nHF_HUB_OFFLINE = \"1\"\n{env}\n[load]\nrate = 3.0\n[backoff]\ninitial = \"1s\"\nmax = \
             \"1s\"\n"
        );
        std::fs::write(&config, text).unwrap();
        let port = self.place.port.to_string();
        let (config, python, model) =
            (config.to_string_lossy(), self.python.to_string_lossy(), self.place.path("model"));
        let model = model.to_string_lossy();
        let mut args = vec!["run", "--duration", "15s", "--port", &port, "--config", &config];
        args.extend(["--python", &python, "--model", &model, "out", "--", "--dtype", "bfloat16"]);
        args.extend(server);
        self.place.start("out", &args).wait()
    }
}

fn outcomes(done: &Finished) -> Vec<Outcome> {
    done.endings().iter().map(|ending| ending.outcome).collect()
}

/// The first attempt failed of `cause`, and with `setting` changed to `to` the second brought the benchmark.
fn cured(bench: &Bench, done: &Finished, first: Outcome, cause: &str, setting: &str, to: &str) {
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(outcomes(done), [first, Outcome::Success], "{}", done.told());
    let report = done.report();
    let verdict = &report["attempts"][0]["verdict"];
    println!("  {}: {}", verdict["cause"], verdict["decisive"]["text"]);
    assert_eq!(verdict["cause"], cause, "{verdict:#}");
    let change = &report["mitigations"][0];
    println!("  {change}");
    assert_eq!((change["setting"].as_str(), change["to"].as_str()), (Some(setting), Some(to)), "{report:#}");
    done.assert_nothing_left(&bench.place);
    done.assert_replays(&bench.place);
}

fn hopeless(bench: &Bench, done: &Finished, cause: &str) {
    assert_eq!(done.code, Some(93), "{}", done.told());
    assert_eq!(outcomes(done), [Outcome::StartupFailure], "{}", done.told());
    let report = done.report();
    println!("  {cause}: {}", report["attempts"][0]["verdict"]["decisive"]["text"]);
    assert_eq!(report["attempts"][0]["verdict"]["cause"], cause);
    done.assert_nothing_left(&bench.place);
    done.assert_replays(&bench.place);
}

#[test]
fn a_context_that_does_not_fit_the_cache_is_shortened_to_what_fits() {
    let Some(bench) = Bench::new() else { return };
    bench.configure("max_position_embeddings", 3_000_000.into());
    let done = bench.run("", &["--load-format", "dummy"]);
    let (cause, setting) = ("kv-cache-too-small", "--max-model-len");
    cured(&bench, &done, Outcome::StartupFailure, cause, setting, "1992288");
}

#[test]
fn without_a_compiler_nothing_is_compiled_the_second_time() {
    let Some(bench) = Bench::new() else { return };
    let cache = bench.place.path("inductor");
    let env =
        format!("PATH = \"/nonexistent\"\nCXX = \"/nonexistent/c++\"\nTORCHINDUCTOR_CACHE_DIR = {cache:?}");
    let done = bench.run(&env, &["--load-format", "dummy", "--max-model-len", "1024"]);
    cured(&bench, &done, Outcome::Crash, "torch-compile-failure", "TORCHDYNAMO_DISABLE", "1");
}

#[test]
fn broken_weights_are_not_loaded_twice() {
    let Some(bench) = Bench::new() else { return };
    std::fs::write(bench.place.path("model/model.safetensors"), "no tensor in here, whatever the name says")
        .unwrap();
    let done = bench.run("", &["--max-model-len", "1024"]);
    hopeless(&bench, &done, "weights-corrupt");
}

#[test]
fn a_context_longer_than_the_model_s_is_not_asked_for_twice() {
    let Some(bench) = Bench::new() else { return };
    let done = bench.run("", &["--load-format", "dummy", "--max-model-len", "99999"]);
    hopeless(&bench, &done, "unsupported-arch-or-config");
}

#[test]
fn a_broken_tokenizer_is_not_read_twice() {
    let Some(bench) = Bench::new() else { return };
    std::fs::write(bench.place.path("model/tokenizer.json"), "{\"model\": {\"type\": \"Foo\"}}").unwrap();
    let done = bench.run("", &["--load-format", "dummy", "--max-model-len", "1024"]);
    hopeless(&bench, &done, "tokenizer-error");
}
