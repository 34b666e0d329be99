//! Where halves lie and which belong to one trace. `torch.profiler` writes `tmpX.json.tmp` and `tmpX.json` in its
//! temporary folder and then the final `.gz` elsewhere, and nothing in the names connects them: the trace id in the
//! head does, or else the pid, or else the time. A window of ours is `.NAME.json.part.tmp`, then `.NAME.json.part`, then
//! `NAME.json`; `.NAME.json.gz.tmp` is its compression.

use super::source::{Belief, Source};
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// End of the names of our outputs.
pub const OUTPUT: &str = ".salvaged.pt.trace.json.gz";
/// Text that is looked at to know what a file is.
const PEEK: usize = 64 << 10;
/// Folders deeper than this hold no traces.
const DEEPEST: u32 = 16;

/// A file that is or was to be a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes on disk.
    pub size: u64,
    /// Modification time, in nanoseconds of the Unix epoch.
    pub mtime: i128,
    /// Device and inode.
    pub file: (u64, u64),
    /// `trace_id` of its head.
    pub trace_id: Option<String>,
    /// The first pid of its events.
    pub pid: Option<String>,
}

/// The halves of one trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// In no order.
    pub halves: Vec<Half>,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Found {
    /// Traces, by path of their first half.
    pub traces: Vec<Trace>,
    /// What could not be looked at, and why.
    pub unreadable: Vec<(PathBuf, String)>,
}

impl Half {
    fn name(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Whether the name is one of Python's temporary files, which says nothing about the trace.
    fn is_nameless(&self) -> bool {
        self.name().starts_with("tmp") && !self.name().contains(".trace.")
    }

    /// Whether it lies under a name that its writer would have changed at the end.
    pub fn is_temporary(&self) -> bool {
        self.is_nameless() || self.name().ends_with(".tmp") || self.name().ends_with(".part")
    }

    fn is_gzip_name(&self) -> bool {
        self.name().ends_with(".gz")
    }

    /// The path without what differs between the halves of one export.
    fn stem(&self) -> PathBuf {
        self.path.with_file_name(plain_name(self.name()))
    }
}

/// The name that a file has without compression and when its writer is done with it.
fn plain_name(name: &str) -> &str {
    let mut plain = name;
    for end in [".tmp", ".part", ".gz"] {
        plain = plain.strip_suffix(end).unwrap_or(plain);
    }
    // A hidden name with none of these ends is somebody's choice.
    if plain == name { name } else { plain.strip_prefix('.').unwrap_or(plain) }
}

impl Trace {
    /// The half whose name the trace was meant to have.
    pub fn named(&self) -> Option<&Half> {
        let rank = |half: &&Half| (half.is_nameless(), half.is_temporary(), !half.is_gzip_name());
        self.halves.iter().min_by_key(rank)
    }

    /// The final name's stem: `x` of `x.pt.trace.json.gz`.
    pub fn stem(&self) -> String {
        let name = self.named().map(|half| half.stem()).unwrap_or_default();
        let name = name.file_name().and_then(|name| name.to_str()).unwrap_or("trace").to_owned();
        let name = name.strip_suffix(".json").unwrap_or(&name);
        let name = name.strip_suffix(".trace").unwrap_or(name);
        name.strip_suffix(".pt").unwrap_or(name).to_owned()
    }
}

/// Looks at files and through folders. A file that is named is taken for a trace whatever it is called. Files that are
/// being written are not looked into.
pub fn find(places: &[PathBuf], in_use: &InUse) -> Found {
    let mut found = Found::default();
    let mut halves: Vec<Half> = Vec::new();
    for place in places {
        look(place, true, 0, in_use, &mut halves, &mut found.unreadable);
    }
    halves.sort_by(|a, b| a.path.cmp(&b.path));
    let mut seen = std::collections::HashSet::new();
    halves.retain(|half| seen.insert(half.file));
    found.traces = pair(halves);
    found
}

fn look(
    path: &Path,
    named: bool,
    depth: u32,
    in_use: &InUse,
    halves: &mut Vec<Half>,
    unreadable: &mut Vec<(PathBuf, String)>,
) {
    let meta = if named { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let meta = match meta {
        Ok(meta) => meta,
        Err(error) => {
            if named {
                unreadable.push((path.to_owned(), format!("cannot read it: {error}")));
            }
            return;
        }
    };
    if meta.is_dir() {
        match fs::read_dir(path) {
            Ok(entries) if depth < DEEPEST => {
                for entry in entries.flatten() {
                    look(&entry.path(), false, depth + 1, in_use, halves, unreadable);
                }
            }
            Ok(_) => {}
            Err(error) => unreadable.push((path.to_owned(), format!("cannot list it: {error}"))),
        }
        return;
    }
    if !meta.is_file() {
        if named {
            unreadable.push((path.to_owned(), "is neither a file nor a folder".to_owned()));
        }
        return;
    }
    let mut half = Half {
        path: path.to_owned(),
        size: meta.len(),
        mtime: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        file: (meta.dev(), meta.ino()),
        trace_id: None,
        pid: None,
    };
    let name = half.name().to_owned();
    if !named && !is_trace_name(&name) {
        return;
    }
    if in_use.is_written(half.file) {
        if named || is_trace(&name, b"") {
            halves.push(half);
        }
        return;
    }
    match peek(path) {
        Ok(head) => {
            if !named && !is_trace(&name, &head) {
                return;
            }
            half.trace_id = quoted_after(&head, b"\"trace_id\": \"", b'"');
            half.pid = quoted_after(&head, b"\"pid\": ", b',').filter(|pid| pid.parse::<i64>().is_ok());
            halves.push(half);
        }
        Err(error) => unreadable.push((path.to_owned(), format!("cannot read it: {error}"))),
    }
}

/// Outputs of ours are no inputs, neither whole nor half (`.NAME.salvaged.pt.trace.json.gz.PID.part`).
fn is_trace_name(name: &str) -> bool {
    let plain = plain_name(name);
    plain.ends_with(".json") && !plain.starts_with('.') && !name.ends_with(OUTPUT)
}

fn is_trace(name: &str, head: &[u8]) -> bool {
    let spoken = [&b"\"traceEvents\""[..], b"\"schemaVersion\"", b"\"deviceProperties\"", b"\"ph\""]
        .iter()
        .any(|key| memchr::memmem::find(head, key).is_some());
    spoken || name.contains(".trace.json") || (head.is_empty() && name.starts_with("tmp"))
}

fn peek(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut source = Source::open(path, &Belief::default())?;
    let mut head = vec![0; PEEK];
    let mut have = 0;
    while have < PEEK {
        match source.fill(&mut head[have..])? {
            0 => break,
            count => have += count,
        }
    }
    head.truncate(have);
    Ok(head)
}

fn quoted_after(head: &[u8], before: &[u8], until: u8) -> Option<String> {
    let from = memchr::memmem::find(head, before)? + before.len();
    let len = memchr::memchr(until, &head[from..]).filter(|len| (1..=64).contains(len))?;
    String::from_utf8(head[from..from + len].to_vec()).ok()
}

fn pair(halves: Vec<Half>) -> Vec<Trace> {
    let mut traces: Vec<Trace> = Vec::new();
    let mut by_stem: HashMap<PathBuf, usize> = HashMap::new();
    let mut by_id: HashMap<String, usize> = HashMap::new();
    for half in halves {
        let stem = half.stem();
        let known = by_stem.get(&stem).or_else(|| by_id.get(half.trace_id.as_ref()?)).copied();
        let index = known.unwrap_or(traces.len());
        if index == traces.len() {
            traces.push(Trace::default());
        }
        by_stem.insert(stem, index);
        if let Some(id) = &half.trace_id {
            by_id.entry(id.clone()).or_insert(index);
        }
        traces[index].halves.push(half);
    }
    // A stem can connect what an id connected to another trace before: same id, one trace.
    let mut merged: Vec<Trace> = Vec::new();
    for trace in traces {
        let same = |other: &Trace| {
            trace
                .halves
                .iter()
                .any(|a| a.trace_id.is_some() && other.halves.iter().any(|b| a.trace_id == b.trace_id))
        };
        match merged.iter().position(same) {
            Some(index) => merged[index].halves.extend(trace.halves),
            None => merged.push(trace),
        }
    }
    adopt(&mut merged);
    merged
}

/// Gives an empty `.gz` the temporary file it was to be made from.
fn adopt(traces: &mut Vec<Trace>) {
    let orphans: Vec<usize> = (0..traces.len())
        .filter(|&at| {
            traces[at].halves.iter().all(|half| {
                half.is_gzip_name() && half.trace_id.is_none() && half.pid.is_none() && half.size < 4096
            })
        })
        .collect();
    let mut gone = Vec::new();
    for &orphan in &orphans {
        let gz = &traces[orphan].halves[0];
        let free: Vec<usize> = (0..traces.len())
            .filter(|&at| {
                !gone.contains(&at)
                    && traces[at].halves.iter().all(Half::is_nameless)
                    && traces[at].halves.iter().any(|half| half.size > 0)
            })
            .collect();
        let digits: Vec<&str> = gz.name().split(|c: char| !c.is_ascii_digit()).collect();
        let by_pid = |at: &usize| {
            traces[*at].halves.iter().any(|half| half.pid.as_deref().is_some_and(|pid| digits.contains(&pid)))
        };
        let distance = |at: &usize| {
            let newest = traces[*at].halves.iter().map(|half| half.mtime).max().unwrap_or(0);
            (newest - gz.mtime).abs()
        };
        let best = free.iter().copied().filter(by_pid).min_by_key(distance);
        let alone = (free.len() == 1 && orphans.len() == 1).then(|| free[0]);
        if let Some(at) = best.or(alone) {
            let taken = std::mem::take(&mut traces[at].halves);
            traces[orphan].halves.extend(taken);
            gone.push(at);
        }
    }
    traces.retain(|trace| !trace.halves.is_empty());
}

/// A file that a process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Opened {
    file: (u64, u64),
    pid: i32,
    writes: bool,
}

/// What living processes have open. Processes of other users cannot be looked into.
#[derive(Debug, Clone, Default)]
pub struct InUse(Vec<Opened>);

impl InUse {
    /// Looks at all processes but this one.
    pub fn now() -> Self {
        let mut opened = Vec::new();
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
                let Ok(meta) = fs::metadata(fd.path()) else { continue };
                if !meta.is_file() {
                    continue;
                }
                let info = process.path().join("fdinfo").join(fd.file_name());
                let info = fs::read_to_string(info).unwrap_or_default();
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
                let mode = flags.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0) & 3;
                opened.push(Opened { file: (meta.dev(), meta.ino()), pid, writes: mode != 0 });
            }
        }
        Self(opened)
    }

    fn is_written(&self, file: (u64, u64)) -> bool {
        self.0.iter().any(|opened| opened.writes && opened.file == file)
    }

    /// Who is still at work on a trace: writes one of its halves, or reads one while it writes a half of any trace, as
    /// `torch.profiler` does when it compresses.
    pub fn writer<'h>(&self, trace: &'h Trace, all: &[Trace]) -> Option<(&'h Half, i32)> {
        let writes_any = |pid: i32| {
            let written = self.0.iter().filter(|opened| opened.pid == pid && opened.writes);
            written
                .into_iter()
                .any(|opened| all.iter().flat_map(|trace| &trace.halves).any(|half| half.file == opened.file))
        };
        trace.halves.iter().find_map(|half| {
            let users = self.0.iter().filter(|opened| opened.file == half.file);
            users.into_iter().find(|user| user.writes || writes_any(user.pid)).map(|user| (half, user.pid))
        })
    }
}
