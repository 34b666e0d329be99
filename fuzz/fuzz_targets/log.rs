//! A server's log: how it is cut changes nothing; the fast search finds exactly the lines that the regular expressions know,
//! line by line; every line keeps its number and offset.
//!
//! 0xFE and a number in the input stand for the example of a rule, 0xFD and a number for a line that begins or ends a part.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::HashMap;
use std::sync::LazyLock;
use varcas_guard::event::{Finding, Phase};
use varcas_guard::health::lines::{Line, LineSplitter};
use varcas_guard::health::log_rules::{LogScanner, Rules, plain, readable};
use varcas_guard::health::log_starts::{Start, Starts};
use varcas_guard_fuzz::{amplified, hash, pieces};

static RULES: LazyLock<Rules> = LazyLock::new(Rules::builtin);

const MARKS: [&str; 6] = [
    "vLLM API server version 0.1",
    "non-default args: {}",
    "INFO:     Application startup complete.",
    "Shutting down FastAPI HTTP server.",
    "Avg generation throughput: 0.0 tokens/s, Running: 4 reqs",
    "\"POST /v1/completions HTTP/1.1\" 200 OK",
];

fn expand(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut bytes = data.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            0xFE => {
                let rules = RULES.rules();
                out.extend_from_slice(
                    rules[usize::from(bytes.next().unwrap_or(0)) % rules.len()].example.as_bytes(),
                );
            }
            0xFD => {
                out.extend_from_slice(MARKS[usize::from(bytes.next().unwrap_or(0)) % MARKS.len()].as_bytes())
            }
            byte => out.push(byte),
        }
    }
    out
}

fn scan<'a>(parts: impl IntoIterator<Item = &'a [u8]>, phase: Option<Phase>) -> (Vec<Finding>, u64) {
    let (mut scanner, mut findings) = (LogScanner::new(), Vec::new());
    for part in parts {
        scanner.read(&RULES, phase, part, &mut findings);
    }
    let lines = scanner.lines();
    scanner.end(&RULES, phase, &mut findings);
    (findings, lines)
}

/// Line by line, without any search for fixed texts.
fn slow(text: &str, phase: Phase) -> Vec<(String, u64, u64, u64)> {
    let (mut counts, mut out, mut offset) = (HashMap::<String, u64>::new(), Vec::new(), 0);
    for (number, line) in text.split('\n').enumerate() {
        if let Some((rule, _)) = RULES.classify(line, phase) {
            let count = counts.entry(rule.id.clone()).or_default();
            *count += 1;
            if *count <= 3 || [10, 100, 1000, 10_000, 100_000].contains(count) {
                out.push((rule.id.clone(), number as u64 + 1, offset, *count));
            }
        }
        offset += line.len() as u64 + 1;
    }
    out
}

fn starts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<Start> {
    let mut starts = Starts::new(&RULES);
    for part in parts {
        starts.push(part);
    }
    starts.finish()
}

fn lines<'a>(parts: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> (Vec<Line>, u64) {
    let (mut splitter, mut lines) = (LineSplitter::new(limit), Vec::new());
    for part in parts {
        splitter.push(part, &mut lines);
    }
    splitter.finish(&mut lines);
    (lines, splitter.discarded())
}

fn check_scanner(text: &[u8], phase: Phase) {
    let whole = scan([text], Some(phase));
    assert_eq!(whole, scan(pieces(text), Some(phase)));
    assert_eq!(whole.1, memchr::memchr_iter(b'\n', text).count() as u64);
}

fn check_search(text: &[u8], phase: Phase) {
    // The scanner looks at 4 KiB before and 64 KiB behind a text; the reference at whole lines.
    if let Ok(text) = std::str::from_utf8(text)
        && text.split('\n').all(|line| line.len() < 4096)
    {
        let found = scan([text.as_bytes()], Some(phase)).0;
        let fast: Vec<_> = found.iter().map(|f| (f.rule.clone(), f.line, f.offset, f.count)).collect();
        assert_eq!(fast, slow(text, phase), "{text}");
    }
}

fn check_starts(text: &[u8]) {
    let parts = starts([text]);
    assert_eq!(parts, starts(pieces(text)));
    let ended = text.last().is_some_and(|byte| *byte != b'\n');
    let breaks = memchr::memchr_iter(b'\n', text).count() as u64;
    assert_eq!(parts.last().expect("never none").last_line, breaks + u64::from(ended));
    assert!(parts.windows(2).all(|pair| pair[0].last_line < pair[1].line));
    let findings = parts.iter().flat_map(|start| start.findings.iter().map(move |finding| (start, finding)));
    for (start, finding) in findings {
        assert!((start.line..=start.last_line).contains(&finding.line), "{start:?}");
        let at = usize::try_from(finding.offset).expect("it is short");
        assert!(at == 0 || text[at - 1] == b'\n', "a finding is told at the beginning of its line");
        assert_eq!(memchr::memchr_iter(b'\n', &text[..at]).count() as u64 + 1, finding.line);
    }
}

fn check_lines(text: &[u8], limit: usize) {
    let cut = lines([text], limit);
    assert_eq!(cut, lines(pieces(text), limit));
    assert!(cut.0.iter().all(|line| line.text.len() <= 3 * limit), "an invalid byte becomes three at most");
    for words in [readable(text), plain(text, limit)] {
        assert!(!words.chars().any(|c| c.is_control() && c != '\t'), "{words:?}");
    }
    assert!(plain(text, limit).len() <= limit + 6);
}

fuzz_target!(|data: &[u8]| {
    let text = expand(data);
    let phase =
        [Phase::Loading, Phase::WarmUp, Phase::Measuring, Phase::Flushing, Phase::Stopping][data.len() % 5];
    // One promise for each input: a search costs much more than the fuzzer.
    match hash(data) % 4 {
        0 => check_scanner(&text, phase),
        1 => check_search(&text, phase),
        2 => check_starts(&text),
        _ => check_lines(&text, 1 + data.first().map_or(0, |byte| usize::from(*byte) % 60)),
    }
    if let Some(long) = amplified(&text) {
        scan(long.chunks(1 << 16), Some(phase));
        starts(long.chunks(1 << 16));
        lines(long.chunks(7), 1 << 20);
    }
});
