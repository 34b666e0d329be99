//! One window over all ranks as one trace. Pure and streaming: each part is read twice, first for what stands around its events,
//! then event by event; memory does not depend on the files.
//!
//! What must differ between ranks is made to differ, and stays readable: every rank gets a block of process, thread, flow and
//! correlation numbers (the first rank keeps its own), texts in such places get the rank in front, and process names say the rank.
//! Times need no guess: Kineto counts from `baseTimeNanoseconds`, and all ranks of a host from the same clock.

use super::read::{Elements, document};
use serde::de::SeqAccess;
use serde_json::{Map, Number, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

/// End of the name of a merged trace.
pub const MERGED: &str = "-merged.pt.trace.json.gz";

/// Block of process and thread numbers of a rank. Linux knows no pid above 4,194,304.
const BLOCK: i64 = 10_000_000;
/// Kineto's pseudo processes and devices may have small negative numbers; they go to the end of the block.
const NEGATIVES: i64 = 1000;
/// Block of flow and correlation numbers, which have 32 bits; a browser counts exactly up to 2^53.
const IDS: i64 = 1 << 36;
/// So many processes of a trace are looked after; real ones have a handful.
const MAX_PROCESSES: usize = 4096;
/// Members of `args` that point to another event of the same trace.
const LINKS: [&str; 4] = ["correlation", "External id", "Python id", "Python parent id"];
/// Where Kineto sorts GPUs, and its own marks.
const GPU_ORDER: i64 = 5_000_000;
const MARKS_ORDER: i64 = 536_870_912;

/// One rank's trace.
pub struct Part<'a> {
    /// As messages and metadata call it.
    pub file: String,
    /// Its rank.
    pub rank: u32,
    /// Opens it, decompressed; called twice.
    pub open: &'a dyn Fn() -> io::Result<Box<dyn Read>>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Ranks.
    pub parts: usize,
    /// Events of all of them.
    pub events: u64,
}

/// Why there is no merged trace.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// One of the parts cannot be read.
    #[error("{file} is not a complete trace in strict JSON: {error}")]
    Part {
        /// Which.
        file: String,
        /// Why.
        error: serde_json::Error,
    },
    /// One of the parts cannot be opened.
    #[error("cannot open {file}: {error}")]
    Open {
        /// Which.
        file: String,
        /// Why.
        error: io::Error,
    },
    /// Some have a base for their times and some have not.
    #[error(
        "the times cannot be aligned: {with} counts from baseTimeNanoseconds and {without} does not say from when"
    )]
    Base {
        /// One that has.
        with: String,
        /// One that has not.
        without: String,
    },
    /// Fewer than two parts, or one rank twice.
    #[error("{0}")]
    Nothing(String),
    /// The output cannot be written.
    #[error("cannot write the merged trace: {0}")]
    Write(#[from] io::Error),
}

/// Joins `parts` into one trace called `name`.
pub fn merge(parts: &[Part<'_>], name: &str, out: &mut dyn Write) -> Result<Merged, MergeError> {
    let ranks: BTreeSet<u32> = parts.iter().map(|part| part.rank).collect();
    if ranks.len() != parts.len() {
        return Err(MergeError::Nothing("two of the traces are of the same rank".to_owned()));
    }
    let heads = parts.iter().map(head).collect::<Result<Vec<_>, _>>()?;
    let bases: Vec<Option<i64>> =
        heads.iter().map(|(members, _)| members.get("baseTimeNanoseconds").and_then(Value::as_i64)).collect();
    let base = common_base(parts, &bases)?;
    write_head(parts, heads, base, out)?;
    let (mut events, mut first) = (0, true);
    for (index, (part, own)) in parts.iter().zip(&bases).enumerate() {
        // A handful of ranks.
        let block = i64::try_from(index).unwrap_or(i64::MAX);
        let mut writer = Writer {
            rank: part.rank,
            block,
            shift_ns: own.zip(base).map_or(0, |(own, base)| own.saturating_sub(base)),
            first,
            processes: BTreeMap::new(),
            events: 0,
            failed: None,
            line: Vec::new(),
            out: &mut *out,
        };
        let read = document(open(part)?, |_| false, &mut writer);
        writer.name_the_nameless();
        events += writer.events;
        first = writer.first;
        if let Some(error) = writer.failed {
            return Err(error.into());
        }
        read.map_err(|error| MergeError::Part { file: part.file.clone(), error })?;
    }
    write!(out, "\n  ],\n  \"traceName\": {}\n}}\n", Value::from(name))?;
    Ok(Merged { parts: parts.len(), events })
}

fn open(part: &Part<'_>) -> Result<Box<dyn Read>, MergeError> {
    (part.open)().map_err(|error| MergeError::Open { file: part.file.clone(), error })
}

/// Everything of a trace but its events, and how many those are.
fn head(part: &Part<'_>) -> Result<(Map<String, Value>, u64), MergeError> {
    struct Count(u64);
    impl Elements for Count {
        fn next<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
            let more = list.next_element::<serde::de::IgnoredAny>()?.is_some();
            self.0 += u64::from(more);
            Ok(more)
        }
    }
    let mut count = Count(0);
    let members = document(open(part)?, |_| true, &mut count)
        .map_err(|error| MergeError::Part { file: part.file.clone(), error })?;
    Ok((members, count.0))
}

/// The earliest, so that no time becomes negative. None if no part has one: then all count from 1970.
fn common_base(parts: &[Part<'_>], bases: &[Option<i64>]) -> Result<Option<i64>, MergeError> {
    let name = |known: bool| {
        let at = bases.iter().position(|base| base.is_some() == known);
        at.and_then(|at| parts.get(at)).map(|part| part.file.clone())
    };
    if let (Some(with), Some(without)) = (name(true), name(false)) {
        return Err(MergeError::Base { with, without });
    }
    Ok(bases.iter().flatten().min().copied())
}

fn write_head(
    parts: &[Part<'_>],
    heads: Vec<(Map<String, Value>, u64)>,
    base: Option<i64>,
    out: &mut dyn Write,
) -> Result<(), MergeError> {
    let mut devices: Vec<Value> = Vec::new();
    let mut list: Vec<Value> = Vec::new();
    for (part, (mut members, events)) in parts.iter().zip(heads) {
        if let Some(Value::Array(own)) = members.remove("deviceProperties") {
            devices.extend(own.into_iter().filter(|device| !devices.contains(device)).collect::<Vec<_>>());
        }
        list.push(json!({"file": part.file, "rank": part.rank, "events": events, "metadata": members}));
    }
    writeln!(out, "{{\n  \"schemaVersion\": 1,\n  \"deviceProperties\": {},", Value::Array(devices))?;
    writeln!(out, "  \"varcas_merged\": {},\n  \"displayTimeUnit\": \"ms\",", Value::Array(list))?;
    if let Some(base) = base {
        writeln!(out, "  \"baseTimeNanoseconds\": {base},")?;
    }
    write!(out, "  \"traceEvents\": [")?;
    Ok(())
}

struct Writer<'a> {
    rank: u32,
    block: i64,
    shift_ns: i64,
    first: bool,
    /// New number, and whether somebody named it.
    processes: BTreeMap<i64, bool>,
    events: u64,
    failed: Option<io::Error>,
    line: Vec<u8>,
    out: &'a mut dyn Write,
}

impl Elements for Writer<'_> {
    fn next<'de, A: SeqAccess<'de>>(&mut self, list: &mut A) -> Result<bool, A::Error> {
        let Some(mut event) = list.next_element::<Map<String, Value>>()? else { return Ok(false) };
        self.events += 1;
        self.change(&mut event);
        self.write(event);
        // The reading goes on for the sake of its own errors; the caller looks at `failed` first.
        Ok(true)
    }
}

impl Writer<'_> {
    fn write(&mut self, event: Map<String, Value>) {
        if self.failed.is_some() {
            return;
        }
        let border = if std::mem::take(&mut self.first) { "\n  " } else { ",\n  " };
        // A compressor dislikes being fed in crumbs.
        self.line.clear();
        self.line.extend_from_slice(border.as_bytes());
        let written = serde_json::to_writer(&mut self.line, &event).map_err(io::Error::from);
        self.failed = written.and_then(|()| self.out.write_all(&self.line)).err();
    }

    fn change(&mut self, event: &mut Map<String, Value>) {
        let original = event.get("pid").cloned();
        for key in ["pid", "tid"] {
            if let Some(value) = event.get_mut(key) {
                *value = self.place(value);
            }
        }
        for key in ["id", "bind_id"] {
            if let Some(value) = event.get_mut(key) {
                *value = self.link(value);
            }
        }
        if let Some(value) = event.get_mut("ts")
            && self.shift_ns != 0
        {
            shift(value, self.shift_ns);
        }
        let meta = event.get("ph").and_then(Value::as_str) == Some("M");
        let named = meta && event.get("name").and_then(Value::as_str) == Some("process_name");
        let ordered = meta && event.get("name").and_then(Value::as_str) == Some("process_sort_index");
        if let Some(pid) = event.get("pid").and_then(Value::as_i64)
            && (self.processes.len() < MAX_PROCESSES || self.processes.contains_key(&pid))
        {
            *self.processes.entry(pid).or_default() |= named;
        }
        let Some(Value::Object(args)) = event.get_mut("args") else { return };
        for key in LINKS {
            if let Some(value) = args.get_mut(key) {
                *value = self.link(value);
            }
        }
        if named && let Some(name) = args.get_mut("name") {
            *name = process_name(self.rank, name.as_str().unwrap_or_default(), original.as_ref()).into();
        }
        if ordered && let Some(order) = args.get_mut("sort_index") {
            *order = self.order(order.as_i64().unwrap_or(MARKS_ORDER)).into();
        }
    }

    /// A process or thread.
    fn place(&self, value: &Value) -> Value {
        match value.as_i64() {
            Some(number) if (-NEGATIVES..BLOCK - NEGATIVES).contains(&number) => {
                (self.block.saturating_mul(BLOCK) + number.rem_euclid(BLOCK)).into()
            }
            Some(number) => self.text(&number.to_string()),
            None => self.other(value),
        }
    }

    /// A number that stands for another event.
    fn link(&self, value: &Value) -> Value {
        match value.as_i64() {
            // 0 is Kineto's "none".
            Some(0) => value.clone(),
            Some(number) if (0..IDS).contains(&number) => (self.block.saturating_mul(IDS) + number).into(),
            Some(number) => self.text(&number.to_string()),
            None => self.other(value),
        }
    }

    fn other(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(text),
            Value::Number(number) => self.text(&number.to_string()),
            other => other.clone(),
        }
    }

    fn text(&self, text: &str) -> Value {
        format!("rank {}: {text}", self.rank).into()
    }

    /// Rank after rank, the host first, then its GPUs, then the profiler's own marks.
    fn order(&self, own: i64) -> i64 {
        let within = match own {
            _ if own < GPU_ORDER => 0,
            _ if own < MARKS_ORDER => 1 + (own - GPU_ORDER).min(90),
            _ => 99,
        };
        self.block * 100 + within
    }

    /// A cut trace has lost the names, which stand at the end; the rank must be seen all the same.
    fn name_the_nameless(&mut self) {
        let nameless: Vec<i64> = std::mem::take(&mut self.processes)
            .into_iter()
            .filter(|(_, named)| !named)
            .map(|(pid, _)| pid)
            .collect();
        for pid in nameless {
            let place = pid.rem_euclid(BLOCK);
            let own = if place < BLOCK - NEGATIVES { place } else { place - BLOCK };
            let name = process_name(self.rank, "", Some(&own.into()));
            let event = json!({"name": "process_name", "ph": "M", "ts": 0, "pid": pid, "tid": 0, "args": {"name": name}});
            if let Value::Object(event) = event {
                self.write(event);
            }
        }
    }
}

fn process_name(rank: u32, name: &str, pid: Option<&Value>) -> String {
    let pid = match pid {
        Some(Value::Number(pid)) => format!(" [{pid}]"),
        _ => String::new(),
    };
    format!("rank {rank}: {}{pid}", if name.is_empty() { "process" } else { name })
}

/// Moves a time in microseconds, exactly to the nanosecond.
fn shift(value: &mut Value, by_ns: i64) {
    let Some(us) = value.as_f64() else { return };
    let whole = value.as_i64().map(|us| i128::from(us) * 1000);
    #[expect(clippy::cast_possible_truncation, reason = "times of traces are far below")]
    let ns = whole.unwrap_or_else(|| (us * 1000.0).round() as i128).saturating_add(by_ns.into());
    let exact = (ns % 1000 == 0).then(|| i64::try_from(ns / 1000).ok()).flatten().map(Number::from);
    #[expect(clippy::cast_precision_loss, reason = "a trace's own times are such numbers")]
    if let Some(number) = exact.or_else(|| Number::from_f64(ns as f64 / 1000.0)) {
        *value = Value::Number(number);
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
