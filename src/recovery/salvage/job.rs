//! One trace after the other: look at every half, take the most complete, write what is worth writing.

use super::damage::Damage;
use super::facts::Facts;
use super::places::{self, Half, InUse, OUTPUT, Trace};
use super::source::{Belief, Distrust, Fate, Member, Source, turned};
use super::stream::{Place, Sink, Walker};
use super::weave::{Mark, Weaver};
use super::write::Pending;
use crate::event::SavedTrace;
use crate::gz::{self, GzipWriter};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// The window the walk looks through; it grows only for an event that is larger.
const WINDOW: usize = 256 << 10;
/// Text before the first sign of damage in a gzip that may already be wrong without showing it. Eight times as much
/// catches half of what is left and loses far more (docs/measurements-salvage.md).
const MARGIN: u64 = 2048;
/// What became of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// It is whole as it lies there.
    Complete,
    /// Every event was kept; only its form or its name had to be mended.
    Repaired,
    /// Events are missing; everything else was kept.
    Salvaged,
    /// Nothing of it reached the disk, or it is no trace.
    NothingToSave,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Complete => "complete",
            Self::Repaired => "repaired",
            Self::Salvaged => "salvaged",
            Self::NothingToSave => "nothing-to-save",
        })
    }
}

/// One trace, as `--json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Salvaged {
    /// The half that was taken.
    pub input: PathBuf,
    /// What was written; `null` when the input needs nothing, nothing can be saved, or with `--check`.
    pub output: Option<PathBuf>,
    /// What became of it.
    pub status: Status,
    /// Events in the output, without names and arrow ends that were made up.
    pub events_kept: u64,
    /// Events of which something was there but that could not be kept. What never reached the disk is not counted.
    pub events_dropped: u64,
    /// Bytes of the input.
    pub bytes_read: u64,
    /// Bytes of (inflated) JSON that belong to nothing that was kept.
    pub bytes_lost: u64,
    /// Categories of which nothing is there although such a recording has them.
    pub missing_categories: Vec<String>,
    /// In words.
    pub note: String,
    /// Why something that could be saved was not, or why the file must be left alone for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a file is read, for a progress bar.
pub type Progress<'p> = &'p dyn Fn(&Path, u64, u64);

/// How to salvage.
#[derive(Default)]
pub struct Options<'p> {
    /// Folder of the outputs; beside the trace if `None`.
    pub out: Option<PathBuf>,
    /// Give the output the trace's own name; the broken file is kept as `NAME.broken`.
    pub in_place: bool,
    /// Write nothing.
    pub check: bool,
    /// Files that are known to be whole: they and other halves of the same traces are passed over.
    pub whole: Vec<PathBuf>,
    /// Called now and then while reading.
    pub progress: Option<Progress<'p>>,
}

/// Salvages everything in `places` (the trace folder and the temporary folder of an attempt) into `out`, but for the
/// traces that are known to be `whole`. Originals are never touched; a second call writes the same bytes again. What is
/// whole under its own name is not reported.
pub fn salvage_folder(places: &[PathBuf], out: &Path, whole: &[PathBuf]) -> Vec<SavedTrace> {
    let options = Options { out: Some(out.to_owned()), whole: whole.to_vec(), ..Options::default() };
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let records = salvage(places, &options).into_iter().filter(|record| record.status != Status::Complete);
    records
        .map(|record| SavedTrace {
            from: name(&record.input),
            file: record.output.as_deref().map(name),
            status: record.status.to_string(),
            events: record.events_kept,
            dropped: record.events_dropped,
            missing: record.missing_categories,
            note: record.error.unwrap_or(record.note),
        })
        .collect()
}

/// Salvages files and folders.
pub fn salvage(places: &[PathBuf], options: &Options<'_>) -> Vec<Salvaged> {
    let in_use = InUse::now();
    let found = places::find(places, &in_use);
    let mut records: Vec<Salvaged> = Vec::new();
    for (path, why) in found.unreadable {
        records.push(blank(&path, Some(why)));
    }
    let mut targets: std::collections::HashSet<PathBuf> = std::collections::HashSet::new();
    for trace in &found.traces {
        if trace.halves.iter().any(|half| options.whole.contains(&half.path)) {
            continue;
        }
        if let Some((half, pid)) = in_use.writer(trace, &found.traces) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name = name.trim();
            let why = format!("pid {pid} ({name}) still writes it: wait for its end, then salvage again");
            records.push(blank(&half.path, Some(why)));
            continue;
        }
        let mut target = target(trace, options);
        let mut number = 2;
        while !targets.insert(target.clone()) {
            // Two traces of one name from two folders must not overwrite each other in `--out`.
            target = target.with_file_name(format!("{}-{number}{OUTPUT}", trace.stem()));
            number += 1;
        }
        records.push(one(trace, &target, options));
    }
    records
}

fn blank(input: &Path, error: Option<String>) -> Salvaged {
    Salvaged {
        input: input.to_owned(),
        output: None,
        status: Status::NothingToSave,
        events_kept: 0,
        events_dropped: 0,
        bytes_read: 0,
        bytes_lost: 0,
        missing_categories: Vec::new(),
        note: String::new(),
        error,
    }
}

fn target(trace: &Trace, options: &Options<'_>) -> PathBuf {
    let named = trace.named().map(|half| half.path.clone()).unwrap_or_default();
    let folder = named.parent().unwrap_or(Path::new("")).to_owned();
    if options.in_place {
        return folder.join(format!("{}.pt.trace.json.gz", trace.stem()));
    }
    options.out.clone().unwrap_or(folder).join(format!("{}{OUTPUT}", trace.stem()))
}

/// What one reading of a half found.
#[derive(Debug)]
pub struct Exam {
    /// Where the walk ended and what was wrong.
    pub walker: Walker,
    /// What it remembers.
    pub facts: Facts,
    /// What to believe of it.
    pub belief: Belief,
    /// Its members.
    pub members: Vec<Member>,
    /// Whether it is compressed.
    pub gzip: bool,
    /// Bytes of the file.
    pub read: u64,
    /// Bytes of text.
    pub text: u64,
    /// Surplus bytes behind the last member.
    pub garbage: u64,
    /// A read error that ended the reading early.
    pub read_error: Option<String>,
}

impl Exam {
    fn sound(&self) -> bool {
        self.members.iter().all(|member| member.fate == Fate::Sound) && self.garbage == 0
    }

    /// Whether the file can be left as it is.
    pub fn is_whole(&self) -> bool {
        self.walker.is_whole()
            && self.walker.saw_list()
            && self.sound()
            && self.read_error.is_none()
            && self.belief.turned.is_none()
    }

    /// Whether no event is missing.
    pub fn has_all_events(&self) -> bool {
        self.walker.list_closed() && self.walker.damage.lost_events == 0 && self.belief.distrust.is_empty()
    }
}

/// Pushes a half through a walk. Returns a read error, which ends the text like the end of the file does: a bad sector
/// must not take what lies before it.
fn push<S: Sink>(
    source: &mut Source,
    walker: &mut Walker,
    sink: &mut S,
    window: &mut Vec<u8>,
    mut after: impl FnMut(&mut S, u64) -> io::Result<()>,
) -> io::Result<Option<io::Error>> {
    let (mut from, mut to) = (0, 0);
    let mut last = false;
    let mut failed = None;
    loop {
        let fed = walker.feed(&window[from..to], last, sink);
        after(sink, source.read)?;
        from += fed.used;
        if last {
            return Ok(failed);
        }
        window.copy_within(from..to, 0);
        to -= from;
        from = 0;
        let want = fed.want.max(to + 1);
        if want > window.len() {
            window.resize(want, 0);
        }
        while to < want || to < window.len() / 2 {
            match source.fill(&mut window[to..]) {
                Ok(0) => {
                    last = true;
                    break;
                }
                Ok(count) => to += count,
                Err(error) => {
                    failed = Some(error);
                    last = true;
                    break;
                }
            }
        }
    }
}

fn walker(belief: &Belief) -> Walker {
    let mut walker = Walker::new();
    if belief.unnumbered {
        walker.turns.ignore();
    }
    walker.signs.drop_these(&belief.contradicting);
    walker
}

/// Reads a half once or, if a gzip lies about its contents, again with less belief.
pub fn examine(path: &Path, progress: Option<Progress<'_>>) -> io::Result<Exam> {
    let size = std::fs::metadata(path)?.len();
    let mut belief = Belief::default();
    let mut searched = false;
    loop {
        let mut source = Source::open(path, &belief)?;
        let mut walker = walker(&belief);
        let mut facts = Facts::default();
        let mut window = vec![0; WINDOW];
        let error = push(&mut source, &mut walker, &mut facts, &mut window, |_, read| {
            if let Some(progress) = progress {
                progress(path, read, size);
            }
            Ok(())
        })?;
        if walker.turns.mean_nothing() && !belief.unnumbered {
            belief.unnumbered = true;
            continue;
        }
        let members = source.members().to_vec();
        if !searched && one_bit_may_be_wrong(&members, &walker.damage) {
            searched = true;
            belief.turned = turned(path)?;
            if belief.turned.is_some() {
                continue;
            }
        }
        let more = doubts(&members, &walker.damage, &belief.distrust);
        if let Some(more) = more {
            belief.distrust.push(more);
            continue;
        }
        // What a checksum covers is as it was written.
        let proven = !members.is_empty() && members.iter().all(|member| member.fate == Fate::Sound);
        let contradicting = if proven { Vec::new() } else { contradicting(&walker) };
        if belief.contradicting.is_empty() && !contradicting.is_empty() {
            belief.contradicting = contradicting;
            continue;
        }
        return Ok(Exam {
            walker,
            facts,
            belief,
            gzip: source.is_gzip(),
            read: source.read,
            text: source.given,
            garbage: source.garbage(),
            members,
            read_error: error.map(|error| error.to_string()),
        });
    }
}

/// Where the events begin that something else in the trace contradicts, in order.
fn contradicting(walker: &Walker) -> Vec<u64> {
    let mut events = walker.signs.verdict();
    events.extend(walker.turns.verdict());
    events.sort_unstable();
    events.dedup();
    events
}

/// Whether it is worth to look for a flipped bit. Zero bytes are a block that was not written; the text of a gzip that is merely
/// cut is good to its end, while a flip near the end of a whole one may let it run over its checksum.
fn one_bit_may_be_wrong(members: &[Member], damage: &Damage) -> bool {
    members.first().is_some_and(|member| match member.fate {
        Fate::WrongSum | Fate::Broken => member.hole.is_none(),
        Fate::Cut => member.hole.is_none() && damage.broken.is_some(),
        Fate::Sound => false,
    })
}

/// The next member that turned out to be wrong and from where. In a damaged gzip everything behind the first sign of
/// damage is garbage that may look like events.
fn doubts(members: &[Member], damage: &Damage, known: &[Distrust]) -> Option<Distrust> {
    if known.len() >= 16 {
        return None;
    }
    members.iter().enumerate().find_map(|(number, member)| {
        if member.fate == Fate::Sound || known.iter().any(|rule| rule.member == number) {
            return None;
        }
        // A gzip that is only cut may hold what Kineto itself wrote wrongly.
        let sign = if member.fate == Fate::Cut { damage.broken } else { damage.first };
        let sign = sign.filter(|sign| (member.from..member.to).contains(sign));
        let sign = sign.or_else(|| (member.fate == Fate::Broken).then_some(member.to));
        // Where a hole begins is known to the byte; other damage may have begun before it showed.
        let keep = match (member.hole, sign) {
            (Some(hole), Some(sign)) if hole > sign => sign.saturating_sub(MARGIN).max(member.from),
            (Some(hole), _) => hole,
            (None, Some(sign)) => sign.saturating_sub(MARGIN).max(member.from),
            (None, None) => return None,
        };
        Some(Distrust { member: number, keep: keep - member.from })
    })
}

fn one(trace: &Trace, target: &Path, options: &Options<'_>) -> Salvaged {
    let mut best: Option<(&Half, Exam)> = None;
    let mut failed: Option<(&Half, io::Error)> = None;
    for half in &trace.halves {
        match examine(&half.path, options.progress) {
            Ok(exam) => {
                let worth = |exam: &Exam, half: &Half| {
                    (exam.is_whole(), exam.facts.events, exam.has_all_events(), !half.is_temporary())
                };
                if best.as_ref().is_none_or(|(other, known)| worth(&exam, half) > worth(known, other)) {
                    best = Some((half, exam));
                }
            }
            Err(error) => failed = Some((half, error)),
        }
    }
    let Some((half, exam)) = best else {
        let (path, why) = failed.map_or((target, None), |(half, error)| (&*half.path, Some(error)));
        return blank(
            path,
            Some(why.map_or("there is no half".to_owned(), |e| format!("cannot read it: {e}"))),
        );
    };
    let mut record = describe(trace, half, &exam);
    if let Some((other, error)) = failed {
        record.error = Some(format!("cannot read {}: {error}", other.path.display()));
    }
    let write = matches!(record.status, Status::Repaired | Status::Salvaged);
    if write && !options.check {
        match produce(half, &exam, &record, target, options) {
            Ok(()) => record.output = Some(target.to_owned()),
            Err(error) => {
                record.error = Some(format!("cannot write {}: {error}", target.display()));
            }
        }
    }
    record
}

/// The record of what was found, before anything is written.
pub fn describe(trace: &Trace, half: &Half, exam: &Exam) -> Salvaged {
    let damage = &exam.walker.damage;
    let mut notes: Vec<String> = Vec::new();
    let events = exam.facts.events;
    let temporary = half.is_temporary();
    let status = if exam.is_whole() && !temporary {
        Status::Complete
    } else if events == 0 && exam.facts.oddities == 0 && !exam.is_whole() {
        Status::NothingToSave
    } else if exam.has_all_events() && exam.members.iter().all(|member| member.fate != Fate::WrongSum) {
        Status::Repaired
    } else {
        Status::Salvaged
    };
    let mut missing = Vec::new();
    match status {
        Status::Complete => {}
        Status::NothingToSave => notes.push(match (exam.read, exam.walker.place()) {
            (0, _) => "the file is empty".to_owned(),
            (_, Place::Done) => "this is no trace: it has no list of events".to_owned(),
            _ if !exam.walker.saw_list() && damage.broken.is_some() => "this is no trace".to_owned(),
            _ if exam.text == 0 => "nothing can be inflated".to_owned(),
            _ => "it ends before its first event".to_owned(),
        }),
        Status::Repaired if exam.is_whole() => {
            notes.push("complete, but under a temporary name or beside an unfinished copy".to_owned());
        }
        Status::Repaired | Status::Salvaged => {}
    }
    if status == Status::Salvaged {
        missing = exam.facts.missing();
        let last = exam.facts.categories.get(exam.facts.last_category);
        if !exam.walker.list_closed() {
            let last = last.map(|(name, _)| String::from_utf8_lossy(name).replace('"', ""));
            notes.push(match last.filter(|name| !name.is_empty()) {
                Some(last) => format!(
                    "cut after {events} events, within {last}: Kineto writes by type, so what comes after that is missing"
                ),
                None => format!("cut after {events} events"),
            });
        }
        if !missing.is_empty() {
            notes.push(format!("no events of {}", missing.join(", ")));
        }
    }
    if damage.mended > 0 {
        notes.push(format!("{} events or entries were no valid JSON and were mended", damage.mended));
    }
    if damage.lost_events > 0 && exam.walker.list_closed() {
        notes.push(format!("{} events inside are damaged and were dropped", damage.lost_events));
    }
    if !exam.belief.distrust.is_empty() {
        notes.push("the gzip is damaged: what follows the damage is not believed".to_owned());
    }
    if exam.members.iter().any(|member| member.fate == Fate::WrongSum) && exam.belief.distrust.is_empty() {
        notes.push(
            "the checksum is wrong although everything reads well: single values may be false".to_owned(),
        );
    }
    if let Some(turned) = exam.belief.turned {
        notes.push(format!(
            "one bit of the gzip was wrong (byte {}): put right, and the checksum agrees",
            turned.at
        ));
    }
    if exam.garbage > 0 {
        notes.push(format!("{} bytes behind the gzip were ignored", exam.garbage));
    }
    if exam.facts.flows.untracked > 0 {
        notes.push("too many arrows to close them all".to_owned());
    }
    if let Some(error) = &exam.read_error {
        notes.push(format!("reading ended early: {error}"));
    }
    let others: Vec<String> = trace
        .halves
        .iter()
        .filter(|other| other.path != half.path)
        .map(|other| other.path.display().to_string())
        .collect();
    if !others.is_empty() {
        notes.push(format!("more complete than {}", others.join(", ")));
    }
    Salvaged {
        input: half.path.clone(),
        output: None,
        status,
        events_kept: events,
        events_dropped: damage.lost_events,
        bytes_read: exam.read,
        bytes_lost: damage.lost_bytes,
        missing_categories: missing,
        note: notes.join("; "),
        error: None,
    }
}

fn produce(
    half: &Half,
    exam: &Exam,
    record: &Salvaged,
    target: &Path,
    options: &Options<'_>,
) -> io::Result<()> {
    let name = target.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let pending = Pending::create(target)?;
    let gzip = GzipWriter::new(io::BufWriter::new(pending), gz::LEVEL, gz::workers())?;
    let gzip = weave(&half.path, exam, record, &name, gzip, options.progress)?;
    let pending = gzip.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    let keep = (options.in_place && target.exists()).then(|| broken_name(target));
    pending.commit(keep.as_deref())
}

/// Reads a half for the second time and writes the salvaged trace, uncompressed, into `out`.
pub fn weave<W: io::Write>(
    path: &Path,
    exam: &Exam,
    record: &Salvaged,
    name: &str,
    out: W,
    progress: Option<Progress<'_>>,
) -> io::Result<W> {
    let restore = !exam.has_all_events();
    let mark = Mark {
        by: concat!("varcas-guard ", env!("CARGO_PKG_VERSION")).to_owned(),
        source: path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        status: record.status.to_string(),
        events_kept: record.events_kept,
        events_dropped: record.events_dropped,
        mended: exam.walker.damage.mended,
        bytes_read: record.bytes_read,
        bytes_lost: record.bytes_lost,
        missing_categories: record.missing_categories.clone(),
        arrows_closed: if restore { exam.facts.flows.dangling() } else { 0 },
        note: record.note.clone(),
    };
    let mut weaver = Weaver::new(out, &exam.facts, &mark, name, restore)?;
    let mut source = Source::open(path, &exam.belief)?;
    let mut walker = walker(&exam.belief);
    let mut window = vec![0; WINDOW];
    push(&mut source, &mut walker, &mut weaver, &mut window, |weaver, read| {
        if let Some(progress) = progress {
            progress(path, read, record.bytes_read);
        }
        weaver.check()
    })?;
    if weaver.events != exam.facts.events {
        return Err(io::Error::other("the input changed while it was read: salvage again"));
    }
    weaver.finish()
}

/// A name for the original that nothing has yet.
fn broken_name(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".broken");
    let mut number = 2;
    while Path::new(&name).exists() {
        name = target.as_os_str().to_owned();
        name.push(format!(".broken.{number}"));
        number += 1;
    }
    PathBuf::from(name)
}
