//! Which guard a port belongs to, from the moment it is chosen until the guard ends. Between the choice and the moment the
//! server binds it lie seconds, in which the port looks free to everybody else; two guards that are started together
//! would choose the same.
//!
//! A claim is a socket with a name in the abstract namespace. Such names are as private to a network namespace as ports
//! are, so guards that can meet on a port meet here too, whatever users and containers they run in; the name lies in no
//! folder, so there is nothing to squat, to clean up or to make private; and the kernel lets go of it however the guard
//! dies. Somebody who takes the names on purpose could as well take the ports.

use super::{Holder, holders_of};
use std::collections::BTreeMap;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held until this process ends, and by it alone: the sockets are closed on exec.
static CLAIMS: Mutex<BTreeMap<u16, UnixDatagram>> = Mutex::new(BTreeMap::new());

fn claims() -> MutexGuard<'static, BTreeMap<u16, UnixDatagram>> {
    CLAIMS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(port: u16) -> String {
    format!("varcas-guard/port/{port}")
}

/// Makes the port ours; false when it belongs to another guard.
pub fn claim(port: u16) -> io::Result<bool> {
    let mut claims = claims();
    if claims.contains_key(&port) {
        return Ok(true);
    }
    match UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name(port))?) {
        Ok(socket) => {
            claims.insert(port, socket);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives it back.
pub fn release(port: u16) {
    claims().remove(&port);
}

/// Whose it is, as far as the kernel tells.
pub fn claimants(port: u16) -> Vec<Holder> {
    let name = format!("@{}", name(port));
    let table = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let inodes = table.lines().filter_map(|line| {
        // Num RefCount Protocol Flags Type St Inode Path
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(7) == Some(&name.as_str())).then(|| fields[6].parse().ok())?
    });
    // The table does not say whose user's it is; that of the process counts.
    holders_of(inodes.map(|inode| (inode, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_owner_who_is_known_and_may_ask_again() {
        // No port that anybody uses.
        let port = 1;
        let theirs = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name(port)).unwrap()).unwrap();
        assert!(!claim(port).unwrap());
        let pids: Vec<i32> =
            claimants(port).iter().filter_map(|holder| Some(holder.process.as_ref()?.proc.pid)).collect();
        assert_eq!(pids, [i32::try_from(std::process::id()).unwrap()]);
        drop(theirs);
        assert!(claim(port).unwrap() && claim(port).unwrap());
        release(port);
        assert!(claim(port).unwrap());
        release(port);
        assert_eq!(claimants(port), []);
    }
}
