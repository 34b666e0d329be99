use super::*;
use crate::event::{LoadProgress, Severity, WindowLine};
use std::time::Duration;

const ENGINE: ProcId = ProcId { pid: 71, start: 1 };
const API: ProcId = ProcId { pid: 70, start: 1 };

fn ending(outcome: Outcome, phase: Phase) -> Ending {
    Ending { outcome, reason: "it ended".to_owned(), phase }
}

fn finding(rule: &str, cause: &str, gravity: Gravity, line: u64, text: &str) -> EventKind {
    EventKind::Finding(Finding {
        rule: rule.to_owned(),
        cause: cause.to_owned(),
        gravity,
        line,
        offset: line * 100,
        text: text.to_owned(),
        count: 1,
        outranks: Vec::new(),
    })
}

fn died(proc: ProcId, comm: &str, how: ExitHow) -> EventKind {
    EventKind::ProcessExited { proc, comm: comm.to_owned(), how, main: proc == API }
}

fn clue(cause: &str, inferred: bool, source: &str) -> EventKind {
    EventKind::Clue(Clue {
        cause: cause.to_owned(),
        proc: Some(ENGINE),
        inferred,
        source: source.to_owned(),
        text: "the system's words".to_owned(),
    })
}

const SIGKILL: ExitHow = ExitHow::Signal { signal: 9, core: false };

fn verdict_in(phase: Phase, events: &[EventKind], ending: &Ending) -> Verdict {
    let mut inquiry = Inquiry::default();
    for event in events {
        inquiry.hear(phase, event);
    }
    inquiry.verdict(ending)
}

fn verdict(events: &[EventKind], outcome: Outcome) -> Verdict {
    verdict_in(Phase::Measuring, events, &ending(outcome, Phase::Measuring))
}

#[test]
fn the_kernel_knows_better_than_the_ranks_that_lost_their_peer() {
    let events = [
        finding("nccl-error", "nccl-error", Gravity::Fatal, 10, "ncclRemoteError: A call failed"),
        died(ENGINE, "VLLM::Worker_TP", SIGKILL),
        clue("host-oom", false, "/dev/kmsg"),
    ];
    let seen = verdict(&events, Outcome::Crash);
    assert_eq!((seen.cause.as_str(), seen.confidence), ("host-oom", Confidence::Certain));
    assert_eq!(seen.decisive.as_ref().unwrap().source, "/dev/kmsg");
    assert!(seen.ruled_out.iter().any(|out| out.cause == "nccl-error"), "{seen:#?}");
    assert!(seen.supports.iter().any(|words| words.contains("SIGKILL")), "{seen:#?}");
}

#[test]
fn a_kill_that_neither_the_kernel_nor_the_guard_did_came_from_outside() {
    let events = [
        died(ENGINE, "VLLM::EngineCor", SIGKILL),
        finding(
            "engine-fatal",
            Finding::ENGINE_DEAD,
            Gravity::Fatal,
            9,
            "Engine core proc died unexpectedly",
        ),
    ];
    let seen = verdict(&events, Outcome::Crash);
    assert_eq!(seen.cause, "killed-externally");
    assert!(seen.ruled_out.iter().any(|out| out.cause == "host-oom"), "{seen:#?}");
    // A worker's exit code alone suggests the kernel; that it killed nobody says otherwise.
    let events = [
        finding(
            "worker-sigkill",
            "host-oom",
            Gravity::Fatal,
            9,
            "Worker proc died unexpectedly (exit code: -9)",
        ),
        clue("killed-externally", true, "circumstances"),
    ];
    assert_eq!(verdict(&events, Outcome::Crash).cause, "killed-externally");
}

#[test]
fn what_the_guard_killed_itself_explains_nothing() {
    let struck =
        EventKind::SignalSent { signal: 9, targets: vec![ENGINE, API], why: "no progress".to_owned() };
    let events = [
        struck,
        died(ENGINE, "VLLM::EngineCor", SIGKILL),
        finding("leaked-semaphores", "killed-externally", Gravity::Suspect, 9, "leaked semaphore objects"),
    ];
    let seen = verdict_in(Phase::Draining, &events, &ending(Outcome::StartupFailure, Phase::Loading));
    assert_eq!(seen.cause, "startup-timeout", "{seen:#?}");
}

#[test]
fn a_process_that_says_why_and_then_aborts_is_believed() {
    let abort = ExitHow::Signal { signal: 6, core: true };
    let events = [
        finding("cuda-illegal-access", "cuda-illegal-access", Gravity::Fatal, 5, "an illegal memory access"),
        finding(
            "engine-fatal",
            Finding::ENGINE_DEAD,
            Gravity::Fatal,
            6,
            "EngineCore encountered a fatal error.",
        ),
        died(ENGINE, "VLLM::EngineCor", abort),
    ];
    let seen = verdict(&events, Outcome::Crash);
    assert_eq!((seen.cause.as_str(), seen.decisive.unwrap().line), ("cuda-illegal-access", Some(5)));
    assert_eq!(seen.consequences[0].line, Some(6));
}

#[test]
fn an_exit_status_is_enough_when_nobody_said_anything() {
    let of = |signal| {
        verdict(&[died(ENGINE, "VLLM::EngineCor", ExitHow::Signal { signal, core: false })], Outcome::Crash)
    };
    let causes =
        [(11, "segfault"), (7, "shm-exhausted"), (15, "killed-externally"), (4, "unsupported-hardware")];
    for (signal, cause) in causes {
        assert_eq!(of(signal).cause, cause);
    }
    assert_eq!(of(6).cause, UNDETERMINED);
}

#[test]
fn a_server_that_stops_in_good_order_without_being_asked_was_asked_by_somebody_else() {
    let events = [
        finding("graceful-shutdown", GRACEFUL, Gravity::Harmless, 40, "Shutting down FastAPI HTTP server."),
        died(API, "python3", ExitHow::Code { code: 0 }),
    ];
    let seen = verdict(&events, Outcome::Crash);
    assert_eq!((seen.cause.as_str(), seen.decisive.unwrap().line), ("killed-externally", Some(40)));
}

#[test]
fn a_standstill_is_named_by_its_kind() {
    let of = |kind| {
        let suspicion = Suspicion {
            step: SuspicionStep::Act,
            kind,
            still: Duration::from_secs(200),
            patience: Duration::from_secs(180),
            reasons: vec!["no token".to_owned()],
        };
        verdict(&[EventKind::Suspicion(suspicion)], Outcome::Hang)
    };
    for (kind, cause) in [
        (HangKind::GpuSpin, "engine-hang"),
        (HangKind::Stopped, "engine-hang"),
        (HangKind::ProfilerFlush, "profiler-flush-stall"),
        (HangKind::DriverDead, "driver-hang"),
        (HangKind::Client, "client-stall"),
    ] {
        let seen = of(kind);
        assert_eq!((seen.cause.as_str(), seen.outcome), (cause, Outcome::Hang));
        assert!(seen.decisive.unwrap().text.contains("no token"));
    }
}

#[test]
fn refused_requests_are_named_by_what_they_were_refused_for() {
    let summary = BenchSummary {
        is_complete: true,
        progress: LoadProgress { completed: 1, failed: 9, ..LoadProgress::default() },
        errors: [("http 400".to_owned(), 9)].into(),
        ..BenchSummary::default()
    };
    let finished = EventKind::LoadFinished { summary: Box::new(summary) };
    let seen = verdict(std::slice::from_ref(&finished), Outcome::Degraded);
    assert_eq!(seen.cause, "request-failed");
    assert!(seen.decisive.unwrap().text.contains("http 400"));
    let line = finding(
        "request-too-long",
        "request-too-long",
        Gravity::Harmless,
        3,
        "maximum context length is 100 tokens",
    );
    let seen = verdict(&[line, finished], Outcome::Degraded);
    assert_eq!((seen.cause.as_str(), seen.retry), ("request-too-long", crate::event::Retry::No));
}

#[test]
fn windows_that_the_disk_took_are_a_full_disk_and_others_are_missing_traces() {
    let lost = |error: &str| {
        let what = WindowEvent::Failed { window: 3, error: error.to_owned() };
        verdict(
            &[
                EventKind::Window(WindowLine { rank: 0, pid: 71, t: 0.0, what }),
                EventKind::LoadFinished {
                    summary: Box::new(BenchSummary { is_complete: true, ..BenchSummary::default() }),
                },
            ],
            Outcome::Degraded,
        )
        .cause
    };
    assert_eq!(lost("OSError: [Errno 28] No space left on device"), "disk-full");
    assert_eq!(lost("RuntimeError: profiler is broken"), "traces-missing");
}

#[test]
fn what_the_preflight_refuses_is_the_cause() {
    let check = Check {
        check: "port".to_owned(),
        severity: Severity::Refuse,
        saw: "port 8000 is held by pid 7".to_owned(),
        hint: None,
    };
    let refused =
        EventKind::PreflightFinished { checks: vec![check], server: crate::event::ServerFacts::default() };
    let seen = verdict_in(Phase::Preflight, &[refused], &ending(Outcome::Refused, Phase::Preflight));
    assert_eq!(seen.cause, "port-in-use");
}

#[test]
fn a_failure_is_never_called_healthy() {
    let ready = finding("server-ready", HEALTHY, Gravity::Harmless, 9, "Application startup complete.");
    for outcome in
        [Outcome::Crash, Outcome::StartupFailure, Outcome::Hang, Outcome::Degraded, Outcome::GuardFault]
    {
        let seen = verdict(std::slice::from_ref(&ready), outcome);
        assert_ne!(causes::of(&seen.cause).outcome, Outcome::Success, "{outcome}: {}", seen.cause);
        assert_eq!(seen.outcome, outcome);
    }
}

#[test]
fn what_could_not_be_read_is_said() {
    let gone = EventKind::GpusSampled(Reading::Unavailable { why: "no NVML".to_owned() });
    let seen = verdict(&[gone.clone(), gone], Outcome::Crash);
    assert_eq!(seen.missing, ["GPUs: no NVML"]);
}

#[test]
fn a_line_that_only_makes_suspicious_explains_no_failure_it_has_nothing_to_do_with() {
    let kineto =
        finding("kineto-thread", "kineto-thread-mismatch", Gravity::Suspect, 3, "must run in same thread");
    let crash = [kineto, died(ENGINE, "VLLM::EngineCor", SIGKILL)];
    assert_eq!(verdict(&crash, Outcome::Crash).cause, KILLED);
    let asked =
        finding("profiler-404", "profiler-404", Gravity::Suspect, 3, "POST /start_profile HTTP/1.1\" 404");
    let summary = BenchSummary {
        is_complete: true,
        progress: LoadProgress { completed: 1, failed: 9, ..LoadProgress::default() },
        ..BenchSummary::default()
    };
    let events = [asked, EventKind::LoadFinished { summary: Box::new(summary) }];
    assert_eq!(verdict(&events, Outcome::Degraded).cause, "request-failed");
    // An optional module that was missing does not make a slow start a broken installation.
    let module =
        finding("module-missing", "python-dependency-error", Gravity::Suspect, 3, "No module named 'x'");
    let slow = ending(Outcome::StartupFailure, Phase::Loading);
    assert_eq!(verdict_in(Phase::Loading, std::slice::from_ref(&module), &slow).cause, "startup-timeout");
    let events = [module, died(API, "python3", ExitHow::Code { code: 1 })];
    assert_eq!(verdict_in(Phase::Loading, &events, &slow).cause, "python-dependency-error");
}

/// A standstill of this kind that is acted upon.
fn stood(kind: HangKind) -> EventKind {
    EventKind::Suspicion(Suspicion {
        step: SuspicionStep::Act,
        kind,
        still: Duration::from_secs(70),
        patience: Duration::from_secs(60),
        reasons: vec!["x".to_owned()],
    })
}

#[test]
fn an_undetermined_standstill_is_only_likely_and_a_named_one_is_certain() {
    assert_eq!(verdict(&[stood(HangKind::Undetermined)], Outcome::Hang).confidence, Confidence::Likely);
    assert_eq!(verdict(&[stood(HangKind::Stopped)], Outcome::Hang).confidence, Confidence::Certain);
    assert_eq!(verdict(&[], Outcome::Hang).confidence, Confidence::Likely);
}

#[test]
fn an_unready_log_says_so_only_if_it_was_a_start() {
    let of = |rules: &[&str]| {
        let mut inquiry = Inquiry::default();
        for (line, rule) in (1..).zip(rules) {
            inquiry.hear(Phase::Loading, &finding(rule, rule, Gravity::Harmless, line, "x"));
        }
        inquiry.of_log()
    };
    let started = of(&[lines::STARTING]);
    assert!(started.explanation.contains("it ends before the server was ready"), "{}", started.explanation);
    assert!(!of(&[lines::STARTING, lines::READY]).explanation.contains("it ends before"));
    assert!(!of(&[]).explanation.contains("it ends before"));
}

#[test]
fn failed_and_given_up_requests_count_alike() {
    let bench = |failed, cancelled| {
        let progress = LoadProgress { completed: 5, failed, ..LoadProgress::default() };
        let summary = BenchSummary { is_complete: true, progress, cancelled, ..BenchSummary::default() };
        EventKind::LoadFinished { summary: Box::new(summary) }
    };
    let line = finding("request-too-long", "request-too-long", Gravity::Consequence, 4, "too long");
    for (failed, cancelled, is) in [(1, 1, true), (2, 0, true), (0, 2, true), (0, 0, false)] {
        let seen = verdict(&[line.clone(), bench(failed, cancelled)], Outcome::Degraded);
        assert_eq!(seen.cause == "request-too-long", is, "{failed} {cancelled}: {}", seen.cause);
    }
}

#[test]
fn memory_is_ruled_out_only_where_something_was_killed() {
    let of = |how| {
        let seen = verdict(&[died(ENGINE, "VLLM::EngineCor", how)], Outcome::Crash);
        seen.ruled_out.iter().any(|out| out.cause == "host-oom")
    };
    assert!(of(SIGKILL));
    assert!(!of(ExitHow::Signal { signal: 11, core: true }));
    assert!(!of(ExitHow::Code { code: 1 }));
}

#[test]
fn a_thousand_lines_are_enough() {
    let mut inquiry = Inquiry::default();
    for line in 0..1500 {
        inquiry.hear(Phase::Measuring, &finding("x", "x", Gravity::Consequence, line, "x"));
    }
    assert_eq!(inquiry.findings().len(), MAX_FINDINGS);
}

fn vanished() -> EventKind {
    let text = "Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.";
    finding("engine-fatal", Finding::ENGINE_DEAD, Gravity::Fatal, 9, text)
}

fn leaked() -> EventKind {
    finding("leaked-semaphores", "killed-externally", Gravity::Suspect, 10, "leaked semaphore objects")
}

const WORKER: ProcId = ProcId { pid: 72, start: 1 };
const SIGSEGV: ExitHow = ExitHow::Signal { signal: 11, core: false };

#[test]
fn a_death_whose_words_were_read_first_is_judged_the_same() {
    let (mut said_first, mut died_first) = (Inquiry::default(), Inquiry::default());
    said_first.hear(Phase::Measuring, &vanished());
    // The line has ended the attempt, and only then the status is seen; nobody was killed by us yet.
    said_first.hear(Phase::Draining, &died(ENGINE, "VLLM::EngineCor", SIGSEGV));
    said_first.hear(Phase::Draining, &leaked());
    for event in [died(ENGINE, "VLLM::EngineCor", SIGSEGV), vanished(), leaked()] {
        died_first.hear(Phase::Measuring, &event);
    }
    let ending = ending(Outcome::Crash, Phase::Measuring);
    assert_eq!(said_first.verdict(&ending).cause, "segfault");
    assert_eq!(died_first.verdict(&ending).cause, "segfault");
}

#[test]
fn deaths_within_a_moment_are_judged_the_same_in_any_order() {
    let crash = died(WORKER, "VLLM::Worker_TP", SIGSEGV);
    let follows = died(ENGINE, "VLLM::Worker_TP", ExitHow::Code { code: 0 });
    for order in [[crash.clone(), follows.clone()], [follows, crash]] {
        let events = [&order[..], &[vanished(), leaked()]].concat();
        assert_eq!(verdict(&events, Outcome::Crash).cause, "segfault");
    }
}

#[test]
fn an_engine_with_an_exit_code_of_its_own_was_not_killed_from_outside() {
    let events = [died(ENGINE, "VLLM::EngineCor", ExitHow::Code { code: 3 }), vanished(), leaked()];
    assert_eq!(verdict(&events, Outcome::Crash).cause, "undetermined");
    // What the API server ends with after its engine says nothing about the engine.
    let events = [vanished(), died(API, "python3", ExitHow::Code { code: 1 }), leaked()];
    assert_eq!(verdict(&events, Outcome::Crash).cause, "killed-externally");
}

#[test]
fn a_standstill_inside_a_window_that_is_being_written_is_a_stalled_flush() {
    let line = |what| EventKind::Window(WindowLine { rank: 0, pid: 71, t: 1.0, what });
    let flushing = line(WindowEvent::Flushing { window: 3 });
    let failed = line(WindowEvent::Failed { window: 3, error: "x".to_owned() });
    assert_eq!(verdict(std::slice::from_ref(&flushing), Outcome::Hang).cause, "profiler-flush-stall");
    assert_eq!(verdict(&[flushing, failed], Outcome::Hang).cause, "engine-hang");
}

#[test]
fn the_same_kill_has_the_same_fingerprint_however_it_is_known() {
    let by_status = [died(ENGINE, "VLLM::EngineCor", SIGKILL), vanished()];
    let words = "VLLM::EngineCor was killed holding 0.1 GiB, not by varcas-guard and not for want of memory";
    let told = EventKind::Clue(Clue {
        cause: "killed-externally".to_owned(),
        proc: Some(ENGINE),
        inferred: true,
        source: "circumstances".to_owned(),
        text: words.to_owned(),
    });
    let by_circumstances = [&by_status[..], &[told]].concat();
    let print = |events: &[EventKind]| verdict(events, Outcome::Crash).fingerprint;
    assert_eq!(print(&by_status), print(&by_circumstances));
}

#[path = "edge_tests.rs"]
mod edges;
