//! What guard and keeper say to each other: one JSON value a line over a stream socket. First the spec, then orders in
//! one direction and [`EventKind`] in the other. Pure. A stream and not packets, because a command line with its
//! environment may be larger than the largest packet; JSON, because it never contains a raw line feed.
//!
//! [`EventKind`]: crate::event::EventKind

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a keeper must know before it starts anything. Also written into the scratch folder, for whoever cleans up when
/// guard and keeper are both dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperSpec {
    /// The mark in the environment of every process of the run.
    pub run_id: String,
    /// The attempt, for the journal.
    pub attempt: u32,
    /// Where the keeper writes one line if the guard dies.
    pub journal: PathBuf,
    /// The private temporary folder of the attempt: its name begins with `vg-`, and it is removed in the end.
    pub scratch: PathBuf,
    /// Where regular files found in `scratch` are moved before that.
    pub save_to: PathBuf,
    /// Names in `/dev/shm` before the attempt; these are never touched.
    pub shm_before: Vec<String>,
    /// What must not stay in the files of the attempt. Never written to a file.
    #[serde(default)]
    pub secrets: Vec<String>,
    /// The user's own mask for new files, which the server gets; ours is stricter.
    #[serde(default)]
    pub umask: Option<u32>,
}

/// What the keeper is told to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "order")]
pub enum Order {
    /// Start the server. Answered by `ServerSpawned` or `SpawnFailed`.
    Spawn {
        /// Program and arguments.
        argv: Vec<String>,
        /// The whole environment; nothing is inherited.
        env: Vec<(String, String)>,
        /// Working directory.
        cwd: PathBuf,
        /// Standard output and error are appended here.
        log: PathBuf,
    },
    /// Send a signal. Answered by `SignalSent`, before it is sent, or by `Trouble` when nobody is there to get it.
    Signal {
        /// Its number.
        signal: i32,
        /// To whom.
        target: Target,
        /// Why, for the journal.
        why: String,
    },
    /// Kill everything of ours. Answered by `TreeGone`.
    KillAll {
        /// Why, for the journal.
        why: String,
    },
    /// Leave. What is still there is killed first.
    Quit,
}

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The server's first process.
    Main,
    /// Everything in its process group.
    Group,
    /// The engine's own processes, whose command names begin with `VLLM::`.
    Essential,
}

/// One message as bytes.
pub(crate) fn encode<T: Serialize>(message: &T) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Takes the complete lines out of a receive buffer.
pub(crate) fn take_lines(buffer: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let Some(end) = memchr::memrchr(b'\n', buffer) else { return Vec::new() };
    let rest = buffer.split_off(end + 1);
    let complete = std::mem::replace(buffer, rest);
    complete.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_survives_the_wire_in_pieces() {
        let orders = [
            Order::Spawn {
                argv: vec!["a\nb".into()],
                env: vec![("K".into(), "line\nfeed".into())],
                cwd: "/".into(),
                log: "/x".into(),
            },
            Order::Signal { signal: 15, target: Target::Essential, why: "t".into() },
            Order::KillAll { why: String::new() },
            Order::Quit,
        ];
        let bytes: Vec<u8> = orders.iter().flat_map(|order| encode(order).unwrap()).collect();
        let mut buffer = Vec::new();
        let mut got = Vec::new();
        for piece in bytes.chunks(7) {
            buffer.extend_from_slice(piece);
            got.extend(take_lines(&mut buffer));
        }
        let got: Vec<Order> = got.iter().map(|line| serde_json::from_slice(line).unwrap()).collect();
        assert_eq!(got, orders);
        assert!(buffer.is_empty());
    }
}
