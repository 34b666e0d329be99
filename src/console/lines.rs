//! Plain lines: one sentence for each event worth one, and a progress line now and then; or the events as JSON. Pure.

use crate::event::words::{progress, sentence};
use crate::event::{Event, EventKind};
use crate::time::human;
use std::time::Duration;

/// How often the progress of the load is worth a line.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Sentences, and a view of the present below them that is drawn again and again.
    Live,
    /// Sentences.
    Plain,
    /// One JSON event a line, without samples.
    Json,
    /// Nothing.
    Quiet,
}

/// Makes lines of events.
#[derive(Debug)]
pub struct Lines {
    style: Style,
    last_progress: Duration,
    /// How long open requests may take after the last send.
    drain: Option<Duration>,
    /// Requests of the load; none once it was told that they are all sent.
    planned: Option<u64>,
}

impl Lines {
    /// Before the first event.
    pub fn new(style: Style) -> Self {
        Self { style, last_progress: Duration::ZERO, drain: None, planned: None }
    }

    /// What is to be printed of the next event, without a line break.
    pub fn of(&mut self, event: &Event) -> Option<String> {
        match self.style {
            Style::Quiet => None,
            Style::Json => {
                event.kind.is_milestone().then(|| serde_json::to_string(event).unwrap_or_default())
            }
            Style::Plain | Style::Live => self.sentence(event),
        }
    }

    fn sentence(&mut self, event: &Event) -> Option<String> {
        match &event.kind {
            EventKind::RunStarted { plan, .. } => self.drain = Some(plan.load.drain),
            EventKind::LoadStarted { planned, .. } => self.planned = Some(*planned),
            _ => {}
        }
        let words = match &event.kind {
            // Or the benchmark would seem to last longer than it was asked to.
            EventKind::LoadProgressed(p)
                if p.in_flight > 0 && self.planned.is_some_and(|planned| p.sent >= planned) =>
            {
                self.planned = None;
                let most =
                    self.drain.map_or_else(String::new, |drain| format!(" (at most {})", human(drain)));
                format!("all {} requests are sent; {} are open and are waited for{most}", p.sent, p.in_flight)
            }
            // The live view shows it all the time.
            EventKind::LoadProgressed(_) if self.style == Style::Live => return None,
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
        Some(harmless(&format!("[{minutes:02}:{:02}] {words}", event.at.mono.as_secs() % 60)))
    }
}

/// Without what a terminal would obey: sentences quote the server's log.
pub fn harmless(text: &str) -> String {
    let is_invisible = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
    text.chars().filter(|c| !is_invisible(*c)).map(|c| if c.is_control() { ' ' } else { c }).collect()
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

    fn shown(style: Style, events: &[Event]) -> Vec<String> {
        let mut lines = Lines::new(style);
        events.iter().filter_map(|event| lines.of(event)).collect()
    }

    #[test]
    fn progress_is_a_line_every_ten_seconds_and_sentences_always() {
        let mut events: Vec<Event> =
            (1..=35).map(|s| event(s, EventKind::LoadProgressed(LoadProgress::default()))).collect();
        events.push(event(95, EventKind::WindowsClosed { workers: 1 }));
        let lines = shown(Style::Plain, &events);
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[3], "[01:35] all windows are closed (1 workers)");
        assert_eq!(shown(Style::Live, &events), lines[3..], "the live view shows the progress itself");
    }

    #[test]
    fn it_is_told_once_that_only_the_last_answers_are_waited_for() {
        let progress = |sent, in_flight| LoadProgress { sent, in_flight, ..LoadProgress::default() };
        let events = [
            event(1, EventKind::LoadStarted { planned: 9, seed: 1 }),
            event(2, EventKind::LoadProgressed(progress(8, 5))),
            event(3, EventKind::LoadProgressed(progress(9, 4))),
            event(4, EventKind::LoadProgressed(progress(9, 2))),
        ];
        for style in [Style::Plain, Style::Live] {
            let lines = shown(style, &events);
            assert_eq!(
                lines[1..],
                ["[00:03] all 9 requests are sent; 4 are open and are waited for"],
                "{style:?}"
            );
        }
    }

    #[test]
    fn json_lines_are_events_and_quiet_is_silent() {
        let events = [
            event(1, EventKind::AttemptStarted {}),
            event(2, EventKind::LoadProgressed(LoadProgress::default())),
        ];
        let lines = shown(Style::Json, &events);
        assert_eq!(lines.len(), 1, "samples are no lines: {lines:?}");
        assert_eq!(serde_json::from_str::<Event>(&lines[0]).unwrap(), events[0]);
        assert!(shown(Style::Quiet, &events).is_empty());
    }

    #[test]
    fn a_quoted_log_line_cannot_command_the_terminal() {
        let what = "read \u{1b}]0;owned\u{7}\u{1b}[2J\u{202e}x\r\n".to_owned();
        let events = [event(1, EventKind::Trouble { what, error: String::new() })];
        let line = &shown(Style::Plain, &events)[0];
        assert!(!line.chars().any(char::is_control) && !line.contains('\u{202e}'), "{line:?}");
    }
}
