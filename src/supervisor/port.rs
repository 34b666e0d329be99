//! Who holds a port. The naive test is wrong for vLLM twice: it binds long before it listens, so that a loading server
//! shows in no table and a bind with SO_REUSEADDR succeeds beside it; and up to 0.24 it sets SO_REUSEPORT, so that two
//! servers can share a port and each gets half of the requests.
//!
//! So: bind without options, never listen. If that fails, the tables of the kernel say why. The parsers are pure.

pub mod claim;
mod diag;

use crate::event::ProcId;
use crate::supervisor::{os, proc};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::sync::OnceLock;

/// States of `/proc/net/tcp` that matter here.
const ESTABLISHED: u8 = 0x01;
const CLOSE_WAIT: u8 = 0x08;
const LISTEN: u8 = 0x0A;

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// A server can be started on it.
    Free,
    /// Somebody listens.
    Held {
        /// Who; one a socket and process.
        listening: Vec<Holder>,
    },
    /// Somebody has bound it and does not listen yet, as vLLM while it loads.
    BoundNotListening {
        /// Who, if the kernel tells (Linux 6.8 and later).
        holders: Vec<Holder>,
    },
    /// A program has connections with this local port, but nobody listens.
    Connected {
        /// Who.
        holders: Vec<Holder>,
    },
    /// Remains of closed connections; they go within a minute, nobody has to do anything but probe again. Where the
    /// kernel does not list bound sockets (before Linux 6.8), a loading server may hide behind them.
    TimeWait {
        /// How many.
        sockets: usize,
    },
}

/// A process that has a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The socket.
    pub inode: u64,
    /// The user of the socket.
    pub uid: u32,
    /// Which process; `None` if we may not look into it.
    pub process: Option<HolderProcess>,
}

/// The process of a [`Holder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderProcess {
    /// Which.
    pub proc: ProcId,
    /// Since when.
    pub started: Option<jiff::Timestamp>,
    /// Its command line; the command name in brackets if it has none.
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(process) = &self.process else {
            return write!(f, "a process of user {} that we may not look into", self.uid);
        };
        // Command lines of vLLM are long, and this goes into one line of a message.
        let command: String = process.command.chars().take(120).collect();
        write!(f, "{} ({command}", process.proc)?;
        if let Some(started) = process.started {
            let local = started.to_zoned_datetime(jiff::tz::TimeZone::system());
            write!(f, ", started {}", local.strftime("%Y-%m-%d %H:%M:%S"))?;
        }
        f.write_str(")")
    }
}

/// A row of `/proc/net/tcp` or `tcp6`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Local address.
    pub address: IpAddr,
    /// Local port.
    pub port: u16,
    /// State number.
    pub state: u8,
    /// User of the socket.
    pub uid: u32,
    /// Inode of the socket; 0 when no process has it any more.
    pub inode: u64,
}

/// Parses the text of `/proc/net/tcp` or `/proc/net/tcp6`. Lines that make no sense are skipped.
pub fn parse_tcp(text: &str) -> Vec<Row> {
    text.lines().skip(1).filter_map(parse_row).collect()
}

fn parse_row(line: &str) -> Option<Row> {
    // sl local rem st queues timer retrnsmt uid timeout inode ...
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (address, port) = fields.get(1)?.split_once(':')?;
    Some(Row {
        address: parse_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        uid: fields.get(7)?.parse().ok()?,
        inode: fields.get(9)?.parse().ok()?,
    })
}

/// The kernel prints addresses as 32-bit words in the byte order of the machine.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..hex.len())
        .step_by(8)
        .map(|at| u32::from_str_radix(hex.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes))
        .collect();
    match words?.as_slice() {
        [word] => Some(IpAddr::V4(Ipv4Addr::from(*word))),
        words @ [_, _, _, _] => {
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            Some(IpAddr::V6(Ipv6Addr::from(bytes)))
        }
        _ => None,
    }
}

/// Whether a socket with this local address gets in the way of one on 127.0.0.1: that address itself, and those that
/// stand for every address. An IPv6 wildcard counts although it may be for IPv6 only: the table does not say.
pub fn conflicts(address: IpAddr) -> bool {
    let v4 = match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) if v6.is_unspecified() => return true,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4,
            None => return false,
        },
    };
    v4.is_unspecified() || v4 == Ipv4Addr::LOCALHOST
}

/// Whether a server can be started on this port of 127.0.0.1, and if not, because of whom. An error means that the
/// port cannot be used for another reason: below 1024 without the right to it, for instance.
pub fn probe(port: u16) -> io::Result<PortState> {
    if os::can_bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))? {
        return Ok(PortState::Free);
    }
    let rows = rows(port);
    let listening = with_state(&rows, |state| state == LISTEN);
    if !listening.is_empty() {
        return Ok(PortState::Held { listening: holders(&listening) });
    }
    let bound: Vec<Row> =
        diag::bound_sockets(port).into_iter().filter(|row| conflicts(row.address)).collect();
    if !bound.is_empty() {
        return Ok(PortState::BoundNotListening { holders: holders(&bound) });
    }
    let connected = with_state(&rows, |state| matches!(state, ESTABLISHED | CLOSE_WAIT));
    if !connected.is_empty() {
        return Ok(PortState::Connected { holders: holders(&connected) });
    }
    if rows.is_empty() {
        return Ok(PortState::BoundNotListening { holders: Vec::new() });
    }
    Ok(PortState::TimeWait { sockets: rows.len() })
}

/// Whether this kernel tells of sockets that are bound and do not listen. Where it does, nothing hides behind a socket in
/// TIME_WAIT. Found out by looking for one of our own.
pub fn tells_of_bound_sockets() -> bool {
    static TELLS: OnceLock<bool> = OnceLock::new();
    *TELLS.get_or_init(|| {
        let own = || -> io::Result<(tokio::net::TcpSocket, u16)> {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
            let port = socket.local_addr()?.port();
            Ok((socket, port))
        };
        own().is_ok_and(|(_held, port)| !diag::bound_sockets(port).is_empty())
    })
}

/// Everybody who listens on this port in a way that 127.0.0.1 is served. Several processes may share one socket, and
/// with SO_REUSEPORT several sockets one port.
pub fn listeners(port: u16) -> Vec<Holder> {
    holders(&with_state(&rows(port), |state| state == LISTEN))
}

/// The listeners none of whose processes is ours: they take requests that are meant for our server.
pub fn foreign_listeners(port: u16, ours: &[i32]) -> Vec<Holder> {
    let all = listeners(port);
    let is_ours =
        |holder: &Holder| holder.process.as_ref().is_some_and(|process| ours.contains(&process.proc.pid));
    let own: BTreeSet<u64> = all.iter().filter(|holder| is_ours(holder)).map(|holder| holder.inode).collect();
    all.into_iter().filter(|holder| !own.contains(&holder.inode)).collect()
}

fn rows(port: u16) -> Vec<Row> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    // No tcp6 on a machine without IPv6.
    let rows =
        tables.iter().filter_map(|table| std::fs::read_to_string(table).ok()).flat_map(|t| parse_tcp(&t));
    rows.filter(|row| row.port == port && conflicts(row.address)).collect()
}

fn with_state(rows: &[Row], wanted: impl Fn(u8) -> bool) -> Vec<Row> {
    rows.iter().filter(|row| wanted(row.state)).cloned().collect()
}

/// Finds the processes that have these sockets open. A socket whose process is not found is listed without one.
fn holders(rows: &[Row]) -> Vec<Holder> {
    holders_of(rows.iter().map(|row| (row.inode, row.uid)))
}

/// The same by inode and user.
fn holders_of(sockets: impl Iterator<Item = (u64, u32)>) -> Vec<Holder> {
    let sockets: Vec<(u64, u32)> = sockets.collect();
    if sockets.is_empty() {
        return Vec::new();
    }
    let mut owners: BTreeMap<u64, Vec<i32>> = sockets.iter().map(|(inode, _)| (*inode, Vec::new())).collect();
    for pid in proc::pids() {
        for inode in socket_inodes(pid) {
            if let Some(pids) = owners.get_mut(&inode) {
                pids.push(pid);
            }
        }
    }
    let mut holders = Vec::new();
    for (inode, uid) in sockets {
        let pids = owners.remove(&inode).unwrap_or_default();
        let found: Vec<_> = pids.into_iter().filter_map(describe).collect();
        let holder = |process| Holder { inode, uid, process };
        if found.is_empty() {
            holders.push(holder(None));
        }
        holders.extend(found.into_iter().map(|process| holder(Some(process))));
    }
    holders
}

/// The sockets a process has open, each once.
fn socket_inodes(pid: i32) -> BTreeSet<u64> {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeSet::new() };
    let links = open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok())
        .collect()
}

fn describe(pid: i32) -> Option<HolderProcess> {
    let stat = proc::stat(pid)?;
    let command = proc::command_line(pid).filter(|line| !line.is_empty());
    Some(HolderProcess {
        proc: stat.id,
        started: proc::started_at(stat.id),
        command: command.unwrap_or_else(|| format!("[{}]", stat.comm)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F40 0100007F:C350 06 00000000:00000000 03:00000A2B 00000000     0        0 0 3 0000000000000000
   2: 0200000A:0016 0100000A:C351 01 00000000:00000000 02:000A2B3C 00000000     0        0 12 2 0000000000000000 20 4 30 10 -1
rubbish
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:1F40 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:1F40 0000000000000000FFFF00000100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 98 1 0000000000000000 100 0 0 10 0
";

    #[test]
    fn rows_of_the_kernels_table_are_read() {
        let rows = parse_tcp(TCP);
        assert_eq!(rows.len(), 3);
        let first =
            Row { address: Ipv4Addr::LOCALHOST.into(), port: 8000, state: LISTEN, uid: 1000, inode: 4711 };
        assert_eq!(rows[0], first);
        assert_eq!(rows[2].address, IpAddr::from([10, 0, 0, 2]));
    }

    #[test]
    fn ipv6_rows_are_read_too() {
        let rows = parse_tcp(TCP6);
        assert_eq!((rows[0].address, rows[0].inode), (Ipv6Addr::UNSPECIFIED.into(), 99));
        assert_eq!(rows[1].address, IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()));
        assert!(conflicts(rows[1].address));
    }

    #[test]
    fn only_addresses_that_127_0_0_1_meets_conflict() {
        for address in ["127.0.0.1", "0.0.0.0", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"] {
            assert!(conflicts(address.parse().unwrap()), "{address}");
        }
        for address in ["127.0.0.2", "10.0.0.1", "::1", "fe80::1", "::ffff:10.0.0.1"] {
            assert!(!conflicts(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn cut_rows_are_skipped() {
        assert!(parse_tcp("").is_empty());
        assert!(parse_tcp("header\n   0: 0100007F:1F40 00000000:0000 0A").is_empty());
        assert!(parse_tcp("header\n   0: 0100007:1F40 0:0 0A 0:0 00:0 0 0 0 1").is_empty());
    }
}
