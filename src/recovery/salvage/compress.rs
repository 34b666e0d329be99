//! Gzip on several cores: blocks are deflated side by side, each with the text before it as dictionary, and put
//! together in order as one ordinary member.

use flate2::{Compress, Compression, Crc, FlushCompress};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Text in one block. Large enough that cutting costs no size, small enough that many fit in little memory.
const BLOCK: usize = 512 << 10;
/// What deflate can look back on.
const WINDOW: usize = 32 << 10;
/// No trace gains from more.
const MOST_WORKERS: usize = 8;

/// A block on its way to a worker: dictionary, text, and whether it is the last.
struct Job {
    text: Vec<u8>,
    dictionary: usize,
    last: bool,
    answer: SyncSender<io::Result<Vec<u8>>>,
}

/// Writes gzip. [`GzipWriter::finish`] must be called: a dropped writer leaves a member without its end.
pub struct GzipWriter<W: Write> {
    out: W,
    block: Vec<u8>,
    dictionary: usize,
    crc: Crc,
    queue: VecDeque<Receiver<io::Result<Vec<u8>>>>,
    jobs: Option<SyncSender<Job>>,
    workers: Vec<JoinHandle<()>>,
    depth: usize,
    level: u32,
    inline: Option<Compress>,
}

/// How many workers help on this machine.
pub fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get()).min(MOST_WORKERS)
}

impl<W: Write> GzipWriter<W> {
    /// `workers` below 2 compresses on the caller's thread.
    pub fn new(mut out: W, level: u32, workers: usize) -> io::Result<Self> {
        // No time stamp and no name: the same trace must give the same bytes.
        out.write_all(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255])?;
        let mut writer = Self {
            out,
            block: Vec::with_capacity(BLOCK + WINDOW),
            dictionary: 0,
            crc: Crc::new(),
            queue: VecDeque::new(),
            jobs: None,
            workers: Vec::new(),
            depth: workers + 1,
            level,
            inline: None,
        };
        if workers < 2 {
            writer.inline = Some(Compress::new(Compression::new(level), false));
            return Ok(writer);
        }
        let (jobs, inbox) = sync_channel::<Job>(workers);
        let inbox = std::sync::Arc::new(std::sync::Mutex::new(inbox));
        for number in 0..workers {
            let inbox = inbox.clone();
            let worker = move || {
                let mut deflate = Compress::new(Compression::new(level), false);
                loop {
                    let job = inbox.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    let done = deflate_block(&mut deflate, &job.text, job.dictionary, job.last);
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
        let tail = self.block.len().saturating_sub(WINDOW);
        let mut next = Vec::with_capacity(BLOCK + WINDOW);
        next.extend_from_slice(&self.block[tail..]);
        let keep = next.len();
        let text = std::mem::replace(&mut self.block, next);
        let dictionary = std::mem::replace(&mut self.dictionary, keep);
        let mut part = Crc::new();
        part.update(&text[dictionary..]);
        self.crc.combine(&part);
        if let Some(deflate) = &mut self.inline {
            let done = deflate_block(deflate, &text, dictionary, last)?;
            return self.out.write_all(&done);
        }
        while self.queue.len() >= self.depth {
            self.collect()?;
        }
        let (answer, reply) = sync_channel(1);
        self.queue.push_back(reply);
        let jobs = self.jobs.as_ref().ok_or_else(|| io::Error::other("the gzip writer is finished"))?;
        jobs.send(Job { text, dictionary, last, answer })
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

    /// The level in use.
    pub fn level(&self) -> u32 {
        self.level
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let room = BLOCK - (self.block.len() - self.dictionary);
        let count = room.min(text.len());
        self.block.extend_from_slice(&text[..count]);
        if count == room {
            self.dispatch(false)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A block is deflated when it is full; only `finish` ends one early.
        Ok(())
    }
}

fn deflate_block(deflate: &mut Compress, text: &[u8], dictionary: usize, last: bool) -> io::Result<Vec<u8>> {
    deflate.reset();
    if dictionary > 0 {
        deflate.set_dictionary(&text[..dictionary]).map_err(io::Error::other)?;
    }
    let body = &text[dictionary..];
    let mut out = Vec::with_capacity(body.len() / 6 + 1024);
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    loop {
        let done = deflate.total_in() as usize;
        let before = deflate.total_out();
        let status = deflate.compress_vec(&body[done..], &mut out, flush).map_err(io::Error::other)?;
        let ended = if last {
            status == flate2::Status::StreamEnd
        } else {
            // A sync flush is complete when everything went in and room was left over.
            deflate.total_in() as usize == body.len() && out.len() < out.capacity()
        };
        if ended {
            return Ok(out);
        }
        if deflate.total_out() == before && out.len() < out.capacity() {
            return Err(io::Error::other("deflate does not move"));
        }
        out.reserve(64 << 10);
    }
}
