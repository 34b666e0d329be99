//! Who lives with whom, and how they die.

use crate::support::{Options, Sim, Stream, chunk, fixture, process, until};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use nix::unistd::Pid;

#[test]
fn the_tree_looks_like_vllms() {
    let sim = Sim::with("");
    let tree = sim.tree();
    assert_eq!(tree.len(), 3);
    assert!(tree.iter().all(|process| process.pgrp == sim.pid), "somebody left the process group");
    let engine = sim.named("VLLM::EngineCor").unwrap();
    assert_eq!(engine.ppid, sim.pid);
    assert!(engine.cmdline.starts_with("VLLM::EngineCore "), "{}", engine.cmdline);
    let tracker =
        tree.iter().find(|process| process.cmdline.contains("multiprocessing.resource_tracker")).unwrap();
    assert_eq!(tracker.ppid, sim.pid);
    assert_eq!(process(sim.pid).unwrap().comm, "varcas-guard");
    let sockets: Vec<_> =
        std::fs::read_dir(sim.tmp()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(sockets.len(), 3);
    assert!(sockets.iter().all(|name| name.len() == 36), "{sockets:?}");
}

#[test]
fn with_two_ranks_the_engine_has_two_workers() {
    let sim = Sim::ready(&Options { arguments: &["-tp", "2"], ..Options::default() });
    let engine = sim.engine();
    let workers: Vec<_> = sim.tree().into_iter().filter(|process| process.ppid == engine).collect();
    assert_eq!(workers.len(), 2);
    for (rank, worker) in workers.iter().enumerate() {
        assert_eq!(worker.comm, "VLLM::Worker_TP");
        assert!(worker.cmdline.starts_with(&format!("VLLM::Worker_TP{rank} ")), "{}", worker.cmdline);
    }
    assert_eq!(sim.complete(4).json()["usage"]["completion_tokens"], 4);
}

fn last_two(stream: Stream) -> (String, String) {
    let events = stream.rest();
    let [.., error, done] = &events[..] else { panic!("{events:?}") };
    (error.clone(), done.clone())
}

#[test]
fn a_killed_engine_breaks_the_streams_then_health_then_the_server_ends_with_zero() {
    let mut sim = Sim::with("watchdog=1500ms");
    let stream = sim.long_stream();
    sim.signal(sim.engine(), Signal::SIGKILL);
    let recording = fixture("engine-died-tail.http");
    let mut recorded = recording.as_bytes();
    let recorded = (chunk(&mut recorded).unwrap(), chunk(&mut recorded).unwrap());
    assert_eq!(last_two(stream), recorded);
    until("health says 503", || (sim.get("/health")?.status == 503).then_some(()));
    let reply = sim.complete(4);
    assert_eq!((reply.status, reply.body.as_str()), (200, fixture("error-engine-dead.json").trim_end()));
    assert_eq!(sim.code(), 0);
    let log = sim.log();
    for line in [
        "[core_client.py:605] Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.\n",
        "[async_llm.py:693] AsyncLLM output_handler failed.\n",
        "[serving.py:518] Error in completion stream generator.\n",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        "\"GET /health HTTP/1.1\" 503 Service Unavailable\n",
        &format!("INFO:     Finished server process [{}]\n", sim.pid),
    ] {
        assert!(log.contains(line), "{line:?} is not in:\n{log}");
    }
    sim.gone();
}

#[test]
fn a_killed_api_server_leaves_the_engine_as_an_orphan() {
    let mut sim = Sim::with("");
    let engine = sim.engine();
    sim.signal(sim.pid, Signal::SIGKILL);
    assert!(matches!(sim.wait(), WaitStatus::Signaled(_, Signal::SIGKILL, _)));
    let orphan =
        until("the engine has another parent", || process(engine).filter(|engine| engine.ppid != sim.pid));
    assert_eq!(orphan.pgrp, sim.pid);
    assert_eq!(sim.tree().len(), 2, "engine and tracker live on");
    sim.signal(engine, Signal::SIGKILL);
    sim.gone();
    assert!(sim.log().contains("There appear to be 1 leaked semaphore objects"), "{}", sim.log());
}

#[test]
fn an_api_server_killed_while_loading_leaves_an_engine_that_loads_on() {
    let mut sim = Sim::start(&Options { knobs: "fault=api.kill@loading", ..Options::default() });
    assert!(matches!(sim.wait(), WaitStatus::Signaled(_, Signal::SIGKILL, _)));
    until("the engine is ready for nobody", || {
        sim.log().contains("init engine (profile, create kv cache").then_some(())
    });
    assert_eq!(sim.engine(), sim.named("VLLM::EngineCor").unwrap().pid);
}

#[test]
fn an_orphaned_engine_does_not_live_for_ever() {
    let mut sim = Sim::with("orphan=100ms");
    sim.signal(sim.pid, Signal::SIGKILL);
    sim.wait();
    sim.gone();
}

#[test]
fn sigterm_ends_an_idle_server_with_zero_and_nobody_stays() {
    let mut sim = Sim::with("");
    sim.signal(sim.pid, Signal::SIGTERM);
    assert_eq!(sim.code(), 0);
    sim.gone();
    let log = sim.log();
    assert!(log.contains("[launcher.py:110] Shutting down FastAPI HTTP server.\n"), "{log}");
    assert!(log.contains("INFO:     Application shutdown complete.\n"), "{log}");
    assert!(!log.contains("died unexpectedly") && !log.contains("leaked"), "{log}");
}

#[test]
fn sigterm_under_load_waits_for_the_clients_whose_streams_stand_still() {
    let mut sim = Sim::with("");
    let stream = sim.long_stream();
    sim.signal(sim.pid, Signal::SIGTERM);
    until("the server waits", || {
        sim.log().contains("Waiting for connections to close. (CTRL+C to force quit)").then_some(())
    });
    assert!(sim.named("VLLM::EngineCor").is_none(), "the engine goes first");
    assert!(process(sim.pid).is_some_and(|server| server.state != 'Z'), "the server did not wait");
    assert!(sim.get("/health").is_none(), "new connections are refused");
    drop(stream);
    assert_eq!(sim.code(), 0);
}

#[test]
fn sigterm_while_loading_is_an_uncaught_keyboard_interrupt() {
    let mut sim = Sim::start(&Options { knobs: "load=60s", ..Options::default() });
    until("the engine loads", || sim.log().contains("Initializing a V1 LLM engine").then_some(()));
    sim.signal(sim.pid, Signal::SIGTERM);
    assert!(matches!(sim.wait(), WaitStatus::Signaled(_, Signal::SIGINT, _)));
    assert!(sim.log().contains("KeyboardInterrupt: terminated\n"), "{}", sim.log());
    sim.gone();
}

#[test]
fn a_failed_start_has_the_real_lines_and_exit_code_one() {
    let mut sim = Sim::start(&Options { knobs: "fault=crash(gpu-memory)@loading", ..Options::default() });
    assert_eq!(sim.code(), 1);
    let log = sim.log();
    assert!(log.contains("[core.py:946] EngineCore failed to start.\n"), "{log}");
    assert!(log.contains("[core.py:946] ValueError: Free memory on device cuda:0"), "{log}");
    let last =
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n";
    assert!(log.contains(last), "{log}");
}

#[test]
fn a_cache_too_small_for_the_context_does_not_start() {
    let mut sim = Sim::start(&Options { knobs: "kv_blocks=10", ..Options::default() });
    assert_eq!(sim.code(), 1);
    assert!(sim.log().contains("is larger than the available KV cache memory"), "{}", sim.log());
}

#[test]
fn a_port_of_somebody_else_is_exit_code_one() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sim = Sim::start_on(holder.local_addr().unwrap().port(), &Options::default());
    assert_eq!(sim.code(), 1);
    assert!(sim.log().contains("OSError: [Errno 98] Address already in use\n"), "{}", sim.log());
}

#[test]
fn a_startup_hang_never_answers() {
    let sim = Sim::start(&Options { knobs: "fault=hang@loading", ..Options::default() });
    until("the engine loads", || sim.log().contains("Starting to load model").then_some(()));
    assert!(sim.get("/health").is_none(), "the port must not listen while loading");
    assert_eq!(sim.tree().len(), 3);
}

#[test]
fn a_hung_engine_is_healthy_for_ever_and_needs_sigkill() {
    for fault in ["hang", "stop"] {
        let mut sim = Sim::with(&format!("engine_grace=300ms,fault={fault}@step:20"));
        let stream = sim.long_stream();
        until("the engine stands still", || {
            (sim.metric("iteration_tokens_total_count") == 19.0).then_some(())
        });
        assert_eq!(sim.get("/health").unwrap().status, 200);
        assert_eq!(sim.metric("num_requests_running"), 1.0);
        assert_eq!(sim.metric("iteration_tokens_total_count"), 19.0);
        assert_eq!(process(sim.engine()).unwrap().state, if fault == "stop" { 'T' } else { 'S' });
        drop(stream);
        sim.signal(sim.pid, Signal::SIGTERM);
        assert_eq!(sim.code(), 0);
        sim.gone();
    }
}

#[test]
fn an_exception_in_a_step_says_so_before_the_end() {
    let mut sim = Sim::with("fault=crash(oom)@step:10");
    let (error, _) = last_two(sim.long_stream());
    assert!(error.contains("EngineCore encountered an issue."), "{error}");
    assert_eq!(sim.code(), 0);
    let log = sim.log();
    assert!(log.contains("[core.py:948] EngineCore encountered a fatal error.\n"), "{log}");
    assert!(log.contains("torch.OutOfMemoryError: CUDA out of memory."), "{log}");
    assert!(!log.contains("died unexpectedly"), "{log}");
}

#[test]
fn signals_and_exit_codes_of_the_api_server_are_its_own() {
    for (fault, signal) in [("segv", Signal::SIGSEGV), ("abort", Signal::SIGABRT), ("kill", Signal::SIGKILL)]
    {
        let mut sim =
            Sim::start(&Options { knobs: &format!("fault=api.{fault}@start"), ..Options::default() });
        assert!(matches!(sim.wait(), WaitStatus::Signaled(_, seen, _) if seen == signal), "{fault}");
    }
    let mut sim = Sim::start(&Options { knobs: "fault=exit(7)@request:1", ..Options::default() });
    until("healthy", || (sim.get("/health")?.status == 200).then_some(()));
    let _ = sim.stream("/v1/completions", r#"{"prompt":"a","stream":true}"#);
    assert_eq!(sim.code(), 7);
}

#[test]
fn a_fault_for_the_first_attempt_spares_the_second() {
    let knobs = "fault=exit(9)@loading,only_attempt=1";
    let mut first = Sim::start(&Options { knobs, env: &[("VARCAS_ATTEMPT", "1")], ..Options::default() });
    assert_eq!(first.code(), 1);
    let second = Sim::ready(&Options { knobs, env: &[("VARCAS_ATTEMPT", "2")], ..Options::default() });
    assert_eq!(second.complete(3).status, 200);
}

#[test]
fn an_error_inside_a_stream_comes_after_two_hundred() {
    let sim = Sim::with("fault=stream-error(5)@request:2");
    assert_eq!(sim.complete(3).status, 200);
    let body = r#"{"prompt":"a","max_tokens":20,"temperature":0,"ignore_eos":true,"stream":true}"#;
    let (error, done) = last_two(sim.stream("/v1/completions", body));
    assert!(error.starts_with("data: {\"error\": {\"message\": "), "{error}");
    assert_eq!(done, "data: [DONE]\n\n");
    assert_eq!(sim.get("/health").unwrap().status, 200);
}

#[test]
fn a_server_deaf_to_sigterm_goes_on_serving() {
    let sim = Sim::with("fault=ignore-term@stop");
    sim.signal(sim.pid, Signal::SIGTERM);
    for _ in 0..5 {
        assert_eq!(sim.complete(2).status, 200);
    }
}

#[test]
fn an_engine_deaf_to_sigterm_is_killed_when_the_grace_is_over() {
    let mut sim = Sim::with("engine_grace=200ms,fault=engine.ignore-term@stop");
    sim.signal(sim.pid, Signal::SIGTERM);
    assert_eq!(sim.code(), 0);
    sim.gone();
}

#[test]
fn an_escaped_grandchild_has_left_the_group_but_not_the_mark() {
    let mut sim = Sim::with("fault=escape@ready");
    let escapee = until("the escapee", || sim.named("sim-escapee"));
    assert_ne!(escapee.pgrp, sim.pid);
    sim.signal(sim.pid, Signal::SIGTERM);
    assert_eq!(sim.code(), 0);
    sim.signal(escapee.pid, Signal::SIGTERM);
    until("only the escapee is left", || (sim.tree().len() == 1).then_some(()));
    assert_eq!(sim.tree()[0].pid, escapee.pid);
}

#[test]
fn a_stranger_can_take_the_port() {
    let mut sim = Sim::start(&Options { knobs: "fault=steal(0s)@start", ..Options::default() });
    assert_eq!(sim.code(), 1);
    assert!(sim.log().contains("Address already in use"), "{}", sim.log());
    until("the stranger is gone", || std::net::TcpListener::bind(("127.0.0.1", sim.port)).ok());

    let sim = Sim::with("fault=steal(0s)@ready");
    let reply =
        until("the stranger answers", || sim.get("/version").filter(|reply| reply.head.contains("stranger")));
    assert_eq!(reply.body, "not vllm\n");
    let port = sim.port;
    drop(sim);
    until("the stranger is gone", || std::net::TcpListener::bind(("127.0.0.1", port)).ok());
    until("the strangers are reaped", || {
        let me = Pid::this().as_raw();
        let all = std::fs::read_dir("/proc").unwrap();
        let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        let mut mine =
            pids.filter_map(process).filter(|other| other.ppid == me && other.comm == "stranger").peekable();
        let none = mine.peek().is_none();
        for stranger in mine {
            let _ = nix::sys::wait::waitpid(
                Pid::from_raw(stranger.pid),
                Some(nix::sys::wait::WaitPidFlag::WNOHANG),
            );
        }
        none.then_some(())
    });
}

#[test]
fn a_dead_worker_takes_the_engine_with_it() {
    let mut sim = Sim::ready(&Options {
        arguments: &["-tp", "2"],
        knobs: "fault=worker1.kill@step:5",
        ..Options::default()
    });
    let (error, _) = last_two(sim.long_stream());
    assert!(error.contains("EngineCore encountered an issue."), "{error}");
    assert_eq!(sim.code(), 0);
    let log = sim.log();
    assert!(log.contains("Worker proc VllmWorker-1 died unexpectedly, shutting down executor.\n"), "{log}");
    sim.gone();
}

/// The shared memory that the engine holds open.
fn segment(sim: &Sim) -> std::path::PathBuf {
    let open = std::fs::read_dir(format!("/proc/{}/fd", sim.engine())).unwrap();
    let mut links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    links.find(|link| link.starts_with("/dev/shm")).unwrap()
}

#[test]
fn shared_memory_is_removed_by_the_engine_or_else_by_the_tracker() {
    let options = Options { arguments: &["-tp", "2"], ..Options::default() };
    let mut sim = Sim::ready(&options);
    let clean = segment(&sim);
    assert!(clean.exists());
    sim.signal(sim.pid, Signal::SIGTERM);
    assert_eq!(sim.code(), 0);
    sim.gone();
    assert!(!clean.exists() && !sim.log().contains("leaked"), "{}", sim.log());

    let mut sim = Sim::ready(&options);
    let killed = segment(&sim);
    for process in sim.tree() {
        if !process.cmdline.contains("resource_tracker") {
            sim.signal(process.pid, Signal::SIGKILL);
        }
    }
    sim.wait();
    sim.gone();
    assert!(!killed.exists());
    assert!(sim.log().contains("There appear to be 1 leaked shared_memory objects"), "{}", sim.log());
}

#[test]
fn the_tracker_ignores_polite_signals() {
    let sim = Sim::with("");
    let tracker =
        sim.tree().into_iter().find(|process| process.cmdline.contains("resource_tracker")).unwrap();
    sim.signal(tracker.pid, Signal::SIGTERM);
    sim.signal(tracker.pid, Signal::SIGINT);
    sim.complete(20);
    assert!(process(tracker.pid).is_some_and(|process| process.state != 'Z'));
}

#[test]
fn a_silent_worker_is_complained_about() {
    let sim = Sim::ready(&Options {
        arguments: &["-tp", "2"],
        knobs: "ring_warning=100ms,fault=worker0.stop@step:5",
        ..Options::default()
    });
    let _stream = sim.long_stream();
    until("the complaint", || {
        sim.log().contains("No available shared memory broadcast block found in").then_some(())
    });
    assert_eq!(sim.get("/health").unwrap().status, 200);
}
