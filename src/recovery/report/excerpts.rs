//! What the run folder says beside the journal: the log around the decisive line and the stacks, cut to what a page can
//! carry. An edge: it reads files, and whatever cannot be read is left out, because the page links to the files anyway.

use super::Excerpt;
use super::model::{Attempt, Report};
use super::units::bytes;
use crate::event::Outcome;
use crate::redact::Redactor;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
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

/// Some lines before and after line `number`.
fn around(path: &Path, number: u64) -> io::Result<Option<Excerpt>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let first = number.saturating_sub(BEFORE).max(1);
    let mut reader = BufReader::with_capacity(1 << 16, file.take(REACH));
    for _ in 1..first {
        if reader.skip_until(b'\n')? == 0 {
            return Ok(None);
        }
    }
    let mut raw = Vec::new();
    let mut at = first;
    while at <= number + AFTER {
        let before = raw.len();
        // A line may be as long as the file.
        let got = (&mut reader).take(MOST).read_until(b'\n', &mut raw)?;
        if got == 0 {
            break;
        }
        if raw.last() != Some(&b'\n') {
            reader.skip_until(b'\n')?;
        }
        raw.truncate(before + got.min(LONGEST));
        if raw.last() != Some(&b'\n') {
            raw.extend_from_slice(" ...\n".as_bytes());
        }
        at += 1;
    }
    if at <= number {
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
