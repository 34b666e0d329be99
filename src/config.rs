//! guard.toml and flags become one validated `Plan`; after that nobody looks at flags again.

pub mod defaults;
pub mod disk;
pub mod file;
mod health;
mod listen;
pub mod load;
mod profile;
pub mod recipients;
pub mod settings;
pub mod values;

pub use disk::DiskPlan;
pub use health::{HealthPlan, OnHang, Patience};
pub use listen::{ListenPlan, TOKEN_ENV};
pub use load::{Endpoint, LoadPlan, OwnWorkload, Process};
pub use profile::{ONCE_AT, ProfileMode, ProfilePlan, Rhythm, percent};
pub use recipients::{NotifyPlan, Occasion, Secret, Way, placeholders};

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
    /// Where the run may be watched from.
    #[serde(default, skip_serializing_if = "ListenPlan::is_default")]
    pub listen: ListenPlan,
    /// Who is told of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notify: Vec<NotifyPlan>,
    /// How long the end of the run waits for messages that are not delivered yet.
    #[serde(skip, default = "notify_grace")]
    pub notify_grace: Duration,
    /// The tables that the former are made from.
    #[serde(skip)]
    pub notify_tables: Vec<OwnWorkload>,
}

fn notify_grace() -> Duration {
    Duration::from_secs(10)
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
            listen: ListenPlan::default(),
            notify: Vec::new(),
            notify_grace: notify_grace(),
            notify_tables: Vec::new(),
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
    /// Who is told beside those in the file, or is told although the file switches it off.
    pub notify: Vec<String>,
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
    problems.extend(plan.listen.check(plan.server.port));
    let name = given.file.as_ref().map_or("guard.toml", |(name, _)| name.as_str());
    let (notify, wrong) = recipients::read(&std::mem::take(&mut plan.notify_tables), &given.notify);
    plan.notify = notify;
    let load = given.check_load.map(|check| check(&plan.load)).unwrap_or_default();
    for (line, problem) in load.into_iter().chain(wrong) {
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
    fn times_that_no_clock_or_journal_holds_are_refused_or_rounded() {
        for absurd in ["10000h", "2562047788015215h"] {
            let problems = with_flags(&[("budgets.startup", absurd)]).unwrap_err().problems;
            assert!(problems[0].ends_with("is longer than a year"), "{problems:?}");
        }
        let plan = with_flags(&[("load.slo-ttft", "1ms 1ns"), ("profile.window", "10ms 1us")]).unwrap();
        assert_eq!(plan.load.slo_ttft, Some(Duration::from_millis(1)));
        assert_eq!(plan.profile.window, Duration::from_micros(10_001));
    }

    #[test]
    fn plans_that_contradict_themselves_are_refused_at_their_border() {
        let wrong = |flags: &[(&'static str, &str)]| with_flags(flags).err().map(|f| f.problems.join("; "));
        assert_eq!(wrong(&[("backoff.initial", "5s"), ("backoff.max", "5s")]), None);
        assert!(wrong(&[("backoff.initial", "6s"), ("backoff.max", "5s")]).unwrap().contains("swap them"));
        let runs = |run: &'static str| wrong(&[("load.duration", "60s"), ("budgets.run", run)]);
        assert_eq!(runs("61s"), None);
        assert!(runs("60s").unwrap().contains("leaves no room"));
        let once = |at: &'static str| {
            wrong(&[("load.duration", "60s"), ("profile.mode", "once"), ("profile.at", at)])
        };
        assert_eq!(once("10s,59s"), None);
        assert!(once("10s,60s").unwrap().contains("not within the benchmark"));
        assert!(wrong(&[("profile.at", "10s")]).unwrap().contains("only `--profile once`"));
        assert!(wrong(&[("no.such", "1")]).unwrap().contains("no setting is called no.such"));
        assert!(wrong(&[("server.model", "")]).unwrap().contains("is empty"));
        assert!(wrong(&[("load.duration", "")]).unwrap().contains("is not a duration"));
    }

    #[test]
    fn a_command_may_be_given_without_a_word_on_profiling_and_not_with_windows() {
        let command = |flags: Vec<(&'static str, String)>| {
            let rest = Some(vec!["my-server".to_owned()]);
            plan(Plan::default(), &Given { flags, rest, ..Given::default() })
        };
        let kind = ("server.kind", "command".to_owned());
        assert_eq!(command(vec![kind.clone()]).unwrap().server.extra, ["my-server"]);
        assert!(command(vec![kind.clone(), ("profile.mode", "off".to_owned())]).is_ok());
        let refused = command(vec![kind, ("profile.mode", "windows".to_owned())]).unwrap_err();
        assert!(refused.problems[0].contains("pass --profile off"), "{:?}", refused.problems);
    }

    #[test]
    fn every_kind_of_value_is_read_from_the_file_and_refused_with_its_line() {
        let plan = with_file(
            "[server]\nargs = [\"--dtype\", \"half\"]\nenv = { A = \"b\" }\nport-auto = true\n[profile]\nmode = \"once\"\n\
             at = [\"30s\", \"10s\"]\nbudget = \"2.5%\"\n[load]\narrivals = \"cyclic\"\nrate = 3\n[[load.workload]]\nname = \"a\"\n\
             weight = 2\nlist = [1.5, true]\n",
        )
        .unwrap();
        assert_eq!(plan.server.extra, ["--dtype", "half"]);
        assert_eq!((plan.server.env["A"].as_str(), plan.server.port_auto), ("b", true));
        assert_eq!(plan.profile.at, [Duration::from_secs(10), Duration::from_secs(30)]);
        assert_eq!((plan.profile.budget, plan.load.arrivals, plan.load.rate), (0.025, Process::Cyclic, 3.0));
        assert_eq!(plan.load.workloads[0].line, 12);
        let table = serde_json::json!({"name": "a", "weight": 2, "list": [1.5, true]});
        assert_eq!(plan.load.workloads[0].table, table);
        for (line, problem) in [
            ("server.args = [1]", "every item must be a text in quotes"),
            ("server.args = \"x\"", "must be a list of texts"),
            ("server.env = { A = 1 }", "`server.env.A` must be a text in quotes"),
            ("server.env = 1", "must be a table of texts"),
            ("server.port-auto = 1", "must be true or false"),
            ("profile.at = [1]", "every item must be a duration in quotes"),
            ("load.workload = 1", "must be tables, each under [[load.workload]]"),
            ("load.workload = [1]", "every item must be a table, not a integer"),
            ("load.workload = [{ a = 1979-05-27 }]", "a date has no meaning here"),
            ("load.rate = true", "must not be a boolean"),
            ("server = 1", "unknown key `server`"),
            ("load.nothing = 1", "unknown key `load.nothing`"),
            ("rate = 1", "did you mean `load.rate`?"),
            ("profile.budget = \"x\"", "is not a share"),
            ("profile.budget = \"0%\"", "is out of range"),
        ] {
            let problems = with_file(&format!("\n{line}\n")).unwrap_err().problems;
            assert!(
                problems[0].starts_with("guard.toml:2: ") && problems[0].contains(problem),
                "{line}: {problems:?}"
            );
        }
    }

    #[test]
    fn a_switch_is_on_or_off_and_a_section_that_is_none_is_named_as_a_whole() {
        let mitigates =
            |word| with_flags(&[("policy.mitigate", word)]).map(|plan| plan.policy.unwrap().mitigate);
        assert_eq!((mitigates("true").ok(), mitigates("false").ok()), (Some(true), Some(false)));
        assert!(mitigates("no").unwrap_err().problems[0].contains("`no` is neither true nor false"));
        let problems = with_file("[nothing]\na = 1\nb = 2\n").unwrap_err().problems;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("guard.toml:1: unknown key `nothing`"), "{problems:?}");
        // As long as this may an integer be, and no longer.
        let table = |number: &str| with_file(&format!("[[load.workload]]\na = {number}\n"));
        assert_eq!(table("0x10").unwrap().load.workloads[0].table["a"], 16);
        assert!(table("99999999999999999999").is_err());
    }

    #[test]
    fn words_of_the_profiler_mean_what_the_readme_says() {
        let of = |word: &'static str| with_flags(&[("profile.mode", word)]).unwrap().profile;
        assert_eq!((of("light").budget, of("standard").budget), (0.02, 0.05));
        let kinds = ["windows", "full", "once", "off"].map(|word| (of(word).mode, of(word).rhythm));
        let on = ProfileMode::Windows;
        assert_eq!(
            kinds,
            [
                (on, Rhythm::Budget),
                (on, Rhythm::Full),
                (on, Rhythm::Once),
                (ProfileMode::Off, Rhythm::Budget)
            ]
        );
        assert_eq!(of("light").price().unwrap(), "windows may take 2 % of the engine's time");
        assert!(of("full").price().unwrap().contains("more than half"));
        assert!(of("once").price().unwrap().starts_with("3 windows"));
        assert_eq!(of("off").price(), None);
        assert_eq!((percent(0.025), percent(0.05)), ("2.5".to_owned(), "5".to_owned()));
        for name in Process::NAMES {
            let named = serde_json::to_value(Process::named(name)).unwrap();
            assert_eq!(named, name);
        }
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
