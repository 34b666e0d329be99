//! The strict JSON reader under the salvage: it says where a value ends, that it is not JSON, or that more bytes are
//! needed. It builds nothing and copies nothing, because a healthy trace of gigabytes must be checked at memory speed.
//!
//! Pure. It works on a slice; who reads the file decides how much of it is in that slice.

use wide::u8x16;

/// Nesting that `serde_json` (and with it most strict readers) still accepts in one document.
const MAX_DEPTH: u32 = 127;
/// How deep an event of an object-form trace may nest: the document and its event list are above it.
pub const EVENT_DEPTH: u32 = MAX_DEPTH - 2;
/// How deep a value of the document's own entries may nest.
pub const ENTRY_DEPTH: u32 = MAX_DEPTH - 1;

/// Why a cursor did not reach the end of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The slice ended inside the value.
    More,
    /// This is not strict JSON.
    Bad,
}

/// A half-open range of the slice an event was found in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub from: u32,
    /// One past the last byte; `0` when the key is absent.
    pub to: u32,
}

impl Span {
    /// The bytes, empty when the key is absent.
    pub fn of<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.from as usize..self.to as usize).unwrap_or_default()
    }

    /// The same stretch of another slice.
    #[inline(always)]
    pub(super) fn shifted(self, by: usize) -> Self {
        span(self.from as usize + by, self.to as usize + by)
    }

    /// Counted from `to` instead of the start of the slice.
    pub(super) fn relative(self, to: u32) -> Self {
        Self { from: self.from - to, to: self.to - to }
    }

    /// Whether the key was there.
    pub fn present(&self) -> bool {
        self.to != 0
    }
}

/// Where the fields of one event lie. Values keep their quotes, so that `7` and `"7"` differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Event {
    /// The whole object.
    pub all: Span,
    /// `ph`.
    pub ph: Span,
    /// `cat`.
    pub cat: Span,
    /// `name`.
    pub name: Span,
    /// `pid`.
    pub pid: Span,
    /// `tid`.
    pub tid: Span,
    /// `ts`.
    pub ts: Span,
    /// `dur`.
    pub dur: Span,
    /// `id`, of flow arrows.
    pub id: Span,
    /// `args`.
    pub args: Span,
    /// A key that names the event's place or kind came twice: two events grew together at a seam.
    pub doubled: bool,
    /// Up to the time it is written byte for byte as an event before it, but for its name.
    pub usual: bool,
}

impl Event {
    /// The one letter of `ph`, or 0.
    #[inline]
    pub fn phase(&self, text: &[u8]) -> u8 {
        match self.ph.of(text) {
            [b'"', letter, b'"'] => *letter,
            _ => 0,
        }
    }

    /// Whether it has everything that Kineto gives every event.
    #[inline(always)]
    pub fn placed(&self, text: &[u8]) -> bool {
        let named = self.name.present() & self.pid.present() & self.tid.present() & self.ts.present();
        let phase = self.phase(text);
        named && phase != 0 && (phase != b'X' || self.dur.present())
    }

    /// Whether this can be an event at all, asked only where the surroundings are damaged: a nested object has no
    /// `ph`.
    pub fn plausible(&self, text: &[u8]) -> bool {
        self.phase(text) != 0 && (self.ts.present() || self.name.present())
    }
}

/// A position in a slice that moves over JSON. Every reader returns whether it reached the end of what it reads; if
/// not, `stop` says why and `pos` where.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    /// The bytes at hand.
    pub buf: &'a [u8],
    /// Where the cursor stands.
    pub pos: usize,
    /// Why the last reader gave up.
    pub stop: Stop,
}

impl<'a> Cursor<'a> {
    /// A cursor at `pos`.
    pub fn new(buf: &'a [u8], pos: usize) -> Self {
        Self { buf, pos, stop: Stop::More }
    }

    #[cold]
    fn bad(&mut self) -> bool {
        self.stop = Stop::Bad;
        false
    }

    #[cold]
    fn more(&mut self) -> bool {
        self.pos = self.buf.len();
        self.stop = Stop::More;
        false
    }

    /// The byte under the cursor.
    #[inline(always)]
    pub fn peek(&self) -> Option<u8> {
        self.buf.get(self.pos).copied()
    }

    #[inline(always)]
    fn chunk(&self, at: usize) -> Option<u8x16> {
        self.buf.get(at..)?.first_chunk::<16>().map(|bytes| u8x16::new(*bytes))
    }

    /// Moves over white space.
    #[inline(always)]
    pub fn blank(&mut self) {
        match self.peek() {
            Some(byte) if byte > b' ' => {}
            Some(b' ') if self.buf.get(self.pos + 1).is_some_and(|next| *next > b' ') => self.pos += 1,
            _ => self.blanks(),
        }
    }

    #[inline]
    fn blanks(&mut self) {
        while let Some(chunk) = self.chunk(self.pos) {
            let blank = chunk.simd_eq(u8x16::splat(b' '))
                | chunk.simd_eq(u8x16::splat(b'\n'))
                | chunk.simd_eq(u8x16::splat(b'\r'))
                | chunk.simd_eq(u8x16::splat(b'\t'));
            let solid = !blank.to_bitmask() & 0xffff;
            if solid != 0 {
                self.pos += solid.trailing_zeros() as usize;
                return;
            }
            self.pos += 16;
        }
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.pos += 1;
        }
    }

    /// Reads a string; the cursor stands on its opening quote.
    #[inline(always)]
    pub fn string(&mut self) -> bool {
        self.pos += 1;
        while let Some(chunk) = self.chunk(self.pos) {
            let special = chunk.simd_eq(u8x16::splat(b'"'))
                | chunk.simd_eq(u8x16::splat(b'\\'))
                | chunk.min(u8x16::splat(0x1f)).simd_eq(chunk)
                | chunk;
            let stops = special.to_bitmask();
            if stops == 0 {
                self.pos += 16;
                continue;
            }
            self.pos += stops.trailing_zeros() as usize;
            if self.buf[self.pos] == b'"' {
                self.pos += 1;
                return true;
            }
            if !self.unusual() {
                return false;
            }
        }
        self.string_end()
    }

    #[inline(never)]
    fn string_end(&mut self) -> bool {
        loop {
            match self.peek() {
                None => return self.more(),
                Some(b'"') => {
                    self.pos += 1;
                    return true;
                }
                Some(b' '..=b'[' | b']'..=0x7f) => self.pos += 1,
                Some(_) => {
                    if !self.unusual() {
                        return false;
                    }
                }
            }
        }
    }

    /// An escape, a character beyond ASCII, or something that may not stand in a string.
    #[inline(never)]
    fn unusual(&mut self) -> bool {
        let rest = &self.buf[self.pos..];
        match rest[0] {
            b'\\' => match escape_len(rest) {
                Ok(len) => self.pos += len,
                Err(Stop::More) => return self.more(),
                Err(Stop::Bad) => return self.bad(),
            },
            0x00..=0x1f => return self.bad(),
            lead => {
                let width = match lead {
                    0xc2..=0xdf => 2,
                    0xe0..=0xef => 3,
                    0xf0..=0xf4 => 4,
                    _ => return self.bad(),
                };
                match rest.get(..width) {
                    Some(char) if std::str::from_utf8(char).is_ok() => self.pos += width,
                    Some(_) => return self.bad(),
                    // A wrong byte is known as soon as it is there, not only when the character is long enough.
                    None if std::str::from_utf8(rest).is_err_and(|e| e.error_len().is_some()) => {
                        return self.bad();
                    }
                    None => return self.more(),
                }
            }
        }
        true
    }

    /// Moves over digits and says whether there was at least one.
    #[inline(always)]
    fn digits(&mut self) -> bool {
        let from = self.pos;
        while let Some(chunk) = self.chunk(self.pos) {
            let value = chunk - u8x16::splat(b'0');
            let other = value.max(u8x16::splat(10)).simd_eq(value).to_bitmask();
            if other != 0 {
                self.pos += other.trailing_zeros() as usize;
                return self.pos > from;
            }
            self.pos += 16;
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.pos += 1;
        }
        self.pos > from
    }

    /// Reads a number; the cursor stands on its sign or first digit.
    #[inline(always)]
    pub fn number(&mut self) -> bool {
        let from = self.pos;
        if self.peek() == Some(b'-') {
            self.pos += 1;
        }
        if self.peek() == Some(b'0') {
            self.pos += 1;
        } else if !self.digits() {
            return self.no_digit();
        }
        let mut odd = self.pos - from > 300;
        if self.peek() == Some(b'.') {
            self.pos += 1;
            if !self.digits() {
                return self.no_digit();
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            odd = true;
            self.pos += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.pos += 1;
            }
            if !self.digits() {
                return self.no_digit();
            }
        }
        if self.pos == self.buf.len() {
            return self.more();
        }
        // Beyond the range of a double strict readers refuse the number.
        if odd && !std::str::from_utf8(&self.buf[from..self.pos]).is_ok_and(finite) {
            return self.bad();
        }
        true
    }

    #[cold]
    fn no_digit(&mut self) -> bool {
        if self.pos >= self.buf.len() { self.more() } else { self.bad() }
    }

    #[inline]
    fn word(&mut self, word: &[u8]) -> bool {
        let rest = &self.buf[self.pos..];
        if rest.starts_with(word) {
            self.pos += word.len();
            true
        } else if word.starts_with(rest) {
            self.more()
        } else {
            self.bad()
        }
    }

    /// Reads a key, its colon and the white space around; returns the key without quotes.
    #[inline(always)]
    pub fn key(&mut self) -> Option<&'a [u8]> {
        match self.peek() {
            Some(b'"') => {}
            Some(_) => {
                self.bad();
                return None;
            }
            None => {
                self.more();
                return None;
            }
        }
        let from = self.pos + 1;
        if !self.string() {
            return None;
        }
        let key = &self.buf[from..self.pos - 1];
        self.blank();
        match self.peek() {
            Some(b':') => self.pos += 1,
            Some(_) => {
                self.bad();
                return None;
            }
            None => {
                self.more();
                return None;
            }
        }
        self.blank();
        Some(key)
    }

    /// Reads any value that nests at most `depth` deep; the cursor stands on its first byte.
    #[inline(always)]
    pub fn value(&mut self, depth: u32) -> bool {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.nested(depth),
        }
    }

    #[inline(never)]
    fn nested(&mut self, limit: u32) -> bool {
        let mut depth = 0;
        // One bit a level: 1 is an object.
        let mut kinds = 0u128;
        'value: loop {
            let read = match self.peek() {
                Some(b'"') => self.string(),
                Some(b'-' | b'0'..=b'9') => self.number(),
                Some(open @ (b'{' | b'[')) => {
                    if depth == limit {
                        return self.bad();
                    }
                    let object = open == b'{';
                    self.pos += 1;
                    self.blank();
                    match self.peek() {
                        Some(b'}') if object => {
                            self.pos += 1;
                            true
                        }
                        Some(b']') if !object => {
                            self.pos += 1;
                            true
                        }
                        None => self.more(),
                        Some(_) => {
                            depth += 1;
                            kinds = kinds << 1 | u128::from(object);
                            if object && self.key().is_none() {
                                return false;
                            }
                            continue 'value;
                        }
                    }
                }
                Some(b't') => self.word(b"true"),
                Some(b'f') => self.word(b"false"),
                Some(b'n') => self.word(b"null"),
                Some(_) => self.bad(),
                None => self.more(),
            };
            if !read {
                return false;
            }
            loop {
                if depth == 0 {
                    return true;
                }
                self.blank();
                match self.peek() {
                    Some(b',') => {
                        self.pos += 1;
                        self.blank();
                        if kinds & 1 == 1 && self.key().is_none() {
                            return false;
                        }
                        continue 'value;
                    }
                    Some(b'}') if kinds & 1 == 1 => {}
                    Some(b']') if kinds & 1 == 0 => {}
                    Some(_) => return self.bad(),
                    None => return self.more(),
                }
                self.pos += 1;
                depth -= 1;
                kinds >>= 1;
            }
        }
    }

    /// Reads an event; the cursor stands on its opening brace.
    #[inline]
    pub fn event(&mut self, event: &mut Event, depth: u32) -> bool {
        *event = Event::default();
        let start = self.pos;
        self.pos += 1;
        self.blank();
        if self.peek() == Some(b'}') {
            self.pos += 1;
            event.all = span(start, self.pos);
            return true;
        }
        self.fields(start, event, depth)
    }

    /// Reads the fields of an event from a key on, to the closing brace.
    #[inline(always)]
    pub(super) fn fields(&mut self, start: usize, event: &mut Event, depth: u32) -> bool {
        loop {
            let Some(key) = self.key() else { return false };
            let from = self.pos;
            if !self.value(depth - 1) {
                return false;
            }
            let slot = match key {
                b"ph" => Some(&mut event.ph),
                b"ts" => Some(&mut event.ts),
                b"id" => Some(&mut event.id),
                b"cat" => Some(&mut event.cat),
                b"pid" => Some(&mut event.pid),
                b"tid" => Some(&mut event.tid),
                b"dur" => Some(&mut event.dur),
                b"name" => Some(&mut event.name),
                b"args" => Some(&mut event.args),
                _ => None,
            };
            if let Some(slot) = slot {
                event.doubled |= slot.present();
                *slot = span(from, self.pos);
            }
            match self.next_field(start, event) {
                Some(true) => {}
                Some(false) => return true,
                None => return false,
            }
        }
    }

    /// Behind a field: whether another follows, or `None` if this is neither the one nor the other.
    #[inline(always)]
    pub(super) fn next_field(&mut self, start: usize, event: &mut Event) -> Option<bool> {
        self.blank();
        match self.peek() {
            Some(b',') => {
                self.pos += 1;
                self.blank();
                Some(true)
            }
            Some(b'}') => {
                self.pos += 1;
                event.all = span(start, self.pos);
                Some(false)
            }
            Some(_) => {
                self.bad();
                None
            }
            None => {
                self.more();
                None
            }
        }
    }
}

/// A span of offsets in a slice.
#[inline(always)]
pub(super) fn span(from: usize, to: usize) -> Span {
    // The slices are bounded far below 4 GiB by who fills them.
    Span { from: from as u32, to: to as u32 }
}

fn finite(text: &str) -> bool {
    text.parse::<f64>().is_ok_and(f64::is_finite)
}

fn hex4(text: &[u8]) -> Result<u16, Stop> {
    let mut value = 0;
    for index in 0..4 {
        let digit = text.get(index).ok_or(Stop::More)?;
        let digit = char::from(*digit).to_digit(16).ok_or(Stop::Bad)?;
        value = value << 4 | digit as u16;
    }
    Ok(value)
}

/// The length of the escape that `text` begins with. A lone surrogate is not a character, so strict readers refuse it.
pub fn escape_len(text: &[u8]) -> Result<usize, Stop> {
    match text.get(1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
        Some(b'u') => match hex4(&text[2..])? {
            0xd800..=0xdbff => {
                for (index, want) in [(6, b'\\'), (7, b'u')] {
                    match text.get(index) {
                        Some(byte) if *byte == want => {}
                        Some(_) => return Err(Stop::Bad),
                        None => return Err(Stop::More),
                    }
                }
                match hex4(&text[8..])? {
                    0xdc00..=0xdfff => Ok(12),
                    _ => Err(Stop::Bad),
                }
            }
            0xdc00..=0xdfff => Err(Stop::Bad),
            _ => Ok(6),
        },
        Some(_) => Err(Stop::Bad),
        None => Err(Stop::More),
    }
}
