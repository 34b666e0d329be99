//! What dead processes leave is saved or removed, and what belongs to others is not touched.

#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod keeper_support;

use keeper_support::*;
use std::path::{Path, PathBuf};
use tokio::sync::{Mutex, MutexGuard};
use varcas_guard::event::Leftover;
use varcas_guard::supervisor::proc;
use varcas_guard::supervisor::reap::{clean, make_scratch, shm_names};

/// Two tests at once would take each other's segments for leftovers.
async fn alone_with_shm() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::const_new(());
    LOCK.lock().await
}

/// A segment that is removed with the test.
struct Segment(PathBuf);

impl Segment {
    fn new(prefix: &str) -> Self {
        let segment = Self(Path::new("/dev/shm").join(format!("{prefix}vgtest{}", std::process::id())));
        std::fs::write(&segment.0, "x").unwrap();
        segment
    }

    fn name(&self) -> String {
        self.0.file_name().unwrap().to_str().unwrap().to_owned()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// Cleans with an empty scratch folder.
fn clean_shm(before: &[String]) -> (Vec<String>, Vec<Leftover>) {
    let dir = tempfile::tempdir().unwrap();
    let scratch = make_scratch(dir.path()).unwrap();
    clean(&scratch, &dir.path().join("saved"), before)
}

#[tokio::test]
async fn shared_memory_that_nobody_uses_any_more_is_removed() {
    let _alone = alone_with_shm().await;
    let before = shm_names();
    let segments: Vec<Segment> = [
        "psm_",
        "sem.mp-",
        "VLLM_OBJECT_STORAGE_SHM_BUFFER_",
        "nccl-",
        "vllm_offload_",
        "vllm_ec_",
        "x-[0, 1]-cpushm",
    ]
    .map(Segment::new)
    .into();
    let (removed, leftovers) = clean_shm(&before);
    for segment in &segments {
        assert!(!segment.0.exists(), "{}", segment.0.display());
        assert!(removed.contains(&segment.0.display().to_string()));
    }
    assert_eq!(leftovers, []);
}

#[tokio::test]
async fn shared_memory_that_was_there_before_is_not_touched() {
    let _alone = alone_with_shm().await;
    let segment = Segment::new("psm_");
    assert!(shm_names().contains(&segment.name()));
    clean_shm(&shm_names());
    assert!(segment.0.exists());
}

#[tokio::test]
async fn shared_memory_of_another_kind_is_not_touched() {
    let _alone = alone_with_shm().await;
    let before = shm_names();
    let segment = Segment::new("somebodys-");
    clean_shm(&before);
    assert!(segment.0.exists());
}

#[tokio::test]
async fn shared_memory_that_another_process_has_open_is_not_touched() {
    let _alone = alone_with_shm().await;
    let before = shm_names();
    let segment = Segment::new("psm_");
    let open = std::fs::File::open(&segment.0).unwrap();
    clean_shm(&before);
    assert!(segment.0.exists());
    drop(open);
    clean_shm(&before);
    assert!(!segment.0.exists());
}

#[tokio::test]
async fn shared_memory_that_a_foreign_process_only_maps_is_not_touched() {
    let _alone = alone_with_shm().await;
    let before = shm_names();
    let segment = Segment::new("psm_");
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        r#"
import mmap
f = open("{}", "r+b")
m = mmap.mmap(f.fileno(), 1)
f.close()
note("{}/mapped", os.getpid())
forever()
"#,
        segment.0.display(),
        dir.path().display()
    );
    let mut foreign =
        std::process::Command::new(python()).args(["-c", &with_helpers(&script)]).spawn().unwrap();
    pid_in(&dir.path().join("mapped")).await;
    clean_shm(&before);
    let survived = segment.0.exists();
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    assert!(survived);
    clean_shm(&before);
    assert!(!segment.0.exists());
}

#[tokio::test]
async fn pythons_own_shared_memory_is_gone_after_a_kill() {
    let _alone = alone_with_shm().await;
    let (mut rig, _) = Rig::python(
        r#"
from multiprocessing import shared_memory
import multiprocessing
segment = shared_memory.SharedMemory(create=True, size=4096)
lock = multiprocessing.get_context("spawn").Lock()
note("names", segment.name)
forever()
"#,
    )
    .await;
    let name = text_in(&rig.place.file("names")).await.trim().to_owned();
    let path = Path::new("/dev/shm").join(&name);
    assert!(path.exists());
    let tracker = wait_for("Python's resource tracker", || {
        let is_tracker = |pid: &i32| {
            proc::command_line(*pid).is_some_and(|line| line.contains("multiprocessing.resource_tracker"))
                && proc::environ(*pid).is_some_and(|environ| {
                    proc::variable(&environ, "VARCAS_RUN_ID") == Some(rig.place.spec.run_id.as_bytes())
                })
        };
        proc::pids().into_iter().find(is_tracker).and_then(proc::id)
    })
    .await;
    assert_eq!(rig.kill_all().await, []);
    // The tracker did it and left by itself.
    assert!(!path.exists());
    assert!(!rig.killed().contains(&tracker), "{:?}", rig.seen);
    assert_reaped(tracker);
    // The keeper had written down what the server used, for a cleaning in a container.
    let noted = std::fs::read_to_string(rig.place.spec.scratch.join(".shm-of-ours")).unwrap();
    assert!(noted.lines().any(|line| line == name), "{noted}");
    let place = rig.quit().await;
    let (removed, leftovers) = clean(&place.spec.scratch, &place.spec.save_to, &place.spec.shm_before);
    assert_eq!(removed, [place.spec.scratch.display().to_string()]);
    assert_eq!(leftovers, []);
    assert!(!place.spec.save_to.exists());
}

#[test]
fn the_scratch_folder_is_private_and_its_name_leaves_room_for_sockets() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = make_scratch(Path::new("/tmp")).unwrap();
    let mode = std::fs::metadata(&scratch).unwrap().permissions().mode();
    std::fs::remove_dir(&scratch).unwrap();
    assert_eq!(mode & 0o777, 0o700);
    assert!(scratch.as_os_str().len() <= 70);
}

#[test]
fn only_a_folder_of_our_name_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    std::fs::create_dir(&precious).unwrap();
    std::fs::write(precious.join("file"), "x").unwrap();
    let link = dir.path().join("vg-link");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    for wrong in [&precious, &link, Path::new("vg-relative"), Path::new("/")] {
        let (removed, leftovers) = clean(wrong, &dir.path().join("saved"), &shm_names());
        assert_eq!(removed, Vec::<String>::new());
        let relative = !wrong.is_absolute();
        assert_eq!(leftovers.len(), usize::from(!relative), "{}", wrong.display());
    }
    assert!(precious.join("file").exists());
}

#[test]
fn a_second_cleaning_finds_nothing_and_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = make_scratch(dir.path()).unwrap();
    let before = shm_names();
    assert_eq!(
        clean(&scratch, &dir.path().join("s"), &before),
        (vec![scratch.display().to_string()], vec![])
    );
    assert_eq!(clean(&scratch, &dir.path().join("s"), &before), (vec![], vec![]));
}

#[test]
fn saved_files_do_not_overwrite_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("saved");
    for text in ["one", "two", "three"] {
        let scratch = make_scratch(dir.path()).unwrap();
        std::fs::write(scratch.join("tmp.json"), text).unwrap();
        clean(&scratch, &saved, &shm_names());
    }
    let mut texts: Vec<String> =
        names_in(&saved).iter().map(|name| std::fs::read_to_string(saved.join(name)).unwrap()).collect();
    texts.sort();
    assert_eq!(texts, ["one", "three", "two"]);
}

#[test]
fn caches_and_rendezvous_files_are_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = make_scratch(dir.path()).unwrap();
    std::fs::create_dir(scratch.join("torchinductor_somebody")).unwrap();
    std::fs::write(scratch.join("torchinductor_somebody/kernel.so"), "x").unwrap();
    std::fs::write(scratch.join("vllm_dist_0123"), "x").unwrap();
    std::fs::write(scratch.join("tmp.json"), "x").unwrap();
    let (removed, _) = clean(&scratch, &dir.path().join("saved"), &shm_names());
    assert_eq!(names_in(&dir.path().join("saved")), ["tmp.json"]);
    assert_eq!(removed, [scratch.display().to_string()]);
}

#[test]
fn a_file_that_cannot_be_saved_is_not_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let scratch = make_scratch(dir.path()).unwrap();
    std::fs::write(scratch.join("tmp.json"), "the only copy").unwrap();
    let blocked = dir.path().join("not-a-folder");
    std::fs::write(&blocked, "").unwrap();
    let (removed, leftovers) = clean(&scratch, &blocked, &shm_names());
    assert_eq!(removed, Vec::<String>::new());
    assert!(matches!(&leftovers[..], [Leftover::File { path, .. }] if *path == scratch.join("tmp.json")));
    assert_eq!(std::fs::read(scratch.join("tmp.json")).unwrap(), b"the only copy");
}

#[test]
fn files_are_saved_across_file_systems() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let other = tempfile::tempdir().unwrap();
    let scratch = make_scratch(dir.path()).unwrap();
    std::fs::write(scratch.join("tmp.json"), "x").unwrap();
    let (_, leftovers) = clean(&scratch, &other.path().join("saved"), &shm_names());
    assert_eq!(leftovers, []);
    assert_eq!(std::fs::read(other.path().join("saved/tmp.json")).unwrap(), b"x");
    assert!(!scratch.exists());
}
