//! How fast the guard notices: a fatal line in the log, the death of a process; and how long the saving of evidence takes
//! when half of it does not answer. Wall time, which other people's work on the same cores lengthens; the load average is
//! printed. `cargo bench --bench health_latency`.

#![expect(clippy::unwrap_used, reason = "a bench that cannot prepare its ground has failed")]

#[path = "../tests/keeper_support/mod.rs"]
mod keeper_support;

use futures_util::FutureExt;
use keeper_support::{Rig, exit, text_in};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc::unbounded_channel, watch};
use varcas_guard::event::{EventKind, Gravity, Phase, ProcId};
use varcas_guard::health::log_rules::Rules;
use varcas_guard::health::log_watch::LogWatch;
use varcas_guard::recovery::evidence::{NCCL_RAS, Request, save};
use varcas_guard::supervisor::{os, proc};
use varcas_guard::time::instant_now;

const APPENDS: usize = 1000;
const DEATHS: usize = 200;
const MEGABYTE: usize = 1_000_000;

fn show(what: &str, mut millis: Vec<f64>) {
    millis.sort_by(f64::total_cmp);
    let at = |share: f64| millis[((millis.len() - 1) as f64 * share).round() as usize];
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    println!(
        "{what}: {} times, median {:.2} ms, 90 % {:.2} ms, 99 % {:.2} ms, worst {:.2} ms (load average {})",
        millis.len(),
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0),
        load.split(' ').next().unwrap()
    );
}

/// Memory where there is a file system in it: 200 MB/s would measure the disk.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Appends a megabyte 200 times a second, or as often as the machine can, until told to stop; returns the rate in MB/s.
fn noise(path: &Path, stop: &AtomicBool) -> f64 {
    let line = "(APIServer pid=812) INFO:     127.0.0.1:41212 - \"POST /v1/completions HTTP/1.1\" 200 OK\n";
    let block = line.repeat(MEGABYTE / line.len());
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    let (began, mut written) = (instant_now(), 0usize);
    while !stop.load(Ordering::Relaxed) {
        file.write_all(block.as_bytes()).unwrap();
        written += block.len();
        let due = Duration::from_secs_f64(written as f64 / (200 * MEGABYTE) as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
    written as f64 / MEGABYTE as f64 / began.elapsed().as_secs_f64()
}

async fn append_to_finding(noisy: bool) {
    let rules = Rules::builtin();
    let fatal = |line: &str| rules.classify(line, Phase::Measuring).is_some_and(|(_, g)| g == Gravity::Fatal);
    let lines: Vec<String> = rules
        .rules()
        .iter()
        .map(|rule| format!("{}\n", rule.example))
        .filter(|line| fatal(line.trim_end()))
        .collect();
    let (mut millis, mut rates) = (Vec::new(), Vec::new());
    while millis.len() < APPENDS {
        let dir = folder();
        let path = dir.path().join("server.log");
        let mut file = File::options().append(true).create(true).open(&path).unwrap();
        let (send, mut events) = unbounded_channel();
        let (_phase, phases) = watch::channel(Phase::Measuring);
        let _watch = LogWatch::spawn(&path, &rules, phases, send).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = noisy.then(|| {
            let (path, stop) = (path.clone(), stop.clone());
            std::thread::spawn(move || noise(&path, &stop))
        });
        // Each rule tells its first three matches; some examples share a rule.
        let mut seen = std::collections::HashMap::new();
        for line in lines.iter().cycle().take(3 * lines.len()) {
            let rule = rules.classify(line.trim_end(), Phase::Measuring).unwrap().0.id.clone();
            let count = seen.entry(rule.clone()).or_insert(0);
            *count += 1;
            if *count > 3 || millis.len() == APPENDS {
                continue;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            let began = instant_now();
            file.write_all(line.as_bytes()).unwrap();
            let Some(EventKind::Finding(finding)) = events.recv().await else { panic!("no finding") };
            millis.push(began.elapsed().as_secs_f64() * 1e3);
            assert_eq!(finding.rule, rule);
        }
        stop.store(true, Ordering::Relaxed);
        rates.extend(writer.map(|writer| writer.join().unwrap()));
    }
    let what = if noisy {
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        format!("fatal line to finding, the log growing by {mean:.0} MB/s")
    } else {
        "fatal line to finding, quiet log".to_owned()
    };
    show(&what, millis);
}

/// A server with many children, each of them killed when its turn comes.
async fn death_to_event() {
    let (mut rig, main) = Rig::python(&format!(
        "pids = [child(forever) for _ in range({DEATHS})]\nnote('children', ' '.join(map(str, pids)))\n\
         signal.signal(signal.SIGCHLD, signal.SIG_IGN)\nforever()"
    ))
    .await;
    let text = text_in(&rig.place.file("children")).await;
    let children: Vec<ProcId> =
        text.split_whitespace().filter_map(|pid| proc::id(pid.parse().ok()?)).collect();
    assert_eq!(children.len(), DEATHS);
    for child in &children {
        rig.until("a child", |kind| match kind {
            EventKind::ProcessSeen { proc, .. } if proc == child => Some(()),
            _ => None,
        })
        .await;
    }
    let mut millis = Vec::new();
    for child in &children {
        let began = instant_now();
        os::signal(*child, os::SIGKILL).unwrap();
        rig.until_new("its end", |kind| exit(kind).filter(|(who, _)| who == child)).await;
        millis.push(began.elapsed().as_secs_f64() * 1e3);
    }
    show(&format!("SIGKILL of a grandchild to its exit event, {DEATHS} processes in the tree"), millis);
    let began = instant_now();
    os::signal(main, os::SIGKILL).unwrap();
    rig.exit_of(main).await;
    show("SIGKILL of the server itself to its exit event", vec![began.elapsed().as_secs_f64() * 1e3]);
    rig.kill_all().await;
    rig.quit().await;
}

/// GPU and /metrics do not answer, and a process of many threads is described.
async fn evidence() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for within in [Duration::from_secs(20), Duration::from_millis(500)] {
        let mut millis = Vec::new();
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("server.log");
            std::fs::write(&log, vec![b'x'; MEGABYTE]).unwrap();
            let began = instant_now();
            let items = save(Request {
                dir: dir.path().to_owned(),
                processes: vec![(proc::own_id(), "bench".to_owned())],
                gpus: std::future::pending().boxed(),
                log,
                base_url: Some(format!("http://{}", silent.local_addr().unwrap())),
                ask_stacks: Arc::new(|_| Ok(())),
                py_spy: None,
                nccl_ras: NCCL_RAS,
                redactor: Default::default(),
                within,
            })
            .await;
            millis.push(began.elapsed().as_secs_f64() * 1e3);
            assert!(items.len() >= 4);
        }
        show(&format!("evidence with a silent GPU and a silent server, at most {within:?}"), millis);
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        append_to_finding(false).await;
        append_to_finding(true).await;
        death_to_event().await;
        evidence().await;
    });
}
