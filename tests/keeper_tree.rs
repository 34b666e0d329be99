//! Everything that belongs to the server is found, reported, killed and reaped.

mod keeper_support;

use keeper_support::*;
use varcas_guard::event::{EventKind, ExitHow, ProcId};
use varcas_guard::supervisor::keeper::{Order, Target};
use varcas_guard::supervisor::{os, proc};

const KILLED: ExitHow = ExitHow::Signal { signal: os::SIGKILL, core: false };

#[tokio::test]
async fn a_grandchild_that_left_group_and_session_is_killed_and_reaped() {
    let (mut rig, main) = Rig::python(
        r#"
def leave():
    os.setsid()
    child(lambda: (title("runaway"), note("runaway", os.getpid()), forever()))
os.waitpid(child(leave), 0)
forever()
"#,
    )
    .await;
    let runaway = pid_in(&rig.place.file("runaway")).await;
    assert_ne!(proc::stat(runaway.pid).unwrap().session, rig.keeper.proc().pid);
    assert_eq!(rig.kill_all().await, []);
    assert_eq!(rig.exit_of(runaway).await, KILLED);
    assert_eq!(rig.exit_of(main).await, KILLED);
    assert_reaped(runaway);
    assert_reaped(main);
    rig.quit().await;
}

#[tokio::test]
async fn an_orphan_without_mark_group_and_session_is_found_by_its_new_parent() {
    let (mut rig, _) = Rig::python(
        r#"
def leave():
    os.setsid()
    child(lambda: (note("runaway", os.getpid()), os.execve(sys.executable,
        [sys.executable, "-c", "import time; time.sleep(180)"], {})))
os.waitpid(child(leave), 0)
forever()
"#,
    )
    .await;
    let runaway = pid_in(&rig.place.file("runaway")).await;
    wait_for("an empty environment", || {
        proc::command_line(runaway.pid).filter(|line| line.contains("time.sleep(180)"))?;
        proc::environ(runaway.pid).filter(Vec::is_empty)
    })
    .await;
    assert_eq!(rig.kill_all().await, []);
    assert_reaped(runaway);
    rig.quit().await;
}

#[tokio::test]
async fn a_server_that_ignores_sigterm_is_killed() {
    let (mut rig, main) = Rig::python(
        r#"
signal.signal(signal.SIGTERM, lambda *_: note("asked", "yes"))
note("ready", os.getpid())
forever()
"#,
    )
    .await;
    pid_in(&rig.place.file("ready")).await;
    rig.signal(os::SIGTERM, Target::Main);
    text_in(&rig.place.file("asked")).await;
    assert!(proc::is_alive(main));
    assert_eq!(rig.kill_all().await, []);
    assert_eq!(rig.exit_of(main).await, KILLED);
    rig.quit().await;
}

#[tokio::test]
async fn a_stopped_process_is_killed() {
    let (mut rig, main) = Rig::python(r#"forever()"#).await;
    rig.signal(os::SIGSTOP, Target::Main);
    wait_for("a stopped server", || proc::stat(main.pid).filter(|stat| stat.state == 'T')).await;
    assert_eq!(rig.kill_all().await, []);
    assert_eq!(rig.exit_of(main).await, KILLED);
    assert_reaped(main);
    rig.quit().await;
}

#[tokio::test]
async fn a_fork_bomb_of_fifty_is_killed() {
    let (mut rig, main) = Rig::python(
        r#"
for n in range(50):
    child(lambda: forever())
note("ready", os.getpid())
forever()
"#,
    )
    .await;
    pid_in(&rig.place.file("ready")).await;
    let children: Vec<ProcId> = children_of(main.pid).into_iter().filter_map(proc::id).collect();
    assert_eq!(children.len(), 50);
    assert_eq!(rig.kill_all().await, []);
    for child in children {
        assert_reaped(child);
    }
    assert!(children_of(rig.keeper.proc().pid).is_empty());
    rig.quit().await;
}

#[tokio::test]
async fn a_chain_that_forks_and_exits_faster_than_anybody_lists_is_killed() {
    // Each link forks the next and dies, so whoever is found in a list is gone when the signal comes. Bounded, should
    // the kill not work.
    let (mut rig, _) = Rig::python(
        r#"
end = time.monotonic() + 60
note("ready", os.getpid())
while time.monotonic() < end:
    if os.fork(): os._exit(0)
note("escaped", "yes")
"#,
    )
    .await;
    wait_for("the chain", || rig.place.file("ready").exists().then_some(())).await;
    assert_eq!(rig.kill_all().await, []);
    let left: Vec<_> = children_of(rig.keeper.proc().pid).into_iter().map(proc::stat).collect();
    assert!(left.is_empty(), "{left:?}");
    assert!(!rig.place.file("escaped").exists());
    rig.quit().await;
}

#[tokio::test]
async fn a_hundred_zombies_vanish_with_their_parent() {
    let (mut rig, main) = Rig::python(
        r#"
for n in range(100):
    child(lambda: None)
note("ready", os.getpid())
forever()
"#,
    )
    .await;
    pid_in(&rig.place.file("ready")).await;
    let zombies: Vec<ProcId> = children_of(main.pid).into_iter().filter_map(proc::id).collect();
    assert_eq!(zombies.len(), 100);
    assert_eq!(rig.kill_all().await, []);
    for zombie in zombies {
        assert_reaped(zombie);
    }
    assert!(children_of(rig.keeper.proc().pid).is_empty());
    // Each death is reported once, however often it was looked at.
    let mut dead: Vec<ProcId> = rig.seen.iter().filter_map(exit).map(|(who, _)| who).collect();
    let all = dead.len();
    dead.sort();
    dead.dedup();
    assert_eq!(dead.len(), all);
    rig.quit().await;
}

#[tokio::test]
async fn the_first_process_is_reported_with_its_exit_code() {
    let (mut rig, main) = Rig::shell("exit 7").await;
    let event = rig
        .until("the exit", |kind| matches!(kind, EventKind::ProcessExited { .. }).then(|| kind.clone()))
        .await;
    let expected = EventKind::ProcessExited {
        proc: main,
        comm: "sh".into(),
        how: ExitHow::Code { code: 7 },
        main: true,
    };
    assert_eq!(event, expected);
    rig.quit().await;
}

#[tokio::test]
async fn the_first_process_is_reported_with_the_signal_that_ended_it() {
    let (mut rig, main) = Rig::shell("ulimit -c 0; kill -SEGV $$").await;
    assert_eq!(rig.exit_of(main).await, ExitHow::Signal { signal: 11, core: false });
    rig.quit().await;
}

#[tokio::test]
async fn an_adopted_orphan_is_reported_with_its_exit_code() {
    let (mut rig, _) = Rig::python(
        r#"
def orphan():
    note("orphan", os.getpid())
    while not os.path.exists("go"): time.sleep(0.01)
    os._exit(5)
os.waitpid(child(lambda: child(orphan)), 0)
forever()
"#,
    )
    .await;
    let orphan = pid_in(&rig.place.file("orphan")).await;
    wait_for("adoption", || proc::stat(orphan.pid).filter(|stat| stat.ppid == rig.keeper.proc().pid)).await;
    std::fs::write(rig.place.file("go"), "").unwrap();
    assert_eq!(rig.exit_of(orphan).await, ExitHow::Code { code: 5 });
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn a_dead_engine_is_reported_with_its_signal_while_its_parent_looks_away() {
    let (mut rig, main) = Rig::python(
        r#"
child(lambda: (title("VLLM::EngineCor"), forever()))
forever()
"#,
    )
    .await;
    let engine = rig.seen_as("VLLM::EngineCor").await;
    os::signal(engine, 11).unwrap();
    assert!(matches!(rig.exit_of(engine).await, ExitHow::Signal { signal: 11, .. }));
    assert!(proc::is_alive(main));
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn a_dead_engine_that_its_parent_reaps_at_once_is_not_reported_wrongly() {
    let (mut rig, _) = Rig::python(
        r#"
os.waitpid(child(lambda: (title("VLLM::EngineCor"), forever())), 0)
forever()
"#,
    )
    .await;
    let engine = rig.seen_as("VLLM::EngineCor").await;
    os::signal(engine, os::SIGKILL).unwrap();
    let how = rig.exit_of(engine).await;
    // Who is faster, its parent or the keeper, is open. Since Linux 6.15 it does not matter.
    let honest =
        if kernel_at_least(6, 15) { how == KILLED } else { how == KILLED || how == ExitHow::Unknown };
    assert!(honest, "{how:?}");
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn a_process_is_reported_again_when_it_takes_an_engines_name() {
    let (mut rig, _) = Rig::python(
        r#"
def engine():
    while not os.path.exists("go"): time.sleep(0.01)
    title("VLLM::Worker_TP0")
    forever()
child(engine)
forever()
"#,
    )
    .await;
    let before = rig
        .until("the child", |kind| match kind {
            EventKind::ProcessSeen { proc, comm, .. } if !comm.starts_with("VLLM::") => Some(*proc),
            _ => None,
        })
        .await;
    std::fs::write(rig.place.file("go"), "").unwrap();
    let after = rig.seen_as("VLLM::Worker_TP").await;
    assert_eq!(before, after);
    rig.kill_all().await;
    let comm = rig
        .until("its exit", |kind| match kind {
            EventKind::ProcessExited { proc, comm, .. } if *proc == after => Some(comm.clone()),
            _ => None,
        })
        .await;
    assert_eq!(comm, "VLLM::Worker_TP");
    rig.quit().await;
}

#[tokio::test]
async fn a_signal_for_the_engine_reaches_nobody_else_and_is_announced_first() {
    let (mut rig, main) = Rig::python(
        r#"
child(lambda: (title("VLLM::EngineCor"), signal.signal(signal.SIGTERM, signal.SIG_DFL), forever()))
forever()
"#,
    )
    .await;
    let engine = rig.seen_as("VLLM::EngineCor").await;
    rig.signal(os::SIGTERM, Target::Essential);
    assert_eq!(rig.exit_of(engine).await, ExitHow::Signal { signal: 15, core: false });
    let announced = rig.position(|kind| {
        matches!(kind, EventKind::SignalSent { signal: 15, targets, why } if *targets == [engine] && why == "test")
    });
    let died = rig.position(|kind| exit(kind).is_some_and(|(who, _)| who == engine));
    assert!(announced.unwrap() < died.unwrap());
    assert!(proc::is_alive(main));
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn a_signal_for_the_group_reaches_all_of_it() {
    let (mut rig, main) = Rig::python(r#"note("kid", child(forever)); forever()"#).await;
    let kid = pid_in(&rig.place.file("kid")).await;
    rig.signal(os::SIGTERM, Target::Group);
    assert_eq!(rig.exit_of(main).await, ExitHow::Signal { signal: 15, core: false });
    rig.exit_of(kid).await;
    rig.quit().await;
}

#[tokio::test]
async fn a_signal_to_nobody_is_reported_and_harmless() {
    let (mut rig, _) = Rig::python("forever()").await;
    rig.signal(os::SIGTERM, Target::Essential);
    rig.until("trouble", |kind| matches!(kind, EventKind::Trouble { .. }).then_some(())).await;
    rig.kill_all().await;
    rig.quit().await;
}

#[tokio::test]
async fn killing_an_empty_tree_is_answered() {
    let mut rig = Rig::new();
    assert_eq!(rig.kill_all().await, []);
    assert_eq!(rig.kill_all().await, []);
    rig.quit().await;
}

/// Like Python's resource tracker: waits until every writer of its pipe is gone, cleans up, exits.
const TRACKER: &str = r#"
def tracker(then):
    r, w = os.pipe()
    os.set_inheritable(r, True)
    # In two pieces, or our own command line would name it too.
    code = "import os, time, sys; resource_" + "tracker = 1; sys.stdin.read(); " + then
    subprocess.Popen([sys.executable, "-c", code], stdin=r, env={})
    os.close(r)
"#;

#[tokio::test]
async fn the_resource_tracker_is_left_time_to_clean_up() {
    let script = r#"
tracker("time.sleep(0.3); open('cleaned', 'w').write('yes')")
child(lambda: (title("VLLM::EngineCor"), forever()))
forever()
"#;
    let (mut rig, main) = Rig::python(&format!("{TRACKER}{script}")).await;
    rig.seen_as("VLLM::EngineCor").await;
    let tracker = tracker_of(main).await;
    assert_eq!(rig.kill_all().await, []);
    assert!(rig.place.file("cleaned").exists());
    assert!(rig.killed().contains(&main));
    assert!(!rig.killed().contains(&tracker));
    assert_eq!(rig.exit_of(tracker).await, ExitHow::Code { code: 0 });
    rig.quit().await;
}

#[tokio::test]
async fn a_resource_tracker_that_stays_is_killed_last() {
    let script = "tracker('time.sleep(180)')\nforever()";
    let (mut rig, main) = Rig::python(&format!("{TRACKER}{script}")).await;
    let tracker = tracker_of(main).await;
    assert_eq!(rig.kill_all().await, []);
    assert_eq!(rig.killed(), [main, tracker]);
    assert_eq!(rig.exit_of(tracker).await, KILLED);
    let main_died = rig.position(|kind| exit(kind).is_some_and(|(who, _)| who == main));
    let tracker_struck = rig
        .position(|kind| matches!(kind, EventKind::SignalSent { targets, .. } if targets.contains(&tracker)));
    assert!(main_died.unwrap() < tracker_struck.unwrap());
    rig.quit().await;
}

async fn tracker_of(main: ProcId) -> ProcId {
    wait_for("the tracker", || {
        // Between fork and exec a child shows the command line of its parent, in which this word is in two pieces.
        let is_tracker =
            |pid: &i32| proc::command_line(*pid).is_some_and(|line| line.contains("resource_tracker = 1"));
        children_of(main.pid).into_iter().find(is_tracker).and_then(proc::id)
    })
    .await
}

#[tokio::test]
async fn quitting_kills_what_is_still_there() {
    let (rig, main) = Rig::python("forever()").await;
    rig.keeper.order(&Order::Signal { signal: os::SIGSTOP, target: Target::Main, why: "test".into() });
    rig.quit().await;
    assert_reaped(main);
}
