//! Runs the tests against each mutant.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A test, and how long it takes.
#[derive(Debug, Clone)]
struct Test {
    binary: usize,
    name: String,
    takes: Duration,
}

pub fn run(scratch: &Path, jobs: &str, binaries: &[&str]) -> Result<(), String> {
    let jobs: usize = jobs.parse().map_err(|_| "JOBS is not a number".to_owned())?;
    let binaries: Vec<PathBuf> = binaries.iter().map(PathBuf::from).collect();
    let mut names = Vec::new();
    for (index, binary) in binaries.iter().enumerate() {
        let list =
            Command::new(binary).arg("--list").current_dir(scratch).output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&list.stdout).into_owned();
        names.extend(text.lines().filter_map(|line| Some((index, line.strip_suffix(": test")?.to_owned()))));
    }
    // Which test reaches which mutant.
    let reached: Mutex<HashMap<u32, Vec<Test>>> = Mutex::default();
    let broken: Mutex<Vec<String>> = Mutex::default();
    each(jobs, &names, |worker, (binary, name)| {
        let cover = scratch.join(format!("cover-{worker}"));
        let _ = fs::remove_file(&cover);
        let begun = Instant::now();
        let test = Test { binary: *binary, name: name.clone(), takes: Duration::ZERO };
        let good = passes(
            scratch,
            &binaries,
            std::slice::from_ref(&test),
            &[("MUTANT_COVER", &cover.to_string_lossy())],
            Duration::from_secs(120),
        );
        let takes = begun.elapsed();
        if !matches!(good, Passed::All) {
            broken.lock().expect("no panic").push(name.clone());
            return;
        }
        // A test may start the program itself, which then reports as well.
        let told = fs::read_to_string(&cover).unwrap_or_default();
        let numbers: BTreeSet<u32> = told.lines().filter_map(|line| line.parse().ok()).collect();
        for number in numbers {
            reached.lock().expect("no panic").entry(number).or_default().push(Test { takes, ..test.clone() });
        }
        let _ = fs::remove_file(&cover);
    });
    let reached = reached.into_inner().expect("no panic");
    let broken = broken.into_inner().expect("no panic");
    println!(
        "{} tests, {} left out because they fail without a mutant: {broken:?}",
        names.len(),
        broken.len()
    );
    let table = fs::read_to_string(scratch.join("mutants.tsv")).map_err(|e| e.to_string())?;
    let only = std::env::var("ONLY").unwrap_or_default();
    let mutants: Vec<(u32, String)> = table
        .lines()
        .filter(|line| line.contains(&only))
        .filter_map(|line| Some((line.split('\t').next()?.parse().ok()?, line.to_owned())))
        .collect();
    // In an order of its own, so that a run that is cut short is a sample; where it was cut, the next one goes on.
    let mut mutants = mutants;
    mutants.sort_by_key(|(number, _)| number.wrapping_mul(2_654_435_769));
    let path = scratch.join("progress.tsv");
    let mut before = fs::read_to_string(&path).unwrap_or_default();
    if std::env::var_os("AGAIN").is_some() {
        before = before.lines().filter(|line| line.starts_with("caught")).map(|l| format!("{l}\n")).collect();
        fs::write(&path, &before).map_err(|e| e.to_string())?;
    }
    let known: HashMap<&str, &str> =
        before.lines().filter_map(|line| line.split_once('\t').map(|(f, l)| (place(l), f))).collect();
    let results: Mutex<BTreeMap<u32, (String, String)>> = Mutex::default();
    mutants.retain(|(number, line)| {
        let Some(fate) = known.get(place(line)) else { return true };
        results.lock().expect("no panic").insert(*number, (line.clone(), (*fate).to_owned()));
        false
    });
    let progress =
        Mutex::new(fs::OpenOptions::new().create(true).append(true).open(&path).map_err(|e| e.to_string())?);
    // How many mutants of a file each test caught: the next ones of the file meet the best first.
    let catches: Mutex<HashMap<(String, Catcher), u32>> = Mutex::default();
    each(jobs, &mutants, |_, (number, line)| {
        let file = line.split('\t').nth(1).unwrap_or_default().to_owned();
        let mut tests = reached.get(number).cloned().unwrap_or_default();
        let mut fate = if tests.is_empty() { "unreached" } else { "survived" };
        {
            let catches = catches.lock().expect("no panic");
            // The cheapest first; most mutants do not live to see the slow ones.
            tests.sort_by_key(|test| {
                let key = (file.clone(), (test.binary, test.name.clone()));
                test.takes / (1 + catches.get(&key).copied().unwrap_or(0))
            });
        }
        let mut rest = tests.as_slice();
        let mut size = 4;
        while !rest.is_empty() && fate == "survived" {
            let (now, later) = rest.split_at(size.min(rest.len()));
            let limit: Duration = now.iter().map(|test| test.takes).sum();
            let limit = limit * 10 + Duration::from_secs(20);
            match passes(scratch, &binaries, now, &[("MUTANT", &number.to_string())], limit) {
                Passed::All => {}
                Passed::Not(None) => fate = "caught",
                Passed::Not(Some(test)) => {
                    *catches.lock().expect("no panic").entry((file.clone(), test)).or_default() += 1;
                    fate = "caught";
                }
                Passed::TooLong => fate = "timeout",
            }
            (rest, size) = (later, size * 4);
        }
        results.lock().expect("no panic").insert(*number, (line.clone(), fate.to_owned()));
        let _ = writeln!(progress.lock().expect("no panic"), "{fate}\t{line}");
        let done = results.lock().expect("no panic").len();
        if done.is_multiple_of(100) {
            println!("{done}, of them {} known before", known.len());
        }
    });
    let results = results.into_inner().expect("no panic");
    let text: String = results.values().map(|(line, fate)| format!("{fate}\t{line}\n")).collect();
    fs::write(scratch.join("results.tsv"), text).map_err(|e| e.to_string())?;
    let mut files: BTreeMap<String, [usize; 4]> = BTreeMap::new();
    for (line, fate) in results.values() {
        let file = line.split('\t').nth(1).unwrap_or_default().to_owned();
        let slot = ["caught", "timeout", "survived", "unreached"].iter().position(|f| f == fate).unwrap_or(3);
        files.entry(file).or_default()[slot] += 1;
    }
    println!(
        "{:<44} {:>7} {:>7} {:>7} {:>8} {:>9}  score",
        "file", "mutants", "caught", "timeout", "survived", "unreached"
    );
    let mut all = [0; 4];
    for (file, counts) in &files {
        (0..4).for_each(|slot| all[slot] += counts[slot]);
        row(file, counts);
    }
    row("all", &all);
    Ok(())
}

fn row(name: &str, counts: &[usize; 4]) {
    let sum: usize = counts.iter().sum();
    let score = (counts[0] + counts[1]) as f64 / sum.max(1) as f64 * 100.0;
    println!(
        "{name:<44} {sum:>7} {:>7} {:>7} {:>8} {:>9}  {score:.1} %",
        counts[0], counts[1], counts[2], counts[3]
    );
}

/// Hands every item to one of `jobs` workers.
fn each<T: Sync>(jobs: usize, items: &[T], work: impl Fn(usize, &T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..jobs {
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(worker, item);
                }
            });
        }
    });
}

/// A mutant without its number, which changes with the mutants before it.
fn place(line: &str) -> &str {
    line.split_once('\t').map_or(line, |(_, place)| place)
}

/// A test, by its binary and name.
type Catcher = (usize, String);

/// How a mutant fared with some tests.
enum Passed {
    All,
    /// At this one it did not, if it was told before the end.
    Not(Option<Catcher>),
    TooLong,
}

/// Whether all of these tests pass; the first that fails ends the rest.
fn passes(
    scratch: &Path,
    binaries: &[PathBuf],
    tests: &[Test],
    env: &[(&str, &str)],
    limit: Duration,
) -> Passed {
    let mut by_binary: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for test in tests {
        by_binary.entry(test.binary).or_default().push(&test.name);
    }
    for (binary, names) in by_binary {
        let mut child = Command::new(&binaries[binary])
            .args(names)
            .args(["--exact", "--test-threads=1"])
            .envs(env.iter().copied())
            .env("CARGO_MANIFEST_DIR", scratch)
            .env("PROPTEST_FAILURE_PERSISTENCE", "off")
            .current_dir(scratch)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a test can be started");
        // Read on a thread, or a talkative test would wait for us for ever.
        let out = child.stdout.take().expect("it is a pipe");
        let failed: Arc<Mutex<Option<String>>> = Arc::default();
        let told = Arc::clone(&failed);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                let name = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"));
                if let Some(name) = name {
                    told.lock().expect("no panic").get_or_insert(name.to_owned());
                }
            }
        });
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                break Some(status);
            }
            let over = begun.elapsed() > limit;
            if over || failed.lock().expect("no panic").is_some() {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        let _ = reader.join();
        let failed = failed.lock().expect("no panic").take().map(|name| (binary, name));
        match status {
            Some(status) if status.success() => {}
            None if failed.is_none() => return Passed::TooLong,
            _ => return Passed::Not(failed),
        }
    }
    Passed::All
}
