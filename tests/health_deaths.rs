//! Why a process died: with invented sources, and with a process that the kernel really kills where the machine allows.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use varcas_guard::event::{Clue, ExitHow, ProcId, ProcSample};
use varcas_guard::health::deaths::{Deaths, Sources};
use varcas_guard::health::process::Sampler;

const PROC: ProcId = ProcId { pid: 71, start: 9 };
const COMM: &str = "VLLM::EngineCor";
const KILLED: ExitHow = ExitHow::Signal { signal: 9, core: false };
const EXITED: ExitHow = ExitHow::Code { code: 0 };
const GIB: u64 = 1 << 30;

/// Files in place of the kernel's.
struct Fake {
    dir: tempfile::TempDir,
    nested: bool,
}

impl Fake {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("memory.events"), "oom 0\noom_kill 1\n").unwrap();
        fs::write(dir.path().join("kmsg"), "3,1,1,-;Out of memory: Killed process 71 (old) total-vm:1kB\n")
            .unwrap();
        Self { dir, nested: false }
    }

    fn deaths(&self) -> Deaths {
        Deaths::watching(Sources {
            counter: Ok(self.dir.path().join("memory.events")),
            kmsg: self.dir.path().join("kmsg"),
            nested: self.nested,
            total: Some(64 * GIB),
        })
    }

    fn count(&self, kills: u64) {
        fs::write(self.dir.path().join("memory.events"), format!("oom 9\noom_kill {kills}\n")).unwrap();
    }

    fn say(&self, line: &str) {
        let mut file = fs::OpenOptions::new().append(true).open(self.dir.path().join("kmsg")).unwrap();
        writeln!(file, "3,2,2,-;{line}").unwrap();
    }
}

fn causes(clues: &[Clue]) -> Vec<(&str, bool)> {
    clues.iter().map(|clue| (clue.cause.as_str(), clue.inferred)).collect()
}

#[test]
fn the_kernel_s_line_names_the_process_and_what_was_there_before_does_not_count() {
    let fake = Fake::new();
    let mut deaths = fake.deaths();
    assert_eq!(causes(&deaths.explain(PROC, COMM, EXITED, None, None)), []);
    fake.say("Memory cgroup out of memory: Killed process 72 (VLLM::EngineCor) total-vm:1kB");
    fake.say("Memory cgroup out of memory: Killed process 71 (VLLM::EngineCor) total-vm:2kB");
    let clues = deaths.explain(PROC, COMM, KILLED, None, None);
    assert_eq!(causes(&clues), [("host-oom", false)]);
    assert_eq!((clues[0].proc, clues[0].source.as_str()), (Some(PROC), "/dev/kmsg"));
    assert!(clues[0].text.ends_with("total-vm:2kB"), "{clues:?}");
    // Told once.
    assert_eq!(causes(&deaths.explain(PROC, COMM, KILLED, None, None)), []);
}

#[test]
fn in_a_container_the_name_counts_and_the_conclusion_is_labelled() {
    let mut fake = Fake::new();
    fake.nested = true;
    let mut deaths = fake.deaths();
    fake.say("Out of memory: Killed process 71 (another) total-vm:1kB");
    fake.say("Out of memory: Killed process 52001 (VLLM::EngineCor) total-vm:1kB");
    let clues = deaths.explain(PROC, COMM, ExitHow::Unknown, None, None);
    assert_eq!(causes(&clues), [("host-oom", true)]);
    assert!(clues[0].text.contains("52001"));
}

#[test]
fn a_risen_counter_is_a_clue_and_names_only_a_process_that_was_killed() {
    let fake = Fake::new();
    let mut deaths = fake.deaths();
    fake.count(2);
    let clues = deaths.explain(PROC, COMM, EXITED, None, None);
    assert_eq!((causes(&clues), clues[0].proc), (vec![("host-oom", false)], None));
    assert_eq!(clues[0].source, "cgroup memory.events");
    assert!(clues[0].text.contains("from 1 to 2"));
    fake.count(4);
    let clues = deaths.explain(PROC, COMM, KILLED, None, None);
    assert_eq!((causes(&clues), clues[0].proc), (vec![("host-oom", false)], Some(PROC)));
    assert_eq!(causes(&deaths.explain(PROC, COMM, KILLED, None, None)), []);
}

#[test]
fn a_kill_without_a_source_is_concluded_from_the_memory_that_was_left() {
    let last = ProcSample {
        proc: PROC,
        ppid: 1,
        comm: COMM.to_owned(),
        state: 'R',
        cpu_s: 1.0,
        rss: 60 * GIB,
        threads: 1,
        read_bytes: None,
        written_bytes: None,
        wchan: None,
    };
    let clues = Fake::new().deaths().explain(PROC, COMM, KILLED, Some(&last), Some(GIB));
    assert_eq!(causes(&clues), [("host-oom", true)]);
    assert!(clues[0].text.contains("holding 60.0 GiB while only 1.0 GiB"), "{clues:?}");
    let clues = Fake::new().deaths().explain(PROC, COMM, KILLED, Some(&last), Some(30 * GIB));
    assert_eq!(causes(&clues), [("killed-externally", true)]);
    let clues = Fake::new().deaths().explain(PROC, COMM, KILLED, None, None);
    assert_eq!(causes(&clues), [("killed-externally", true)]);
}

#[test]
fn a_kill_after_another_death_is_no_riddle() {
    let mut deaths = Fake::new().deaths();
    let crash = ExitHow::Signal { signal: 11, core: true };
    let clues = deaths.explain(PROC, COMM, crash, None, None);
    assert_eq!(causes(&clues), [("segfault", false)]);
    assert!(clues[0].text.contains("core dumped"));
    assert_eq!(causes(&deaths.explain(PROC, COMM, KILLED, None, Some(0))), []);
}

#[test]
fn a_gpu_error_is_told_once_also_when_nobody_died() {
    let fake = Fake::new();
    let mut deaths = fake.deaths();
    fake.say("NVRM: Xid (PCI:0000:9c:00): 79, pid=1146, GPU has fallen off the bus.");
    fake.say("NVRM: Xid (PCI:0000:9c:00): 45, pid=1146, Ch 00000010");
    let clues = deaths.news();
    assert_eq!(causes(&clues), [("xid-gpu-lost", false)]);
    assert!(clues[0].text.contains("fallen off"));
    assert_eq!(deaths.news(), []);
    fake.say("NVRM: Xid (PCI:0000:9c:00): 31, pid=1146, name=python3, MMU Fault");
    assert_eq!(causes(&deaths.explain(PROC, COMM, EXITED, None, None)), [("cuda-illegal-access", false)]);
}

#[test]
fn a_source_that_cannot_be_read_is_named_and_the_others_are_used() {
    let fake = Fake::new();
    let mut deaths = Deaths::watching(Sources {
        counter: Err("no memory control group".to_owned()),
        kmsg: fake.dir.path().join("nothing"),
        nested: false,
        total: None,
    });
    assert_eq!(deaths.missing().len(), 2, "{:?}", deaths.missing());
    assert_eq!(causes(&deaths.explain(PROC, COMM, KILLED, None, Some(1))), [("host-oom", true)]);
    drop(Deaths::new());
}

/// A control group of our own, removed at the end.
struct Group(PathBuf);

impl Group {
    fn with_limit(bytes: u64) -> Result<Self, String> {
        let ours = Sources::of("self").counter?;
        let folder = ours.parent().unwrap().join(format!("varcas-test-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
        let group = Self(folder);
        let limits = ["memory.limit_in_bytes", "memory.max"].map(|name| group.0.join(name));
        let limit = limits.iter().find(|file| file.exists()).ok_or("it has no memory limit")?;
        fs::write(limit, bytes.to_string()).map_err(|error| format!("set its limit: {error}"))?;
        drop(fs::write(group.0.join("memory.swap.max"), "0"));
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn a_process_that_the_kernel_kills_in_a_small_group_is_known_to_have_died_of_it() {
    let group = match Group::with_limit(48 << 20) {
        Ok(group) => group,
        Err(why) => return eprintln!("SKIPPED: no control group can be made here: {why}"),
    };
    let script = "echo $$ > \"$1\"; echo in; read go; exec python3 -c 'bytearray(256 << 20)'";
    let mut child = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(group.0.join("cgroup.procs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut said)
        .unwrap();
    let pid = child.id() as i32;
    let proc = Sampler::new().stat(pid).unwrap().proc;
    let sources = Sources::of(&pid.to_string());
    assert!(sources.counter.as_deref().unwrap().starts_with(&group.0), "{sources:?}");
    let mut deaths = Deaths::watching(sources);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "{status}");
    let clues = deaths.explain(proc, "python3", KILLED, None, None);
    println!("{clues:#?}\nmissing: {:?}", deaths.missing());
    assert!(clues.iter().any(|clue| clue.source.starts_with("cgroup memory.") && clue.proc == Some(proc)));
    assert!(clues.iter().all(|clue| clue.cause == "host-oom"), "{clues:?}");
}
