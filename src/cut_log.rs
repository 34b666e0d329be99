//! A server's log of which a part was taken out of the middle, because it would have filled the disk.
//!
//! The server appends to the file itself and is never asked: a part that it wrote long ago is made a hole
//! (`FALLOC_FL_PUNCH_HOLE`). No byte moves, so a writer and whoever follows the file notice nothing, and nothing that is
//! written meanwhile can be lost, as between the copying and the truncating of a copytruncate. When the server is gone, the
//! hole is closed up (`Cut::is_hole` is false then) and the log is an ordinary file again. In front of what is missing stands
//! one line, from which every line behind it has the number that it had when it was written.
//!
//! Whoever reads such a log reads it here: `health` watches it, `recovery` quotes it, `supervisor` cuts it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The beginning of a log stays whole; no more than this.
pub const MOST_HEAD: u64 = 4 << 20;
/// The line about what is missing, with its line break. It is written over what was there, so its length is always the same.
pub const NOTE: usize = 320;
const BEGINS: &str = "[varcas-guard: lines ";

/// What is not in the log any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Where it began, in bytes from the beginning of the log; there stands the note.
    pub from: u64,
    /// Where it ended, in the log as it was written.
    pub to: u64,
    /// Number of its first line, from 1.
    pub first: u64,
    /// Number of its last line.
    pub last: u64,
    /// The last line that is in the [`piece`]; below `first` when none is.
    pub kept: u64,
    /// What is behind it still stands in its old place.
    pub is_hole: bool,
}

/// Where the first of the lines that were taken out are kept.
pub fn piece(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".cut.gz");
    PathBuf::from(name)
}

impl Cut {
    /// As it stands in the log. `piece` is the name of the file that holds the first lines.
    pub fn note(&self, piece: &str) -> Vec<u8> {
        let Self { from, to, first, last, kept, .. } = self;
        let state = if self.is_hole { "are a hole" } else { "were taken out" };
        let kept = if *kept < *first {
            "none of them is kept".to_owned()
        } else {
            format!("lines {first} to {kept} of them are in {piece}")
        };
        let mut text = format!(
            "{BEGINS}{first} to {last}, bytes {from} to {to}, {state} here, because of disk.max-log; {kept}]"
        )
        .into_bytes();
        text.resize(NOTE - 1, b' ');
        text.push(b'\n');
        text
    }

    /// Reads a note.
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_end().strip_prefix(BEGINS)?.strip_suffix(']')?;
        let (lines, rest) = rest.split_once(", bytes ")?;
        let (bytes, rest) = rest.split_once(", ")?;
        let (state, kept) = rest.split_once(" here, because of disk.max-log; ")?;
        let pair = |text: &str| -> Option<(u64, u64)> {
            let (from, to) = text.split_once(" to ")?;
            Some((from.parse().ok()?, to.parse().ok()?))
        };
        let ((first, last), (from, to)) = (pair(lines)?, pair(bytes)?);
        let is_hole = match state {
            "are a hole" => true,
            "were taken out" => false,
            _ => return None,
        };
        let kept = match kept.strip_prefix("lines ").and_then(|kept| kept.split_once(" of them are in ")) {
            Some((kept, _)) => pair(kept)?.1,
            None => first.checked_sub(1)?,
        };
        // None of them is whole when a line without an end was taken out.
        let is_sound =
            first <= last.saturating_add(1) && kept <= last && to.checked_sub(from)? >= NOTE as u64;
        is_sound.then_some(Self { from, to, first, last, kept, is_hole })
    }

    /// What a log says of itself; none when it is whole.
    pub fn of(log: &File) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        let most = usize::try_from(MOST_HEAD).unwrap_or(usize::MAX) + NOTE;
        let mut piece = vec![0; 64 << 10];
        while head.len() < most {
            match log.read_at(&mut piece, head.len() as u64) {
                Ok(0) => break,
                Ok(got) => head.extend_from_slice(&piece[..got]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            // A note may begin in one piece and end in the next.
            let from = head.len().saturating_sub(piece.len() + NOTE);
            let found = memchr::memmem::find_iter(&head[from..], BEGINS.as_bytes())
                .filter_map(|at| {
                    let note = head.get(from + at..from + at + NOTE)?;
                    // A server may print what looks like a note, but hardly one that knows its own place.
                    Self::parse(std::str::from_utf8(note).ok()?).filter(|cut| cut.from == (from + at) as u64)
                })
                .next();
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Where in the file the first line behind it begins.
    pub fn goes_on(&self) -> u64 {
        if self.is_hole { self.to } else { self.from + NOTE as u64 }
    }

    /// A place in the file as one in the log as it was written.
    pub fn written(&self, in_file: u64) -> u64 {
        if in_file < self.goes_on() { in_file } else { self.to + (in_file - self.goes_on()) }
    }

    /// Lines that are nowhere any more, if there are any: first and last.
    pub fn lost(&self) -> Option<(u64, u64)> {
        let first = self.first.max(self.kept + 1);
        (first <= self.last).then_some((first, self.last))
    }
}

/// Part of a log that is read from its beginning to its end.
#[derive(Debug)]
pub enum Part<'a> {
    /// The next bytes.
    Bytes(&'a [u8]),
    /// Lines that are missing, and as many bytes.
    Missing {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
        /// Where the line after them begins in the log as it was written.
        to: u64,
    },
}

/// Reads a log with what was taken out of it, as far as that is kept beside it.
pub fn read(log: &Path, file: &File, take: &mut dyn FnMut(Part<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let Some(cut) = Cut::of(file)? else { return read_from(file, 0, u64::MAX, &mut buffer, take) };
    read_from(file, 0, cut.from, &mut buffer, take)?;
    let mut kept = (cut.kept + 1).saturating_sub(cut.first);
    let pieces = if kept > 0 { File::open(piece(log)).ok() } else { None };
    if let Some(pieces) = pieces {
        let mut pieces = flate2::bufread::MultiGzDecoder::new(BufReader::new(pieces));
        while kept > 0 {
            // A piece whose end is missing is read as far as it goes; what is missing is told.
            let Ok(got @ 1..) = pieces.read(&mut buffer) else { break };
            let bytes = &buffer[..got];
            let mut end = 0;
            for at in memchr::memchr_iter(b'\n', bytes).take(usize::try_from(kept).unwrap_or(usize::MAX)) {
                (end, kept) = (at + 1, kept - 1);
            }
            take(Part::Bytes(if kept == 0 { &bytes[..end] } else { bytes }))?;
        }
    }
    let first = if cut.kept < cut.first { cut.first } else { cut.kept + 1 - kept };
    take(Part::Missing { first, last: cut.last, to: cut.to })?;
    read_from(file, cut.goes_on(), u64::MAX, &mut buffer, take)
}

fn read_from(
    file: &File,
    mut at: u64,
    end: u64,
    buffer: &mut [u8],
    take: &mut dyn FnMut(Part<'_>) -> io::Result<()>,
) -> io::Result<()> {
    while at < end {
        let room = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        match file.read_at(&mut buffer[..room], at) {
            Ok(0) => break,
            Ok(got) => {
                take(Part::Bytes(&buffer[..got]))?;
                at += got as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What stands around a place in the log as it was written, `reach` bytes of it before and behind, and where that begins. What
/// is missing ends it.
pub fn near(log: &Path, file: &File, place: u64, reach: u64) -> io::Result<(u64, Vec<u8>)> {
    let (mut from, to) = (place.saturating_sub(reach), place.saturating_add(reach));
    let mut bytes = Vec::new();
    let cut = Cut::of(file)?.filter(|cut| to > cut.from);
    if cut.is_none_or(|cut| from >= cut.to) {
        let moved = cut.map_or(0, |cut| cut.to - cut.goes_on());
        span(file, from - moved, to - moved, &mut |part| bytes.extend_from_slice(part))?;
        return Ok((from, bytes));
    }
    let mut at = 0;
    let end = read(log, file, &mut |part| {
        match part {
            Part::Bytes(part) => {
                let end = at + part.len() as u64;
                let within = |place: u64| usize::try_from(place.clamp(at, end) - at).unwrap_or(0);
                bytes.extend_from_slice(&part[within(from)..within(to)]);
                at = end;
            }
            Part::Missing { to: next, .. } if at < next && place >= next => {
                bytes.clear();
                (from, at) = (from.max(next), next);
            }
            Part::Missing { to: next, .. } => {
                if at < next {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
        }
        if at >= to { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    });
    match end {
        // Enough was read.
        Err(error) if error.kind() != io::ErrorKind::WriteZero => Err(error),
        _ => Ok((from, bytes)),
    }
}

fn span(file: &File, from: u64, to: u64, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    read_from(file, from, to, &mut buffer, &mut |part| {
        if let Part::Bytes(bytes) = part {
            take(bytes);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(text: &[u8]) -> Vec<u8> {
        let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut member, text).unwrap();
        member.finish().unwrap()
    }

    /// The log `line 1` to `line 100`, of which 31 to 80 are missing and 31 to 40 are kept.
    fn cut_log(dir: &Path, is_hole: bool) -> (PathBuf, String) {
        let whole: String = (1..=100).map(|n| format!("line {n} {}\n", "x".repeat(40))).collect();
        let begin = |n: usize| whole.match_indices('\n').nth(n - 2).map_or(0, |(at, _)| at + 1);
        let (from, to) = (begin(31), begin(81));
        let cut = Cut { from: from as u64, to: to as u64, first: 31, last: 80, kept: 40, is_hole };
        let path = dir.join("vllm_server.log");
        let zeros = if is_hole { vec![0; to - from - NOTE] } else { Vec::new() };
        let text =
            [&whole.as_bytes()[..from], &cut.note("vllm_server.log.cut.gz"), &zeros, &whole.as_bytes()[to..]];
        std::fs::write(&path, text.concat()).unwrap();
        let mut kept = Vec::new();
        for part in [begin(31)..begin(36), begin(36)..begin(41)] {
            kept.extend(member(&whole.as_bytes()[part]));
        }
        std::fs::write(piece(&path), kept).unwrap();
        (path, whole)
    }

    #[test]
    fn a_cut_log_is_read_with_what_is_kept_and_says_what_is_missing() {
        for is_hole in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (path, whole) = cut_log(dir.path(), is_hole);
            let seen = |path: &Path| {
                let (mut text, mut gaps) = (Vec::new(), Vec::new());
                read(path, &File::open(path).unwrap(), &mut |part| {
                    match part {
                        Part::Bytes(bytes) => text.extend_from_slice(bytes),
                        Part::Missing { first, last, to } => gaps.push((first, last, to)),
                    }
                    Ok(())
                })
                .unwrap();
                (String::from_utf8(text).unwrap(), gaps)
            };
            let number = |n: usize| whole.lines().nth(n - 1).unwrap().to_owned() + "\n";
            let to = whole.find("line 81 ").unwrap() as u64;
            let there = |last: usize| -> String { (1..=last).chain(81..=100).map(number).collect() };
            assert_eq!(seen(&path), (there(40), vec![(41, 80, to)]));
            let pieces = std::fs::read(piece(&path)).unwrap();
            // What is in the piece already but not yet in the note still stands in the log.
            let more: Vec<u8> = [31..=41, 42..=43]
                .map(|lines| member(lines.map(number).collect::<String>().as_bytes()))
                .concat();
            std::fs::write(piece(&path), more).unwrap();
            assert_eq!(seen(&path), (there(40), vec![(41, 80, to)]));
            // A torn piece is read as far as it goes.
            std::fs::write(piece(&path), &pieces[..pieces.len() - 20]).unwrap();
            let (text, gaps) = seen(&path);
            assert!(
                text.starts_with(&whole[..whole.find("line 36 ").unwrap()]) && text.contains("line 81 "),
                "{text}"
            );
            assert!(gaps[0].0 >= 36 && gaps[0].1 == 80, "{gaps:?}");
            std::fs::remove_file(piece(&path)).unwrap();
            assert_eq!(seen(&path), (there(30), vec![(31, 80, to)]));
        }
    }

    #[test]
    fn what_is_shown_around_a_line_never_goes_over_what_is_missing() {
        for is_hole in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (path, whole) = cut_log(dir.path(), is_hole);
            let file = File::open(&path).unwrap();
            for (line, first, last) in
                [(10, 8, 11), (30, 28, 31), (40, 38, 40), (81, 81, 82), (82, 81, 83), (95, 93, 96)]
            {
                let place = whole.find(&format!("line {line} ")).unwrap() as u64;
                let (from, bytes) = near(&path, &file, place, 100).unwrap();
                let from = usize::try_from(from).unwrap();
                assert_eq!(whole.as_bytes()[from..from + bytes.len()], bytes, "{line}");
                let text = String::from_utf8_lossy(&whole.as_bytes()[from..from + bytes.len()]).into_owned();
                assert!(text.contains(&format!("line {line} ")), "{line}: {text}");
                for (n, is) in [(first, true), (last, true), (first - 2, false), (last + 2, false)] {
                    assert_eq!(text.contains(&format!("{n} x")), is, "{line}: {n}: {text}");
                }
            }
            // Nor where both sides of it are in reach.
            let begin = |line: &str| whole.find(line).unwrap();
            for (line, shown) in
                [("line 40 ", 0..begin("line 41 ")), ("line 82 ", begin("line 81 ")..whole.len())]
            {
                let (from, bytes) = near(&path, &file, begin(line) as u64, 10_000).unwrap();
                assert_eq!(from, shown.start as u64, "{line}");
                assert_eq!(String::from_utf8(bytes).unwrap(), whole[shown], "{line}");
            }
        }
    }

    const CUT: Cut = Cut { from: 10, to: 5000, first: 3, last: 90, kept: 40, is_hole: true };

    #[test]
    fn a_note_says_what_was_taken_out_and_always_has_the_same_length() {
        let largest = u64::MAX;
        let wide = Cut {
            from: largest - 1000,
            to: largest,
            first: largest - 9,
            last: largest,
            kept: largest - 1,
            is_hole: false,
        };
        for cut in [CUT, Cut { kept: 2, ..CUT }, Cut { is_hole: false, ..CUT }, wide] {
            let note = cut.note("vllm_server.log.cut.gz");
            assert_eq!(note.len(), NOTE);
            assert_eq!(Cut::parse(std::str::from_utf8(&note).unwrap()), Some(cut));
        }
        assert_eq!((CUT.lost(), Cut { kept: 90, ..CUT }.lost()), (Some((41, 90)), None));
    }

    #[test]
    fn what_is_no_note_is_not_taken_for_one() {
        let note = String::from_utf8(CUT.note("x")).unwrap();
        for wrong in [
            "",
            "[varcas-guard: lines ",
            &note[1..],
            &note.replace("3 to 90", "90 to 3"),
            &note.replace("hole", "whole"),
            &note.replace("lines 3 to 40", "lines 3 to 91"),
            // Not even as long as the note itself.
            &note.replace("10 to 5000", "10 to 329"),
        ] {
            assert_eq!(Cut::parse(wrong), None, "{wrong}");
        }
        // One that the server printed at another place than it names.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, format!("a line\n{note}more\n")).unwrap();
        assert_eq!(Cut::of(&File::open(&path).unwrap()).unwrap(), None);
        std::fs::write(&path, format!("123456789\n{note}more\n")).unwrap();
        assert_eq!(Cut::of(&File::open(&path).unwrap()).unwrap(), Some(CUT));
    }

    #[test]
    fn a_note_is_found_wherever_the_head_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        // It is read in pieces of 65536 bytes.
        for from in [0, 65_535, 65_536, 65_537, 65_536 - NOTE as u64 / 2, 65_537 - NOTE as u64, MOST_HEAD] {
            let cut = Cut { from, to: from + 5000, ..CUT };
            let head = vec![b'\n'; usize::try_from(from).unwrap()];
            std::fs::write(&path, [head, cut.note("x"), vec![b'\n'; 1 << 17]].concat()).unwrap();
            assert_eq!(Cut::of(&File::open(&path).unwrap()).unwrap(), Some(cut), "{from}");
        }
    }

    #[test]
    fn places_in_the_file_are_places_in_what_was_written() {
        let closed = Cut { is_hole: false, ..CUT };
        assert_eq!((CUT.goes_on(), CUT.written(7), CUT.written(5005)), (5000, 7, 5005));
        assert_eq!(
            (closed.goes_on(), closed.written(7), closed.written(10 + NOTE as u64 + 5)),
            (330, 7, 5005)
        );
    }
}
