//! Names and sentences as people write them. Pure.

/// A class name as a person would say it: `cuda-oom` is `CUDA out of memory`.
pub fn cause(name: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in name.split('-') {
        words.push(match word {
            "cuda" => "CUDA",
            "oom" => "out of memory",
            "kv" => "KV",
            "gpu" => "GPU",
            "cpu" => "CPU",
            "nccl" => "NCCL",
            "vllm" => "vLLM",
            "jit" => "JIT",
            "nvml" => "NVML",
            "shm" => "shared memory",
            "flashinfer" => "FlashInfer",
            other => other,
        });
    }
    let text = words.join(" ");
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// With a capital letter, unless it begins with a name that has none.
pub fn first_up(text: &str) -> String {
    if text.starts_with("varcas-guard") || text.starts_with("vLLM") {
        return text.to_owned();
    }
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// One sentence, whatever stood at the end of the text.
pub fn sentence(text: &str) -> String {
    format!("{}.", first_up(text.trim().trim_end_matches('.')))
}
