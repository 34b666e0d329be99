//! What a setting is when nobody sets it, and what may be written there: in the notation of guard.toml, found by trying the
//! setter on a plan, so that it cannot differ from what the plan really does.

use super::Plan;
use super::settings::{self, Kind, Setting};
use serde_json::Value;
use std::time::Duration;

/// The value without any file or flag. `None` if it is unset, or if the setting stands for several others.
pub fn default_of(setting: &Setting) -> Option<String> {
    let before = Plan::default();
    let plain = serde_json::to_value(&before).ok()?;
    // One of the samples is not the default.
    let changed = samples(&setting.kind).into_iter().find_map(|sample| {
        let mut plan = before.clone();
        settings::set_text(&mut plan, setting, &sample).ok()?;
        let changed = serde_json::to_value(&plan).ok()?;
        (changed != plain).then_some(changed)
    })?;
    let mut old = Vec::new();
    differences(&plain, &changed, &mut old);
    match &old[..] {
        [value] => toml_of(value, &setting.kind),
        _ => None,
    }
}

/// The type and its bounds, for people.
pub fn type_of(setting: &Setting) -> String {
    match setting.kind {
        Kind::Text(_) => "text".to_owned(),
        Kind::Choice(words, _) => {
            words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
        }
        Kind::Whole(min, u64::MAX, _) => format!("whole number, at least {min}"),
        Kind::Whole(min, max, _) => format!("whole number, {min} to {max}"),
        Kind::Real(min, max, _) => format!("number, {min} to {max}"),
        Kind::Span(min, _) if min.is_zero() => "duration".to_owned(),
        Kind::Span(min, _) => format!("duration, at least {}", crate::time::human(min)),
        Kind::Share(min, max, _) => format!("share, {}% to {}%", super::percent(min), super::percent(max)),
        Kind::Size(..) => "size".to_owned(),
        Kind::Spans(_) => "list of durations".to_owned(),
        Kind::Flag(_) => "true or false".to_owned(),
        Kind::Tables(_) => "list of tables".to_owned(),
        Kind::Words(_) => "list of texts".to_owned(),
        Kind::Pairs(_) => "table of texts".to_owned(),
    }
}

fn samples(kind: &Kind) -> Vec<String> {
    match kind {
        Kind::Text(_) => vec!["\u{1}".to_owned()],
        Kind::Choice(words, _) => words.iter().map(|word| (*word).to_owned()).collect(),
        Kind::Whole(min, max, _) => vec![min.to_string(), max.to_string()],
        Kind::Real(min, max, _) | Kind::Share(min, max, _) => vec![min.to_string(), max.to_string()],
        Kind::Span(..) => vec!["77777s".to_owned()],
        Kind::Size(..) => vec!["77777MB".to_owned()],
        Kind::Spans(_) => vec!["77777s".to_owned()],
        Kind::Flag(_) => vec!["true".to_owned(), "false".to_owned()],
        Kind::Tables(_) | Kind::Words(_) | Kind::Pairs(_) => Vec::new(),
    }
}

/// What was there before, at each place where the two differ.
fn differences(old: &Value, new: &Value, found: &mut Vec<Value>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            for key in after.keys().chain(before.keys().filter(|key| !after.contains_key(*key))) {
                differences(
                    before.get(key).unwrap_or(&Value::Null),
                    after.get(key).unwrap_or(&Value::Null),
                    found,
                );
            }
        }
        _ if old != new => found.push(old.clone()),
        _ => {}
    }
}

fn toml_of(value: &Value, kind: &Kind) -> Option<String> {
    let span = |seconds: f64| format!("\"{}\"", short(Duration::from_secs_f64(seconds)));
    Some(match (kind, value) {
        (_, Value::Null) => return None,
        // Empty: filled with something when it is needed.
        (_, Value::Array(items)) if items.is_empty() => return None,
        // The word stands for other settings.
        (Kind::Choice(..), value) if !value.is_string() => return None,
        (Kind::Span(..), Value::Number(number)) => span(number.as_f64()?),
        (Kind::Size(..), Value::Number(number)) => match number.as_u64()? {
            bytes if bytes % 1_000_000_000 == 0 => format!("\"{}GB\"", bytes / 1_000_000_000),
            bytes => format!("\"{}MB\"", bytes / 1_000_000),
        },
        (Kind::Spans(_), Value::Array(items)) => {
            let items: Option<Vec<String>> = items.iter().map(|item| item.as_f64().map(span)).collect();
            format!("[{}]", items?.join(", "))
        }
        (Kind::Share(..), Value::Number(number)) => format!("\"{}%\"", super::percent(number.as_f64()?)),
        (_, Value::String(_) | Value::Number(_) | Value::Bool(_)) => value.to_string(),
        _ => return None,
    })
}

/// As people write it: `90s`, `10m`, `250ms`.
fn short(span: Duration) -> String {
    match span.as_millis() {
        millis if millis % 1000 != 0 => format!("{millis}ms"),
        millis if millis >= 300_000 && millis % 60_000 == 0 => format!("{}m", millis / 60_000),
        millis => format!("{}s", millis / 1000),
    }
}
