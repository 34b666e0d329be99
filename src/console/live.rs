//! What `run` prints while it runs: lines, and on a terminal a view of the present below them that is drawn again in place.
//!
//! A thread of its own writes, and nobody waits for it: a terminal that was stopped (Ctrl-S, a frozen connection) or a
//! pipe that nobody reads holds up this thread and never the run. Lines then wait, up to a number; frames do not, there
//! is only ever the present one.
//!
//! The terminal is left as it is: no raw mode, no other screen, no hidden cursor. The cursor rests in an empty line below
//! the view, so whoever dies in the middle, even of SIGKILL, leaves nothing to be restored.

pub mod frame;
pub mod terminal;

use self::frame::{Line, Paint, ascii, code, frame, paint};
use self::terminal::{Abilities, Size, is_foreground, size};
use crate::console::lines::{Lines, Style};
use crate::event::{Event, EventKind, Outcome, Severity, SuspicionStep};
use crate::time::{Clock, SystemClock};
use crate::view::now::Now;
use crate::view::phrases::Tone;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The view is drawn anew this often, if it has changed.
const TICK: Duration = Duration::from_millis(500);

/// Lines that wait for a terminal that does not take them. The oldest go first.
const WAITING: usize = 10_000;

/// How long the end of a run waits until its last lines are taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Live {
    lines: Lines,
    shared: Arc<Shared>,
    style: Style,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Somebody else has written to the terminal: the cursor is not where we left it.
    disturbed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct State {
    now: Now,
    clock: SystemClock,
    lines: VecDeque<(Tone, String)>,
    dropped: u64,
    /// Whether the view is to be seen.
    view: bool,
    /// Nothing more will come.
    over: bool,
    /// Everything that was asked for until now is written.
    settled: bool,
    /// There is nobody to write to.
    gone: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// Writes to standard output. Whether that is a terminal, and what it can, decides between [`Style::Live`] and
    /// [`Style::Plain`].
    pub fn on_stdout(style: Style, clock: SystemClock) -> io::Result<Self> {
        let out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        let able = Abilities::of(&out);
        let style = if style == Style::Live && !able.frames { Style::Plain } else { style };
        Self::start(style, clock, out, able)
    }

    fn start(style: Style, clock: SystemClock, out: File, able: Abilities) -> io::Result<Self> {
        let state = State {
            now: Now::default(),
            clock,
            lines: VecDeque::new(),
            dropped: 0,
            view: style == Style::Live,
            over: false,
            settled: true,
            gone: false,
        };
        let shared = Shared { state: Mutex::new(state), changed: Condvar::new(), disturbed: Arc::default() };
        let shared = Arc::new(shared);
        if style != Style::Quiet {
            let twin = Arc::clone(&shared);
            let writer = Writer { out, able, drawn: Vec::new() };
            // Not joined: a terminal that takes nothing must not hold us.
            std::thread::Builder::new()
                .name("terminal".to_owned())
                .spawn(move || writer.run(style, &twin))?;
        }
        if style == Style::Live {
            // After Ctrl-Z and `fg` the shell has written below the view.
            signal_hook::flag::register(signal_hook::consts::SIGCONT, Arc::clone(&shared.disturbed))?;
            let disturbed = Arc::clone(&shared.disturbed);
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                disturbed.store(true, Ordering::Relaxed);
                before(info);
            }));
        }
        Ok(Self { lines: Lines::new(style), shared, style })
    }

    /// What is printed.
    pub fn style(&self) -> Style {
        self.style
    }

    /// Shows an event, without waiting.
    pub fn event(&mut self, event: &Event) {
        let line = self.lines.of(event);
        let mut state = self.shared.lock();
        if self.style == Style::Live {
            state.now.push(event);
        }
        if let Some(line) = line {
            state.print(tone(&event.kind), line);
            self.shared.changed.notify_all();
        }
    }

    /// Takes the view away and waits, but not for ever, until all lines are written.
    pub fn settle(&mut self) {
        self.shared.lock().view = false;
        self.wait(PATIENCE);
    }

    /// Prints the last lines.
    pub fn finish(mut self, lines: impl IntoIterator<Item = String>) {
        if self.style != Style::Quiet {
            let mut state = self.shared.lock();
            for line in lines {
                state.print(Tone::Plain, line);
            }
        }
        self.settle();
    }

    fn wait(&self, patience: Duration) {
        if self.style == Style::Quiet {
            return;
        }
        let mut state = self.shared.lock();
        state.settled = false;
        self.shared.changed.notify_all();
        let unsettled = |state: &mut State| !state.settled && !state.gone;
        let waited = self.shared.changed.wait_timeout_while(state, patience, unsettled);
        let (mut state, result) = waited.unwrap_or_else(PoisonError::into_inner);
        // Who takes nothing for so long is not waited for again.
        state.gone |= result.timed_out();
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            (state.over, state.view) = (true, false);
        }
        self.wait(PATIENCE);
    }
}

impl State {
    fn print(&mut self, tone: Tone, line: String) {
        if self.gone || self.over {
            return;
        }
        if self.lines.len() >= WAITING {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.lines.push_back((tone, line));
    }
}

/// The colour of a line: only what is good or bad news has one.
fn tone(kind: &EventKind) -> Tone {
    match kind {
        EventKind::RunFinished { exit_code: 0, .. } => Tone::Good,
        EventKind::RunFinished { .. } | EventKind::Judged { .. } | EventKind::GuardDied { .. } => Tone::Bad,
        EventKind::AttemptEnding(ending) if ending.outcome == Outcome::Success => Tone::Good,
        EventKind::AttemptEnding(_) => Tone::Bad,
        EventKind::Suspicion(s) if s.step == SuspicionStep::Cleared => Tone::Plain,
        EventKind::PreflightFinished { checks, .. } => {
            let worst = checks.iter().map(|check| check.severity).max();
            if worst == Some(Severity::Refuse) { Tone::Bad } else { Tone::Doubtful }
        }
        EventKind::Suspicion(_)
        | EventKind::Finding(_)
        | EventKind::Trouble { .. }
        | EventKind::Mitigated { .. }
        | EventKind::Anomaly { .. }
        | EventKind::Clue(_) => Tone::Doubtful,
        _ => Tone::Plain,
    }
}

/// The thread's own things.
struct Writer {
    out: File,
    able: Abilities,
    /// The view as it stands on the terminal, above the cursor.
    drawn: Vec<Line>,
}

impl Writer {
    fn run(mut self, style: Style, shared: &Shared) {
        // In a background job whose terminal has `tostop`, writing stops the whole process, unless the writer blocks this.
        let mut mask = nix::sys::signal::SigSet::empty();
        mask.add(nix::sys::signal::Signal::SIGTTOU);
        let _ = mask.thread_block();
        loop {
            let (lines, dropped, wanted, over) = {
                let idle = |state: &mut State| state.lines.is_empty() && state.settled && !state.over;
                let tick = if style == Style::Live { TICK } else { Duration::from_secs(3600) };
                let waited = shared.changed.wait_timeout_while(shared.lock(), tick, idle);
                let mut state = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(state, _)| state);
                let wanted = (state.view && is_foreground(&self.out)).then(|| {
                    let at = state.clock.now().mono;
                    frame(&state.now, at, size(&self.out), self.able)
                });
                (std::mem::take(&mut state.lines), std::mem::take(&mut state.dropped), wanted, state.over)
            };
            let text = self.text(style, lines, dropped, wanted.unwrap_or_default(), shared);
            let written = if text.is_empty() { Ok(()) } else { self.write(text.as_bytes()) };
            let mut state = shared.lock();
            state.gone |= written.is_err();
            state.settled |= state.lines.is_empty();
            shared.changed.notify_all();
            if state.gone || (over && state.lines.is_empty()) {
                return;
            }
        }
    }

    /// What takes the terminal from what it shows to these lines and then this view.
    fn text(
        &mut self,
        style: Style,
        lines: VecDeque<(Tone, String)>,
        dropped: u64,
        view: Vec<Line>,
        shared: &Shared,
    ) -> String {
        if shared.disturbed.swap(false, Ordering::Relaxed) {
            self.drawn.clear();
        }
        if lines.is_empty() && view == self.drawn {
            return String::new();
        }
        let mut text = String::new();
        let above = rows(&self.drawn, size(&self.out));
        if above > 0 {
            text += &format!("\x1b[{above}A\r");
        }
        let is_live = style == Style::Live;
        // Overwritten and then cleared to the end of the line, not the other way round: that would flicker.
        let end = if is_live { "\x1b[K\n" } else { "\n" };
        if dropped > 0 {
            text += &match style {
                Style::Json => format!("{{\"dropped\":{dropped}}}\n"),
                _ => format!("({dropped} lines were left out, because nobody took them){end}"),
            };
        }
        for (tone, line) in lines {
            let line = if self.able.unicode || style == Style::Json { line } else { ascii(&line) };
            match code(Paint::Tone(tone)).filter(|_| is_live && self.able.color) {
                Some(code) => text += &format!("\x1b[{code}m{line}\x1b[0m{end}"),
                None => text += &format!("{line}{end}"),
            }
        }
        for line in &view {
            text += &paint(line, self.able);
            text += end;
        }
        if is_live {
            text += "\x1b[J";
        }
        self.drawn = view;
        text
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.out.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => bytes = &bytes[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Somebody who shares the terminal has made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TICK / 10),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Rows that these lines take on a terminal of this size. One that became narrower has broken them anew, as nearly all do.
fn rows(lines: &[Line], size: Size) -> usize {
    lines.iter().map(|line| frame::width(line).div_ceil(size.columns.max(1)).max(1)).sum()
}
