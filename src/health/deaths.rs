//! Why a process died, as far as the system says so: the kernel's counters and messages, and otherwise a conclusion that
//! is labelled as one.
//!
//! vLLM kills its own workers once one of its processes is dead, so that only the first death of an attempt is a
//! riddle; what follows it is not.

use super::system::{
    KernelLine, OomKill, group_folder, kernel_lines, meminfo, memory_group, parse_oom_kills, xid_clue,
};
use crate::event::{Clue, ExitHow, ProcId, ProcSample};
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const KMSG: &str = "/dev/kmsg";
const HOST_OOM: &str = "host-oom";

/// Kills of processes that nobody has asked about yet; more are of other people's processes.
const REMEMBERED: usize = 64;

/// Where to look.
#[derive(Debug, Clone)]
pub struct Sources {
    /// `memory.events` or `memory.oom_control` of a memory group, or why there is none.
    pub counter: Result<PathBuf, String>,
    /// `/dev/kmsg`.
    pub kmsg: PathBuf,
    /// Whether our pids differ from the kernel's, as in a container.
    pub nested: bool,
    /// Bytes of memory of the machine.
    pub total: Option<u64>,
}

impl Sources {
    /// Those that speak of a process and its future children: `self`, or a pid.
    pub fn of(process: &str) -> Self {
        let read = |name: &str| {
            let path = format!("/proc/{process}/{name}");
            fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
        };
        let counter = || {
            let (group, mounts) = (read("cgroup")?, read("mountinfo")?);
            let (version, path) = memory_group(&group).ok_or("no memory control group")?;
            let folder = group_folder(&mounts, version, path).ok_or("no memory control group is mounted")?;
            Ok(Path::new(&folder).join(if version == 1 { "memory.oom_control" } else { "memory.events" }))
        };
        let total = machine_memory("MemTotal");
        // The number of the first namespace is fixed (PROC_PID_INIT_INO in the kernel's source).
        let first =
            fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new("pid:[4026531836]"));
        Self { counter: counter(), kmsg: PathBuf::from(KMSG), nested: !first, total }
    }
}

/// Remembers how things stood when the attempt began.
#[derive(Debug)]
pub struct Deaths {
    /// The file and its last value.
    counter: Option<(PathBuf, u64)>,
    kmsg: Option<File>,
    nested: bool,
    total: Option<u64>,
    kills: VecDeque<OomKill>,
    missing: Vec<String>,
    first: bool,
}

impl Default for Deaths {
    fn default() -> Self {
        Self::new()
    }
}

impl Deaths {
    /// For an attempt that begins now, whose processes are in our own control group.
    pub fn new() -> Self {
        Self::watching(Sources::of("self"))
    }

    /// The same for other sources.
    pub fn watching(sources: Sources) -> Self {
        let mut missing = Vec::new();
        let counter = sources.counter.clone().and_then(|path| Ok((path.clone(), read_counter(&path)?)));
        let counter = counter.map_err(|why| missing.push(why)).ok();
        // It blocks at its end without this flag.
        let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&sources.kmsg);
        let kmsg = open.and_then(|mut file| file.seek(SeekFrom::End(0)).map(|_| file));
        let kmsg = kmsg.map_err(|error| missing.push(format!("{}: {error}", sources.kmsg.display()))).ok();
        let Sources { nested, total, .. } = sources;
        Self { counter, kmsg, nested, total, kills: VecDeque::new(), missing, first: true }
    }

    /// Sources that cannot be read, each with its reason.
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// GPU errors that the kernel has reported since the last call of this or of [`Deaths::explain`].
    pub fn news(&mut self) -> Vec<Clue> {
        let mut clues = Vec::new();
        for line in self.read_kmsg() {
            match line {
                KernelLine::Xid { number, text } => clues.extend(xid_clue(number, KMSG, Some(&text))),
                KernelLine::Oom(kill) => {
                    self.kills.truncate(REMEMBERED - 1);
                    self.kills.push_front(kill);
                }
            }
        }
        clues
    }

    /// What the system says about a death that the guard did not cause. `last` is what was last seen of the process,
    /// `available` the machine's `MemAvailable` shortly before.
    pub fn explain(
        &mut self,
        proc: ProcId,
        comm: &str,
        how: ExitHow,
        last: Option<&ProcSample>,
        available: Option<u64>,
    ) -> Vec<Clue> {
        let first = std::mem::replace(&mut self.first, false);
        let mut clues = self.news();
        // When nobody could wait for the process, a kill is as likely as anything else.
        let killed = matches!(how, ExitHow::Signal { signal: libc::SIGKILL, .. } | ExitHow::Unknown);
        let clue = |cause: &str, about: bool, inferred: bool, source: &str, text: String| Clue {
            cause: cause.to_owned(),
            proc: about.then_some(proc),
            inferred,
            source: source.to_owned(),
            text,
        };
        let mut by_kernel = false;
        if let Some(at) = killed.then(|| self.find_kill(proc, comm)).flatten()
            && let Some(kill) = self.kills.remove(at)
        {
            by_kernel = true;
            let note = if self.nested { " (known by its name: pids differ in a container)" } else { "" };
            clues.push(clue(HOST_OOM, true, self.nested, KMSG, kill.text + note));
        }
        if let Some((source, before, now)) = self.counter_rose() {
            by_kernel = true;
            let text = format!("oom_kill of our control group rose from {before} to {now}");
            // The counter does not say whom; a process that exited by itself was not the one.
            clues.push(clue(HOST_OOM, killed, false, &source, text));
        }
        match how {
            ExitHow::Signal { signal: libc::SIGSEGV, core } => {
                let text = format!("{comm} died of SIGSEGV{}", if core { ", core dumped" } else { "" });
                clues.push(clue("segfault", true, false, "exit status", text));
            }
            ExitHow::Signal { signal: libc::SIGBUS, .. } => {
                let text = format!("{comm} died of SIGBUS, as a write to a full /dev/shm ends");
                clues.push(clue("shm-exhausted", true, true, "exit status", text));
            }
            ExitHow::Signal { signal: libc::SIGKILL, .. } if by_kernel || !first => {}
            ExitHow::Signal { signal: libc::SIGKILL, .. } => {
                let held = last.map_or(String::new(), |last| format!(" holding {}", gib(last.rss)));
                clues.push(match available.filter(|available| self.nearly_gone(*available)) {
                    Some(available) => {
                        let left = gib(available);
                        let text = format!("{comm} was killed{held} while only {left} of memory were left");
                        clue(HOST_OOM, true, true, "circumstances", text)
                    }
                    None => {
                        let text = format!(
                            "{comm} was killed{held}, not by varcas-guard and not for want of memory"
                        );
                        clue("killed-externally", true, true, "circumstances", text)
                    }
                });
            }
            ExitHow::Signal { signal: signal @ (libc::SIGTERM | libc::SIGINT | libc::SIGHUP), .. }
                if first =>
            {
                let name = crate::event::signal_name(signal);
                let text = format!("{comm} died of {name} that varcas-guard did not send");
                clues.push(clue("killed-externally", true, true, "exit status", text));
            }
            ExitHow::Signal { .. } | ExitHow::Code { .. } | ExitHow::Unknown => {}
        }
        clues
    }

    /// The kill of this process; where pids differ, the latest of one with its name.
    fn find_kill(&self, proc: ProcId, comm: &str) -> Option<usize> {
        self.kills.iter().position(|kill| if self.nested { kill.comm == comm } else { kill.pid == proc.pid })
    }

    fn counter_rose(&mut self) -> Option<(String, u64, u64)> {
        let (path, seen) = self.counter.as_mut()?;
        let now = read_counter(path).ok()?;
        let before = std::mem::replace(seen, now);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        (now > before).then(|| (format!("cgroup {name}"), before, now))
    }

    /// Below 3 % of the machine a large process cannot grow any more.
    fn nearly_gone(&self, available: u64) -> bool {
        available < self.total.map_or(512 << 20, |total| total / 32)
    }

    fn read_kmsg(&mut self) -> Vec<KernelLine> {
        let Some(file) = &mut self.kmsg else { return Vec::new() };
        let mut lines = Vec::new();
        // One record a read, and no record is larger.
        let mut record = vec![0; 64 << 10];
        loop {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => lines.extend(kernel_lines(&String::from_utf8_lossy(&record[..length]))),
                // Records were overwritten before we came; reading goes on at the oldest that is left.
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
                Err(_) => break,
            }
        }
        lines
    }
}

/// Bytes of memory that a new process could still have, for [`Deaths::explain`].
pub fn available() -> Option<u64> {
    machine_memory("MemAvailable")
}

fn machine_memory(key: &str) -> Option<u64> {
    meminfo(&fs::read_to_string("/proc/meminfo").ok()?, key)
}

fn read_counter(path: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse_oom_kills(&text).ok_or_else(|| format!("{} has no oom_kill", path.display()))
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}
