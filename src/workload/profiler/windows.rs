//! The index that workers write, and what becomes of their windows after the attempt: each file is read to its end as JSON,
//! counted, and compressed, in one pass and in bounded memory, outside the engine.
//!
//! What cannot be read to its end is left exactly as it lies and named: the salvage may still make something of it.

use super::analyse::{Analyser, WindowProfile};
use super::composition::{self, Facts};
use super::merge::MERGED;
use super::read::read;
use super::retention::{self, Kept};
use super::summary::Aggregate;
#[cfg(doc)]
use crate::event::Phase;
use crate::event::{ProfileSummary, Trace, WindowEvent, WindowLine};
use crate::gz::{self, GzipWriter};
use flate2::bufread::MultiGzDecoder;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// Name of the index inside the trace folder.
pub const INDEX: &str = "windows.jsonl";

/// An empty file of this name in the trace folder asks every worker to close its window and to open no more.
pub const CLOSE_REQUEST: &str = "close";

/// The file of this name tells the workers in which phase the run is; in [`Phase::Loading`] they record nothing.
pub const PHASE: &str = "phase";

const PLAIN: &str = ".pt.trace.json";
const PACKED: &str = ".pt.trace.json.gz";
/// End of the names of what the salvage made.
const SALVAGED: &str = ".salvaged.pt.trace.json.gz";
/// Reading a window keeps one core busy, compressing it a little more than one; more would only disturb.
const MOST_WORKERS: usize = 2;
const CHUNK: usize = 256 * 1024;

/// One line of the index. `None` for a torn line and for an event this version does not know; neither is an error.
pub fn parse_line(line: &str) -> Option<WindowLine> {
    serde_json::from_str(line.trim()).ok()
}

/// What the index says of one window of one rank.
#[derive(Debug, Clone, PartialEq)]
pub enum WindowFate {
    /// It was open, or being written, when the index ends.
    Open,
    /// It lies under this name, with so many steps.
    Closed {
        /// File name.
        file: String,
        /// Steps recorded.
        steps: u64,
    },
    /// It was given up.
    Failed {
        /// What the worker said.
        error: String,
    },
}

/// The index as a whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    /// By rank and window.
    pub windows: BTreeMap<(u32, u32), WindowFate>,
    /// Ranks whose profiling switched itself off, and why.
    pub disabled: BTreeMap<u32, String>,
    /// Ranks that said hello.
    pub workers: BTreeSet<u32>,
    /// Ranks that closed everything and open no more.
    pub finished: BTreeSet<u32>,
}

impl Index {
    /// Takes one line in.
    pub fn push(&mut self, line: &WindowLine) {
        let rank = line.rank;
        match &line.what {
            WindowEvent::Hello { .. } => {
                self.workers.insert(rank);
            }
            WindowEvent::Opened { window, .. } | WindowEvent::Flushing { window } => {
                self.windows.entry((rank, *window)).or_insert(WindowFate::Open);
            }
            WindowEvent::Closed { window, file, first_step, last_step, .. } => {
                let steps = last_step.saturating_sub(*first_step);
                self.windows.insert((rank, *window), WindowFate::Closed { file: file.clone(), steps });
            }
            WindowEvent::Failed { window, error } => {
                self.windows.insert((rank, *window), WindowFate::Failed { error: error.clone() });
            }
            WindowEvent::Disabled { reason } => {
                self.disabled.insert(rank, reason.clone());
            }
            WindowEvent::Finished {} => {
                self.finished.insert(rank);
            }
            WindowEvent::Planned { .. } | WindowEvent::Held { .. } | WindowEvent::Primed { .. } => {}
        }
    }

    /// Whether every worker that said hello has answered the request to close; false while nobody has said hello.
    pub fn all_finished(&self) -> bool {
        !self.workers.is_empty() && self.workers.is_subset(&self.finished)
    }
}

/// Reads an index; torn and unknown lines are passed over.
pub fn parse_index(text: &str) -> Index {
    let mut index = Index::default();
    for line in text.lines().filter_map(parse_line) {
        index.push(&line);
    }
    index
}

/// Rank and window of `window-0003-rank1.pt.trace.json[.gz]`.
pub fn parse_name(file: &str) -> Option<(u32, u32)> {
    let stem = file.strip_suffix(PACKED).or_else(|| file.strip_suffix(PLAIN))?;
    let (window, rank) = stem.strip_prefix("window-")?.split_once("-rank")?;
    Some((rank.parse().ok()?, window.parse().ok()?))
}

/// What lies in a trace folder.
#[derive(Debug, Default)]
pub struct Collected {
    /// The complete traces.
    pub traces: Vec<Trace>,
    /// Everything else, in words.
    pub problems: Vec<String>,
    /// What the complete traces show together; none without any.
    pub profile: Option<ProfileSummary>,
    /// The text of the workers' index.
    pub index: String,
    /// Rank and window of those that had to give way to others.
    pub gave_way: BTreeSet<(u32, u32)>,
}

/// Checks, counts and compresses the windows in `traces`; returns the complete ones and, in words, everything else. Can be
/// repeated: what an earlier call finished is only read again.
pub fn collect(traces: &Path) -> (Vec<Trace>, Vec<String>) {
    let Collected { traces, problems, .. } = collect_and_profile(traces);
    (traces, problems)
}

/// As [`collect`], and says what the windows show: the same pass over each file yields both.
pub fn collect_and_profile(traces: &Path) -> Collected {
    Gatherer::new(traces).finish()
}

/// Takes windows as they are finished, so that a night of them is neither kept in plain form nor read at its end.
pub struct Gatherer {
    traces: PathBuf,
    found: Found,
    /// Files that were taken, under the names that the workers gave them.
    taken: BTreeSet<String>,
    problems: Vec<String>,
    /// Bytes for all windows together.
    room: Option<u64>,
    /// Phase and load of each window, as far as the workers told.
    told: BTreeMap<u32, (String, u64)>,
    gave_way: BTreeSet<(u32, u32)>,
    freed: u64,
}

impl Gatherer {
    /// Nothing is read yet.
    pub fn new(traces: &Path) -> Self {
        Self {
            traces: traces.to_owned(),
            found: Found::default(),
            taken: BTreeSet::new(),
            problems: Vec::new(),
            room: None,
            told: BTreeMap::new(),
            gave_way: BTreeSet::new(),
            freed: 0,
        }
    }

    /// All windows together take no more than this; see [`retention`].
    #[must_use]
    pub fn with_room(self, room: Option<u64>) -> Self {
        Self { room, ..self }
    }

    /// Removes windows for which there is no room.
    fn make_room(&mut self) {
        let Some(room) = self.room else { return };
        let mut windows: BTreeMap<u32, Kept> = BTreeMap::new();
        for trace in &self.found.list {
            let Some((_, window)) = parse_name(&trace.file) else { continue };
            let kept = windows.entry(window).or_insert_with(|| {
                let (phase, load) = self.told.get(&window).cloned().unwrap_or_default();
                Kept { phase, load, bytes: 0 }
            });
            kept.bytes = kept.bytes.saturating_add(trace.bytes);
        }
        let gone: BTreeSet<u32> = retention::give_way(&windows, room).into_iter().collect();
        let Self { traces, found, problems, gave_way, freed, .. } = self;
        found.list.retain(|trace| {
            let Some(place) = parse_name(&trace.file).filter(|(_, window)| gone.contains(window)) else {
                return true;
            };
            match fs::remove_file(traces.join(&trace.file)) {
                Ok(()) => {
                    gave_way.insert(place);
                    *freed += trace.bytes;
                    false
                }
                Err(error) => {
                    problems.push(format!("{}: cannot be removed to make room: {error}", trace.file));
                    true
                }
            }
        });
    }

    /// Takes a line of the index. The window that it calls closed is checked, counted and compressed; one that cannot be is left
    /// to [`Self::finish`].
    pub fn hear(&mut self, line: &str) {
        self.found.facts.push(line);
        if let Some(WindowLine {
            what: WindowEvent::Closed { window, file, first_step, last_step, content, .. },
            ..
        }) = parse_line(line)
            && parse_name(&file).is_some()
            && !self.taken.contains(&file)
        {
            let tokens =
                |step: &[Option<u32>; 3]| u64::from(step[0].unwrap_or(0)) + u64::from(step[1].unwrap_or(0));
            let load =
                content.batch.iter().map(tokens).sum::<u64>().max(last_step.saturating_sub(first_step));
            self.told.entry(window).or_insert((content.phase, load));
            let mut told = Vec::new();
            if collect_plain(&self.traces, &file, &mut self.found, &mut told) {
                self.taken.insert(file);
                self.problems.append(&mut told);
            }
            self.make_room();
        }
    }

    /// Takes everything else in the folder, and says what there is.
    pub fn finish(mut self) -> Collected {
        let (traces, mut problems) = (self.traces.as_path(), self.problems);
        let text = match fs::read(traces.join(INDEX)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    problems.push(format!("cannot read {INDEX}: {error}"));
                }
                String::new()
            }
        };
        self.found.facts = composition::parse(&text);
        let mut index = parse_index(&text);
        let names = match list(traces) {
            Ok(names) => names,
            Err(error) => {
                problems.push(format!("cannot list {}: {error}", traces.display()));
                return Collected { problems, ..Collected::default() };
            }
        };
        let found = &mut self.found;
        for name in &names {
            if self.taken.contains(name.trim_end_matches(".gz")) {
                // Done while the run went on.
            } else if name.ends_with(PLAIN) && !name.starts_with('.') {
                collect_plain(traces, name, found, &mut problems);
            } else if name.ends_with(SALVAGED) || name.ends_with(MERGED) {
                // Made from others.
            } else if name.ends_with(PACKED) && !name.starts_with('.') {
                let plain = name.trim_end_matches(".gz");
                // Beside its plain form it is about to be written again, or it is what torch left half done.
                if !names.contains(plain) {
                    collect_packed(traces, name, found, &mut problems);
                }
            } else if is_ours_to_redo(name, &names) {
                // An earlier collection was interrupted; this one writes the file anew.
            } else if name.ends_with(".part") || name.ends_with(".tmp") {
                let size = fs::metadata(traces.join(name)).map_or(0, |meta| meta.len());
                problems
                    .push(format!("{name}: {size} bytes of a file whose writer was stopped; left as it is"));
            }
        }
        if !self.gave_way.is_empty() {
            let (files, freed) = (self.gave_way.len(), self.freed);
            problems.push(format!(
                "{files} traces ({freed} bytes) had to give way to others: the newest, the one under the largest load and the \
                 first of each phase were kept"
            ));
        }
        index.windows.retain(|place, _| !self.gave_way.contains(place));
        let Found { list: mut traces, profile, .. } = self.found;
        for trace in &mut traces {
            annotate(trace, &index);
        }
        traces.sort_by(|a, b| (a.window, a.rank, &a.file).cmp(&(b.window, b.rank, &b.file)));
        report_fates(&index, &names, &mut problems);
        Collected { traces, problems, profile: profile.finish(), index: text, gave_way: self.gave_way }
    }
}

/// The complete traces so far, what the index says of them and what they show.
#[derive(Default)]
struct Found {
    list: Vec<Trace>,
    facts: Facts,
    profile: Aggregate,
}

impl Found {
    fn push(&mut self, counted: Counted, file: String, bytes: u64) {
        self.list.push(Trace {
            bytes,
            json_bytes: counted.bytes,
            events: counted.profile.events,
            kernels: counted.profile.kernels,
            rank: None,
            window: None,
            steps: None,
            complete: true,
            file,
        });
        let place = self.list.last().and_then(|trace| parse_name(&trace.file));
        self.profile.push(place, self.facts.of(place), counted.profile);
    }
}

fn list(traces: &Path) -> io::Result<BTreeSet<String>> {
    fs::read_dir(traces)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// `.NAME.gz.tmp` beside `NAME`.
fn is_ours_to_redo(name: &str, names: &BTreeSet<String>) -> bool {
    name.strip_prefix('.')
        .and_then(|name| name.strip_suffix(".gz.tmp"))
        .is_some_and(|plain| names.contains(plain))
}

fn annotate(trace: &mut Trace, index: &Index) {
    let Some((rank, window)) = parse_name(&trace.file) else { return };
    trace.rank = Some(rank);
    trace.window = Some(window);
    if let Some(WindowFate::Closed { steps, .. }) = index.windows.get(&(rank, window)) {
        trace.steps = Some(*steps);
    }
}

fn report_fates(index: &Index, names: &BTreeSet<String>, problems: &mut Vec<String>) {
    for ((rank, window), fate) in &index.windows {
        let what = format!("window {window} of rank {rank}");
        match fate {
            WindowFate::Open => problems.push(format!("{what}: still open when its worker ended, lost")),
            WindowFate::Failed { error } => problems.push(format!("{what}: given up by its worker: {error}")),
            WindowFate::Closed { file, .. } => {
                if !names.contains(file) && !names.contains(&format!("{file}.gz")) {
                    problems.push(format!("{what}: the index names {file}, but it is not there"));
                }
            }
        }
    }
    for (rank, reason) in &index.disabled {
        problems.push(format!("rank {rank} switched its profiler off: {reason}"));
    }
}

/// False if it is not a complete trace.
fn collect_plain(traces: &Path, name: &str, found: &mut Found, problems: &mut Vec<String>) -> bool {
    let plain = traces.join(name);
    let packed = format!("{name}.gz");
    let unfinished = traces.join(format!(".{packed}.tmp"));
    let (read, compressed) = match check_and_pack(&plain, &unfinished) {
        Ok(both) => both,
        Err(error) => {
            problems.push(format!("{name}: cannot be read: {error}; left as it is"));
            return false;
        }
    };
    let counted = match read {
        Ok(counted) => counted,
        Err(error) => {
            discard(&unfinished, problems);
            problems.push(format!("{name}: not a complete trace ({error}); left as it is"));
            return false;
        }
    };
    let moved = compressed.and_then(|bytes| {
        fs::rename(&unfinished, traces.join(&packed))?;
        File::open(traces)?.sync_all()?;
        Ok(bytes)
    });
    match moved {
        Ok(bytes) => {
            if let Err(error) = fs::remove_file(&plain) {
                problems.push(format!("{name}: compressed, but the plain file stays: {error}"));
            }
            found.push(counted, packed, bytes);
        }
        Err(error) => {
            // A complete trace that does not fit twice on the disk is still a complete trace.
            discard(&unfinished, problems);
            problems.push(format!("{name}: complete, but it could not be compressed: {error}"));
            let bytes = counted.bytes;
            found.push(counted, name.to_owned(), bytes);
        }
    }
    true
}

fn discard(unfinished: &Path, problems: &mut Vec<String>) {
    if let Err(error) = fs::remove_file(unfinished)
        && error.kind() != io::ErrorKind::NotFound
    {
        problems.push(format!("cannot remove {}: {error}", unfinished.display()));
    }
}

fn collect_packed(traces: &Path, name: &str, found: &mut Found, problems: &mut Vec<String>) {
    let path = traces.join(name);
    let read = File::open(&path).and_then(|file| {
        let bytes = file.metadata()?.len();
        let decoder = MultiGzDecoder::new(BufReader::with_capacity(CHUNK, file));
        Ok((count(BufReader::with_capacity(CHUNK, decoder)), bytes))
    });
    match read {
        Ok((Ok(counted), bytes)) => found.push(counted, name.to_owned(), bytes),
        Ok((Err(error), _)) => {
            problems.push(format!("{name}: not a complete trace ({error}); left as it is"))
        }
        Err(error) => problems.push(format!("{name}: cannot be read: {error}; left as it is")),
    }
}

/// Reads `plain` to its end while compressing what is read, so that what was checked is what is kept. The outer error means that
/// `plain` cannot be opened; reading and writing fail on their own.
fn check_and_pack(
    plain: &Path,
    packed: &Path,
) -> io::Result<(Result<Counted, serde_json::Error>, io::Result<u64>)> {
    let source = File::open(plain)?;
    let mut tee = Tee { source, sink: Sink::open(packed) };
    let counted = count(BufReader::with_capacity(CHUNK, &mut tee));
    Ok((counted, tee.sink.finish()))
}

/// A reader that passes everything on to a compressor. A failing compressor never disturbs the reading.
struct Tee {
    source: File,
    sink: Sink,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.sink.write(&buffer[..length]);
        Ok(length)
    }
}

enum Sink {
    Good(Box<GzipWriter<BufWriter<File>>>),
    Bad(io::Error),
}

impl Sink {
    fn open(path: &Path) -> Self {
        let workers = gz::workers().min(MOST_WORKERS);
        let opened = File::create(path)
            .and_then(|file| GzipWriter::new(BufWriter::with_capacity(CHUNK, file), gz::LEVEL, workers));
        match opened {
            Ok(encoder) => Self::Good(Box::new(encoder)),
            Err(error) => Self::Bad(error),
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Self::Good(encoder) = self
            && let Err(error) = encoder.write_all(bytes)
        {
            *self = Self::Bad(error);
        }
    }

    fn finish(self) -> io::Result<u64> {
        match self {
            Self::Good(encoder) => {
                let file = encoder.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
                file.sync_all()?;
                Ok(file.metadata()?.len())
            }
            Self::Bad(error) => Err(error),
        }
    }
}

/// What one pass over a trace finds.
#[derive(Debug)]
struct Counted {
    profile: WindowProfile,
    bytes: u64,
}

fn count(reader: impl BufRead) -> Result<Counted, serde_json::Error> {
    let mut reader = Measured { reader, bytes: 0 };
    let mut analyser = Analyser::default();
    read(&mut reader, |_| false, |event| analyser.event(event))?;
    Ok(Counted { profile: analyser.finish(), bytes: reader.bytes })
}

struct Measured<R> {
    reader: R,
    bytes: u64,
}

impl<R: BufRead> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.bytes += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
