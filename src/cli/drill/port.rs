//! A port for each run, held without being in its way.

use crate::supervisor::port::{PortState, probe};
use std::net::{Ipv4Addr, TcpListener};

/// The address on which a number is held. A server on 127.0.0.1 does not mind, while one for every address, another drill,
/// and the kernel's own choice for it are kept away.
const HOLD: Ipv4Addr = Ipv4Addr::new(127, 77, 77, 77);

const FIRST: u16 = 11_000;

/// A port on 127.0.0.1 that is ours as long as this lives.
#[derive(Debug)]
pub(super) struct Port {
    /// Its number.
    pub(super) number: u16,
    _hold: TcpListener,
}

/// Gives out ports, none of them twice, so that what one run left in `TIME_WAIT` never meets the next.
#[derive(Debug)]
pub(super) struct Ports {
    next: u16,
    end: u16,
}

impl Ports {
    /// Below the range from which the kernel takes ports for outgoing connections; `start` sets apart those who begin at
    /// the same time.
    pub(super) fn new(start: u32) -> Self {
        let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
        let ephemeral = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32768);
        let end = if ephemeral > FIRST + 1000 { ephemeral } else { 65000 };
        let at = u16::try_from(start % u32::from(end - FIRST)).unwrap_or(0);
        Self { next: FIRST + at, end }
    }

    /// The next free one.
    pub(super) fn take(&mut self) -> std::io::Result<Port> {
        for _ in 0..self.end - FIRST {
            let number = self.next;
            self.next = if number + 1 >= self.end { FIRST } else { number + 1 };
            let Ok(hold) = TcpListener::bind((HOLD, number)) else { continue };
            if matches!(probe(number), Ok(PortState::Free)) {
                return Ok(Port { number, _hold: hold });
            }
        }
        Err(std::io::Error::other("every port is taken"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_held_is_given_to_nobody_else_and_a_server_can_have_it() {
        let first = Ports::new(500).take().unwrap();
        let second = Ports::new(500).take().unwrap();
        assert_ne!(first.number, second.number);
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, first.number)).is_ok(), "the server itself");
        assert!(
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, first.number)).is_err(),
            "a server for every address"
        );
    }
}
