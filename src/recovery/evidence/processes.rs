//! What the kernel says about processes and their threads, for a person to read.
//!
//! The command line is left out but for its first word, and the environment altogether: both may hold keys.

use crate::event::ProcId;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// SIGUSR1's number on every Linux but MIPS and SPARC, minus one.
const USR1_BIT: u32 = 9;

/// State letter and start time of `/proc/PID/stat` (proc_pid_stat(5), fields 3 and 22).
pub(super) fn parse_stat(text: &str) -> Option<(char, u64)> {
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn state(proc: ProcId) -> Option<char> {
    let (state, start) = parse_stat(&read(&PathBuf::from(format!("/proc/{}/stat", proc.pid))).ok()?)?;
    (start == proc.start).then_some(state)
}

/// Whether SIGUSR1 gets an answer from this process; the reason if not. Without a handler the signal would kill it.
pub(super) fn can_be_asked(proc: ProcId) -> Result<(), String> {
    match state(proc) {
        None => return Err("the process is gone".to_owned()),
        Some('T' | 't') => return Err("the process is stopped and cannot answer".to_owned()),
        Some('Z' | 'X') => return Err("the process is dead".to_owned()),
        Some(_) => {}
    }
    let status = read(&PathBuf::from(format!("/proc/{}/status", proc.pid)));
    let status = status.map_err(|error| format!("read its status: {error}"))?;
    if catches_usr1(&status) { Ok(()) } else { Err("the process does not catch SIGUSR1".to_owned()) }
}

/// Bit 9 of the mask of caught signals (proc_pid_status(5)).
fn catches_usr1(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> USR1_BIT & 1 == 1)
}

/// What has been read of one process so far, and what is being read now.
#[derive(Default)]
struct Page {
    text: String,
    reading: &'static str,
    gone: bool,
}

/// One page for each process. Reading some files waits for locks that a stuck process may hold, so each process has a
/// thread of its own and what was read before the time is over counts.
pub(super) async fn describe(ids: &[ProcId], limit: Duration) -> (String, Option<String>) {
    let pages: Vec<_> = ids.iter().map(|proc| (*proc, Arc::new(Mutex::new(Page::default())))).collect();
    let mut open = Vec::new();
    for (proc, page) in &pages {
        let (done, wait) = oneshot::channel::<()>();
        let (proc, page) = (*proc, page.clone());
        let thread = std::thread::Builder::new().name("evidence".to_owned()).spawn(move || {
            describe_one(proc, &page);
            drop(done);
        });
        // Without a thread the page stays empty, and `wait` ends at once.
        drop(thread);
        open.push(wait);
    }
    // A dropped sender is the end of its thread.
    let all = futures_util::future::join_all(open);
    let late = tokio::time::timeout(limit, all).await.is_err();
    let mut text = String::new();
    let (mut hung, mut alive) = (Vec::new(), 0);
    for (proc, page) in &pages {
        let page = page.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(text, "==== {proc} (start {}) ====", proc.start);
        text.push_str(&page.text);
        if page.gone {
            text.push_str("gone\n");
        } else if page.text.is_empty() && page.reading.is_empty() {
            text.push_str("no thread could be started to look at it\n");
        } else {
            alive += 1;
        }
        if late && !page.reading.is_empty() {
            let _ = writeln!(text, "reading {} of it did not end", page.reading);
            hung.push(format!("{} of {proc}", page.reading));
        }
        text.push('\n');
    }
    let problem = if !hung.is_empty() {
        Some(format!("not read within {limit:?}: {}", hung.join(", ")))
    } else if alive == 0 {
        Some("no process could be looked at".to_owned())
    } else {
        None
    };
    (text, problem)
}

fn read(path: &Path) -> std::io::Result<String> {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn describe_one(proc: ProcId, page: &Mutex<Page>) {
    let change =
        |change: &mut dyn FnMut(&mut Page)| change(&mut page.lock().unwrap_or_else(PoisonError::into_inner));
    let add = |text: &str| change(&mut |page| page.text.push_str(text));
    let reading = |what: &'static str| change(&mut |page| page.reading = what);
    let root = PathBuf::from(format!("/proc/{}", proc.pid));
    reading("stat");
    let Some(state) = state(proc) else {
        return change(&mut |page| (page.gone, page.reading) = (true, ""));
    };
    add(&format!("state {state}\n"));
    let file = |name: &'static str| {
        reading(name);
        read(&root.join(name))
    };
    for name in ["stat", "status", "oom_score", "oom_score_adj"] {
        match file(name) {
            Ok(text) => add(&section(name, &text)),
            Err(error) => add(&format!("-- {name}: {error}\n")),
        }
    }
    reading("task");
    threads(&root, &add);
    // From here on reading may wait for a lock that the process holds.
    for name in ["io", "limits"] {
        match file(name) {
            Ok(text) => add(&section(name, &text)),
            Err(error) => add(&format!("-- {name}: {error}\n")),
        }
    }
    reading("fd");
    if let Ok(entries) = std::fs::read_dir(root.join("fd")) {
        add(&format!("-- open files: {}\n", entries.count()));
    }
    // vLLM puts a process's full title there; further words may be keys.
    if let Ok(text) = file("cmdline") {
        add(&format!("-- title: {}\n", text.split('\0').next().unwrap_or_default()));
    }
    reading("");
}

fn section(name: &str, text: &str) -> String {
    let text = text.trim_end();
    if text.contains('\n') {
        text.lines().fold(format!("-- {name}:\n"), |all, line| all + "   " + line + "\n")
    } else {
        format!("-- {name}: {text}\n")
    }
}

/// Name, state and wait channel of every thread, what system call it is in, and, where the kernel lets us, the kernel's
/// own stack.
fn threads(root: &Path, add: &dyn Fn(&str)) {
    let Ok(entries) = std::fs::read_dir(root.join("task")) else { return };
    let mut tids: Vec<i32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    add(&format!("-- {} threads: tid, state, name, wait channel, system call\n", tids.len()));
    for tid in tids {
        let task = root.join("task").join(tid.to_string());
        let short = |name: &str| read(&task.join(name)).map(|text| text.trim_end().to_owned());
        let Ok(stat) = short("stat") else { continue };
        let state = parse_stat(&stat).map_or('?', |(state, _)| state);
        let comm = short("comm").unwrap_or_default();
        let or_why =
            |text: std::io::Result<String>| text.unwrap_or_else(|error| format!("({})", error.kind()));
        let (wchan, syscall) = (or_why(short("wchan")), or_why(short("syscall")));
        add(&format!("   {tid} {state} {comm:<15} {wchan} [{syscall}]\n"));
        if let Ok(stack) = short("stack") {
            for line in stack.lines() {
                add(&format!("        {line}\n"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_and_start_are_found_behind_a_name_with_parentheses() {
        let rest = (4..22).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(parse_stat(&format!("7 (a) S (b) R {rest} 987 5")), Some(('R', 987)));
        assert_eq!(parse_stat("7 (a) R 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_signal_is_caught_when_its_bit_is_set() {
        assert!(catches_usr1("SigIgn:\t0\nSigCgt:\t0000000000000200\n"));
        assert!(!catches_usr1("SigIgn:\t0000000000000200\nSigCgt:\t0000000000000100\n"));
        assert!(!catches_usr1("") && !catches_usr1("SigCgt:\tx\n"));
    }
}
