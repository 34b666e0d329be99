//! The long trials of salvage, whose results are in docs/measurements-salvage.md:
//!
//!     cargo run --release --example salvage_trials -- prefix TRACE.json...
//!     cargo run --release --example salvage_trials -- damage ROUNDS TRACE.json...
//!     cargo run --release --example salvage_trials -- healthy TRACE.json[.gz]...
//!     cargo run --release --example salvage_trials -- compress LEVEL WORKERS TRACE.json
//!     cargo run --release --example salvage_trials -- curve TRACE.json...
//!     cargo run --release --example salvage_trials -- window TRACE.json
//!     cargo run --release --example salvage_trials -- sample COUNT OUT_DIR TRACE.json...
//!     cargo run --release --example salvage_trials -- linear
//!     cargo run --release --example salvage_trials -- grow BYTES TRACE.json > LARGE.json
//!
//! `healthy` reads complete traces as plain JSON, with all rules on: each must be complete. `prefix` cuts the JSON and its gzip at every byte of the first and last 64 KiB and at 10,000 random places. `window`
//! checks, counts and compresses a finished window as a run does. `linear` times texts that are bad on purpose at doubling
//! sizes; `ONLY="gzip flip"` before `damage` picks one kind, `SHOW=1` shows what differs. `grow` repeats the events of a trace.

#[path = "../tests/salvage/common.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod common;

use common::{rng, spans, text_per_prefix, zip};
use rand::{Rng, RngExt};
use serde::de::IgnoredAny;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use varcas_guard::gz::GzipWriter;
use varcas_guard::recovery::salvage::job::{self, Salvaged, Status};
use varcas_guard::recovery::salvage::places;

const EDGE: usize = 64 << 10;
const RANDOM: usize = 10_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments[1].as_str() {
        "prefix" => arguments[2..].iter().for_each(|path| prefix(Path::new(path))),
        "damage" => {
            let rounds = arguments[2].parse().expect("ROUNDS is a number");
            arguments[3..].iter().for_each(|path| damage(Path::new(path), rounds));
        }
        "healthy" => healthy(&arguments[2..]),
        "sample" => sample(
            arguments[2].parse().expect("COUNT is a number"),
            Path::new(&arguments[3]),
            &arguments[4..],
        ),
        "linear" => linear(),
        "grow" => grow(arguments[2].parse().expect("BYTES is a number"), Path::new(&arguments[3])),
        "compress" => {
            let level = arguments[2].parse().expect("LEVEL is a number");
            let workers = arguments[3].parse().expect("WORKERS is a number");
            let text = std::fs::read(&arguments[4]).expect("the trace can be read");
            let mut writer = GzipWriter::new(Vec::new(), level, workers).expect("memory takes it");
            writer.write_all(&text).expect("memory takes it");
            println!("{} bytes", writer.finish().expect("memory takes it").len());
        }
        "curve" => arguments[2..].iter().for_each(|path| curve(Path::new(path))),
        "window" => {
            let folder = tempfile::tempdir_in("/dev/shm").expect("there is room in /dev/shm");
            let name = folder.path().join("window-0001-rank0.pt.trace.json");
            std::fs::copy(&arguments[2], name).expect("there is room in /dev/shm");
            let (traces, problems) = varcas_guard::workload::profiler::windows::collect(folder.path());
            println!("{} bytes, {} events, {problems:?}", traces[0].bytes, traces[0].events);
        }
        other => panic!("no trial is called {other}"),
    }
}

/// Salvages one file into memory, without compression. `None` if there is nothing to write.
fn salvage(path: &Path) -> (Salvaged, Option<Vec<u8>>) {
    let trace = places::find(&[path.to_owned()], &places::InUse::default()).traces.remove(0);
    let exam = job::examine(path, None).expect("the file can be read");
    let record = job::describe(&trace, &trace.halves[0], &exam);
    let output = matches!(record.status, Status::Repaired | Status::Salvaged).then(|| {
        let room = Vec::with_capacity(exam.text as usize + 4096);
        job::weave(path, &exam, &record, "trial", room, None).expect("memory takes it")
    });
    (record, output)
}

/// The output must be strict JSON and hold exactly the whole events, in order and byte for byte; what else is in it
/// must be made-up names or arrow ends.
fn check(
    record: &Salvaged,
    output: Option<&[u8]>,
    text: &[u8],
    whole: &[std::ops::Range<usize>],
    what: &str,
) {
    assert_eq!(record.events_kept, whole.len() as u64, "{what}");
    let Some(output) = output else {
        assert!(whole.is_empty() || record.status == Status::Complete, "{what}: nothing was written");
        return;
    };
    let list = memchr::memmem::find(output, b"\"traceEvents\": [").expect("there is a list") + 16;
    let mut rest = &output[list..];
    // The output with a 0 for each event that is the same byte for byte as in the original, which serde_json has read:
    // this is strict JSON exactly when the output is, and much shorter.
    let mut short = output[..list].to_vec();
    let mut expected = whole.iter().map(|span| &text[span.clone()]).peekable();
    loop {
        rest = rest.trim_ascii_start();
        if let Some(event) = expected.peek()
            && rest.starts_with(event)
        {
            rest = &rest[event.len()..];
            short.push(b'0');
            expected.next();
        } else if let Some(event) = expected.peek()
            && serde_json::from_slice::<IgnoredAny>(event).is_err()
        {
            // A mended event: nothing but punctuation may differ.
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
            values.next().expect("an event").expect("strict JSON");
            let (mended, after) = rest.split_at(values.byte_offset());
            assert!(letters(mended).eq(letters(event)), "{what}: {}", String::from_utf8_lossy(mended));
            short.extend_from_slice(mended);
            rest = after;
            expected.next();
        } else if rest.starts_with(b"{") {
            let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<serde_json::Value>();
            let event = values.next().expect("an event").expect("strict JSON");
            let kind = event["ph"].as_str().unwrap_or_default();
            assert!(["M", "s", "f"].contains(&kind), "{what}: {event} was invented");
            short.extend_from_slice(&rest[..values.byte_offset()]);
            rest = &rest[values.byte_offset()..];
        } else {
            break;
        }
        rest = rest.trim_ascii_start();
        if let Some(after) = rest.strip_prefix(b",") {
            short.push(b',');
            rest = after;
        }
    }
    assert!(rest.starts_with(b"]"), "{what}");
    short.extend_from_slice(rest);
    serde_json::from_slice::<IgnoredAny>(&short).unwrap_or_else(|e| panic!("{what}: no strict JSON: {e}"));
    assert!(expected.next().is_none(), "{what}: an event is missing");
}

fn letters(text: &[u8]) -> impl Iterator<Item = &u8> {
    text.iter().filter(|byte| byte.is_ascii_alphanumeric())
}

/// Where the events of a trace lie whose JSON is invalid although it is complete: by the lines with which Kineto begins
/// and ends them.
fn spans_by_lines(text: &[u8]) -> Vec<std::ops::Range<usize>> {
    let list = memchr::memmem::find(text, b"\"traceEvents\": [").expect("there is a list");
    let end = memchr::memmem::rfind(text, b"\n  ]").expect("the list ends");
    let begins = memchr::memmem::find_iter(&text[list..end], b"\n  {\n").map(|at| list + at + 3);
    begins
        .map(|from| {
            let len = memchr::memmem::find(&text[from..], b"\n  }").expect("an event ends");
            from..from + len + 4
        })
        .collect()
}

fn prefix(path: &Path) {
    let text = std::fs::read(path).expect("the trace can be read");
    let strict = serde_json::from_slice::<IgnoredAny>(&text).is_ok();
    let all = if strict { spans(&text) } else { spans_by_lines(&text) };
    assert!(!all.is_empty());
    let folder = tempfile::tempdir_in("/dev/shm").expect("there is room in /dev/shm");
    let mut rng = rng(64);
    for gzip in [false, true] {
        let bytes = if gzip { zip(&text) } else { text.clone() };
        let given: Vec<usize> = if gzip { text_per_prefix(&bytes) } else { (0..=bytes.len()).collect() };
        let half = folder.path().join(if gzip { "t.pt.trace.json.gz" } else { "t.pt.trace.json" });
        std::fs::write(&half, &bytes).expect("there is room in /dev/shm");
        let mut cuts: Vec<usize> =
            (0..bytes.len().min(EDGE)).chain(bytes.len().saturating_sub(EDGE)..bytes.len()).collect();
        cuts.extend((0..RANDOM).map(|_| rng.random_range(0..bytes.len())));
        cuts.sort_unstable();
        cuts.dedup();
        let file = std::fs::File::options().write(true).open(&half).expect("the copy can be cut");
        for &cut in cuts.iter().rev() {
            file.set_len(cut as u64).expect("the copy can be cut");
            let (record, output) = salvage(&half);
            let whole = all.partition_point(|span| span.end <= given[cut]);
            check(
                &record,
                output.as_deref(),
                &text,
                &all[..whole],
                &format!("{} cut at {cut}", half.display()),
            );
        }
        println!(
            "{}{}: {} bytes, {} cuts, all exact",
            path.display(),
            if gzip { " (gzip)" } else { "" },
            bytes.len(),
            cuts.len()
        );
    }
}

/// Size and CPU time of every level, best of five, on one thread.
fn curve(path: &Path) {
    let text = std::fs::read(path).expect("the trace can be read");
    println!("{}: {} bytes", path.display(), text.len());
    for level in 1..=9 {
        let mut best = u64::MAX;
        let mut size = 0;
        for _ in 0..5 {
            let began = cpu();
            let mut writer = GzipWriter::new(Vec::new(), level, 1).expect("memory takes it");
            writer.write_all(&text).expect("memory takes it");
            size = writer.finish().expect("memory takes it").len();
            best = best.min(cpu() - began);
        }
        println!("ours {level}: {:.4} CPU s, {size} bytes", best as f64 / 1e9);
    }
}

/// A gzip's text is written out first: what its checksum covers is not judged.
fn healthy(traces: &[String]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("there is room in /dev/shm");
    let half = folder.path().join("t.pt.trace.json");
    let (mut events, mut wrong) = (0, 0);
    for path in traces {
        let raw = std::fs::read(path).expect("the trace can be read");
        let text = if raw.starts_with(&[0x1f, 0x8b]) { common::unzip(&raw) } else { raw };
        std::fs::write(&half, &text).expect("there is room in /dev/shm");
        let (record, _) = salvage(&half);
        events += record.events_kept;
        if record.status != Status::Complete {
            wrong += 1;
            println!("{path}: {} {} dropped, {}", record.status, record.events_dropped, record.note);
        }
    }
    println!("{} traces, {events} events, {wrong} not complete", traces.len());
}

fn hurt(kind: &str, bytes: &[u8], rng: &mut impl Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let at = rng.random_range(0..bytes.len());
    let len = rng.random_range(1..8192).min(bytes.len() - at);
    match kind {
        "flip" => out[at] ^= 1 << rng.random_range(0..8),
        "zero" => out[at..at + len].fill(0),
        "double" => drop(out.splice(at..at, bytes[at..at + len].to_vec())),
        _ => drop(out.drain(at..at + len)),
    }
    out
}

/// The events of an uncut trace, to tell those of an output from others.
struct Original<'t> {
    text: &'t [u8],
    spans: Vec<std::ops::Range<usize>>,
    /// By their bytes; of several that are alike the first.
    index: HashMap<&'t [u8], usize>,
}

impl<'t> Original<'t> {
    fn new(text: &'t [u8]) -> Self {
        let spans = spans(text);
        let mut index = HashMap::new();
        for (number, span) in spans.iter().enumerate() {
            index.entry(&text[span.clone()]).or_insert(number);
        }
        Self { text, spans, index }
    }

    /// The events of an output that the original has not, compared as values, or not as often. The output must be strict JSON.
    fn strangers(&self, output: &[u8], made_up: bool) -> Vec<String> {
        let list = memchr::memmem::find(output, b"\"traceEvents\": [").expect("there is a list") + 16;
        let mut rest = &output[list..];
        // The output with a 0 for each event that is an event of the original byte for byte: strict JSON exactly if the output
        // is, and much shorter.
        let mut short = output[..list].to_vec();
        let mut times = vec![0u8; self.spans.len()];
        let (mut next, mut strangers) = (0, Vec::new());
        loop {
            rest = rest.trim_ascii_start();
            let expected = self.spans.get(next).map(|span| &self.text[span.clone()]);
            let (number, len) = if let Some(event) = expected.filter(|event| rest.starts_with(event)) {
                (Some(next), event.len())
            } else if rest.starts_with(b"{") {
                let mut values = serde_json::Deserializer::from_slice(rest).into_iter::<IgnoredAny>();
                values.next().expect("an event").expect("strict JSON");
                let len = values.byte_offset();
                (self.index.get(&rest[..len]).copied(), len)
            } else {
                break;
            };
            let event = &rest[..len];
            if let Some(number) = number {
                next = number + 1;
                times[number] = times[number].saturating_add(1);
                short.push(b'0');
            } else {
                short.extend_from_slice(event);
            }
            let kind = || {
                let value: serde_json::Value = serde_json::from_slice(event).expect("strict JSON");
                (value["ph"].as_str().unwrap_or_default().to_owned(), value)
            };
            if number.is_none_or(|number| times[number] == 2) {
                let (kind, value) = kind();
                let given_back = made_up && ["M", "s", "f"].contains(&&*kind);
                let alike = || {
                    self.spans.iter().any(|span| {
                        serde_json::from_slice::<serde_json::Value>(&self.text[span.clone()])
                            .is_ok_and(|known| known == value)
                    })
                };
                let again = number.is_some_and(|number| {
                    // Names stand more than once in undamaged traces, too.
                    kind != "M" && times[number] == 2
                });
                if !given_back && (again || (number.is_none() && !alike())) {
                    strangers.push(format!("{}{value}", if again { "twice: " } else { "" }));
                }
            }
            rest = rest[len..].trim_ascii_start();
            if let Some(after) = rest.strip_prefix(b",") {
                short.push(b',');
                rest = after;
            }
        }
        assert!(rest.starts_with(b"]"), "the list ends");
        short.extend_from_slice(rest);
        serde_json::from_slice::<IgnoredAny>(&short).expect("strict JSON");
        strangers
    }
}

fn damage(path: &Path, rounds: usize) {
    let text = std::fs::read(path).expect("the trace can be read");
    let original = Original::new(&text);
    let total = original.spans.len();
    let raw = zip(&text);
    let folder = tempfile::tempdir_in("/dev/shm").expect("there is room in /dev/shm");
    let mut rng = rng(std::env::var("SEED").map_or(1000, |seed| seed.parse().expect("SEED is a number")));
    let show = std::env::var_os("SHOW").is_some();
    for gzip in [false, true] {
        for kind in ["flip", "zero", "double", "remove"] {
            let title = format!("{}{kind}", if gzip { "gzip " } else { "" });
            if std::env::var("ONLY").is_ok_and(|only| only != title) {
                continue;
            }
            let began = cpu();
            let half = folder.path().join(if gzip { "t.pt.trace.json.gz" } else { "t.pt.trace.json" });
            let mut statuses: BTreeMap<String, usize> = BTreeMap::new();
            let (mut strange_runs, mut strange_events, mut kept, mut least) = (0, 0, 0, usize::MAX);
            for round in 0..rounds {
                let broken = hurt(kind, if gzip { &raw } else { &text }, &mut rng);
                std::fs::write(&half, &broken).expect("there is room in /dev/shm");
                let (record, output) = salvage(&half);
                *statuses.entry(record.status.to_string()).or_default() += 1;
                kept += record.events_kept as usize;
                if show && gzip && kind == "flip" && record.status != Status::Repaired {
                    let bit = broken.iter().zip(&raw).position(|(new, old)| new != old);
                    println!(
                        "  round {round}: byte {bit:?} of {}: {} {}",
                        raw.len(),
                        record.status,
                        record.note
                    );
                }
                least = least.min(record.events_kept as usize);
                let output = match output {
                    Some(output) => output,
                    None if record.status == Status::Complete && !gzip => broken,
                    None => continue,
                };
                let strange = original.strangers(&output, record.status == Status::Salvaged);
                strange_runs += usize::from(!strange.is_empty());
                strange_events += strange.len();
                if show && !strange.is_empty() {
                    if let Some(folder) = std::env::var_os("KEEP") {
                        let name = format!("{}-{round}.json", title.replace(' ', "-"));
                        std::fs::copy(&half, Path::new(&folder).join(name)).expect("KEEP is a folder");
                    }
                    println!(
                        "  {title} round {round}: {} strange, {}: {}",
                        strange.len(),
                        record.note,
                        strange[0]
                    );
                }
            }
            println!(
                "{} {title}: {rounds} rounds, {:.1} CPU s, {statuses:?}, kept {:.2} % on average, {:.1} % at least, {strange_runs} outputs with {strange_events} events that differ",
                path.display(),
                (cpu() - began) as f64 / 1e9,
                kept as f64 / (rounds * total) as f64 * 100.0,
                least as f64 / total as f64 * 100.0,
            );
        }
    }
}

/// Nanoseconds that this thread has been on a core.
fn cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux counts them");
    text.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

fn linear() {
    let head = "{\n  \"schemaVersion\": 1,\n  \"traceEvents\": [\n";
    let event = |name: &str| {
        format!(
            "  {{\n    \"ph\": \"X\", \"cat\": \"cpu_op\", \"name\": \"{name}\", \"pid\": 1, \"tid\": 2,\n    \"ts\": 1.5, \"dur\": 2\n  }},\n"
        )
    };
    let patterns: Vec<(&str, &str, String)> = vec![
        ("good events", head, event("good")),
        ("quotes to mend", head, event("f(\"x\", \"y\")")),
        ("quotes that cannot be mended", head, event("a\": \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\"")),
        (
            "more guesses than can be made",
            head,
            event("good")
                + &event("good").replacen("2\n", &format!("[{}\"x\"], 2\n", "\"x\", ".repeat(30)), 1),
        ),
        ("a quote too few", head, event("good").replacen("\"cat\"", "\"cat", 1)),
        ("events that begin in events", head, "  {\n    \"ph\": \"X\",\n".to_owned()),
        ("braces", head, "{".to_owned()),
        ("braces on lines", head, "\n{\"".to_owned()),
        ("lists in objects", head, ",{\"a\":[".to_owned()),
        ("objects in objects", head, "{\"a\":".to_owned()),
        ("brackets", head, "[".to_owned()),
        ("commas", head, ",".to_owned()),
        ("one endless string", head, "{\"a\": \"".to_owned() + &"x".repeat(1 << 16)),
        ("one endless list", "{\"traceEvents\": [{\"a\": [1", ",1".to_owned()),
        ("keys without values", "{", "\n  \"key".to_owned()),
        ("entries", "{\"a\": 1", ",\n  \"key\": [1, 2]".to_owned()),
        ("names of the trace", head, "\"traceName\"".to_owned()),
        ("zero bytes", head, "\0".to_owned()),
        ("blanks", head, " ".to_owned()),
        ("lanes", head, event("good") + &event("other").replace("\"tid\": 2", "\"tid\": 3")),
    ];
    let folder = tempfile::tempdir_in("/dev/shm").expect("there is room in /dev/shm");
    for (name, head, pattern) in patterns {
        let mut line = format!("{name:32}");
        for megabytes in [1, 2, 4, 8, 16] {
            let text = [head, &pattern.repeat((megabytes << 20) / pattern.len())].concat();
            let path = folder.path().join("t.pt.trace.json");
            std::fs::write(&path, text).expect("there is room in /dev/shm");
            let began = cpu();
            salvage(&path);
            line.push_str(&format!(" {:>8.1}", (cpu() - began) as f64 / 1e6));
        }
        println!("{line} ms for 1, 2, 4, 8, 16 MiB");
    }
}

/// Writes a trace of about this many bytes that repeats the events of another.
fn grow(bytes: usize, path: &Path) {
    let text = std::fs::read(path).expect("the trace can be read");
    let events = spans(&text);
    let (from, to) = (events[0].start, events[events.len() - 1].end);
    let out = std::io::stdout();
    let mut out = std::io::BufWriter::with_capacity(1 << 20, out.lock());
    let mut written = text.len();
    out.write_all(&text[..to]).expect("stdout takes it");
    while written < bytes {
        out.write_all(b",\n  ").expect("stdout takes it");
        out.write_all(&text[from..to]).expect("stdout takes it");
        written += to - from + 4;
    }
    out.write_all(&text[to..]).expect("stdout takes it");
}

fn sample(count: usize, out: &Path, traces: &[String]) {
    std::fs::create_dir_all(out).expect("the output folder can be made");
    let mut rng = rng(50);
    for number in 0..count {
        let path = PathBuf::from(&traces[number % traces.len()]);
        let text = std::fs::read(&path).expect("the trace can be read");
        let gzip = number % 2 == 1;
        let bytes = if gzip { zip(&text) } else { text };
        let cut = rng.random_range(bytes.len() / 20..bytes.len());
        let name = format!("cut{number:02}.pt.trace.json{}", if gzip { ".gz" } else { "" });
        std::fs::write(out.join(name), &bytes[..cut]).expect("the output folder has room");
    }
}
