//! How the keeper starts a server, what it survives, and what happens when one of the two, guard or keeper, dies.

#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod keeper_support;

use keeper_support::*;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use varcas_guard::event::{Event, EventKind, ExitHow, ProcId};
use varcas_guard::supervisor::keeper::{Keeper, KeeperSpec, Order, Target};
use varcas_guard::supervisor::run_id::MARK;
use varcas_guard::supervisor::{os, proc, reap};

#[tokio::test]
async fn the_server_gets_exactly_what_it_was_given() {
    let script = r#"
cat /proc/self/status > status.part; mv status.part status
ls -l /proc/$$/fd > fds.part; mv fds.part fds
tr '\0' '\n' < /proc/$$/environ > environ.part; mv environ.part environ
pwd -P > cwd.part; mv cwd.part cwd
echo to-stdout; echo to-stderr >&2
"#;
    let mut rig = Rig::new();
    std::fs::write(rig.place.file("server.log"), "before\n").unwrap();
    rig.keeper.order(&rig.place.spawn(&["/bin/sh", "-c", script]));
    let main = rig
        .until("the start", |kind| match kind {
            EventKind::ServerSpawned { proc, argv } => {
                assert_eq!(argv[..2], ["/bin/sh", "-c"]);
                Some(*proc)
            }
            _ => None,
        })
        .await;
    assert_eq!(rig.exit_of(main).await, ExitHow::Code { code: 0 });
    let read = |name: &str| std::fs::read_to_string(rig.place.file(name)).unwrap();

    let status = read("status");
    for mask in ["SigBlk", "SigIgn"] {
        assert_eq!(signals(&status, mask), 0, "{mask}");
    }
    let fds: Vec<String> = read("fds")
        .lines()
        .filter_map(|line| Some(line.split_once(" -> ")?.1.to_owned()))
        .filter(|to| !to.ends_with("/fds.part"))
        .collect();
    let log = rig.place.file("server.log").canonicalize().unwrap();
    assert!(fds.iter().all(|to| to == "/dev/null" || Path::new(to) == log), "{fds:?}");
    assert_eq!(fds.iter().filter(|to| *to == "/dev/null").count(), 1);

    let mut environ: Vec<String> = read("environ").lines().map(str::to_owned).collect();
    environ.sort();
    let names: Vec<&str> = environ.iter().filter_map(|pair| Some(pair.split_once('=')?.0)).collect();
    assert_eq!(names, ["PATH", "TMPDIR", MARK]);
    assert_eq!(Path::new(read("cwd").trim()), rig.place.dir.path().canonicalize().unwrap());
    assert_eq!(read("server.log"), "before\nto-stdout\nto-stderr\n");
    rig.quit().await;
}

/// A mask of `/proc/PID/status`, without the two signals that the C library keeps to itself and lets nobody change.
fn signals(status: &str, mask: &str) -> u64 {
    u64::from_str_radix(&status_field(status, mask), 16).unwrap() & !(0b11 << 31)
}

#[tokio::test]
async fn a_new_log_is_private() {
    let (mut rig, main) = Rig::shell("exit 0").await;
    rig.exit_of(main).await;
    let mode = std::fs::metadata(rig.place.file("server.log")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    rig.quit().await;
}

#[tokio::test]
async fn the_server_leads_a_group_in_the_keepers_session() {
    let (mut rig, main) = Rig::shell("sleep 180").await;
    let stat = proc::stat(main.pid).unwrap();
    assert_eq!(stat.pgrp, main.pid);
    assert_eq!(stat.session, rig.keeper.proc().pid);
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_said() {
    let mut rig = Rig::new();
    let place = &rig.place;
    let base = place.spawn(&["/bin/true"]);
    let Order::Spawn { argv, env, cwd, log } = base.clone() else { unreachable!() };
    let wrong = [
        place.spawn(&["/no/such/program"]),
        place.spawn::<&str>(&[]),
        Order::Spawn { argv: argv.clone(), env: env.clone(), cwd: "/no/such/folder".into(), log },
        Order::Spawn { argv, env, cwd, log: "/no/such/folder/log".into() },
    ];
    for order in wrong {
        rig.keeper.order(&order);
        let error = rig
            .until_new("a refusal", |kind| match kind {
                EventKind::SpawnFailed { error } => Some(error.clone()),
                _ => None,
            })
            .await;
        assert!(error.contains("/no/such") || error.contains("is empty"), "{error}");
    }
    rig.keeper.order(&base);
    rig.until_new("a start", |kind| matches!(kind, EventKind::ServerSpawned { .. }).then_some(())).await;
    rig.quit().await;
}

#[tokio::test]
async fn a_second_server_is_refused() {
    let (mut rig, _) = Rig::shell("sleep 180").await;
    rig.keeper.order(&rig.place.spawn(&["/bin/true"]));
    rig.until("a refusal", |kind| matches!(kind, EventKind::SpawnFailed { .. }).then_some(())).await;
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn the_keeper_survives_what_a_terminal_or_a_person_sends() {
    let (mut rig, main) = Rig::shell("sleep 180").await;
    for signal in [1, 2, 3, 10, 12, 13, 15] {
        assert_eq!(os::signal(rig.keeper.proc(), signal).unwrap(), os::Delivery::Sent);
    }
    assert_eq!(rig.kill_all().await, []);
    assert_reaped(main);
    rig.quit().await;
}

#[tokio::test]
async fn a_command_line_of_a_megabyte_passes() {
    let mut rig = Rig::new();
    let words: Vec<String> = (0..10).map(|_| "x".repeat(100_000)).collect();
    let argv: Vec<&str> = ["/bin/true"].into_iter().chain(words.iter().map(String::as_str)).collect();
    rig.keeper.order(&rig.place.spawn(&argv));
    let spawned = rig
        .until("the start", |kind| match kind {
            EventKind::ServerSpawned { argv, .. } => Some(argv.len()),
            EventKind::SpawnFailed { error } => panic!("{error}"),
            _ => None,
        })
        .await;
    assert_eq!(spawned, 11);
    rig.quit().await;
}

#[tokio::test]
async fn a_pid_with_another_start_time_is_never_signalled() {
    let mut child = Command::new("sleep").arg("180").spawn().unwrap();
    let id = proc::id(i32::try_from(child.id()).unwrap()).unwrap();
    for start in [id.start - 1, id.start + 1, 0] {
        assert_eq!(os::signal(ProcId { start, ..id }, os::SIGKILL).unwrap(), os::Delivery::Gone);
    }
    assert!(proc::is_alive(id));
    assert_eq!(os::signal(id, os::SIGKILL).unwrap(), os::Delivery::Sent);
    child.wait().unwrap();
    assert_eq!(os::signal(id, os::SIGKILL).unwrap(), os::Delivery::Gone);
}

/// A server of three: one that left group and session, one in the engine's clothes without a mark, and the first.
const FAMILY: &str = r#"
def engine():
    # As setproctitle does: the environment that others see is overwritten.
    title("VLLM::EngineCor")
    stat = open("/proc/self/stat").read().rsplit(")", 1)[1].split()
    begin, end = int(stat[47]), int(stat[48])
    ctypes.memset(begin, 0, end - begin)
    note("engine", os.getpid())
    forever()
def leave():
    os.setsid()
    child(lambda: (note("runaway", os.getpid()), forever()))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child(engine)
os.waitpid(child(leave), 0)
note("body", child(lambda: None))
note("main", os.getpid())
forever()
"#;

async fn family(place: &Place) -> [ProcId; 3] {
    let engine = pid_in(&place.file("engine")).await;
    assert!(!environ_of(engine).windows(MARK.len()).any(|part| part == MARK.as_bytes()));
    [pid_in(&place.file("main")).await, engine, pid_in(&place.file("runaway")).await]
}

fn environ_of(id: ProcId) -> Vec<u8> {
    proc::environ(id.pid).unwrap()
}

#[tokio::test]
async fn when_the_keeper_is_killed_the_guard_can_still_kill_everything() {
    os::become_subreaper().unwrap();
    let (mut rig, _) = Rig::python(FAMILY).await;
    let family = family(&rig.place).await;
    let body = pid_in(&rig.place.file("body")).await;
    rig.until("the engine", |kind| {
        matches!(kind, EventKind::ProcessSeen { proc, .. } if *proc == family[1]).then_some(())
    })
    .await;
    let keeper = rig.keeper.proc();
    os::signal(keeper, os::SIGKILL).unwrap();
    let how = rig
        .until("the loss", |kind| match kind {
            EventKind::KeeperLost { how } => Some(how.clone()),
            _ => None,
        })
        .await;
    assert_eq!(how, "SIGKILL");
    assert_reaped(keeper);
    // Nothing that `kill_marked` does not know of may suffer: another child of ours.
    let mut bystander = Command::new("sleep").arg("180").spawn().unwrap();
    let run_id = rig.place.spec.run_id.clone();
    let known = rig.keeper.known();
    let sweep = move || reap::kill_marked(&run_id, &known, &[]);
    let (killed, leftovers) = tokio::task::spawn_blocking(sweep).await.unwrap();
    assert_eq!(leftovers, []);
    for id in family {
        assert!(killed.contains(&id), "{id} in {killed:?}");
        assert_reaped(id);
    }
    // Died before its parent did, which never reaped it.
    assert_reaped(body);
    assert!(bystander.try_wait().unwrap().is_none());
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[tokio::test]
async fn the_sweep_spares_whom_it_is_told_to() {
    let place = Place::new();
    let mut spared = marked_sleep(&place).await;
    let mut struck = marked_sleep(&place).await;
    let exclude = [i32::try_from(spared.id()).unwrap()];
    let (killed, leftovers) = reap::kill_marked(&place.spec.run_id, &[], &exclude);
    assert_eq!((killed.len(), leftovers.len()), (1, 0));
    assert_eq!(killed[0].pid, i32::try_from(struck.id()).unwrap());
    assert!(spared.try_wait().unwrap().is_none());
    spared.kill().unwrap();
    spared.wait().unwrap();
    // Reaped by the sweep already.
    assert!(struck.wait().is_err());
}

async fn marked_sleep(place: &Place) -> Child {
    let child = Command::new("sleep").arg("180").env(MARK, &place.spec.run_id).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    // Spawn returns a moment before the kernel has set up the environment that `/proc` shows.
    wait_for("an environment", || proc::environ(pid).filter(|environ| !environ.is_empty())).await;
    child
}

#[tokio::test]
async fn a_run_without_guard_and_keeper_is_found_by_its_marks() {
    let (mut rig, _) = Rig::python(FAMILY).await;
    let [main, engine, runaway] = family(&rig.place).await;
    let found = reap::find_marked();
    let of_run = |id: ProcId| {
        let found = found.iter().find(|marked| marked.proc == id);
        found.map(|marked| (marked.run_id.to_string(), marked.guard_alive, marked.uid))
    };
    let expected = Some((rig.place.spec.run_id.clone(), true, os::own_uid()));
    for id in [main, engine, runaway] {
        assert_eq!(of_run(id), expected, "{id}");
    }
    assert_eq!(of_run(proc::own_id()), None);
    assert_eq!(of_run(rig.keeper.proc()), None);
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn a_keeper_that_does_not_answer_is_abandoned() {
    os::become_subreaper().unwrap();
    let (rig, main) = Rig::shell("exec sleep 180").await;
    os::signal(rig.keeper.proc(), os::SIGSTOP).unwrap();
    let (keeper, known) = (rig.keeper.proc(), rig.keeper.known());
    assert_eq!(known, [main]);
    assert_eq!(rig.keeper.abandon().await, ExitHow::Signal { signal: os::SIGKILL, core: false });
    assert_reaped(keeper);
    let (killed, leftovers) = reap::kill_marked(&rig.place.spec.run_id, &known, &[]);
    assert_eq!((killed, leftovers), (vec![main], vec![]));
    assert_reaped(main);
}

// ---- the guard dies ----

/// What the guard of a test needs, as it finds it in its environment.
const GUARD_FIXTURE: &str = "VARCAS_TEST_GUARD";

/// Not a test: the process that the tests below start and kill as "the guard".
#[tokio::test]
#[ignore = "started by other tests as a process to kill"]
async fn fixture_guard() {
    let Ok(folder) = std::env::var(GUARD_FIXTURE) else { return };
    let folder = PathBuf::from(folder);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let spec: KeeperSpec = serde_json::from_slice(&read("spec.json")).unwrap();
    let order: Order = serde_json::from_slice(&read("order.json")).unwrap();
    os::become_subreaper().unwrap();
    let (tell, mut facts) = tokio::sync::mpsc::unbounded_channel();
    let keeper = Keeper::start(guard_exe(), &spec, tell).unwrap();
    keeper.order(&order);
    std::fs::write(folder.join("keeper.part"), format!("{}\n", keeper.proc().pid)).unwrap();
    std::fs::rename(folder.join("keeper.part"), folder.join("keeper")).unwrap();
    while facts.recv().await.is_some() {}
}

/// The process of a guard; dies with its test, also with one that fails.
struct Guard(Child);

impl Guard {
    fn id(&self) -> ProcId {
        proc::id(i32::try_from(self.0.id()).unwrap()).unwrap()
    }

    fn kill(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts it with a server; returns it, and the keeper.
async fn guard_of(place: &Place, order: &Order) -> (Guard, ProcId) {
    std::fs::write(place.file("spec.json"), serde_json::to_vec(&place.spec).unwrap()).unwrap();
    std::fs::write(place.file("order.json"), serde_json::to_vec(order).unwrap()).unwrap();
    // Through a shell that ignores what `nohup` and `&` make ignored.
    let guard = Command::new("/bin/sh")
        .args(["-c", "trap '' HUP INT QUIT; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "fixture_guard", "--ignored", "--nocapture"])
        .env(GUARD_FIXTURE, place.dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let guard = Guard(guard);
    let keeper = pid_in(&place.file("keeper")).await;
    (guard, keeper)
}

async fn gone(id: ProcId) {
    // The keeper is init's child now, so a zombie of it is not ours to reap.
    wait_for(&format!("the end of {id}"), || (!proc::is_alive(id)).then_some(())).await;
}

fn journal_line(seq: u64) -> String {
    format!(
        r#"{{"v":1,"seq":{seq},"t":{seq}.5,"wall":"2026-01-01T00:00:0{seq}Z","attempt":1,"event":"signal-received","data":{{"signal":2}}}}"#
    )
}

#[tokio::test]
async fn when_the_guard_is_killed_the_keeper_kills_everything_and_writes_the_last_line() {
    let place = Place::new();
    let torn = &journal_line(8)[..40];
    std::fs::write(&place.spec.journal, format!("{}\n{torn}", journal_line(7))).unwrap();
    let order = place.spawn(&[python(), "-c", &with_helpers(FAMILY)]);
    let (mut guard, keeper) = guard_of(&place, &order).await;
    let family = family(&place).await;
    // What a killed profiler and ZMQ leave.
    let scratch = &place.spec.scratch;
    std::fs::create_dir(scratch.join("deep")).unwrap();
    std::fs::write(scratch.join("deep/tmp1234.json"), "half a trace").unwrap();
    drop(std::os::unix::net::UnixListener::bind(scratch.join("0a1b-socket")).unwrap());
    std::os::unix::fs::symlink("/etc/passwd", scratch.join("link")).unwrap();

    guard.kill();
    gone(keeper).await;
    for id in family {
        assert_reaped(id);
    }
    assert_eq!(std::fs::read(place.spec.save_to.join("deep/tmp1234.json")).unwrap(), b"half a trace");
    assert_eq!(names_in(&place.spec.save_to), ["deep"]);
    assert!(!scratch.exists());
    assert!(Path::new("/etc/passwd").exists());

    let journal = std::fs::read_to_string(&place.spec.journal).unwrap();
    let lines: Vec<&str> = journal.lines().collect();
    assert_eq!(lines[..2], [journal_line(7).as_str(), torn]);
    assert_eq!((lines.len(), journal.ends_with('\n')), (3, true));
    let event: Event = serde_json::from_str(lines[2]).unwrap();
    assert_eq!((event.v, event.seq, event.attempt), (1, 8, 1));
    assert!(event.at.mono.as_secs_f64() > 7.5);
    let EventKind::GuardDied { killed, leftovers, removed } = event.kind else { panic!("{event:?}") };
    for id in family {
        assert!(killed.contains(&id), "{id} in {killed:?}");
    }
    assert_eq!(leftovers, []);
    assert!(removed.contains(&scratch.display().to_string()));
    assert!(removed.contains(&scratch.join("0a1b-socket").display().to_string()));
}

#[tokio::test]
async fn a_guard_begun_with_nohup_does_not_deafen_the_server() {
    let place = Place::new();
    let script = "cat /proc/self/status > status.part; mv status.part status; sleep 180";
    let (mut guard, keeper) = guard_of(&place, &place.spawn(&["/bin/sh", "-c", script])).await;
    let status = text_in(&place.file("status")).await;
    let guards = std::fs::read_to_string(format!("/proc/{}/status", guard.id().pid)).unwrap();
    // HUP, INT and QUIT are the three lowest bits.
    assert_eq!(signals(&guards, "SigIgn") & 0b111, 0b111);
    assert_eq!(signals(&status, "SigIgn"), 0);
    guard.kill();
    gone(keeper).await;
}

#[tokio::test]
async fn a_guard_that_only_stops_kills_nothing() {
    let place = Place::new();
    let (mut guard, keeper) =
        guard_of(&place, &place.spawn(&["/bin/sh", "-c", "echo $$ > pid; sleep 180"])).await;
    let main = pid_in(&place.file("pid")).await;
    let id = guard.id();
    os::signal(id, os::SIGSTOP).unwrap();
    wait_for("a stopped guard", || proc::stat(id.pid).filter(|stat| stat.state == 'T')).await;
    // The keeper has looked around since, so it would have noticed.
    let scans_before = cpu_ticks(keeper);
    wait_for("the keeper at work", || (cpu_ticks(keeper) > scans_before).then_some(())).await;
    assert!(proc::is_alive(main));
    guard.kill();
    gone(keeper).await;
    assert!(!proc::is_alive(main));
}

fn cpu_ticks(id: ProcId) -> u64 {
    let line = std::fs::read_to_string(format!("/proc/{}/stat", id.pid)).unwrap();
    let fields: Vec<u64> =
        line.rsplit(") ").next().unwrap().split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect();
    fields[11] + fields[12]
}

#[tokio::test]
async fn a_handle_that_is_dropped_is_a_dead_guard() {
    let (rig, main) = Rig::shell("sleep 180").await;
    let keeper = rig.keeper.proc();
    drop(rig.keeper);
    gone(keeper).await;
    assert_reaped(main);
    let journal = text_in(&rig.place.spec.journal).await;
    let event: Event = serde_json::from_str(journal.trim_end()).unwrap();
    assert!(matches!(event.kind, EventKind::GuardDied { .. }));
}

#[tokio::test]
async fn a_keeper_that_is_not_started_by_a_guard_says_so_and_does_nothing() {
    let start = |stdin: Stdio| {
        Command::new(guard_exe()).arg("__keeper").stdin(stdin).stderr(Stdio::piped()).spawn().unwrap()
    };
    let by_hand = start(Stdio::null()).wait_with_output().unwrap();
    assert!(!by_hand.status.success());
    assert!(String::from_utf8_lossy(&by_hand.stderr).contains("started by"), "{by_hand:?}");

    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let keeper = start(Stdio::from(std::os::fd::OwnedFd::from(theirs)));
    ours.write_all(b"rubbish\n").unwrap();
    let confused = keeper.wait_with_output().unwrap();
    assert!(!confused.status.success());
    assert!(String::from_utf8_lossy(&confused.stderr).contains("spec"), "{confused:?}");
}

#[tokio::test]
async fn a_signal_after_the_end_is_answered() {
    let (mut rig, main) = Rig::shell("exit 0").await;
    rig.exit_of(main).await;
    rig.signal(os::SIGTERM, Target::Main);
    rig.until("trouble", |kind| matches!(kind, EventKind::Trouble { .. }).then_some(())).await;
    rig.quit().await;
}
