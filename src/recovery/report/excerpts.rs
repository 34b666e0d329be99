//! What the run folder says beside the journal: the log around the decisive line and the stacks, cut to what a page can
//! carry. An edge: it reads files, and whatever cannot be read is left out, because the page links to the files anyway.

use super::Excerpt;
use super::model::{Attempt, Report};
use super::units::bytes;
use crate::cut_log::{self, Part};
use crate::event::Outcome;
use crate::redact::Redactor;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Component, Path};

/// Of one file.
const MOST: u64 = 16 << 10;
/// Of all files together.
const MOST_IN_ALL: usize = 512 << 10;
/// Files with stacks of one attempt.
const MOST_STACKS: usize = 8;
/// Attempts of which files are taken along.
const FIRST: usize = 3;
const LAST: usize = 5;
/// Lines before and after the decisive one.
const BEFORE: u64 = 12;
const AFTER: u64 = 30;
/// A line that is longer tells no more.
const LONGEST: usize = 400;
/// How far into a log the decisive line is looked for.
const REACH: u64 = 1 << 30;

/// Reads what belongs to the attempts that failed.
pub fn gather(root: &Path, report: &Report) -> Vec<Excerpt> {
    let last = report.attempts.len().saturating_sub(LAST);
    let failed = report.attempts.iter().enumerate().filter(|(index, attempt)| {
        (*index < FIRST || *index >= last)
            && attempt.ending.as_ref().is_none_or(|ending| ending.outcome != Outcome::Success)
    });
    let mut out: Vec<Excerpt> = failed.flat_map(|(_, attempt)| of_attempt(root, attempt)).collect();
    let mut room = MOST_IN_ALL;
    out.retain(|excerpt| {
        let fits = excerpt.text.len() <= room;
        room -= if fits { excerpt.text.len() } else { 0 };
        fits
    });
    out
}

fn of_attempt(root: &Path, attempt: &Attempt) -> Vec<Excerpt> {
    let folder = root.join(format!("attempt-{}", attempt.number));
    let mut out = Vec::new();
    let log = folder.join("vllm_server.log");
    let decisive = attempt.verdict.as_ref().and_then(|verdict| verdict.decisive.as_ref());
    let line = decisive.filter(|quote| quote.source == "vllm_server.log").and_then(|quote| quote.line);
    let found = line.and_then(|line| around(&log, line).ok().flatten());
    if let Some(mut log) = found.or_else(|| tail(&log).ok().flatten()) {
        log.attempt = attempt.number;
        log.path = "vllm_server.log".to_owned();
        log.log = true;
        out.push(log);
    }
    let stacks = attempt.evidence.iter().filter_map(|item| item.file.as_deref());
    let stacks = stacks.filter(|name| name.starts_with("stacks-") || name.starts_with("py-spy-"));
    for name in stacks.filter(|name| is_plain(name)).take(MOST_STACKS) {
        if let Ok(Some(mut file)) = tail(&folder.join("evidence").join(name)) {
            file.attempt = attempt.number;
            file.path = format!("evidence/{name}");
            out.push(file);
        }
    }
    out
}

/// A name that leads nowhere else.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// Only a regular file is opened: a pipe would wait for a writer.
fn open(path: &Path) -> io::Result<Option<File>> {
    if std::fs::symlink_metadata(path)?.is_file() { File::open(path).map(Some) } else { Ok(None) }
}

fn tail(path: &Path) -> io::Result<Option<Excerpt>> {
    let Some(mut file) = open(path)? else { return Ok(None) };
    let length = file.metadata()?.len();
    let start = length.saturating_sub(MOST);
    file.seek(SeekFrom::Start(start))?;
    let mut raw = Vec::new();
    file.take(MOST).read_to_end(&mut raw)?;
    if start > 0
        && let Some(end) = memchr::memchr(b'\n', &raw)
    {
        raw.drain(..=end);
    }
    let note =
        if start > 0 { format!("the last {} of {}", bytes(MOST), bytes(length)) } else { String::new() };
    Ok((!raw.is_empty()).then(|| Excerpt { text: text(&raw), note, first_line: 1, ..Excerpt::default() }))
}

/// Some lines before and after line `number`; what was taken out of the log ends them.
fn around(path: &Path, number: u64) -> io::Result<Option<Excerpt>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut lines = Lines { number, at: 1, first: 0, length: 0, raw: Vec::new(), read: 0 };
    let read = cut_log::read(path, &file, &mut |part| lines.take(part));
    // Enough was read.
    read.or_else(|error| if error.kind() == io::ErrorKind::WriteZero { Ok(()) } else { Err(error) })?;
    if lines.length > 0 {
        lines.end();
    }
    let Lines { at, first, raw, .. } = lines;
    if at <= number || first == 0 || first > number {
        return Ok(None);
    }
    let note = format!("lines {first} to {}", at - 1);
    Ok(Some(Excerpt {
        text: text(&raw),
        note,
        first_line: first,
        decisive: Some(number),
        ..Excerpt::default()
    }))
}

/// Collects the lines around one.
struct Lines {
    number: u64,
    /// The line that comes in.
    at: u64,
    /// The first one that was collected; 0 while there is none.
    first: u64,
    /// So long is the line that comes in by now.
    length: usize,
    raw: Vec<u8>,
    read: u64,
}

impl Lines {
    fn take(&mut self, part: Part<'_>) -> io::Result<()> {
        let mut bytes = match part {
            Part::Bytes(bytes) => bytes,
            Part::Missing { last, .. } if last < self.at => return Ok(()),
            Part::Missing { last, .. } => {
                if self.at > self.number {
                    return Err(io::ErrorKind::WriteZero.into());
                }
                (self.at, self.first, self.length) = (last + 1, 0, 0);
                self.raw.clear();
                return Ok(());
            }
        };
        self.read += bytes.len() as u64;
        let first = self.number.saturating_sub(BEFORE).max(1);
        while !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let line = &bytes[..end.unwrap_or(bytes.len())];
            if self.at >= first {
                self.first = if self.first == 0 { self.at } else { self.first };
                let room = LONGEST.saturating_sub(self.length).min(line.len());
                self.raw.extend_from_slice(&line[..room]);
                self.length += line.len();
            }
            let Some(end) = end else { break };
            if self.at >= first {
                self.end();
            } else {
                self.at += 1;
            }
            if self.at > self.number + AFTER {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[end + 1..];
        }
        if self.read > REACH { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    fn end(&mut self) {
        if self.length > LONGEST {
            self.raw.extend_from_slice(b" ...");
        }
        self.raw.push(b'\n');
        (self.at, self.length) = (self.at + 1, 0);
    }
}

fn text(raw: &[u8]) -> String {
    // Of a run that goes on, the log still is as the server wrote it.
    Redactor::forms().text(&String::from_utf8_lossy(raw)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn the_lines_around_the_decisive_one_are_found_by_its_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = String::new();
        for n in 1..=100 {
            writeln!(log, "line {n}").unwrap();
        }
        std::fs::write(&path, &log).unwrap();
        let found = around(&path, 50).unwrap().unwrap();
        assert_eq!((found.first_line, found.decisive), (38, Some(50)));
        assert_eq!(found.text.lines().next(), Some("line 38"));
        assert_eq!(found.text.lines().last(), Some("line 80"));
        let near_end = around(&path, 99).unwrap().unwrap();
        assert_eq!(near_end.text.lines().last(), Some("line 100"));
        assert_eq!(around(&path, 101).unwrap(), None);
    }

    #[test]
    fn what_was_taken_out_of_the_log_changes_no_number_and_joins_no_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let line = |n: u64| format!("line {n} {}\n", "x".repeat(20));
        let lines = |range: std::ops::RangeInclusive<u64>| range.map(line).collect::<String>();
        let (from, to) = (lines(1..=30).len() as u64, lines(1..=80).len() as u64);
        let cut = cut_log::Cut { from, to, first: 31, last: 80, kept: 30, is_hole: false };
        let text = [lines(1..=30).into_bytes(), cut.note("x"), lines(81..=120).into_bytes()].concat();
        std::fs::write(&path, text).unwrap();
        let found = |number| around(&path, number).unwrap().map(|found| found.note);
        assert_eq!(found(25), Some("lines 13 to 30".to_owned()));
        assert_eq!(found(83), Some("lines 81 to 113".to_owned()));
        assert_eq!((found(50), found(121)), (None, None));
        assert!(around(&path, 83).unwrap().unwrap().text.starts_with("line 81 "));
    }

    #[test]
    fn a_line_without_an_end_cannot_fill_the_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, [vec![b'x'; 1 << 20], b"\nsecond\n".to_vec()].concat()).unwrap();
        let found = around(&path, 2).unwrap().unwrap();
        assert!(found.text.len() < 1000 && found.text.ends_with("second\n"), "{}", found.text);
    }

    #[test]
    fn what_is_no_plain_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert_eq!(tail(&link).unwrap(), None);
        assert_eq!(tail(dir.path()).unwrap(), None);
        for name in ["../x", "/etc/passwd", "a/b", "..", ""] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
