//! A log is read once and whole, whatever happens to its file.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use proptest::prelude::*;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use varcas_guard::event::{EventKind, Finding, Gravity, Phase};
use varcas_guard::health::follow::{Break, Follower, Piece};
use varcas_guard::health::log_rules::Rules;
use varcas_guard::health::log_watch::LogWatch;
use varcas_guard::health::tail::{Line, Tail};

/// What is done to the file, and when the follower looks.
#[derive(Debug, Clone)]
enum Action {
    /// Whoever writes appends a token that occurs nowhere else, with or without a line break.
    Append {
        line_break: bool,
    },
    /// Whoever writes opens the name anew and creates it if needed.
    Reopen,
    /// The file is renamed away.
    RenameAway,
    Delete,
    /// The file is cut to a length of so many per cent.
    Cut(u64),
    Look {
        budget: usize,
    },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        5 => any::<bool>().prop_map(|line_break| Action::Append { line_break }),
        2 => Just(Action::Reopen),
        1 => Just(Action::RenameAway),
        1 => Just(Action::Delete),
        1 => prop::sample::select(vec![0, 50]).prop_map(Action::Cut),
        4 => prop::sample::select(vec![5, 9, 40, 1000]).prop_map(|budget| Action::Look { budget }),
    ];
    prop::collection::vec(action, 1..40)
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Byte(u8),
    Break(Break),
}

/// The file system and the follower as they should be, in memory. A file is known by its place in `files`.
#[derive(Default)]
struct Model {
    files: Vec<Vec<u8>>,
    named: Option<usize>,
    writer: Option<usize>,
    held: Option<usize>,
    read: Vec<u8>,
    seen: Vec<Seen>,
}

impl Model {
    fn look(&mut self, budget: usize) -> bool {
        let mut left = budget;
        loop {
            if self.held.is_none() {
                let Some(named) = self.named else { return false };
                (self.held, self.read) = (Some(named), Vec::new());
            }
            if !self.read(&mut left) {
                return true;
            }
            if self.named.is_none() || self.named == self.held {
                return false;
            }
            if !self.read(&mut left) {
                return true;
            }
            self.seen.push(Seen::Break(Break::Replaced));
            self.held = None;
        }
    }

    fn read(&mut self, left: &mut usize) -> bool {
        let content = &self.files[self.held.unwrap()];
        let offset = self.read.len();
        if content.len() < offset || (content.len() > offset && content[..offset] != self.read) {
            self.seen.push(Seen::Break(Break::Cut));
            self.read.clear();
        }
        let offset = self.read.len();
        let new = &content[offset..(offset + *left).min(content.len())];
        *left -= new.len();
        self.seen.extend(new.iter().map(|byte| Seen::Byte(*byte)));
        self.read.extend_from_slice(new);
        *left > 0
    }
}

/// The same on a real file system.
struct Real {
    path: PathBuf,
    writer: Option<File>,
    follower: Follower,
    seen: Vec<Seen>,
}

impl Real {
    fn look(&mut self, budget: usize) -> bool {
        let seen = &mut self.seen;
        self.follower
            .look(budget, &mut |piece| match piece {
                Piece::Bytes(bytes) => seen.extend(bytes.iter().map(|byte| Seen::Byte(*byte))),
                Piece::Break(why) => seen.push(Seen::Break(why)),
            })
            .unwrap()
    }
}

fn perform(action: &Action, number: usize, model: &mut Model, real: &mut Real) {
    match action {
        Action::Append { line_break } => {
            let (Some(index), Some(file)) = (model.writer, real.writer.as_mut()) else { return };
            let token = format!("{number:06}{}", if *line_break { "\n" } else { " " });
            model.files[index].extend_from_slice(token.as_bytes());
            file.write_all(token.as_bytes()).unwrap();
        }
        Action::Reopen => {
            let named = model.named.unwrap_or_else(|| {
                model.files.push(Vec::new());
                model.files.len() - 1
            });
            (model.named, model.writer) = (Some(named), Some(named));
            real.writer = Some(OpenOptions::new().append(true).create(true).open(&real.path).unwrap());
        }
        Action::RenameAway if model.named.is_some() => {
            model.named = None;
            std::fs::rename(&real.path, real.path.with_extension(number.to_string())).unwrap();
        }
        Action::Delete if model.named.is_some() => {
            model.named = None;
            std::fs::remove_file(&real.path).unwrap();
        }
        Action::Cut(percent) => {
            let Some(named) = model.named else { return };
            let length = model.files[named].len() as u64 * percent / 100;
            model.files[named].truncate(length as usize);
            OpenOptions::new().write(true).open(&real.path).unwrap().set_len(length).unwrap();
        }
        Action::RenameAway | Action::Delete => {}
        Action::Look { budget } => assert_eq!(real.look(*budget), model.look(*budget), "more to read"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_that_is_written_rotated_deleted_and_cut_is_read_as_the_model_says(actions in actions()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut model = Model::default();
        let mut real =
            Real { follower: Follower::new(&path), path, writer: None, seen: Vec::new() };
        for (number, action) in actions.iter().enumerate() {
            perform(action, number, &mut model, &mut real);
            prop_assert_eq!(&real.seen, &model.seen, "after {} {:?}", number, action);
        }
        while model.look(1000) { real.look(1000); }
        real.look(1000);
        prop_assert_eq!(real.seen, model.seen);
    }
}

/// The lines that come until the last one says `last`; a tail that stays silent fails here and does not hang.
async fn lines_until(tail: &mut Tail, last: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    while lines.last().is_none_or(|line| line.text != last) {
        let next = tokio::time::timeout(Duration::from_secs(60), tail.next_lines()).await;
        lines.extend(
            next.unwrap_or_else(|_| panic!("no {last:?} after {lines:?}, trouble {:?}", tail.trouble())),
        );
    }
    lines
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[tokio::test]
async fn a_log_whose_folder_does_not_exist_yet_is_read_from_its_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("attempt-1/server.log");
    let mut tail = Tail::new(&path).unwrap();
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    append(&path, b"first\nsec");
    append(&path, b"ond\r\n");
    let lines = lines_until(&mut tail, "second").await;
    assert_eq!(texts(&lines), ["first", "second"]);
    assert_eq!((lines[1].offset, lines[1].number), (6, 2));
}

#[tokio::test]
async fn a_rotated_log_is_read_to_its_end_and_then_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut tail = Tail::new(&path).unwrap();
    let mut old = OpenOptions::new().append(true).create(true).open(&path).unwrap();
    old.write_all(b"1\n").unwrap();
    assert_eq!(texts(&lines_until(&mut tail, "1").await), ["1"]);
    std::fs::rename(&path, dir.path().join("log.1")).unwrap();
    old.write_all(b"2\n").unwrap();
    assert_eq!(texts(&lines_until(&mut tail, "2").await), ["2"]);
    append(&path, b"3\n");
    let lines = lines_until(&mut tail, "3").await;
    assert_eq!((lines[0].number, lines[0].offset), (1, 0));
}

#[tokio::test]
async fn the_last_words_of_a_process_are_read_although_they_have_no_line_break() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, b"one\nSegmentation fault");
    let mut tail = Tail::new(&path).unwrap();
    let drained = tokio::time::timeout(Duration::from_secs(60), tail.drain()).await.unwrap();
    assert_eq!(texts(&drained), ["one", "Segmentation fault"]);
    append(&path, b"\nlater\n");
    assert_eq!(texts(&lines_until(&mut tail, "later").await), ["", "later"]);
}

#[tokio::test]
async fn draining_brings_everything_although_it_is_more_than_the_channel_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut text = String::new();
    for number in 0..800_000 {
        text.push_str(&format!("line {number:08}\n"));
    }
    std::fs::write(&path, &text).unwrap();
    let mut tail = Tail::new(&path).unwrap();
    let drained = tokio::time::timeout(Duration::from_secs(60), tail.drain()).await.unwrap();
    assert_eq!(drained.len(), 800_000);
    assert!(drained.iter().enumerate().all(|(index, line)| line.number == index as u64 + 1));
}

#[tokio::test]
async fn a_cancelled_wait_loses_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut tail = Tail::new(&path).unwrap();
    let mut lines = Vec::new();
    for number in 0..200 {
        append(&path, format!("{number}\n").as_bytes());
        // Polled once, then dropped: the most impatient select! there can be.
        tokio::select! {
            biased;
            new = tail.next_lines() => lines.extend(new),
            () = std::future::ready(()) => {}
        }
    }
    append(&path, b"end\n");
    lines.extend(lines_until(&mut tail, "end").await);
    let expected: Vec<String> = (0..200).map(|number| number.to_string()).chain(["end".to_owned()]).collect();
    assert_eq!(texts(&lines), expected);
}

#[tokio::test]
async fn a_line_of_ten_megabytes_costs_only_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, &vec![b'x'; 10 << 20]);
    append(&path, b"\nnext\n");
    let mut tail = Tail::new(&path).unwrap();
    let lines = lines_until(&mut tail, "next").await;
    assert_eq!((lines.len(), lines[0].text.len(), lines[0].truncated), (2, 1 << 20, true));
    assert_eq!((lines[1].number, lines[1].truncated), (2, false));
    assert_eq!(tail.discarded(), 9 << 20);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_says_why_and_is_read_once_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::create_dir(&path).unwrap();
    let mut tail = Tail::new(&path).unwrap();
    let trouble = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            if let Some(trouble) = tail.trouble() {
                return trouble;
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(trouble.await.unwrap().contains("not a regular file"));
    std::fs::remove_dir(&path).unwrap();
    append(&path, b"at last\n");
    assert_eq!(texts(&lines_until(&mut tail, "at last").await), ["at last"]);
    assert_eq!(tail.trouble(), None);
}

#[tokio::test]
async fn the_thread_ends_with_the_tail() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    append(&path, b"x\n");
    let mut tail = Tail::new(&path).unwrap();
    lines_until(&mut tail, "x").await;
    let holds = |path: &Path| {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .any(|entry| std::fs::read_link(entry.unwrap().path()).is_ok_and(|target| target == path))
    };
    assert!(holds(&path));
    drop(tail);
    tokio::time::timeout(Duration::from_secs(60), async {
        while holds(&path) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

fn watch_log(
    path: &Path,
) -> (LogWatch, tokio::sync::mpsc::UnboundedReceiver<EventKind>, watch::Sender<Phase>) {
    let (send, events) = tokio::sync::mpsc::unbounded_channel();
    let (phase, phases) = watch::channel(Phase::Measuring);
    (LogWatch::spawn(path, &Rules::builtin(), phases, send).unwrap(), events, phase)
}

async fn next_finding(events: &mut tokio::sync::mpsc::UnboundedReceiver<EventKind>) -> Finding {
    match tokio::time::timeout(Duration::from_secs(60), events.recv()).await.unwrap().unwrap() {
        EventKind::Finding(finding) => finding,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_fatal_line_is_told_while_the_log_grows_and_its_phase_decides_what_it_means() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.log");
    let (watch, mut events, phase) = watch_log(&path);
    append(&path, b"INFO fine\nERROR EngineCore encountered a fatal");
    append(&path, b" error.\nINFO more\n");
    let finding = next_finding(&mut events).await;
    assert_eq!((finding.rule.as_str(), finding.gravity, finding.line), ("engine-fatal", Gravity::Fatal, 2));
    phase.send(Phase::Stopping).unwrap();
    append(&path, b"ERROR EngineCore encountered a fatal error.\n");
    let finding = next_finding(&mut events).await;
    assert_eq!((finding.gravity, finding.line, finding.count), (Gravity::Consequence, 4, 2));
    watch.drain().await;
    assert_eq!((watch.bytes(), watch.trouble()), (std::fs::metadata(&path).unwrap().len(), None));
}

#[tokio::test]
async fn a_drained_watch_has_told_everything_and_also_the_last_words_without_a_line_break() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.log");
    let (watch, mut events, _phase) = watch_log(&path);
    let noise = "INFO all is well and the log is long\n".repeat(100_000);
    append(&path, noise.as_bytes());
    append(&path, b"Bus error (core dumped)");
    tokio::time::timeout(Duration::from_secs(60), watch.drain()).await.unwrap();
    let EventKind::Finding(finding) = events.try_recv().unwrap() else { panic!("no finding") };
    assert_eq!((finding.cause.as_str(), finding.line), ("shm-exhausted", 100_001));
    assert!(events.try_recv().is_err());
}

#[tokio::test]
async fn a_log_that_never_appears_is_no_trouble_and_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let (watch, mut events, _phase) = watch_log(&dir.path().join("never/server.log"));
    tokio::time::timeout(Duration::from_secs(60), watch.drain()).await.unwrap();
    assert_eq!((watch.bytes(), watch.trouble()), (0, None));
    drop(watch);
    // The thread is gone, and with it the sender.
    assert!(tokio::time::timeout(Duration::from_secs(60), events.recv()).await.unwrap().is_none());
}
