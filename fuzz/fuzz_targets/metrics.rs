//! The text format of Prometheus: the same as a slow reader written from the format's description, never a number that is
//! none, whatever the page holds, and in time that grows with the page.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use varcas_guard::event::{EngineSample, Reading};
use varcas_guard::health::metrics::parse;

const NAMES: [&[&str]; 6] = [
    &["vllm:iteration_tokens_total_count"],
    &["vllm:prompt_tokens_total"],
    &["vllm:generation_tokens_total"],
    &["vllm:num_requests_running"],
    &["vllm:num_requests_waiting"],
    &["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"],
];

/// Name and value of a line, character by character.
fn line(text: &str) -> Option<(String, String)> {
    let mut characters = text.trim_start().chars().peekable();
    let mut name = String::new();
    while let Some(character) = characters.next_if(|c| !matches!(c, '{' | ' ' | '\t')) {
        name.push(character);
    }
    if characters.peek()? == &'{' {
        let (mut quoted, mut escaped) = (false, false);
        loop {
            let character = characters.next()?;
            if escaped {
                escaped = false;
            } else if quoted && character == '\\' {
                escaped = true;
            } else if character == '"' {
                quoted = !quoted;
            } else if character == '}' && !quoted {
                break;
            }
        }
    }
    let rest: String = characters.collect();
    let value = rest.split(|c: char| c.is_ascii_whitespace()).find(|word| !word.is_empty())?;
    Some((name, value.to_owned()))
}

/// None if any value of interest is no number or any series is missing.
fn slow(text: &str) -> Option<EngineSample> {
    let mut values: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for text in text.lines() {
        let Some((name, value)) = line(text) else { continue };
        let Some(slot) = NAMES.iter().position(|names| names.contains(&name.as_str())) else { continue };
        let number: f64 = value.parse().ok()?;
        values.entry(slot).or_default().push(number);
    }
    let all: Vec<f64> = (0..6)
        .map(|slot| {
            let values = values.get(&slot)?;
            let one = if slot == 5 {
                values.iter().copied().reduce(f64::max)?
            } else {
                values.iter().copied().reduce(|a, b| a + b)?
            };
            values.iter().all(|value| value.is_finite()).then_some(one).filter(|one| one.is_finite())
        })
        .collect::<Option<_>>()?;
    Some(EngineSample {
        iterations: all[0],
        prompt_tokens: all[1],
        generation_tokens: all[2],
        running: all[3],
        waiting: all[4],
        kv_usage: all[5],
    })
}

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let fast = parse(&text);
    match (&fast, slow(&text)) {
        (Reading::Value(fast), Some(slow)) => assert_eq!(*fast, slow),
        (Reading::Unavailable { why }, None) => assert!(!why.is_empty()),
        (fast, slow) => panic!("{fast:?} and {slow:?} of {text}"),
    }
    if let Reading::Value(sample) = fast {
        // The journal must be able to hold it.
        let json = serde_json::to_string(&Reading::Value(sample)).expect("a sample can be written");
        assert!(serde_json::from_str::<Reading<EngineSample>>(&json).is_ok(), "{json}");
    }
    if let Some(long) = varcas_guard_fuzz::amplified(data) {
        parse(&String::from_utf8_lossy(&long));
    }
});
