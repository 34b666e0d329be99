//! What is known of each cause: what it means, whether trying again can help, what to do. Pure data.

use crate::event::{Outcome, Retry};

/// One class of failure.
#[derive(Debug, Clone, Copy)]
pub struct Cause {
    /// In kebab case, as log rules and verdicts name it.
    pub name: &'static str,
    /// How an attempt ends of it if nothing else says so. [`Outcome::Success`] means that nothing failed.
    pub outcome: Outcome,
    /// Whether trying again can help.
    pub retry: Retry,
    /// A failed start and a crash look different; these classes know which they are whatever the phase.
    pub fixed: bool,
    /// What happened, for people.
    pub what: &'static str,
    /// What to do, for people.
    pub advice: &'static str,
    /// Where it is known from.
    pub reference: &'static str,
}

/// The class of a failure whose cause nobody named.
pub const UNDETERMINED: &str = "undetermined";
/// Somebody ended the server from outside.
pub const KILLED: &str = "killed-externally";
/// Nothing failed, and the server still runs as far as the log says.
pub const HEALTHY: &str = "healthy";
/// Nothing failed, and the server was stopped in good order.
pub const GRACEFUL: &str = "graceful-shutdown";

/// What is known of the cause; of one that a user's rule made up, as much as of [`UNDETERMINED`].
pub fn of(name: &str) -> &'static Cause {
    ALL.iter().find(|cause| cause.name == name).unwrap_or(&ALL[0])
}

const fn cause(
    name: &'static str,
    outcome: Outcome,
    retry: Retry,
    what: &'static str,
    advice: &'static str,
    reference: &'static str,
) -> Cause {
    Cause { name, outcome, retry, fixed: false, what, advice, reference }
}

const fn fixed(cause: Cause) -> Cause {
    Cause { fixed: true, ..cause }
}

use Outcome::{Crash, Degraded, Hang, StartupFailure as Start, Success};
use Retry::{No, WithMitigation as Change, Yes};

/// Every cause; the first is the one of unknown names.
pub const ALL: &[Cause] = &[
    cause(
        UNDETERMINED,
        Crash,
        Yes,
        "the server failed, and no line that was read says why",
        "read the log above the first line that is quoted here, and the saved stacks",
        "CRASH_ANALYSIS.md",
    ),
    fixed(cause(
        "guard-fault",
        Outcome::GuardFault,
        Yes,
        "a part of varcas-guard itself failed",
        "report it with the run folder",
        "CRASH_ANALYSIS.md",
    )),
    // ---- GPU ----
    cause(
        "cuda-oom",
        Crash,
        Change,
        "the GPU had no memory left for an allocation",
        "lower --gpu-memory-utilization (it leaves room for activations), --max-num-seqs or --max-num-batched-tokens; if the \
         weights alone do not fit: quantise, or more GPUs",
        "https://docs.vllm.ai/en/latest/configuration/conserving_memory/",
    ),
    cause(
        "leftover-gpu-memory",
        Start,
        Change,
        "another process held GPU memory when the server asked for its share",
        "end the process that holds it and wait until the memory is back, or lower --gpu-memory-utilization",
        "vllm/v1/worker/gpu_worker.py; CRASH_ANALYSIS.md, section 10",
    ),
    cause(
        "kv-cache-too-small",
        Start,
        Change,
        "after the weights too little memory was left for the key-value cache of even one request",
        "lower --max-model-len, or raise --gpu-memory-utilization",
        "vllm/v1/core/kv_cache_utils.py",
    ),
    cause(
        "cuda-illegal-access",
        Crash,
        Change,
        "a kernel touched memory that is not its own; the CUDA context is lost",
        "try once more; if it repeats: --enforce-eager, another attention backend, another version; \
         CUDA_LAUNCH_BLOCKING=1 names the kernel",
        "cudaErrorIllegalAddress",
    ),
    cause(
        "cuda-device-assert",
        Crash,
        No,
        "a kernel's own check failed, mostly an index beyond a table: a token or position the model does not have",
        "find the request that indexes out of range; the same request crashes again",
        "cudaErrorAssert",
    ),
    cause(
        "cuda-graph-capture-failure",
        Start,
        Change,
        "recording a CUDA graph failed: something in it may not be recorded",
        "--enforce-eager",
        "cudaErrorStreamCaptureUnsupported, cudaErrorStreamCaptureInvalidated",
    ),
    cause(
        "cuda-driver-mismatch",
        Start,
        No,
        "the driver is too old for the CUDA version this build was made for, or does not support the device",
        "a newer driver, or a build for an older CUDA",
        "cudaErrorInsufficientDriver",
    ),
    cause(
        "xid-gpu-lost",
        Crash,
        Change,
        "the GPU or its memory reported an error of its own",
        "look for Xid lines in the kernel's log; reset the GPU, and drain the machine if it repeats",
        "https://docs.nvidia.com/deploy/xid-errors/",
    ),
    cause(
        "no-gpu",
        Start,
        No,
        "no usable GPU is visible to the server",
        "check CUDA_VISIBLE_DEVICES and the driver; give the container a GPU",
        "vllm/config/device.py; torch/cuda/__init__.py",
    ),
    cause(
        "unsupported-hardware",
        Start,
        No,
        "the GPU cannot do what was asked of it",
        "another --dtype (float16 on GPUs before Ampere), quantisation or attention backend, or a newer GPU",
        "vllm/platforms/cuda.py",
    ),
    // ---- communication ----
    cause(
        "nccl-error",
        Crash,
        Change,
        "a collective operation between the workers failed",
        "look for the rank that died first; NCCL_DEBUG=INFO; check network interfaces, peer-to-peer access, /dev/shm, driver",
        "https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html",
    ),
    cause(
        "nccl-timeout",
        Crash,
        Change,
        "a collective operation did not end in time: one rank never came",
        "find the rank that stands still (the flight recorder's files are in evidence/); --disable-custom-all-reduce, \
         NCCL_P2P_DISABLE=1",
        "torch ProcessGroupNCCL.cpp",
    ),
    fixed(cause(
        "engine-hang",
        Hang,
        Change,
        "the engine stood still while requests were waiting",
        "look at the saved stacks for the process that waits; try again with NCCL_DEBUG and fewer sequences",
        "vllm/v1/executor/multiproc_executor.py; CRASH_ANALYSIS.md, section 12",
    )),
    fixed(cause(
        "driver-hang",
        Hang,
        Change,
        "a process sleeps where no signal reaches it, or the GPU driver does not answer",
        "only the kernel or a reset of the GPU can end it; if it repeats, reboot the machine",
        "CRASH_ANALYSIS.md, section 12",
    )),
    fixed(cause(
        "client-stall",
        Hang,
        Yes,
        "the server made progress, but the streams of the load did not",
        "look at the load's own log; this points to the client or to the network between them",
        "CRASH_ANALYSIS.md, section 12",
    )),
    // ---- host ----
    fixed(cause(
        "host-oom",
        Crash,
        Change,
        "the machine or its container had no memory left, and the kernel ended a process for it",
        "more memory; a smaller --swap-space, VLLM_CPU_KVCACHE_SPACE or loader parallelism; shorter profiler windows",
        "Linux mm/oom_kill.c",
    )),
    cause(
        "shm-exhausted",
        Crash,
        Change,
        "/dev/shm is full or too small for the workers",
        "docker run --shm-size=8g or --ipc=host; look for forgotten segments in /dev/shm",
        "NCCL user guide, shared memory; SIGBUS on a full tmpfs",
    ),
    fixed(cause(
        "segfault",
        Crash,
        Change,
        "native code of the server touched memory that does not exist",
        "try once more; if it repeats: --enforce-eager, another attention backend, NCCL_CUMEM_ENABLE=0, another version",
        "faulthandler; signal(7)",
    )),
    fixed(cause(
        KILLED,
        Crash,
        Change,
        "a process of the server ended without a word: somebody killed it",
        "find who sent the signal (a scheduler, a colleague, a limit); make sure that the whole process group is gone and \
         the GPU is free before the next start",
        "CRASH_ANALYSIS.md, section 10",
    )),
    cause(
        "disk-full",
        Degraded,
        Change,
        "no space was left on a disk that the server writes to",
        "free some space, or put TMPDIR, HF_HOME and VLLM_CACHE_ROOT on a larger disk",
        "ENOSPC",
    ),
    cause(
        "too-many-open-files",
        Degraded,
        Change,
        "a process may not open any more files or connections",
        "ulimit -n 65536",
        "EMFILE",
    ),
    cause(
        "port-in-use",
        Start,
        Change,
        "a port that the server needs is taken",
        "end the process that holds it, or choose another port",
        "EADDRINUSE; CRASH_ANALYSIS.md, section 9",
    ),
    fixed(cause(
        "startup-timeout",
        Start,
        Change,
        "the server did not become ready in the time somebody gave it",
        "raise the limit (--startup-timeout; VLLM_ENGINE_READY_TIMEOUT_S), and warm the model's and the compiler's caches first",
        "vllm/v1/engine/core_client.py",
    )),
    // ---- model and installation ----
    cause(
        "model-not-found",
        Start,
        No,
        "there is no such model, or a file of it is missing",
        "correct --model; download the model first when the machine is offline",
        "huggingface_hub RepositoryNotFoundError; transformers",
    ),
    cause(
        "model-gated",
        Start,
        No,
        "the model is there, but only for those who may have it",
        "accept its licence and set HF_TOKEN, or use a folder with the files and HF_HUB_OFFLINE=1",
        "huggingface_hub GatedRepoError",
    ),
    cause(
        "weights-corrupt",
        Start,
        No,
        "a weight file is damaged or cut short",
        "delete that file and download it again",
        "safetensors; pickle",
    ),
    cause(
        "tokenizer-error",
        Start,
        No,
        "the tokenizer's files are missing, damaged, or for another version",
        "fix the tokenizer's files, install sentencepiece or tiktoken, or a newer tokenizers; --skip-tokenizer-init only if you \
         send token ids",
        "transformers; tokenizers",
    ),
    cause(
        "unsupported-arch-or-config",
        Start,
        No,
        "this vLLM cannot serve this model with these settings",
        "correct the setting that the line names, or take a newer vLLM or transformers",
        "vllm/config; vllm/model_executor/models/registry.py",
    ),
    cause(
        "python-dependency-error",
        Start,
        No,
        "the installation is not whole: a module is missing or does not fit the others",
        "install the versions that this vLLM asks for (torch above all), in an environment of its own",
        "CPython import system; ld.so",
    ),
    cause(
        "cli-usage-error",
        Start,
        No,
        "the server's command line is wrong",
        "correct or remove the argument that the line names",
        "CPython argparse",
    ),
    // ---- compilers ----
    cause(
        "triton-ptx-error",
        Start,
        Change,
        "triton's assembler does not know this GPU, or could not compile a kernel",
        "TRITON_PTXAS_PATH to a newer ptxas, or --enforce-eager",
        "NVIDIA ptxas; triton",
    ),
    cause(
        "flashinfer-jit-failure",
        Start,
        Change,
        "flashinfer wanted to compile a kernel and could not: no CUDA toolkit or no ninja",
        "a CUDA toolkit on PATH, or VLLM_USE_FLASHINFER_SAMPLER=0 and another VLLM_ATTENTION_BACKEND",
        "flashinfer/jit",
    ),
    cause(
        "torch-compile-failure",
        Start,
        Change,
        "torch.compile failed: its compiler is missing, or its cache or a graph is broken",
        "--enforce-eager; a C++ compiler on PATH; VLLM_DISABLE_COMPILE_CACHE=1, or remove ~/.cache/vllm/torch_compile_cache",
        "vllm/compilation/compiler_interface.py",
    ),
    // ---- profiler ----
    fixed(cause(
        "profiler-flush-stall",
        Hang,
        Change,
        "the profiler writes out what it recorded in the engine's own thread; nothing is served meanwhile",
        "record less (fewer steps, no stacks), and give stop_profile more time; varcas-guard's windows are bounded",
        "CRASH_ANALYSIS.md, section 2",
    )),
    fixed(cause(
        "kineto-thread-mismatch",
        Degraded,
        Change,
        "a profiler was started in another thread than the one that loaded torch; harmless by itself",
        "check the traces; --profiler-config.ignore_frontend=true, or profile with varcas-guard's windows",
        "kineto libkineto_api.cpp; CRASH_ANALYSIS.md, section 1",
    )),
    fixed(cause(
        "profiler-404",
        Degraded,
        No,
        "the profile API was called on a server without a profiler: nothing was recorded",
        "start the server with --profiler-config, or use varcas-guard's windows, which need no API",
        "CRASH_ANALYSIS.md, section 3",
    )),
    fixed(cause(
        "profiler-failed",
        Degraded,
        Change,
        "the profiler said that it failed; the server goes on without a trace",
        "a smaller recording; look at the line for the reason",
        "vllm/profiler/wrapper.py",
    )),
    fixed(cause(
        "traces-missing",
        Degraded,
        Change,
        "the benchmark is complete, but a worker left no whole trace",
        "look at the windows that were lost and why; shorter windows, or --profile off",
        "CRASH_ANALYSIS.md, section 7",
    )),
    // ---- requests ----
    fixed(cause(
        "request-failed",
        Degraded,
        Yes,
        "requests failed although the engine lives",
        "look at the line for the reason",
        "vllm/v1/engine/core.py",
    )),
    fixed(cause(
        "request-too-long",
        Success,
        No,
        "a request was refused because prompt and answer together exceed the model's context; the server is well",
        "shorten the prompt or max_tokens, or raise --max-model-len",
        "CRASH_ANALYSIS.md, section 11",
    )),
    fixed(cause(
        "client-disconnect",
        Success,
        No,
        "a client went away before its answer was complete; the server is well",
        "a longer timeout in the client",
        "vllm/v1/engine/async_llm.py",
    )),
    fixed(cause(
        GRACEFUL,
        Success,
        No,
        "the server was stopped in good order",
        "none",
        "vllm/entrypoints/launcher.py",
    )),
    fixed(cause(
        HEALTHY,
        Success,
        No,
        "the log shows no failure",
        "none",
        "CRASH_ANALYSIS.md, \"What is harmless\"",
    )),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_one_name_and_something_to_say() {
        let mut names: Vec<&str> = ALL.iter().map(|cause| cause.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        for cause in ALL {
            assert!(!cause.what.is_empty() && !cause.advice.is_empty() && !cause.reference.is_empty());
            assert!(!cause.what.ends_with('.') && cause.name == cause.name.to_lowercase(), "{}", cause.name);
        }
    }

    #[test]
    fn an_unknown_cause_is_undetermined() {
        assert_eq!(of("my-own-cause").name, UNDETERMINED);
    }
}
