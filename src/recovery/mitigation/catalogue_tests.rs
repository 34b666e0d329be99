use super::*;
use crate::event::{Confidence, Outcome, Quote, Retry};
use crate::recovery::mitigation::apply;

fn verdict(cause: &str, line: &str) -> Verdict {
    Verdict {
        cause: cause.to_owned(),
        outcome: Outcome::Crash,
        confidence: Confidence::Certain,
        explanation: String::new(),
        advice: String::new(),
        decisive: Some(Quote { source: "vllm_server.log".to_owned(), line: Some(1), text: line.to_owned() }),
        consequences: vec![],
        supports: vec![],
        contradicts: vec![],
        ruled_out: vec![],
        missing: vec![],
        references: vec![],
        retry: Retry::WithMitigation,
        fingerprint: cause.to_owned(),
    }
}

fn plan(extra: &[&str]) -> Plan {
    let mut plan = Plan::default();
    plan.server.extra = extra.iter().map(|word| (*word).to_owned()).collect();
    plan
}

/// `setting to` of every change.
fn changes(cause: &str, line: &str, plan: &Plan, facts: &ServerFacts, times: u32) -> Vec<String> {
    let verdict = verdict(cause, line);
    let changes = propose(Case { verdict: &verdict, plan, facts, times });
    let mut tried = plan.clone();
    for change in &changes {
        assert!(apply(&mut tried, change), "{change} cannot be applied");
        assert!(!change.why.is_empty() && !change.id.is_empty());
    }
    changes.iter().map(|c| format!("{} {}", c.setting, c.to.as_deref().unwrap_or("(none)"))).collect()
}

fn of(cause: &str, line: &str, extra: &[&str], times: u32) -> Vec<String> {
    changes(cause, line, &plan(extra), &ServerFacts::default(), times)
}

#[test]
fn memory_is_lowered_step_by_step_and_never_below_what_makes_sense() {
    assert_eq!(of("cuda-oom", "", &[], 1), ["--gpu-memory-utilization 0.80"]);
    let twice = of("cuda-oom", "", &["--gpu-memory-utilization", "0.8"], 2);
    assert_eq!(twice, ["--gpu-memory-utilization 0.70", "--max-num-seqs 64"]);
    assert!(of("cuda-oom", "", &["--gpu-memory-utilization=0.35"], 1).is_empty());
}

#[test]
fn of_leftover_memory_it_takes_what_is_free_or_waits() {
    let line = "ValueError: Free memory on device cuda:0 (61.25/79.10 GiB) on startup is less than desired GPU memory \
                utilization (0.9, 71.19 GiB).";
    assert_eq!(of("leftover-gpu-memory", line, &[], 1), ["--gpu-memory-utilization 0.75"]);
    let ours =
        "GPU 0 (NVIDIA H100) has 61.3 of 79.1 GiB free, but vLLM wants 90 % of it; the rest is held by pid 7";
    assert_eq!(of("leftover-gpu-memory", ours, &[], 1), ["--gpu-memory-utilization 0.75"]);
    let full = line.replace("61.25", "3.25");
    assert!(of("leftover-gpu-memory", &full, &[], 1).is_empty(), "waiting is better");
}

#[test]
fn the_context_is_cut_to_what_fits() {
    let line = "ValueError: To serve at least one request with the models's max seq len (3000000), (1.43 GiB KV cache is \
                needed, which is larger than the available KV cache memory (1.0 GiB). Based on the available memory, the \
                estimated maximum model length is 2097152.";
    assert_eq!(of("kv-cache-too-small", line, &[], 1), ["--max-model-len 1992288"]);
    let old = "The model's max seq len (4096) is larger than the maximum number of tokens that can be stored in KV cache \
               (3472).";
    assert_eq!(of("kv-cache-too-small", old, &["--max-model-len", "4096"], 1), ["--max-model-len 3296"]);
    let none = "ValueError: No available memory for the cache blocks.";
    assert_eq!(of("kv-cache-too-small", none, &["--max-model-len", "4096"], 1), ["--max-model-len 2048"]);
    assert_eq!(of("kv-cache-too-small", none, &[], 1), ["--gpu-memory-utilization 0.95"]);
    assert!(of("kv-cache-too-small", none, &["--gpu-memory-utilization", "0.95"], 1).is_empty());
}

#[test]
fn graphs_go_first_and_compilers_next() {
    let graph = of("cuda-graph-capture-failure", "", &["--no-enforce-eager"], 1);
    assert_eq!(graph, ["--no-enforce-eager (none)"]);
    assert_eq!(of("torch-compile-failure", "", &[], 1), ["TORCHDYNAMO_DISABLE 1"]);
    let mut again = plan(&[]);
    again.server.env.insert("TORCHDYNAMO_DISABLE".to_owned(), "1".to_owned());
    let facts = ServerFacts::default();
    assert_eq!(changes("torch-compile-failure", "", &again, &facts, 2), ["VLLM_DISABLE_COMPILE_CACHE 1"]);
}

#[test]
fn what_a_version_does_not_have_is_not_changed() {
    let old = ServerFacts { flags: vec!["VLLM_ATTENTION_BACKEND".to_owned()], ..ServerFacts::default() };
    let changes = changes("flashinfer-jit-failure", "", &plan(&[]), &old, 1);
    assert_eq!(changes, ["VLLM_ATTENTION_BACKEND TRITON_ATTN"]);
    assert_eq!(of("flashinfer-jit-failure", "", &[], 1), ["VLLM_USE_FLASHINFER_SAMPLER 0"]);
}

#[test]
fn a_crash_that_may_be_chance_is_tried_again_as_it_was_first() {
    for cause in ["cuda-illegal-access", "segfault"] {
        assert!(of(cause, "", &["--no-enforce-eager"], 1).is_empty());
        let again = of(cause, "", &["--no-enforce-eager"], 2);
        assert_eq!(again, ["--no-enforce-eager (none)", "CUDA_LAUNCH_BLOCKING 1"]);
    }
}

#[test]
fn a_hang_brings_instruments_first_and_less_load_next() {
    let first = of("engine-hang", "", &["-tp", "2"], 1);
    assert_eq!(first, ["NCCL_DEBUG INFO", "CUDA_ENABLE_COREDUMP_ON_EXCEPTION 1"]);
    let second = of("engine-hang", "", &["-tp", "2", "--max-num-seqs", "32"], 2);
    assert!(second.contains(&"--max-num-seqs 16".to_owned()), "{second:?}");
    assert!(second.contains(&"--disable-custom-all-reduce ".to_owned()), "{second:?}");
}

#[test]
fn profiling_becomes_less_and_then_none() {
    let first = of("profiler-flush-stall", "", &[], 1);
    assert_eq!(first, ["profile.budget 0.025", "profile.window-steps 10"]);
    assert_eq!(of("profiler-flush-stall", "", &[], 2), ["profile.mode off"]);
    let mut off = plan(&[]);
    off.profile.mode = ProfileMode::Off;
    assert!(changes("traces-missing", "", &off, &ServerFacts::default(), 3).is_empty());
}

#[test]
fn another_port_is_taken_only_where_that_is_allowed() {
    assert!(of("port-in-use", "", &[], 1).is_empty());
    let mut auto = plan(&[]);
    auto.server.port_auto = true;
    assert_eq!(changes("port-in-use", "", &auto, &ServerFacts::default(), 1), ["server.port 8001"]);
}

#[test]
fn limits_are_raised() {
    assert_eq!(of("too-many-open-files", "", &[], 1), ["server.raise-open-files true"]);
    assert_eq!(of("startup-timeout", "", &[], 1), ["budgets.startup 3600s"]);
}

#[test]
fn what_nothing_can_cure_changes_nothing() {
    assert_eq!(of("undetermined", "", &[], 2), ["VLLM_LOGGING_LEVEL DEBUG"], "the reason is looked for");
    for cause in ["model-not-found", "weights-corrupt", "killed-externally", "my-own-cause"] {
        assert!(of(cause, "", &[], 1).is_empty() && of(cause, "", &[], 3).is_empty(), "{cause}");
    }
}

#[test]
fn collectives_become_plain_only_where_there_are_several_gpus() {
    let twice = |extra: &[&str]| of("nccl-error", "", extra, 2);
    let all_reduce = "--disable-custom-all-reduce ".to_owned();
    for extra in [&["--tensor-parallel-size", "2"][..], &["-tp", "2"]] {
        assert!(twice(extra).contains(&all_reduce), "{extra:?}: {:?}", twice(extra));
    }
    assert!(!twice(&[]).contains(&all_reduce), "one GPU");
    assert!(!twice(&["--max-num-seqs", "4"]).contains(&all_reduce), "one GPU");
    assert!(
        !twice(&["-tp", "2", "--disable-custom-all-reduce"]).contains(&all_reduce),
        "it is there already"
    );
    let once = of("nccl-error", "", &["-tp", "2"], 1);
    assert!(!once.contains(&all_reduce) && !once.is_empty(), "first instruments: {once:?}");
}

#[test]
fn each_remaining_cause_has_its_change() {
    assert_eq!(of("triton-ptx-error", "", &["--no-enforce-eager"], 1).len(), 1);
    let queues = of("shm-exhausted", "", &[], 1);
    assert_eq!(queues, ["NCCL_SHM_DISABLE 1", "VLLM_MQ_MAX_CHUNK_BYTES_MB 4"]);
    assert_eq!(of("undetermined", "", &[], 1), Vec::<String>::new(), "once nothing is changed");
    assert_eq!(of("undetermined", "", &[], 2), ["VLLM_LOGGING_LEVEL DEBUG"]);
    let mut raised = plan(&[]);
    raised.server.raise_open_files = true;
    assert!(changes("too-many-open-files", "", &raised, &ServerFacts::default(), 1).is_empty());
    let other = of("flashinfer-jit-failure", "", &["--attention-backend", "TRITON_ATTN"], 1);
    assert!(!other.iter().any(|change| change.contains("attention")), "{other:?}");
    let again = |backend: &str| of("segfault", "", &["--enforce-eager", "--attention-backend", backend], 2);
    assert!(again("FLASHINFER").contains(&"--attention-backend TRITON_ATTN".to_owned()));
    assert!(
        !again("TRITON_ATTN").iter().any(|change| change.contains("attention")),
        "it is in force already"
    );
}

#[test]
fn windows_of_four_steps_are_halved_and_shorter_ones_go() {
    for (steps, change) in [(4, "profile.budget 0.025"), (3, "profile.mode off")] {
        let mut plan = plan(&[]);
        plan.profile.window_steps = steps;
        assert_eq!(changes("disk-full", "", &plan, &ServerFacts::default(), 1)[0], change);
    }
}
