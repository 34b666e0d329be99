//! Mends one event or one entry that a strict reader refuses although nothing of it is missing: Kineto writes quotes
//! unescaped, NaN and Infinity raw, and passes control characters and broken UTF-8 through (pytorch#146900,
//! pytorch#130622).
//!
//! Where a string with quotes in it ends is a guess; the first guess with which everything around it is strict JSON is
//! taken. Whatever would swallow a neighbouring field is refused: what is damaged rather than badly written must be
//! dropped, not reinterpreted.
//!
//! Pure.

use super::scan::{Cursor, Event, escape_len};

/// The longest text that is worth guessing about.
const LONGEST: usize = 1 << 20;
/// Bytes that may be read over all guesses for one text, beside so many times its length. What Kineto writes needs a few
/// guesses; a trace full of events that no guess mends must not take for ever.
const EFFORT: usize = 64 << 10;
/// Times that a text may be read.
const READINGS: usize = 8;

/// Mends the event that `text` begins with. `None` if it cannot be done without inventing something; otherwise the
/// strict event and how much of `text` it stands for.
pub fn event(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    mend(text, b",]", b"\n  }", |mended| {
        let mut event = Event::default();
        Cursor::new(mended, 0).event(&mut event, 100)
            && event.phase(mended) != 0
            && [event.name, event.ts, event.pid, event.tid].iter().all(|field| field.present())
    })
}

/// Mends the value that `text` begins with, an entry of the document.
pub fn value(text: &[u8]) -> Option<(Vec<u8>, usize)> {
    mend(text, b",}", b"", |_| true)
}

/// `followers` can stand behind it. `end` is how it ends where the text does; then nothing follows, and a guess needs
/// more than a brace: a name can hold one, but no end of a line.
fn mend(text: &[u8], followers: &[u8], end: &[u8], sense: fn(&[u8]) -> bool) -> Option<(Vec<u8>, usize)> {
    if text.len() > LONGEST || memchr::memchr(0, text).is_some() {
        // A zero byte is a block that never reached the disk.
        return None;
    }
    // Which of its possible ends each string takes, in order; counted up from the last string like an odometer.
    let mut choices: Vec<u32> = Vec::new();
    let mut effort = 0;
    loop {
        let out = Vec::with_capacity(text.len() + 16);
        let mut attempt = Attempt { text, pos: 0, out, choices, strings: 0, dead: false };
        if attempt.value(0).is_some() {
            attempt.blank();
            let follows = match text.get(attempt.pos) {
                Some(byte) => followers.contains(byte),
                None => !end.is_empty() && text.trim_ascii_end().ends_with(end),
            };
            if follows && sense(&attempt.out) {
                return Some((attempt.out, attempt.pos));
            }
        }
        effort += attempt.pos.max(64);
        let strings = attempt.strings;
        choices = attempt.choices;
        choices.truncate(strings);
        *choices.last_mut()? += 1;
        // A string that has no further end: the one before it takes its next.
        if attempt.dead {
            choices.pop();
            *choices.last_mut()? += 1;
        }
        if effort > EFFORT + READINGS * text.len() {
            return None;
        }
    }
}

struct Attempt<'a> {
    text: &'a [u8],
    pos: usize,
    out: Vec<u8>,
    choices: Vec<u32>,
    strings: usize,
    /// The last string has no further end.
    dead: bool,
}

impl Attempt<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.pos).copied()
    }

    fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.pos += 1;
        }
    }

    /// Copies the white space, so that a mended event looks like its neighbours.
    fn copy_blank(&mut self) {
        let from = self.pos;
        self.blank();
        self.out.extend_from_slice(&self.text[from..self.pos]);
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| {
            self.pos += 1;
            self.out.push(byte);
        })
    }

    fn value(&mut self, depth: u32) -> Option<()> {
        match self.peek()? {
            b'"' => self.string(),
            b'{' if depth < 100 => self.list(b'}', depth),
            b'[' if depth < 100 => self.list(b']', depth),
            _ => self.plain(),
        }
    }

    fn list(&mut self, close: u8, depth: u32) -> Option<()> {
        self.out.push(self.text[self.pos]);
        self.pos += 1;
        self.copy_blank();
        if self.peek()? == close {
            return self.take(close);
        }
        loop {
            if close == b'}' {
                self.key()?;
                self.copy_blank();
                self.take(b':')?;
                self.copy_blank();
            }
            self.value(depth + 1)?;
            self.copy_blank();
            if self.peek()? == close {
                return self.take(close);
            }
            self.take(b',')?;
            self.copy_blank();
        }
    }

    /// Keys are no text of a user, so the first quote ends them.
    fn key(&mut self) -> Option<()> {
        let mut cursor = Cursor::new(self.text, self.pos);
        if self.peek()? != b'"' || !cursor.string() {
            return None;
        }
        self.out.extend_from_slice(&self.text[self.pos..cursor.pos]);
        self.pos = cursor.pos;
        Some(())
    }

    /// A number or a word, or one of the words that C++ prints for what is no number.
    fn plain(&mut self) -> Option<()> {
        let rest = &self.text[self.pos..];
        let len = rest.iter().position(|b| matches!(b, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'))?;
        let word = &rest[..len];
        let known = matches!(word, b"true" | b"false" | b"null") || {
            let mut cursor = Cursor::new(rest, 0);
            cursor.number() && cursor.pos == len
        };
        let nothing = matches!(
            word.strip_prefix(b"-").unwrap_or(word),
            b"NaN" | b"nan" | b"Infinity" | b"inf" | b"Inf" | b"INF" | b"NAN" | b"infinity"
        );
        // JSON has no such number; null is what a data frame reads as "not a number".
        self.out.extend_from_slice(if known {
            word
        } else if nothing {
            b"null"
        } else {
            return None;
        });
        self.pos += len;
        Some(())
    }

    fn string(&mut self) -> Option<()> {
        let index = self.strings;
        self.strings += 1;
        if index == self.choices.len() {
            self.choices.push(0);
        }
        let from = self.pos + 1;
        let Some(end) = self.ends(from).nth(self.choices[index] as usize) else {
            self.dead = true;
            return None;
        };
        let content = &self.text[from..end];
        if swallows(content) {
            self.dead = true;
            return None;
        }
        self.out.push(b'"');
        write_string(content, &mut self.out);
        self.out.push(b'"');
        self.pos = end + 1;
        Some(())
    }

    /// The quotes at which a string that begins at `from` can end: what follows must be what may follow a string.
    fn ends(&self, from: usize) -> impl Iterator<Item = usize> + '_ {
        memchr::memchr_iter(b'"', &self.text[from.min(self.text.len())..]).map(move |at| from + at).filter(
            move |&at| {
                let escapes = self.text[from..at].iter().rev().take_while(|b| **b == b'\\').count();
                let next = self.text[at + 1..].iter().find(|b| !b.is_ascii_whitespace());
                escapes % 2 == 0 && next.is_some_and(|byte| b",}]".contains(byte))
            },
        )
    }
}

/// Whether a guessed string took a field of its event with it.
fn swallows(content: &[u8]) -> bool {
    memchr::memmem::find(content, b"\":").is_some()
}

/// Writes the inside of a string so that it is strict: what is valid stays as it is.
fn write_string(content: &[u8], out: &mut Vec<u8>) {
    for chunk in content.utf8_chunks() {
        let text = chunk.valid().as_bytes();
        let mut pos = 0;
        while let Some(byte) = text.get(pos) {
            match byte {
                b'\\' => {
                    // The closing quote follows a string's content, so an escape that needs more is a broken one.
                    if let Ok(len) = escape_len(&text[pos..]) {
                        out.extend_from_slice(&text[pos..pos + len]);
                        pos += len;
                        continue;
                    }
                    out.extend_from_slice(b"\\\\");
                }
                b'"' => out.extend_from_slice(b"\\\""),
                0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => out.push(*byte),
            }
            pos += 1;
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}
