//! The flags by which a run is watched from elsewhere, and what stands behind them.

use super::options::environment;
use crate::config::{NotifyPlan, Plan, TOKEN_ENV};
use crate::console::notify::{Composer, Outbox, Poster, Recipient};
use crate::console::watch::{Access, Ended, Messages, Server, Watched, random};
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
    /// Tell of start, verdicts, further attempts, a near deadline and the end: an address (https://..., slack+https://...,
    /// ntfy+https://..., mailto:...), or the name of a [[notify]] table that is switched off. May be given several times
    #[arg(long, value_name = "URL|NAME")]
    pub notify: Vec<String>,
    /// Tell nobody, whatever guard.toml says
    #[arg(long, conflicts_with_all = ["notify", "notify_test"])]
    pub no_notify: bool,
    /// Send one message to each who would be told, show what they answer, and start nothing
    #[arg(long)]
    pub notify_test: bool,
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

/// Those who are told, with the secrets that their variables and files hold; every one that is missing is named.
pub fn recipients(plan: &Plan) -> Result<Vec<Recipient>, Failure> {
    let mut problems = Vec::new();
    let mut secret = |name: &str, given: Option<&str>, variable: Option<&str>, file: Option<&Path>| {
        let found = match (given, variable, file) {
            (Some(given), ..) => Ok(Some(given.to_owned())),
            (_, Some(variable), _) => match std::env::var(variable) {
                Ok(text) if !text.trim().is_empty() => Ok(Some(text.trim().to_owned())),
                _ => Err(format!("{variable} is not set")),
            },
            (_, _, Some(file)) => secret_file(file).map(Some),
            _ => Ok(None),
        };
        found.unwrap_or_else(|problem| {
            problems.push(format!("notify `{name}`: {problem}"));
            None
        })
    };
    let mut out = Vec::new();
    for target in &plan.notify {
        let url = target.url.as_ref().map(crate::config::Secret::reveal);
        let url = secret(&target.name, url, target.url_env.as_deref(), target.url_file.as_deref());
        let token = secret(&target.name, None, target.token_env.as_deref(), target.token_file.as_deref());
        out.push(Recipient::new(target.clone(), url, token));
    }
    if problems.is_empty() { Ok(out) } else { Err(Failure { exit: ExitCode::Usage, problems, hint: None }) }
}

/// The machine's name.
pub fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

/// Tells others of a run.
pub struct Notifier(Poster);

impl Notifier {
    /// Starts the thread, if anybody is to be told.
    pub fn start(
        plan: &Plan,
        recipients: Vec<Recipient>,
        outbox: &Path,
        clock: &SystemClock,
    ) -> Result<Option<Self>, Failure> {
        if recipients.is_empty() {
            return Ok(None);
        }
        let outbox = Outbox::open(outbox).context(format_args!("open {}", outbox.display()))?;
        let poster =
            Poster::start(recipients, outbox, Composer::new(host()), clock.clone(), plan.notify_grace)
                .context("start the thread that notifies")?;
        Ok(Some(Self(poster)))
    }

    /// Counts for `/metrics`.
    pub fn messages(&self) -> Messages {
        let tally = self.0.tally();
        Arc::new(move || Some((tally.waiting(), tally.delivered())))
    }

    /// Waits within the grace for what is not delivered yet; how much still waits then.
    pub fn end(self) -> u64 {
        self.0.end()
    }
}

impl Sink for Notifier {
    fn event(&mut self, event: &Event) {
        self.0.push(event);
    }
}

/// The environment that the server inherits: ours, without what is only meant for us.
pub fn inherited(plan: &Plan) -> BTreeMap<String, String> {
    let mut env = environment();
    let named = plan.listen.token_env.iter().map(String::as_str);
    for name in named.chain([TOKEN_ENV]).chain(plan.notify.iter().flat_map(NotifyPlan::variables)) {
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
    pub fn start(self, clock: &SystemClock, messages: Messages) -> Result<Watch, Failure> {
        let watched = Watched::new(clock.clone());
        let server = Server::start(self.listener, self.access, watched.clone(), messages)
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
