//! What the senses cost: the scan of a log of 1 GB beside `rg` and `grep` with the same patterns, and the samples. CPU time,
//! not wall time, because other people work on the same cores. `cargo bench --bench health`.

#![expect(clippy::unwrap_used, reason = "a bench that cannot prepare its ground has failed")]

use nix::sys::resource::{Usage, UsageWho, getrusage};
use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::{mpsc::unbounded_channel, watch};
use varcas_guard::event::{GpuSample, Phase, Reading};
use varcas_guard::health::follow::{Follower, Piece};
use varcas_guard::health::gpu::ScriptedGpu;
use varcas_guard::health::log_rules::{LogScanner, Rules};
use varcas_guard::health::metrics;
use varcas_guard::health::process::Sampler;
use varcas_guard::health::sampler::{SamplerConfig, spawn};

const GIGABYTE: u64 = 1_000_000_000;
const RUNS: usize = 5;

fn seconds(usage: &Usage) -> f64 {
    let time = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    time(usage.user_time()) + time(usage.system_time())
}

/// CPU seconds of this process (all threads) for `work`.
fn cpu_of(work: impl FnOnce()) -> f64 {
    let before = seconds(&getrusage(UsageWho::RUSAGE_SELF).unwrap());
    work();
    seconds(&getrusage(UsageWho::RUSAGE_SELF).unwrap()) - before
}

fn cpu_of_child(command: &mut Command) -> (f64, String) {
    let before = seconds(&getrusage(UsageWho::RUSAGE_CHILDREN).unwrap());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (seconds(&getrusage(UsageWho::RUSAGE_CHILDREN).unwrap()) - before, text)
}

fn show(what: &str, mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    let shown = runs.iter().fold(String::new(), |mut text, run| {
        let _ = write!(text, " {run:.3}");
        text
    });
    println!("{what}:{shown}");
    runs[runs.len() / 2]
}

/// Lines as a server under load writes them, with numbers that change; a fatal line at the very end.
fn write_log(path: &Path) {
    let mut file = BufWriter::with_capacity(1 << 20, std::fs::File::create(path).unwrap());
    let (mut written, mut number) = (0, 0u64);
    let mut line = String::new();
    while written < GIGABYTE {
        line.clear();
        number += 1;
        let (a, b) = (number % 50_000 + 10_000, number * 7919 % 97);
        let time = format!("11-24 {:02}:{:02}:{:02}", number / 3600 % 24, number / 60 % 60, number % 60);
        let _ = match number % 40 {
            0 => writeln!(
                line,
                "(APIServer pid=812) INFO {time} [loggers.py:257] Engine 000: Avg prompt throughput: {a}.{b} tokens/s, \
                 Avg generation throughput: {b}.5 tokens/s, Running: {b} reqs, Waiting: 0 reqs, GPU KV cache usage: \
                 {b}.1%, Prefix cache hit rate: 0.0%"
            ),
            1 => {
                writeln!(line, "(EngineCore_DP0 pid=945) DEBUG {time} [core.py:812] EngineCore loop active.")
            }
            2 => writeln!(
                line,
                "(EngineCore_DP0 pid=945) WARNING {time} [scheduler.py:{b}] Request cmpl-{a} was preempted"
            ),
            _ => writeln!(
                line,
                "(APIServer pid=812) INFO:     127.0.0.1:{a} - \"POST /v1/completions HTTP/1.1\" 200 OK"
            ),
        };
        file.write_all(line.as_bytes()).unwrap();
        written += line.len() as u64;
    }
    file.write_all(b"(EngineCore_DP0 pid=945) ERROR [core.py:946] EngineCore encountered a fatal error.\n")
        .unwrap();
    file.flush().unwrap();
}

/// The same patterns in the dialect of `grep -E`.
fn grep_patterns(rules: &Rules) -> String {
    let mut text = String::new();
    for rule in rules.rules() {
        let pattern = rule.pattern.replace("(?:", "(").replace("\\d", "[0-9]").replace("\\w", "[A-Za-z0-9_]");
        text.push_str(&pattern.replace("\\S", "[^ ]").replace("{0,", "{1,"));
        text.push('\n');
    }
    text
}

fn scan_file(rules: &Rules, path: &Path) -> usize {
    let mut follower = Follower::new(path);
    let mut scanner = LogScanner::new();
    let mut findings = Vec::new();
    let mut piece = |piece: Piece<'_>| {
        if let Piece::Bytes(bytes) = piece {
            scanner.push(rules, Phase::Measuring, bytes, &mut findings);
        }
    };
    while follower.look(1 << 20, &mut piece).unwrap() {}
    findings.len()
}

fn scanning() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("server.log");
    write_log(&path);
    let size = std::fs::metadata(&path).unwrap().len() as f64 / 1e9;
    let rules = Rules::builtin();
    println!(
        "log of {size:.3} GB in the page cache, {} rules; CPU seconds of {RUNS} runs, sorted",
        rules.rules().len()
    );
    let patterns = dir.path().join("patterns");
    std::fs::write(&patterns, grep_patterns(&rules)).unwrap();
    let verbatim = dir.path().join("verbatim");
    let all: Vec<&str> = rules.rules().iter().map(|rule| rule.pattern.as_str()).collect();
    std::fs::write(&verbatim, all.join("\n")).unwrap();
    let has_rg = Command::new("rg").arg("--version").output().is_ok();
    let (mut ours, mut rg, mut grep, mut count_lines) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(cpu_of(|| assert_eq!(scan_file(&rules, &path), 1)));
        if has_rg {
            let mut command = Command::new("rg");
            command.args(["--no-config", "--threads", "1", "-a", "-c", "-f"]).arg(&verbatim).arg(&path);
            let (cpu, matches) = cpu_of_child(&mut command);
            assert_eq!(matches, "1");
            rg.push(cpu);
        }
        let mut command = Command::new("grep");
        command.env("LC_ALL", "C").args(["-c", "-E", "-f"]).arg(&patterns).arg(&path);
        let (cpu, matches) = cpu_of_child(&mut command);
        assert_eq!(matches, "1");
        grep.push(cpu);
        count_lines.push(cpu_of_child(Command::new("wc").arg("-l").arg(&path)).0);
    }
    let ours = show("read and scan, all rules", ours);
    if has_rg {
        let rg = show("rg -a -c -f patterns    ", rg);
        println!("median: {:.2} times rg", rg / ours);
    }
    let grep = show("grep -c -E -f patterns  ", grep);
    show("wc -l                   ", count_lines);
    println!("median: {:.2} GB/s of CPU time, {:.2} times grep", size / ours, grep / ours);
}

fn sampling() {
    let mut children: Vec<_> =
        (0..20).map(|_| Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap()).collect();
    let mut sampler = Sampler::new();
    let processes: Vec<_> =
        children.iter().map(|child| sampler.stat(child.id() as i32).unwrap().proc).collect();
    let rounds = 2000;
    let runs = (0..RUNS).map(|_| {
        1e6 / f64::from(rounds)
            * cpu_of(|| (0..rounds).for_each(|_| assert_eq!(sampler.sample(&processes).len(), 20)))
    });
    let plain = show("microseconds of CPU for one sample of 20 processes", runs.collect());
    let runs = (0..RUNS).map(|_| {
        1e6 / f64::from(rounds)
            * cpu_of(|| (0..rounds).for_each(|_| assert_eq!(sampler.sample_details(&processes).len(), 20)))
    });
    let details = show("the same with bytes read and written and wait channels", runs.collect());
    let mean = (4.0 * plain + details) / 5.0;
    println!("medians: {:.3} % of a core at one sample a second, every fifth with details", mean / 1e4);

    let gpu = GpuSample {
        gpu: 0,
        util: Reading::Value(9),
        mem_util: Reading::Value(4),
        power_w: Reading::Value(142.0),
        mem_used: Reading::Value(1),
        mem_total: Reading::Value(2),
        xid: None,
        details: None,
    };
    let gpus = ScriptedGpu::new().then_sample(Reading::Value(vec![gpu; 8]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let length = Duration::from_secs(30);
    let cpu = cpu_of(|| {
        runtime.block_on(async {
            let (_url, base_url) = watch::channel(None);
            let (_pids, pids) = watch::channel(processes.clone());
            let (send, mut events) = unbounded_channel();
            let handle = spawn(SamplerConfig::new(base_url, pids, Box::new(gpus)), send).unwrap();
            let _ = tokio::time::timeout(length, async { while events.recv().await.is_some() {} }).await;
            drop(handle);
        });
    });
    println!(
        "whole sampler, 20 processes and 8 scripted GPUs, no scrape, {} s: {:.3} % of a core",
        length.as_secs(),
        cpu / length.as_secs_f64() * 100.0
    );
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn parsing() {
    let mut page = String::new();
    for series in 0..700 {
        let _ = writeln!(
            page,
            "vllm:request_time_seconds_bucket{{engine=\"0\",le=\"{series}\",model_name=\"tiny\"}} {series}.0"
        );
    }
    for name in [
        "iteration_tokens_total_count",
        "prompt_tokens_total",
        "generation_tokens_total",
        "num_requests_running",
    ] {
        let _ = writeln!(page, "vllm:{name}{{engine=\"0\",model_name=\"tiny\"}} 4.0");
    }
    page.push_str(
        "vllm:num_requests_waiting{engine=\"0\"} 1.0\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.5\n",
    );
    let rounds = 2000;
    let runs = (0..RUNS).map(|_| {
        1e6 / f64::from(rounds)
            * cpu_of(|| (0..rounds).for_each(|_| assert!(metrics::parse(&page).value().is_some())))
    });
    show(&format!("microseconds of CPU to parse a metrics page of {} KiB", page.len() >> 10), runs.collect());
}

fn main() {
    scanning();
    sampling();
    parsing();
}
