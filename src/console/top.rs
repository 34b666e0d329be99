//! `top`: looks on at a run from another terminal. It reads what the run writes and touches nothing.

pub mod draw;
pub mod state;

use self::draw::{Look, draw};
use self::state::{Key, LogLine, State};
use crate::console::live::terminal::{Abilities, Size};
use crate::event::Event;
use crate::time::{instant_now, wall_now};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::crossterm::event::{self, Event as Typed, KeyCode, KeyEventKind, KeyModifiers};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

/// How soon a key is answered, and news are seen.
const TICK: Duration = Duration::from_millis(100);

/// Without news the clocks still run.
const SECOND: Duration = Duration::from_secs(1);

/// Messages that are taken before the screen is drawn again.
const AT_ONCE: usize = 20_000;

/// What those who read files tell.
#[derive(Debug)]
pub enum Message {
    /// The next events of the journal.
    Event(Box<Event>),
    /// Further lines of the log of an attempt.
    Log {
        /// Which.
        attempt: u32,
        /// The file began anew.
        anew: bool,
        /// The lines.
        lines: Vec<LogLine>,
    },
    /// Whether the guard was found dead in the middle of the run.
    Orphaned(bool),
    /// The journal cannot be read.
    Trouble(Option<String>),
}

/// Shows the run until somebody presses q. The terminal is given back as it was, also after a panic.
pub fn show(run: String, news: &Receiver<Message>) -> io::Result<()> {
    let look = Look { able: Abilities::of(io::stdout()), run };
    let stop = Arc::new(AtomicBool::new(false));
    // SIGHUP ends it at once: there is no terminal left to give back.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let mut terminal = ratatui::try_init()?;
    let shown = attend(&mut terminal, &look, news, &stop);
    if matches!(keyboard(Duration::ZERO), Ok(Keyboard::Gone)) {
        // There is nothing to give back, and ratatui would complain to nobody, which is a panic.
        std::mem::forget(terminal);
        return Ok(());
    }
    ratatui::try_restore()?;
    shown
}

fn attend(
    terminal: &mut ratatui::DefaultTerminal,
    look: &Look,
    news: &Receiver<Message>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut state = State::default();
    let (mut dirty, mut drawn) = (true, instant_now());
    while !stop.load(Ordering::Relaxed) {
        if dirty || drawn.elapsed() >= SECOND {
            let at = state.at(wall_now());
            terminal.draw(|target| draw(target, &state, look, at))?;
            (dirty, drawn) = (false, instant_now());
        }
        let typed = match keyboard(TICK)? {
            Keyboard::Gone => return Ok(()),
            Keyboard::Quiet => Duration::ZERO,
            Keyboard::Typed => TICK,
        };
        // Also tells of a new size.
        if event::poll(typed)? {
            dirty = true;
            if let Typed::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
            {
                let area = terminal.size()?;
                let size = Size { columns: area.width.into(), rows: area.height.into() };
                let is_interrupt =
                    key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                let (page, lines) = (draw::page(size), draw::lines(&state, look, size));
                // In a log "up" is towards the beginning, and its end is followed; a table is read from its beginning.
                let up = if state.tab == state::Tab::Log { 1 } else { -1 };
                let goes_on = meaning(key.code, up).is_none_or(|key| state.key(key, page, lines));
                if is_interrupt || !goes_on {
                    return Ok(());
                }
            }
        }
        for message in news.try_iter().take(AT_ONCE) {
            dirty = true;
            match message {
                Message::Event(event) => state.event(&event),
                Message::Log { attempt, anew, lines } => state.log(attempt, anew, lines),
                Message::Orphaned(orphaned) => state.orphaned = orphaned,
                Message::Trouble(trouble) => state.trouble = trouble,
            }
        }
    }
    Ok(())
}

enum Keyboard {
    Quiet,
    Typed,
    Gone,
}

/// Waits for a key. crossterm reads a terminal that is gone for ever, and with all of a core.
fn keyboard(patience: Duration) -> io::Result<Keyboard> {
    let stdin = io::stdin();
    let mut asked = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut asked, PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO)) {
        Ok(0) | Err(Errno::EINTR) => return Ok(Keyboard::Quiet),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    let is_gone = asked[0].revents().is_some_and(|seen| seen.intersects(gone));
    Ok(if is_gone { Keyboard::Gone } else { Keyboard::Typed })
}

fn meaning(code: KeyCode, up: i64) -> Option<Key> {
    Some(match code {
        KeyCode::Char(letter) => Key::Letter(letter),
        KeyCode::Esc => Key::Letter('q'),
        KeyCode::Tab => Key::Tab,
        KeyCode::Up => Key::Lines(up),
        KeyCode::Down => Key::Lines(-up),
        KeyCode::PageUp => Key::Pages(up),
        KeyCode::PageDown => Key::Pages(-up),
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}
