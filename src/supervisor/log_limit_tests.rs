use super::*;
use crate::cut_log::{Part, read};
use crate::health::follow::{Follower, Piece};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::AtomicBool;

const LIMIT: u64 = 1_000_000;

fn limiter(log: &Path) -> Limiter {
    let redactor = Arc::new(Redactor::of_values(vec!["geheimnis".to_owned()]));
    Limiter { limit: LIMIT, redactor, log: log.to_owned(), held: None, told: 0, length: 0 }
}

fn line(number: u64) -> String {
    format!("{number} {}\n", "x".repeat(usize::try_from(number % 97).unwrap()))
}

/// Every line that stands in the log or in its piece, with the number that its reader gives it; and what is missing.
fn numbered(log: &Path) -> (Vec<(u64, String)>, (u64, u64)) {
    let (mut lines, mut number, mut partial, mut gone) = (Vec::new(), 0, Vec::new(), (1, 0));
    read(log, &File::open(log).unwrap(), &mut |part| {
        match part {
            Part::Bytes(bytes) => {
                for byte in bytes {
                    partial.push(*byte);
                    if *byte == b'\n' {
                        number += 1;
                        lines.push((number, String::from_utf8(std::mem::take(&mut partial)).unwrap()));
                    }
                }
            }
            Part::Missing { first, last, .. } => {
                assert_eq!(first, number + 1);
                (gone, number) = ((first, last), last);
            }
        }
        Ok(())
    })
    .unwrap();
    assert!(partial.is_empty());
    (lines, gone)
}

#[test]
fn no_line_is_lost_or_read_twice_while_a_log_is_written_read_and_cut_at_once() {
    const LINES: u64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("vllm_server.log");
    let (seen, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let read_by_watch = std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut file = File::options().append(true).create(true).open(&log).unwrap();
            for number in 1..=LINES {
                file.write_all(line(number).as_bytes()).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        let reader = threads.spawn(|| {
            let (mut follower, mut text) = (Follower::new(&log), Vec::new());
            loop {
                let is_last = done.load(Ordering::Acquire);
                let more = follower.look(1 << 20, &mut |piece| match piece {
                    Piece::Bytes(bytes) => {
                        text.extend_from_slice(bytes);
                        seen.store(text.len() as u64, Ordering::Release);
                    }
                    Piece::Break(why) => panic!("the reader was disturbed: {why:?}"),
                });
                if is_last && !more.unwrap() {
                    return text;
                }
            }
        });
        let mut limiter = limiter(&log);
        while !reader.is_finished() {
            limiter.look(&|| seen.load(Ordering::Acquire), false).unwrap();
        }
        limiter.look(&|| seen.load(Ordering::Acquire), false).unwrap();
        assert!(limiter.held.as_ref().unwrap().cut.is_some());
        reader.join().unwrap()
    });
    let all: String = (1..=LINES).map(line).collect();
    assert!(read_by_watch == all.as_bytes(), "the reader has seen every line once");
    for closed in [false, true] {
        if closed {
            close_up(&log).unwrap();
            // Once more: whoever cleans up after a guard that died does not know that it is done.
            close_up(&log).unwrap();
            assert!(fs::metadata(&log).unwrap().len() < LIMIT);
        }
        let (lines, gone) = numbered(&log);
        for (number, text) in &lines {
            assert_eq!(*text, line(*number));
        }
        assert_eq!(lines.len() as u64 + (gone.1 + 1 - gone.0), LINES, "{gone:?}");
        assert_eq!((lines[0].0, lines.last().unwrap().0), (1, LINES));
        let taken = fs::metadata(&log).unwrap().blocks() * 512 + fs::metadata(piece(&log)).unwrap().len();
        assert!(taken < LIMIT, "{taken}");
    }
}

#[test]
fn what_nobody_has_read_yet_stays() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let all: String = (1..=60_000).map(line).collect();
    fs::write(&log, &all).unwrap();
    let mut limiter = limiter(&log);
    // All the lines before it could be taken out.
    let seen = all[..500_000].rfind('\n').unwrap() as u64 + 1;
    limiter.look(&|| seen, false).unwrap();
    let cut = limiter.held.as_ref().unwrap().cut.unwrap();
    assert!(cut.to <= seen - 64, "the reader knows the file again by the bytes before {seen}: {cut:?}");
    assert_eq!(numbered(&log).0.last().unwrap().0, 60_000);
    // Also for whoever knows nothing of holes a line begins where the first begins that stays.
    assert_eq!(fs::read(&log).unwrap()[usize::try_from(cut.to).unwrap() - 1], b'\n');
}

#[test]
fn of_a_flood_that_outgrows_the_limit_the_head_stays_and_the_first_behind_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    fs::write(&log, (1..=60_000).map(line).collect::<String>()).unwrap();
    let mut limiter = limiter(&log);
    limiter.look(&|| u64::MAX, false).unwrap();
    let cut = limiter.held.as_ref().unwrap().cut.unwrap();
    let bytes = |lines: std::ops::RangeInclusive<u64>| lines.map(|n| line(n).len() as u64).sum::<u64>();
    // Up to the last whole line.
    assert!((LIMIT / 8 - 100..=LIMIT / 8).contains(&cut.from), "{cut:?}");
    assert_eq!(bytes(1..=cut.first - 1), cut.from);
    let kept = bytes(cut.first..=cut.kept);
    assert!((LIMIT / 16..LIMIT / 4).contains(&kept), "{kept}: {cut:?}");
}

#[test]
fn what_is_taken_out_is_told_each_time_twice_as_much_is_gone_and_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut file = File::options().append(true).create(true).open(&log).unwrap();
    let mut limiter = limiter(&log);
    let (facts, mut told) = tokio::sync::mpsc::unbounded_channel();
    for first in 0..40 {
        let text: String = (first * 4000 + 1..=first * 4000 + 4000).map(line).collect();
        file.write_all(text.as_bytes()).unwrap();
        limiter.look(&|| u64::MAX, false).unwrap();
        limiter.tell(false, &facts);
    }
    let mut heard = || match told.try_recv() {
        Ok(EventKind::LogCut(cut)) => Some(cut.last),
        _ => None,
    };
    let lasts: Vec<u64> = std::iter::from_fn(&mut heard).collect();
    assert!(lasts.len() > 2 && lasts.windows(2).all(|pair| pair[1] >= 2 * pair[0]), "{lasts:?}");
    let last = limiter.held.as_ref().unwrap().cut.unwrap().last;
    assert!(last > lasts[lasts.len() - 1]);
    for _ in 0..2 {
        limiter.tell(true, &facts);
    }
    assert_eq!((heard(), heard()), (Some(last), None));
}

#[test]
fn the_first_that_is_taken_out_is_kept_without_secrets_and_the_rest_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut limiter = limiter(&log);
    let mut random = 1_u64;
    let mut number = 0;
    while number < 40_000 {
        let mut file = File::options().append(true).create(true).open(&log).unwrap();
        let mut text = String::new();
        for _ in 0..4000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            number += 1;
            writeln!(text, "{number} geheimnis {random:x}").unwrap();
        }
        file.write_all(text.as_bytes()).unwrap();
        limiter.look(&|| u64::MAX, false).unwrap();
    }
    let held = limiter.held.as_ref().unwrap();
    let cut = held.cut.unwrap();
    assert!(cut.kept > cut.first && cut.kept < cut.last, "{cut:?}");
    assert!(held.piece > LIMIT / 8 && held.piece < LIMIT / 2, "{}", held.piece);
    assert_eq!(fs::metadata(piece(&log)).unwrap().permissions().mode() & 0o777, 0o600);
    let (lines, gone) = numbered(&log);
    assert_eq!(gone, (cut.kept + 1, cut.last));
    for (number, text) in &lines {
        let is_kept = (cut.first..=cut.kept).contains(number);
        assert_eq!(text.contains("geheimnis"), !is_kept, "{text}");
        assert!(text.starts_with(&format!("{number} ")), "{number}: {text}");
    }
}

#[test]
fn a_line_that_never_ends_does_not_fill_the_disk_either() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    fs::write(&log, [b"first\n".to_vec(), vec![b'x'; 12 << 20], b"\nlast\n".to_vec()].concat()).unwrap();
    let mut limiter = limiter(&log);
    limiter.look(&|| u64::MAX, false).unwrap();
    close_up(&log).unwrap();
    let length = fs::metadata(&log).unwrap().len();
    assert!(length < 5 << 20, "a chunk of it may stay: {length}");
    let (lines, gone) = numbered(&log);
    assert_eq!(gone, (2, 1), "no whole line is missing");
    assert_eq!((lines[0].1.as_str(), lines[2].1.as_str(), lines.len()), ("first\n", "last\n", 3));
}

#[test]
fn a_log_that_somebody_else_rotates_or_cuts_is_limited_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let all: String = (1..=60_000).map(line).collect();
    let mut limiter = limiter(&log);
    let cut = |limiter: &mut Limiter| {
        limiter.look(&|| u64::MAX, false).unwrap();
        limiter.look(&|| u64::MAX, false).unwrap();
        limiter.held.as_ref().unwrap().cut
    };
    fs::write(&log, &all).unwrap();
    assert!(cut(&mut limiter).is_some());
    fs::write(&log, "1 \n").unwrap();
    assert_eq!(cut(&mut limiter), None);
    fs::rename(&log, dir.path().join("log.1")).unwrap();
    fs::write(&log, &all).unwrap();
    limiter.look(&|| u64::MAX, false).unwrap();
    assert_eq!(limiter.held.as_ref().unwrap().cut, None, "its reader may not have noticed yet");
    assert!(cut(&mut limiter).is_some_and(|cut| cut.kept < cut.first), "the piece belongs to the log before");
    assert!(numbered(&log).0.iter().all(|(number, text)| *text == line(*number)));
}

#[test]
fn a_log_that_is_short_or_whole_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut limiter = limiter(&log);
    limiter.look(&|| u64::MAX, false).unwrap();
    close_up(&log).unwrap();
    // More than is left at the end of one that was cut.
    let all: String = (1..=12_000).map(line).collect();
    fs::write(&log, &all).unwrap();
    limiter.look(&|| u64::MAX, false).unwrap();
    limiter.look(&|| u64::MAX, true).unwrap();
    close_up(&log).unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), all);
    assert!(!piece(&log).exists());
}

#[test]
fn at_the_end_so_little_is_left_that_closing_the_hole_keeps_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("vllm_server.log");
    let mut file = File::options().append(true).create(true).open(&log).unwrap();
    let mut limiter = limiter(&log);
    let mut number = 0;
    let mut write = |bytes: u64| {
        let mut text = String::new();
        while (text.len() as u64) < bytes {
            number += 1;
            text.push_str(&line(number));
        }
        file.write_all(text.as_bytes()).unwrap();
    };
    let left = |limiter: &Limiter| limiter.held.as_ref().unwrap().taken().unwrap();
    write(LIMIT);
    limiter.look(&|| u64::MAX, false).unwrap();
    write(LIMIT / 4);
    limiter.look(&|| u64::MAX, false).unwrap();
    assert!(left(&limiter) > LIMIT / 2, "within the limit, so nothing was taken out");
    limiter.look(&|| u64::MAX, true).unwrap();
    assert!(left(&limiter) <= LIMIT / 2, "{}", left(&limiter));
}

#[test]
fn the_faster_a_log_grows_the_sooner_it_is_looked_at() {
    let limit = 320 << 20;
    let mut pause = LOOK;
    // A thirty-second of the limit in a pause is just right.
    assert_eq!(pause_after(10 << 20, limit, pause), pause);
    pause = pause_after(100 << 20, limit, pause);
    assert_eq!(pause, LOOK / 10);
    // The same pace keeps it, a slower one lengthens it, silence ends it.
    assert_eq!(pause_after(10 << 20, limit, pause), pause);
    assert_eq!(pause_after(5 << 20, limit, pause), pause * 2);
    assert_eq!(pause_after(0, limit, pause), LOOK);
    assert_eq!(pause_after(u64::MAX, limit, pause), SOONEST);
}
