//! A run whose files sit on a disk that goes wrong when the test says so.
#![expect(dead_code, reason = "every test file uses another part of this")]
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use crate::e2e_support::{FAST, Finished, Place, Running};
use std::path::{Path, PathBuf};
use std::process::Command;
use varcas_guard::event::{Event, EventKind};

/// Compiles the library that makes files fail; none, with a line that says why, where there is no compiler.
pub(crate) fn faults(place: &Place) -> Option<PathBuf> {
    library(place, "faults")
}

/// Compiles one of the libraries beside this file.
pub(crate) fn library(place: &Place, name: &str) -> Option<PathBuf> {
    let library = place.path(&format!("{name}.so"));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/storage_support/{name}.c"));
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).output();
    match built {
        Ok(output) if output.status.success() => Some(library),
        Ok(output) => panic!("{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => {
            println!("SKIPPED: needs a C compiler: {error}");
            None
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// In paths that contain this.
    pub(crate) at: &'static str,
    /// `VARCAS_FAULT_...` and its value.
    pub(crate) how: (&'static str, &'static str),
    /// Only syncs are touched.
    pub(crate) only_sync: bool,
}

/// A run with a fault that waits for [`arm`].
pub(crate) fn start<'a>(place: &'a Place, fault: Fault, more: &str, args: &[&str]) -> Option<Running<'a>> {
    let library = faults(place)?;
    let config = place.config(FAST, more);
    let port = place.port.to_string();
    let config = config.to_string_lossy().into_owned();
    let mut all = vec!["run", "--server", "sim", "--port", &port, "--config", &config, "--retries", "1"];
    all.extend(args);
    all.extend(["out", "--", "--max-model-len", "160"]);
    let mut env = vec![
        // Of the program that is tested only: a server that cannot write is another matter.
        ("LD_PRELOAD".to_owned(), library.display().to_string()),
        ("VARCAS_FAULT_WHEN".to_owned(), place.path("armed").display().to_string()),
        ("VARCAS_FAULT_AT".to_owned(), fault.at.to_owned()),
        (format!("VARCAS_FAULT_{}", fault.how.0), fault.how.1.to_owned()),
    ];
    if fault.only_sync {
        env.push(("VARCAS_FAULT_ONLY".to_owned(), "sync".to_owned()));
    }
    Some(place.start_with("out", &all, &env))
}

pub(crate) fn arm(place: &Place) {
    std::fs::write(place.path("armed"), "").unwrap();
}

pub(crate) fn disarm(place: &Place) {
    std::fs::remove_file(place.path("armed")).unwrap();
}

/// Every event of the run is there, the last one says how it ended, and no line is torn.
pub(crate) fn assert_journal_complete(out: &Path) -> Vec<Event> {
    let read = varcas_guard::supervisor::journal::read(&out.join("events.jsonl")).unwrap();
    assert_eq!(read.unread, [], "torn lines");
    for (number, event) in read.events.iter().enumerate() {
        assert_eq!(event.seq, number as u64, "a gap");
    }
    let last = read.events.last().map(|event| &event.kind);
    assert!(matches!(last, Some(EventKind::RunFinished { .. })), "{last:?}");
    read.events
}

pub(crate) fn told(events: &[Event], wanted: impl Fn(&EventKind) -> bool) -> bool {
    events.iter().any(|event| wanted(&event.kind))
}

/// The run stopped because it had no place any more: it says so, with the right code, and nothing of it is left.
pub(crate) fn assert_stopped_for_storage(done: &Finished, place: &Place, why: &str) {
    assert_eq!(done.code, Some(75), "{}", done.told());
    assert!(done.said().contains("the run folder is lost: "), "{}", done.said());
    assert!(done.said().contains(why), "`{why}` is missing in: {}", done.said());
    let left = crate::e2e_support::alive(&done.out);
    assert!(left.is_empty(), "{left:?}");
    place.assert_no_scratch();
    place.assert_no_shm();
    std::net::TcpListener::bind(("127.0.0.1", place.port)).unwrap();
}
