//! What was said and what was delivered, in `notifications.jsonl` of the run folder: a line when a message is due, one when
//! it has arrived. Whatever has no second line can still be delivered, by whoever reads the file later.

use super::message::Message;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "what")]
enum Line {
    /// It is to be delivered.
    Due { id: u64, target: String, message: Box<Message> },
    /// It could not be.
    Tried { id: u64, at: jiff::Timestamp, error: String },
    /// It was.
    Delivered { id: u64, at: jiff::Timestamp, answer: String },
}

/// A message that waits.
#[derive(Debug, Clone, PartialEq)]
pub struct Due {
    /// Its number in the file.
    pub id: u64,
    /// The name of who gets it.
    pub target: String,
    /// What.
    pub message: Message,
    /// The last error, if it was tried.
    pub error: Option<String>,
}

/// The file, open for writing.
#[derive(Debug)]
pub struct Outbox {
    file: File,
    next: u64,
    failed: bool,
}

impl Outbox {
    /// Opens or creates it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let next = match read(path) {
            Ok(lines) => lines.iter().map(|line| line.id() + 1).max().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // After a line that was torn a new one begins, or both were lost.
        let torn = std::fs::read(path)?.last().is_some_and(|last| *last != b'\n');
        if torn {
            file.write_all(b"\n")?;
        }
        Ok(Self { file, next, failed: false })
    }

    /// A message is due; its number.
    pub fn due(&mut self, target: &str, message: &Message) -> u64 {
        let id = self.next;
        self.next += 1;
        self.write(&Line::Due { id, target: target.to_owned(), message: Box::new(message.clone()) });
        id
    }

    /// It could not be delivered.
    pub fn tried(&mut self, id: u64, error: &str) {
        self.write(&Line::Tried { id, at: crate::time::wall_now(), error: error.to_owned() });
    }

    /// It was delivered.
    pub fn delivered(&mut self, id: u64, answer: &str) {
        self.write(&Line::Delivered { id, at: crate::time::wall_now(), answer: answer.to_owned() });
    }

    fn write(&mut self, line: &Line) {
        let text = serde_json::to_string(line).map(|text| text + "\n").map_err(io::Error::from);
        if let Err(error) = text.and_then(|text| self.file.write_all(text.as_bytes()))
            && !self.failed
        {
            // Messages go out all the same; only what is not delivered now is lost.
            self.failed = true;
            tracing::error!("cannot write down which messages were delivered: {error}");
        }
    }
}

impl Line {
    fn id(&self) -> u64 {
        match self {
            Self::Due { id, .. } | Self::Tried { id, .. } | Self::Delivered { id, .. } => *id,
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<Line>> {
    let mut out = Vec::new();
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        // The last line of a guard that was killed may be torn.
        if let Ok(line) = serde_json::from_slice(&line?) {
            out.push(line);
        }
    }
    Ok(out)
}

/// What was never delivered, in order. An absent file is an empty one.
pub fn waiting(path: &Path) -> io::Result<Vec<Due>> {
    let lines = match read(path) {
        Ok(lines) => lines,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut due: BTreeMap<u64, Due> = BTreeMap::new();
    for line in lines {
        match line {
            Line::Due { id, target, message } => {
                drop(due.insert(id, Due { id, target, message: *message, error: None }));
            }
            Line::Tried { id, error, .. } => {
                if let Some(due) = due.get_mut(&id) {
                    due.error = Some(error);
                }
            }
            Line::Delivered { id, .. } => drop(due.remove(&id)),
        }
    }
    Ok(due.into_values().collect())
}

/// Whether anything about the end of the run was ever due.
pub fn told_the_end(path: &Path) -> io::Result<bool> {
    use crate::config::Occasion;
    let is_end = |line: &Line| matches!(line, Line::Due { message, .. } if matches!(message.occasion, Occasion::Success | Occasion::Failure));
    match read(path) {
        Ok(lines) => Ok(lines.iter().any(is_end)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Composer;
    use super::*;
    use crate::time::{Clock, ManualClock};

    #[test]
    fn what_was_not_delivered_is_found_again_also_behind_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notifications.jsonl");
        let message = Composer::new("box").test(ManualClock::new().now());
        let mut outbox = Outbox::open(&path).unwrap();
        let ids = ["a", "b", "c"].map(|target| outbox.due(target, &message));
        outbox.tried(ids[1], "refused");
        outbox.delivered(ids[0], "200");
        drop(outbox);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [whole.as_slice(), b"{\"what\":\"delivered\",\"id\":1"].concat()).unwrap();
        let left = waiting(&path).unwrap();
        let seen: Vec<_> = left.iter().map(|due| (due.target.as_str(), due.error.as_deref())).collect();
        assert_eq!(seen, [("b", Some("refused")), ("c", None)]);
        let mut outbox = Outbox::open(&path).unwrap();
        assert_eq!(outbox.due("d", &message), 3);
        outbox.delivered(ids[2], "late");
        let left = waiting(&path).unwrap();
        assert_eq!(left.iter().map(|due| due.target.as_str()).collect::<Vec<_>>(), ["b", "d"]);
        assert!(waiting(&dir.path().join("absent")).unwrap().is_empty());
    }
}
