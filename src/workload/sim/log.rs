//! Log lines as vLLM 0.15.1 writes them: `(APIServer pid=1) INFO 11-24 03:10:01 [file.py:1] text`, with the part in
//! parentheses coloured unless `NO_COLOR` is set.

use crate::time::wall_now;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

static SILENT: AtomicBool = AtomicBool::new(false);

/// From now on this process writes nothing.
pub(super) fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Cuts the log to nothing, as `copytruncate` of logrotate does: everybody goes on in the same file.
pub(super) fn truncate() -> std::io::Result<()> {
    std::fs::File::create("/proc/self/fd/1").map(drop)
}

/// Renames the log and goes on in a new one under the old name. Other processes of the server stay in the old one.
pub(super) fn rotate() -> std::io::Result<()> {
    let path = std::fs::read_link("/proc/self/fd/1")?;
    let mut old = path.clone().into_os_string();
    old.push(".1");
    std::fs::rename(&path, old)?;
    let new = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
    nix::unistd::dup2_stdout(&new)?;
    nix::unistd::dup2_stderr(&new)?;
    Ok(())
}

/// Writes lines of no importance, so many MiB of them, as fast as they can be written.
pub(super) fn flood(mib: u64) {
    let line = "INFO 11-24 03:10:01 [flood.py:1] a line of no importance, and of the length that lines of a log have\n";
    let block = line.repeat((1 << 20) / line.len());
    for _ in 0..mib {
        emit(&block);
    }
}

/// The text of a file as lines of this process.
pub(super) fn say(path: &std::path::Path) {
    match std::fs::read_to_string(path) {
        Ok(text) => emit(&text),
        Err(error) => emit(&format!("the simulator cannot read {}: {error}\n", path.display())),
    }
}

/// Writes the lines of one process.
#[derive(Debug, Clone)]
pub(super) struct Log {
    prefix: String,
}

impl Log {
    /// `name` is `APIServer`, `EngineCore_DP0`, `Worker_TP0`; the empty name is for lines before vLLM names its processes.
    pub(super) fn new(name: &str) -> Self {
        let pid = std::process::id();
        let prefix =
            match (name.is_empty(), std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())) {
                (true, _) => String::new(),
                (false, true) => format!("({name} pid={pid}) "),
                (false, false) => format!("\x1b[0;36m({name} pid={pid})\x1b[0;0m "),
            };
        Self { prefix }
    }

    /// `INFO`.
    pub(super) fn info(&self, place: &str, text: &str) {
        self.record("INFO", place, text);
    }

    /// `WARNING`.
    pub(super) fn warn(&self, place: &str, text: &str) {
        self.record("WARNING", place, text);
    }

    /// `ERROR`.
    pub(super) fn error(&self, place: &str, text: &str) {
        self.record("ERROR", place, text);
    }

    /// A line of uvicorn, which has its own format.
    pub(super) fn uvicorn(&self, text: &str) {
        self.raw(&format!("INFO:     {text}"));
    }

    /// Lines without level and time: tracebacks, prints.
    pub(super) fn raw(&self, text: &str) {
        let mut all = String::new();
        for line in text.split('\n') {
            all.push_str(&self.prefix);
            all.push_str(line);
            all.push('\n');
        }
        emit(&all);
    }

    fn record(&self, level: &str, place: &str, text: &str) {
        let now = wall_now().to_zoned_datetime(jiff::tz::TimeZone::system());
        let head = format!("{level} {} [{place}] ", now.strftime("%m-%d %H:%M:%S"));
        // vLLM repeats the head on every line of a message and ends all but the last with \r\n.
        let mut all = String::new();
        let mut lines = text.split('\n').peekable();
        while let Some(line) = lines.next() {
            all.push_str(&self.prefix);
            all.push_str(&head);
            all.push_str(line);
            all.push_str(if lines.peek().is_some() { "\r\n" } else { "\n" });
        }
        emit(&all);
    }
}

/// A log that cannot be written is no reason to stop: the reader of the pipe may be gone.
fn emit(text: &str) {
    if SILENT.load(Ordering::Relaxed) {
        return;
    }
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
