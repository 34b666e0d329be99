//! `varcas-guard explain`: what a cause, an exit code or a key of guard.toml means, from the tables the program itself works with.

use crate::config::defaults;
use crate::config::settings::{self, SETTINGS, Setting};
use crate::error::{Context, ExitCode, Failure};
use crate::recovery::causes::{self, Cause};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode as ProcessExit;

/// Say what a cause, an exit code or a key of guard.toml means
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples: explain cuda-oom, explain 93, explain patience.idle, explain --list")]
pub struct Args {
    /// A cause as reports name it, an exit code, or a key of guard.toml (its last part is enough)
    #[arg(value_name = "CAUSE|EXIT_CODE|KEY", required_unless_present_any = ["list", "reference"])]
    words: Vec<String>,
    /// List all of them, one line each
    #[arg(long, conflicts_with = "words")]
    list: bool,
    /// Print JSON: kind, name, meaning, and what else there is
    #[arg(long)]
    json: bool,
    /// Print the reference of guard.toml in Markdown
    #[arg(long, hide = true, conflicts_with_all = ["words", "list", "json"])]
    reference: bool,
}

/// What is known of one word. What there is not is left out.
#[derive(Debug, Default, Serialize)]
struct Topic {
    /// `cause`, `exit-code` or `key`.
    kind: &'static str,
    name: String,
    meaning: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<&'static str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    form: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flag: Option<&'static str>,
}

impl Topic {
    fn cause(cause: &'static Cause) -> Self {
        Self {
            kind: "cause",
            name: cause.name.to_owned(),
            meaning: cause.what.to_owned(),
            advice: Some(cause.advice).filter(|advice| !advice.is_empty()),
            outcome: Some(cause.outcome.to_string()),
            retry: Some(cause.retry.to_string()),
            reference: Some(cause.reference).filter(|reference| !reference.is_empty()),
            ..Self::default()
        }
    }

    fn exit(code: ExitCode) -> Self {
        Self {
            kind: "exit-code",
            name: code.code().to_string(),
            meaning: code.meaning().to_owned(),
            advice: Some(code.advice()),
            ..Self::default()
        }
    }

    fn key(setting: &'static Setting) -> Self {
        Self {
            kind: "key",
            name: setting.key.to_owned(),
            meaning: setting.help.to_owned(),
            form: Some(defaults::type_of(setting)),
            default: defaults::default_of(setting),
            flag: setting.flag,
            ..Self::default()
        }
    }

    fn print(&self, out: &mut impl Write) -> std::io::Result<()> {
        let kind = match self.kind {
            "exit-code" => "exit code",
            "key" => "key of guard.toml",
            kind => kind,
        };
        writeln!(out, "{} ({kind})\n  {}", self.name, self.meaning)?;
        let lines = [
            ("to do", self.advice),
            ("outcome", self.outcome.as_deref()),
            ("retry", self.retry.as_deref()),
            ("type", self.form.as_deref()),
            ("default", self.default.as_deref()),
            ("flag", self.flag),
            ("see", self.reference),
        ];
        for (label, text) in lines {
            if let Some(text) = text {
                writeln!(out, "  {label:8} {text}")?;
            }
        }
        Ok(())
    }
}

fn all() -> impl Iterator<Item = Topic> {
    let causes = causes::ALL.iter().map(Topic::cause);
    causes.chain(ExitCode::ALL.into_iter().map(Topic::exit)).chain(SETTINGS.iter().map(Topic::key))
}

/// Everything that goes by this name.
fn find(word: &str) -> Result<Vec<Topic>, Failure> {
    let word = word.trim();
    let exact: Vec<Topic> = all().filter(|topic| topic.name == word).collect();
    if !exact.is_empty() {
        return Ok(exact);
    }
    let short: Vec<Topic> =
        SETTINGS.iter().filter(|key| key.key.rsplit('.').next() == Some(word)).map(Topic::key).collect();
    if !short.is_empty() {
        return Ok(short);
    }
    let names: Vec<String> = all().map(|topic| topic.name).collect();
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    let near = settings::suggestion(word, &known);
    let problem = format!("`{word}` is no cause, exit code or key of guard.toml{near}");
    Err(Failure::new(ExitCode::Usage, problem).hint("varcas-guard explain --list"))
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    if args.reference {
        return print(&reference());
    }
    let mut topics: Vec<Topic> = Vec::new();
    if args.list {
        topics.extend(all());
    }
    for word in &args.words {
        topics.extend(find(word)?);
    }
    let mut out = Vec::new();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &topics).context("print the explanation")?;
        out.push(b'\n');
    } else if args.list {
        let width = topics.iter().map(|topic| topic.name.len()).max().unwrap_or(0);
        for topic in &topics {
            writeln!(out, "{:9}  {:width$}  {}", topic.kind, topic.name, topic.meaning)
                .context("print the list")?;
        }
    } else {
        for (number, topic) in topics.iter().enumerate() {
            if number > 0 {
                out.push(b'\n');
            }
            topic.print(&mut out).context("print the explanation")?;
        }
    }
    print(&String::from_utf8_lossy(&out))
}

fn print(text: &str) -> Result<ProcessExit, Failure> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ProcessExit::SUCCESS),
        Err(error) => Err(error).context("print"),
        Ok(()) => Ok(ProcessExit::SUCCESS),
    }
}

/// `docs/guard-toml.md`.
fn reference() -> String {
    let mut text = "# guard.toml\n\nEvery key, from the table that the program reads the file with (`src/config/settings.rs`). \
        Made by `varcas-guard explain --reference`; a test holds it. Durations are texts like `\"90s\"`, `\"10m\"`, `\"1h 30m\"`, \
        shares like `\"5%\"`. Flags win over the file.\n"
        .to_owned();
    let mut section = "";
    for setting in SETTINGS {
        let (here, _) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
        if here != section || setting.key == SETTINGS[0].key {
            section = here;
            let title = if here.is_empty() { "On top".to_owned() } else { format!("[{here}]") };
            text.push_str(&format!(
                "\n## {title}\n\n| key | type | default | flag | meaning |\n|---|---|---|---|---|\n"
            ));
        }
        let code = |text: &str| format!("`{text}`");
        let default = match setting.key {
            // Where the machine or the moment decides.
            "output" => "`output/safe_profile_...`".to_owned(),
            _ => defaults::default_of(setting).map_or(String::new(), |text| code(&text)),
        };
        text.push_str(&format!(
            "| `{}` | {} | {default} | {} | {} |\n",
            setting.key,
            defaults::type_of(setting),
            setting.flag.map_or(String::new(), code),
            setting.help
        ));
    }
    text
}
