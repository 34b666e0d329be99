//! The flags by which a run is watched from elsewhere, and what stands behind them.

use super::options::environment;
use crate::config::{Plan, TOKEN_ENV};
use crate::console::watch::{Access, Ended, Server, Watched, random};
use crate::error::{Context, ExitCode, Failure};
use crate::event::Event;
use crate::supervisor::dispatcher::Sink;
use crate::time::SystemClock;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

/// Flags of `run` alone.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Watching {
    /// Show the run on this address: a live page, /metrics, /healthz, /api/run, /events. Beyond this machine only with a
    /// token (see the README)
    #[arg(long, value_name = "ADDR:PORT", allow_hyphen_values = true)]
    pub listen: Option<String>,
}

impl Watching {
    /// As settings.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        self.listen.iter().map(|address| ("listen.address", address.clone())).collect()
    }
}

/// An address that is taken before anything else is begun, so that a mistake costs nothing.
pub struct Claimed {
    listener: TcpListener,
    access: Access,
}

/// Takes the address that the plan names, if it names one.
pub fn claim(plan: &Plan) -> Result<Option<Claimed>, Failure> {
    let usage = |problem: String| Failure::new(ExitCode::Usage, format!("--listen: {problem}"));
    let Some(at) = plan.listen.socket().map_err(usage)? else { return Ok(None) };
    let access = Access::new(at, &plan.listen.hosts, token(plan)?, random()).map_err(usage)?;
    let listener = Server::bind(at).map_err(|error| {
        Failure::new(ExitCode::Refused, format!("cannot listen on {at}: {error}"))
            .hint("give another address to --listen")
    })?;
    Ok(Some(Claimed { listener, access }))
}

/// The token from the file or the environment variable that is named, else from the usual variable.
fn token(plan: &Plan) -> Result<Option<String>, Failure> {
    let refused = |problem: String| Failure::new(ExitCode::Usage, problem);
    if let Some(path) = &plan.listen.token_file {
        return secret_file(path).map(Some).map_err(refused);
    }
    let name = plan.listen.token_env.as_deref();
    match std::env::var(name.unwrap_or(TOKEN_ENV)) {
        Ok(token) if !token.trim().is_empty() => Ok(Some(token.trim().to_owned())),
        _ => match name {
            Some(name) => Err(refused(format!("`listen.token-env`: {name} is not set"))),
            None => Ok(None),
        },
    }
}

/// The first line of a file that holds a secret.
pub fn secret_file(path: &Path) -> Result<String, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    match text.lines().next().map(str::trim) {
        Some(line) if !line.is_empty() => Ok(line.to_owned()),
        _ => Err(format!("{} is empty, but should hold a secret", path.display())),
    }
}

/// The environment that the server inherits: ours, without what is only meant for us.
pub fn inherited(plan: &Plan) -> BTreeMap<String, String> {
    let mut env = environment();
    let named = plan.listen.token_env.iter().map(String::as_str);
    for name in named.chain([TOKEN_ENV]) {
        env.remove(name);
    }
    env
}

/// Shows a run to whoever looks on.
pub struct Watch {
    watched: Watched,
    server: Server,
}

impl Claimed {
    /// Answers from now on; the clock is that of the run.
    pub fn start(self, clock: &SystemClock) -> Result<Watch, Failure> {
        let watched = Watched::new(clock.clone());
        let server = Server::start(self.listener, self.access, watched.clone(), Arc::new(|| None))
            .context("start the thread that shows the run")?;
        Ok(Watch { watched, server })
    }
}

impl Watch {
    /// Where the live page is.
    pub fn url(&self) -> String {
        format!("http://{}/", self.server.address())
    }

    /// Tells once a second that the loop which this task shares a thread with turns. Ends with its runtime.
    pub fn beat(&self) {
        let watched = self.watched.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                every.tick().await;
                watched.beat();
            }
        });
    }

    /// Says that it is over.
    pub fn end(self, report: &Path) {
        if self.server.end(Some(report.display().to_string())) == Ended::Panicked {
            tracing::error!("the thread that shows the run panicked");
        }
    }
}

impl Sink for Watch {
    fn event(&mut self, event: &Event) {
        self.watched.push(event);
    }
}
