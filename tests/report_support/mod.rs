//! Journals made up for tests of the report: what a run could have said, event by event.
#![expect(dead_code, reason = "every user needs another part of this")]
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::collections::BTreeMap;
use std::time::Duration;
use varcas_guard::config::Plan;
use varcas_guard::event::profile::{GpuProfile, KernelShare, OperatorShare, ProfileSummary, Spread};
use varcas_guard::event::{
    BenchSummary, Check, Confidence, Ending, EngineSample, Event, EventKind, Evidence, ExitHow, Finding,
    GpuSample, Gravity, HangKind, JOURNAL_VERSION, Latency, Leftover, LoadProgress, Mitigation, Outcome,
    Phase, ProcId, ProcSample, Quote, Reading, Retry, RuledOut, SavedTrace, ServerFacts, Severity, Suspicion,
    SuspicionStep, Trace, Verdict, WindowContent, WindowEvent, WindowLine, WorkloadSummary,
};
use varcas_guard::time::Stamp;

/// When every made-up run begins.
pub(crate) const EPOCH: i64 = 1_795_500_000;

/// A journal in the making.
#[derive(Debug, Default)]
pub(crate) struct Story {
    pub(crate) events: Vec<Event>,
    now: Duration,
    attempt: u32,
}

pub(crate) fn proc(pid: i32) -> ProcId {
    ProcId { pid, start: 1000 + u64::from(pid.unsigned_abs()) }
}

pub(crate) fn ending(outcome: Outcome, reason: &str, phase: Phase) -> Ending {
    Ending { outcome, reason: reason.to_owned(), phase }
}

impl Story {
    pub(crate) fn begin() -> Self {
        let mut story = Self::default();
        story.say(EventKind::RunStarted {
            run_id: "made-up".to_owned(),
            guard_version: "0.1.0".to_owned(),
            guard: proc(1),
            plan: Box::new(Plan::default()),
        });
        story
    }

    pub(crate) fn say(&mut self, kind: EventKind) -> &mut Self {
        let at = Stamp { mono: self.now, wall: jiff::Timestamp::from_second(EPOCH).unwrap() + self.now };
        let seq = self.events.len() as u64;
        self.events.push(Event { v: JOURNAL_VERSION, seq, at, attempt: self.attempt, kind });
        self
    }

    pub(crate) fn wait(&mut self, millis: u64) -> &mut Self {
        self.now += Duration::from_millis(millis);
        self
    }

    /// An attempt up to the beginning of its benchmark.
    pub(crate) fn attempt(&mut self) -> &mut Self {
        self.attempt += 1;
        self.say(EventKind::AttemptStarted {});
        self.phase(Phase::Preflight);
        let server = ServerFacts {
            version: Some("0.15.1".to_owned()),
            device: Some("cuda".to_owned()),
            torch: Some("2.10.0".to_owned()),
            flags: Vec::new(),
        };
        self.say(EventKind::PreflightFinished { checks: Vec::new(), server });
        self.wait(500).phase(Phase::Loading);
        let env = BTreeMap::from([
            ("VLLM_LOGGING_LEVEL".to_owned(), "INFO".to_owned()),
            ("HF_TOKEN".to_owned(), "hf_the_secret".to_owned()),
        ]);
        self.say(EventKind::ServerEnvironment { env });
        let argv = ["/usr/bin/python3", "-m", "vllm", "--api-key", "the_secret", "--port", "8000"];
        self.say(EventKind::ServerSpawned { proc: proc(10), argv: argv.map(str::to_owned).to_vec() });
        self.say(EventKind::ProcessSeen { proc: proc(11), ppid: 10, comm: "VLLM::EngineCor".to_owned() });
        self.wait(20_000);
        self.say(EventKind::ServerReady { model: "tiny".to_owned(), max_model_len: 4096 });
        self.phase(Phase::WarmUp).wait(3000).phase(Phase::Measuring);
        self.say(EventKind::LoadStarted { planned: 3000, seed: 42 })
    }

    pub(crate) fn phase(&mut self, phase: Phase) -> &mut Self {
        self.say(EventKind::PhaseEntered { phase, budget: None })
    }

    /// One second of a benchmark, with all senses.
    pub(crate) fn second(&mut self, n: u64, gpus: u32) -> &mut Self {
        // Numbers that look alive and are the same every time.
        let wave = |k: u64| ((n * k) % 97) as f64 / 97.0;
        self.say(EventKind::EngineSampled(Reading::Value(EngineSample {
            iterations: n as f64 * 50.0,
            prompt_tokens: n as f64 * 4000.0 + wave(7) * 500.0,
            generation_tokens: n as f64 * 1200.0 + wave(13) * 300.0,
            running: 20.0 + wave(5) * 30.0,
            waiting: wave(3) * 5.0,
            kv_usage: 0.3 + wave(11) * 0.2,
        })));
        self.say(EventKind::LoadProgressed(LoadProgress {
            sent: n * 25,
            in_flight: 20 + n % 31,
            completed: (n * 25).saturating_sub(20 + n % 31),
            failed: n / 500,
            chunks: n * 1200,
            prompt_tokens: n * 4000,
            output_tokens: n * 1200,
            ttft_p50_us: 80_000,
            ttft_p99_us: 300_000,
            recent_ttft_p50_us: 60_000 + (n * 37) % 50_000,
            recent_ttft_max_us: 200_000 + (n * 91) % 200_000,
        }));
        let one = |gpu: u32| GpuSample {
            gpu,
            util: Reading::Value(60 + u32::try_from((n * 7 + u64::from(gpu) * 13) % 40).unwrap()),
            mem_util: Reading::Value(30),
            power_w: Reading::Value(350.0 + wave(17) * 200.0),
            mem_used: Reading::Value(70_000_000_000),
            mem_total: Reading::Value(80_000_000_000),
            xid: None,
            details: None,
        };
        if gpus > 0 {
            self.say(EventKind::GpusSampled(Reading::Value((0..gpus).map(one).collect())));
        }
        let process = |pid: i32, comm: &str| ProcSample {
            proc: proc(pid),
            ppid: 1,
            comm: comm.to_owned(),
            state: 'S',
            cpu_s: n as f64 * 0.9,
            rss: 2_000_000_000 + n * 1000,
            threads: 40,
            read_bytes: None,
            written_bytes: None,
            wchan: None,
        };
        let processes = vec![process(10, "python3"), process(11, "VLLM::EngineCor")];
        self.say(EventKind::ProcessesSampled { processes });
        self.say(EventKind::DiskSampled {
            free: Reading::Value(500_000_000_000),
            traces: Reading::Value(n * 1000),
            logs: Reading::Value(n * 100),
        });
        self.wait(1000)
    }

    pub(crate) fn window(&mut self, what: WindowEvent) -> &mut Self {
        let t = EPOCH as f64 + self.now.as_secs_f64();
        self.say(EventKind::Window(WindowLine { rank: 0, pid: 11, t, what }))
    }

    /// A window of a second, with its flush.
    pub(crate) fn profile(&mut self, window: u32) -> &mut Self {
        self.window(WindowEvent::Opened {
            window,
            step: u64::from(window) * 100,
            phase: "measuring".to_owned(),
        })
        .wait(1000);
        self.window(WindowEvent::Flushing { window }).wait(300);
        self.window(WindowEvent::Closed {
            window,
            file: format!("window-{window:04}-rank0.pt.trace.json"),
            bytes: 1_000_000,
            first_step: 0,
            last_step: 20,
            recorded_s: 1.0,
            stop_s: 0.2,
            export_s: 0.1,
            why: "steps".to_owned(),
            content: WindowContent::default(),
        })
    }

    pub(crate) fn end(&mut self, ending: &Ending) -> &mut Self {
        self.say(EventKind::AttemptEnding(ending.clone())).phase(Phase::Draining).wait(2000)
    }

    pub(crate) fn close(&mut self, ending: Ending, retry: bool) -> &mut Self {
        self.say(EventKind::Drained { leftovers: Vec::new(), removed: vec!["/dev/shm/psm_1".to_owned()] });
        self.say(EventKind::AttemptEnded(ending));
        self.say(EventKind::Decided { retry, why: "so it was decided".to_owned() })
    }

    pub(crate) fn finish(&mut self, outcome: Outcome, exit_code: u8, reason: &str) -> &mut Self {
        self.say(EventKind::RunFinished { outcome, exit_code, reason: reason.to_owned() })
    }
}

pub(crate) fn summary() -> BenchSummary {
    let latency =
        |k: f64| Latency { n: 2900, mean: k, p50: k * 0.9, p90: k * 1.5, p99: k * 3.0, max: k * 5.0 };
    let workload = |name: &str| WorkloadSummary {
        name: name.to_owned(),
        completed: 1000,
        failed: 3,
        mean_prompt_tokens: 512.0,
        mean_output_tokens: 128.0,
        good: Some(900),
        ttft_ms: latency(80.0),
        tpot_ms: latency(12.0),
        itl_ms: latency(11.0),
        e2el_ms: latency(1800.0),
    };
    BenchSummary {
        is_complete: true,
        incomplete_reason: None,
        duration: Duration::from_secs(120),
        progress: LoadProgress { sent: 3000, completed: 2991, failed: 9, ..LoadProgress::default() },
        cancelled: 0,
        request_throughput: 24.9,
        output_throughput: 3187.5,
        ttft_ms: latency(80.0),
        tpot_ms: latency(12.0),
        itl_ms: latency(11.0),
        e2el_ms: latency(1800.0),
        request_goodput: Some(22.5),
        by_workload: vec![workload("chat"), workload("rag"), workload("code")],
        errors: BTreeMap::from([("timeout".to_owned(), 9)]),
        warnings: vec!["the client was busy".to_owned()],
    }
}

/// A verdict with something in every field.
pub(crate) fn verdict() -> Verdict {
    Verdict {
        cause: "cuda-oom".to_owned(),
        outcome: Outcome::Crash,
        confidence: Confidence::Certain,
        explanation: "The GPU had no memory left for an activation".to_owned(),
        advice: "Lower `--gpu-memory-utilization`".to_owned(),
        decisive: Some(Quote {
            source: "vllm_server.log".to_owned(),
            line: Some(3),
            text: "torch.OutOfMemoryError: CUDA out of memory.".to_owned(),
        }),
        consequences: vec![Quote {
            source: "vllm_server.log".to_owned(),
            line: Some(9),
            text: "EngineDeadError: EngineCore encountered an issue.".to_owned(),
        }],
        supports: vec!["79 of 80 GB were in use in the last sample".to_owned()],
        contradicts: vec!["no Xid was reported".to_owned()],
        ruled_out: vec![RuledOut { cause: "host-oom".to_owned(), why: "42 GB were free".to_owned() }],
        missing: vec!["/dev/kmsg: permission denied".to_owned()],
        references: vec!["https://docs.vllm.ai/".to_owned(), "our wiki".to_owned()],
        retry: Retry::WithMitigation,
        fingerprint: "cuda-oom".to_owned(),
    }
}

pub(crate) fn mitigation() -> Mitigation {
    Mitigation {
        id: "lower-gpu-memory".to_owned(),
        setting: "--gpu-memory-utilization".to_owned(),
        from: Some("0.9".to_owned()),
        to: Some("0.8".to_owned()),
        why: "the first attempt ran out of GPU memory".to_owned(),
    }
}

pub(crate) fn trace(window: u32) -> Trace {
    Trace {
        file: format!("window-{window:04}-rank0.pt.trace.json.gz"),
        bytes: 120_000,
        json_bytes: 2_000_000,
        events: 9000,
        kernels: 1200,
        rank: Some(0),
        window: Some(window),
        steps: Some(20),
        complete: true,
    }
}

/// What two windows of one rank could have shown, with this name for whatever has one.
pub(crate) fn profile(name: &str) -> ProfileSummary {
    let share = Spread { mean: 0.3, min: 0.2, max: 0.4, windows: 2, ci95: None };
    let kernel = KernelShare { name: name.to_owned(), count: 7, total_s: 0.2, share };
    ProfileSummary {
        windows: 2,
        ranks: Some(1),
        traces: 2,
        steps: 40,
        events: 18_000,
        recorded_s: 2.0,
        observed_s: Some(100.0),
        gpu: Some(GpuProfile {
            busy: Some(share),
            kernel_s: 0.7,
            distinct_kernels: 9,
            ..GpuProfile::default()
        }),
        kernels: vec![kernel.clone(); 12],
        copies: vec![kernel],
        operators: vec![OperatorShare { name: name.to_owned(), count: 3, total_s: 0.2, self_s: 0.1, share }],
        notes: vec![format!("left out: {name}")],
        ..ProfileSummary::default()
    }
}

/// A run whose first attempt crashed and whose second brought everything home under another setting: every section of the
/// page has something to show.
pub(crate) fn full() -> Story {
    let mut story = Story::begin();
    story.attempt();
    for n in 0..40 {
        story.second(n, 2);
    }
    story.say(EventKind::Suspicion(Suspicion {
        step: SuspicionStep::Confirmed,
        kind: HangKind::GpuSpin,
        still: Duration::from_secs(8),
        patience: Duration::from_secs(60),
        reasons: vec!["a GPU spins".to_owned()],
    }));
    let crash = ending(
        Outcome::Crash,
        "VLLM::EngineCor (pid 11) ended during measuring with SIGABRT",
        Phase::Measuring,
    );
    let how = ExitHow::Signal { signal: 6, core: true };
    story.say(EventKind::ProcessExited {
        proc: proc(11),
        comm: "VLLM::EngineCor".to_owned(),
        how,
        main: false,
    });
    story.end(&crash);
    story.say(EventKind::Finding(Finding {
        rule: "cuda-oom".to_owned(),
        cause: "cuda-oom".to_owned(),
        gravity: Gravity::Fatal,
        line: 3,
        offset: 100,
        text: "torch.OutOfMemoryError: CUDA out of memory.".to_owned(),
        count: 1,
        outranks: Vec::new(),
    }));
    let piece = |what: &str, file: Option<&str>, problem: Option<&str>| Evidence {
        what: what.to_owned(),
        file: file.map(str::to_owned),
        bytes: 900,
        took: Duration::from_millis(20),
        problem: problem.map(str::to_owned),
    };
    story.say(EventKind::EvidenceSaved {
        items: vec![
            piece("stacks of pid 11", Some("stacks-11.txt"), None),
            piece("gpus", None, Some("no answer within 4s")),
        ],
    });
    story.say(EventKind::SignalSent {
        signal: 9,
        targets: vec![proc(10)],
        why: "nothing may be left".to_owned(),
    });
    story.say(EventKind::TracesCollected {
        traces: vec![],
        problems: vec!["x.json: empty".to_owned()],
        saved: vec![SavedTrace {
            from: "half.json".to_owned(),
            file: Some("half.salvaged.pt.trace.json.gz".to_owned()),
            status: "salvaged".to_owned(),
            events: 500,
            dropped: 2,
            missing: vec!["kernel".to_owned()],
            note: "cut in the middle".to_owned(),
        }],
    });
    story.say(EventKind::Judged { verdict: Box::new(verdict()) });
    story.say(EventKind::Mitigated { changes: vec![mitigation()] });
    story.close(crash, true).phase(Phase::Waiting).wait(3000);
    story.attempt();
    story.window(WindowEvent::Hello { torch: "2.10.0".to_owned(), activities: vec!["CPU".to_owned()] });
    for n in 0..120 {
        story.second(n, 2);
        if n % 10 == 5 {
            story.profile(u32::try_from(n / 10).unwrap());
        }
    }
    let good = ending(
        Outcome::Success,
        "the benchmark ran to its end: 2991 of 3000 requests succeeded",
        Phase::Measuring,
    );
    story.say(EventKind::LoadFinished { summary: Box::new(summary()) });
    story.end(&good);
    story.say(EventKind::Profiled(Box::new(profile("void gemm<float>(int)"))));
    story.say(EventKind::TracesCollected {
        traces: (0..12).map(trace).collect(),
        problems: vec![],
        saved: vec![],
    });
    story.say(EventKind::Trouble {
        what: "read /proc/7/io".to_owned(),
        error: "permission denied".to_owned(),
    });
    story.close(good, false).phase(Phase::Done);
    story.finish(Outcome::Success, 0, "the benchmark ran to its end: 2991 of 3000 requests succeeded");
    story
}

/// A run that no retry could have cured.
pub(crate) fn hopeless() -> Story {
    let mut story = Story::begin();
    story.attempt();
    for n in 0..40 {
        story.second(n, 1);
    }
    let crash = ending(Outcome::Crash, "VLLM::EngineCor (pid 11) ended with SIGABRT", Phase::Measuring);
    story.end(&crash);
    let verdict = Verdict { retry: Retry::No, ..verdict() };
    story.say(EventKind::Judged { verdict: Box::new(verdict) });
    story.close(crash, false).phase(Phase::Done);
    story.finish(Outcome::Crash, 93, "it would fail the same way again");
    story
}

/// A run that the preflight refused.
pub(crate) fn refused() -> Story {
    let mut story = Story::begin();
    story.attempt = 1;
    story.say(EventKind::AttemptStarted {}).phase(Phase::Preflight);
    let check = Check {
        check: "port".to_owned(),
        severity: Severity::Refuse,
        saw: "port 8000 is held by pid 7 (python3)".to_owned(),
        hint: Some("stop it, or pass --port".to_owned()),
    };
    story.say(EventKind::PreflightFinished { checks: vec![check], server: ServerFacts::default() });
    let refused = ending(Outcome::Refused, "port 8000 is held by pid 7 (python3)", Phase::Preflight);
    story.say(EventKind::AttemptEnding(refused.clone())).say(EventKind::AttemptEnded(refused));
    story.finish(Outcome::Refused, 69, "port 8000 is held by pid 7 (python3)");
    story
}

/// A guard that was killed under load and left something.
pub(crate) fn killed() -> Story {
    let mut story = Story::begin();
    story.attempt();
    for n in 0..30 {
        story.second(n, 0);
    }
    story.profile(0).profile(1);
    story.say(EventKind::GuardDied {
        killed: vec![proc(10), proc(11)],
        leftovers: vec![Leftover::GpuMemory { gpu: 0, bytes: 3_000_000_000 }],
        removed: vec![],
    });
    story
}

/// What the promise about time is measured with.
pub(crate) const NIGHT: (usize, usize) = (500_000, 4);

/// A long night: several attempts and as many events as asked for.
pub(crate) fn long(events: usize, attempts: usize) -> Story {
    let mut story = Story::begin();
    for number in 1..=attempts {
        story.attempt();
        let until = events * number / attempts;
        let mut n = 0;
        while story.events.len() + 12 < until {
            story.second(n, 8);
            if n % 7 == 3 {
                story.profile(u32::try_from(n / 7).unwrap());
            }
            if n % 50 == 7 {
                story.say(EventKind::Finding(Finding {
                    rule: "slow".to_owned(),
                    cause: "slow".to_owned(),
                    gravity: Gravity::Suspect,
                    line: n,
                    offset: n * 100,
                    text: "WARNING [shm_broadcast.py:466] No available shared memory broadcast block found"
                        .to_owned(),
                    count: n,
                    outranks: Vec::new(),
                }));
            }
            n += 1;
        }
        let last = number == attempts;
        let outcome = if last { Outcome::Success } else { Outcome::Crash };
        let how = ending(outcome, "it ended", Phase::Measuring);
        if last {
            story.say(EventKind::LoadFinished { summary: Box::new(summary()) });
        }
        story.end(&how);
        if last {
            let traces = (0..2000).map(trace).collect();
            story.say(EventKind::TracesCollected { traces, problems: vec![], saved: vec![] });
        } else {
            story.say(EventKind::Judged { verdict: Box::new(verdict()) });
        }
        story.close(how, !last);
    }
    story.finish(Outcome::Success, 0, "it ended");
    story
}
