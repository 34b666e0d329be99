//! Any folder with PyTorch traces, ours or not: what lies there, what it shows, and one window of it merged. Nothing in the folder is
//! changed; a merged trace gets its name only when it is whole.

use super::analyse::Analyser;
use super::composition::{self, Facts};
use super::merge::{MERGED, MergeError, Merged, Part, merge};
use super::read::read;
use super::summary::{Aggregate, Place};
use super::windows::{INDEX, parse_name};
use crate::event::ProfileSummary;
use crate::gz::{self, GzipWriter};
use flate2::bufread::MultiGzDecoder;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

const CHUNK: usize = 256 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const SALVAGED: &str = ".salvaged.pt.trace.json.gz";

/// One file.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Entry {
    /// Name inside the folder.
    pub file: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// From our name, or from the trace's own metadata.
    pub rank: Option<u32>,
    /// From our name.
    pub window: Option<u32>,
    /// Of the run, if the index says so.
    pub phase: Option<String>,
    /// Engine steps recorded; none if neither trace nor index tells.
    pub steps: Option<u64>,
    /// Events; none if it is not complete, like the next two.
    pub events: Option<u64>,
    /// Events of category `kernel`.
    pub kernels: Option<u64>,
    /// Seconds recorded.
    pub seconds: Option<f64>,
    /// Whether the JSON was read to its end.
    pub complete: bool,
    /// What it was made from: `salvaged` from a half, `merged` from all ranks. Such a file is not part of the profile.
    pub made: Option<&'static str>,
    /// Why it is not complete.
    pub problem: Option<String>,
}

/// What lies in a folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Survey {
    /// By window and rank.
    pub traces: Vec<Entry>,
    /// What the complete ones show together; none without any.
    pub profile: Option<ProfileSummary>,
}

/// Looks at every trace in `path`, a folder or one file. `rows` is the length of the profile's tables.
pub fn survey(path: &Path, rows: usize) -> io::Result<Survey> {
    let (folder, names) = list(path)?;
    let facts = index(&folder)?;
    let mut profile = Aggregate::default().top(rows);
    let mut traces = Vec::new();
    for name in names {
        let bytes = match fs::metadata(folder.join(&name)) {
            Ok(meta) => meta.len(),
            // A run that goes on compresses its windows and removes the plain ones.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut entry = Entry { bytes, file: name, ..Entry::default() };
        if let Some((rank, window)) = parse_name(&entry.file) {
            (entry.rank, entry.window) = (Some(rank), Some(window));
        }
        entry.made = match &entry.file {
            name if name.ends_with(MERGED) => Some("merged"),
            name if name.ends_with(SALVAGED) => Some("salvaged"),
            _ => None,
        };
        if look(&folder, &mut entry, &facts, &mut profile) {
            traces.push(entry);
        }
    }
    Ok(Survey { traces, profile: profile.finish() })
}

/// Reads one file; false if it is no trace at all.
fn look(folder: &Path, entry: &mut Entry, facts: &Facts, profile: &mut Aggregate) -> bool {
    let mut analyser = Analyser::default();
    let members = open(&folder.join(&entry.file)).map_err(|error| error.to_string()).and_then(|reader| {
        let keep = |key: &str| key == "distributedInfo";
        read(reader, keep, |event| analyser.event(event)).map_err(|error| error.to_string())
    });
    let members = match members {
        Ok(members) => members,
        Err(problem) => {
            // Other JSON may lie beside traces of any name; one that is called a trace must be one.
            let called_trace = entry.file.contains(".pt.trace.json");
            entry.problem = Some(problem);
            return called_trace;
        }
    };
    let found = analyser.finish();
    entry.rank = entry.rank.or_else(|| rank(&members));
    let place: Place = entry.window.and_then(|window| Some((entry.rank?, window)));
    let known = facts.of(place);
    entry.phase = known.and_then(|window| window.phase.clone());
    let indexed = known.and_then(|window| window.last_step?.checked_sub(window.first_step?));
    entry.steps = Some(found.steps.len() as u64).filter(|steps| *steps > 0).or(indexed);
    entry.events = Some(found.events);
    entry.kernels = Some(found.kernels);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let seconds = found.span_ns.map(|ns| ns as f64 / 1e9);
    entry.seconds = seconds;
    entry.complete = true;
    if entry.made.is_none() {
        profile.push(place, known, found);
    }
    true
}

fn rank(members: &Map<String, Value>) -> Option<u32> {
    u32::try_from(members.get("distributedInfo")?.get("rank")?.as_u64()?).ok()
}

fn list(path: &Path) -> io::Result<(PathBuf, Vec<String>)> {
    if !path.is_dir() {
        File::open(path)?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Ok((folder.to_owned(), vec![name]));
    }
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.')
            && (name.ends_with(".json") || name.ends_with(".json.gz"))
            && entry.path().is_file()
        {
            names.insert(name);
        }
    }
    // Beside its plain form a compressed one is being written, or it is what torch left half done.
    let twice = |name: &String| name.strip_suffix(".gz").is_some_and(|plain| names.contains(plain));
    let mut names: Vec<String> = names.iter().filter(|name| !twice(name)).cloned().collect();
    names.sort_by_key(|name| {
        let place = parse_name(name).map(|(rank, window)| (window, rank));
        (place.is_none(), place, name.clone())
    });
    Ok((path.to_owned(), names))
}

fn index(folder: &Path) -> io::Result<Facts> {
    match fs::read(folder.join(INDEX)) {
        Ok(bytes) => Ok(composition::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Facts::default()),
        Err(error) => Err(error),
    }
}

/// Decompressed, whatever the name says.
fn open(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = BufReader::with_capacity(CHUNK, File::open(path)?);
    if file.fill_buf()?.starts_with(&GZIP_MAGIC) {
        Ok(Box::new(BufReader::with_capacity(CHUNK, MultiGzDecoder::new(file))))
    } else {
        Ok(Box::new(file))
    }
}

/// Joins the ranks of one window into one trace, `window-NNNN-merged.pt.trace.json.gz` in the folder or `out`.
pub fn merge_window(folder: &Path, window: u32, out: Option<&Path>) -> Result<(PathBuf, Merged), MergeError> {
    let (_, names) = list(folder)?;
    let mut ranks: Vec<(u32, String)> = Vec::new();
    let mut windows: BTreeSet<u32> = BTreeSet::new();
    for name in names {
        let Some((rank, number)) = parse_name(&name) else { continue };
        windows.insert(number);
        if number == window {
            ranks.push((rank, name));
        }
    }
    if ranks.len() < 2 {
        return Err(MergeError::Nothing(too_few(window, &ranks, &windows)));
    }
    let openers: Vec<_> =
        ranks.iter().map(|(_, name)| folder.join(name)).map(|path| move || open(&path)).collect();
    let parts: Vec<Part<'_>> = ranks
        .iter()
        .zip(&openers)
        .map(|((rank, name), open)| Part { file: name.clone(), rank: *rank, open })
        .collect();
    let name = format!("window-{window:04}{MERGED}");
    let target = out.map_or_else(|| folder.join(&name), Path::to_owned);
    let beside = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".merged-").suffix(".tmp").tempfile_in(beside)?;
    let mut packed = GzipWriter::new(BufWriter::with_capacity(CHUNK, &mut file), gz::LEVEL, gz::workers())?;
    let merged = merge(&parts, name.trim_end_matches(".gz"), &mut packed)?;
    packed.finish()?.flush()?;
    file.as_file().sync_all()?;
    // A temporary file is private; a trace may be read like the others.
    file.as_file().set_permissions(fs::metadata(folder.join(&ranks[0].1))?.permissions())?;
    file.persist(&target).map_err(|error| error.error)?;
    Ok((target, merged))
}

fn too_few(window: u32, ranks: &[(u32, String)], windows: &BTreeSet<u32>) -> String {
    match ranks {
        [(rank, name)] => format!("window {window} has one rank only ({name}, rank {rank}): there is nothing to merge"),
        _ if windows.is_empty() => {
            "no file here is called window-NNNN-rankR.pt.trace.json.gz: only windows of varcas-guard can be merged".to_owned()
        }
        _ => {
            let list: Vec<String> = windows.iter().map(u32::to_string).collect();
            format!("there is no window {window} here, only {}", list.join(", "))
        }
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
