//! varcas-guard as the first process of a container: it ends as it does elsewhere, hears signals that the kernel keeps from
//! a first process, and reaps whoever comes to it. The container is made of namespaces by `unshare`.
#![expect(clippy::unwrap_used, reason = "a test that cannot set up its stage must fail")]

mod e2e_support;

use e2e_support::{FAST, Place, events, wait_for};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use varcas_guard::event::{EventKind, Phase, ProcId};
use varcas_guard::supervisor::{os, proc};

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// What `unshare` is asked for, if it may do that here: processes, System V IPC and mounts of its own, a user namespace
/// where we are not root.
fn unshare() -> Option<Vec<&'static str>> {
    let mut args = vec!["--pid", "--fork", "--kill-child", "--mount-proc", "--ipc"];
    if os::own_uid() != 0 {
        args.extend(["--user", "--map-root-user"]);
    }
    let tried = Command::new("unshare").args(&args).arg("true").output();
    if tried.is_ok_and(|output| output.status.success()) {
        return Some(args);
    }
    println!("SKIPPED: unshare may not make a process namespace here");
    None
}

/// A program that is the first process of its namespace.
struct Container {
    child: Child,
    /// As it is numbered out here.
    first: ProcId,
    said: std::path::PathBuf,
}

impl Container {
    fn start(place: &Place, words: &[&str]) -> Option<Self> {
        let args = unshare()?;
        let said = place.path("said.txt");
        let out = File::create(&said).unwrap();
        let error = out.try_clone().unwrap();
        let mut command = Command::new("unshare");
        command.args(args).args(words).current_dir(place.path("")).env("TMPDIR", place.path("t"));
        let child = command.stdin(Stdio::null()).stdout(out).stderr(error).spawn().unwrap();
        let outer = i32::try_from(child.id()).unwrap();
        // It is there when the one that unshare has forked lives in another namespace.
        let first = wait_for("the first process", || {
            let ours = |pid: &i32| proc::stat(*pid).is_some_and(|stat| stat.ppid == outer);
            proc::pids().into_iter().filter(ours).find(|pid| inner_pid(*pid) == Some(1)).and_then(proc::id)
        });
        Some(Self { child, first, said })
    }

    /// Everybody in its namespace, zombies too, as numbered out here.
    fn members(&self) -> Vec<proc::Stat> {
        let all: Vec<proc::Stat> = proc::pids().into_iter().filter_map(proc::stat).collect();
        let mut inside = vec![self.first.pid];
        // Parents may have larger numbers than their children.
        while let Some(stat) =
            all.iter().find(|stat| inside.contains(&stat.ppid) && !inside.contains(&stat.id.pid))
        {
            inside.push(stat.id.pid);
        }
        all.into_iter().filter(|stat| inside.contains(&stat.id.pid)).collect()
    }

    /// Runs a command in the namespace whose parent is outside of it, as `docker exec` does.
    fn exec(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.first.pid.to_string(), "--pid", "--mount"]);
        if os::own_uid() != 0 {
            command.args(["--user", "--preserve-credentials"]);
        }
        command.args(words);
        command
    }

    fn wait(mut self) -> (Option<i32>, String) {
        let status = wait_for("the container's end", || self.child.try_wait().unwrap());
        assert_eq!(status.signal(), None, "{}", self.told());
        (status.code(), self.told())
    }

    fn told(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // With its first process everybody in a namespace dies.
        drop(os::signal(self.first, SIGKILL));
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The number of a process in its own namespace, the last of the line.
fn inner_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let numbers: Vec<&str> = line.split_whitespace().collect();
    (numbers.len() > 1).then(|| numbers.last()?.parse().ok())?
}

/// The words of a run of the simulator into `out`.
fn run<'a>(duration: &'a str, port: &'a str, config: &'a str) -> Vec<&'a str> {
    let mut words = vec![env!("CARGO_BIN_EXE_varcas-guard"), "run", "--server", "sim", "--retries", "0"];
    words.extend(["--duration", duration, "--port", port, "--config", config, "out"]);
    words.extend(["--", "--max-model-len", "160"]);
    words
}

/// A place, and the words of a run in it.
fn stage(duration: &str) -> (Place, Vec<String>) {
    let place = Place::new();
    let config = place.config(FAST, "");
    let words = run(duration, &place.port.to_string(), &config.to_string_lossy())
        .iter()
        .map(|w| (*w).to_owned())
        .collect();
    (place, words)
}

fn borrowed(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn until_under_load(out: &Path) {
    wait_for("requests", || {
        let sent = |kind: &EventKind| matches!(kind, EventKind::LoadProgressed(load) if load.sent > 0);
        events(out).iter().any(|event| sent(&event.kind)).then_some(())
    });
}

fn signals(out: &Path) -> Vec<i32> {
    let received = |kind: EventKind| match kind {
        EventKind::SignalReceived { signal } => Some(signal),
        _ => None,
    };
    events(out).into_iter().filter_map(|event| received(event.kind)).collect()
}

fn report(out: &Path) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(out.join("report.json")).unwrap()).unwrap()
}

fn assert_nothing_left(place: &Place) {
    assert_eq!(report(&place.path("out"))["left_behind"], serde_json::json!([]));
    assert_eq!(e2e_support::alive(&place.path("out")), Vec::<String>::new());
    place.assert_no_scratch();
    place.assert_no_shm();
}

#[test]
fn as_the_first_process_a_run_ends_well_and_nothing_of_it_is_left() {
    let (place, words) = stage("1s");
    let Some(container) = Container::start(&place, &borrowed(&words)) else { return };
    let (code, told) = container.wait();
    assert_eq!(code, Some(0), "{told}");
    assert_nothing_left(&place);
    assert_eq!(report(&place.path("out"))["exit_code"], 0);
}

#[test]
fn under_a_shell_that_is_the_first_process_nothing_is_left_to_it() {
    let (place, words) = stage("1s");
    // Not exec: the shell stays the first process, and looks around when the run is over.
    let script = r#""$@"; echo "code $?"; for p in /proc/[0-9]*; do echo "there is ${p#/proc/}"; done"#;
    let Some(container) =
        Container::start(&place, &[&["sh", "-c", script, "sh"], &borrowed(&words)[..]].concat())
    else {
        return;
    };
    let (_, told) = container.wait();
    // The loop is the shell itself; nobody else is there.
    assert!(told.contains("code 0\nthere is 1\n") && told.matches("there is").count() == 1, "{told}");
    assert_nothing_left(&place);
}

#[test]
fn sigterm_to_the_first_process_ends_the_run_in_good_order() {
    let (place, words) = stage("10m");
    let Some(container) = Container::start(&place, &borrowed(&words)) else { return };
    until_under_load(&place.path("out"));
    // From outside, as the runtime's stop does.
    os::signal(container.first, SIGTERM).unwrap();
    let (code, told) = container.wait();
    assert_eq!(code, Some(143), "{told}");
    assert_eq!(signals(&place.path("out")), [SIGTERM], "it is passed on once");
    let flushed =
        |kind: &EventKind| matches!(kind, EventKind::PhaseEntered { phase, .. } if *phase == Phase::Flushing);
    assert!(events(&place.path("out")).iter().any(|event| flushed(&event.kind)), "{told}");
    assert_nothing_left(&place);
}

#[test]
fn sigterm_from_inside_and_at_any_moment_is_not_lost() {
    for early in [true, false] {
        let (place, words) = stage("10m");
        let Some(container) = Container::start(&place, &borrowed(&words)) else { return };
        if !early {
            until_under_load(&place.path("out"));
        } else {
            // As soon as there is a guard, which may not listen yet.
            wait_for("the guard", || (container.members().len() > 1).then_some(()));
        }
        // The kernel drops what a first process has not asked for.
        // It may die with the namespace before it can say that it has sent it.
        let _ = container.exec(&["sh", "-c", "kill -TERM 1"]).status().unwrap();
        let (code, told) = container.wait();
        assert_eq!(code, Some(143), "early: {early}: {told}");
    }
}

#[test]
fn orphans_of_strangers_are_reaped() {
    let (place, words) = stage("10m");
    // One child it has from the shell that became it; it does not end before it is told to.
    let hold = place.path("hold");
    nix::unistd::mkfifo(&hold, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let holder = format!("read x < {}", hold.display());
    let script = format!("({holder}) & exec \"$@\"");
    let Some(container) =
        Container::start(&place, &[&["sh", "-c", &script, "sh"], &borrowed(&words)[..]].concat())
    else {
        return;
    };
    until_under_load(&place.path("out"));
    // Three it gets when the parent of these ends.
    let orphans = format!("for i in 1 2 3; do ({holder}) & done; echo made");
    let mut made = container.exec(&["sh", "-c", &orphans]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(made.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(made.wait().unwrap().success());
    let strangers = wait_for("four strangers", || {
        let mine = |stat: &proc::Stat| stat.ppid == container.first.pid && stat.comm == "sh";
        let found: Vec<ProcId> =
            container.members().iter().filter(|stat| mine(stat)).map(|stat| stat.id).collect();
        (found.len() == 4).then_some(found)
    });
    release(&hold, &strangers);
    os::signal(container.first, SIGTERM).unwrap();
    let (code, told) = container.wait();
    assert_eq!(code, Some(143), "{told}");
    assert_nothing_left(&place);
}

/// Lets all who wait for a line of the pipe go on, and waits until they are gone, also as zombies.
fn release(hold: &Path, all: &[ProcId]) {
    let mut pipe = File::options().read(true).write(true).open(hold).unwrap();
    for _ in all {
        writeln!(pipe, "go").unwrap();
    }
    wait_for("the strangers to be reaped", || {
        all.iter().all(|id| proc::id(id.pid) != Some(*id)).then_some(())
    });
}

#[test]
fn the_death_of_the_guard_leaves_its_keeper_the_time_to_clean_up() {
    let (place, words) = stage("10m");
    let Some(container) = Container::start(&place, &borrowed(&words)) else { return };
    until_under_load(&place.path("out"));
    let guard = container.members().into_iter().find(|stat| stat.ppid == container.first.pid).unwrap();
    os::signal(guard.id, SIGKILL).unwrap();
    let (code, told) = container.wait();
    assert_eq!(code, Some(137), "{told}");
    assert!(place.path("out/report.json").exists(), "{told}");
    assert_nothing_left(&place);
}

#[test]
fn ctrl_c_in_a_container_s_terminal_is_heard_once() {
    let Some(args) = unshare() else { return };
    let (place, words) = stage("10m");
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("exec unshare {} {}", args.join(" "), quoted.join(" "));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).current_dir(place.path(""));
    command.env("TMPDIR", place.path("t")).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut terminal = command.spawn().unwrap();
    until_under_load(&place.path("out"));
    // The terminal makes a signal of it, for everybody in the foreground: first process and guard.
    terminal.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let status = wait_for("the run's end", || terminal.try_wait().unwrap());
    assert_eq!(signals(&place.path("out")), [2]);
    assert_eq!(status.code(), Some(130));
    assert_nothing_left(&place);
}
