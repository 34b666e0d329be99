//! What real logs of each class look like, in our own words after the known message templates: every message in the shape in
//! which versions from 0.6 to 0.32 bring it, in colours, with CRLF, between lines that only follow, and near-misses that
//! are no failure.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

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

/// Cause, outcome, shape, message.
const MESSAGES: &[(&str, Outcome, Shape, &str)] = &[
    // ---- GPU ----
    (
        "cuda-oom",
        START,
        V1Start,
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 7.00 GiB. GPU 0 has a total capacity of 23.50 GiB of which 1.25 GiB is free.",
    ),
    (
        "cuda-oom",
        START,
        V0Start,
        "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of 63.98 GiB of which 1.10 GiB is free.",
    ),
    ("cuda-oom", CRASH, V1Serving, "RuntimeError: CUDA error: out of memory"),
    (
        "cuda-oom",
        CRASH,
        V1Serving,
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ),
    (
        "cuda-oom",
        START,
        Worker,
        "RuntimeError: CUDA out of memory occurred when warming up sampler with 256 dummy requests. Please try lowering `max_num_seqs` or `gpu_memory_utilization` when initializing the engine.",
    ),
    (
        "kv-cache-too-small",
        START,
        V1Old,
        "ValueError: The model's max seq len (8192) is larger than the maximum number of tokens that can be stored in KV cache (4096).",
    ),
    (
        "cuda-illegal-access",
        CRASH,
        V1Serving,
        "torch.AcceleratorError: CUDA error: an illegal memory access was encountered",
    ),
    (
        "cuda-illegal-access",
        CRASH,
        V1Serving,
        "RuntimeError: Triton Error [CUDA]: an illegal memory access was encountered",
    ),
    (
        "cuda-illegal-access",
        CRASH,
        Bare,
        "Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:455 'an illegal memory access was encountered'",
    ),
    ("cuda-illegal-access", CRASH, V1Serving, "RuntimeError: CUDA error: misaligned address"),
    (
        "cuda-device-assert",
        CRASH,
        V1Serving,
        "torch.AcceleratorError: CUDA error: device-side assert triggered",
    ),
    (
        "cuda-device-assert",
        CRASH,
        Bare,
        "../aten/src/ATen/native/cuda/TensorCompare.cu:112: _assert_async_cuda_kernel: block: [0,0,0], thread: [0,0,0] Assertion `probability tensor contains either `inf`, `nan` or element < 0` failed.",
    ),
    (
        "cuda-graph-capture-failure",
        START,
        V1Start,
        "torch.AcceleratorError: CUDA error: operation failed due to a previous error during capture",
    ),
    (
        "cuda-graph-capture-failure",
        START,
        Worker,
        "RuntimeError: Offset increment outside graph capture encountered unexpectedly.",
    ),
    (
        "cuda-driver-mismatch",
        START,
        V1Start,
        "RuntimeError: CUDA driver version is insufficient for CUDA runtime version",
    ),
    (
        "cuda-driver-mismatch",
        START,
        V0Start,
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 803: system has unsupported display driver / cuda driver combination",
    ),
    (
        "cuda-driver-mismatch",
        START,
        V1Start,
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
    ),
    (
        "cuda-driver-mismatch",
        START,
        V1Start,
        "RuntimeError: CUDA error: the provided PTX was compiled with an unsupported toolchain.",
    ),
    ("xid-gpu-lost", CRASH, V1Serving, "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    (
        "xid-gpu-lost",
        CRASH,
        Bare,
        "[ 9000.100000] NVRM: Xid (PCI:0000:17:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    ),
    (
        "xid-gpu-lost",
        CRASH,
        Bare,
        "[ 9000.100000] NVRM: Xid (PCI:0000:17:00): 94, pid=4242, name=VLLM::EngineCor, Contained: SM (0x1).",
    ),
    (
        "no-gpu",
        START,
        Api,
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.",
    ),
    (
        "no-gpu",
        START,
        V1Start,
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
    ),
    ("no-gpu", START, V1Start, "RuntimeError: CUDA error: no CUDA-capable device is detected"),
    (
        "leftover-gpu-memory",
        START,
        Worker,
        "ValueError: Free memory on device cuda:1 (11.9/44.4 GiB) on startup is less than desired GPU memory utilization (0.92, 40.85 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
    ),
    (
        "leftover-gpu-memory",
        START,
        V1Start,
        "AssertionError: Error in memory profiling. Initial free memory 30.1 GiB, current free memory 34.9 GiB. This happens when other processes sharing the same container release GPU memory while vLLM is profiling during initialization.",
    ),
    (
        "kv-cache-too-small",
        START,
        V1Start,
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is needed, which is larger than the available KV cache memory (9.75 GiB). Based on the available memory, the estimated maximum model length is 79872.",
    ),
    (
        "kv-cache-too-small",
        START,
        V0Start,
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine.",
    ),
    // ---- communication ----
    (
        "nccl-error",
        START,
        Worker,
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:77, invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.27.5\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
    ),
    (
        "nccl-error",
        START,
        V0Start,
        "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    ),
    (
        "nccl-error",
        START,
        V1Start,
        "RuntimeError: Gloo connectFullMesh failed with [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:144] no error",
    ),
    (
        "nccl-timeout",
        CRASH,
        Bare,
        "[rank3]:[E1124 03:00:00.1 ProcessGroupNCCL.cpp:685] [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=BROADCAST, NumelIn=4, NumelOut=4, Timeout(ms)=600000) ran for 600071 milliseconds before timing out.",
    ),
    (
        "nccl-timeout",
        START,
        V1Start,
        "torch.distributed.DistStoreError: Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
    ),
    ("engine-hang", Outcome::Hang, V1Serving, "TimeoutError: RPC call to execute_model timed out."),
    (
        "engine-hang",
        Outcome::Hang,
        Bare,
        "asyncio.exceptions.TimeoutError: Engine iteration timed out. This should never happen!",
    ),
    (
        "engine-hang",
        Outcome::Hang,
        Bare,
        "(APIServer pid=70) INFO 11-24 03:00:00 [loggers.py:257] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 0.0 tokens/s, Running: 12 reqs, Waiting: 3 reqs, GPU KV cache usage: 4.1%",
    ),
    // ---- host ----
    (
        "host-oom",
        CRASH,
        Bare,
        "[ 777.100000] Out of memory: Killed process 4711 (VLLM::EngineCor) total-vm:98231104kB, anon-rss:62914560kB",
    ),
    ("host-oom", CRASH, Bare, "    reason: OOMKilled"),
    (
        "host-oom",
        START,
        V1Start,
        "RuntimeError: [enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 17179869184 bytes.",
    ),
    (
        "host-oom",
        CRASH,
        Bare,
        "ERROR 11-24 03:00:00 [multiproc_executor.py:316] Worker proc Worker_TP0 died unexpectedly (exit code: -9), shutting down executor.",
    ),
    ("segfault", CRASH, Bare, "Fatal Python error: Segmentation fault"),
    (
        "segfault",
        CRASH,
        Bare,
        "[host:7:0:7] Caught signal 11 (Segmentation fault: address not mapped to object at address 0x8)",
    ),
    ("segfault", CRASH, Bare, "Segmentation fault (core dumped)"),
    (
        "shm-exhausted",
        START,
        Worker,
        "RuntimeError: unable to open shared memory object </torch_71_42> in read-write mode: No space left on device (28)",
    ),
    ("shm-exhausted", CRASH, Bare, "Fatal Python error: Bus error"),
    (
        "shm-exhausted",
        START,
        V1Start,
        "host:71:90 [0] misc/shmutils.cc:87 NCCL WARN Error: failed to extend /dev/shm/nccl-x1y2z3 to 33030532 bytes, error: No space left on device (28)",
    ),
    (
        "killed-externally",
        CRASH,
        Bare,
        "ERROR 11-24 03:00:00 [multiproc_executor.py:316] Worker proc Worker_TP0 died unexpectedly (exit code: -15), shutting down executor.",
    ),
    (
        "killed-externally",
        CRASH,
        Bare,
        "(APIServer pid=70) ERROR 11-24 03:00:00 [core_client.py:606] Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.",
    ),
    (
        "killed-externally",
        CRASH,
        Bare,
        "(APIServer pid=70) WARNING 11-24 03:00:00 [core_client.py:818] [shutdown] MPClient: engine core exited unexpectedly; starting cleanup",
    ),
    (
        "disk-full",
        START,
        Api,
        "OSError: [Errno 28] No space left on device: '/root/.cache/huggingface/hub/models--x/blobs/1.incomplete'",
    ),
    (
        "disk-full",
        START,
        Api,
        "RuntimeError: Data processing error: CAS service error : IO Error: No space left on device (os error 28)",
    ),
    ("disk-full", START, Api, "OSError: [Errno 122] Disk quota exceeded"),
    (
        "disk-full",
        CRASH,
        V1Serving,
        "torch._inductor.exc.InductorError: OSError: [Errno 28] No space left on device",
    ),
    ("too-many-open-files", Outcome::Degraded, Bare, "OSError: [Errno 24] Too many open files"),
    ("too-many-open-files", START, V1Start, "zmq.error.ZMQError: Too many open files"),
    ("port-in-use", START, Api, "OSError: [Errno 98] Address already in use"),
    (
        "port-in-use",
        START,
        Bare,
        "ERROR:    [Errno 98] error while attempting to bind on address ('0.0.0.0', 8000): address already in use",
    ),
    (
        "port-in-use",
        START,
        V1Start,
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    ),
    (
        "port-in-use",
        START,
        V1Start,
        "zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:5570')",
    ),
    (
        "startup-timeout",
        START,
        Api,
        "TimeoutError: Timed out waiting for engine core processes to start. This is often caused by slow weight loading for large models. Waited 600s (configured by VLLM_ENGINE_READY_TIMEOUT_S).",
    ),
    ("startup-timeout", START, Api, "KeyboardInterrupt: terminated"),
    // ---- model and installation ----
    (
        "model-not-found",
        START,
        Api,
        "OSError: nobody/nothing-7b is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
    ),
    (
        "model-not-found",
        START,
        Api,
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.",
    ),
    ("model-not-found", START, Api, "OSError: /models/x does not appear to have a file named config.json."),
    (
        "model-not-found",
        START,
        Api,
        "  Value error, Invalid repository ID or local directory specified: '/models/none'. [type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]",
    ),
    ("model-not-found", START, V1Start, "RuntimeError: Cannot find any model weights with `/models/x`"),
    (
        "model-not-found",
        START,
        Api,
        "huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error. (Request ID: Root=1-0;0)\nRepository Not Found for url: https://huggingface.co/api/models/a/b.",
    ),
    (
        "model-gated",
        START,
        Api,
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-0;0)\nCannot access gated repo for url https://huggingface.co/a/b/resolve/main/config.json.",
    ),
    (
        "model-gated",
        START,
        Api,
        "OSError: You are trying to access a gated repo.\nMake sure to have access to it at https://huggingface.co/a/b.",
    ),
    (
        "weights-corrupt",
        START,
        V1Start,
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
    ),
    (
        "weights-corrupt",
        START,
        V0Start,
        "RuntimeError: PytorchStreamReader failed reading zip archive: failed finding central directory",
    ),
    ("weights-corrupt", START, Worker, "_pickle.UnpicklingError: invalid load key, 'v'."),
    (
        "weights-corrupt",
        START,
        V1Start,
        "ValueError: Following weights were not initialized from checkpoint: {'model.layers.3.mlp.down_proj.weight'}",
    ),
    (
        "tokenizer-error",
        START,
        Api,
        "OSError: Can't load tokenizer for '/models/x'. If you were trying to load it from 'https://huggingface.co/models', make sure you don't have a local directory with the same name.",
    ),
    (
        "tokenizer-error",
        START,
        Api,
        "ValueError: Tokenizer class FooTokenizer does not exist or is not currently imported.",
    ),
    ("tokenizer-error", START, Api, "Exception: expected value at line 1 column 1"),
    (
        "tokenizer-error",
        START,
        Api,
        "RuntimeError: Failed to load the tokenizer. If the tokenizer is a custom tokenizer not yet available in the HuggingFace transformers library, consider setting `trust_remote_code=True`",
    ),
    (
        "unsupported-arch-or-config",
        START,
        Api,
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: dict_keys(['LlamaForCausalLM'])",
    ),
    (
        "unsupported-arch-or-config",
        START,
        Api,
        "  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len (max_position_embeddings=2048.0)",
    ),
    (
        "unsupported-arch-or-config",
        START,
        V1Start,
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has compute capability 7.5.",
    ),
    (
        "unsupported-arch-or-config",
        START,
        V0Start,
        "ValueError: Total number of attention heads (14) must be divisible by tensor parallel size (4).",
    ),
    (
        "unsupported-arch-or-config",
        START,
        Api,
        "ValueError: The repository for /models/x contains custom code which must be executed to correctly load the model.",
    ),
    (
        "unsupported-arch-or-config",
        START,
        Api,
        "ValueError: Unknown quantization method: foo. Must be one of ['awq', 'gptq'].",
    ),
    (
        "unsupported-arch-or-config",
        START,
        V0Start,
        "ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (4096). This effectively limits the maximum sequence length.",
    ),
    ("python-dependency-error", START, Bare, "/usr/bin/python3: No module named vllm"),
    (
        "python-dependency-error",
        START,
        Bare,
        "ModuleNotFoundError: No module named 'vllm.entrypoints'\nsome text",
    ),
    (
        "python-dependency-error",
        START,
        Bare,
        "ImportError: libcudart.so.12: cannot open shared object file: No such file or directory",
    ),
    (
        "python-dependency-error",
        START,
        Bare,
        "ImportError: /lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by /opt/venv/vllm/_C.abi3.so)",
    ),
    (
        "python-dependency-error",
        START,
        V1Start,
        "AttributeError: '_OpNamespace' '_C' object has no attribute 'rms_norm'",
    ),
    ("python-dependency-error", START, V1Start, "ModuleNotFoundError: No module named 'flashinfer'"),
    (
        "python-dependency-error",
        START,
        Api,
        "ImportError: cannot import name 'AutoProcessor' from 'transformers' (/opt/venv/transformers/__init__.py)",
    ),
    (
        "cli-usage-error",
        START,
        Bare,
        "vllm serve: error: argument --tensor-parallel-size/-tp: expected one argument",
    ),
    ("cli-usage-error", START, Bare, "vllm: error: unrecognized arguments: --gpu-memory-fraction 0.9"),
    (
        "cli-usage-error",
        START,
        Bare,
        "api_server.py: error: argument --rope-scaling: Value {bad} cannot be converted to <function loads at 0x7f>.",
    ),
    (
        "cli-usage-error",
        START,
        Bare,
        "api_server.py: error: ambiguous option: --max-model could match --max-model-len, --max-model-x",
    ),
    // ---- compilers ----
    (
        "triton-ptx-error",
        START,
        V1Start,
        "triton.runtime.errors.PTXASError: PTXAS error: Internal Triton PTX codegen error\nptxas fatal   : Value 'sm_120a' is not defined for option 'gpu-name'",
    ),
    (
        "triton-ptx-error",
        CRASH,
        V1Serving,
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 106496, Hardware limit: 101376. Reducing block sizes or `num_stages` may help.",
    ),
    (
        "triton-ptx-error",
        START,
        V1Start,
        "RuntimeError: Failed to find C compiler. Please specify via CC environment variable.",
    ),
    (
        "flashinfer-jit-failure",
        START,
        V1Start,
        "RuntimeError: Ninja build failed. Ninja output:\nninja: build stopped: subcommand failed.",
    ),
    (
        "flashinfer-jit-failure",
        START,
        V1Start,
        "FileNotFoundError: [Errno 2] No such file or directory: 'ninja'",
    ),
    (
        "flashinfer-jit-failure",
        START,
        V1Start,
        "RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist",
    ),
    ("flashinfer-jit-failure", START, V1Start, "nvcc fatal   : Unsupported gpu architecture 'compute_120a'"),
    (
        "torch-compile-failure",
        START,
        V1Start,
        "torch._inductor.exc.InductorError: InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')",
    ),
    ("torch-compile-failure", START, V1Start, "torch._dynamo.exc.Unsupported: Unsupported context manager"),
    // ---- nothing that a rule knows ----
    ("undetermined", START, V1Start, "KeyError: 'model.layers.17.self_attn.qkv_proj.q_norm'"),
    ("undetermined", CRASH, V1Serving, "AssertionError: this should not happen"),
    ("undetermined", START, Api, "TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
];

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
