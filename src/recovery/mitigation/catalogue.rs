//! Which changes can cure which cause, in the order in which they are tried. Pure.

use super::flag;
use crate::config::{Plan, ProfileMode};
use crate::event::{Mitigation, ServerFacts, Verdict};

/// vLLM's own default for `--gpu-memory-utilization`.
const GPU_SHARE: f64 = 0.9;
/// Below this share a server is hardly worth starting.
const LEAST_SHARE: f64 = 0.3;
const LEAST_LENGTH: u64 = 128;
/// vLLM's own default is at least this; fewer is what helps.
const FEWER_SEQUENCES: u64 = 64;

/// What a proposal may look at.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// What the attempt failed of.
    pub verdict: &'a Verdict,
    /// With what settings it ran.
    pub plan: &'a Plan,
    /// What the server understands.
    pub facts: &'a ServerFacts,
    /// How often this cause has been the verdict in this run, this time included.
    pub times: u32,
}

/// The changes for the next attempt; none when it should run as it was, or when nothing is left to change.
pub fn propose(case: Case<'_>) -> Vec<Mitigation> {
    let again = case.times > 1;
    let changes = match case.verdict.cause.as_str() {
        "cuda-oom" => {
            let mut changes = less_gpu_memory(&case, None);
            if again {
                changes.extend(fewer_sequences(&case));
            }
            changes
        }
        "leftover-gpu-memory" => less_gpu_memory(&case, free_share(&text(&case))),
        "kv-cache-too-small" => shorter(&case),
        "cuda-graph-capture-failure" => first_of([eager(&case), no_caches(&case)]),
        "torch-compile-failure" => first_of([eager(&case), no_compile(&case), no_caches(&case)]),
        "triton-ptx-error" => first_of([eager(&case), no_compile(&case), other_attention(&case)]),
        "flashinfer-jit-failure" => first_of([no_flashinfer_sampler(&case), other_attention(&case)]),
        // Once may be chance.
        "cuda-illegal-access" | "segfault" if again => {
            let mut changes = first_of([eager(&case), other_attention(&case)]);
            changes.extend(variable(
                &case,
                "blocking-launches",
                "CUDA_LAUNCH_BLOCKING",
                "1",
                "so that the line which \
                is told is the one that failed",
            ));
            changes
        }
        "port-in-use" => other_port(&case),
        "too-many-open-files" => key(
            &case,
            "raise-open-files",
            "server.raise-open-files",
            "true",
            "as many files as the \
            system allows instead of the soft limit",
        ),
        "shm-exhausted" => {
            let mut changes =
                variable(&case, "no-nccl-shm", "NCCL_SHM_DISABLE", "1", "NCCL then needs no /dev/shm");
            if knows(case.facts, "VLLM_MQ_MAX_CHUNK_BYTES_MB") {
                changes.extend(variable(
                    &case,
                    "smaller-queues",
                    "VLLM_MQ_MAX_CHUNK_BYTES_MB",
                    "4",
                    "smaller queues between \
                    engine and workers",
                ));
            }
            changes
        }
        "engine-hang" | "nccl-timeout" | "driver-hang" => {
            let mut changes = instruments(&case);
            if again {
                changes.extend(fewer_sequences(&case));
                changes.extend(plain_collectives(&case));
            }
            changes
        }
        "nccl-error" => {
            let mut changes = instruments(&case);
            if again {
                changes.extend(plain_collectives(&case));
            }
            changes
        }
        // Nobody knows why, so that the next time somebody may.
        "undetermined" if again => variable(
            &case,
            "more-words",
            "VLLM_LOGGING_LEVEL",
            "DEBUG",
            "the server says more of what it does",
        ),
        "startup-timeout" => more_time(&case),
        "profiler-flush-stall"
        | "profiler-failed"
        | "traces-missing"
        | "kineto-thread-mismatch"
        | "host-oom"
        | "disk-full" => less_profiling(&case),
        _ => Vec::new(),
    };
    changes.into_iter().filter(|change| change.from != change.to).collect()
}

fn text(case: &Case<'_>) -> String {
    case.verdict.decisive.as_ref().map(|quote| quote.text.clone()).unwrap_or_default()
}

/// Without a list of what the server understands, everything that current versions have.
fn knows(facts: &ServerFacts, name: &str) -> bool {
    facts.flags.is_empty() || facts.flags.iter().any(|known| known == name)
}

fn first_of<const N: usize>(choices: [Vec<Mitigation>; N]) -> Vec<Mitigation> {
    choices.into_iter().find(|changes| !changes.is_empty()).unwrap_or_default()
}

fn change(
    id: &str,
    setting: &str,
    from: Option<String>,
    to: Option<String>,
    why: impl Into<String>,
) -> Mitigation {
    Mitigation { id: id.to_owned(), setting: setting.to_owned(), from, to, why: why.into() }
}

fn variable(case: &Case<'_>, id: &str, name: &str, value: &str, why: &str) -> Vec<Mitigation> {
    let from = case.plan.server.env.get(name).cloned();
    if from.as_deref() == Some(value) {
        return Vec::new();
    }
    vec![change(id, name, from, Some(value.to_owned()), why)]
}

fn key(case: &Case<'_>, id: &str, name: &str, value: &str, why: &str) -> Vec<Mitigation> {
    let from = match name {
        "server.raise-open-files" => case.plan.server.raise_open_files.to_string(),
        _ => String::new(),
    };
    if from == value {
        return Vec::new();
    }
    vec![change(id, name, Some(from), Some(value.to_owned()), why)]
}

fn number<T: std::str::FromStr>(case: &Case<'_>, name: &str) -> Option<T> {
    flag(&case.plan.server.extra, name)?.parse().ok()
}

/// A tenth less each time, or what is free.
fn less_gpu_memory(case: &Case<'_>, free: Option<f64>) -> Vec<Mitigation> {
    const FLAG: &str = "--gpu-memory-utilization";
    let given = flag(&case.plan.server.extra, &FLAG[2..]);
    let now = given.as_deref().and_then(|text| text.parse().ok()).unwrap_or(GPU_SHARE);
    // Some of what is free goes to the CUDA context.
    let wanted = free.map_or(now - 0.1, |free| (free - 0.02).min(now - 0.01));
    let wanted = (wanted * 100.0).floor() / 100.0;
    // What is held will come back when its owner ends: waiting is then the better way.
    if wanted < LEAST_SHARE {
        return Vec::new();
    }
    let why = match free {
        Some(free) => format!("{:.0} % of the GPU's memory were free", free * 100.0),
        None => format!("leaves {:.0} % of the GPU's memory for what is not counted", (1.0 - wanted) * 100.0),
    };
    vec![change("lower-gpu-memory", FLAG, given, Some(format!("{wanted:.2}")), why)]
}

/// `(3.25/79.10 GiB)` of vLLM or `has 3.2 of 79.1 GiB free` of our preflight: free and all.
fn free_share(text: &str) -> Option<f64> {
    let vllm = text.split_once(" GiB)").and_then(|(before, _)| before.rsplit_once('(')?.1.split_once('/'));
    let ours = || {
        text.split_once(" GiB free").and_then(|(before, _)| before.rsplit_once("has ")?.1.split_once(" of "))
    };
    let (free, total) = vllm.or_else(ours)?;
    let (free, total): (f64, f64) = (free.trim().parse().ok()?, total.trim().parse().ok()?);
    (total > 0.0).then(|| free / total)
}

/// To what the message says would fit; else to half; without any number more memory for the cache.
fn shorter(case: &Case<'_>) -> Vec<Mitigation> {
    const FLAG: &str = "--max-model-len";
    let line = text(case);
    let given = flag(&case.plan.server.extra, &FLAG[2..]);
    let fits = after(&line, "estimated maximum model length is ")
        .or_else(|| after(&line, "that can be stored in KV cache ("))
        .filter(|fits| *fits >= LEAST_LENGTH);
    let now = given.as_deref().and_then(|text| text.parse().ok()).or_else(|| after(&line, "max seq len ("));
    let wanted = match (fits, now) {
        // The estimate is exact to a block, and the next start may have a little less.
        (Some(fits), _) => Some((fits - fits / 20) / 16 * 16),
        (None, Some(now)) => Some(now / 2),
        (None, None) => None,
    };
    if let Some(wanted) =
        wanted.filter(|wanted| *wanted >= LEAST_LENGTH && now.is_none_or(|now| *wanted < now))
    {
        let why = match fits {
            Some(fits) => format!("the cache holds {fits} tokens"),
            None => "half of what did not fit".to_owned(),
        };
        return vec![change("shorter-context", FLAG, given, Some(wanted.to_string()), why)];
    }
    const SHARE: &str = "--gpu-memory-utilization";
    let given = flag(&case.plan.server.extra, &SHARE[2..]);
    let now = given.as_deref().and_then(|text| text.parse().ok()).unwrap_or(GPU_SHARE);
    if now >= 0.95 {
        return Vec::new();
    }
    let wanted = (now + 0.05).min(0.95);
    vec![change(
        "more-gpu-memory",
        SHARE,
        given,
        Some(format!("{wanted:.2}")),
        "more memory for the key-value cache",
    )]
}

/// The number after these words.
fn after(text: &str, words: &str) -> Option<u64> {
    let rest = text.split_once(words)?.1;
    let digits: String =
        rest.chars().take_while(|c| c.is_ascii_digit() || *c == ',').filter(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// Eager unless it already is: without a word of the user the server is started eager.
fn eager(case: &Case<'_>) -> Vec<Mitigation> {
    match flag(&case.plan.server.extra, "no-enforce-eager") {
        Some(_) => vec![change(
            "enforce-eager",
            "--no-enforce-eager",
            Some(String::new()),
            None,
            "no CUDA graphs and no compilation of the model",
        )],
        None => Vec::new(),
    }
}

fn no_caches(case: &Case<'_>) -> Vec<Mitigation> {
    if !knows(case.facts, "VLLM_DISABLE_COMPILE_CACHE") {
        return Vec::new();
    }
    variable(
        case,
        "no-compile-cache",
        "VLLM_DISABLE_COMPILE_CACHE",
        "1",
        "what an earlier compilation left is not used",
    )
}

fn no_compile(case: &Case<'_>) -> Vec<Mitigation> {
    variable(
        case,
        "no-torch-compile",
        "TORCHDYNAMO_DISABLE",
        "1",
        "nothing is compiled by torch, the sampler neither",
    )
}

fn no_flashinfer_sampler(case: &Case<'_>) -> Vec<Mitigation> {
    if !knows(case.facts, "VLLM_USE_FLASHINFER_SAMPLER") {
        return Vec::new();
    }
    variable(case, "no-flashinfer-sampler", "VLLM_USE_FLASHINFER_SAMPLER", "0", "torch samples instead")
}

/// The flag of newer versions, or the variable of older ones.
fn other_attention(case: &Case<'_>) -> Vec<Mitigation> {
    const BACKEND: &str = "TRITON_ATTN";
    if knows(case.facts, "attention-backend") {
        let given = flag(&case.plan.server.extra, "attention-backend");
        if given.as_deref() == Some(BACKEND) {
            return Vec::new();
        }
        return vec![change(
            "other-attention",
            "--attention-backend",
            given,
            Some(BACKEND.to_owned()),
            "another attention kernel",
        )];
    }
    if !knows(case.facts, "VLLM_ATTENTION_BACKEND") {
        return Vec::new();
    }
    variable(case, "other-attention", "VLLM_ATTENTION_BACKEND", BACKEND, "another attention kernel")
}

fn fewer_sequences(case: &Case<'_>) -> Vec<Mitigation> {
    const FLAG: &str = "--max-num-seqs";
    let now: Option<u64> = number(case, &FLAG[2..]);
    let wanted = now.map_or(FEWER_SEQUENCES, |now| (now / 2).max(1));
    if now == Some(wanted) {
        return Vec::new();
    }
    let given = flag(&case.plan.server.extra, &FLAG[2..]);
    vec![change("fewer-sequences", FLAG, given, Some(wanted.to_string()), "fewer requests at once")]
}

fn instruments(case: &Case<'_>) -> Vec<Mitigation> {
    let mut changes = variable(case, "nccl-debug", "NCCL_DEBUG", "INFO", "NCCL says what it does");
    changes.extend(variable(
        case,
        "cuda-coredump",
        "CUDA_ENABLE_COREDUMP_ON_EXCEPTION",
        "1",
        "a GPU exception leaves a \
        core file",
    ));
    changes
}

fn plain_collectives(case: &Case<'_>) -> Vec<Mitigation> {
    let mut changes = variable(case, "no-nccl-p2p", "NCCL_P2P_DISABLE", "1", "no direct access between GPUs");
    let parallel =
        ["tensor-parallel-size", "tp"].iter().any(|name| flag(&case.plan.server.extra, name).is_some())
            || case.plan.server.extra.iter().any(|word| word == "-tp");
    if parallel && flag(&case.plan.server.extra, "disable-custom-all-reduce").is_none() {
        changes.push(change(
            "no-custom-all-reduce",
            "--disable-custom-all-reduce",
            None,
            Some(String::new()),
            "NCCL's own collective instead of vLLM's",
        ));
    }
    changes
}

fn more_time(case: &Case<'_>) -> Vec<Mitigation> {
    let now = case.plan.budgets.startup;
    vec![change(
        "longer-startup",
        "budgets.startup",
        Some(format!("{}s", now.as_secs())),
        Some(format!("{}s", now.as_secs().saturating_mul(2).max(1))),
        "twice the time, and the caches are warm now",
    )]
}

/// First less, then nothing: at least the benchmark survives.
fn less_profiling(case: &Case<'_>) -> Vec<Mitigation> {
    let profile = &case.plan.profile;
    if profile.mode == ProfileMode::Off {
        return Vec::new();
    }
    if case.times > 1 || profile.window_steps < 4 {
        return vec![change(
            "no-profile",
            "profile.mode",
            Some("windows".to_owned()),
            Some("off".to_owned()),
            "so that at least the benchmark comes home",
        )];
    }
    let steps = profile.window_steps / 2;
    let budget = (profile.budget / 2.0).max(0.001);
    vec![
        change(
            "smaller-profile-budget",
            "profile.budget",
            Some(profile.budget.to_string()),
            Some(format!("{budget}")),
            "half as much of the engine's time for windows",
        ),
        change(
            "shorter-windows",
            "profile.window-steps",
            Some(profile.window_steps.to_string()),
            Some(steps.to_string()),
            "half as many steps in a window",
        ),
    ]
}

/// With `--port auto` the next one; else the holder may go while we wait.
fn other_port(case: &Case<'_>) -> Vec<Mitigation> {
    let server = &case.plan.server;
    if !server.port_auto {
        return Vec::new();
    }
    let next = server.port.checked_add(1).unwrap_or(8000);
    vec![change(
        "other-port",
        "server.port",
        Some(server.port.to_string()),
        Some(next.to_string()),
        "the next one, as --port auto allows",
    )]
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
