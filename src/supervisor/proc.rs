//! `/proc` as the supervisor reads it: who is there, since when, whose child. The parsers take bytes or text and are
//! pure. A process that vanished while we looked is `None`, never an error: that is what processes do.

use crate::event::ProcId;
use crate::supervisor::os;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What one line of `/proc/PID/stat` says. Own parser: the kernel cuts command names in the middle of a UTF-8
/// character, and a reader that insists on UTF-8 would not see such a process at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Pid and start time.
    pub id: ProcId,
    /// Command name, at most 15 bytes.
    pub comm: String,
    /// State letter.
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Threads.
    pub threads: u64,
    /// Wait status; only meaningful in a zombie, and 0 where the kernel does not let us see it.
    pub exit_status: i32,
}

impl Stat {
    /// Dead, only waiting to be reaped. A process whose first thread ended while others run shows `Z` too, but lives.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X') && self.threads <= 1
    }
}

/// Parses `/proc/PID/stat`. The command name may contain spaces and parentheses, so the last `)` ends it.
pub fn parse_stat(line: &[u8]) -> Option<Stat> {
    let open = memchr::memchr(b'(', line)?;
    let close = memchr::memrchr(b')', line)?;
    let pid = std::str::from_utf8(&line[..open]).ok()?.trim().parse().ok()?;
    let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
    let rest: Vec<&str> = std::str::from_utf8(&line[close + 1..]).ok()?.split_ascii_whitespace().collect();
    // Numbers as in proc_pid_stat(5); the state is field 3.
    let field = |number: usize| rest.get(number - 3).copied();
    Some(Stat {
        id: ProcId { pid, start: field(22)?.parse().ok()? },
        comm,
        state: field(3)?.chars().next()?,
        ppid: field(4)?.parse().ok()?,
        pgrp: field(5)?.parse().ok()?,
        session: field(6)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        exit_status: field(52).and_then(|text| text.parse().ok()).unwrap_or(0),
    })
}

/// The process with this pid.
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The identity of a pid, if it exists.
pub fn id(pid: i32) -> Option<ProcId> {
    stat(pid).map(|stat| stat.id)
}

/// Our own identity.
pub fn own_id() -> ProcId {
    let pid = os::own_pid();
    // Without /proc nothing here works; a start time of 0 then matches no process, so nothing is signalled either.
    id(pid).unwrap_or(ProcId { pid, start: 0 })
}

/// Whether exactly this process still exists and is not a zombie.
pub fn is_alive(id: ProcId) -> bool {
    stat(id.pid).is_some_and(|stat| stat.id == id && !stat.is_dead())
}

/// Every pid there is.
pub fn pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The user a process belongs to.
pub fn uid(pid: i32) -> Option<u32> {
    fs::metadata(format!("/proc/{pid}")).ok().map(|meta| meta.uid())
}

/// The environment a process was started with, as one block of NUL-terminated pairs. `None`: not ours to read, or
/// gone. Empty: a kernel thread, a zombie, or a process in the middle of exec.
pub fn environ(pid: i32) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/environ")).ok()
}

/// The value of a variable in such a block.
pub fn variable<'a>(environ: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environ.split(|byte| *byte == 0).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The command line with spaces between its arguments.
pub fn command_line(pid: i32) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = raw.split(|byte| *byte == 0).filter(|word| !word.is_empty()).collect();
    let words: Vec<_> = words.into_iter().map(String::from_utf8_lossy).collect();
    Some(words.join(" "))
}

/// When a process started, on the wall clock.
pub fn started_at(id: ProcId) -> Option<jiff::Timestamp> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let booted: i64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let since_boot = i64::try_from(id.start / os::ticks_per_second()).ok()?;
    jiff::Timestamp::from_second(booted.checked_add(since_boot)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(comm: &[u8]) -> Vec<u8> {
        let mut line = b"42 (".to_vec();
        line.extend_from_slice(comm);
        line.extend_from_slice(b") Z 7 8 9 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 1 0 98765 0 0");
        line.extend_from_slice(&b" 0".repeat(27));
        line.extend_from_slice(b" 139\n");
        line
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = parse_stat(&line(b"a) R (b c")).unwrap();
        assert_eq!(stat.comm, "a) R (b c");
        assert_eq!((stat.state, stat.ppid, stat.pgrp, stat.session), ('Z', 7, 8, 9));
        assert_eq!(stat.id, ProcId { pid: 42, start: 98765 });
        assert_eq!(stat.exit_status, 139);
        assert!(stat.is_dead());
    }

    #[test]
    fn a_name_cut_inside_a_character_is_still_a_process() {
        let stat = parse_stat(&line(b"VLLM::\xe4\xbd")).unwrap();
        assert!(stat.comm.starts_with("VLLM::"));
    }

    #[test]
    fn half_a_line_is_no_process() {
        assert_eq!(parse_stat(b"42 (sh) S 1 2"), None);
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b") ("), None);
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        let environ = b"XVARCAS=1\0VARCAS=two\0VARCASX=3\0";
        assert_eq!(variable(environ, "VARCAS"), Some(&b"two"[..]));
        assert_eq!(variable(environ, "VARCA"), None);
    }

    #[test]
    fn our_own_process_is_alive_and_started_in_the_past() {
        let own = own_id();
        assert!(is_alive(own));
        assert!(!is_alive(ProcId { start: own.start + 1, ..own }));
        assert!(started_at(own).unwrap() <= crate::time::wall_now());
    }
}
