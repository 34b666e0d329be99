//! A journal that somebody else wrote: every line is an event or is named with its reason; an event survives being written
//! again; the machine takes every fact, and the report can be made of whatever there is.
//!
//! 0xFE and a number in the input stand for a line of the journal in the fixtures.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::cell::RefCell;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use varcas_guard::cli::replay::replay;
use varcas_guard::event::{Event, words};
use varcas_guard::recovery::report::series::Series;
use varcas_guard::recovery::report::{View, html, markdown, model};
use varcas_guard::supervisor::journal;
use varcas_guard_fuzz::hash;

const FIXTURE: &str = include_str!("../../tests/fixtures/journal-v1.jsonl");

thread_local! {
    /// It has no name, so nothing is left of it.
    static FILE: RefCell<File> = RefCell::new(tempfile::tempfile_in("/dev/shm").expect("shared memory takes a file"));
}

fn expand(data: &[u8]) -> Vec<u8> {
    let lines: Vec<&str> = FIXTURE.lines().collect();
    let mut out = Vec::with_capacity(data.len());
    let mut bytes = data.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            0xFE => {
                out.extend_from_slice(lines[usize::from(bytes.next().unwrap_or(0)) % lines.len()].as_bytes());
                out.push(b'\n');
            }
            byte => out.push(byte),
        }
    }
    out
}

fn read(text: &[u8]) -> journal::Read {
    FILE.with_borrow_mut(|file| {
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text))
            .expect("memory takes it");
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        journal::read(path.as_ref()).expect("the file can be read")
    })
}

fuzz_target!(|data: &[u8]| {
    let text = expand(data);
    let found = read(&text);
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
    assert_eq!(found.events.len() + found.unread.len(), lines);
    assert!(found.unread.iter().all(|(line, why)| *line >= 1 && !why.is_empty()));
    for event in &found.events {
        let json = serde_json::to_vec(event).expect("an event can be written");
        let again: Event = serde_json::from_slice(&json)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&json)));
        let twice = serde_json::to_vec(&again).expect("an event can be written");
        // Times finer than a microsecond are rounded once; then nothing changes any more.
        let third: Event = serde_json::from_slice(&twice).expect("an event can be read");
        assert_eq!(third, again, "{}", String::from_utf8_lossy(&json));
        words::sentence(&event.kind);
    }
    if hash(data).is_multiple_of(4) {
        // What was concluded is concluded again from what was written.
        let again = replay(&found.events);
        assert_eq!(replay(&again), again);
    }
    if hash(data) % 64 == 1 {
        let report = model::build(&found.events);
        serde_json::to_string(&report).expect("a report can be written");
        let mut series = Series::default();
        found.events.iter().for_each(|event| series.push(event));
        series.finish();
        let view = View::new(&report, &series);
        html::render(&view);
        markdown::render(&view);
    }
});
