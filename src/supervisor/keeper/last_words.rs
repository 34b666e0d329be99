//! The journal's last line, written by whoever is left when the guard is gone.

use crate::event::{Event, EventKind, JOURNAL_VERSION};
use crate::supervisor::journal::TAIL;
use crate::time::{Stamp, wall_now};
use serde::Deserialize;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

/// What must be known of the line before ours.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Before {
    seq: u64,
    #[serde(flatten)]
    at: Stamp,
}

/// Appends `kind` as one line. The guard may have died while writing: a torn last line is closed, not repaired.
pub(crate) fn append(journal: &Path, attempt: u32, kind: EventKind) -> io::Result<()> {
    let mut file = File::options().read(true).append(true).create(true).open(journal)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    (&file).take(TAIL).read_to_end(&mut tail)?;
    let bytes = line_after(&tail, attempt, kind, wall_now()).map_err(io::Error::other)?;
    file.write_all(&bytes)?;
    file.sync_data()
}

fn line_after(
    tail: &[u8],
    attempt: u32,
    kind: EventKind,
    wall: jiff::Timestamp,
) -> serde_json::Result<Vec<u8>> {
    let before =
        tail.rsplit(|byte| *byte == b'\n').find_map(|line| serde_json::from_slice::<Before>(line).ok());
    // The guard's monotonic clock died with it; its zero is where its last line puts it.
    let mono = before.map_or(Duration::ZERO, |before| {
        let since = wall.duration_since(before.at.wall);
        before.at.mono + Duration::try_from(since).unwrap_or_default()
    });
    let event = Event {
        v: JOURNAL_VERSION,
        seq: before.map_or(0, |before| before.seq + 1),
        at: Stamp { mono, wall },
        attempt,
        kind,
    };
    let mut bytes = Vec::new();
    if !tail.is_empty() && !tail.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    serde_json::to_writer(&mut bytes, &event)?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn died() -> EventKind {
        EventKind::GuardDied { killed: vec![], leftovers: vec![], removed: vec![] }
    }

    fn event(seq: u64, second: i64) -> Vec<u8> {
        let at = Stamp {
            mono: Duration::from_secs(u64::try_from(second).unwrap()),
            wall: jiff::Timestamp::from_second(1_000 + second).unwrap(),
        };
        let kind = EventKind::SignalReceived { signal: 2 };
        let mut line = serde_json::to_vec(&Event { v: 1, seq, at, attempt: 1, kind }).unwrap();
        line.push(b'\n');
        line
    }

    fn after(tail: &[u8]) -> (Event, bool) {
        let wall = jiff::Timestamp::from_second(1_010).unwrap();
        let line = line_after(tail, 1, died(), wall).unwrap();
        (serde_json::from_slice(&line).unwrap(), line.starts_with(b"\n"))
    }

    #[test]
    fn the_line_counts_on_from_the_last_one() {
        let tail = [event(4, 4), event(5, 7)].concat();
        let (event, closes) = after(&tail);
        assert_eq!((event.seq, event.at.mono, closes), (6, Duration::from_secs(10), false));
    }

    #[test]
    fn a_torn_last_line_is_closed_and_not_counted() {
        let tail = [event(4, 4), event(5, 7)[..20].to_vec()].concat();
        let (event, closes) = after(&tail);
        assert_eq!((event.seq, closes), (5, true));
    }

    #[test]
    fn a_whole_line_without_its_end_is_closed_and_counted() {
        let mut tail = event(5, 7);
        tail.pop();
        let (event, closes) = after(&tail);
        assert_eq!((event.seq, closes), (6, true));
    }

    #[test]
    fn an_empty_journal_begins_at_zero() {
        assert_eq!(after(b"").0.seq, 0);
        assert_eq!(after(b"rubbish\n").0.seq, 0);
    }

    #[test]
    fn a_wall_clock_set_back_does_not_turn_the_run_clock_back() {
        let (event, _) = after(&event(5, 900));
        assert_eq!(event.at.mono, Duration::from_secs(900));
    }
}
