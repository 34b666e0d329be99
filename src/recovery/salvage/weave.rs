//! Makes the salvaged trace: a head that says what was lost, the events, what a cut trace lacks (names of processes
//! and threads, the other end of arrows), a foot. Always the object form, because only that has room for the marks.
//!
//! Pure: it writes to whatever it is given.

use super::facts::{Facts, Lane, flow_id};
use super::scan::Event;
use super::stream::{Part, Sink};
use serde::Serialize;
use std::collections::HashSet;
use std::io::{self, Write};

/// Entries behind the events are held until the end, up to this many bytes.
const FOOT: usize = 1 << 20;

/// What the output says about itself, under the key `salvaged`.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    /// Program and version.
    pub by: String,
    /// File name of the half it was made from.
    pub source: String,
    /// `repaired` or `salvaged`.
    pub status: String,
    /// Events that were kept.
    pub events_kept: u64,
    /// Events of which something was there but that could not be kept.
    pub events_dropped: u64,
    /// Events and entries that were mended.
    pub mended: u64,
    /// Bytes of the source.
    pub bytes_read: u64,
    /// Bytes of JSON that belong to nothing that was kept.
    pub bytes_lost: u64,
    /// Categories of which nothing is there although such a recording has them.
    pub missing_categories: Vec<String>,
    /// Arrows that were given their other end.
    pub arrows_closed: u64,
    /// In words.
    pub note: String,
}

/// Writes while the second walk goes on.
pub struct Weaver<'f, W: Write> {
    out: W,
    facts: &'f Facts,
    restore: bool,
    name: String,
    keys: HashSet<Vec<u8>>,
    foot: Vec<u8>,
    open: bool,
    first: bool,
    /// Events written, without those that were made up.
    pub events: u64,
    error: Option<io::Error>,
}

impl<'f, W: Write> Weaver<'f, W> {
    /// `restore` says that the trace was cut or lost events, so that names and arrow ends must be given back.
    pub fn new(mut out: W, facts: &'f Facts, mark: &Mark, name: &str, restore: bool) -> io::Result<Self> {
        out.write_all(b"{\n  \"salvaged\": ")?;
        serde_json::to_writer(&mut out, mark)?;
        Ok(Self {
            out,
            facts,
            restore,
            name: name.to_owned(),
            keys: HashSet::from([b"salvaged".to_vec(), b"traceEvents".to_vec()]),
            foot: Vec::new(),
            open: false,
            first: true,
            events: 0,
            error: None,
        })
    }

    /// The first write error, if there was one: the walk itself cannot fail.
    pub fn check(&mut self) -> io::Result<()> {
        self.error.take().map_or(Ok(()), Err)
    }

    fn write(&mut self, text: &[u8]) {
        if self.error.is_none() {
            self.error = self.out.write_all(text).err();
        }
    }

    fn open_list(&mut self) {
        if self.open {
            return;
        }
        self.open = true;
        // No `schemaVersion` where there was none: it promises that every event is as Kineto writes it.
        if self.keys.insert(b"displayTimeUnit".to_vec()) {
            self.write(b",\n  \"displayTimeUnit\": \"ms\"");
        }
        self.write(b",\n  \"traceEvents\": [");
    }

    fn element(&mut self, text: &[u8]) {
        self.open_list();
        self.write(if self.first { b"\n  " } else { b",\n  " });
        self.first = false;
        self.write(text);
    }

    /// The end of an arrow that the cut took, at the place of the end that is there: an arrow of no length, but none
    /// that a reader complains about.
    fn close_arrow(&mut self, event: &Event, text: &[u8]) {
        let end = event.phase(text) == b'f';
        let id = event.id.of(text);
        let category = self.facts.categories.iter().position(|(known, _)| known == event.cat.of(text));
        let Some(category) = category else { return };
        if id.is_empty() || !self.facts.flows.lonely(category as u32, flow_id(id), end) {
            return;
        }
        let mut other = format!("{{\n    \"ph\": \"{}\"", if end { 's' } else { 'f' }).into_bytes();
        let fields = [
            ("id", event.id),
            ("pid", event.pid),
            ("tid", event.tid),
            ("ts", event.ts),
            ("cat", event.cat),
            ("name", event.name),
        ];
        for (key, field) in fields {
            if field.present() {
                other.extend_from_slice(format!(", \"{key}\": ").as_bytes());
                other.extend_from_slice(field.of(text));
            }
        }
        if !end {
            other.extend_from_slice(b", \"bp\": \"e\"");
        }
        other.extend_from_slice(b"\n  }");
        self.element(&other);
    }

    fn give_names(&mut self) {
        let lanes = self.facts.nameless();
        let mut done: HashSet<Vec<u8>> = HashSet::new();
        for lane in &lanes {
            if !lane.process_named && done.insert(lane.pid.clone()) {
                let gpu = lanes.iter().any(|other| other.pid == lane.pid && other.gpu);
                let pid = String::from_utf8_lossy(&lane.pid).into_owned();
                let (label, order) = if gpu {
                    (format!("GPU {pid}"), 5_000_000 + pid.parse::<i64>().unwrap_or(0))
                } else {
                    ("CPU".to_owned(), pid.parse().unwrap_or(0))
                };
                let name = if gpu { label.clone() } else { format!("process {pid}") };
                self.metadata(lane, b"0", "process_name", &format!("\"name\": \"{name}\""));
                self.metadata(lane, b"0", "process_labels", &format!("\"labels\": \"{label}\""));
                self.metadata(lane, b"0", "process_sort_index", &format!("\"sort_index\": {order}"));
            }
        }
        for lane in lanes.iter().filter(|lane| !lane.named) {
            let tid = String::from_utf8_lossy(&lane.tid).into_owned();
            let Ok(number) = tid.parse::<i64>() else { continue };
            let kind = if lane.gpu { "stream" } else { "thread" };
            self.metadata(lane, &lane.tid, "thread_name", &format!("\"name\": \"{kind} {number}\""));
            self.metadata(lane, &lane.tid, "thread_sort_index", &format!("\"sort_index\": {number}"));
        }
    }

    fn metadata(&mut self, lane: &Lane, tid: &[u8], name: &str, args: &str) {
        let mut text = format!("{{\n    \"name\": \"{name}\", \"ph\": \"M\"").into_bytes();
        for (key, value) in [("ts", &lane.ts[..]), ("pid", &lane.pid[..]), ("tid", tid)] {
            if !value.is_empty() {
                text.extend_from_slice(format!(", \"{key}\": ").as_bytes());
                text.extend_from_slice(value);
            }
        }
        text.extend_from_slice(format!(",\n    \"args\": {{\n      {args}\n    }}\n  }}").as_bytes());
        self.element(&text);
    }

    /// Writes the foot and returns what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.open_list();
        if self.restore {
            self.give_names();
        }
        self.write(b"\n  ]");
        let foot = std::mem::take(&mut self.foot);
        self.write(&foot);
        if self.keys.insert(b"traceName".to_vec()) {
            let name = serde_json::to_string(&self.name)?;
            self.write(format!(",\n  \"traceName\": {name}").as_bytes());
        }
        self.write(b"\n}\n");
        self.check()?;
        Ok(self.out)
    }
}

impl<W: Write> Sink for Weaver<'_, W> {
    fn entry(&mut self, part: Part, key: &[u8], value: &[u8]) {
        if !self.keys.insert(key.to_vec()) {
            return;
        }
        let entry = [&b",\n  \""[..], key, b"\": ", value].concat();
        match part {
            Part::Head => self.write(&entry),
            Part::Foot if self.foot.len() + entry.len() <= FOOT => self.foot.extend_from_slice(&entry),
            Part::Foot => {}
        }
    }

    #[inline]
    fn event(&mut self, event: &Event, text: &[u8]) {
        self.events += 1;
        let phase = event.phase(text);
        // A start goes before its end: readers sort by time, and both have the same.
        if self.restore && phase == b'f' {
            self.close_arrow(event, text);
        }
        self.element(event.all.of(text));
        if self.restore && phase == b's' {
            self.close_arrow(event, text);
        }
    }

    fn oddity(&mut self, text: &[u8]) {
        self.element(text);
    }
}
