//! Who is believed when sources disagree, and what is written beside the cause.

use super::*;

fn xid(about: Option<ProcId>) -> EventKind {
    EventKind::Clue(Clue {
        cause: "xid-gpu-lost".to_owned(),
        proc: about,
        inferred: false,
        source: "/dev/kmsg".to_owned(),
        text: "Xid 79".to_owned(),
    })
}

fn illegal(gravity: Gravity) -> EventKind {
    finding("cuda-illegal-access", "cuda-illegal-access", gravity, 5, "an illegal memory access")
}

fn nccl() -> EventKind {
    finding("nccl-error", "nccl-error", Gravity::Fatal, 10, "ncclRemoteError: A call failed")
}

fn cause(events: &[EventKind]) -> String {
    verdict(events, Outcome::Crash).cause
}

#[test]
fn a_lost_gpu_and_a_kill_for_memory_go_before_every_line() {
    assert_eq!(cause(&[illegal(Gravity::Fatal), xid(None)]), "xid-gpu-lost");
    assert_eq!(cause(&[illegal(Gravity::Fatal), clue("host-oom", false, "/dev/kmsg")]), "host-oom");
    // Another word of the kernel about a process goes before a line only if nobody said why.
    assert_eq!(
        cause(&[illegal(Gravity::Fatal), clue("segfault", false, "exit status")]),
        "cuda-illegal-access"
    );
    assert_eq!(cause(&[nccl(), clue("segfault", false, "exit status")]), "segfault");
    assert_eq!(cause(&[illegal(Gravity::Suspect), clue("segfault", false, "exit status")]), "segfault");
    // One that names no process and is no lost GPU decides nothing.
    let vague = EventKind::Clue(Clue {
        cause: "segfault".to_owned(),
        proc: None,
        inferred: false,
        source: "x".to_owned(),
        text: "y".to_owned(),
    });
    assert_eq!(cause(&[illegal(Gravity::Fatal), vague]), "cuda-illegal-access");
}

#[test]
fn a_word_of_the_system_about_nobody_decides_nothing_unless_the_gpu_is_lost() {
    let about_nobody = |cause: &str, inferred| {
        EventKind::Clue(Clue {
            cause: cause.to_owned(),
            proc: None,
            inferred,
            source: "x".to_owned(),
            text: "y".to_owned(),
        })
    };
    assert_eq!(cause(&[about_nobody("segfault", false)]), UNDETERMINED);
    assert_eq!(cause(&[about_nobody("xid-gpu-lost", false)]), "xid-gpu-lost");
    assert_eq!(cause(&[illegal(Gravity::Fatal), about_nobody("xid-gpu-lost", true)]), "cuda-illegal-access");
    assert_eq!(cause(&[clue("segfault", false, "x")]), "segfault");
}

#[test]
fn a_line_that_agrees_with_the_kernel_is_the_one_that_is_shown() {
    let line = finding("host-oom", "host-oom", Gravity::Fatal, 7, "oom-kill");
    let seen = verdict(&[line, clue("host-oom", false, "/dev/kmsg")], Outcome::Crash);
    assert_eq!((seen.decisive.unwrap().line, seen.confidence), (Some(7), Confidence::Certain));
    let seen = verdict(&[nccl(), clue("host-oom", false, "/dev/kmsg")], Outcome::Crash);
    assert_eq!(seen.decisive.unwrap().source, "/dev/kmsg");
}

#[test]
fn what_is_only_inferred_explains_a_lost_peer_and_not_a_named_cause() {
    let inferred = || clue("killed-externally", true, "circumstances");
    assert_eq!(cause(&[nccl(), inferred()]), "killed-externally");
    assert_eq!(cause(&[illegal(Gravity::Fatal), inferred()]), "cuda-illegal-access");
    assert_eq!(cause(&[nccl()]), "nccl-error");
    for peer in ["nccl-timeout", "engine-hang"] {
        assert_eq!(
            cause(&[finding(peer, peer, Gravity::Fatal, 10, "x"), inferred()]),
            "killed-externally",
            "{peer}"
        );
    }
}

#[test]
fn only_deaths_that_count_are_heard() {
    let code = ExitHow::Code { code: 1 };
    let supports = |events: &[EventKind]| {
        let seen = verdict(events, Outcome::Crash);
        seen.supports.iter().filter(|words| words.contains("ended with")).count()
    };
    let helper = ProcId { pid: 90, start: 1 };
    assert_eq!(supports(&[died(helper, "cc1plus", code)]), 0, "a helper that ended by itself");
    assert_eq!(supports(&[died(helper, "cc1plus", SIGKILL)]), 1);
    assert_eq!(supports(&[died(ENGINE, "VLLM::EngineCor", code)]), 1);
    assert_eq!(supports(&[died(API, "python3", code)]), 1);
    let struck = EventKind::SignalSent { signal: 9, targets: vec![ENGINE], why: String::new() };
    assert_eq!(supports(&[struck, died(ENGINE, "VLLM::EngineCor", SIGKILL)]), 0, "ours");
    let others = EventKind::SignalSent { signal: 9, targets: vec![API], why: String::new() };
    let late = verdict_in(
        Phase::Draining,
        &[others, died(ENGINE, "VLLM::EngineCor", SIGKILL)],
        &ending(Outcome::Crash, Phase::Measuring),
    );
    assert_eq!(late.supports, ["it ended"], "what dies while cleaning up");
}

#[test]
fn a_process_that_vanished_was_killed_only_if_a_line_says_so() {
    let gone = died(ENGINE, "VLLM::EngineCor", ExitHow::Unknown);
    let says = finding(
        "engine-fatal",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        9,
        "Engine core proc died unexpectedly",
    );
    assert_eq!(cause(std::slice::from_ref(&gone)), UNDETERMINED);
    let seen = verdict(&[gone, says], Outcome::Crash);
    assert_eq!((seen.cause.as_str(), seen.confidence), (KILLED, Confidence::Likely));
    // A clean end of the server alone, without its farewell, says nothing.
    assert_eq!(cause(&[died(API, "python3", ExitHow::Code { code: 0 })]), UNDETERMINED);
}

#[test]
fn words_of_the_system_about_a_start_name_the_cause() {
    for (error, cause) in [
        ("No space left on device (os error 28)", "disk-full"),
        ("Too many open files (os error 24)", "too-many-open-files"),
        ("Permission denied (os error 13)", UNDETERMINED),
    ] {
        let seen = verdict(&[EventKind::SpawnFailed { error: error.to_owned() }], Outcome::StartupFailure);
        assert_eq!(seen.cause, cause);
        assert_eq!(seen.decisive.unwrap().source, "the system");
    }
    let stolen = verdict(&[EventKind::PortStolen { holder: "pid 9 (x)".to_owned() }], Outcome::Degraded);
    assert_eq!(
        (stolen.cause.as_str(), stolen.decisive.unwrap().text),
        ("port-in-use", "pid 9 (x)".to_owned())
    );
}

#[test]
fn each_check_that_refuses_has_its_cause() {
    let of = |name: &str| {
        let check =
            Check { check: name.to_owned(), severity: Severity::Refuse, saw: "x".to_owned(), hint: None };
        let event = EventKind::PreflightFinished {
            checks: vec![check],
            server: crate::event::ServerFacts::default(),
        };
        verdict(&[event], Outcome::Refused).cause
    };
    for (name, cause) in [
        ("port", "port-in-use"),
        ("gpu", "leftover-gpu-memory"),
        ("disk", "disk-full"),
        ("model", "model-not-found"),
        ("vllm", "python-dependency-error"),
        ("command", "python-dependency-error"),
        ("other", UNDETERMINED),
    ] {
        assert_eq!(of(name), cause);
    }
    let warned =
        Check { check: "disk".to_owned(), severity: Severity::Warn, saw: "9 GB".to_owned(), hint: None };
    let event =
        EventKind::PreflightFinished { checks: vec![warned], server: crate::event::ServerFacts::default() };
    assert!(
        verdict(&[event], Outcome::Crash).supports.contains(&"the preflight had warned: 9 GB".to_owned())
    );
}

fn bench(failed: u64, is_complete: bool) -> EventKind {
    let progress = LoadProgress { completed: 5, failed, ..LoadProgress::default() };
    let errors = [("timeout".to_owned(), 1), ("http-500".to_owned(), failed)].into_iter().collect();
    EventKind::LoadFinished {
        summary: Box::new(BenchSummary { is_complete, progress, errors, ..BenchSummary::default() }),
    }
}

#[test]
fn a_degraded_benchmark_is_named_by_what_its_requests_failed_of() {
    let of = |events: &[EventKind]| verdict(events, Outcome::Degraded);
    let seen = of(&[bench(4, true)]);
    assert_eq!(
        (seen.cause.as_str(), seen.decisive.unwrap().text.as_str()),
        ("request-failed", "4 requests: http-500")
    );
    assert_eq!(of(&[bench(0, false)]).cause, "request-failed", "cut short");
    assert_eq!(of(&[bench(0, true)]).cause, "traces-missing");
    // A suspicious line counts where requests were lost.
    let suspect = illegal(Gravity::Suspect);
    assert_eq!(of(&[suspect.clone(), bench(1, true)]).cause, "cuda-illegal-access");
    assert_eq!(of(&[suspect, bench(0, true)]).cause, "traces-missing");
    let lost = |what| EventKind::Window(WindowLine { rank: 0, pid: 7, t: 0.0, what });
    let off = lost(WindowEvent::Disabled { reason: "no profiler".to_owned() });
    assert_eq!(of(&[off, bench(0, true)]).decisive.unwrap().text, "no profiler");
}

#[test]
fn sources_that_were_silent_while_it_mattered_are_named() {
    let silent = || Reading::Unavailable { why: "refused".to_owned() };
    let of = |phase, event| verdict_in(phase, &[event], &ending(Outcome::Crash, Phase::Measuring)).missing;
    assert_eq!(of(Phase::Measuring, EventKind::EngineSampled(silent())), ["the server's metrics: refused"]);
    assert!(of(Phase::Loading, EventKind::EngineSampled(silent())).is_empty(), "it has none yet");
    let disk = EventKind::DiskSampled {
        free: Reading::Unavailable { why: "gone".to_owned() },
        traces: Reading::Value(1),
        logs: Reading::Value(1),
    };
    assert_eq!(of(Phase::Measuring, disk), ["free disk: gone"]);
    let item = |file: Option<&str>| crate::event::Evidence {
        what: "stacks of pid 7".to_owned(),
        file: file.map(str::to_owned),
        bytes: 0,
        took: Duration::ZERO,
        problem: Some("no py-spy".to_owned()),
    };
    let saved = EventKind::EvidenceSaved { items: vec![item(None), item(Some("x"))] };
    assert_eq!(of(Phase::Measuring, saved), ["stacks of pid 7: no py-spy"]);
}

#[test]
fn a_standstill_says_whether_a_request_was_answered_and_how_long_it_was_borne() {
    let stood = |step| {
        EventKind::Suspicion(Suspicion {
            step,
            kind: HangKind::Stopped,
            still: Duration::from_secs(70),
            patience: Duration::from_secs(60),
            reasons: vec!["x".to_owned()],
        })
    };
    let probed =
        |error: Option<&str>| EventKind::Probed { error: error.map(str::to_owned), took: Duration::ZERO };
    let has = |events: &[EventKind], outcome, words: &str| {
        verdict(events, outcome).supports.iter().any(|support| support.contains(words))
    };
    let act = stood(SuspicionStep::Act);
    let failed = [act.clone(), probed(Some("no answer"))];
    assert!(has(&failed, Outcome::Hang, "a request for one token failed: no answer"));
    assert!(has(&[act.clone(), probed(None)], Outcome::Hang, "was answered all the same"));
    assert!(has(std::slice::from_ref(&act), Outcome::Hang, "it was borne for 60 s"));
    assert!(!has(&failed, Outcome::Crash, "borne"), "a crash is no standstill");
    let moved = [act, stood(SuspicionStep::Cleared)];
    assert!(!has(&moved, Outcome::Hang, "borne"), "it moved again");
}

#[test]
fn witnesses_for_and_against_are_told_apart() {
    let seen = verdict(
        &[
            nccl(),
            clue("host-oom", false, "/dev/kmsg"),
            clue("segfault", true, "exit status"),
            clue(KILLED, true, "z"),
        ],
        Outcome::Crash,
    );
    assert_eq!(seen.supports, ["it ended", "/dev/kmsg: the system's words"]);
    assert_eq!(
        seen.contradicts,
        ["exit status (inferred): the system's words"],
        "a kill is no contradiction"
    );
}

#[test]
fn other_lines_are_ruled_out_once_each_with_the_reason() {
    let events = [
        finding("cuda-oom", "cuda-oom", Gravity::Suspect, 2, "x"),
        finding("y", "cuda-oom", Gravity::Suspect, 3, "x"),
        illegal(Gravity::Fatal),
        finding("nccl-error", "nccl-error", Gravity::Fatal, 9, "x"),
        finding("segfault", "segfault", Gravity::Consequence, 11, "x"),
        finding("odd", "no-such-cause", Gravity::Fatal, 12, "x"),
    ];
    let seen = verdict(&events, Outcome::Crash);
    assert_eq!(seen.cause, "cuda-illegal-access");
    let out: Vec<_> = seen.ruled_out.iter().map(|out| (out.cause.as_str(), out.why.as_str())).collect();
    let expected = [
        ("cuda-oom", "line 2 alone ends no server, or is explained by the cause"),
        ("nccl-error", "line 9 comes after the cause"),
    ];
    assert_eq!(out, expected);
    let other = verdict(&[illegal(Gravity::Fatal), xid(None)], Outcome::Crash);
    assert!(
        other.ruled_out.iter().any(|out| out.why == "another source knows better than the log"),
        "{other:?}"
    );
    let same = verdict(&[illegal(Gravity::Fatal)], Outcome::Crash);
    assert!(same.ruled_out.is_empty(), "{same:?}");
}

#[test]
fn whether_another_try_helps_depends_on_the_words() {
    let gpu = |text: &str| {
        verdict(&[finding("xid-fatal", "xid-gpu-lost", Gravity::Fatal, 1, text)], Outcome::Crash).retry
    };
    assert_eq!(gpu("NVRM: Xid (PCI:0000:9c:00): 79"), crate::event::Retry::No);
    assert_eq!(gpu("uncorrectable ECC error"), crate::event::Retry::No);
    assert_ne!(gpu("CUDA error: unknown error"), crate::event::Retry::No);
    let port = |text: &str| {
        let event = finding("port-in-use", "port-in-use", Gravity::Fatal, 1, text);
        verdict(&[event], Outcome::StartupFailure).retry
    };
    let usual = causes::of("port-in-use").retry;
    assert_eq!(port("OSError: [Errno 98] (x)"), usual);
    assert_eq!(port("EADDRINUSE (x)"), crate::event::Retry::Yes);
    assert_eq!(port("address already in use"), crate::event::Retry::Yes);
    assert_ne!(usual, crate::event::Retry::Yes, "or the words would decide nothing");
}

#[test]
fn a_kill_from_outside_is_worded_as_one_unless_the_run_succeeded() {
    let kill = [died(ENGINE, "VLLM::EngineCor", SIGKILL)];
    let crash = verdict(&kill, Outcome::Crash);
    assert_eq!((crash.cause.as_str(), crash.outcome), (KILLED, Outcome::Crash));
    assert!(crash.explanation.starts_with("a process of the server was ended from outside ("));
    assert_eq!(crash.fingerprint, format!("{KILLED}: VLLM::EngineCor"));
    let success = verdict(&kill, Outcome::Success);
    assert!(success.explanation.starts_with(causes::of(KILLED).what), "{}", success.explanation);
}

#[test]
fn a_suspicious_line_explains_a_death_that_is_known_only_by_its_status() {
    let suspect = finding("cuda-oom", "cuda-oom", Gravity::Suspect, 3, "out of memory");
    let events = [suspect.clone(), died(API, "python3", ExitHow::Code { code: 1 })];
    let seen = verdict(&events, Outcome::Crash);
    assert_eq!((seen.cause.as_str(), seen.confidence), ("cuda-oom", Confidence::Likely));
    // Nobody died, so it is only the best there is.
    assert_eq!(verdict(&[suspect], Outcome::Crash).confidence, Confidence::Weak);
    let events = [nccl_suspect(), died(ENGINE, "VLLM::EngineCor", SIGSEGV)];
    assert_eq!(verdict(&events, Outcome::Crash).cause, "nccl-error", "what it said goes before how it ended");
}

fn nccl_suspect() -> EventKind {
    finding("nccl-error", "nccl-error", Gravity::Suspect, 10, "ncclRemoteError: A call failed")
}

#[test]
fn a_start_that_nobody_died_of_took_too_long_and_one_with_a_death_did_not() {
    let of = |events: &[EventKind], outcome| {
        verdict_in(Phase::Loading, events, &ending(outcome, Phase::Loading)).cause
    };
    assert_eq!(of(&[], Outcome::StartupFailure), "startup-timeout");
    assert_eq!(of(&[], Outcome::Crash), UNDETERMINED);
    let died = died(API, "python3", ExitHow::Code { code: 1 });
    assert_eq!(of(&[died], Outcome::StartupFailure), UNDETERMINED);
    assert_eq!(of(&[vanished()], Outcome::StartupFailure), KILLED, "a line said that somebody died");
}

#[test]
fn a_flush_is_over_for_its_own_window_alone() {
    let line = |rank, what| EventKind::Window(WindowLine { rank, pid: 71, t: 1.0, what });
    let closed = |window| WindowEvent::Closed {
        window,
        file: "x".to_owned(),
        bytes: 1,
        first_step: 1,
        last_step: 2,
        recorded_s: 1.0,
        stop_s: 1.0,
        export_s: 1.0,
        why: "steps".to_owned(),
        content: crate::event::WindowContent::default(),
    };
    let flushing = line(0, WindowEvent::Flushing { window: 3 });
    let of = |more: EventKind| verdict(&[flushing.clone(), more], Outcome::Hang).cause;
    assert_eq!(of(line(0, closed(3))), "engine-hang");
    assert_eq!(of(line(1, closed(3))), "profiler-flush-stall", "another rank's");
    assert_eq!(of(line(0, closed(2))), "profiler-flush-stall", "an earlier one");
    assert_eq!(of(line(0, WindowEvent::Disabled { reason: "x".to_owned() })), "engine-hang");
}

#[test]
fn a_standstill_shows_the_line_that_names_it_and_else_what_was_seen() {
    let line = finding("profiler-stopping", "profiler-flush-stall", Gravity::Suspect, 7, "Stopping profiler");
    let shown = verdict(&[line, stood(HangKind::ProfilerFlush)], Outcome::Hang).decisive.unwrap();
    assert_eq!(shown.line, Some(7));
    let shown = verdict(&[illegal(Gravity::Suspect), stood(HangKind::Stopped)], Outcome::Hang);
    assert_eq!(
        (shown.cause.as_str(), shown.decisive.unwrap().source.as_str()),
        ("engine-hang", "signs of life")
    );
}
