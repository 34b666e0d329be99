//! Opens one half, plain or gzip, and gives out what can be read of it: a gzip without its end up to its last whole
//! symbol, every member of several, the members behind a broken one.

use super::flip;
use flate2::{Crc, Decompress, FlushDecompress, Status};
use memchr::memmem;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// Deflated text never holds this many zero bytes; a block that never reached the disk does.
const HOLE: [u8; 64] = [0; 64];
const INPUT: usize = 64 << 10;
/// Larger files are not searched for a flipped bit: the search holds them in memory and takes seconds for each of their
/// megabytes.
const MOST_SEARCHED: u64 = 16 << 20;
/// Members of which the fate is remembered.
const MOST_MEMBERS: usize = 1024;

/// How a gzip member ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its checksum and length are right.
    Sound,
    /// The file ends inside it.
    Cut,
    /// It inflated to its end, but to something else than was deflated.
    WrongSum,
    /// It cannot be inflated further.
    Broken,
}

/// One gzip member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Offset of its first byte in the text.
    pub from: u64,
    /// One past its last byte in the text.
    pub to: u64,
    /// How it ended.
    pub fate: Fate,
    /// Where in the text a run of zero bytes in the file begins to speak.
    pub hole: Option<u64>,
}

/// Text of a member from `at` on is not to be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distrust {
    /// Number of the member.
    pub member: usize,
    /// Bytes of its text that are believed.
    pub keep: u64,
}

/// A bit of the file that is to be read the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turned {
    /// Offset of its byte in the file.
    pub at: u64,
    /// Bit of the byte.
    pub bit: u8,
}

/// What an earlier reading of a half found out about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Belief {
    /// What its members may be believed.
    pub distrust: Vec<Distrust>,
    /// The one bit that is wrong in it.
    pub turned: Option<Turned>,
    /// The numbers of its events say nothing (see [`super::turns`]).
    pub unnumbered: bool,
    /// Offsets of events that contradict the rest of the trace (see [`super::signs`]).
    pub contradicting: Vec<u64>,
}

enum Body {
    Plain,
    Gzip(Box<Gzip>),
}

/// A half that is being read.
pub struct Source {
    file: File,
    body: Body,
    /// Bytes of the file read.
    pub read: u64,
    /// Bytes of text given out.
    pub given: u64,
}

impl Source {
    /// Opens a half.
    pub fn open(path: &Path, belief: &Belief) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut start = vec![0; 3];
        let mut have = 0;
        while have < 3 {
            match file.read(&mut start[have..])? {
                0 => break,
                n => have += n,
            }
        }
        start.truncate(have);
        let gzip = start == MAGIC || (have > 0 && MAGIC.starts_with(&start));
        let body = if gzip { Body::Gzip(Box::new(Gzip::new(belief))) } else { Body::Plain };
        use std::io::Seek;
        file.rewind()?;
        Ok(Self { file, body, read: 0, given: 0 })
    }

    /// Whether the half is compressed.
    pub fn is_gzip(&self) -> bool {
        matches!(self.body, Body::Gzip(_))
    }

    /// The members, once everything was read.
    pub fn members(&self) -> &[Member] {
        match &self.body {
            Body::Plain => &[],
            Body::Gzip(gzip) => &gzip.members,
        }
    }

    /// Bytes behind the last member that are neither zero nor a member.
    pub fn garbage(&self) -> u64 {
        match &self.body {
            Body::Plain => 0,
            Body::Gzip(gzip) => gzip.garbage,
        }
    }

    /// Puts text into `out` and says how much; 0 at the end.
    pub fn fill(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.body {
            Body::Plain => {
                let count = retry(|| self.file.read(out))?;
                self.read += count as u64;
                count
            }
            Body::Gzip(gzip) => gzip.fill(&mut self.file, &mut self.read, out)?,
        };
        self.given += count as u64;
        Ok(count)
    }
}

fn retry(mut read: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Header,
    Body,
    Trailer,
    /// Behind damage: looking for the next member.
    Search,
    End,
}

struct Gzip {
    input: Vec<u8>,
    from: usize,
    to: usize,
    eof: bool,
    at: At,
    inflate: Decompress,
    crc: Crc,
    /// Text of the current member.
    text: u64,
    /// Text given out of all members.
    given: u64,
    hole: Option<u64>,
    members: Vec<Member>,
    count: usize,
    garbage: u64,
    belief: Belief,
    /// A zero byte between texts that do not belong together, so that no event grows over the seam.
    seam: bool,
}

impl Gzip {
    fn new(belief: &Belief) -> Self {
        Self {
            input: vec![0; INPUT],
            from: 0,
            to: 0,
            eof: false,
            at: At::Header,
            inflate: Decompress::new(false),
            crc: Crc::new(),
            text: 0,
            given: 0,
            hole: None,
            members: Vec::new(),
            count: 0,
            garbage: 0,
            belief: belief.clone(),
            seam: false,
        }
    }

    /// Reads until at least `want` bytes are there or the file ends.
    fn more(&mut self, file: &mut File, read: &mut u64, want: usize) -> io::Result<()> {
        if self.to - self.from >= want || self.eof {
            return Ok(());
        }
        self.input.copy_within(self.from..self.to, 0);
        self.to -= self.from;
        self.from = 0;
        if want > self.input.len() {
            self.input.resize(want, 0);
        }
        while self.to < want {
            let count = retry(|| file.read(&mut self.input[self.to..]))?;
            if let Some(turned) = self.belief.turned
                && (*read..*read + count as u64).contains(&turned.at)
            {
                self.input[self.to + (turned.at - *read) as usize] ^= 1 << turned.bit;
            }
            self.to += count;
            *read += count as u64;
            if count == 0 {
                self.eof = true;
                break;
            }
        }
        Ok(())
    }

    fn believed(&self) -> u64 {
        let rule = self.belief.distrust.iter().find(|rule| rule.member == self.count);
        rule.map_or(u64::MAX, |rule| rule.keep)
    }

    fn end_member(&mut self, fate: Fate) {
        if self.members.len() < MOST_MEMBERS {
            let from = self.given - self.text.min(self.believed());
            self.members.push(Member { from, to: self.given, fate, hole: self.hole });
        }
        if fate != Fate::Sound || self.believed() < self.text {
            self.seam = true;
        }
        self.count += 1;
        self.text = 0;
        self.hole = None;
        self.crc.reset();
        self.inflate.reset(false);
    }

    fn fill(&mut self, file: &mut File, read: &mut u64, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match self.at {
                At::Header => self.header(file, read)?,
                At::Body => {
                    if self.seam {
                        self.seam = false;
                        out[0] = 0;
                        self.given += 1;
                        return Ok(1);
                    }
                    let count = self.body(file, read, out)?;
                    if count > 0 {
                        return Ok(count);
                    }
                }
                At::Trailer => {
                    self.more(file, read, 8)?;
                    let tail: Option<&[u8; 8]> = self.input[self.from..self.to].first_chunk();
                    let fate = match tail {
                        None => Fate::Cut,
                        Some(&[a, b, c, d, e, f, g, h]) => {
                            self.from += 8;
                            let sum = u32::from_le_bytes([a, b, c, d]) == self.crc.sum();
                            let length = u32::from_le_bytes([e, f, g, h]) == self.text as u32;
                            if sum && length { Fate::Sound } else { Fate::WrongSum }
                        }
                    };
                    self.end_member(fate);
                    self.at = if fate == Fate::Cut { At::End } else { At::Search };
                }
                At::Search => self.search(file, read)?,
                At::End => return Ok(0),
            }
        }
    }

    fn header(&mut self, file: &mut File, read: &mut u64) -> io::Result<()> {
        self.more(file, read, INPUT)?;
        match header_len(&self.input[self.from..self.to]) {
            Some(Some(len)) => {
                self.from += len;
                self.at = At::Body;
            }
            Some(None) => {
                self.from += 1;
                self.at = At::Search;
            }
            None => {
                self.end_member(Fate::Cut);
                self.at = At::End;
            }
        }
        Ok(())
    }

    /// Inflates once and returns how much text may be given out.
    fn body(&mut self, file: &mut File, read: &mut u64, out: &mut [u8]) -> io::Result<usize> {
        self.more(file, read, HOLE.len() + 1)?;
        let input = &self.input[self.from..self.to];
        let hole = memmem::find(input, &HOLE);
        // What precedes the hole is fed first, so that it is known how far the text reaches there.
        let feed = match hole {
            Some(0) => {
                self.hole.get_or_insert(self.given);
                input
            }
            Some(at) => &input[..at],
            None if self.eof => input,
            None => &input[..input.len() - (HOLE.len() - 1)],
        };
        let (in_before, out_before) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self.inflate.decompress(feed, out, FlushDecompress::None);
        let used = (self.inflate.total_in() - in_before) as usize;
        let made = (self.inflate.total_out() - out_before) as usize;
        self.from += used;
        self.crc.update(&out[..made]);
        let give = self.believed().saturating_sub(self.text).min(made as u64) as usize;
        self.text += made as u64;
        self.given += give as u64;
        match status {
            Ok(Status::StreamEnd) => self.at = At::Trailer,
            Ok(_) if used == 0 && made == 0 && self.eof => {
                self.end_member(Fate::Cut);
                self.at = At::End;
            }
            Ok(_) => {}
            Err(_) => {
                self.end_member(Fate::Broken);
                self.at = At::Search;
            }
        }
        Ok(give)
    }

    fn search(&mut self, file: &mut File, read: &mut u64) -> io::Result<()> {
        loop {
            self.more(file, read, INPUT)?;
            let input = &self.input[self.from..self.to];
            let found = memmem::find(input, &MAGIC);
            let skipped = found.unwrap_or(input.len().saturating_sub(if self.eof { 0 } else { 2 }));
            let junk = input[..skipped].iter().filter(|byte| **byte != 0).count();
            self.from += skipped;
            if self.members.last().is_some_and(|member| member.fate == Fate::Sound) {
                self.garbage += junk as u64;
            }
            if found.is_some() {
                self.at = At::Header;
                return Ok(());
            }
            if self.eof {
                self.at = At::End;
                return Ok(());
            }
        }
    }
}

/// Looks for a single bit that makes a gzip of one member right (see [`flip`]). `None` also for a file that is too large to
/// be searched.
pub fn turned(path: &Path) -> io::Result<Option<Turned>> {
    if std::fs::metadata(path)?.len() > MOST_SEARCHED {
        return Ok(None);
    }
    let mut raw = std::fs::read(path)?;
    let Some(Some(header)) = header_len(&raw) else { return Ok(None) };
    let Some(tail) = raw.last_chunk().copied() else { return Ok(None) };
    let [a, b, c, d, e, f, g, h]: [u8; 8] = tail;
    let end = raw.len() - 8;
    if header >= end {
        return Ok(None);
    }
    let (sum, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let found = flip::find(&mut raw[header..end], sum, length);
    Ok(found.map(|flip| Turned { at: (header + flip.at) as u64, bit: flip.bit }))
}

/// The length of a gzip header (RFC 1952): `None` if it is not all there, `Some(None)` if it is none.
fn header_len(text: &[u8]) -> Option<Option<usize>> {
    if text.len() < 3 || text[..3] != MAGIC {
        return if MAGIC.starts_with(&text[..text.len().min(3)]) { None } else { Some(None) };
    }
    let flags = *text.get(3)?;
    if flags & 0xe0 != 0 {
        return Some(None);
    }
    let mut len = 10;
    if flags & 4 != 0 {
        let low = *text.get(len)?;
        let high = *text.get(len + 1)?;
        len += 2 + usize::from(u16::from_le_bytes([low, high]));
    }
    for flag in [8, 16] {
        if flags & flag != 0 {
            len += memchr::memchr(0, text.get(len..)?)? + 1;
        }
    }
    if flags & 2 != 0 {
        len += 2;
    }
    (text.len() >= len).then_some(Some(len))
}
