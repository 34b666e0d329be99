//! The processes of a run, as the kernel sees them. The parsers take text and are pure; [`Sampler`] reads `/proc`.
//!
//! One file a process and sample: `/proc/PID/stat` has state, CPU time, memory and threads, and unlike `status` or
//! `smaps` it costs a few microseconds. `io` and `wchan` are read too where details are asked for, and `wchan` whenever a
//! process sleeps uninterruptibly.

use crate::event::{ProcId, ProcSample};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Text of `/proc` that is not what the manual page says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse {what} of /proc/PID/{file}")]
pub struct Unparsable {
    /// `stat`, `status`, `io`.
    pub file: &'static str,
    /// The field.
    pub what: &'static str,
}

/// The fields of `/proc/PID/stat` that matter here (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Process id and start time.
    pub proc: ProcId,
    /// Command name without its parentheses.
    pub comm: String,
    /// State letter.
    pub state: char,
    /// Parent's pid.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// User and system time in clock ticks, with that of reaped children: the sum over a tree never falls.
    pub ticks: u64,
    /// Threads.
    pub threads: u64,
    /// Resident pages.
    pub rss_pages: u64,
}

/// Parses `/proc/PID/stat`. A command name may hold blanks and parentheses, so its end is the last parenthesis.
pub fn parse_stat(text: &str) -> Result<Stat, Unparsable> {
    let bad = |what| Unparsable { file: "stat", what };
    let open = text.find('(').ok_or_else(|| bad("comm"))?;
    let close = text.rfind(')').filter(|close| *close > open).ok_or_else(|| bad("comm"))?;
    let pid = text[..open].trim().parse().map_err(|_| bad("pid"))?;
    // Field 3 of the manual page is the first one behind the parenthesis.
    let mut fields = [""; 22];
    let mut found = 0;
    for (slot, field) in fields.iter_mut().zip(text[close + 1..].split_ascii_whitespace()) {
        *slot = field;
        found += 1;
    }
    if found < fields.len() {
        return Err(bad("its end"));
    }
    let field = |number: usize| fields[number - 3];
    let number = |at: usize, what| field(at).parse::<u64>().map_err(|_| bad(what));
    let id = |at: usize, what| field(at).parse::<i32>().map_err(|_| bad(what));
    Ok(Stat {
        proc: ProcId { pid, start: number(22, "start time")? },
        comm: text[open + 1..close].to_owned(),
        state: field(3).chars().next().ok_or_else(|| bad("state"))?,
        ppid: id(4, "parent")?,
        pgrp: id(5, "process group")?,
        session: id(6, "session")?,
        ticks: [
            (14, "user time"),
            (15, "system time"),
            (16, "children's user time"),
            (17, "children's system time"),
        ]
        .into_iter()
        .try_fold(0_u64, |sum, (at, what)| Ok(sum.saturating_add(number(at, what)?)))?,
        threads: number(20, "threads")?,
        // The kernel's counter may read slightly below zero.
        rss_pages: field(24).parse::<i64>().map_err(|_| bad("resident pages"))?.max(0).unsigned_abs(),
    })
}

/// The fields of `/proc/PID/status` that matter here. A kernel thread or a zombie has no memory lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Resident bytes.
    pub rss: Option<u64>,
    /// Highest resident bytes so far.
    pub rss_peak: Option<u64>,
    /// Bytes swapped out.
    pub swap: Option<u64>,
    /// Times the process gave the CPU up by itself, main thread only.
    pub voluntary_switches: Option<u64>,
    /// Times the CPU was taken away, main thread only.
    pub involuntary_switches: Option<u64>,
    /// The pid in each nested pid namespace, outermost first.
    pub ns_pids: Vec<i32>,
}

/// Parses `/proc/PID/status`; lines it does not know are skipped.
pub fn parse_status(text: &str) -> Status {
    let mut status = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let kib =
            || value.strip_suffix(" kB").and_then(|kib| kib.trim().parse::<u64>().ok()?.checked_mul(1024));
        match key {
            "VmRSS" => status.rss = kib(),
            "VmHWM" => status.rss_peak = kib(),
            "VmSwap" => status.swap = kib(),
            "voluntary_ctxt_switches" => status.voluntary_switches = value.parse().ok(),
            "nonvoluntary_ctxt_switches" => status.involuntary_switches = value.parse().ok(),
            "NSpid" => {
                status.ns_pids = value.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect()
            }
            _ => {}
        }
    }
    status
}

/// What a process has read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Io {
    /// Bytes asked for by read calls, also from a pipe or the page cache.
    pub read_chars: u64,
    /// Bytes given to write calls.
    pub written_chars: u64,
    /// Bytes fetched from storage, also by page faults of a mapped file.
    pub read_bytes: u64,
    /// Bytes sent to storage.
    pub written_bytes: u64,
}

/// Parses `/proc/PID/io`.
pub fn parse_io(text: &str) -> Result<Io, Unparsable> {
    let field = |key: &'static str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| *name == key)
            .and_then(|(_, value)| value.trim().parse().ok())
            .ok_or(Unparsable { file: "io", what: key })
    };
    Ok(Io {
        read_chars: field("rchar")?,
        written_chars: field("wchar")?,
        read_bytes: field("read_bytes")?,
        written_bytes: field("write_bytes")?,
    })
}

/// The kernel function a thread sleeps in. `None` for a thread that runs, and where the kernel hides the name, which
/// both read `0`.
pub fn parse_wchan(text: &str) -> Option<&str> {
    match text.trim() {
        "" | "0" => None,
        name => Some(name),
    }
}

/// Reads processes below a `proc` folder.
#[derive(Debug)]
pub struct Sampler {
    root: PathBuf,
    ticks_per_second: f64,
    page: u64,
    buffer: String,
}

impl Default for Sampler {
    fn default() -> Self {
        Self::new()
    }
}

impl Sampler {
    /// Reads `/proc`.
    pub fn new() -> Self {
        Self {
            root: PathBuf::from("/proc"),
            // The kernel answers with a positive number or is not Linux.
            ticks_per_second: procfs::ticks_per_second() as f64,
            page: procfs::page_size(),
            buffer: String::with_capacity(1024),
        }
    }

    fn read(&mut self, path: &Path) -> std::io::Result<&str> {
        self.buffer.clear();
        let mut bytes = std::mem::take(&mut self.buffer).into_bytes();
        let result = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
        // A command name may hold any bytes.
        self.buffer = String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        result.map(|_| self.buffer.as_str())
    }

    /// `/proc/PID/stat` of one process; `None` when it is gone.
    pub fn stat(&mut self, pid: i32) -> Option<Stat> {
        let path = self.root.join(pid.to_string()).join("stat");
        parse_stat(self.read(&path).ok()?).ok()
    }

    /// Samples the given processes. One that is gone, or whose pid now belongs to another process, is left out.
    pub fn sample(&mut self, processes: &[ProcId]) -> Vec<ProcSample> {
        self.sample_with(processes, false)
    }

    /// The same with bytes read and written and what each process waits for, where the kernel lets us; that costs three
    /// times as much.
    pub fn sample_details(&mut self, processes: &[ProcId]) -> Vec<ProcSample> {
        self.sample_with(processes, true)
    }

    fn sample_with(&mut self, processes: &[ProcId], details: bool) -> Vec<ProcSample> {
        let mut samples = Vec::with_capacity(processes.len());
        for wanted in processes {
            let Some(stat) = self.stat(wanted.pid).filter(|stat| stat.proc == *wanted) else { continue };
            let mut sample = self.to_sample(stat);
            if details && let Ok(io) = self.io(wanted.pid) {
                (sample.read_bytes, sample.written_bytes) = (Some(io.read_bytes), Some(io.written_bytes));
            }
            if details || sample.state == 'D' {
                sample.wchan = self.wchan(wanted.pid).ok().flatten();
            }
            samples.push(sample);
        }
        samples
    }

    /// Samples `root`, everything below it, and every other member of the process group `pgrp`, by one walk over all
    /// processes of the machine. It costs more than [`Sampler::sample`] where thousands of processes run.
    pub fn tree(&mut self, root: i32, pgrp: Option<i32>) -> Vec<ProcSample> {
        let all: Vec<Stat> = self.pids().into_iter().filter_map(|pid| self.stat(pid)).collect();
        select_tree(all, root, pgrp).into_iter().map(|stat| self.to_sample(stat)).collect()
    }

    fn pids(&self) -> Vec<i32> {
        let Ok(entries) = std::fs::read_dir(&self.root) else { return Vec::new() };
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }

    fn to_sample(&self, stat: Stat) -> ProcSample {
        ProcSample {
            proc: stat.proc,
            ppid: stat.ppid,
            comm: stat.comm,
            state: stat.state,
            cpu_s: stat.ticks as f64 / self.ticks_per_second,
            rss: stat.rss_pages * self.page,
            threads: stat.threads,
            read_bytes: None,
            written_bytes: None,
            wchan: None,
        }
    }

    /// `/proc/PID/status`.
    pub fn status(&mut self, pid: i32) -> std::io::Result<Status> {
        let path = self.root.join(pid.to_string()).join("status");
        self.read(&path).map(parse_status)
    }

    /// `/proc/PID/io`; needs the rights of ptrace(2).
    pub fn io(&mut self, pid: i32) -> std::io::Result<Io> {
        let path = self.root.join(pid.to_string()).join("io");
        parse_io(self.read(&path)?).map_err(std::io::Error::other)
    }

    /// `/proc/PID/wchan`: the kernel function the main thread sleeps in.
    pub fn wchan(&mut self, pid: i32) -> std::io::Result<Option<String>> {
        let path = self.root.join(pid.to_string()).join("wchan");
        self.read(&path).map(|text| parse_wchan(text).map(str::to_owned))
    }
}

/// From all processes those at or below `root` and those of the group `pgrp`, in the order given.
pub fn select_tree(all: Vec<Stat>, root: i32, pgrp: Option<i32>) -> Vec<Stat> {
    let mut wanted: std::collections::HashSet<i32> =
        all.iter().filter(|stat| Some(stat.pgrp) == pgrp).map(|stat| stat.proc.pid).collect();
    wanted.insert(root);
    // A child can stand before its parent in the list once pids wrap around, so repeat until nothing is added.
    loop {
        let before = wanted.len();
        for stat in &all {
            if wanted.contains(&stat.ppid) {
                wanted.insert(stat.proc.pid);
            }
        }
        if wanted.len() == before {
            break;
        }
    }
    all.into_iter().filter(|stat| wanted.contains(&stat.proc.pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STAT: &str = "4242 (VLLM::EngineCor) R 4200 4200 4200 0 -1 4194304 100 0 3 0 250 50 0 0 20 0 48 0 987654 \
                        5000000000 417792 18446744073709551615 1 1 0 0 0 0 0 16781312 134253315 0 0 0 17 1 0 0 0 0 0";

    fn line(pid: i32, ppid: i32, pgrp: i32) -> Stat {
        let mut stat = parse_stat(STAT).unwrap();
        (stat.proc.pid, stat.ppid, stat.pgrp) = (pid, ppid, pgrp);
        stat
    }

    #[test]
    fn stat_gives_the_fields_of_the_manual_page() {
        let stat = parse_stat(STAT).unwrap();
        assert_eq!(stat.proc, ProcId { pid: 4242, start: 987_654 });
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.ppid, stat.pgrp),
            ("VLLM::EngineCor", 'R', 4200, 4200)
        );
        assert_eq!((stat.ticks, stat.threads, stat.rss_pages), (300, 48, 417_792));
    }

    #[test]
    fn a_command_name_with_parentheses_and_blanks_is_read_whole() {
        let text = STAT.replace("VLLM::EngineCor", "a) S 1 (b c");
        let stat = parse_stat(&text).unwrap();
        assert_eq!((stat.comm.as_str(), stat.state, stat.ppid), ("a) S 1 (b c", 'R', 4200));
    }

    #[test]
    fn a_stat_that_was_cut_short_is_an_error_and_not_a_zero() {
        for length in 0..STAT.find(" 18446744073709551615").unwrap() - 6 {
            assert!(parse_stat(&STAT[..length]).is_err(), "{}", &STAT[..length]);
        }
    }

    #[test]
    fn status_reads_memory_in_bytes_and_leaves_unknown_what_is_not_there() {
        let status =
            parse_status("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nNSpid:\t77\t5\nnonsense\n");
        assert_eq!((status.rss, status.rss_peak, status.swap), (Some(1 << 20), Some(2 << 20), None));
        assert_eq!(status.ns_pids, [77, 5]);
        assert_eq!(parse_status("VmRSS: 18446744073709551615 kB\n").rss, None, "more than a number holds");
    }

    #[test]
    fn io_needs_all_its_lines() {
        let text = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 0\n";
        let io = parse_io(text).unwrap();
        assert_eq!((io.read_chars, io.written_chars, io.read_bytes, io.written_bytes), (1, 2, 5, 6));
        assert_eq!(parse_io("rchar: 1\n").unwrap_err().what, "wchar");
    }

    #[test]
    fn a_hidden_wait_channel_is_unknown() {
        assert_eq!(
            (parse_wchan("0"), parse_wchan(""), parse_wchan("futex_wait")),
            (None, None, Some("futex_wait"))
        );
    }

    #[test]
    fn the_tree_has_descendants_in_any_order_and_members_of_the_group_that_lost_their_parent() {
        let all = vec![line(30, 20, 10), line(10, 1, 10), line(20, 10, 10), line(40, 1, 10), line(50, 1, 50)];
        let pids = |stats: Vec<Stat>| stats.iter().map(|stat| stat.proc.pid).collect::<Vec<_>>();
        assert_eq!(pids(select_tree(all.clone(), 10, Some(10))), [30, 10, 20, 40]);
        assert_eq!(pids(select_tree(all, 10, None)), [30, 10, 20]);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in ".{0,300}", cut in 0usize..200) {
            drop(parse_stat(&text));
            drop(parse_stat(&format!("{}{text}", &STAT[..cut.min(STAT.len())])));
            parse_status(&text);
            drop(parse_io(&text));
            parse_wchan(&text);
        }
    }
}
