//! The live view as lines: what is shown, how it fits into the terminal, and how it is coloured. Pure.

use super::terminal::{Abilities, Size};
use crate::console::lines::harmless;
use crate::event::Phase;
use crate::view::now::Now;
use crate::view::phrases::{self, Tone};
use std::time::Duration;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Characters before a text.
const LABEL: usize = 11;

/// Below this many columns the labels are left out.
const NARROW: usize = 60;

/// A piece of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Its colour.
    pub paint: Paint,
    /// What it says.
    pub text: String,
}

/// A colour by its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Paint {
    /// A label or a rule.
    Faint,
    /// A heading.
    Strong,
    /// A value.
    Tone(Tone),
}

/// A line that fits.
pub type Line = Vec<Span>;

/// What the view says, before anybody knows how much room there is.
struct Row {
    label: &'static str,
    tone: Tone,
    text: String,
    /// Lines it may take.
    lines: usize,
    /// The smaller, the longer it stays when there are too few rows.
    rank: u8,
}

/// The lines of the view at a moment. No line is as wide as the terminal, and there are fewer of them than rows.
pub fn frame(now: &Now, at: Duration, size: Size, able: Abilities) -> Vec<Line> {
    let room = size.rows.saturating_sub(2);
    // A character in the last column makes some terminals wrap.
    let width = size.columns.saturating_sub(1);
    if room == 0 || width < 8 {
        return Vec::new();
    }
    let mut rows = rows(now, at, width, able);
    let narrow = width < NARROW;
    let indent = if narrow { 1 } else { LABEL };
    loop {
        let lines: Vec<(usize, Line)> = rows
            .iter()
            .enumerate()
            .flat_map(|(index, row)| laid_out(row, width, indent).into_iter().map(move |line| (index, line)))
            .collect();
        if lines.len() < room || rows.len() <= 1 {
            let mut out = vec![head(now, at, width, able)];
            out.extend(lines.into_iter().map(|(_, line)| line));
            out.truncate(room);
            return out;
        }
        let last = rows.iter().enumerate().max_by_key(|(_, row)| row.rank).map(|(index, _)| index);
        if let Some(last) = last {
            rows.remove(last);
        }
    }
}

fn head(now: &Now, at: Duration, width: usize, able: Abilities) -> Line {
    let dash = if able.unicode { "─" } else { "-" };
    let title = format!("{}, {}", phrases::phase(now), phrases::attempt(now));
    let clock = phrases::clock(at);
    let title = cut(&title, width.saturating_sub(6));
    let used = 4 + title.width();
    let rest = width.saturating_sub(used);
    let tail = if rest > clock.len() + 4 {
        format!("{} {clock} {dash}{dash}", dash.repeat(rest - clock.len() - 4))
    } else {
        dash.repeat(rest)
    };
    vec![
        Span { paint: Paint::Faint, text: format!("{dash}{dash} ") },
        Span { paint: Paint::Strong, text: title },
        Span { paint: Paint::Faint, text: format!(" {tail}") },
    ]
}

fn rows(now: &Now, at: Duration, width: usize, able: Abilities) -> Vec<Row> {
    let mut out = Vec::new();
    let mut say = |rank, lines, label, tone, text: String| {
        out.push(Row { label, tone, text: harmless(&text), lines, rank });
    };
    let mut time = phrases::time(now, at);
    if let Some(bar) = bar(now, at, width, able) {
        time = format!("{bar} {time}");
    }
    // Where there is no room beside the time, it is the first thing to go.
    let mut deadline = phrases::deadline(now, at);
    if let Some(text) = deadline.take_if(|text| time.width() + text.width() + 3 + LABEL <= width) {
        time += &format!(" {} {text}", dot(able));
    }
    say(0, 2, "time", Tone::Plain, time);
    if let Some(text) = deadline {
        say(9, 1, "", Tone::Plain, text);
    }
    let serves = matches!(now.phase, Some(Phase::WarmUp | Phase::Measuring | Phase::Flushing));
    if let Some((tone, text)) = phrases::requests(now) {
        say(2, 2, "requests", tone, text);
        let speed: Vec<String> =
            [phrases::tokens(now, at), phrases::ttft(now)].into_iter().flatten().collect();
        if !speed.is_empty() {
            say(3, 2, "speed", Tone::Plain, speed.join(&format!(" {} ", dot(able))));
        }
    }
    if let Some(text) = phrases::engine(now).filter(|_| serves) {
        say(6, 1, "engine", Tone::Plain, text);
    }
    if let Some((tone, text)) = phrases::windows(now) {
        say(4, 2, "profiler", tone, text);
    }
    let gpus = phrases::gpus(now);
    if !gpus.is_empty() {
        let text = gpus.join(&format!(" {} ", dot(able)));
        say(5, 2, if gpus.len() == 1 { "GPU" } else { "GPUs" }, Tone::Plain, text);
    }
    let host: Vec<String> = [phrases::processes(now), phrases::disk(now)].into_iter().flatten().collect();
    if !host.is_empty() {
        say(7, 2, "host", Tone::Plain, host.join(&format!(" {} ", dot(able))));
    }
    if let Some(text) = phrases::decision(now) {
        say(8, 2, "before", Tone::Plain, text);
    }
    if let Some((tone, text)) = phrases::so_far(now) {
        say(1, 3, "so far", tone, text);
    }
    out
}

fn dot(able: Abilities) -> char {
    if able.unicode { '·' } else { '|' }
}

/// How much of the benchmark is done. A budget is no progress, so other phases have none.
fn bar(now: &Now, at: Duration, width: usize, able: Abilities) -> Option<String> {
    let cells = match width {
        _ if width >= 90 => 24,
        _ if width >= 50 => 12,
        _ => return None,
    };
    let left = now.load_left(at)?;
    let share = 1.0 - left.as_secs_f64() / now.load_duration.as_secs_f64().max(1e-9);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "at most 24"
    )]
    let full = ((share.clamp(0.0, 1.0) * cells as f64) as usize).min(cells);
    let (done, open) = if able.unicode { ("█", "░") } else { ("#", ".") };
    Some(format!("{}{}", done.repeat(full), open.repeat(cells - full)))
}

fn laid_out(row: &Row, width: usize, indent: usize) -> Vec<Line> {
    let texts = wrap(&row.text, width.saturating_sub(indent), row.lines);
    let label = |index: usize| match (indent >= LABEL, index) {
        (true, 0) => format!(" {:<w$}", row.label, w = indent - 1),
        _ => " ".repeat(indent),
    };
    texts
        .into_iter()
        .enumerate()
        .map(|(index, text)| {
            vec![
                Span { paint: Paint::Faint, text: label(index) },
                Span { paint: Paint::Tone(row.tone), text },
            ]
        })
        .collect()
}

/// Breaks at spaces into at most `lines` lines of at most `width` columns; what does not fit is cut.
pub fn wrap(text: &str, width: usize, lines: usize) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut words = text.split(' ').filter(|word| !word.is_empty()).peekable();
    while let Some(word) = words.peek().copied() {
        let room = width.saturating_sub(line.width() + usize::from(!line.is_empty()));
        if word.width() <= room {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
            words.next();
        } else if out.len() + 1 >= lines || line.is_empty() {
            // The last line, or a word that is longer than any line: as much as fits.
            let rest: Vec<&str> = words.collect();
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&rest.join(" "));
            out.push(cut(&line, width));
            return out;
        } else {
            out.push(std::mem::take(&mut line));
        }
    }
    if !line.is_empty() {
        out.push(line);
    }
    out
}

/// The beginning of a text, with a mark when something is missing.
pub fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let (mut out, mut used) = (String::new(), 0);
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w > room {
            break;
        }
        out.push(c);
        used += w;
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// As the terminal gets it, without a line break.
pub fn paint(line: &Line, able: Abilities) -> String {
    let mut out = String::new();
    for span in line {
        let text = if able.unicode { span.text.clone() } else { ascii(&span.text) };
        match code(span.paint).filter(|_| able.color) {
            Some(code) => out += &format!("\x1b[{code}m{text}\x1b[0m"),
            None => out += &text,
        }
    }
    out.trim_end().to_owned()
}

/// SGR codes of the eight colours that every scheme has made readable.
pub fn code(paint: Paint) -> Option<u8> {
    match paint {
        Paint::Faint => Some(2),
        Paint::Strong => Some(1),
        Paint::Tone(Tone::Good) => Some(32),
        Paint::Tone(Tone::Plain) => None,
        Paint::Tone(Tone::Doubtful) => Some(33),
        Paint::Tone(Tone::Bad) => Some(31),
    }
}

/// Every character beyond ASCII by one of the same width.
pub fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            _ if c.is_ascii() => out.push(c),
            '…' => out.push('~'),
            '·' => out.push('|'),
            '─' | '–' | '—' => out.push('-'),
            _ => out.extend(std::iter::repeat_n('?', c.width().unwrap_or(0))),
        }
    }
    out
}

/// Columns of a line.
pub fn width(line: &Line) -> usize {
    line.iter().map(|span| span.text.width()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Plan;
    use crate::event::{
        Ending, Event, EventKind, GpuSample, JOURNAL_VERSION, LoadProgress, Outcome, ProcId, Reading,
        WindowEvent, WindowLine,
    };
    use crate::time::Stamp;
    use proptest::prelude::*;

    const ABLE: Abilities = Abilities { frames: true, color: false, unicode: true };

    fn busy(words: &str) -> Now {
        let gpu = GpuSample {
            gpu: 0,
            util: Reading::Value(97),
            mem_util: Reading::Stale,
            power_w: Reading::Value(412.0),
            mem_used: Reading::Value(61_200_000_000),
            mem_total: Reading::Value(85_000_000_000),
            xid: None,
            details: None,
        };
        let plan = Plan::default();
        let progress = LoadProgress {
            sent: 1300,
            in_flight: 64,
            completed: 1234,
            failed: 2,
            ttft_p50_us: 41_000,
            ttft_p99_us: 180_000,
            ..LoadProgress::default()
        };
        let hello = WindowEvent::Hello { torch: String::new(), activities: Vec::new() };
        let kinds = [
            EventKind::RunStarted {
                run_id: "vg".to_owned(),
                guard_version: "0".to_owned(),
                guard: ProcId { pid: 1, start: 1 },
                plan: Box::new(plan),
            },
            EventKind::AttemptStarted {},
            EventKind::PhaseEntered { phase: Phase::Measuring, budget: Some(Duration::from_secs(200)) },
            EventKind::LoadStarted { planned: 3000, seed: 42 },
            EventKind::Window(WindowLine { rank: 0, pid: 1, t: 0.0, what: hello }),
            EventKind::GpusSampled(Reading::Value(vec![gpu; 3])),
            EventKind::LoadProgressed(progress),
            EventKind::AttemptEnding(Ending {
                outcome: Outcome::Crash,
                reason: words.to_owned(),
                phase: Phase::Measuring,
            }),
        ];
        let mut now = Now::default();
        for kind in kinds {
            let at = Stamp { mono: Duration::ZERO, wall: jiff::Timestamp::UNIX_EPOCH };
            now.push(&Event { v: JOURNAL_VERSION, seq: 0, at, attempt: 1, kind });
        }
        now
    }

    fn text(columns: usize, rows: usize, able: Abilities) -> String {
        let lines = frame(&busy("it broke"), Duration::from_secs(72), Size { columns, rows }, able);
        lines.iter().map(|line| paint(line, able) + "\n").collect()
    }

    #[test]
    fn eighty_columns_show_everything() {
        let expected = "\
── measuring, attempt 1 of 4 ────────────────────────────────────────── 1:12 ──
 time      ███████░░░░░ 1:12 of 2:00, 0:48 left
 requests  1,234 done, 2 failed, 64 open of 3,000
 speed     TTFT p50 41 ms, p99 180 ms
 profiler  0 windows
 GPUs      GPU0 97 % 61.2 of 85.0 GB 412 W · GPU0 97 % 61.2 of 85.0 GB 412 W ·
           GPU0 97 % 61.2 of 85.0 GB 412 W
 so far    crash: it broke
";
        assert_eq!(text(80, 24, ABLE), expected);
    }

    #[test]
    fn a_narrow_terminal_has_no_labels_and_a_flat_one_keeps_what_matters_most() {
        let expected = "\
── measuring, attempt 1 of 4 ── 1:12 ──
 1:12 of 2:00, 0:48 left
 1,234 done, 2 failed, 64 open of 3,000
 crash: it broke
";
        assert_eq!(text(40, 6, ABLE), expected);
    }

    #[test]
    fn a_terminal_without_unicode_gets_none() {
        for columns in [30, 80, 120] {
            assert!(text(columns, 24, Abilities { unicode: false, ..ABLE }).is_ascii());
        }
    }

    #[test]
    fn colours_are_only_sent_where_they_are_wanted_and_always_ended() {
        assert!(!text(80, 24, ABLE).contains('\x1b'));
        let painted = text(80, 24, Abilities { color: true, ..ABLE });
        for line in painted.lines() {
            let (begun, ended) = (line.matches("\x1b[").count(), line.matches("\x1b[0m").count());
            assert_eq!(begun, 2 * ended, "{line:?}");
        }
        assert!(painted.contains("\x1b[31mcrash: it broke\x1b[0m"), "{painted:?}");
    }

    proptest! {
        #[test]
        fn no_line_reaches_the_last_column_and_no_frame_the_last_row(
            columns in 0..200_usize, rows in 0..60_usize, words in "\\PC{0,200}", unicode: bool
        ) {
            let able = Abilities { unicode, ..ABLE };
            let lines = frame(&busy(&words), Duration::from_secs(72), Size { columns, rows }, able);
            prop_assert!(lines.len() < rows.max(1));
            for line in &lines {
                prop_assert!(width(line) < columns.max(1), "{line:?}");
                prop_assert!(paint(line, able).width() < columns.max(1));
            }
        }

        #[test]
        fn wrapping_loses_no_word_that_has_room(words in proptest::collection::vec("[a-z]{1,9}", 0..40)) {
            let text = words.join(" ");
            prop_assert_eq!(wrap(&text, 12, usize::MAX).join(" "), text);
        }
    }
}
