//! The flags that `run` and `check` share, and how they become a plan.

use crate::config::{Given, Plan, plan};
use crate::error::{ExitCode, Failure};
use crate::health::log_rules::Rules;
use crate::supervisor::port::{self, PortState, claim};
use crate::supervisor::{layout, preflight};
use crate::workload::load::compose;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Values stay texts here: file and flags are validated together, so that every mistake is reported in one go.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The run folder [default: output/safe_profile_YYYYMMDD_HHMMSS]
    pub output_dir: Option<String>,
    /// Attempts after the first [default: 3]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub retries: Option<String>,
    /// Model folder or hub name [default: TinyLlama/TinyLlama-1.1B-Chat-v1.0]
    #[arg(long)]
    pub model: Option<String>,
    /// Port on 127.0.0.1, or auto: the first free one from 8000 on, and another one in an attempt that finds it taken
    /// [default: 8000]
    #[arg(long, allow_hyphen_values = true)]
    pub port: Option<String>,
    /// How long requests are sent, e.g. 90s or 10m [default: 120s]
    #[arg(long, allow_hyphen_values = true)]
    pub duration: Option<String>,
    /// vllm, sim (simulated, needs no GPU), or command (any OpenAI-compatible server; its argv stands after --)
    #[arg(long, value_name = "KIND")]
    pub server: Option<String>,
    /// The interpreter that has vLLM [default: python3 of $VIRTUAL_ENV or PATH]
    #[arg(long, value_name = "PATH")]
    pub python: Option<String>,
    /// Profiler windows inside the worker: light (2 % of the engine's time), standard (5 %), full (back to back, more than
    /// half of the throughput), once (at --profile-at), or off [default: standard]
    #[arg(long, value_name = "MODE")]
    pub profile: Option<String>,
    /// The share of its time that windows may take from the engine [default: 5%]
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true)]
    pub profile_budget: Option<String>,
    /// For --profile once: when windows open, counted from the begin of the load [default: 15s,45s,90s]
    #[arg(long, value_name = "TIMES", allow_hyphen_values = true)]
    pub profile_at: Option<String>,
    /// What follows when the server has stood still for too long: kill, or observe [default: kill]
    #[arg(long, value_name = "WHAT")]
    pub on_hang: Option<String>,
    /// Further rules for lines of the server's log (see the README)
    #[arg(long, value_name = "FILE")]
    pub rules: Option<String>,
    /// Settings file; without it ./guard.toml is read if it exists. Flags win
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Spawn to ready [default: 30m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub startup_timeout: Option<String>,
    /// The whole run; then everything is stopped in good order (exit code 124)
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    pub deadline: Option<String>,
    /// The run folder takes no more than this, e.g. 20GB: old profiler windows give way, then the run is stopped
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_disk: Option<String>,
    /// The server's log takes no more than this, e.g. 1GB: its beginning and its end stay, the middle is compressed or dropped
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    pub max_log: Option<String>,
    /// Change no setting for a further attempt, whatever the one before failed of
    #[arg(long)]
    pub no_mitigation: bool,
    /// Further arguments for vLLM, or the command line of --server command
    #[arg(last = true, value_name = "ARGS")]
    pub rest: Vec<String>,
}

impl Options {
    /// Reads the file, adds the flags, and makes one validated plan.
    pub fn plan(&self) -> Result<Plan, Failure> {
        self.plan_with(Vec::new(), Vec::new())
    }

    /// The same, with the settings of further flags.
    pub fn plan_with(&self, more: Vec<(&'static str, String)>, notify: Vec<String>) -> Result<Plan, Failure> {
        let file = match &self.config {
            Some(path) => Some(read(path)?),
            None if PathBuf::from("guard.toml").is_file() => Some(read(&PathBuf::from("guard.toml"))?),
            None => None,
        };
        let flags = [
            ("output", &self.output_dir),
            ("retries", &self.retries),
            ("server.model", &self.model),
            ("server.port", &self.port),
            ("load.duration", &self.duration),
            ("server.kind", &self.server),
            ("server.python", &self.python),
            ("profile.mode", &self.profile),
            ("profile.budget", &self.profile_budget),
            ("profile.at", &self.profile_at),
            ("health.on-hang", &self.on_hang),
            ("health.rules", &self.rules),
            ("budgets.startup", &self.startup_timeout),
            ("budgets.run", &self.deadline),
            ("disk.max", &self.max_disk),
            ("disk.max-log", &self.max_log),
        ];
        let mut flags: Vec<(&'static str, String)> =
            flags.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect();
        flags.extend(more);
        if self.no_mitigation {
            flags.push(("policy.mitigate", "false".to_owned()));
        }
        for (key, value) in &mut flags {
            if *key == "server.port" && value == "auto" {
                *value = free_port().to_string();
            }
        }
        if self.port.as_deref() == Some("auto") {
            flags.push(("server.port-auto", "true".to_owned()));
        }
        let rest = (!self.rest.is_empty()).then(|| self.rest.clone());
        let mut defaults = Plan::default();
        defaults.server.python = default_python();
        let name = layout::default_run_name(&jiff::ZonedDateTime::now());
        defaults.output = PathBuf::from("output").join(name);
        let mut plan =
            plan(defaults, &Given { file, flags, rest, check_load: Some(compose::check), notify })?;
        plan.output = std::path::absolute(&plan.output).map_err(|error| {
            Failure::new(
                ExitCode::Usage,
                format!("cannot use {} as run folder: {error}", plan.output.display()),
            )
        })?;
        // The server runs in its attempt's folder, so a relative path would point elsewhere there.
        let model = PathBuf::from(&plan.server.model);
        if model.is_relative()
            && model.is_dir()
            && let Ok(path) = std::path::absolute(model)
        {
            plan.server.model = path.to_string_lossy().into_owned();
        }
        if let Some(rules) = &mut plan.health.rules
            && let Ok(path) = std::path::absolute(&*rules)
        {
            *rules = path;
        }
        if let Some(file) = &mut plan.listen.token_file
            && let Ok(path) = std::path::absolute(&*file)
        {
            *file = path;
        }
        if plan.server.python.is_relative() {
            let name = plan.server.python.to_string_lossy().into_owned();
            if let Some(found) = preflight::find_program(&name) {
                plan.server.python = std::path::absolute(&found).unwrap_or(found);
            }
        }
        Ok(plan)
    }
}

/// The settings of a file alone, or of ./guard.toml, for commands that start nothing.
pub fn of_file(config: Option<&PathBuf>, notify: Vec<String>) -> Result<Plan, Failure> {
    let file = match config {
        Some(path) => Some(read(path)?),
        None if PathBuf::from("guard.toml").is_file() => Some(read(&PathBuf::from("guard.toml"))?),
        None => None,
    };
    plan(Plan::default(), &Given { file, notify, ..Given::default() })
}

/// The first port that nobody has and no other guard has chosen, from the default on; it is ours from then on. If another
/// program takes it before the server does, the preflight says so.
fn free_port() -> u16 {
    const FIRST: u16 = 8000;
    let is_free = |port: &u16| {
        // Where claims cannot be made, it is as good as without them.
        let is_free =
            claim::claim(*port).unwrap_or(true) && matches!(port::probe(*port), Ok(PortState::Free));
        if !is_free {
            claim::release(*port);
        }
        is_free
    };
    (FIRST..FIRST + 1000).find(is_free).unwrap_or(FIRST)
}

/// The rules for the server's log: the built-in ones and those of the user.
pub fn rules(plan: &Plan) -> Result<Rules, Failure> {
    let file = plan.health.rules.as_ref().map(read).transpose()?;
    let files: Vec<(&str, &str)> = file.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Rules::load(&files).map_err(|errors| Failure {
        exit: ExitCode::Usage,
        problems: errors.iter().map(ToString::to_string).collect(),
        hint: None,
    })
}

fn read(path: &PathBuf) -> Result<(String, String), Failure> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(error) => Err(Failure::new(ExitCode::Usage, format!("cannot read {}: {error}", path.display()))),
    }
}

fn default_python() -> PathBuf {
    match std::env::var_os("VIRTUAL_ENV") {
        Some(env) if !env.is_empty() => PathBuf::from(env).join("bin/python3"),
        _ => python_beside(std::env::current_exe().ok()).unwrap_or_else(|| PathBuf::from("python3")),
    }
}

/// The interpreter of the environment that `pip install` put us into, also when nobody activated it.
fn python_beside(program: Option<PathBuf>) -> Option<PathBuf> {
    let folder = program?.parent()?.to_owned();
    let python = folder.join("python3");
    (folder.parent()?.join("pyvenv.cfg").is_file() && python.is_file()).then_some(python)
}

/// Our own environment as text. A variable that is not UTF-8 cannot stand in a journal and is left out.
pub fn environment() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// A runtime for the edges: everything runs on this thread, only the load has threads of its own.
pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    use crate::error::Context;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the asynchronous runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_an_environment_its_own_interpreter_is_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("bin")).unwrap();
        std::fs::write(path("bin/python3"), "").unwrap();
        let program = Some(path("bin/varcas-guard"));
        assert_eq!(python_beside(program.clone()), None, "a folder of programs is no environment");
        std::fs::write(path("pyvenv.cfg"), "").unwrap();
        assert_eq!(python_beside(program), Some(path("bin/python3")));
    }
}
