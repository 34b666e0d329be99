//! The texts of vLLM 0.15.1's log, with our values in them. Taken from runs of ours on a CPU.

use super::args::Args;
use super::fault::Crash;
use super::knobs::Knobs;
use super::log::Log;
use super::tree::Boot;
use std::time::Duration;

const PACKAGES: &str = "/opt/venv/lib/python3.12/site-packages";

/// What the real server says when its engine is gone.
pub(super) const ENGINE_DEAD: &str =
    "EngineCore encountered an issue. See stack trace (above) for the root cause.";

/// Banner and configuration.
pub(super) fn api_start(log: &Log, args: &Args, knobs: &Knobs) {
    let banner = [
        String::new(),
        "       █     █     █▄   ▄█".to_owned(),
        format!(" ▄▄ ▄█ █     █     █ ▀▄▀ █  version {}", knobs.version),
        format!("  █▄█▀ █     █     █     █  model   {}", args.model),
        "   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀".to_owned(),
        String::new(),
    ];
    for line in banner {
        log.info("utils.py:325", &line);
    }
    log.info("utils.py:261", &format!("non-default args: {}", args.shown));
}

/// Between the bound port and the engine's start.
pub(super) fn api_config(log: &Log, args: &Args) {
    log.info("model.py:541", "Resolved architecture: SimulatedForCausalLM");
    log.info("model.py:1561", &format!("Using max model len {}", args.max_model_len));
    log.info(
        "scheduler.py:226",
        &format!("Chunked prefill is enabled with max_num_batched_tokens={}.", args.max_num_batched_tokens),
    );
    log.info("vllm.py:624", "Asynchronous scheduling is enabled.");
}

/// From the engine's readiness to the first request.
pub(super) fn api_ready(log: &Log, address: &str) {
    log.info("api_server.py:665", "Supported tasks: ['generate']");
    log.info("serving.py:177", "Warming up chat template processing...");
    log.info("serving.py:212", "Chat template warmup completed in 15.9ms");
    log.info("api_server.py:946", &format!("Starting vLLM API server 0 on {address}"));
    log.info("launcher.py:38", "Available routes are:");
    for (route, methods) in super::routes::ROUTES {
        log.info("launcher.py:46", &format!("Route: {route}, Methods: {}", methods.join(", ")));
    }
    log.uvicorn(&format!("Started server process [{}]", std::process::id()));
    log.uvicorn("Waiting for application startup.");
    log.uvicorn("Application startup complete.");
}

/// The first words of the engine.
pub(super) fn engine_initializing(log: &Log, args: &Args, knobs: &Knobs) {
    log.info(
        "core.py:96",
        &format!(
            "Initializing a V1 LLM engine (v{}) with config: model='{}', speculative_config=None, tokenizer='{}', \
             dtype=torch.bfloat16, max_seq_len={}, load_format=dummy, tensor_parallel_size={}, \
             pipeline_parallel_size=1, data_parallel_size=1, quantization=None, device_config=cuda, seed=0, \
             served_model_name={}, enable_prefix_caching=False, enable_chunked_prefill=True",
            knobs.version, args.model, args.model, args.max_model_len, args.tensor_parallel, args.served_name
        ),
    );
    if args.tensor_parallel == 1 {
        parallel_state(log, 0, 1);
        log.info("gpu_model_runner.py:4021", &format!("Starting to load model {}...", args.model));
    }
}

fn parallel_state(log: &Log, rank: u32, world: u32) {
    log.info(
        "parallel_state.py:1212",
        &format!(
            "world_size={world} rank={rank} local_rank={rank} \
             distributed_init_method=tcp://127.0.0.1:35997 backend=nccl"
        ),
    );
    log.info(
        "parallel_state.py:1423",
        &format!(
            "rank {rank} in world size {world} is assigned as DP rank 0, PP rank 0, PCP rank 0, TP rank {rank}, EP rank N/A"
        ),
    );
}

/// The same of a worker process.
pub(super) fn worker_loading(log: &Log, boot: &Boot) {
    parallel_state(log, boot.rank, boot.args.tensor_parallel);
    log.info("gpu_model_runner.py:4021", &format!("Starting to load model {}...", boot.args.model));
}

fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Half-way.
pub(super) fn engine_model_loaded(log: &Log, args: &Args, knobs: &Knobs) {
    let tokens = knobs.kv_blocks * knobs.block_size;
    log.info("kv_cache_utils.py:1307", &format!("GPU KV cache size: {} tokens", thousands(tokens)));
    log.info(
        "kv_cache_utils.py:1312",
        &format!(
            "Maximum concurrency for {} tokens per request: {:.2}x",
            thousands(args.max_model_len),
            tokens as f64 / args.max_model_len as f64
        ),
    );
}

/// The engine can take requests.
pub(super) fn engine_ready(log: &Log, took: Duration) {
    log.info(
        "core.py:272",
        &format!(
            "init engine (profile, create kv cache, warmup model) took {:.2} seconds",
            took.as_secs_f64()
        ),
    );
}

fn exception(crash: Crash) -> &'static str {
    match crash {
        Crash::GpuMemory => {
            "ValueError: Free memory on device cuda:0 (1.21/79.18 GiB) on startup is less than desired GPU memory \
             utilization (0.9, 71.26 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
        }
        Crash::Weights => {
            "safetensors._safetensors_rust.SafetensorError: Error while deserializing header: invalid header length"
        }
        Crash::KvCache => {
            "ValueError: To serve at least one request with the models's max seq len (320), (0.01 GiB KV cache is needed, \
             which is larger than the available KV cache memory (0.01 GiB). Based on the available memory, the estimated \
             maximum model length is 256. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when \
             initializing the engine."
        }
        Crash::Oom => {
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3.12 GiB. GPU 0 has a total capacity of \
             79.18 GiB of which 1.05 GiB is free."
        }
        Crash::IllegalAccess => {
            "RuntimeError: CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be \
             asynchronously reported at some other API call, so the stacktrace below might be incorrect.\nFor debugging \
             consider passing CUDA_LAUNCH_BLOCKING=1\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions."
        }
        Crash::Graph => "RuntimeError: CUDA error: operation not permitted when stream is capturing",
        Crash::Flashinfer => {
            "RuntimeError: Ninja build failed. Ninja output:\n/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found\n\
             ninja: build stopped: subcommand failed."
        }
        Crash::Triton => "ptxas fatal   : Value 'sm_121a' is not defined for option 'gpu-name'",
        Crash::Compile => {
            "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in \
             torch._inductor.config.cpp.cxx: (None, 'g++')"
        }
        Crash::Shm => "Error while creating shared memory segment /dev/shm/nccl-Ab12Cd (size 5243136)",
        Crash::Files => "OSError: [Errno 24] Too many open files",
        Crash::HostMemory => {
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you \
             tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
        }
        Crash::Assert => "RuntimeError: CUDA error: device-side assert triggered",
        Crash::Gated => {
            "Access to model org/closed is restricted. You must have access to it and be authenticated to access it."
        }
        Crash::NotFound => {
            "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or \
             'namespace/repo_name': '/srv/none/model'."
        }
        Crash::Config => {
            "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len \
             (max_position_embeddings=2048)"
        }
        Crash::Module => "ModuleNotFoundError: No module named 'msgspec'",
        Crash::Tokenizer => "ValueError: Couldn't instantiate the backend tokenizer from one of: ",
        Crash::Driver => "RuntimeError: The NVIDIA driver on your system is too old (found version 12020).",
        Crash::NoGpu => "RuntimeError: No CUDA GPUs are available",
        Crash::Ecc => "RuntimeError: CUDA error: uncorrectable ECC error encountered",
        Crash::Executor => "RuntimeError: Executor failed.",
        Crash::RpcTimeout => "TimeoutError: RPC call to execute_model timed out.",
        Crash::Nccl => {
            "RuntimeError: Worker failed with error 'NCCL error: unhandled system error', please check the stack trace \
             above for the root cause"
        }
    }
}

fn frames(list: &[(&str, u32, &str, &str)]) -> String {
    let mut text = "Traceback (most recent call last):".to_owned();
    for (file, line, function, code) in list {
        text.push_str(&format!("\n  File \"{PACKAGES}/{file}\", line {line}, in {function}\n    {code}"));
    }
    text
}

/// The engine fails before it is ready.
pub(super) fn startup_crash(log: &Log, crash: Crash) {
    let trace = frames(&[
        (
            "vllm/v1/engine/core.py",
            937,
            "run_engine_core",
            "engine_core = EngineCoreProc(*args, engine_index=dp_rank, **kwargs)",
        ),
        ("vllm/v1/engine/core.py", 691, "__init__", "super().__init__("),
        ("vllm/v1/engine/core.py", 105, "__init__", "self.model_executor = executor_class(vllm_config)"),
    ]);
    let text = format!("{trace}\n{}", exception(crash));
    log.error("core.py:946", "EngineCore failed to start.");
    for line in text.split('\n') {
        log.error("core.py:946", line);
    }
    log.raw(&format!("Process EngineCore_DP0:\n{text}"));
}

/// The engine fails in a step.
pub(super) fn engine_crash(log: &Log, crash: Crash, args: &Args) {
    log.error(
        "dump_input.py:72",
        &format!("Dumping input data for V1 LLM engine (v0.15.1) with config: model='{}',", args.model),
    );
    log.error("dump_input.py:79", "Dumping scheduler output for model execution: SchedulerOutput(...)");
    let trace = frames(&[
        ("vllm/v1/engine/core.py", 939, "run_engine_core", "engine_core.run_busy_loop()"),
        ("vllm/v1/engine/core.py", 966, "run_busy_loop", "self._process_engine_step()"),
    ]);
    log.error("core.py:948", "EngineCore encountered a fatal error.");
    for line in format!("{trace}\n{}", exception(crash)).split('\n') {
        log.error("core.py:948", line);
    }
}

/// A worker fails in a step.
pub(super) fn worker_crash(log: &Log, crash: Crash) {
    log.error("multiproc_executor.py:852", "WorkerProc hit an exception.");
    for line in exception(crash).split('\n') {
        log.error("multiproc_executor.py:852", line);
    }
}

/// The API server gives up on an engine that never became ready.
pub(super) fn startup_failed(log: &Log) {
    let trace = frames(&[
        (
            "vllm/entrypoints/openai/api_server.py",
            919,
            "run_server",
            "await run_server_worker(listen_address, sock, args, **uvicorn_kwargs)",
        ),
        (
            "vllm/v1/engine/core_client.py",
            479,
            "__init__",
            "with launch_core_engines(vllm_config, executor_class, log_stats) as (",
        ),
        ("vllm/v1/engine/utils.py", 992, "wait_for_engine_startup", "raise RuntimeError("),
    ]);
    log.raw(&format!(
        "{trace}\nRuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}"
    ));
}

/// SIGTERM while loading.
pub(super) fn terminated_while_loading(log: &Log) {
    let trace = frames(&[
        ("vllm/v1/engine/core_client.py", 527, "__init__", "if not sync_input_socket.poll("),
        (
            "vllm/entrypoints/openai/api_server.py",
            898,
            "signal_handler",
            "raise KeyboardInterrupt(\"terminated\")",
        ),
    ]);
    log.raw(&format!("{trace}\nKeyboardInterrupt: terminated"));
}

/// The port is somebody else's.
pub(super) fn port_in_use(log: &Log) {
    let trace = frames(&[
        (
            "vllm/entrypoints/openai/api_server.py",
            918,
            "run_server",
            "listen_address, sock = setup_server(args)",
        ),
        ("vllm/entrypoints/openai/api_server.py", 839, "create_server_socket", "sock.bind(addr)"),
    ]);
    log.raw(&format!("{trace}\nOSError: [Errno 98] Address already in use"));
}

/// The engine's process is gone without having said goodbye.
pub(super) fn engine_vanished(log: &Log) {
    log.error(
        "core_client.py:605",
        "Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.",
    );
}

const OUTPUT_HANDLER: [(&str, u32, &str, &str); 2] = [
    ("vllm/v1/engine/async_llm.py", 649, "output_handler", "outputs = await engine_core.get_output_async()"),
    (
        "vllm/v1/engine/core_client.py",
        894,
        "get_output_async",
        "raise self._format_exception(outputs) from None",
    ),
];

fn dead(log: &Log, place: &str, head: &str, before: &[(&str, u32, &str, &str)]) {
    log.error(place, head);
    let all: Vec<_> = before.iter().chain(&OUTPUT_HANDLER).copied().collect();
    let text = format!("{}\nvllm.v1.engine.exceptions.EngineDeadError: {ENGINE_DEAD}", frames(&all));
    for line in text.split('\n') {
        log.error(place, line);
    }
}

/// What the death means for the client inside the API server.
pub(super) fn output_handler_failed(log: &Log) {
    dead(log, "async_llm.py:693", "AsyncLLM output_handler failed.", &[]);
}

/// What the death means for one stream.
pub(super) fn stream_failed(log: &Log, chat: bool) {
    let queue = ("vllm/v1/engine/async_llm.py", 572, "generate", "out = q.get_nowait() or await q.get()");
    if chat {
        let file = "vllm/entrypoints/openai/chat_completion/serving.py";
        let first = (file, 735, "chat_completion_stream_generator", "async for res in result_generator:");
        dead(log, "serving.py:1377", "Error in chat completion stream generator.", &[first, queue]);
    } else {
        let file = "vllm/entrypoints/openai/completion/serving.py";
        let first =
            (file, 358, "completion_stream_generator", "async for prompt_idx, res in result_generator:");
        dead(log, "serving.py:518", "Error in completion stream generator.", &[first, queue]);
    }
}

/// A request that was refused.
pub(super) fn request_refused(log: &Log, message: &str) {
    log.error("serving.py:120", "Error in preprocessing prompt inputs");
    log.error("serving.py:120", "Traceback (most recent call last):");
    log.error("serving.py:120", &format!("vllm.exceptions.VLLMValidationError: {message}"));
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_grouped_as_python_groups_them() {
        assert_eq!(super::thousands(7), "7");
        assert_eq!(super::thousands(2_097_152), "2,097,152");
    }
}
