use super::*;

fn places() -> Places {
    Places {
        traces: "/runs/a/attempt-1/traces".into(),
        scratch: "/tmp/vg-1234-1".into(),
        evidence: "/runs/a/attempt-1/evidence".into(),
        python: "/runs/a/attempt-1/python".into(),
    }
}

fn mark() -> RunMark {
    RunMark { run_id: "run-7".to_owned(), attempt: 2 }
}

fn old_vllm() -> ServerFacts {
    ServerFacts {
        version: Some("0.15.1+cpu".to_owned()),
        device: Some("cpu".to_owned()),
        torch: Some("2.10.0".to_owned()),
        flags: ["enforce-eager", "disable-uvicorn-access-log", "worker-cls"].map(str::to_owned).to_vec(),
    }
}

fn new_vllm() -> ServerFacts {
    let mut facts = old_vllm();
    facts.version = Some("0.32.0+cpu".to_owned());
    facts.flags.extend(["shutdown-timeout", "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS"].map(str::to_owned));
    facts
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn build(plan: &Plan, facts: &ServerFacts, base: &[(&str, &str)]) -> ServerCommand {
    command(plan, facts, &places(), &mark(), &env(base), Path::new("/bin/varcas-guard"))
}

fn with_extra(words: &[&str]) -> Plan {
    let mut plan = Plan::default();
    plan.server.extra = words.iter().map(|word| (*word).to_owned()).collect();
    plan
}

fn refusals(plan: &Plan) -> Vec<String> {
    let notes = build(plan, &old_vllm(), &[]).notes;
    notes.into_iter().filter(|note| note.severity == Severity::Refuse).map(|note| note.saw).collect()
}

#[test]
fn the_server_is_started_eager_on_loopback_with_the_recording_worker_and_no_profile_api() {
    let argv = build(&Plan::default(), &old_vllm(), &[]).argv.join(" ");
    assert_eq!(
        argv,
        "python3 -m vllm.entrypoints.openai.api_server --model TinyLlama/TinyLlama-1.1B-Chat-v1.0 --host 127.0.0.1 --port 8000 \
         --enforce-eager --disable-uvicorn-access-log --worker-cls varcas_worker.Worker"
    );
}

#[test]
fn a_version_that_can_wait_for_the_flush_is_told_to() {
    let built = build(&Plan::default(), &new_vllm(), &[]);
    assert!(built.argv.join(" ").contains("--shutdown-timeout 60"));
    assert_eq!(built.env["VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS"], "60");
    let built = build(&Plan::default(), &old_vllm(), &[]);
    assert!(!built.argv.iter().any(|word| word == "--shutdown-timeout"));
    assert!(!built.env.contains_key("VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS"));
}

#[test]
fn without_a_list_of_flags_only_those_of_every_version_are_passed() {
    let facts = ServerFacts { version: Some("0.20.2".to_owned()), ..ServerFacts::default() };
    let argv = build(&Plan::default(), &facts, &[]).argv.join(" ");
    assert!(argv.contains("--enforce-eager") && !argv.contains("--shutdown-timeout"), "{argv}");
    let facts = ServerFacts { version: Some("0.33.0".to_owned()), ..ServerFacts::default() };
    assert!(build(&Plan::default(), &facts, &[]).argv.join(" ").contains("--shutdown-timeout 60"));
}

#[test]
fn with_the_profiler_off_nothing_of_it_is_left() {
    let mut plan = Plan::default();
    plan.profile.mode = ProfileMode::Off;
    let built = build(&plan, &old_vllm(), &[]);
    assert!(!built.argv.iter().any(|word| word.contains("varcas")));
    assert!(!built.env.contains_key("VARCAS_TRACE_DIR") && !built.env.contains_key("PYTHONPATH"));
    assert_eq!(built.env["VARCAS_RUN_ID"], "run-7");
}

#[test]
fn the_simulator_is_this_binary_with_the_same_arguments() {
    let mut plan = Plan::default();
    plan.server.kind = ServerKind::Sim;
    let real = build(&Plan::default(), &old_vllm(), &[]).argv;
    let sim = build(&plan, &old_vllm(), &[]).argv;
    assert_eq!(sim[..2], ["/bin/varcas-guard", "__sim"]);
    assert_eq!(sim[2..], real[3..]);
}

#[test]
fn a_foreign_server_gets_its_command_line_verbatim_and_our_marks() {
    let mut plan = with_extra(&["vllm", "serve", "m", "--port", "8000"]);
    plan.server.kind = ServerKind::Command;
    let built = build(&plan, &old_vllm(), &[]);
    assert_eq!(built.argv, ["vllm", "serve", "m", "--port", "8000"]);
    assert_eq!(built.notes, []);
    assert_eq!(built.env["VARCAS_ATTEMPT"], "2");
    plan.server.extra.clear();
    assert!(build(&plan, &old_vllm(), &[]).refused());
}

#[test]
fn arguments_that_contradict_ours_are_refused_in_every_spelling() {
    for words in [
        &["--port", "9000"][..],
        &["--port=9000"],
        &["--host", "0.0.0.0"],
        &["--model=x"],
        &["--worker-cls", "a.B"],
        &["--worker_cls=a.B"],
        &["--profiler-config", "{}"],
        &["--profiler-config.profiler=torch"],
        &["--profiler_config.torch_profiler_dir=/t"],
        &["--disable-log-stats"],
        &["--disable_log_stats"],
        &["--uds=/tmp/s"],
        &["--api-key=k"],
    ] {
        let saw = refusals(&with_extra(words));
        assert_eq!(saw.len(), 1, "{words:?}: {saw:?}");
        assert!(saw[0].starts_with(words[0]), "{saw:?}");
    }
    assert_eq!(
        refusals(&with_extra(&["--max-model-len", "1024", "-tp", "2", "--model-impl=auto", "--port-range"])),
        [""; 0]
    );
}

#[test]
fn the_users_own_choice_between_eager_and_graphs_is_kept_and_named() {
    let built = build(&with_extra(&["--no-enforce-eager"]), &old_vllm(), &[]);
    assert!(!built.argv.iter().any(|word| word == "--enforce-eager"));
    assert!(!built.refused());
    assert_eq!(built.notes.len(), 1);
    let built = build(&with_extra(&["--enforce_eager"]), &old_vllm(), &[]);
    assert!(!built.argv.iter().any(|word| word == "--enforce-eager"));
}

#[test]
fn dangerous_leftovers_of_the_shell_do_not_reach_the_server() {
    let base = [
        ("PATH", "/usr/bin"),
        ("VLLM_TORCH_PROFILER_DIR", "/old"),
        ("VLLM_TORCH_PROFILER_WITH_STACK", "1"),
        ("VLLM_PROFILER_DELAY_ITERS", "3"),
        ("VLLM_RPC_BASE_PATH", "/old"),
        ("VARCAS_RUN_ID", "other"),
        ("VARCAS_ANYTHING", "1"),
        ("VLLM_SERVER_DEV_MODE", "1"),
        ("HF_HUB_OFFLINE", "1"),
    ];
    let built = build(&Plan::default(), &old_vllm(), &base);
    for gone in [
        "VLLM_TORCH_PROFILER_DIR",
        "VLLM_TORCH_PROFILER_WITH_STACK",
        "VLLM_PROFILER_DELAY_ITERS",
        "VARCAS_ANYTHING",
    ] {
        assert!(!built.env.contains_key(gone), "{gone}");
    }
    assert_eq!(built.env["PATH"], "/usr/bin");
    assert_eq!(built.env["HF_HUB_OFFLINE"], "1");
    assert_eq!(built.env["VLLM_RPC_BASE_PATH"], "/tmp/vg-1234-1");
    assert_eq!(built.env["VARCAS_RUN_ID"], "run-7");
    assert!(!built.ours.contains_key("PATH") && built.ours.contains_key("VARCAS_RUN_ID"));
}

#[test]
fn the_users_variables_win_over_all_but_the_marks() {
    let mut plan = Plan::default();
    plan.server.env =
        env(&[("NO_COLOR", "0"), ("TMPDIR", "/t"), ("PYTHONPATH", "/mine"), ("VARCAS_RUN_ID", "forged")]);
    let built = build(&plan, &old_vllm(), &[("PYTHONPATH", "/shell")]);
    assert_eq!(built.env["NO_COLOR"], "0");
    assert_eq!(built.env["TMPDIR"], "/t");
    assert_eq!(built.env["PYTHONPATH"], "/runs/a/attempt-1/python:/mine");
    assert_eq!(built.env["VARCAS_RUN_ID"], "run-7");
    assert!(built.refused());
}

#[test]
fn compile_caches_stay_where_they_were_although_the_temporary_folder_is_private() {
    let cache = |base: &[(&str, &str)]| {
        build(&Plan::default(), &old_vllm(), base).env.get("TORCHINDUCTOR_CACHE_DIR").cloned()
    };
    assert_eq!(cache(&[("USER", "ann")]).as_deref(), Some("/tmp/torchinductor_ann"));
    assert_eq!(cache(&[("USER", "ann"), ("TMPDIR", "/big/")]).as_deref(), Some("/big/torchinductor_ann"));
    assert_eq!(cache(&[("HOME", "/root")]).as_deref(), Some("/tmp/torchinductor_root"));
    assert_eq!(cache(&[("USER", "ann"), ("TORCHINDUCTOR_CACHE_DIR", "/c")]).as_deref(), Some("/c"));
    assert_eq!(cache(&[]), None);
}

#[test]
fn a_scratch_folder_too_long_for_sockets_is_refused_before_vllm_fails_on_it() {
    let socket = |scratch: &str| {
        let mut places = places();
        places.scratch = scratch.into();
        let built = command(
            &Plan::default(),
            &old_vllm(),
            &places,
            &mark(),
            &env(&[]),
            Path::new("/bin/varcas-guard"),
        );
        (
            built.refused(),
            built.env["VLLM_RPC_BASE_PATH"].len() + "/00000000-0000-0000-0000-000000000000".len(),
        )
    };
    assert_eq!(socket(&format!("/{}", "s".repeat(SCRATCH_LIMIT - 1))), (false, 107));
    assert_eq!(socket(&format!("/{}", "s".repeat(SCRATCH_LIMIT))), (true, 108));
}

#[test]
fn durations_reach_the_worker_as_seconds() {
    let built = build(&Plan::default(), &old_vllm(), &[]);
    assert_eq!(built.env["VARCAS_WINDOW_STEPS"], "20");
    for name in ["VARCAS_WINDOW_SECONDS", "VARCAS_REST_SECONDS", "VARCAS_IDLE_SECONDS"] {
        assert!(built.env[name].parse::<f64>().unwrap() > 0.0, "{name}");
    }
}

#[test]
fn the_answer_of_an_interpreter_is_read_between_other_lines() {
    let output = "warning: x\n{\"varcas_probe\": 1, \"version\": \"0.15.1+cpu\", \"torch\": \"2.10.0\", \"device\": \"cpu\", \
                  \"flags\": [\"enforce-eager\"]}\n";
    let facts = parse_probe(output).unwrap();
    assert_eq!(facts.version.as_deref(), Some("0.15.1+cpu"));
    assert_eq!(facts.flags, ["enforce-eager"]);
    let error =
        parse_probe("{\"varcas_probe\": 1, \"error\": \"/usr/bin/python3 has no vLLM\"}").unwrap_err();
    assert_eq!(error, "/usr/bin/python3 has no vLLM");
    assert!(parse_probe("Segmentation fault\n").unwrap_err().contains("Segmentation fault"));
    assert!(parse_probe("").unwrap_err().contains("nothing"));
}
