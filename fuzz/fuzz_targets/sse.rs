//! Server-sent events: the same events as a slow reader written from the HTML standard, however the bytes are cut; what an
//! event means agrees with a reading of its whole JSON value.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use varcas_guard::workload::load::stream::{Finish, Meaning, SseParser, Usage, interpret};
use varcas_guard_fuzz::{amplified, pieces};

fn events<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let (mut parser, mut events) = (SseParser::default(), Vec::new());
    for part in parts {
        parser.push(part, |data| events.push(data.to_vec())).expect("the input is short");
    }
    events
}

/// The standard's algorithm on the whole text: split into lines, then walk.
fn slow(mut data: &[u8]) -> Vec<Vec<u8>> {
    // A byte-order mark counts only when its line is complete, as everything does.
    data = data.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(data);
    let mut lines = vec![Vec::new()];
    let mut at = 0;
    while at < data.len() {
        match data[at] {
            b'\r' => {
                lines.push(Vec::new());
                at += usize::from(data.get(at + 1) == Some(&b'\n'));
            }
            b'\n' => lines.push(Vec::new()),
            byte => lines.last_mut().expect("never empty").push(byte),
        }
        at += 1;
    }
    lines.pop();
    let (mut events, mut buffer): (_, Option<Vec<u8>>) = (Vec::new(), None);
    for line in lines {
        if line.is_empty() {
            events.extend(buffer.take());
            continue;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (field, value) = match colon {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &b""[..]),
        };
        if field == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut buffer {
                Some(buffer) => {
                    buffer.push(b'\n');
                    buffer.extend_from_slice(value);
                }
                None => buffer = Some(value.to_vec()),
            }
        }
    }
    events
}

/// Keys that stand twice, or fields of unusual type, are judged by the fast reader alone.
fn is_plain(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    let word = |value: Option<&Value>| value.is_none_or(|v| v.is_string() || v.is_null());
    let choice = |choice: &Value| {
        let delta = choice.get("delta");
        choice.is_object()
            && word(choice.get("text"))
            && word(choice.get("finish_reason"))
            && delta.is_none_or(|delta| {
                delta.is_null()
                    || (delta.is_object()
                        && ["content", "reasoning_content", "reasoning"]
                            .iter()
                            .all(|key| word(delta.get(key))))
            })
    };
    object.get("error").is_none_or(Value::is_null)
        && word(object.get("object"))
        && object.get("object").is_none_or(|object| object != "error")
        && object.get("choices").is_some_and(|c| c.as_array().is_some_and(|c| c.iter().all(choice)))
        && object.get("usage").is_none_or(|usage| {
            usage.is_null()
                || (usage.is_object()
                    && ["prompt_tokens", "completion_tokens"]
                        .iter()
                        .all(|key| usage.get(key).is_none_or(Value::is_u64)))
        })
}

fn meaning(value: &Value) -> Meaning {
    let choices = value["choices"].as_array().expect("checked");
    let length = |value: &Value| value.as_str().map_or(0, str::len);
    let sum = |choice: &Value| {
        let delta = &choice["delta"];
        length(&choice["text"])
            + length(&delta["content"])
            + length(&delta["reasoning_content"])
            + length(&delta["reasoning"])
    };
    let finish = choices.iter().find_map(|choice| choice["finish_reason"].as_str());
    let usage = value.get("usage").filter(|usage| !usage.is_null());
    let count = |usage: &Value, key: &str| usage.get(key).and_then(Value::as_u64).unwrap_or(0);
    Meaning::Piece {
        text_bytes: choices.iter().map(sum).sum(),
        has_text: choices.iter().any(|choice| choice["text"].is_string()),
        finish: finish.map(|word| match word {
            "stop" => Finish::Stop,
            "length" => Finish::Length,
            "abort" | "error" => Finish::Abort,
            _ => Finish::Other,
        }),
        usage: usage.map(|usage| Usage {
            prompt_tokens: count(usage, "prompt_tokens"),
            completion_tokens: count(usage, "completion_tokens"),
        }),
    }
}

fn check(data: &[u8]) {
    let found = interpret(data);
    if let Ok(value) = serde_json::from_slice::<Value>(data)
        && is_plain(&value)
        // serde_json keeps the last of two equal keys, the fast reader refuses them.
        && found != Meaning::Unreadable
    {
        assert_eq!(found, meaning(&value), "{}", String::from_utf8_lossy(data));
    }
    if let Meaning::Piece { text_bytes, .. } = found {
        assert!(text_bytes <= data.len());
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = events([data]);
    assert_eq!(whole, slow(data));
    assert_eq!(whole, events(pieces(data)));
    for event in &whole {
        check(event);
    }
    check(data);
    if let Some(long) = amplified(data) {
        events(long.chunks(7));
        interpret(&long);
    }
});
