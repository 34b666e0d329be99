//! What real logs of each class look like, in our own words after the known message templates: every message in the shape in
//! which versions from 0.6 to 0.32 bring it, in colours, with CRLF, between lines that only follow, and near-misses that
//! are no failure.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "diagnose_messages/known.rs"]
mod known;

use known::MESSAGES;
use std::sync::LazyLock;
use varcas_guard::event::{EventKind, Outcome, Phase, Verdict};
use varcas_guard::health::log_rules::Rules;
use varcas_guard::health::log_starts::{Start, Starts};
use varcas_guard::recovery::verdict::Inquiry;

static RULES: LazyLock<Rules> = LazyLock::new(Rules::builtin);

fn starts(log: &str) -> Vec<Start> {
    let mut starts = Starts::new(&RULES);
    starts.push(log.as_bytes());
    starts.finish()
}

fn verdict(log: &str) -> Verdict {
    let mut inquiry = Inquiry::default();
    for finding in starts(log).pop().unwrap().findings {
        inquiry.hear(Phase::Loading, &EventKind::Finding(finding));
    }
    inquiry.of_log()
}

/// The words around a message.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// 0.6 to 0.8, the engine of v0 fails to start.
    V0Start,
    /// 0.8, v1 without process names.
    V1Old,
    /// 0.11 to 0.15: `(EngineCore_DP0 pid=71) ERROR ...`, the engine fails to start.
    V1Start,
    /// 0.20 to 0.32: `(EngineCore pid=71) ERROR ...`, a worker fails to start.
    Worker,
    /// The engine fails while it serves.
    V1Serving,
    /// The API server itself, before there is an engine.
    Api,
    /// The bare line.
    Bare,
}

use Shape::{Api, Bare, V0Start, V1Old, V1Serving, V1Start, Worker};

const BANNER: &str = "INFO 11-24 03:00:00 [utils.py:261] non-default args: {'model': 'tiny'}";
const LEAK: &str = "[rank0]:[W1124 03:00:01.1 ProcessGroupNCCL.cpp:1524] Warning: WARNING: destroy_process_group() was not \
                    called before program exit, which can leak resources.";

fn wrap(shape: Shape, message: &str) -> String {
    let core = |who: &str, head: &str, place: &str| {
        let mark = format!("({who} pid=71) ERROR 11-24 03:00:01 [{place}] ");
        format!(
            "{mark}{head}\n{mark}Traceback (most recent call last):\n{mark}  File \"/opt/venv/vllm/v1/engine/core.py\", line 937, in \
             run_engine_core\n{mark}    engine_core = EngineCoreProc(*args, **kwargs)\n{mark}{message}\n"
        )
    };
    let init = "(APIServer pid=70) RuntimeError: Engine core initialization failed. See root cause above. Failed core \
                proc(s): {}\n";
    let dead = "(APIServer pid=70) ERROR 11-24 03:00:02 [async_llm.py:693] AsyncLLM output_handler failed.\n(APIServer pid=70) \
                ERROR 11-24 03:00:02 [async_llm.py:693] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an \
                issue. See stack trace (above) for the root cause.\n(APIServer pid=70) INFO:     127.0.0.1:4000 - \"POST \
                /v1/completions HTTP/1.1\" 500 Internal Server Error\n";
    match shape {
        V0Start => format!(
            "ERROR 11-24 03:00:01 engine.py:366] Traceback (most recent call last):\nERROR 11-24 03:00:01 engine.py:366] \
             {message}\nTraceback (most recent call last):\nRuntimeError: Engine process failed to start. See stack trace for \
             the root cause.\n"
        ),
        V1Old => format!(
            "ERROR 11-24 03:00:01 [core.py:396] EngineCore failed to start.\nERROR 11-24 03:00:01 [core.py:396] \
             {message}\n{LEAK}\nRuntimeError: Engine core initialization failed. See root cause above.\n"
        ),
        V1Start => format!(
            "{BANNER}\n{}{LEAK}\n{init}",
            core("EngineCore_DP0", "EngineCore failed to start.", "core.py:946")
        ),
        Worker => format!(
            "{BANNER}\n{}{}{LEAK}\n{init}",
            core("Worker_TP1", "WorkerProc failed to start.", "multiproc_executor.py:953"),
            "(EngineCore pid=71) ERROR 11-24 03:00:02 [core.py:1510] Exception: WorkerProc initialization failed due to an \
             exception in a background process. See stack trace for root cause.\n",
        ),
        V1Serving => format!(
            "{BANNER}\n(APIServer pid=70) INFO:     Application startup complete.\n{}{dead}",
            core("EngineCore_DP0", "EngineCore encountered a fatal error.", "core.py:948")
        ),
        Api => format!(
            "{BANNER}\n(APIServer pid=70) Traceback (most recent call last):\n(APIServer pid=70)   File \
             \"/opt/venv/vllm/entrypoints/openai/api_server.py\", line 919, in run_server\n(APIServer pid=70) {message}\n"
        ),
        Bare => format!("{message}\n"),
    }
}

const START: Outcome = Outcome::StartupFailure;
const CRASH: Outcome = Outcome::Crash;

#[test]
fn every_message_of_a_class_is_known_in_every_shape() {
    let mut wrong = Vec::new();
    for (cause, outcome, shape, message) in MESSAGES {
        let log = wrap(*shape, message);
        // As it is, in colours, and with the line ends of Windows.
        let coloured: String = log
            .lines()
            .map(|line| match line.strip_prefix('(').and_then(|rest| rest.split_once(") ")) {
                Some((who, rest)) => format!("\u{1b}[0;36m({who})\u{1b}[0;0m {rest}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        for (how, text) in
            [("plain", log.clone()), ("colours", coloured), ("CRLF", log.replace('\n', "\r\n"))]
        {
            let seen = verdict(&text);
            let last = message.lines().last().unwrap().trim();
            let decisive = seen.decisive.as_ref().map_or("", |quote| quote.text.as_str());
            let line = message.lines().any(|line| decisive.contains(line.trim()));
            if seen.cause != *cause || seen.outcome != *outcome || !line {
                wrong.push(format!(
                    "{how} {shape:?} {cause} {outcome}: {} {} {decisive:?}\n     {last}",
                    seen.cause, seen.outcome
                ));
            }
        }
    }
    println!("{} messages in three forms each", MESSAGES.len());
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}

/// Lines that resemble a failure and are none: cause, text.
const HARMLESS: &[(&str, &str)] = &[
    (
        "healthy",
        "INFO 11-24 03:00:00 [utils.py:261] non-default args: {'model': 'CUDA out of memory', 'port': 8000}",
    ),
    (
        "healthy",
        "(EngineCore_DP0 pid=71) WARNING 11-24 03:00:00 [topk.py:59] flashinfer is not available, falling back to torch",
    ),
    (
        "healthy",
        "(EngineCore_DP0 pid=71) INFO 11-24 03:00:00 [shm_broadcast.py:542] shared memory broadcast block",
    ),
    (
        "healthy",
        "(APIServer pid=70) WARNING 11-24 03:00:00 [system_utils.py:266] Found ulimit of 1024 and failed to automatically increase with error current limit exceeds maximum limit. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.",
    ),
    (
        "healthy",
        "(APIServer pid=70) ERROR 11-24 03:00:00 [serving.py:216] Chat template warmup failed\n(APIServer pid=70) ERROR 11-24 03:00:00 [serving.py:216] Traceback (most recent call last):\n(APIServer pid=70) ERROR 11-24 03:00:00 [serving.py:216] ValueError: As of transformers v4.44, default chat template is no longer allowed",
    ),
    (
        "request-too-long",
        "(APIServer pid=70) ERROR 11-24 03:00:00 [serving.py:120] Error in preprocessing prompt inputs\n(APIServer pid=70) ERROR 11-24 03:00:00 [serving.py:120] vllm.exceptions.VLLMValidationError: This model's maximum context length is 2048 tokens. However, your prompt contains at least 3000 input tokens, which exceeds this limit.",
    ),
    (
        "request-too-long",
        "ERROR 11-24 03:00:00 [serving_chat.py:200] ValueError: The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no smaller than the number of text tokens.",
    ),
    (
        "request-too-long",
        "WARNING 11-24 03:00:00 scheduler.py:692] Input prompt (9000 tokens) is too long and exceeds limit of 4096",
    ),
    ("client-disconnect", "INFO 11-24 03:00:00 [async_llm.py:431] Request chatcmpl-17 aborted."),
    (
        "graceful-shutdown",
        "(APIServer pid=70) INFO 11-24 03:00:00 [launcher.py:110] Shutting down FastAPI HTTP server.\n[rank0]:[W1124 03:00:00.1 ProcessGroupNCCL.cpp:1524] Warning: WARNING: destroy_process_group() was not called before program exit\n/usr/lib/python3.12/multiprocessing/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked semaphore objects to clean up at shutdown",
    ),
    (
        "graceful-shutdown",
        "(APIServer pid=70) INFO 11-24 03:00:00 [launcher.py:110] Shutting down FastAPI HTTP server.\n(APIServer pid=70) ERROR 11-24 03:00:00 [core_client.py:605] Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.",
    ),
    // While it loads and compiles, this is normal.
    (
        "healthy",
        "INFO 11-24 03:00:00 [utils.py:261] non-default args: {}\n(EngineCore_DP0 pid=71) INFO 11-24 03:01:00 [shm_broadcast.py:542] No available shared memory broadcast block found in 60 seconds. This typically happens when some processes are hanging\n(APIServer pid=70) INFO:     Application startup complete.",
    ),
    // The profiler came to its end.
    (
        "healthy",
        "(APIServer pid=70) INFO 11-24 03:00:00 [api_router.py:31] Stopping profiler...\n(APIServer pid=70) INFO 11-24 03:00:09 [api_router.py:33] Profiler stopped.",
    ),
];

#[test]
fn what_only_resembles_a_failure_is_none() {
    for (cause, log) in HARMLESS {
        let seen = verdict(log);
        assert_eq!((seen.cause.as_str(), seen.outcome), (*cause, Outcome::Success), "{log}\n{seen:#?}");
    }
}

#[test]
fn colours_of_uvicorn_and_prefixes_of_containers_hide_nothing() {
    let colours = "\u{1b}[32mINFO\u{1b}[0m:     127.0.0.1:4 - \"\u{1b}[1mPOST /start_profile HTTP/1.1\u{1b}[0m\" \
                   \u{1b}[31m404 Not Found\u{1b}[0m\n";
    assert_eq!(verdict(colours).cause, "profiler-404");
    let stopped = "\u{1b}[32mINFO\u{1b}[0m:     Application shutdown complete.\n";
    assert_eq!(verdict(stopped).cause, "graceful-shutdown");
    for prefix in ["vllm-1  | ", "2026-11-24T03:00:00.1Z stdout F ", "Nov 24 03:00:00 host vllm[70]: "] {
        let log = |message: &str| {
            wrap(Api, message).lines().map(|line| format!("{prefix}{line}\n")).collect::<String>()
        };
        assert_eq!(verdict(&log("KeyError: 'layer_types'")).cause, "undetermined", "{prefix}");
        assert_eq!(
            verdict(&log("OSError: [Errno 98] Address already in use")).cause,
            "port-in-use",
            "{prefix}"
        );
    }
}

#[test]
fn a_cause_wins_over_everything_that_follows_from_it_whatever_comes_first() {
    // The rank that hears of it speaks before the one that failed.
    let log = "\
(Worker_TP0 pid=71) ERROR 11-24 03:00:01 [multiproc_executor.py:852] WorkerProc hit an exception.
(Worker_TP0 pid=71) ERROR 11-24 03:00:01 [multiproc_executor.py:852] torch.distributed.DistBackendError: NCCL error in: /pytorch/NCCLUtils.hpp:268, remote process exited or there was a network error, NCCL version 2.27.5
(Worker_TP0 pid=71) ERROR 11-24 03:00:01 [multiproc_executor.py:852] ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
(Worker_TP1 pid=72) ERROR 11-24 03:00:02 [multiproc_executor.py:852] WorkerProc hit an exception.
(Worker_TP1 pid=72) ERROR 11-24 03:00:02 [multiproc_executor.py:852] torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
(EngineCore_DP0 pid=70) ERROR 11-24 03:00:03 [core.py:948] RuntimeError: Worker failed with error 'NCCL error', please check the stack trace above for the root cause
";
    let seen = verdict(log);
    assert_eq!(
        (seen.cause.as_str(), seen.decisive.as_ref().unwrap().line),
        ("cuda-oom", Some(5)),
        "{seen:#?}"
    );
    assert!(seen.consequences.iter().any(|quote| quote.text.contains("ncclRemoteError")), "{seen:#?}");
}

#[test]
fn a_peer_that_vanished_explains_the_ranks_that_complain() {
    let log = "\
(EngineCore_DP0 pid=70) ERROR 11-24 03:00:01 [multiproc_executor.py:246] Worker proc VllmWorker-1 died unexpectedly, shutting down executor.
(Worker_TP0 pid=71) ERROR 11-24 03:00:01 [multiproc_executor.py:852] RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:17309
(EngineCore_DP0 pid=70) ERROR 11-24 03:00:01 [core.py:948] EngineCore encountered a fatal error.
";
    let seen = verdict(log);
    assert_eq!(
        (seen.cause.as_str(), seen.decisive.as_ref().unwrap().line),
        ("killed-externally", Some(1)),
        "{seen:#?}"
    );
    // Who wrote a traceback did not vanish.
    let spoke = log.replace("(Worker_TP0 pid=71)", "(Worker_TP1 pid=72)");
    assert_eq!(verdict(&spoke).cause, "nccl-error");
}

#[test]
fn an_optional_module_that_was_missing_long_before_is_not_the_reason() {
    let log = "\
INFO 11-24 03:00:00 [utils.py:261] non-default args: {}
ModuleNotFoundError: No module named 'tilelang'
(EngineCore_DP0 pid=71) ERROR 11-24 03:00:09 [core.py:946] EngineCore failed to start.
(EngineCore_DP0 pid=71) ERROR 11-24 03:00:09 [core.py:946] KeyError: 'lm_head.weight'
(APIServer pid=70) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
";
    let seen = verdict(log);
    assert_eq!(
        (seen.cause.as_str(), seen.decisive.as_ref().unwrap().line),
        ("undetermined", Some(4)),
        "{seen:#?}"
    );
}

#[test]
fn of_two_starts_the_last_one_counts() {
    let good = format!("{BANNER}\n(APIServer pid=70) INFO:     Application startup complete.\n");
    let bad = wrap(V1Start, "RuntimeError: No CUDA GPUs are available");
    assert_eq!(verdict(&format!("{good}{bad}")).cause, "no-gpu");
    assert_eq!(verdict(&format!("{bad}{good}")).cause, "healthy");
    assert_eq!(starts(&format!("{bad}{good}{bad}")).len(), 3);
}

#[test]
fn two_failures_that_are_the_same_have_one_fingerprint() {
    let of = |message: &str| verdict(&wrap(V1Serving, message)).fingerprint;
    let first = of(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.",
    );
    let second = of(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has 0.25 GiB free.",
    );
    let other = of("RuntimeError: CUDA error: an illegal memory access was encountered");
    assert_eq!(first.replace("MiB", "GiB"), second.replace("MiB", "GiB"));
    assert_ne!(first, other);
}

#[test]
fn a_log_of_any_bytes_gets_a_verdict() {
    for text in ["", "\n\n\n", "\u{0}\u{1}\u{2}", "no line break at the end", &"x".repeat(3 << 20)] {
        let seen = verdict(text);
        assert_eq!((seen.cause.as_str(), seen.outcome), ("healthy", Outcome::Success));
    }
}
