//! Bytes become lines. Pure: it is given what a file holds, piece by piece.

use memchr::memchr;

/// A line may be this long; what is beyond is counted and thrown away, so that a program that prints 10 GB without a
/// line break costs no memory.
pub const MAX_LINE: usize = 1 << 20;

/// One line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it begins in its file.
    pub offset: u64,
    /// Its number in its file, from 1.
    pub number: u64,
    /// Without the line break, also without a carriage return before it (vLLM writes `\r\n` inside its messages).
    /// Carriage returns of a progress bar stay inside. Bytes that are no UTF-8 are replaced.
    pub text: String,
    /// The line was longer than [`MAX_LINE`]; this is its beginning.
    pub truncated: bool,
}

/// Cuts a stream of bytes into lines.
#[derive(Debug)]
pub struct LineSplitter {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// The line's beginning was handed out already, the rest is thrown away.
    discarding: bool,
    offset: u64,
    number: u64,
    limit: usize,
    discarded: u64,
}

impl Default for LineSplitter {
    fn default() -> Self {
        Self::new(MAX_LINE)
    }
}

impl LineSplitter {
    /// At the beginning of a file.
    pub fn new(limit: usize) -> Self {
        Self {
            partial: Vec::new(),
            discarding: false,
            offset: 0,
            number: 1,
            limit: limit.max(1),
            discarded: 0,
        }
    }

    /// Takes the next bytes of the file and appends the lines they complete.
    pub fn push(&mut self, mut bytes: &[u8], lines: &mut Vec<Line>) {
        while let Some(end) = memchr(b'\n', bytes) {
            self.take(&bytes[..end], true, lines);
            bytes = &bytes[end + 1..];
        }
        self.take(bytes, false, lines);
    }

    /// The file ended or was cut: an unfinished line is handed out as it is, and a new file begins.
    pub fn finish(&mut self, lines: &mut Vec<Line>) {
        self.end_of_text(lines);
        self.offset = 0;
        self.number = 1;
    }

    /// Hands out an unfinished line although its end may still come; what then comes is a line of its own.
    pub fn end_of_text(&mut self, lines: &mut Vec<Line>) {
        if !self.partial.is_empty() {
            let partial = std::mem::take(&mut self.partial);
            self.emit(&partial, false, lines);
            self.advance(partial.len() as u64);
        }
        if std::mem::take(&mut self.discarding) {
            self.number += 1;
        }
    }

    /// Bytes thrown away so far because their lines were too long.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    fn take(&mut self, bytes: &[u8], ends: bool, lines: &mut Vec<Line>) {
        if self.discarding {
            self.discarded += bytes.len() as u64;
            self.offset += bytes.len() as u64;
            if ends {
                self.discarding = false;
                self.advance(1);
            }
            return;
        }
        let room = self.limit - self.partial.len();
        if bytes.len() > room {
            // Handed out now and not at its end: a rule may be waiting for just this text.
            self.partial.extend_from_slice(&bytes[..room]);
            let head = std::mem::take(&mut self.partial);
            self.emit(&head, true, lines);
            self.offset += head.len() as u64;
            self.discarding = true;
            return self.take(&bytes[room..], ends, lines);
        }
        if !ends {
            self.partial.extend_from_slice(bytes);
        } else if self.partial.is_empty() {
            self.emit(bytes, false, lines);
            self.advance(bytes.len() as u64 + 1);
        } else {
            self.partial.extend_from_slice(bytes);
            let whole = std::mem::take(&mut self.partial);
            self.emit(&whole, false, lines);
            self.advance(whole.len() as u64 + 1);
        }
    }

    fn advance(&mut self, bytes: u64) {
        self.offset += bytes;
        self.number += 1;
    }

    fn emit(&self, bytes: &[u8], truncated: bool, lines: &mut Vec<Line>) {
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let text = String::from_utf8_lossy(bytes).into_owned();
        lines.push(Line { offset: self.offset, number: self.number, text, truncated });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(pieces: &[&[u8]], limit: usize) -> (Vec<Line>, u64) {
        let mut splitter = LineSplitter::new(limit);
        let mut lines = Vec::new();
        for piece in pieces {
            splitter.push(piece, &mut lines);
        }
        splitter.finish(&mut lines);
        (lines, splitter.discarded())
    }

    #[test]
    fn a_line_in_pieces_is_one_line() {
        let (lines, _) = split(&[b"ab", b"c\r", b"\nd", b"", b"\n\n"], 100);
        let seen: Vec<_> = lines.iter().map(|line| (line.offset, line.number, line.text.as_str())).collect();
        assert_eq!(seen, [(0, 1, "abc"), (5, 2, "d"), (7, 3, "")]);
    }

    #[test]
    fn a_progress_bar_stays_whole_and_bytes_that_are_no_text_are_replaced() {
        let (lines, _) = split(&[b"10%\r20%\r\n\xff\xfeok\n"], 100);
        assert_eq!(lines[0].text, "10%\r20%");
        assert_eq!(lines[1].text, "\u{fffd}\u{fffd}ok");
    }

    #[test]
    fn the_beginning_of_an_endless_line_is_handed_out_at_once_and_the_rest_is_counted() {
        let mut splitter = LineSplitter::new(4);
        let mut lines = Vec::new();
        splitter.push(b"abcdef", &mut lines);
        assert_eq!(lines, [Line { offset: 0, number: 1, text: "abcd".to_owned(), truncated: true }]);
        splitter.push(b"ghi\nx\n", &mut lines);
        assert_eq!(lines[1], Line { offset: 10, number: 2, text: "x".to_owned(), truncated: false });
        assert_eq!(splitter.discarded(), 5);
    }

    #[test]
    fn lines_after_an_unfinished_one_that_was_handed_out_are_counted_on() {
        for (limit, first, discarded) in [(100, "abcdef", 0), (4, "abcd", 2)] {
            let mut splitter = LineSplitter::new(limit);
            let mut lines = Vec::new();
            splitter.push(b"x\n\nabcdef", &mut lines);
            splitter.end_of_text(&mut lines);
            splitter.push(b"y\n", &mut lines);
            let seen: Vec<_> =
                lines.iter().map(|line| (line.offset, line.number, line.text.as_str())).collect();
            assert_eq!(seen, [(0, 1, "x"), (2, 2, ""), (3, 3, first), (9, 4, "y")]);
            assert_eq!(splitter.discarded(), discarded);
        }
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_whole_text_however_it_is_cut(
            text in "[ab\u{e9}\r]{0,6}(\n[ab\u{e9}\r]{0,6}){0,8}",
            cuts in prop::collection::vec(0usize..80, 0..6),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&bytes[from..cut]);
                from = cut;
            }
            pieces.push(&bytes[from..]);
            let (lines, _) = split(&pieces, 1000);
            let mut whole: Vec<&str> = text.split('\n').collect();
            if whole.last() == Some(&"") { whole.pop(); }
            let whole: Vec<&str> = whole.into_iter().map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
            prop_assert_eq!(lines.iter().map(|line| line.text.as_str()).collect::<Vec<_>>(), whole);
            for line in &lines {
                prop_assert!(bytes[line.offset as usize..].starts_with(line.text.as_bytes()));
            }
        }

        #[test]
        fn no_byte_is_lost_without_being_counted(text in "[a\n]{0,200}", limit in 1usize..20, cut in 0usize..200) {
            let cut = cut.min(text.len());
            let (lines, discarded) = split(&[&text.as_bytes()[..cut], &text.as_bytes()[cut..]], limit);
            let kept: usize = lines.iter().map(|line| line.text.len()).sum();
            let breaks = text.matches('\n').count();
            prop_assert_eq!(kept + breaks + discarded as usize, text.len());
        }
    }
}
