//! The Python exceptions that the simulated server can die of; `lines.rs` has their words. Pure.

/// Exceptions with known log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// Somebody else's memory is still on the GPU.
    GpuMemory,
    /// A weight file is broken.
    Weights,
    /// No room for the KV cache.
    KvCache,
    /// CUDA out of memory.
    Oom,
    /// An illegal memory access.
    IllegalAccess,
    /// NCCL.
    Nccl,
    /// A CUDA graph cannot be captured.
    Graph,
    /// flashinfer has no compiler.
    Flashinfer,
    /// Triton's assembler is too old.
    Triton,
    /// torch.compile has no compiler.
    Compile,
    /// /dev/shm is too small.
    Shm,
    /// Too many open files.
    Files,
    /// The profiler takes the memory of the host.
    HostMemory,
    /// An index beyond a table.
    Assert,
    /// The model is gated.
    Gated,
    /// There is no such model.
    NotFound,
    /// A setting that the model does not take.
    Config,
    /// A Python module is missing.
    Module,
    /// The tokenizer's files are broken.
    Tokenizer,
    /// The driver is too old.
    Driver,
    /// No GPU is visible.
    NoGpu,
    /// The GPU's memory is broken.
    Ecc,
    /// A worker process is gone. Not a fault by itself: kill a worker.
    Executor,
    /// A worker did not answer. Not a fault by itself: stop a worker.
    RpcTimeout,
}

/// Each by its name.
pub(super) const CRASHES: [(&str, Crash); 22] = [
    ("gpu-memory", Crash::GpuMemory),
    ("weights", Crash::Weights),
    ("kv-cache", Crash::KvCache),
    ("oom", Crash::Oom),
    ("illegal-access", Crash::IllegalAccess),
    ("nccl", Crash::Nccl),
    ("graph", Crash::Graph),
    ("flashinfer", Crash::Flashinfer),
    ("triton", Crash::Triton),
    ("compile", Crash::Compile),
    ("shm", Crash::Shm),
    ("files", Crash::Files),
    ("host-memory", Crash::HostMemory),
    ("assert", Crash::Assert),
    ("gated", Crash::Gated),
    ("not-found", Crash::NotFound),
    ("config", Crash::Config),
    ("module", Crash::Module),
    ("tokenizer", Crash::Tokenizer),
    ("driver", Crash::Driver),
    ("no-gpu", Crash::NoGpu),
    ("ecc", Crash::Ecc),
];
