//! Writes `requests.jsonl` while requests end, on a thread of its own: a slow disk must not show as a slow server. An
//! edge.

use super::outcome::Record;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A crash loses at most the records of this long.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// The writer's handle.
#[derive(Debug)]
pub struct Recorder {
    records: Option<Sender<Record>>,
    thread: Option<JoinHandle<Result<(), String>>>,
}

impl Recorder {
    /// Creates the file. `names` are the workloads of the mix.
    pub fn start(path: &Path, names: Vec<String>) -> Result<Self, String> {
        let at = path.display().to_string();
        let file = File::create(path).map_err(|e| format!("create {at}: {e}"))?;
        let (records, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("load-recorder".to_owned())
            .spawn(move || write(file, &inbox, &names).map_err(|e| format!("write {at}: {e}")))
            .map_err(|e| format!("start the thread that writes {}: {e}", path.display()))?;
        Ok(Self { records: Some(records), thread: Some(thread) })
    }

    /// Writes one record, soon. After a write failed, records are dropped; `finish` tells.
    pub fn record(&self, record: Record) {
        if let Some(records) = &self.records {
            let _ = records.send(record);
        }
    }

    /// Flushes and closes.
    pub fn finish(mut self) -> Result<(), String> {
        self.records = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => Err("the thread that writes the request records panicked".to_owned()),
            None => Ok(()),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.records = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write(file: File, inbox: &Receiver<Record>, names: &[String]) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, file);
    let mut dirty = false;
    let mut flushed = crate::time::instant_now();
    loop {
        match inbox.recv_timeout(FLUSH_EVERY) {
            Ok(record) => {
                let name = names.get(usize::from(record.workload)).map_or("?", String::as_str);
                serde_json::to_writer(&mut out, &record.line(name))?;
                out.write_all(b"\n")?;
                dirty = true;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return out.flush(),
        }
        let now = crate::time::instant_now();
        if dirty && now.duration_since(flushed) >= FLUSH_EVERY {
            out.flush()?;
            flushed = now;
            dirty = false;
        }
    }
}
