//! What API server, engine and workers say to each other: one JSON object a line. Where vLLM has ZeroMQ sockets named by
//! a UUID and shared-memory queues, there are Unix sockets here, with the same names in the same folder.

use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// API server to engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToEngine {
    /// A new request.
    Add(NewRequest),
    /// The client went away.
    Abort {
        /// Which.
        id: u64,
    },
}

/// What the engine needs to know of a request. There are no words in it: the simulated engine only counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NewRequest {
    /// Counts from 1.
    pub(super) id: u64,
    /// Prompt tokens.
    pub(super) prompt: u64,
    /// Tokens it will get, end of sequence included.
    pub(super) output: u64,
    /// Whether it ends by itself (`stop`) rather than by `max_tokens` (`length`).
    pub(super) stops: bool,
    /// Whether it has a temperature.
    pub(super) sampled: bool,
}

/// Engine to API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromEngine {
    /// The model is loaded.
    Ready,
    /// One step is over.
    Step(StepReport),
    /// A fatal exception; the engine ends.
    Dead,
}

/// The outcome of a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct StepReport {
    /// One per sequence that got a token, and per sequence that ended.
    pub(super) outputs: Vec<Output>,
    /// Requests in the batch after the step.
    pub(super) running: u64,
    /// Requests in the queue.
    pub(super) waiting: u64,
    /// 0 to 1.
    pub(super) kv_usage: f64,
    /// Prompt tokens whose prefill ended in this step.
    pub(super) prompt_tokens: u64,
    /// Tokens generated.
    pub(super) generation_tokens: u64,
    /// Sequences thrown out of the cache.
    pub(super) preemptions: u64,
}

/// A token of one sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Output {
    /// Which request.
    pub(super) id: u64,
    /// Whether this is its first token.
    pub(super) first: bool,
    /// Whether it was the last, and why.
    pub(super) finish: Option<Finish>,
    /// Seconds in the queue; sent with the first token.
    pub(super) queued_s: f64,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Finish {
    /// End of sequence.
    Stop,
    /// `max_tokens`.
    Length,
    /// The client went away.
    Abort,
}

impl Finish {
    /// As in `finish_reason` and in the metrics' labels.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// Engine to worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ToWorker {
    /// Execute the model for so many microseconds.
    Execute {
        /// The step's duration.
        micros: u64,
    },
}

/// Worker to engine: a step is done, or loading is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum FromWorker {
    /// Done.
    Done,
}

/// One write per message, so that a reader never sees a torn line of a live writer.
pub(super) fn send<T: Serialize>(to: &mut UnixStream, message: &T) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)
}

/// Reads lines on a thread of its own and hands them on; `None` is the last thing delivered. A receiver that answers
/// false wants no more.
pub(super) fn pump<T>(from: UnixStream, mut deliver: impl FnMut(Option<T>) -> bool + Send + 'static)
where
    T: for<'de> Deserialize<'de>,
{
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            let Some(message) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else { break };
            if !deliver(Some(message)) {
                return;
            }
        }
        deliver(None);
    });
}

/// A name as vLLM gives its sockets. Random rather than seeded: two servers may share the folder.
pub(super) fn socket_path(folder: &Path) -> PathBuf {
    let mut id: u128 = rand::random();
    // Version 4, variant 1 (RFC 9562).
    id = (id & !(0xf << 76)) | (4 << 76);
    id = (id & !(0x3 << 62)) | (0x2 << 62);
    let hex = format!("{id:032x}");
    folder.join(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_named_by_a_version_4_uuid() {
        let path = socket_path(Path::new("/t"));
        let name = path.file_name().unwrap().to_str().unwrap();
        assert_eq!(name.len(), 36);
        assert_eq!(name.as_bytes()[14], b'4');
        assert!(b"89ab".contains(&name.as_bytes()[19]), "{name}");
        assert_ne!(path, socket_path(Path::new("/t")));
    }
}
