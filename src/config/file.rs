//! guard.toml: read whole, every mistake reported with its line.

use super::settings::{self, Kind, SETTINGS, Setting};
use super::{OwnWorkload, Plan};
use toml::de::{DeTable, DeValue};

type Spanned<'a> = toml::Spanned<DeValue<'a>>;

/// Reads `text` into `plan` and returns every mistake as `NAME:LINE: what is wrong`. What was wrong is left as it was.
pub fn read(plan: &mut Plan, name: &str, text: &str) -> Vec<String> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { plan, name, text, problems: Vec::new() };
    for error in errors {
        reader.problem(error.span().map_or(0, |span| span.start), error.message());
    }
    // After a syntax error the rest may be misread; still, what can be read is checked.
    reader.table("", table.get_ref());
    let mut problems = reader.problems;
    problems.sort_by_key(|(at, _)| *at);
    problems.dedup();
    problems.into_iter().map(|(_, problem)| problem).collect()
}

struct Reader<'a> {
    plan: &'a mut Plan,
    name: &'a str,
    text: &'a str,
    problems: Vec<(usize, String)>,
}

impl Reader<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|b| **b == b'\n').count() + 1
    }

    fn problem(&mut self, at: usize, what: impl std::fmt::Display) {
        let line = self.line(at);
        self.problems.push((at, format!("{}:{line}: {what}", self.name)));
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let full = if prefix.is_empty() {
                key.get_ref().to_string()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            match (settings::by_key(&full), value.get_ref()) {
                (Some(setting), _) => self.value(setting, value),
                (None, DeValue::Table(inner)) if is_section(&full) => self.table(&full, inner),
                (None, _) => {
                    let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
                    // The right name in the wrong section is the commonest slip.
                    let last = full.rsplit('.').next().unwrap_or(&full);
                    let twin = known.iter().find(|key| key.rsplit('.').next() == Some(last));
                    let hint = match twin {
                        Some(key) => format!("; did you mean `{key}`?"),
                        None => settings::suggestion(&full, &known),
                    };
                    self.problem(key.span().start, format!("unknown key `{full}`{hint}"));
                }
            }
        }
    }

    fn value(&mut self, setting: &Setting, value: &Spanned<'_>) {
        let at = value.span().start;
        let result = match (setting.kind, value.get_ref()) {
            (Kind::Words(set), DeValue::Array(items)) => {
                let words: Option<Vec<String>> =
                    items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
                match words {
                    Some(words) => {
                        set(self.plan, words);
                        Ok(())
                    }
                    None => Err("every item must be a text in quotes".to_owned()),
                }
            }
            (Kind::Spans(_), DeValue::Array(items)) => {
                let words: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
                match words {
                    Some(words) => settings::set_text(self.plan, setting, &words.join(",")),
                    None => Err("every item must be a duration in quotes, like \"30s\"".to_owned()),
                }
            }
            (Kind::Words(_), _) => Err("must be a list of texts, like [\"--dtype\", \"half\"]".to_owned()),
            (Kind::Pairs(set), DeValue::Table(pairs)) => {
                for (key, value) in pairs {
                    match value.get_ref().as_str() {
                        Some(text) => set(self.plan, key.get_ref().to_string(), text.to_owned()),
                        None => self.problem(
                            value.span().start,
                            format!("`{}.{}` must be a text in quotes", setting.key, key.get_ref()),
                        ),
                    }
                }
                Ok(())
            }
            (Kind::Pairs(_), _) => Err("must be a table of texts".to_owned()),
            (Kind::Tables(set), DeValue::Array(items)) => {
                let tables = items.iter().map(|item| match item.get_ref() {
                    DeValue::Table(_) => {
                        Ok(OwnWorkload { line: self.line(item.span().start), table: json(item.get_ref())? })
                    }
                    other => Err(format!("every item must be a table, not a {}", other.type_str())),
                });
                tables.collect::<Result<_, String>>().map(|tables| set(self.plan, tables))
            }
            (Kind::Tables(_), _) => Err(format!("must be tables, each under [[{}]]", setting.key)),
            (Kind::Flag(set), DeValue::Boolean(on)) => {
                set(self.plan, *on);
                Ok(())
            }
            (Kind::Flag(_), _) => Err("must be true or false".to_owned()),
            (_, DeValue::String(text)) => settings::set_text(self.plan, setting, text),
            (Kind::Whole(..) | Kind::Real(..), DeValue::Integer(number)) => {
                settings::set_text(self.plan, setting, number.as_str())
            }
            (Kind::Real(..) | Kind::Share(..), DeValue::Float(number)) => {
                settings::set_text(self.plan, setting, number.as_str())
            }
            (Kind::Span(..), DeValue::Integer(number)) => {
                Err(format!("{number} has no unit: write \"{number}s\" or \"{number}m\""))
            }
            (_, other) => Err(format!("must not be a {}", other.type_str())),
        };
        if let Err(problem) = result {
            self.problem(at, format!("`{}`: {problem}", setting.key));
        }
    }
}

/// The same value in JSON.
fn json(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match value {
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Integer(number) => Value::from(
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| format!("`{number}` is too large"))?,
        ),
        DeValue::Float(number) => {
            Value::from(number.as_str().parse::<f64>().map_err(|_| format!("`{number}` is not a number"))?)
        }
        DeValue::Boolean(on) => Value::from(*on),
        DeValue::Datetime(_) => return Err("a date has no meaning here".to_owned()),
        DeValue::Array(items) => items.iter().map(|item| json(item.get_ref())).collect::<Result<_, _>>()?,
        DeValue::Table(table) => Value::Object(
            table
                .iter()
                .map(|(key, value)| Ok((key.get_ref().to_string(), json(value.get_ref())?)))
                .collect::<Result<_, String>>()?,
        ),
    })
}

fn is_section(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}
