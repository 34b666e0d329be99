//! What the terminal can do: decided from the environment (pure), its size asked anew for each frame.

use rustix::termios::{isatty, tcgetpgrp, tcgetwinsize};
use std::os::fd::AsFd;

/// What may be sent to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// The cursor can be moved.
    pub frames: bool,
    /// Colours are known and wanted.
    pub color: bool,
    /// Characters beyond ASCII can be shown.
    pub unicode: bool,
}

/// Columns and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters in a row.
    pub columns: usize,
    /// Rows.
    pub rows: usize,
}

impl Size {
    /// Taken where nobody says.
    pub const USUAL: Self = Self { columns: 80, rows: 24 };
}

impl Abilities {
    /// By the environment: `TERM`, `NO_COLOR` (<https://no-color.org>), and the locale as setlocale(3) looks it up.
    pub fn from(is_terminal: bool, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let frames = is_terminal && set("TERM").is_some_and(|term| term != "dumb");
        let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        Self {
            frames,
            color: frames && set("NO_COLOR").is_none(),
            unicode: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// Of what this process writes to.
    pub fn of(out: impl AsFd) -> Self {
        Self::from(isatty(out), |name| std::env::var(name).ok())
    }
}

/// The present size, which changes when somebody drags a corner.
pub fn size(out: impl AsFd) -> Size {
    match tcgetwinsize(out) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
            Size { columns: size.ws_col.into(), rows: size.ws_row.into() }
        }
        _ => Size::USUAL,
    }
}

/// Whether the terminal is ours at present. A frame in the middle of what another program shows would spoil both.
pub fn is_foreground(out: impl AsFd) -> bool {
    // Without a controlling terminal (under `script`, in a container) there are no jobs, and so nobody to disturb.
    tcgetpgrp(out).map_or(true, |group| group == rustix::process::getpgrp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abilities(is_terminal: bool, env: &[(&str, &str)]) -> Abilities {
        Abilities::from(is_terminal, |name| {
            env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_pipe_and_a_dumb_terminal_get_no_frames_and_no_colours() {
        let none = Abilities { frames: false, color: false, unicode: true };
        let locale = ("LANG", "C.UTF-8");
        assert_eq!(abilities(false, &[("TERM", "xterm"), locale]), none);
        assert_eq!(abilities(true, &[("TERM", "dumb"), locale]), none);
        assert_eq!(abilities(true, &[locale]), none);
        assert!(abilities(true, &[("TERM", "xterm"), locale]).frames);
    }

    #[test]
    fn no_color_takes_the_colours_and_nothing_else_unless_it_is_empty() {
        let term = ("TERM", "xterm");
        let shown = |value| abilities(true, &[term, ("NO_COLOR", value)]);
        assert_eq!((shown("1").color, shown("1").frames, shown("").color), (false, true, true));
    }

    #[test]
    fn the_first_locale_that_is_set_decides_on_the_characters() {
        let unicode = |env: &[(&str, &str)]| abilities(true, env).unicode;
        assert!(unicode(&[("LANG", "de_DE.UTF-8")]));
        assert!(unicode(&[("LC_CTYPE", "en_US.utf8"), ("LANG", "C")]));
        assert!(!unicode(&[("LC_ALL", "C"), ("LANG", "de_DE.UTF-8")]));
        assert!(unicode(&[("LC_ALL", ""), ("LANG", "de_DE.UTF-8")]));
        assert!(!unicode(&[]));
    }
}
