//! Prompts of datasets and traces, read from text. Pure; an edge reads the files.

use super::mix::Example;
use serde_json::Value;

/// Reads a dataset: a JSON array in the layout of ShareGPT, or JSONL with one of `prompt`, `text`, `messages` or
/// `conversations` a line. `chars_per_token` turns a known answer into `max_tokens`.
pub fn parse(text: &str, chars_per_token: f64) -> Result<Vec<Example>, String> {
    if text.trim_start().starts_with('[') {
        let all: Vec<Value> = serde_json::from_str(text).map_err(|e| format!("not a JSON array: {e}"))?;
        // Conversations without a question are normal in ShareGPT files; a file without any is not.
        let examples: Vec<Example> = all.iter().filter_map(|v| example(v, chars_per_token)).collect();
        if examples.is_empty() {
            return Err("no entry holds a prompt".to_owned());
        }
        return Ok(examples);
    }
    let mut examples = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        let value: Value =
            serde_json::from_str(line).map_err(|e| format!("line {number} is not JSON: {e}"))?;
        let example = example(&value, chars_per_token).ok_or_else(|| {
            format!("line {number} holds none of \"prompt\", \"text\", \"messages\" and \"conversations\"")
        })?;
        examples.push(example);
    }
    if examples.is_empty() {
        return Err("the file holds no line".to_owned());
    }
    Ok(examples)
}

fn example(value: &Value, chars_per_token: f64) -> Option<Example> {
    let number = |key: &str| value.get(key)?.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    let known = number("max_tokens").or_else(|| number("output_tokens")).or_else(|| number("output_len"));
    let plain = value.get("prompt").or_else(|| value.get("text")).and_then(Value::as_str);
    let (prompt, answer) = match plain {
        Some(prompt) => (prompt, value.get("completion").and_then(Value::as_str)),
        None => {
            let turns = value.get("conversations").or_else(|| value.get("messages"))?.as_array()?;
            let said = |turn: &'_ Value, who: &[&str]| {
                let role = turn.get("from").or_else(|| turn.get("role")).and_then(Value::as_str);
                role.is_some_and(|role| who.contains(&role))
            };
            let first = turns.iter().position(|turn| said(turn, &["human", "user"]))?;
            let text = |turn: &'_ Value| {
                turn.get("value").or_else(|| turn.get("content")).and_then(Value::as_str).map(str::to_owned)
            };
            let answer = turns.get(first + 1).filter(|turn| said(turn, &["gpt", "assistant"])).and_then(text);
            let output = answer.map(|a| ((a.len() as f64 / chars_per_token) as u32).max(1));
            return Some(Example { prompt: text(&turns[first])?, output: known.or(output) });
        }
    };
    let output = answer.map(|a| ((a.len() as f64 / chars_per_token) as u32).max(1));
    Some(Example { prompt: prompt.to_owned(), output: known.or(output) })
}

/// One request of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Traced {
    /// Seconds from the first request of the trace.
    pub at: f64,
    /// Its workload.
    pub workload: String,
    /// Its prompt and `max_tokens`.
    pub example: Example,
    /// Prompt tokens as the trace has them.
    pub input: u32,
}

/// Reads a trace: the `prompts` of an exported trace or the `records` of a result of the user's harness.
pub fn parse_trace(text: &str) -> Result<Vec<Traced>, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
    let (rows, time, prompt, workload) = match (value.get("prompts"), value.get("records")) {
        (Some(rows), _) => (rows, "timestamp", "prompt", "workload_type"),
        (None, Some(rows)) => (rows, "timestamp_sent", "prompt_text", "workload_name"),
        (None, None) => return Err("it has neither \"prompts\" nor \"records\"".to_owned()),
    };
    let rows = rows.as_array().ok_or("its requests are not a list")?;
    let mut traced = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let missing = |key: &str| format!("request {} of the trace has no {key}", index + 1);
        let count = |key: &str| row.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let at = row.get(time).and_then(Value::as_f64).ok_or_else(|| missing(time))?;
        let text = row.get(prompt).and_then(Value::as_str).ok_or_else(|| missing(prompt))?;
        let output = count("max_tokens").or_else(|| count("output_tokens")).filter(|n| *n > 0);
        traced.push(Traced {
            at,
            workload: row.get(workload).and_then(Value::as_str).unwrap_or("trace").to_owned(),
            input: count("input_tokens").unwrap_or((text.len() / 4) as u32).max(1),
            example: Example { prompt: text.to_owned(), output: output.or(Some(16)) },
        });
    }
    if traced.is_empty() {
        return Err("it holds no request".to_owned());
    }
    traced.sort_by(|a, b| a.at.total_cmp(&b.at));
    let first = traced[0].at;
    for row in &mut traced {
        row.at -= first;
    }
    Ok(traced)
}
