//! Plan to argv and environment of the server, safe by construction. Pure: it decides, the keeper starts.
//!
//! Nothing that can freeze an engine is ever switched on here: no start/stop profile API (its routes do not even exist
//! without `--profiler-config`), no stacks, no CUDA graphs under the profiler. What a vLLM version does not know is not
//! passed to it; [`PROBE_PY`] learns that in a fraction of a second from the installed files, because importing vLLM takes ten
//! seconds and more.

use crate::config::{ONCE_AT, Plan, ProfileMode, Rhythm, ServerKind};
use crate::event::{Check, ServerFacts, Severity};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The folders an attempt's server works with. All absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Windows and their index go here.
    pub traces: PathBuf,
    /// Private and short: `TMPDIR` and the sockets of vLLM. At most [`SCRATCH_LIMIT`] bytes long.
    pub scratch: PathBuf,
    /// Stack dumps and flight recorder files go here.
    pub evidence: PathBuf,
    /// Holds [`PYTHON_FILES`].
    pub python: PathBuf,
}

/// Marks every process of an attempt, through its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMark {
    /// The run.
    pub run_id: String,
    /// Counts from 1.
    pub attempt: u32,
}

/// What to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerCommand {
    /// The exact command line; the first element is the program.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The part of it that varcas-guard or the user's plan set, for display.
    pub ours: BTreeMap<String, String>,
    /// What is wrong ([`Severity::Refuse`]) or doubtful ([`Severity::Warn`]) about the user's own arguments.
    pub notes: Vec<Check>,
}

impl ServerCommand {
    /// Whether it must not be started.
    pub fn refused(&self) -> bool {
        self.notes.iter().any(|note| note.severity == Severity::Refuse)
    }
}

/// Longest scratch path in bytes: a Unix socket path has 107, vLLM adds `/` and a UUID of 36.
pub const SCRATCH_LIMIT: usize = 107 - 1 - 36;

/// The worker class that records windows, as vLLM is told its name.
pub const WORKER_CLS: &str = "varcas_worker.Worker";

/// File names and texts of what must lie in [`Places::python`].
pub const PYTHON_FILES: [(&str, &str); 5] = [
    ("varcas_worker.py", include_str!("profiler/worker.py")),
    ("varcas_recorder.py", include_str!("profiler/recorder.py")),
    ("varcas_rhythm.py", include_str!("profiler/rhythm.py")),
    ("varcas_budget.py", include_str!("profiler/budget.py")),
    ("varcas_system.py", include_str!("profiler/system.py")),
];

/// How long vLLM may take to let requests end and windows close after SIGTERM, in the versions that can be told.
const SHUTDOWN_SECONDS: &str = "60";

/// Inherited variables that would switch something dangerous on, or point into an earlier run.
const STRIPPED: [&str; 9] = [
    "VLLM_RPC_BASE_PATH",
    "VLLM_TRACE_FUNCTION",
    "VLLM_SERVER_DEV_MODE",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH",
    "KINETO_USE_DAEMON",
    // Counters of an earlier server in that folder would be added to ours.
    "PROMETHEUS_MULTIPROC_DIR",
    // systemd listens to the guard, and takes nobody else's word for it.
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// The same by prefix. In vLLM 0.15 the profiler variables win over the command line.
const STRIPPED_PREFIXES: [&str; 4] =
    ["VLLM_TORCH_PROFILER_", "VLLM_TORCH_CUDA_PROFILE", "VLLM_PROFILER_", "VARCAS_"];

/// The server's command line and environment, and what is to be said about the user's part of them.
pub fn command(
    plan: &Plan,
    facts: &ServerFacts,
    places: &Places,
    mark: &RunMark,
    base_env: &BTreeMap<String, String>,
    guard_exe: &Path,
) -> ServerCommand {
    let mut notes = user_notes(plan);
    let scratch = text(&places.scratch);
    if scratch.len() > SCRATCH_LIMIT {
        notes.push(Check {
            check: "scratch".to_owned(),
            severity: Severity::Refuse,
            saw: format!(
                "the private temporary folder {scratch} is {} bytes long, and the sockets inside it need room: at most \
                 {SCRATCH_LIMIT}",
                scratch.len()
            ),
            hint: Some("set TMPDIR to a short path such as /tmp".to_owned()),
        });
    }
    let ours = environment(plan, facts, places, mark, base_env);
    let mut env: BTreeMap<String, String> =
        base_env.iter().filter(|(name, _)| !is_stripped(name)).map(|(k, v)| (k.clone(), v.clone())).collect();
    env.extend(ours.clone());
    let mut argv = argv(plan, facts, guard_exe);
    if plan.server.raise_open_files {
        // The shell becomes the server, so its pid stays.
        let shell = ["/bin/sh", "-c", r#"ulimit -S -n "$(ulimit -H -n)" && exec "$@""#, "sh"];
        argv = shell.iter().map(|&word| word.to_owned()).chain(argv).collect();
    }
    ServerCommand { argv, env, ours, notes }
}

fn argv(plan: &Plan, facts: &ServerFacts, guard_exe: &Path) -> Vec<String> {
    let server = &plan.server;
    let mut argv: Vec<String> = match server.kind {
        ServerKind::Command => return server.extra.clone(),
        ServerKind::Vllm => {
            vec![text(&server.python), "-m".to_owned(), "vllm.entrypoints.openai.api_server".to_owned()]
        }
        ServerKind::Sim => vec![text(guard_exe), "__sim".to_owned()],
    };
    let mut add = |words: &[&str]| argv.extend(words.iter().map(|&word| word.to_owned()));
    add(&["--model", &server.model, "--host", "127.0.0.1", "--port", &server.port.to_string()]);
    let user = |name: &str| server.extra.iter().any(|word| flag_name(word).as_deref() == Some(name));
    if knows(facts, "enforce-eager") && !user("enforce-eager") && !user("no-enforce-eager") {
        add(&["--enforce-eager"]);
    }
    if knows(facts, "disable-uvicorn-access-log")
        && !user("disable-uvicorn-access-log")
        && !user("no-disable-uvicorn-access-log")
    {
        add(&["--disable-uvicorn-access-log"]);
    }
    if knows(facts, "shutdown-timeout") && !user("shutdown-timeout") {
        add(&["--shutdown-timeout", SHUTDOWN_SECONDS]);
    }
    if plan.profile.mode == ProfileMode::Windows {
        add(&["--worker-cls", WORKER_CLS]);
    }
    argv.extend(server.extra.iter().cloned());
    argv
}

/// Whether the server understands a flag of ours. Without a list, only what every version since 0.15.1 has.
fn knows(facts: &ServerFacts, flag: &str) -> bool {
    if !facts.flags.is_empty() {
        return facts.flags.iter().any(|known| known == flag);
    }
    match flag {
        "shutdown-timeout" | "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS" => {
            facts.version.as_deref().and_then(minor_version).is_some_and(|version| version >= (0, 32))
        }
        _ => true,
    }
}

fn minor_version(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn is_stripped(name: &str) -> bool {
    STRIPPED.contains(&name) || STRIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn environment(
    plan: &Plan,
    facts: &ServerFacts,
    places: &Places,
    mark: &RunMark,
    base_env: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut ours = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        ours.insert(name.to_owned(), value);
    };
    set("TMPDIR", text(&places.scratch));
    set("VLLM_RPC_BASE_PATH", text(&places.scratch));
    for (name, value) in [
        ("VLLM_NO_USAGE_STATS", "1"),
        ("DO_NOT_TRACK", "1"),
        ("NO_COLOR", "1"),
        ("VLLM_LOGGING_COLOR", "0"),
        ("PYTHONFAULTHANDLER", "1"),
        ("PYTHONUNBUFFERED", "1"),
        // The last collectives of each rank, written when one of them times out. The older and the newer names.
        ("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
        ("TORCH_FR_BUFFER_SIZE", "2000"),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ] {
        set(name, value.to_owned());
    }
    let recorder = text(&places.evidence.join("nccl_trace_rank_"));
    set("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", recorder.clone());
    set("TORCH_FR_DUMP_TEMP_FILE", recorder);
    if knows(facts, "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS") && plan.server.kind == ServerKind::Vllm {
        set("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS", SHUTDOWN_SECONDS.to_owned());
    }
    // Inductor's cache lives under TMPDIR unless it is told otherwise: a private one would compile everything anew in each
    // attempt. Triton's follows it or lies in the home folder.
    if !base_env.contains_key("TORCHINDUCTOR_CACHE_DIR")
        && let Some(cache) = inductor_cache(base_env)
    {
        set("TORCHINDUCTOR_CACHE_DIR", cache);
    }
    let inherited = plan.server.env.get("PYTHONPATH").or_else(|| base_env.get("PYTHONPATH"));
    let python_path = match inherited {
        Some(inherited) if !inherited.is_empty() => format!("{}:{inherited}", text(&places.python)),
        _ => text(&places.python),
    };
    if plan.profile.mode == ProfileMode::Windows {
        let profile = &plan.profile;
        set("VARCAS_TRACE_DIR", text(&places.traces));
        set("VARCAS_WINDOW_STEPS", profile.window_steps.to_string());
        set("VARCAS_WINDOW_SECONDS", profile.window.as_secs_f64().to_string());
        set("VARCAS_WINDOW_EVENTS", profile.window_events.to_string());
        set("VARCAS_REST_SECONDS", profile.rest.as_secs_f64().to_string());
        match profile.rhythm {
            Rhythm::Budget => set("VARCAS_PROFILE_BUDGET", profile.budget.to_string()),
            Rhythm::Full => set("VARCAS_REST_SECONDS", "0".to_owned()),
            Rhythm::Once => {
                let at = if profile.at.is_empty() { &ONCE_AT[..] } else { &profile.at };
                let at: Vec<String> = at.iter().map(|at| at.as_secs_f64().to_string()).collect();
                set("VARCAS_WINDOW_AT", at.join(","));
            }
        }
        set("VARCAS_IDLE_SECONDS", profile.idle.as_secs_f64().to_string());
    }
    set("VARCAS_EVIDENCE_DIR", text(&places.evidence));
    ours.extend(plan.server.env.clone());
    // After the user's own: without the module's folder there are no windows, and without the marks nothing can be swept.
    if plan.profile.mode == ProfileMode::Windows {
        ours.insert("PYTHONPATH".to_owned(), python_path);
    }
    ours.insert("VARCAS_RUN_ID".to_owned(), mark.run_id.clone());
    ours.insert("VARCAS_ATTEMPT".to_owned(), mark.attempt.to_string());
    ours
}

/// Where torch would have put inductor's cache without our `TMPDIR`.
fn inductor_cache(env: &BTreeMap<String, String>) -> Option<String> {
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
    let tmp = ["TMPDIR", "TEMP", "TMP"].iter().find_map(|name| set(name)).map_or("/tmp", String::as_str);
    let user = ["LOGNAME", "USER", "LNAME", "USERNAME"].iter().find_map(|name| set(name).cloned()).or_else(
        || set("HOME").and_then(|home| home.rsplit('/').find(|part| !part.is_empty()).map(str::to_owned)),
    )?;
    let user: String = user
        .chars()
        .map(|c| if matches!(c, '\\' | '/' | ':' | '*' | '?' | '"' | '<' | '>' | '|') { '_' } else { c })
        .collect();
    Some(format!("{}/torchinductor_{user}", tmp.trim_end_matches('/')))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `--Some_Flag=x` and `--some-flag` are both `some-flag`, as in vLLM's own parser; `None` for a value.
fn flag_name(word: &str) -> Option<String> {
    let name = word.strip_prefix("--")?;
    let name = name.split('=').next().unwrap_or(name);
    // `--profiler-config.profiler=torch` sets one key of `--profiler-config`.
    let name = name.split('.').next().unwrap_or(name);
    (!name.is_empty()).then(|| name.replace('_', "-"))
}

/// What the user's own arguments and variables mean for a run without anybody watching.
fn user_notes(plan: &Plan) -> Vec<Check> {
    let mut notes = Vec::new();
    let mut note = |severity: Severity, word: &str, why: &str, hint: &str| {
        notes.push(Check {
            check: "server-args".to_owned(),
            severity,
            saw: format!("{word}: {why}"),
            hint: Some(hint.to_owned()),
        });
    };
    let windows = plan.profile.mode == ProfileMode::Windows;
    if plan.server.kind == ServerKind::Command {
        if plan.server.extra.is_empty() {
            note(
                Severity::Refuse,
                "--server command",
                "there is no command line to start",
                "give it after --, for example: -- vllm serve MODEL --port 8000",
            );
        }
    } else {
        for word in &plan.server.extra {
            let Some(name) = flag_name(word) else { continue };
            let (severity, why, hint) = match name.as_str() {
                "port" => (
                    Severity::Refuse,
                    "varcas-guard sets the port, and the later one would win",
                    "remove it and pass --port to varcas-guard, before the --",
                ),
                "host" => {
                    (Severity::Refuse, "varcas-guard serves and sends its load on 127.0.0.1", "remove it")
                }
                "uds" => (
                    Severity::Refuse,
                    "with a Unix socket the server would ignore its port, which the load needs",
                    "remove it",
                ),
                "model" => (
                    Severity::Refuse,
                    "varcas-guard sets the model, and the later one would win",
                    "remove it and pass --model to varcas-guard, before the --",
                ),
                "worker-cls" if windows => (
                    Severity::Refuse,
                    "the profiler windows need a worker class of their own",
                    "remove it, or pass --profile off",
                ),
                "profiler-config" if windows => (
                    Severity::Refuse,
                    "it opens the start/stop profile API, whose stop froze the engine for minutes, and a second profiler beside \
                     the windows",
                    "remove it, or pass --profile off",
                ),
                "profiler-config" => (
                    Severity::Warn,
                    "it opens the start/stop profile API, whose stop freezes the engine for minutes",
                    "varcas-guard never calls it; make sure that nobody else does",
                ),
                "disable-log-stats" => {
                    (Severity::Refuse, "without metrics nobody can tell a hang from a long step", "remove it")
                }
                "ssl-keyfile" | "ssl-certfile" => (
                    Severity::Refuse,
                    "varcas-guard speaks plain HTTP with the server on 127.0.0.1",
                    "remove it",
                ),
                "api-key" => (
                    Severity::Refuse,
                    "the requests of varcas-guard carry no key and would all be refused",
                    "remove it; the server listens on 127.0.0.1 only",
                ),
                "no-enforce-eager" => (
                    Severity::Warn,
                    "CUDA graphs under the profiler lengthen the start and are a known source of crashes",
                    "leave it out unless the graphs are what you want to profile",
                ),
                "no-disable-uvicorn-access-log" => {
                    (Severity::Warn, "one log line a request hides the lines that matter", "leave it out")
                }
                "config" => (
                    Severity::Warn,
                    "varcas-guard does not read vLLM's own configuration file; it may contradict the flags",
                    "write its settings as flags after the --",
                ),
                "root-path" => (
                    Severity::Warn,
                    "the server may answer under another path than varcas-guard asks",
                    "leave it out",
                ),
                _ => continue,
            };
            note(severity, word, why, hint);
        }
    }
    for (name, value) in &plan.server.env {
        if matches!(name.as_str(), "VARCAS_RUN_ID" | "VARCAS_ATTEMPT") {
            note(
                Severity::Refuse,
                name,
                "it marks the processes of a run, and varcas-guard sets it",
                "remove it from [server.env]",
            );
        } else if is_stripped(name) {
            note(
                Severity::Warn,
                &format!("{name}={value}"),
                "varcas-guard takes this variable out of the inherited environment, because it can break a run; as you set it on \
                 purpose, it stays",
                "remove it from [server.env] unless you need it",
            );
        }
    }
    notes
}

/// Run with `PYTHON -c`: prints one line of JSON for [`parse_probe`]. It reads files and imports neither vLLM nor torch.
pub const PROBE_PY: &str = include_str!("probe.py");

#[derive(Deserialize)]
struct Probe {
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    torch: Option<String>,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    flags: Vec<String>,
}

/// Reads what [`PROBE_PY`] printed; other lines around it do not matter.
pub fn parse_probe(output: &str) -> Result<ServerFacts, String> {
    let line = output.lines().rev().find(|line| line.starts_with("{\"varcas_probe\"")).ok_or_else(|| {
        format!("the interpreter did not answer the question for vLLM; it printed: {}", excerpt(output))
    })?;
    let probe: Probe =
        serde_json::from_str(line).map_err(|error| format!("cannot read the answer {line}: {error}"))?;
    if let Some(error) = probe.error {
        return Err(error);
    }
    Ok(ServerFacts { version: probe.version, device: probe.device, torch: probe.torch, flags: probe.flags })
}

fn excerpt(output: &str) -> String {
    let last: Vec<&str> = output.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
    if last.is_empty() {
        return "nothing".to_owned();
    }
    last.into_iter().rev().collect::<Vec<_>>().join(" | ").chars().take(300).collect()
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
