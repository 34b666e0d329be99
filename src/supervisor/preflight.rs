//! Everything that can be known to go wrong is found before anything is started. Each check says what it saw, and if it
//! refuses, what to do. Nobody else's process is ever ended here.

use super::leftovers::{self, Leftovers};
use super::{os, port};
use crate::config::{Plan, Rhythm, ServerKind};
use crate::event::{Check, Reading, ServerFacts, Severity};
use crate::health::gpu::{GpuMemory, GpuSource};
use crate::time::human;
use crate::workload::server;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Sockets in TIME_WAIT go within 60 s (tcp(7)); a little more is patience enough.
const TIME_WAIT_PATIENCE: Duration = Duration::from_secs(75);
/// Reading a few files in a cold environment on a slow disk.
const PROBE_PATIENCE: Duration = Duration::from_secs(120);
const GIB: u64 = 1 << 30;
const LEAST_DISK: u64 = 512 << 20;
const COMFORTABLE_DISK: u64 = 5 * GIB;
/// vLLM's own default for `--gpu-memory-utilization`.
const GPU_SHARE: f64 = 0.9;

/// Runs every check.
pub async fn check(
    plan: &Plan,
    env: &BTreeMap<String, String>,
    gpu: &mut dyn GpuSource,
    what: Leftovers,
) -> (Vec<Check>, ServerFacts) {
    let mut checks = Vec::new();
    let beside = plan.output.parent().map(Path::to_owned);
    checks.extend(blocking(move || leftovers::checks(what, beside.as_deref())).await);
    checks.push(match port::claim::claim(plan.server.port) {
        Ok(false) if what == Leftovers::End => chosen_by_another(plan.server.port),
        _ => port_free(plan.server.port, plan.server.kind).await,
    });
    let (check, facts) = interpreter(plan).await;
    checks.push(check);
    if plan.server.kind == ServerKind::Vllm {
        checks.push(model(&plan.server.model, &effective(plan, env)));
        checks.extend(gpus(plan, &facts, gpu).await);
    }
    checks.extend(plan.profile.price().map(|price| match plan.profile.rhythm {
        Rhythm::Budget => good("profile", price),
        Rhythm::Full | Rhythm::Once => {
            bad(Severity::Note, "profile", price, "--profile standard keeps within 5 % of the engine's time")
        }
    }));
    checks.push(disk(&plan.output));
    checks.push(shared_memory());
    checks.push(open_files());
    (checks, facts)
}

fn good(check: &str, saw: impl Into<String>) -> Check {
    Check { check: check.to_owned(), severity: Severity::Ok, saw: saw.into(), hint: None }
}

fn bad(severity: Severity, check: &str, saw: impl Into<String>, hint: impl Into<String>) -> Check {
    Check { check: check.to_owned(), severity, saw: saw.into(), hint: Some(hint.into()) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Vec<T> + Send + 'static) -> Vec<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_default()
}

/// Its server may not have bound it yet.
fn chosen_by_another(port: u16) -> Check {
    let guards: Vec<String> = port::claim::claimants(port).iter().map(ToString::to_string).collect();
    let who = if guards.is_empty() { "another varcas-guard".to_owned() } else { guards.join(" and ") };
    let saw = format!("port {port} is held by {who} for its server");
    bad(Severity::Refuse, "port", saw, "wait for its end, or pass --port auto")
}

async fn port_free(port: u16, kind: ServerKind) -> Check {
    // vLLM binds with SO_REUSEADDR, which TIME_WAIT does not hinder; another server may not.
    let waits = kind == ServerKind::Command || !port::tells_of_bound_sockets();
    let mut waited = Duration::ZERO;
    let pause = Duration::from_millis(500);
    loop {
        let state = tokio::task::spawn_blocking(move || port::probe(port)).await;
        let hint = "stop it, or pass --port with a free one";
        let holders = |list: &[port::Holder]| {
            let words: Vec<String> = list.iter().map(ToString::to_string).collect();
            if words.is_empty() {
                "a process that could not be found".to_owned()
            } else {
                words.join(" and ")
            }
        };
        return match state {
            Ok(Ok(port::PortState::Free)) if waited.is_zero() => good("port", format!("port {port} is free")),
            Ok(Ok(port::PortState::Free)) => {
                good("port", format!("port {port} is free after {} of TIME_WAIT", human(waited)))
            }
            Ok(Ok(port::PortState::TimeWait { .. })) if waits && waited < TIME_WAIT_PATIENCE => {
                tokio::time::sleep(pause).await;
                waited += pause;
                continue;
            }
            Ok(Ok(port::PortState::TimeWait { sockets })) => {
                // The server binds with SO_REUSEADDR, which TIME_WAIT does not hinder.
                good(
                    "port",
                    format!("port {port} has {sockets} sockets in TIME_WAIT, which do not hinder the server"),
                )
            }
            Ok(Ok(port::PortState::Held { listening })) => {
                let saw = format!("port {port} is held by {}", holders(&listening));
                bad(Severity::Refuse, "port", saw, hint)
            }
            Ok(Ok(port::PortState::BoundNotListening { holders: list })) => {
                let saw = format!(
                    "port {port} is bound by {}, which does not listen yet: another server is loading",
                    holders(&list)
                );
                bad(Severity::Refuse, "port", saw, "wait for it or stop it, or pass --port with a free one")
            }
            Ok(Ok(port::PortState::Connected { holders: list })) => {
                let saw = format!("port {port} is the near end of a connection of {}", holders(&list));
                bad(Severity::Refuse, "port", saw, hint)
            }
            Ok(Err(error)) => bad(
                Severity::Refuse,
                "port",
                format!("cannot probe port {port}: {error}"),
                "pass --port with another one",
            ),
            Err(error) => bad(
                Severity::Warn,
                "port",
                format!("the probe of port {port} failed: {error}"),
                "report this bug",
            ),
        };
    }
}

async fn interpreter(plan: &Plan) -> (Check, ServerFacts) {
    match plan.server.kind {
        ServerKind::Sim => {
            let facts = ServerFacts {
                version: Some("0.15.1".to_owned()),
                device: Some("simulated".to_owned()),
                ..ServerFacts::default()
            };
            (good("vllm", "the simulator of this program"), facts)
        }
        ServerKind::Command => {
            let program = plan.server.extra.first().cloned().unwrap_or_default();
            let check = if find_program(&program).is_some() {
                good("command", format!("{program} exists"))
            } else {
                bad(
                    Severity::Refuse,
                    "command",
                    format!("{program} is not a program that can be started"),
                    "give its path after --",
                )
            };
            (check, ServerFacts::default())
        }
        ServerKind::Vllm => match probe_python(&plan.server.python, &plan.server.env).await {
            Ok(facts) => {
                let version = facts.version.as_deref().unwrap_or("of unknown version");
                let device = facts.device.as_deref().unwrap_or("an unknown device");
                (
                    good("vllm", format!("vLLM {version} for {device} in {}", plan.server.python.display())),
                    facts,
                )
            }
            Err(saw) => {
                let hint = "pass --python with the interpreter of the environment that has vLLM, e.g. --python ~/venv/bin/python";
                (bad(Severity::Refuse, "vllm", saw, hint), ServerFacts::default())
            }
        },
    }
}

async fn probe_python(python: &Path, env: &BTreeMap<String, String>) -> Result<ServerFacts, String> {
    let mut command = tokio::process::Command::new(python);
    command.args(["-c", server::PROBE_PY]).envs(env).stdin(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PROBE_PATIENCE, command.output()).await {
        Err(_) => {
            return Err(format!("{} did not answer within {}", python.display(), human(PROBE_PATIENCE)));
        }
        Ok(Err(error)) => {
            return Err(format!("cannot start the Python interpreter {}: {error}", python.display()));
        }
        Ok(Ok(output)) => output,
    };
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    server::parse_probe(&text).map_err(|error| format!("{}: {error}", python.display()))
}

/// The program as a shell would find it.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let executable = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        let path = PathBuf::from(name);
        return executable(&path).then_some(path);
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| executable(path))
}

fn effective(plan: &Plan, env: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = env.clone();
    all.extend(plan.server.env.clone());
    all
}

fn model(name: &str, env: &BTreeMap<String, String>) -> Check {
    let path = Path::new(name);
    let named_as_path = name.starts_with(['/', '.', '~']) || name.matches('/').count() > 1;
    if path.is_dir() || named_as_path {
        return if !path.is_dir() {
            bad(Severity::Refuse, "model", format!("there is no folder {name}"), "correct --model")
        } else if !path.join("config.json").is_file() {
            let saw = format!("the folder {name} holds no config.json, so it is no model");
            bad(
                Severity::Refuse,
                "model",
                saw,
                "give the folder of a model in Hugging Face's layout, or a hub name",
            )
        } else {
            good("model", format!("the folder {name}"))
        };
    }
    let set = |key: &str| env.get(key).filter(|value| !value.is_empty());
    let cache = match (set("HF_HUB_CACHE"), set("HF_HOME"), set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(hub), ..) => PathBuf::from(hub),
        (_, Some(home), ..) => Path::new(home).join("hub"),
        (_, _, Some(xdg), _) => Path::new(xdg).join("huggingface/hub"),
        (.., Some(home)) => Path::new(home).join(".cache/huggingface/hub"),
        _ => PathBuf::from("/nonexistent"),
    };
    let snapshots = cache.join(format!("models--{}", name.replace('/', "--"))).join("snapshots");
    let cached = std::fs::read_dir(&snapshots)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().join("config.json").exists()));
    let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().any(|key| {
        set(key)
            .is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false" | "no" | "off"))
    });
    match (cached, offline) {
        (true, _) => good("model", format!("{name} is in the cache {}", cache.display())),
        (false, true) => {
            let saw =
                format!("the model {name} is not in the cache {} and HF_HUB_OFFLINE is set", cache.display());
            bad(
                Severity::Refuse,
                "model",
                saw,
                "download it first, unset HF_HUB_OFFLINE, or pass --model with a folder",
            )
        }
        (false, false) => {
            let saw = format!(
                "the model {name} is not in the cache {}: vLLM will download it while it loads",
                cache.display()
            );
            bad(
                Severity::Warn,
                "model",
                saw,
                "download it before the night, and raise --startup-timeout if it is large",
            )
        }
    }
}

async fn gpus(plan: &Plan, facts: &ServerFacts, gpu: &mut dyn GpuSource) -> Vec<Check> {
    if facts.device.as_deref() != Some("cuda") {
        return vec![good("gpu", "not needed by this vLLM")];
    }
    match gpu.memory().await {
        Reading::Value(list) => {
            list.iter().map(|gpu| gpu_memory(gpu, wanted_share(&plan.server.extra))).collect()
        }
        Reading::Unavailable { why } => {
            vec![bad(
                Severity::Warn,
                "gpu",
                format!("NVML does not answer: {why}"),
                "check the driver with nvidia-smi",
            )]
        }
        Reading::Stale => {
            vec![bad(Severity::Warn, "gpu", "NVML stopped answering", "check the driver with nvidia-smi")]
        }
    }
}

fn wanted_share(extra: &[String]) -> f64 {
    let mut words = extra.iter();
    while let Some(word) = words.next() {
        let word = word.replace('_', "-");
        if let Some(value) = word.strip_prefix("--gpu-memory-utilization") {
            let text = value.strip_prefix('=').map(str::to_owned).or_else(|| words.next().cloned());
            return text.and_then(|text| text.parse().ok()).unwrap_or(GPU_SHARE);
        }
    }
    GPU_SHARE
}

fn gpu_memory(gpu: &GpuMemory, share: f64) -> Check {
    let (Some(used), Some(total)) = (gpu.used.value(), gpu.total.value()) else {
        return bad(
            Severity::Warn,
            "gpu",
            format!("the memory of GPU {} cannot be read", gpu.gpu),
            "check with nvidia-smi",
        );
    };
    #[expect(clippy::cast_precision_loss, reason = "bytes of a GPU are far below 2^52")]
    let (used, total) = (*used as f64, *total as f64);
    let text = format!(
        "GPU {} ({}) has {:.1} of {:.1} GiB free",
        gpu.gpu,
        gpu.name,
        (total - used) / GIB as f64,
        total / GIB as f64
    );
    if total - used >= total * share {
        return good("gpu", text);
    }
    let pids = match gpu.processes.value() {
        Some(list) if !list.is_empty() => {
            let pids: Vec<String> = list.iter().map(|process| process.pid.to_string()).collect();
            format!("held by pid {}", pids.join(", "))
        }
        _ => "held by nobody that NVML names".to_owned(),
    };
    let saw = format!("{text}, but vLLM wants {:.0} % of it; the rest is {pids}", share * 100.0);
    bad(Severity::Refuse, "gpu", saw, "stop what holds it, or pass `-- --gpu-memory-utilization` with less")
}

fn disk(output: &Path) -> Check {
    let existing = output.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match os::free_space(existing) {
        Err(error) => bad(
            Severity::Warn,
            "disk",
            format!("cannot read the free space of {}: {error}", existing.display()),
            "check it",
        ),
        Ok(free) => {
            let text =
                format!("{} free in {}", crate::recovery::report::units::bytes(free), existing.display());
            match free {
                _ if free < LEAST_DISK => {
                    let saw = format!("only {text}; traces and logs need at least 500 MB");
                    bad(Severity::Refuse, "disk", saw, "free some space, or give another OUTPUT_DIR")
                }
                _ if free < COMFORTABLE_DISK => bad(
                    Severity::Warn,
                    "disk",
                    format!("only {text}"),
                    "a long run with a large model can need more",
                ),
                _ => good("disk", text),
            }
        }
    }
}

fn shared_memory() -> Check {
    match os::free_space(Path::new("/dev/shm")) {
        Ok(free) if free >= GIB => {
            good("shm", format!("{} free in /dev/shm", crate::recovery::report::units::bytes(free)))
        }
        Ok(free) => {
            let saw = format!("only {} free in /dev/shm", crate::recovery::report::units::bytes(free));
            bad(
                Severity::Warn,
                "shm",
                saw,
                "several workers need more: in a container use --ipc=host or --shm-size=8g",
            )
        }
        Err(error) => bad(
            Severity::Warn,
            "shm",
            format!("cannot look into /dev/shm: {error}"),
            "several workers need it",
        ),
    }
}

fn open_files() -> Check {
    match os::open_files_limit() {
        Ok((soft, _)) if soft >= 4096 => good("open-files", format!("{soft} files may be open")),
        Ok((soft, hard)) => {
            let saw = format!("only {soft} files may be open (the hard limit is {hard})");
            bad(Severity::Warn, "open-files", saw, format!("run `ulimit -n {}` first", hard.min(65_536)))
        }
        Err(error) => {
            bad(Severity::Warn, "open-files", format!("cannot read the limit: {error}"), "check `ulimit -n`")
        }
    }
}
