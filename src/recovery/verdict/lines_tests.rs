use super::*;

fn line(rule: &str, cause: &str, gravity: Gravity, line: u64, text: &str) -> Finding {
    Finding {
        rule: rule.to_owned(),
        cause: cause.to_owned(),
        gravity,
        line,
        offset: 0,
        text: text.to_owned(),
        count: 1,
        outranks: Vec::new(),
    }
}

fn fatal(cause: &str, at: u64, text: &str) -> Finding {
    line(cause, cause, Gravity::Fatal, at, text)
}

fn cause(findings: &[Finding]) -> String {
    read(findings).cause
}

#[test]
fn the_first_line_that_knows_counts_and_one_that_only_guesses_is_likely() {
    let guess = line("worker-sigkill", "host-oom", Gravity::Fatal, 3, "exit code: -9");
    let read_one = |finding: &Finding| {
        let findings = [finding.clone()];
        let reading = read(&findings);
        (reading.cause.clone(), reading.confidence, reading.dead)
    };
    assert_eq!(read_one(&guess), ("host-oom".to_owned(), Confidence::Likely, true));
    assert_eq!(read_one(&fatal("cuda-oom", 3, "x")), ("cuda-oom".to_owned(), Confidence::Certain, true));
    let suspect = line("cuda-oom", "cuda-oom", Gravity::Suspect, 3, "x");
    assert_eq!(read_one(&suspect), ("cuda-oom".to_owned(), Confidence::Likely, false));
    assert!(is_guess(&guess) && !is_guess(&suspect));
    assert_eq!(
        cause(&[fatal("cuda-oom", 5, "x"), fatal("nccl-error", 4, "y")]),
        "cuda-oom",
        "as they were read"
    );
}

#[test]
fn a_line_that_repeats_another_gives_way_to_the_one_that_raised_it() {
    let passed = fatal("cuda-oom", 2, "Worker failed with error 'out of memory'");
    let code = fatal("kv-cache-too-small", 3, "    raise ValueError(f\"No memory for {blocks}\")");
    let raised = fatal("model-not-found", 4, "OSError: no such model");
    assert_eq!(cause(&[passed.clone(), code.clone(), raised]), "model-not-found");
    assert_eq!(cause(&[passed]), "cuda-oom", "where nobody else says it, it counts");
    assert_eq!(cause(&[code]), "kv-cache-too-small");
    let bare = fatal("kv-cache-too-small", 3, "    raise NotEnoughMemory(message)");
    assert_eq!(cause(&[bare, fatal("model-not-found", 4, "OSError: no such model")]), "model-not-found");
    // A message that quotes the word raise is no code.
    let quoted = fatal("kv-cache-too-small", 3, "ValueError: raise 'gpu_memory_utilization'");
    assert_eq!(cause(&[quoted, fatal("model-not-found", 4, "x")]), "kv-cache-too-small");
}

#[test]
fn a_cause_may_be_explained_by_another_and_that_by_a_third() {
    let explains =
        |name: &str, what: &str, at| Finding { outranks: vec![what.to_owned()], ..fatal(name, at, name) };
    let chain = [
        fatal("cuda-oom", 1, "a"),
        explains("segfault", "cuda-oom", 2),
        explains("disk-full", "segfault", 3),
    ];
    assert_eq!(cause(&chain), "disk-full");
    assert_eq!(cause(&chain[..2]), "segfault");
}

#[test]
fn suspects_beside_a_death_are_not_its_reason() {
    let beside = line("profiler-failed", "profiler-failed", Gravity::Suspect, 1, "x");
    let dead =
        line("engine-fatal", Finding::ENGINE_DEAD, Gravity::Fatal, 9, "Engine core proc died unexpectedly");
    assert_eq!(cause(std::slice::from_ref(&beside)), "profiler-failed");
    assert_eq!(cause(&[beside, dead.clone()]), KILLED);
    assert!(is_beside("kineto-thread-mismatch") && !is_beside("cuda-oom"));
    // A module that was missed long before the engine failed of something else.
    let missed =
        line("module-missing", "python-dependency-error", Gravity::Suspect, 1, "No module named 'x'");
    let head = line(
        "engine-fatal",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        5,
        "EngineCore encountered a fatal error.",
    );
    let other = line("exception", UNDETERMINED, Gravity::Consequence, 8, "RuntimeError: odd");
    assert_eq!(cause(&[missed.clone(), head.clone(), other.clone()]), UNDETERMINED);
    assert_eq!(cause(&[missed, other]), "python-dependency-error", "nobody died, so it is news");
}

#[test]
fn a_peer_that_died_without_a_word_explains_who_lost_it() {
    let lost = |text: &str| fatal("nccl-error", 5, text);
    let died = line(
        "worker-died",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        6,
        "Worker proc VllmWorker-1 died unexpectedly",
    );
    assert_eq!(cause(&[lost("Connection reset by peer"), died.clone()]), KILLED);
    assert_eq!(cause(&[lost("unhandled system error"), died.clone()]), "nccl-error");
    let spoke =
        line("exception", UNDETERMINED, Gravity::Consequence, 4, "(VllmWorker-1 pid=3) ValueError: x");
    assert_eq!(cause(&[lost("Connection reset by peer"), died, spoke]), "nccl-error", "it had its say");
}

#[test]
fn an_engine_that_is_gone_without_a_word_was_ended() {
    let gone = |text: &str| line("engine-fatal", Finding::ENGINE_DEAD, Gravity::Consequence, 9, text);
    let failed = line(
        "engine-failed-to-start",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        10,
        "Engine core initialization failed",
    );
    let start = line(STARTING, HEALTHY, Gravity::Harmless, 1, "vLLM API server version");
    assert_eq!(cause(&[gone("it exited unexpectedly"), failed.clone()]), KILLED);
    assert_eq!(cause(&[start, failed.clone()]), KILLED);
    let trace = line(
        "engine-fatal",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        9,
        "EngineCore encountered a fatal error.",
    );
    let raised = line("exception", UNDETERMINED, Gravity::Consequence, 20, "RuntimeError: odd");
    let findings = [trace, raised.clone()];
    let reading = read(&findings);
    assert_eq!((reading.cause.as_str(), reading.decisive.map(|f| f.line)), (UNDETERMINED, Some(20)));
    assert_eq!((reading.confidence, reading.dead), (Confidence::Weak, true));
    // An exception before the head is taken only where none follows.
    let before = line("exception", UNDETERMINED, Gravity::Consequence, 3, "KeyError: early");
    let head = line(
        "engine-fatal",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        9,
        "EngineCore encountered a fatal error.",
    );
    assert_eq!(read(&[before.clone(), head.clone(), raised]).decisive.map(|f| f.line), Some(20));
    assert_eq!(read(&[before, head]).decisive.map(|f| f.line), Some(3));
}

#[test]
fn the_files_an_exception_came_through_are_looked_at_over_one_traceback() {
    let head = line(
        "engine-fatal",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        9,
        "EngineCore encountered a fatal error.",
    );
    let of = |frame_at: u64, raised_at: u64| {
        let frame =
            line("frame-tokenizer", "tokenizer-error", Gravity::Consequence, frame_at, "File tokenizer.py");
        let raised =
            line("exception", UNDETERMINED, Gravity::Consequence, raised_at, "KeyError: 'added_tokens'");
        cause(&[head.clone(), frame, raised])
    };
    assert_eq!(of(20, 21), "tokenizer-error");
    assert_eq!(of(20, 139), "tokenizer-error");
    assert_eq!(of(20, 140), UNDETERMINED, "too far");
    assert_eq!(of(22, 21), UNDETERMINED, "behind it");
}

#[test]
fn a_traceback_that_nobody_caught_counts_only_if_the_server_never_answered() {
    let raised = line("exception", UNDETERMINED, Gravity::Consequence, 20, "ValueError: odd");
    let start = line(STARTING, HEALTHY, Gravity::Harmless, 1, "x");
    let ready = line(READY, HEALTHY, Gravity::Harmless, 9, "x");
    let long = line("request-too-long", "request-too-long", Gravity::Consequence, 9, "x");
    assert_eq!(cause(&[start.clone(), raised.clone()]), UNDETERMINED);
    assert_eq!(cause(&[start.clone(), ready, raised.clone()]), HEALTHY);
    assert_eq!(cause(&[long.clone(), raised.clone()]), "request-too-long");
    assert_eq!(cause(&[start, long, raised.clone()]), UNDETERMINED);
    let logged = Finding { text: "ERROR 11-24 [x.py:1] ValueError: odd".to_owned(), ..raised };
    assert_eq!(cause(&[logged]), HEALTHY);
}

#[test]
fn where_nothing_failed_the_most_frightening_line_is_shown() {
    let harmless = |rule: &str, cause: &str, at, text: &str| line(rule, cause, Gravity::Harmless, at, text);
    let ready = harmless(READY, HEALTHY, 2, "x");
    let (one, two) = (harmless("a", HEALTHY, 3, "WARNING a"), harmless("b", HEALTHY, 4, "INFO b"));
    let loud = harmless("c", HEALTHY, 1, "ERROR c");
    let shown = |findings: &[Finding]| read(findings).decisive.map(|f| f.line);
    assert_eq!(shown(&[loud, one.clone(), two.clone(), ready.clone()]), Some(1));
    assert_eq!(shown(&[one, two, ready.clone()]), Some(4));
    assert_eq!(shown(std::slice::from_ref(&ready)), Some(2));
    assert_eq!((read(&[ready]).confidence, read(&[]).confidence), (Confidence::Certain, Confidence::Weak));
    let stopped = harmless(GRACEFUL, GRACEFUL, 9, "x");
    let gone = harmless("client-disconnect", "client-disconnect", 5, "x");
    assert_eq!(cause(&[gone.clone(), stopped]), GRACEFUL);
    assert_eq!(cause(&[gone]), "client-disconnect");
}

#[test]
fn a_look_at_the_profiler_is_no_missed_recording() {
    let call = |what: &str, at| {
        line("profiler-404", "profiler-404", Gravity::Suspect, at, &format!("POST /{what}_profile 404"))
    };
    let stopped = line(GRACEFUL, GRACEFUL, Gravity::Harmless, 99, "x");
    let missed = |findings: &[Finding]| cause(findings) == "profiler-404";
    assert!(!missed(&[call("start", 5), call("stop", 6), stopped.clone()]));
    assert!(missed(&[call("start", 5), call("stop", 7), stopped.clone()]), "work lay between them");
    assert!(missed(&[call("start", 5), call("stop", 6)]), "it did not stop well");
    assert!(!missed(&[call("start", 5), stopped]));
    assert!(missed(&[call("start", 5)]));
    let flush = line("profiler-stopping", "profiler-flush-stall", Gravity::Suspect, 5, "x");
    let ended = |at| line(PROFILER_STOPPED, HEALTHY, Gravity::Harmless, at, "x");
    assert_eq!(cause(&[flush.clone(), ended(6)]), HEALTHY);
    assert_eq!(cause(&[flush.clone(), ended(4)]), "profiler-flush-stall", "that was an earlier one");
    assert_eq!(cause(&[flush]), "profiler-flush-stall");
}

#[test]
fn two_failures_that_differ_in_numbers_are_the_same() {
    let one = "(EngineCore_DP0 pid=71) ERROR 11-24 03:00:00 [core.py:946] tried 3.5 GiB, 0x77 at 12,000";
    let two = "(EngineCore_DP1 pid=9) ERROR 12-01 04:11:59 [core.py:9] tried 27.25 GiB, 0x1 at 1";
    assert_eq!(same(one), same(two));
    assert_eq!(same(one), "tried # GiB, # at #");
    assert_eq!(same("a] b"), "a] b", "only a level makes a head");
    assert_eq!(same(&"y".repeat(200)).len(), 160);
}

#[test]
fn what_only_follows_is_listed_once_and_without_the_cause() {
    let decisive = fatal("cuda-oom", 10, "out of memory");
    let follows = |at, text: &str| line("x", "x", Gravity::Consequence, at, text);
    let findings = [
        follows(3, "normal while it loads"),
        line("engine-fatal", Finding::ENGINE_DEAD, Gravity::Fatal, 4, "died"),
        decisive.clone(),
        follows(11, "one 1"),
        follows(12, "one 2"),
        line("exception", Finding::ENGINE_DEAD, Gravity::Consequence, 13, "EngineDeadError"),
        line("frame-x", "x", Gravity::Consequence, 14, "File x.py"),
        line("a", HEALTHY, Gravity::Harmless, 15, "nothing"),
        line("process-group-leak", HEALTHY, Gravity::Harmless, 16, "leak"),
        fatal("segfault", 17, "segfault"),
        fatal("no-such-cause", 18, "odd"),
    ];
    let lines: Vec<u64> = consequences(&findings, Some(&decisive)).iter().map(|f| f.line).collect();
    assert_eq!(lines, [4, 11, 16, 17]);
    let many: Vec<Finding> = (0..30).map(|n| follows(20 + n, &"z".repeat(n as usize + 1))).collect();
    assert_eq!(consequences(&many, None).len(), 12);
}

#[test]
fn a_look_for_the_profiler_by_requests_that_are_refused_is_no_missed_recording() {
    let start = line("profiler-404", "profiler-404", Gravity::Suspect, 5, "POST /start_profile 404");
    let refused =
        |at| line("request-too-long", "request-too-long", Gravity::Consequence, at, "maximum context length");
    assert_ne!(cause(&[refused(4), start.clone()]), "profiler-404");
    assert_eq!(cause(&[start.clone(), refused(6)]), "profiler-404", "the work came after it");
    let stop = line("profiler-404", "profiler-404", Gravity::Suspect, 9, "POST /stop_profile 404");
    let stopped = line(GRACEFUL, GRACEFUL, Gravity::Harmless, 99, "x");
    assert_eq!(cause(&[stop, stopped]), "profiler-404", "a stop alone is no look");
}

#[test]
fn an_engine_that_left_a_traceback_did_not_vanish() {
    let gone = line("engine-fatal", Finding::ENGINE_DEAD, Gravity::Fatal, 9, "EngineCore died");
    assert_eq!(cause(std::slice::from_ref(&gone)), KILLED);
    for (rule, text) in [
        ("engine-fatal", "EngineCore encountered a fatal error."),
        ("engine-failed-to-start", "EngineCore failed to start."),
        ("worker-exception", "WorkerProc hit an exception."),
    ] {
        let trace = line(rule, Finding::ENGINE_DEAD, Gravity::Fatal, 8, text);
        assert_eq!(cause(&[trace, gone.clone()]), UNDETERMINED, "{text}");
    }
}

#[test]
fn a_module_that_was_missed_is_old_news_only_before_a_failure_with_words_of_its_own() {
    let missed =
        |at| line("module-missing", "python-dependency-error", Gravity::Suspect, at, "No module named 'x'");
    let head = line("engine-fatal", Finding::ENGINE_DEAD, Gravity::Fatal, 5, "encountered a fatal error");
    let raised = line("exception", UNDETERMINED, Gravity::Consequence, 8, "RuntimeError: odd");
    assert_eq!(cause(&[missed(1), head.clone(), raised.clone()]), UNDETERMINED);
    assert_eq!(cause(&[missed(1), head.clone()]), "python-dependency-error", "nobody said anything else");
    assert_eq!(
        cause(&[head.clone(), missed(6), raised]),
        "python-dependency-error",
        "it is part of the failure"
    );
    let module = Finding { rule: "import-error".to_owned(), ..missed(1) };
    assert_eq!(cause(&[module, head]), "python-dependency-error");
}

#[test]
fn what_a_stopped_server_leaves_behind_is_no_sign_of_a_killing() {
    let left = line("leaked-semaphores", KILLED, Gravity::Suspect, 9, "leaked semaphore objects");
    let stopped = line(GRACEFUL, GRACEFUL, Gravity::Harmless, 5, "x");
    assert_eq!(cause(std::slice::from_ref(&left)), KILLED);
    assert_eq!(cause(&[stopped, left]), GRACEFUL);
}

#[test]
fn an_exception_is_the_failures_own_only_under_a_line_that_heads_a_traceback() {
    let died = line(
        "worker-died",
        Finding::ENGINE_DEAD,
        Gravity::Fatal,
        9,
        "Worker proc VllmWorker-1 died unexpectedly",
    );
    let raised = line("exception", UNDETERMINED, Gravity::Consequence, 20, "RuntimeError: odd");
    let shown = |findings: &[Finding]| read(findings).decisive.map(|f| f.line);
    assert_eq!(shown(&[died.clone(), raised.clone()]), Some(9));
    let told = line(
        "engine-fatal",
        Finding::ENGINE_DEAD,
        Gravity::Consequence,
        8,
        "EngineCore encountered a fatal error",
    );
    assert_eq!(shown(&[told, died, raised]), Some(9), "what only follows heads nothing");
}
