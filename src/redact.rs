//! Keeps secrets out of whatever is written: the journal, the logs, the evidence, the report. Pure.
//!
//! Two ways, because one alone does not do. The *values* of variables and flags whose names say that they are secret are
//! known, and are found wherever they turn up, in whatever words. What other programs print of secrets that we were not
//! told is known by its *form*: tokens with a prefix of their issuer, `Authorization` headers, `api_key=...`.

use crate::event::EventKind;
use aho_corasick::{AhoCorasick, MatchKind};
use regex_automata::util::captures::Captures;
use regex_automata::util::syntax;
use regex_automata::{Input, meta};
use serde_json::Value;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{LazyLock, Mutex, PoisonError};

/// What stands in the place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Words in the name of a variable or flag that make its value a secret.
const SECRET_WORDS: [&str; 15] = [
    "TOKEN",
    "SECRET",
    "SECRETS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "WEBHOOK",
    "WEBHOOKS",
    "APIKEY",
    "AUTHORIZATION",
    "COOKIE",
    "BEARER",
    "PAT",
];

/// Last words of names that only say where a secret is, or what it is like.
const HARMLESS_ENDS: [&str; 9] =
    ["FILE", "PATH", "DIR", "SOCK", "LENGTH", "TIMEOUT", "LIMIT", "COUNT", "TYPE"];

/// A shorter value is a switch or a number, and would be found in every other word.
const SHORTEST: usize = 6;

/// The group `s` is the secret itself. Each is as narrow as it can be: a report full of holes helps nobody.
const FORMS: [&str; 7] = [
    // Hugging Face, OpenAI and its kin, GitHub, GitLab, Slack, Amazon.
    r"(?-u:\b)(?P<s>hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[A-Za-z0-9-]{10,}|AKIA[0-9A-Z]{16})",
    // JSON web tokens.
    r"(?-u:\b)(?P<s>eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})",
    r#"(?i)authorization["']?\s*[:=]\s*\[?\s*(?:b?["'])?(?:(?:bearer|basic|token|digest)\s+)?(?P<s>[^\s"',\]})]{4,})"#,
    r"(?i)(?-u:\b)bearer\s+(?P<s>[\w.~+/=-]{8,})",
    r#"(?i)(?:api[_-]?key|access[_-]?key|secret[_-]?key|client[_-]?secret|password|passwd|(?:hf|auth|access|refresh|api|hub)[_-]?token)["']?\s*(?:[:=]\s*|\s)(?:\[\s*)?[b]?["'](?P<s>[^"'\s]{4,})["']"#,
    r#"(?i)(?:api[_-]?key|access[_-]?key|secret[_-]?key|client[_-]?secret|password|passwd|(?:hf|auth|access|refresh|api|hub)[_-]?token)\s?[=:]\s?(?P<s>[^\s"',;&\[\](){}<>]{6,})"#,
    r"(?i)(?-u:\b)(?:[a-z][a-z0-9+.-]*://[^/\s:@]*:(?P<s>[^/\s@]{3,})@|https://(?:hooks\.slack\.com|discord(?:app)?\.com/api/webhooks)/(?P<t>[\w/-]{6,}))",
];

static KNOWN_FORMS: LazyLock<Vec<Form>> =
    LazyLock::new(|| FORMS.iter().filter_map(|form| Form::new(form)).collect());

/// One of [`FORMS`], and the groups that hold the secret.
#[derive(Debug)]
struct Form {
    regex: meta::Regex,
    groups: Vec<usize>,
}

impl Form {
    fn new(form: &str) -> Option<Self> {
        let regex = meta::Regex::builder()
            .configure(meta::Config::new().utf8_empty(false))
            .syntax(syntax::Config::new().utf8(false))
            .build(form)
            .ok()?;
        let index = |name| regex.group_info().to_index(regex_automata::PatternID::ZERO, name);
        let groups = ["s", "t"].into_iter().filter_map(index).collect();
        Some(Self { regex, groups })
    }

    fn find(&self, text: &[u8], memory: &mut Memory, spans: &mut Vec<Range<usize>>) {
        let mut input = Input::new(text);
        loop {
            self.regex.search_captures_with(&mut memory.cache, &input, &mut memory.captures);
            let Some(found) = memory.captures.get_match() else { return };
            let secret = self.groups.iter().find_map(|group| memory.captures.get_group(*group));
            spans.extend(secret.map(|secret| secret.range()));
            // No form matches nothing, so that every match is a step forward.
            input.set_start(found.end());
        }
    }
}

/// What a search for one form takes.
#[derive(Debug)]
struct Memory {
    cache: meta::Cache,
    captures: Captures,
}

/// Memory for all forms, of nobody who searches now: 400 kB each. The expressions would keep it by themselves, but for every
/// thread of some that ever searched at the same time, and in a run of many attempts, each with threads of its own,
/// that came to 20 MB (docs/measurements-drill.md).
static SPARE: Mutex<Vec<Vec<Memory>>> = Mutex::new(Vec::new());

/// So many are kept: one for who writes the journal, one for who saves evidence.
const SPARES: usize = 2;

fn spare() -> std::sync::MutexGuard<'static, Vec<Vec<Memory>>> {
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find_forms(text: &[u8], spans: &mut Vec<Range<usize>>) {
    let kept = spare().pop();
    let mut memory = kept.unwrap_or_else(|| {
        let of =
            |form: &Form| Memory { cache: form.regex.create_cache(), captures: form.regex.create_captures() };
        KNOWN_FORMS.iter().map(of).collect()
    });
    for (form, memory) in KNOWN_FORMS.iter().zip(&mut memory) {
        form.find(text, memory, spans);
    }
    let mut spare = spare();
    if spare.len() < SPARES {
        spare.push(memory);
    }
}

/// Knows the secrets of one run.
#[derive(Debug, Clone, Default)]
pub struct Redactor {
    values: Vec<String>,
    search: Option<AhoCorasick>,
}

impl Redactor {
    /// Knows only the forms.
    pub fn forms() -> Self {
        Self::default()
    }

    /// Knows these values too.
    pub fn of_values(values: Vec<String>) -> Self {
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&values).ok();
        Self { search: search.filter(|_| !values.is_empty()), values }
    }

    /// Knows the values in these variables and this command line that have secret names.
    pub fn new<'a>(env: impl IntoIterator<Item = (&'a str, &'a str)>, argv: &[String]) -> Self {
        let mut values: Vec<String> = env
            .into_iter()
            .filter(|(name, value)| is_secret_name(name) && is_secret_value(value))
            .map(|(_, value)| value.to_owned())
            .collect();
        let mut named = false;
        for word in argv {
            let value = match word.strip_prefix('-').map(|rest| rest.trim_start_matches('-')) {
                Some(flag) => {
                    let (name, value) = flag.split_once('=').map_or((flag, None), |(n, v)| (n, Some(v)));
                    named = is_secret_name(name);
                    value.filter(|_| named)
                }
                // One flag may have several.
                None => Some(word.as_str()).filter(|_| named),
            };
            values.extend(value.filter(|value| is_secret_value(value)).map(str::to_owned));
        }
        values.sort();
        values.dedup();
        Self::of_values(values)
    }

    /// The values, for those who must look for them in another process.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Where the secrets are, in order and without overlap.
    pub fn spans(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        if let Some(search) = &self.search {
            spans.extend(search.find_iter(text).map(|found| found.range()));
        }
        find_forms(text, &mut spans);
        // The closing bracket ends some forms.
        let hole = REDACTED.trim_end_matches(']').as_bytes();
        spans.retain(|span| !text[span.clone()].starts_with(hole));
        spans.sort_by_key(|span| span.start);
        let mut merged: Vec<Range<usize>> = Vec::new();
        for span in spans {
            match merged.last_mut() {
                Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
                _ => merged.push(span),
            }
        }
        merged
    }

    /// The text without its secrets.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// The same for bytes.
    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let spans = self.spans(bytes);
        if spans.is_empty() {
            return Cow::Borrowed(bytes);
        }
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        for span in spans {
            out.extend_from_slice(&bytes[at..span.start]);
            out.extend_from_slice(REDACTED.as_bytes());
            at = span.end;
        }
        out.extend_from_slice(&bytes[at..]);
        Cow::Owned(out)
    }

    /// The event without secrets in any of its texts.
    pub fn event(&self, kind: EventKind) -> EventKind {
        // Nearly no event holds any, so the cheap question comes first. A structure can hide a form that the text of the whole
        // shows, never the other way round.
        let Ok(line) = serde_json::to_vec(&kind) else { return kind };
        if self.spans(&line).is_empty() {
            return kind;
        }
        let Ok(mut value) = serde_json::from_slice(&line) else { return kind };
        self.value(&mut value);
        serde_json::from_value(value).unwrap_or(kind)
    }

    /// The same for every text in a value, and whatever has a secret name in it.
    pub fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(clean) = self.text(text) {
                    *text = clean;
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|value| self.value(value)),
            Value::Object(map) => {
                for (name, value) in map.iter_mut() {
                    match value {
                        Value::String(text) if is_secret_name(name) && is_secret_value(text) => {
                            *text = REDACTED.to_owned();
                        }
                        value => self.value(value),
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether what has this name, a variable, a flag or a key, is a secret.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let words: Vec<&str> = name.split(['_', '-', '.']).filter(|word| !word.is_empty()).collect();
    let Some(last) = words.last() else { return false };
    if HARMLESS_ENDS.contains(last) {
        return false;
    }
    let key = |pair: &[&str]| {
        pair[1] == "KEY" && ["API", "ACCESS", "PRIVATE", "SIGNING", "AUTH", "ENCRYPTION"].contains(&pair[0])
    };
    words.iter().any(|word| SECRET_WORDS.contains(word)) || words.windows(2).any(key) || *last == "KEY"
}

fn is_secret_value(value: &str) -> bool {
    value.len() >= SHORTEST
        && value != REDACTED
        && !(value.len() < 8 && value.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        Redactor::forms().text(text).into_owned()
    }

    #[test]
    fn names_of_secrets_are_known_and_their_likes_are_not() {
        for name in [
            "HF_TOKEN",
            "OPENAI_API_KEY",
            "api-key",
            "AWS_SECRET_ACCESS_KEY",
            "SLACK_WEBHOOK_URL",
            "DB_PASSWORD",
            "hf-token",
            "GITHUB_PAT",
            "OPENAI_KEY",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "TOKENIZERS_PARALLELISM",
            "tokenizer",
            "max-num-batched-tokens",
            "SSH_AUTH_SOCK",
            "HF_TOKEN_PATH",
            "PATH",
            "KEYBOARD",
            "ssl-keyfile",
            "",
            "_",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn a_known_value_is_found_in_whatever_words() {
        let argv =
            ["serve", "--api-key", "first-key", "second-key", "--port", "8000000", "--token=third-token"];
        let argv: Vec<String> = argv.map(str::to_owned).into();
        let redactor =
            Redactor::new([("DB_PASSWORD", "geheim!"), ("HOME", "/root"), ("X_TOKEN", "on")], &argv);
        assert_eq!(redactor.values(), ["first-key", "geheim!", "second-key", "third-token"]);
        assert_eq!(
            redactor.text("<first-key|second-key>geheim!third-token8000000"),
            "<[redacted]|[redacted]>[redacted]8000000"
        );
    }

    #[test]
    fn every_form_is_valid_and_matches_nothing_empty() {
        assert_eq!(KNOWN_FORMS.len(), FORMS.len());
        for form in KNOWN_FORMS.iter() {
            assert!(!form.regex.is_match("") && !form.groups.is_empty(), "{form:?}");
            assert!(form.regex.find("\u{0}").is_none());
        }
    }

    #[test]
    fn what_a_search_takes_is_kept_for_few_however_many_threads_search_at_once() {
        let all = std::sync::Barrier::new(20);
        let search = || {
            all.wait();
            assert_eq!(clean("HF_TOKEN=geheimnis "), "HF_TOKEN=[redacted] ");
        };
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(search);
            }
        });
        assert!(spare().len() <= SPARES);
    }

    #[test]
    fn secrets_are_known_by_their_form() {
        for (text, expected) in [
            ("token hf_abcdefghijklmnopqrst!", "token [redacted]!"),
            ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer [redacted]"),
            ("{'authorization': 'Basic dXNlcjpwYXNz'}", "{'authorization': 'Basic [redacted]'}"),
            (
                "args: {'api_key': ['my secret', 'x'], 'port': 1}",
                "args: {'api_key': ['my secret', 'x'], 'port': 1}",
            ),
            ("args: {'api_key': ['mysecret'], 'port': 1}", "args: {'api_key': ['[redacted]'], 'port': 1}"),
            ("HF_TOKEN=geheimnis PATH=/bin", "HF_TOKEN=[redacted] PATH=/bin"),
            ("postgres://me:geheim@host/db", "postgres://me:[redacted]@host/db"),
            (
                "POST https://hooks.slack.com/services/T0/B0/xyz 404",
                "POST https://hooks.slack.com/[redacted] 404",
            ),
        ] {
            assert_eq!(clean(text), expected);
            assert_eq!(clean(expected), expected, "redacting twice changes nothing");
        }
    }

    #[test]
    fn what_a_server_says_of_tokens_and_keys_stays() {
        for text in [
            "Avg prompt throughput: 12.0 tokens/s, Running: 3 reqs",
            "max_num_batched_tokens=2048, tokenizer='m', tokenizer_mode=auto, skip_tokenizer_init=False",
            "KeyError: 'model.layers.0.weight'",
            "http://127.0.0.1:8000/v1/completions",
            "The password of the day is not here",
            "INFO 11-24 03:10:01 [api_server.py:1] vLLM API server version 0.15.1",
        ] {
            assert_eq!(clean(text), text);
        }
    }

    #[test]
    fn an_event_loses_its_secrets_and_nothing_else() {
        let redactor = Redactor::of_values(vec!["geheimnis".to_owned()]);
        let env = [("MY_TOKEN", "unknown-but-named"), ("A", "x geheimnis y"), ("B", "z")];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let EventKind::ServerEnvironment { env } = redactor.event(EventKind::ServerEnvironment { env })
        else {
            panic!("another event")
        };
        assert_eq!(env["MY_TOKEN"], REDACTED);
        assert_eq!(env["A"], "x [redacted] y");
        assert_eq!(env["B"], "z");
    }
}
