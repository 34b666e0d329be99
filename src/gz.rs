//! Gzip, fast: blocks of text are deflated by libdeflate, side by side where there are cores, and put together as one
//! ordinary member.
//!
//! One member, because browsers and older Perfettos refuse or cut a gzip of several. libdeflate only makes whole streams, so
//! `seam` finds where each can be opened again.

pub(crate) mod deflate;
mod seam;

use flate2::Crc;
use libdeflater::{CompressionLvl, Compressor};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Text in one block. Nothing is found across its borders: half of it costs 0.4 per cent of size, twice of it the memory of
/// every worker.
const BLOCK: usize = 2 << 20;
/// No trace gains from more.
const MOST_WORKERS: usize = 8;

/// Smaller than what Python's gzip makes of a trace, as torch uses it, in a fifth of its time; the next level takes twice
/// the time for 5 per cent (docs/measurements-salvage.md).
pub const LEVEL: u8 = 7;

/// A block on its way to a worker.
struct Job {
    text: Vec<u8>,
    last: bool,
    answer: SyncSender<io::Result<Vec<u8>>>,
}

/// Writes gzip. [`GzipWriter::finish`] must be called: a dropped writer leaves a member without its end.
pub struct GzipWriter<W: Write> {
    out: W,
    block: Vec<u8>,
    crc: Crc,
    queue: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    jobs: Option<SyncSender<Job>>,
    workers: Vec<JoinHandle<()>>,
    depth: usize,
    inline: Option<Packer>,
}

/// How many workers help on this machine.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_WORKERS)
}

impl<W: Write> GzipWriter<W> {
    /// `level` is one of libdeflate's, 1 to 12. `workers` below 2 compresses on the caller's thread; workers have the niceness
    /// of the thread that makes the writer.
    pub fn new(mut out: W, level: u8, workers: usize) -> io::Result<Self> {
        let mut packer = Packer::new(level)?;
        // No time stamp and no name: the same trace must give the same bytes.
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255])?;
        let mut writer = Self {
            out,
            block: Vec::new(),
            crc: Crc::new(),
            queue: VecDeque::new(),
            jobs: None,
            workers: Vec::new(),
            depth: workers + 1,
            inline: None,
        };
        if workers < 2 {
            writer.inline = Some(packer);
            return Ok(writer);
        }
        let (jobs, inbox) = sync_channel::<Job>(workers);
        let inbox = std::sync::Arc::new(std::sync::Mutex::new(inbox));
        for number in 0..workers {
            let inbox = inbox.clone();
            let mut mine = std::mem::replace(&mut packer, Packer::new(level)?);
            let worker = move || {
                loop {
                    let job = inbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    let done = mine.pack(&job.text, job.last).map(<[u8]>::to_vec);
                    // The other side is gone when the writer was dropped: nobody waits then.
                    let _ = job.answer.send(done);
                }
            };
            writer.workers.push(std::thread::Builder::new().name(format!("gzip-{number}")).spawn(worker)?);
        }
        writer.jobs = Some(jobs);
        Ok(writer)
    }

    fn dispatch(&mut self, last: bool) -> io::Result<()> {
        self.crc.update(&self.block);
        if let Some(packer) = &mut self.inline {
            self.out.write_all(packer.pack(&self.block, last)?)?;
            self.block.clear();
            return Ok(());
        }
        while self.queue.len() >= self.depth {
            self.collect()?;
        }
        let (answer, reply) = sync_channel(1);
        self.queue.push_back(reply);
        let jobs = self.jobs.as_ref().ok_or_else(|| io::Error::other("the gzip writer is finished"))?;
        jobs.send(Job { text: std::mem::take(&mut self.block), last, answer })
            .map_err(|_| io::Error::other("a gzip worker is gone"))
    }

    fn collect(&mut self) -> io::Result<()> {
        if let Some(reply) = self.queue.pop_front() {
            let done = reply.recv().map_err(|_| io::Error::other("a gzip worker is gone"))??;
            self.out.write_all(&done)?;
        }
        Ok(())
    }

    /// Ends the member and returns what was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.dispatch(true)?;
        while !self.queue.is_empty() {
            self.collect()?;
        }
        self.jobs = None;
        for worker in self.workers.drain(..) {
            worker.join().map_err(|_| io::Error::other("a gzip worker panicked"))?;
        }
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let count = (BLOCK - self.block.len()).min(text.len());
        if self.block.capacity() == 0 {
            self.block.reserve_exact(BLOCK);
        }
        self.block.extend_from_slice(&text[..count]);
        if self.block.len() == BLOCK {
            self.dispatch(false)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A block is deflated when it is full; only `finish` ends one early.
        Ok(())
    }
}

/// Deflates blocks so that they can stand one behind the other in one stream.
struct Packer {
    deflate: Compressor,
    out: Vec<u8>,
}

impl Packer {
    fn new(level: u8) -> io::Result<Self> {
        let level = CompressionLvl::new(i32::from(level))
            .map_err(|_| io::Error::other(format!("libdeflate has no level {level}: take 1 to 12")))?;
        Ok(Self { deflate: Compressor::new(level), out: Vec::new() })
    }

    fn pack(&mut self, text: &[u8], last: bool) -> io::Result<&[u8]> {
        let room = self.deflate.deflate_compress_bound(text.len()) + seam::LONGEST;
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        let mut len = self.deflate.deflate_compress(text, &mut self.out).map_err(io::Error::other)?;
        if !last {
            let end = seam::last_block(&self.out[..len])
                .ok_or_else(|| io::Error::other("libdeflate made a stream that cannot be read"))?;
            len = end.open(&mut self.out);
        }
        Ok(&self.out[..len])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::bufread::GzDecoder;
    use std::io::Read;

    fn pack(text: &[u8], level: u8, workers: usize) -> Vec<u8> {
        let mut writer = GzipWriter::new(Vec::new(), level, workers).unwrap();
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn one_member_gives_the_text_back_whatever_its_size_and_however_many_work() {
        let line = b"{\"ph\": \"X\", \"name\": \"aten::mm\", \"ts\": 1234.567},\n";
        let text: Vec<u8> = line.iter().cycle().copied().take(2 * BLOCK + 5).collect();
        for len in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, text.len()] {
            let alone = pack(&text[..len], LEVEL, 1);
            let mut decoder = GzDecoder::new(&alone[..]);
            let mut back = Vec::new();
            decoder.read_to_end(&mut back).unwrap();
            assert_eq!(back, &text[..len]);
            assert!(decoder.into_inner().is_empty(), "a second member");
            assert_eq!(alone, pack(&text[..len], LEVEL, 3), "the same trace must give the same bytes");
        }
    }

    #[test]
    fn a_level_that_libdeflate_has_not_is_refused() {
        assert!(GzipWriter::new(Vec::new(), 13, 1).is_err());
    }

    #[test]
    fn a_disk_that_is_full_is_an_error_and_no_hang() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for workers in [1, 2] {
            let mut writer = GzipWriter::new(Full(100), LEVEL, workers).unwrap();
            let noise: Vec<u8> =
                (0..BLOCK as u32 * 8).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
            let written = writer.write_all(&noise).and_then(|()| writer.finish().map(drop));
            assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
