//! Plain lines: one sentence for each event worth one, and a progress line now and then; or the events as JSON.

use crate::event::words::{progress, sentence};
use crate::event::{Event, EventKind};
use std::io::Write;
use std::time::Duration;

/// How often the progress of the load is worth a line.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Sentences.
    Plain,
    /// One JSON event a line, without samples.
    Json,
    /// Nothing.
    Quiet,
}

/// Writes lines to `out`.
pub struct Lines<W> {
    out: W,
    style: Style,
    last_progress: Duration,
}

impl<W: Write> Lines<W> {
    /// A console on `out`.
    pub fn new(out: W, style: Style) -> Self {
        Self { out, style, last_progress: Duration::ZERO }
    }

    /// Shows one event. A terminal that went away must not end a run, so errors of the output are nobody's concern.
    pub fn show(&mut self, event: &Event) {
        let text = match self.style {
            Style::Quiet => None,
            Style::Json => {
                event.kind.is_milestone().then(|| serde_json::to_string(event).unwrap_or_default())
            }
            Style::Plain => self.plain(event),
        };
        if let Some(text) = text {
            drop(writeln!(self.out, "{text}").and_then(|()| self.out.flush()));
        }
    }

    fn plain(&mut self, event: &Event) -> Option<String> {
        let words = match &event.kind {
            EventKind::LoadProgressed(p) => {
                if event.at.mono < self.last_progress + PROGRESS_EVERY {
                    return None;
                }
                self.last_progress = event.at.mono;
                progress(p)
            }
            EventKind::SignalSent { .. } | EventKind::AttemptEnded(_) | EventKind::TimerFired { .. } => {
                return None;
            }
            kind => sentence(kind)?,
        };
        let minutes = event.at.mono.as_secs() / 60;
        Some(format!("[{minutes:02}:{:02}] {words}", event.at.mono.as_secs() % 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{JOURNAL_VERSION, LoadProgress};
    use crate::time::Stamp;

    fn event(seconds: u64, kind: EventKind) -> Event {
        let at = Stamp { mono: Duration::from_secs(seconds), wall: jiff::Timestamp::UNIX_EPOCH };
        Event { v: JOURNAL_VERSION, seq: 0, at, attempt: 1, kind }
    }

    fn shown(style: Style, events: &[Event]) -> String {
        let mut lines = Lines::new(Vec::new(), style);
        for event in events {
            lines.show(event);
        }
        String::from_utf8(lines.out).unwrap()
    }

    #[test]
    fn progress_is_a_line_every_ten_seconds_and_sentences_always() {
        let mut events: Vec<Event> =
            (1..=35).map(|s| event(s, EventKind::LoadProgressed(LoadProgress::default()))).collect();
        events.push(event(95, EventKind::WindowsClosed { workers: 1 }));
        let text = shown(Style::Plain, &events);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.ends_with("[01:35] all windows are closed (1 workers)\n"), "{text}");
    }

    #[test]
    fn json_lines_are_events_and_quiet_is_silent() {
        let events = [event(1, EventKind::AttemptStarted {})];
        let back: Event = serde_json::from_str(&shown(Style::Json, &events)).unwrap();
        assert_eq!(back, events[0]);
        assert_eq!(shown(Style::Quiet, &events), "");
    }
}
