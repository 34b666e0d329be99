//! Speaks systemd's notification protocol (sd_notify(3)): ready, what is being done, and that the dispatcher still goes
//! round, so that `Type=notify` and `WatchdogSec=` can be used. Without `NOTIFY_SOCKET` it says nothing.

use crate::event::{Event, EventKind};
use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// The line to systemd.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Half of what systemd allows, as its manual advises.
    beat: Option<Duration>,
    last_beat: Option<Instant>,
    is_ready: bool,
}

impl Notifier {
    /// With the values of `NOTIFY_SOCKET` and `WATCHDOG_USEC`. A socket that cannot be reached is as good as none.
    pub fn new(socket: Option<&OsStr>, watchdog: Option<&str>) -> Self {
        let address = socket.filter(|name| !name.is_empty()).and_then(|name| match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest).ok(),
            _ => SocketAddr::from_pathname(name).ok(),
        });
        let socket = address.and_then(|address| {
            let socket = UnixDatagram::unbound().ok()?;
            // The run never waits for whoever looks on.
            socket.set_nonblocking(true).ok()?;
            Some((socket, address))
        });
        let beat = watchdog.and_then(|text| text.parse().ok()).filter(|usec| *usec > 0);
        let beat = beat.map(|usec| Duration::from_micros(usec) / 2);
        Self { socket, beat, last_beat: None, is_ready: false }
    }

    fn say(&self, text: &str) {
        if let Some((socket, address)) = &self.socket {
            // Lost words are said again at the next event.
            let _ = socket.send_to_addr(text.as_bytes(), address);
        }
    }

    /// After every event.
    pub fn show(&mut self, event: &Event) {
        if self.socket.is_none() {
            return;
        }
        if !std::mem::replace(&mut self.is_ready, true) {
            self.say("READY=1\n");
        }
        if matches!(event.kind, EventKind::RunFinished { .. }) {
            self.say("STOPPING=1\n");
        }
        let worth = !matches!(event.kind, EventKind::Finding(_) | EventKind::ProcessExited { .. });
        if let Some(words) = crate::event::words::sentence(&event.kind).filter(|_| worth) {
            let line: String =
                words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
            self.say(&format!("STATUS=attempt {}: {line}\n", event.attempt));
        }
    }

    /// The dispatcher is alive.
    pub fn alive(&mut self, now: Instant) {
        if let Some(beat) = self.beat
            && self.last_beat.is_none_or(|last| now.duration_since(last) >= beat.min(Duration::from_secs(5)))
        {
            self.last_beat = Some(now);
            self.say("WATCHDOG=1\n");
        }
    }
}
