//! Who is told of a run: `[[notify]]` in guard.toml and `--notify`.

use super::OwnWorkload;
use super::values::{parse_span, suggestion};
use crate::time::secs;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A text that must not be seen. In the journal, in `--dry-run` and in every message only what tells one from another is
/// left of it; the whole is there for who asks for it by name.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What may be shown: of an address the scheme and the host, of anything else nothing.
    pub fn shown(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else { return "\u{2026}".to_owned() };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        format!("{scheme}://{host}/\u{2026}")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.shown())
    }
}

/// When somebody is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Occasion {
    /// The run began.
    Start,
    /// An attempt was judged.
    Verdict,
    /// There will be another attempt.
    Retry,
    /// The deadline of the whole run is near.
    Deadline,
    /// The run came to a good end.
    Success,
    /// The run came to any other end.
    Failure,
    /// Somebody asked for a message to see whether it arrives.
    Test,
}

impl Occasion {
    /// Those that can be asked for.
    pub const ALL: [Self; 6] =
        [Self::Start, Self::Verdict, Self::Retry, Self::Deadline, Self::Success, Self::Failure];

    /// As in guard.toml.
    pub fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Verdict => "verdict",
            Self::Retry => "retry",
            Self::Deadline => "deadline",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Test => "test",
        }
    }
}

/// By what way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A POST with a JSON body.
    Webhook,
    /// The body that Slack, Mattermost and Discord (`/slack`) take.
    Slack,
    /// ntfy.sh or a server like it.
    Ntfy,
    /// sendmail.
    Mail,
    /// A program that gets the message on its standard input.
    Command,
}

impl Way {
    const WORDS: [&'static str; 5] = ["webhook", "slack", "ntfy", "mail", "command"];

    fn named(word: &str) -> Option<Self> {
        Some(match word {
            "webhook" => Self::Webhook,
            "slack" => Self::Slack,
            "ntfy" => Self::Ntfy,
            "mail" => Self::Mail,
            "command" => Self::Command,
            _ => return None,
        })
    }

    fn is_http(self) -> bool {
        matches!(self, Self::Webhook | Self::Slack | Self::Ntfy)
    }
}

/// One who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotifyPlan {
    /// Unique.
    pub name: String,
    /// By what way.
    pub kind: Way,
    /// Where to, or one of the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<Secret>,
    /// Environment variable that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_env: Option<String>,
    /// File that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
    /// Environment variable that holds a token for `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_env: Option<String>,
    /// File that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Mail: to whom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// Mail: from whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The program and its arguments; of mail, sendmail. Arguments may be secret, so only the program is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty", serialize_with = "program")]
    pub command: Vec<String>,
    /// When.
    pub on: Vec<Occasion>,
    /// Template of the title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Template of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Webhook: template of the whole body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// HTTP: further headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, Secret>,
    /// One try takes no longer.
    #[serde(with = "secs")]
    pub timeout: Duration,
}

fn program<S: serde::Serializer>(command: &[String], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(
        command.first().map(String::as_str).into_iter().chain((command.len() > 1).then_some("\u{2026}")),
    )
}

/// What a template may name, and what it becomes.
pub const PLACEHOLDERS: [(&str, &str); 20] = [
    ("occasion", "`start`, `verdict`, `retry`, `deadline`, `success`, `failure` or `test`"),
    ("severity", "`info`, `warning` or `error`"),
    ("title", "the title; in `text` and `body`"),
    ("text", "the text; in `body`"),
    ("run", "the run's id"),
    ("folder", "the run folder"),
    ("report", "the path of report.html"),
    ("host", "the machine's name"),
    ("model", "the model"),
    ("attempt", "the attempt, from 1"),
    ("attempts", "how many there may be"),
    ("phase", "the phase"),
    ("elapsed", "how long the run has taken"),
    ("outcome", "how the attempt or the run ended"),
    ("cause", "what it failed of, like `cuda-oom`"),
    ("explanation", "the same in a sentence"),
    ("advice", "what to do"),
    ("exit_code", "the exit code of the run"),
    ("requests", "`2,991 of 3,000`"),
    ("throughput", "output tokens per second"),
];

/// What is wrong, and in which line of the file if that is known.
pub type Problem = (Option<usize>, String);

/// Reads the tables and what `--notify` says: who is told, and what is wrong.
pub fn read(tables: &[OwnWorkload], flags: &[String]) -> (Vec<NotifyPlan>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut out: Vec<(NotifyPlan, bool)> = Vec::new();
    for table in tables {
        let mut reader = Reader { line: table.line, table: &table.table, problems: &mut problems };
        if let Some(found) = reader.target() {
            out.push(found);
        }
    }
    for flag in flags {
        match by_address(flag) {
            Some(Ok(target)) => out.push((target, true)),
            Some(Err(problem)) => problems.push((None, format!("--notify: {problem}"))),
            None => match out.iter_mut().find(|(target, _)| target.name == *flag) {
                Some((_, enabled)) => *enabled = true,
                None => {
                    let names: Vec<&str> = out.iter().map(|(target, _)| target.name.as_str()).collect();
                    let hint = suggestion(flag, &names);
                    problems.push((
                        None,
                        format!("--notify: `{flag}` is neither an address nor the name of a [[notify]] table{hint}"),
                    ));
                }
            },
        }
    }
    let mut names = BTreeSet::new();
    for (target, _) in &mut out {
        let plain = target.name.clone();
        for n in 2.. {
            if names.insert(target.name.clone()) {
                break;
            }
            target.name = format!("{plain}-{n}");
        }
    }
    (out.into_iter().filter(|(_, enabled)| *enabled).map(|(target, _)| target).collect(), problems)
}

/// An address on the command line; none when it is a name.
fn by_address(text: &str) -> Option<Result<NotifyPlan, String>> {
    if let Some(to) = text.strip_prefix("mailto:") {
        let target = NotifyPlan { to: vec![to.to_owned()], ..NotifyPlan::new("mail", Way::Mail) };
        return Some(if is_address(to) {
            Ok(target)
        } else {
            Err("no mail address after `mailto:`".to_owned())
        });
    }
    let (scheme, rest) = text.split_once("://")?;
    let (way, scheme) = match scheme.split_once('+') {
        Some((word, scheme)) => (Way::named(word).filter(|way| way.is_http()), scheme),
        None => (Some(way_of(rest)), scheme),
    };
    let Some(way) = way.filter(|_| matches!(scheme, "http" | "https")) else {
        return Some(Err(
            "an address begins with https://, http://, slack+https://, ntfy+https:// or mailto:".to_owned(),
        ));
    };
    let url = Secret::new(format!("{scheme}://{rest}"));
    let host = url.shown();
    let host = host.trim_start_matches(scheme).trim_matches(['/', ':', '\u{2026}']).to_owned();
    if host.is_empty() {
        return Some(Err("the address has no host".to_owned()));
    }
    Some(Ok(NotifyPlan { url: Some(url), ..NotifyPlan::new(&host, way) }))
}

/// What speaks at a well-known host.
fn way_of(rest: &str) -> Way {
    match rest.split(['/', '?']).next().unwrap_or_default() {
        "hooks.slack.com" => Way::Slack,
        "ntfy.sh" => Way::Ntfy,
        _ => Way::Webhook,
    }
}

/// Nothing in it may end a header or look like an option.
fn is_address(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '<' | '>' | ',' | ';' | '"' | '\\');
    text.contains('@') && text.chars().all(plain) && !text.starts_with('-')
}

impl NotifyPlan {
    fn new(name: &str, kind: Way) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            url: None,
            url_env: None,
            url_file: None,
            token_env: None,
            token_file: None,
            to: Vec::new(),
            from: None,
            command: Vec::new(),
            on: Occasion::ALL.into(),
            title: None,
            text: None,
            body: None,
            headers: BTreeMap::new(),
            timeout: Duration::from_secs(10),
        }
    }

    /// Environment variables that hold something of it; the server does not get them.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.url_env.iter().chain(&self.token_env).map(String::as_str)
    }
}

struct Reader<'a> {
    line: usize,
    table: &'a Value,
    problems: &'a mut Vec<Problem>,
}

const KEYS: [&str; 17] = [
    "name",
    "kind",
    "url",
    "url-env",
    "url-file",
    "token-env",
    "token-file",
    "to",
    "from",
    "command",
    "on",
    "title",
    "text",
    "body",
    "headers",
    "timeout",
    "enabled",
];

impl Reader<'_> {
    fn wrong(&mut self, problem: impl fmt::Display) {
        self.problems.push((Some(self.line), format!("[[notify]]: {problem}")));
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.table.get(key)? {
            Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
            _ => {
                self.wrong(format_args!("`{key}` must be a text in quotes"));
                None
            }
        }
    }

    fn texts(&mut self, key: &str) -> Option<Vec<String>> {
        match self.table.get(key)? {
            Value::String(text) if key == "to" => Some(vec![text.clone()]),
            Value::Array(items) if items.iter().all(Value::is_string) && !items.is_empty() => {
                Some(items.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            }
            _ => {
                self.wrong(format_args!("`{key}` must be a list of texts"));
                None
            }
        }
    }

    fn target(&mut self) -> Option<(NotifyPlan, bool)> {
        let before = self.problems.len();
        let keys: Vec<String> =
            self.table.as_object().into_iter().flat_map(|table| table.keys().cloned()).collect();
        for key in keys.iter().filter(|key| !KEYS.contains(&key.as_str())) {
            self.wrong(format_args!("unknown key `{key}`{}", suggestion(key, &KEYS)));
        }
        let url = self.text("url");
        let kind = match self.text("kind") {
            Some(word) => match Way::named(&word) {
                Some(way) => way,
                None => {
                    self.wrong(format_args!(
                        "`kind`: `{word}` is not one of {}{}",
                        Way::WORDS.join(", "),
                        suggestion(&word, &Way::WORDS)
                    ));
                    return None;
                }
            },
            None if self.table.get("command").is_some() && self.table.get("to").is_none() => Way::Command,
            None if self.table.get("to").is_some() => Way::Mail,
            None => url
                .as_deref()
                .and_then(|url| url.split_once("://"))
                .map_or(Way::Webhook, |(_, rest)| way_of(rest)),
        };
        let fallback = Way::WORDS[kind as usize];
        let name = self.text("name").unwrap_or_else(|| fallback.to_owned());
        let mut target = NotifyPlan::new(&name, kind);
        target.url = url.map(Secret::new);
        target.url_env = self.text("url-env");
        target.url_file = self.text("url-file").map(PathBuf::from);
        target.token_env = self.text("token-env");
        target.token_file = self.text("token-file").map(PathBuf::from);
        target.to = self.texts("to").unwrap_or_default();
        target.from = self.text("from");
        target.command = self.texts("command").unwrap_or_default();
        target.title = self.template("title");
        target.text = self.template("text");
        target.body = self.template("body");
        self.when(&mut target);
        self.rest(&mut target);
        self.fits(&target);
        let enabled = match self.table.get("enabled") {
            None => true,
            Some(Value::Bool(on)) => *on,
            Some(_) => {
                self.wrong("`enabled` must be true or false");
                true
            }
        };
        (self.problems.len() == before).then_some((target, enabled))
    }

    fn template(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        let known: Vec<&str> = PLACEHOLDERS.iter().map(|(name, _)| *name).collect();
        for name in placeholders(&text).filter(|name| !known.contains(name)) {
            self.wrong(format_args!("`{key}`: nothing is called {{{name}}}{}", suggestion(name, &known)));
        }
        Some(text)
    }

    fn when(&mut self, target: &mut NotifyPlan) {
        let Some(words) = self.texts("on") else { return };
        target.on.clear();
        for word in words {
            match Occasion::ALL.into_iter().find(|occasion| occasion.word() == word) {
                Some(occasion) => target.on.push(occasion),
                None => {
                    let known = Occasion::ALL.map(Occasion::word);
                    self.wrong(format_args!(
                        "`on`: `{word}` is not one of {}{}",
                        known.join(", "),
                        suggestion(&word, &known)
                    ));
                }
            }
        }
    }

    fn rest(&mut self, target: &mut NotifyPlan) {
        if let Some(text) = self.text("timeout") {
            match parse_span(&text) {
                Ok(span) if span >= Duration::from_millis(100) => target.timeout = span,
                Ok(_) => self.wrong("`timeout` is shorter than 100 ms"),
                Err(problem) => self.wrong(format_args!("`timeout`: {problem}")),
            }
        }
        match self.table.get("headers") {
            None => {}
            Some(Value::Object(pairs)) => {
                for (name, value) in pairs {
                    let plain = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
                    match value
                        .as_str()
                        .filter(|text| plain(text) && plain(name) && !name.contains([' ', ':']))
                    {
                        Some(text) => drop(target.headers.insert(name.clone(), Secret::new(text))),
                        None => {
                            self.wrong(format_args!("`headers`: `{name}` and its value must be plain texts"))
                        }
                    }
                }
            }
            Some(_) => self.wrong("`headers` must be a table of texts"),
        }
    }

    fn fits(&mut self, target: &NotifyPlan) {
        let urls = usize::from(target.url.is_some())
            + usize::from(target.url_env.is_some())
            + usize::from(target.url_file.is_some());
        if target.kind.is_http() && urls != 1 {
            self.wrong("exactly one of `url`, `url-env` and `url-file` must be there");
        }
        if let Some(url) = &target.url
            && !["http://", "https://"].iter().any(|scheme| url.reveal().starts_with(scheme))
        {
            self.wrong("`url` must begin with https:// or http://");
        }
        if !target.kind.is_http() && urls > 0 {
            self.wrong("a mail or a command has no `url`");
        }
        if target.kind == Way::Mail && target.to.is_empty() {
            self.wrong("a mail needs `to`");
        }
        if target.to.iter().chain(&target.from).any(|address| !is_address(address)) {
            self.wrong("`to` and `from` must be plain mail addresses");
        }
        if target.kind == Way::Command && target.command.is_empty() {
            self.wrong("a command needs `command`, a list of the program and its arguments");
        }
        if target.body.is_some() && target.kind != Way::Webhook {
            self.wrong("only a webhook has a `body`");
        }
        if target.token_env.is_some() && target.token_file.is_some() {
            self.wrong("`token-env` and `token-file` are both given: leave one out");
        }
    }
}

/// Names between braces. Other braces, of which JSON is full, are left alone.
pub fn placeholders(text: &str) -> impl Iterator<Item = &str> {
    text.split('{').skip(1).filter_map(|part| {
        let name = &part[..part.find('}')?];
        (!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')).then_some(name)
    })
}

#[cfg(test)]
#[path = "recipients_tests.rs"]
mod tests;
