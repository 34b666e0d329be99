//! guard.toml and flags become one validated `Plan`; after that nobody looks at flags again.

pub mod disk;
pub mod file;
mod health;
pub mod load;
mod profile;
pub mod settings;

pub use disk::DiskPlan;
pub use health::{HealthPlan, OnHang, Patience};
pub use load::{Endpoint, LoadPlan, OwnWorkload, Process};
pub use profile::{ONCE_AT, ProfileMode, ProfilePlan, Rhythm, percent};

use crate::error::{ExitCode, Failure};
use crate::time::{opt_secs, secs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// What is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerKind {
    /// `python -m vllm.entrypoints.openai.api_server`.
    Vllm,
    /// The simulated vLLM in this binary.
    Sim,
    /// Any OpenAI-compatible server; its command line stands after `--`.
    Command,
}

/// Everything a run needs to know, validated. It is the first line of the journal, so a replay needs nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The run folder, absolute.
    pub output: PathBuf,
    /// Attempts after the first.
    pub retries: u32,
    /// The server.
    pub server: ServerPlan,
    /// The profiler.
    pub profile: ProfilePlan,
    /// The benchmark.
    pub load: LoadPlan,
    /// How the server is watched.
    #[serde(default)]
    pub health: HealthPlan,
    /// Budgets.
    pub budgets: Budgets,
    /// Pauses between attempts.
    pub backoff: BackoffPlan,
    /// How much of the disk it may take. None in journals of runs that were not limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskPlan>,
    /// What follows from a failure. None in journals of runs that tried again without a verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyPlan>,
}

/// What follows from a failed attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyPlan {
    /// Whether settings may be changed for the next attempt.
    pub mitigate: bool,
    /// After so many failures that are the same the run stops early.
    pub same_failure: u32,
}

impl Default for PolicyPlan {
    fn default() -> Self {
        Self { mitigate: true, same_failure: 3 }
    }
}

/// The server to start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerPlan {
    /// Which kind.
    pub kind: ServerKind,
    /// The interpreter that has vLLM.
    pub python: PathBuf,
    /// A path or a hub name.
    pub model: String,
    /// The port on 127.0.0.1.
    pub port: u16,
    /// Another port may be taken when this one is not free.
    #[serde(default)]
    pub port_auto: bool,
    /// The server gets the hard limit of open files as its soft one.
    #[serde(default)]
    pub raise_open_files: bool,
    /// Further arguments, or the whole command line of `--server command`.
    pub extra: Vec<String>,
    /// Environment variables the user wants the server to have.
    pub env: BTreeMap<String, String>,
}

/// The budget of each phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Budgets {
    /// Spawn to ready.
    #[serde(with = "secs")]
    pub startup: Duration,
    /// All warm-up requests together.
    #[serde(with = "secs")]
    pub warmup: Duration,
    /// Request to close until every window is closed.
    #[serde(with = "secs")]
    pub flush: Duration,
    /// SIGTERM to the end of the tree.
    #[serde(with = "secs")]
    pub stop: Duration,
    /// SIGKILL until port, memory and names are back.
    #[serde(with = "secs")]
    pub drain: Duration,
    /// The whole run.
    #[serde(with = "opt_secs")]
    pub run: Option<Duration>,
}

/// Pauses between attempts: exponential with jitter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackoffPlan {
    /// Before the second attempt.
    #[serde(with = "secs")]
    pub initial: Duration,
    /// The longest pause.
    #[serde(with = "secs")]
    pub max: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            output: PathBuf::from("output"),
            retries: 3,
            server: ServerPlan {
                kind: ServerKind::Vllm,
                python: PathBuf::from("python3"),
                model: "TinyLlama/TinyLlama-1.1B-Chat-v1.0".to_owned(),
                port: 8000,
                port_auto: false,
                raise_open_files: false,
                extra: Vec::new(),
                env: BTreeMap::new(),
            },
            profile: ProfilePlan::default(),
            load: LoadPlan::default(),
            health: HealthPlan::default(),
            budgets: Budgets {
                startup: Duration::from_secs(1800),
                warmup: Duration::from_secs(600),
                flush: Duration::from_secs(1800),
                stop: Duration::from_secs(30),
                drain: Duration::from_secs(60),
                run: None,
            },
            backoff: BackoffPlan { initial: Duration::from_secs(5), max: Duration::from_secs(120) },
            disk: Some(DiskPlan::default()),
            policy: Some(PolicyPlan::default()),
        }
    }
}

/// What the user gave, before anything is checked.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Name and text of guard.toml.
    pub file: Option<(String, String)>,
    /// Key of the setting and its text, in the order given.
    pub flags: Vec<(&'static str, String)>,
    /// What stood after `--`, if anything.
    pub rest: Option<Vec<String>>,
    /// Tells what is wrong with the load, and in which line of the file if that is known. Only the room that makes the load
    /// knows, so it is handed in.
    pub check_load: Option<CheckLoad>,
}

/// See [`Given::check_load`].
pub type CheckLoad = fn(&LoadPlan) -> Vec<(Option<usize>, String)>;

/// Builds the plan on top of `defaults`: file first, flags win. Every mistake of both is reported in one go.
pub fn plan(defaults: Plan, given: &Given) -> Result<Plan, Failure> {
    let mut plan = defaults;
    let mut problems = match &given.file {
        Some((name, text)) => file::read(&mut plan, name, text),
        None => Vec::new(),
    };
    let profile_given = given.flags.iter().any(|(key, _)| *key == "profile.mode");
    for (key, text) in &given.flags {
        let Some(setting) = settings::by_key(key) else {
            problems.push(format!("no setting is called {key}"));
            continue;
        };
        if let Err(problem) = settings::set_text(&mut plan, setting, text) {
            problems.push(format!("{}: {problem}", setting.flag.unwrap_or(setting.key)));
        }
    }
    if let Some(rest) = &given.rest {
        plan.server.extra.clone_from(rest);
    }
    if plan.server.kind == ServerKind::Command {
        if plan.server.extra.is_empty() {
            problems.push("--server command: no command line given: write it after `--`".to_owned());
        }
        if profile_given && plan.profile.mode == ProfileMode::Windows {
            problems.push(
                "--profile windows: only vLLM and the simulator can record windows: pass --profile off"
                    .to_owned(),
            );
        }
        plan.profile.mode = ProfileMode::Off;
    }
    if plan.backoff.max < plan.backoff.initial {
        problems.push("`backoff.max` is shorter than `backoff.initial`: swap them".to_owned());
    }
    if let Some(run) = plan.budgets.run
        && run <= plan.load.duration
    {
        problems.push(format!(
            "--deadline: {} leaves no room for a benchmark of {}: raise it, or lower --duration",
            crate::time::human(run),
            crate::time::human(plan.load.duration)
        ));
    }
    if !plan.profile.at.is_empty() && plan.profile.rhythm != Rhythm::Once {
        problems.push("--profile-at: only `--profile once` opens windows at given times: add it".to_owned());
    }
    if let Some(late) = plan.profile.at.iter().find(|at| **at >= plan.load.duration) {
        problems.push(format!(
            "--profile-at: {} is not within the benchmark of {}: name an earlier time, or raise --duration",
            crate::time::human(*late),
            crate::time::human(plan.load.duration)
        ));
    }
    let name = given.file.as_ref().map_or("guard.toml", |(name, _)| name.as_str());
    for (line, problem) in given.check_load.map(|check| check(&plan.load)).unwrap_or_default() {
        problems.push(line.map_or_else(|| problem.clone(), |line| format!("{name}:{line}: {problem}")));
    }
    if problems.is_empty() { Ok(plan) } else { Err(Failure { exit: ExitCode::Usage, problems, hint: None }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> Result<Plan, Failure> {
        plan(Plan::default(), &Given { file: Some(("guard.toml".into(), text.into())), ..Given::default() })
    }

    fn with_flags(flags: &[(&'static str, &str)]) -> Result<Plan, Failure> {
        let flags = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        plan(Plan::default(), &Given { flags, ..Given::default() })
    }

    #[test]
    fn nothing_given_is_the_seeds_benchmark() {
        let plan = with_flags(&[]).unwrap();
        assert_eq!(plan.load.duration, Duration::from_secs(120));
        assert_eq!((plan.load.rate, plan.load.seed, plan.server.port, plan.retries), (25.0, 42, 8000, 3));
        assert_eq!(plan.server.model, "TinyLlama/TinyLlama-1.1B-Chat-v1.0");
    }

    #[test]
    fn flags_win_over_the_file() {
        let given = Given {
            file: Some(("guard.toml".into(), "retries = 7\n[load]\nduration = \"10m\"\nseed = 7".into())),
            flags: vec![("load.duration", "30s".into())],
            ..Given::default()
        };
        let plan = plan(Plan::default(), &given).unwrap();
        assert_eq!((plan.retries, plan.load.seed, plan.load.duration), (7, 7, Duration::from_secs(30)));
    }

    #[test]
    fn every_mistake_is_reported_in_one_go_with_file_and_line() {
        let text = "retires = 3\n[load]\nrate = 0.0\nduration = 90\n[server]\nport = 70000\n[budgets]\nduration=\"3s\"\n";
        let problems = with_file(text).unwrap_err().problems;
        assert_eq!(
            problems,
            [
                "guard.toml:1: unknown key `retires`; did you mean `retries`?",
                "guard.toml:3: `load.rate`: `0.0` is out of range: 0.001 to 1000000",
                "guard.toml:4: `load.duration`: 90 has no unit: write \"90s\" or \"90m\"",
                "guard.toml:6: `server.port`: `70000` is out of range: 1 to 65535",
                "guard.toml:8: unknown key `budgets.duration`; did you mean `load.duration`?",
            ]
        );
    }

    #[test]
    fn a_file_that_is_not_toml_says_where() {
        let problems = with_file("retries = 3\nport = = 4\n").unwrap_err().problems;
        assert!(problems[0].starts_with("guard.toml:2: "), "{problems:?}");
    }

    #[test]
    fn bad_flags_say_what_and_what_to_do() {
        let problems =
            with_flags(&[("retries", "-1"), ("load.duration", "ten"), ("server.kind", "vlm")]).unwrap_err();
        assert_eq!(problems.exit, ExitCode::Usage);
        assert_eq!(
            problems.problems,
            [
                "--retries: `-1` is out of range: 0 to 1000",
                "--duration: `ten` is not a duration: write one like `90s`, `10m` or `1h 30m`",
                "--server: `vlm` is not one of vllm, sim, command; did you mean `vllm`?",
            ]
        );
    }

    #[test]
    fn a_server_command_needs_a_command_and_is_never_profiled() {
        assert!(with_flags(&[("server.kind", "command")]).is_err());
        let rest = Some(vec!["my-server".to_owned()]);
        let given = Given { flags: vec![("server.kind", "command".into())], rest, ..Given::default() };
        assert_eq!(plan(Plan::default(), &given).unwrap().profile.mode, ProfileMode::Off);
    }

    #[test]
    fn a_plan_survives_the_journal() {
        let mut plan = Plan::default();
        plan.budgets.run = Some(Duration::from_millis(1_234_567));
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn every_key_is_unique_and_stands_in_the_readme() {
        let mut keys: Vec<&str> = settings::SETTINGS.iter().map(|s| s.key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), settings::SETTINGS.len());
        let readme = include_str!("../README.md");
        let missing: Vec<_> = keys.iter().filter(|key| !readme.contains(&format!("`{key}`"))).collect();
        assert!(missing.is_empty(), "not in README.md: {missing:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "(?s).{0,200}") {
            let _ = with_file(&text);
        }

        #[test]
        fn no_value_breaks_a_known_key(value in "(?s).{0,30}", index in 0..settings::SETTINGS.len()) {
            let _ = with_file(&format!("{} = {value}", settings::SETTINGS[index].key));
            let _ = with_flags(&[(settings::SETTINGS[index].key, &value)]);
        }
    }
}
