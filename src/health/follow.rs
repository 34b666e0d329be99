//! Reads what is appended to a file, whatever happens to the file: it may not exist yet, be renamed away, replaced, cut
//! or deleted. Plain system calls with an own offset; who calls, and when, is [`super::tail`]'s business.
//!
//! What cannot be noticed: bytes that were cut off or replaced before they were read, and a file that came and went
//! between two looks.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// Bytes read with one call.
const CHUNK: usize = 256 << 10;

/// The last bytes before the offset are compared before reading on, so that a file that was cut and has grown beyond
/// the offset again (copytruncate) is noticed although its length says nothing.
const MEMORY: usize = 64;

/// What a look at the file brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The next bytes.
    Bytes(&'a [u8]),
    /// What follows is from the beginning of a file.
    Break(Break),
}

/// Why reading begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Another file has the name now.
    Replaced,
    /// The file became shorter, or its bytes are no longer those that were read.
    Cut,
}

/// A file that is followed by name.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    /// Up to [`MEMORY`] bytes that stand before the offset.
    memory: Vec<u8>,
    buffer: Vec<u8>,
}

impl Follower {
    /// Nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None, offset: 0, memory: Vec::new(), buffer: vec![0; CHUNK] }
    }

    /// Reads on, at most about `budget` bytes, and says whether there may be more to read at once. A file that does
    /// not exist is no error.
    pub fn look(&mut self, budget: usize, sink: &mut dyn FnMut(Piece<'_>)) -> io::Result<bool> {
        let mut left = budget;
        loop {
            if self.file.is_none() && !self.open()? {
                return Ok(false);
            }
            let exhausted = self.read(&mut left, sink)?;
            if !exhausted {
                return Ok(true);
            }
            if !self.is_replaced() {
                return Ok(false);
            }
            // Between the last read and the look at the name the old file may have got its last line.
            if !self.read(&mut left, sink)? {
                return Ok(true);
            }
            sink(Piece::Break(Break::Replaced));
            self.file = None;
            self.restart();
        }
    }

    fn open(&mut self) -> io::Result<bool> {
        // Without O_NONBLOCK a FIFO of this name would hold us until somebody writes to it.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file"));
        }
        self.file = Some(file);
        Ok(true)
    }

    fn restart(&mut self) {
        self.offset = 0;
        self.memory.clear();
    }

    /// Reads until the end (true) or until the budget is spent (false).
    fn read(&mut self, left: &mut usize, sink: &mut dyn FnMut(Piece<'_>)) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        let length = file.metadata()?.len();
        if length < self.offset || (length > self.offset && !self.remembers(file)?) {
            sink(Piece::Break(Break::Cut));
            self.restart();
        }
        loop {
            if *left == 0 {
                return Ok(false);
            }
            let Some(file) = &self.file else { return Ok(true) };
            let room = self.buffer.len().min(*left);
            let got = match file.read_at(&mut self.buffer[..room], self.offset) {
                Ok(0) => return Ok(true),
                Ok(got) => got,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let bytes = &self.buffer[..got];
            sink(Piece::Bytes(bytes));
            self.offset += got as u64;
            *left -= got;
            self.memory.extend_from_slice(&bytes[got.saturating_sub(MEMORY)..]);
            let surplus = self.memory.len().saturating_sub(MEMORY);
            self.memory.drain(..surplus);
        }
    }

    fn remembers(&self, file: &File) -> io::Result<bool> {
        let mut now = [0; MEMORY];
        let now = &mut now[..self.memory.len()];
        match file.read_exact_at(now, self.offset - self.memory.len() as u64) {
            Ok(()) => Ok(now == self.memory),
            // It was cut just now.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the name belongs to another file. While it belongs to none, the file we hold is still the one that its
    /// writer writes to. An inode that we hold open is not given to a new file, so equal numbers mean the same file.
    fn is_replaced(&self) -> bool {
        let (Some(file), Ok(named)) = (&self.file, std::fs::metadata(&self.path)) else { return false };
        file.metadata().is_ok_and(|held| (held.dev(), held.ino()) != (named.dev(), named.ino()))
    }
}
