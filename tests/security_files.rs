//! What a run writes is its user's own, and nobody can lead it astray with links or folders laid in its way.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{FAST, Place};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use varcas_guard::event::EventKind;

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Everything below that others may read or write, except through a folder that they cannot enter.
fn open_to_others(root: &Path) -> Vec<PathBuf> {
    let mut open = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() {
                continue;
            }
            if mode(&entry.path()) & 0o077 != 0 {
                open.push(entry.path());
            } else if kind.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    open
}

#[test]
fn with_the_most_careless_umask_everything_of_ours_is_private_and_the_server_keeps_the_umask() {
    let place = Place::new();
    let config = place.config(FAST, "");
    let (port, config) = (place.port.to_string(), config.to_string_lossy().into_owned());
    let mut guard = std::process::Command::new("/bin/sh");
    let script = format!("umask 0000; exec {} \"$@\"", env!("CARGO_BIN_EXE_varcas-guard"));
    guard.args(["-c", &script, "sh", "run", "--server", "sim", "--port", &port, "--config", &config]);
    guard.args(["--duration", "1s", "--retries", "0", "new/out", "--", "--max-model-len", "160"]);
    let output = guard.current_dir(place.path("")).env("TMPDIR", place.path("t")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let out = place.path("new/out");
    assert_eq!(mode(&place.path("new")), 0o777, "what lies above is the user's business");
    assert_eq!(mode(&out), 0o700);
    assert_eq!(mode(&out.join("attempt-1")), 0o700);
    let open = open_to_others(&out);
    // What the server writes itself has the user's own mask, inside a folder that nobody else can enter.
    let of_server = |path: &PathBuf| path.starts_with(out.join("attempt-1"));
    assert!(open.iter().all(of_server), "{open:#?}");
    for name in ["vllm_server.log", "requests.jsonl", "benchmark.json", "benchmark_output.log"] {
        assert_eq!(mode(&out.join("attempt-1").join(name)) & 0o077, 0, "{name}");
    }
    assert!(!open.is_empty(), "the server should have written windows with the mask of the user");
}

#[test]
fn the_sockets_of_a_server_lie_in_a_private_folder_with_a_name_that_nobody_can_guess() {
    let place = Place::new();
    let mut running = place.run("out", &place.config(&format!("{FAST},load=20m"), ""), &[]);
    running.until("the server", |kind| matches!(kind, EventKind::ServerSpawned { .. }).then_some(()));
    let folders: Vec<PathBuf> =
        std::fs::read_dir(place.path("t")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [scratch] = folders.as_slice() else { panic!("{folders:?}") };
    assert_eq!(mode(scratch), 0o700);
    let name = scratch.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("vg-") && name.len() >= 9, "{name}");
    let pid = running.id.pid.to_string();
    assert!(!name.contains(&pid), "{name} tells the pid");
    assert_eq!(mode(&scratch.join(".owner")) & 0o077, 0);
    running.signal(2);
    assert_eq!(running.wait().code, Some(130));
}

#[test]
fn links_in_the_place_of_our_files_are_refused_and_their_targets_not_touched() {
    for name in [".guard.lock", "guard.log", "events.jsonl", ".reserve", "attempt-1"] {
        let place = Place::new();
        let (victim, out) = (place.path("victim"), place.path("out"));
        std::fs::write(&victim, "precious").unwrap();
        std::fs::create_dir(&out).unwrap();
        symlink(&victim, out.join(name)).unwrap();
        let port = place.port.to_string();
        let answer = place.ask(&["run", "--server", "sim", "--port", &port, "out"]);
        assert_eq!(answer.code, Some(69), "{name}: {answer:?}");
        assert!(answer.err.contains("is a symbolic link"), "{name}: {}", answer.err);
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious", "{name}");
    }
}

#[test]
fn a_link_in_the_place_of_the_report_is_replaced_and_not_followed() {
    let place = Place::new();
    let (victim, out) = (place.path("victim"), place.path("out"));
    std::fs::write(&victim, "precious").unwrap();
    std::fs::create_dir(&out).unwrap();
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["report.html", "report.md", "report.json", "vllm_server.log"] {
        symlink(&victim, out.join(name)).unwrap();
    }
    let done = place.run("out", &place.config(FAST, ""), &[]).wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    assert!(out.join("report.html").symlink_metadata().unwrap().is_file());
}

#[test]
fn a_folder_that_anybody_may_write_to_is_refused() {
    let place = Place::new();
    let out = place.path("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let port = place.port.to_string();
    let answer = place.ask(&["run", "--server", "sim", "--port", &port, "out"]);
    assert_eq!(answer.code, Some(69), "{answer:?}");
    assert!(answer.err.contains("anybody may write to"), "{}", answer.err);
}
