//! The whole program against its simulator: what an attempt failed of is found out, and what follows is what helps.

mod e2e_support;

use e2e_support::{FAST, Finished, Place};
use serde_json::{Value, json};
use std::net::TcpListener;
use varcas_guard::event::{Event, EventKind, Outcome, Phase};

/// One failure of the first attempt and what cures it.
struct Cure {
    /// What the simulator does, and with which setting it no longer does.
    knobs: &'static str,
    /// In guard.toml.
    more: &'static str,
    /// Given to `run`.
    flags: &'static [&'static str],
    /// Given to the server.
    server: &'static [&'static str],
    cause: &'static str,
    /// What was changed: setting and value, or nothing.
    change: Option<(&'static str, Option<&'static str>)>,
}

const CURES: &[Cure] = &[
    Cure {
        knobs: "fault=crash(oom)@loading,cured_by=gpu_memory_utilization",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "cuda-oom",
        change: Some(("--gpu-memory-utilization", Some("0.80"))),
    },
    Cure {
        knobs: "fault=crash(oom)@step:20,cured_by=gpu_memory_utilization",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "cuda-oom",
        change: Some(("--gpu-memory-utilization", Some("0.80"))),
    },
    // Nearly nothing is free, so it waits.
    Cure {
        knobs: "fault=crash(gpu-memory)@loading,only_attempt=1",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "leftover-gpu-memory",
        change: None,
    },
    Cure {
        knobs: "kv_blocks=16,block_size=16",
        more: "",
        flags: &[],
        server: &["--max-model-len", "320"],
        cause: "kv-cache-too-small",
        change: Some(("--max-model-len", Some("240"))),
    },
    Cure {
        knobs: "fault=crash(graph)@loading,cured_by=!no_enforce_eager",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160", "--no-enforce-eager"],
        cause: "cuda-graph-capture-failure",
        change: Some(("--no-enforce-eager", None)),
    },
    Cure {
        knobs: "fault=crash(flashinfer)@loading,cured_by=VLLM_USE_FLASHINFER_SAMPLER:0",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "flashinfer-jit-failure",
        change: Some(("VLLM_USE_FLASHINFER_SAMPLER", Some("0"))),
    },
    Cure {
        knobs: "fault=crash(triton)@loading,cured_by=!no_enforce_eager",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160", "--no-enforce-eager"],
        cause: "triton-ptx-error",
        change: Some(("--no-enforce-eager", None)),
    },
    Cure {
        knobs: "fault=crash(compile)@step:5,cured_by=TORCHDYNAMO_DISABLE:1",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "torch-compile-failure",
        change: Some(("TORCHDYNAMO_DISABLE", Some("1"))),
    },
    Cure {
        knobs: "fault=crash(shm)@loading,cured_by=NCCL_SHM_DISABLE:1",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "shm-exhausted",
        change: Some(("NCCL_SHM_DISABLE", Some("1"))),
    },
    Cure {
        knobs: "fault=crash(host-memory)@step:20,cured_by=VARCAS_WINDOW_STEPS:10",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "host-oom",
        change: Some(("profile.window-steps", Some("10"))),
    },
    Cure {
        knobs: "load=6s",
        more: "",
        flags: &["--startup-timeout", "4s"],
        server: &["--max-model-len", "160"],
        cause: "startup-timeout",
        change: Some(("budgets.startup", Some("8s"))),
    },
    Cure {
        knobs: "fault=hang@step:30,cured_by=NCCL_DEBUG:INFO",
        more: "[patience]\nsuspect-after = \"1s\"\nidle = \"2s\"\nhost-busy = \"2s\"\nundetermined = \"2s\"\nstopped = \"2s\"\n\
               adapt-factor = 1.0\n",
        flags: &["--duration", "3s"],
        server: &["--max-model-len", "160"],
        cause: "engine-hang",
        change: Some(("NCCL_DEBUG", Some("INFO"))),
    },
    Cure {
        knobs: "fault=crash(nccl)@step:20,cured_by=NCCL_DEBUG:INFO",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "nccl-error",
        change: Some(("NCCL_DEBUG", Some("INFO"))),
    },
    Cure {
        knobs: "fault=kill@step:30,only_attempt=1",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "killed-externally",
        change: None,
    },
    Cure {
        knobs: "fault=segv@step:30,only_attempt=1",
        more: "",
        flags: &[],
        server: &["--max-model-len", "160"],
        cause: "segfault",
        change: None,
    },
];

fn run(place: &Place, knobs: &str, more: &str, flags: &[&str], server: &[&str]) -> Finished {
    let mut args = flags.to_vec();
    args.push("--");
    args.extend(server);
    let knobs = format!("{FAST},{knobs}");
    place.run("out", &place.config(&knobs, more), &args).wait()
}

fn outcomes(done: &Finished) -> Vec<Outcome> {
    done.endings().iter().map(|ending| ending.outcome).collect()
}

#[test]
fn the_right_change_makes_the_second_attempt_succeed() {
    for cure in CURES {
        let place = Place::new();
        let flags = [&["--retries", "1"], cure.flags].concat();
        let done = run(&place, cure.knobs, cure.more, &flags, cure.server);
        assert_eq!(done.code, Some(0), "{}: {}", cure.knobs, done.told());
        assert_eq!(outcomes(&done).len(), 2, "{}: {}", cure.knobs, done.told());
        let report = done.report();
        let verdict = &report["attempts"][0]["verdict"];
        assert_eq!(verdict["cause"], cure.cause, "{verdict:#}");
        let changes = report["mitigations"].as_array().unwrap();
        match cure.change {
            None => assert!(changes.is_empty(), "{changes:?}"),
            Some((setting, to)) => {
                let is = |change: &&Value| change["setting"] == setting;
                let change = changes.iter().find(is).unwrap_or_else(|| panic!("{setting}: {changes:?}"));
                assert_eq!(change["to"].as_str(), to, "{change}");
                let before_use = done.events().iter().any(|event| {
                    event.attempt == 1
                        && matches!(&event.kind, EventKind::Mitigated { changes } if !changes.is_empty())
                });
                assert!(before_use, "{}", done.told());
            }
        }
        assert_eq!(report["attempts"][0]["mitigations"], json!([]));
        assert_eq!(report["attempts"][1]["mitigations"], report["mitigations"]);
        done.assert_nothing_left(&place);
        done.assert_replays(&place);
        println!("{}: {}", cure.cause, verdict["decisive"]["text"]);
    }
}

#[test]
fn what_no_retry_can_cure_stops_at_once_with_93() {
    let hopeless = [
        ("weights", "weights-corrupt"),
        ("gated", "model-gated"),
        ("not-found", "model-not-found"),
        ("config", "unsupported-arch-or-config"),
        ("module", "python-dependency-error"),
        ("tokenizer", "tokenizer-error"),
        ("driver", "cuda-driver-mismatch"),
        ("no-gpu", "no-gpu"),
        ("ecc", "xid-gpu-lost"),
    ];
    for (crash, cause) in hopeless {
        let place = Place::new();
        let knobs = format!("fault=crash({crash})@loading");
        let done = run(&place, &knobs, "", &["--retries", "3"], &["--max-model-len", "160"]);
        assert_eq!(done.code, Some(93), "{crash}: {}", done.told());
        assert_eq!(outcomes(&done), [Outcome::StartupFailure], "{crash}: {}", done.told());
        let report = done.report();
        assert_eq!(
            (&report["exit_code"], &report["attempts"][0]["verdict"]["cause"]),
            (&json!(93), &json!(cause))
        );
        done.assert_nothing_left(&place);
        done.assert_replays(&place);
    }
}

#[test]
fn the_same_failure_three_times_stops_early() {
    let place = Place::new();
    let done = run(&place, "fault=kill@step:20", "", &["--retries", "9"], &["--max-model-len", "160"]);
    assert_eq!(done.code, Some(75), "{}", done.told());
    assert_eq!(outcomes(&done), [Outcome::Crash; 3], "{}", done.told());
    done.assert_replays(&place);
}

#[test]
fn a_crash_that_comes_again_is_met_with_more() {
    let place = Place::new();
    let knobs = "fault=crash(illegal-access)@step:20,cured_by=!no_enforce_eager";
    let server = ["--max-model-len", "160", "--no-enforce-eager"];
    let done = run(&place, knobs, "", &["--retries", "3"], &server);
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(outcomes(&done), [Outcome::Crash, Outcome::Crash, Outcome::Success], "{}", done.told());
    let report = done.report();
    assert_eq!(report["attempts"][1]["mitigations"], json!([]), "the first time may be chance");
    assert!(!report["mitigations"].as_array().unwrap().is_empty());
    done.assert_replays(&place);
}

#[test]
fn without_mitigation_every_attempt_is_as_asked() {
    let place = Place::new();
    let mut flags = vec!["--retries", "1"];
    let knobs = format!("{FAST},fault=crash(oom)@loading,cured_by=gpu_memory_utilization");
    let config = place.config(&knobs, "[policy]\nmitigate = false\n");
    flags.extend(["--", "--max-model-len", "160"]);
    let done = place.run("out", &config, &flags).wait();
    assert_eq!(done.code, Some(75), "{}", done.told());
    assert_eq!(outcomes(&done), [Outcome::StartupFailure; 2], "{}", done.told());
    assert_eq!(done.report()["mitigations"], json!([]));
    done.assert_replays(&place);
}

#[test]
fn an_attempt_that_cannot_end_before_the_deadline_is_not_begun() {
    let place = Place::new();
    let flags = ["--retries", "5", "--duration", "20s", "--deadline", "20s 200ms"];
    let done = run(&place, "fault=kill@step:60", "", &flags, &["--max-model-len", "160"]);
    assert_eq!(done.code, Some(75), "{}", done.told());
    assert_eq!(outcomes(&done), [Outcome::Crash], "{}", done.told());
    assert!(done.told().contains("an attempt needs at least"), "{}", done.told());
    done.assert_replays(&place);
}

/// What one attempt left is awaited at its end; what comes up between two attempts is seen by the checks before the second.
#[test]
fn a_port_that_somebody_took_between_two_attempts_is_seen_before_the_second_is_started() {
    let place = Place::new();
    let config = place.config(&format!("{FAST},fault=kill@step:20,only_attempt=1"), "");
    // Long enough to take the port in it.
    let text =
        std::fs::read_to_string(&config).unwrap().replace("\"10ms\"", "\"5s\"").replace("\"20ms\"", "\"5s\"");
    std::fs::write(&config, text).unwrap();
    let mut run = place.run("out", &config, &["--retries", "3"]);
    run.until_phase(Phase::Waiting);
    let stranger = TcpListener::bind(("127.0.0.1", place.port)).unwrap();
    run.until("the second attempt's end", |kind| match kind {
        EventKind::AttemptEnded(ending) if ending.outcome == Outcome::Refused => Some(()),
        _ => None,
    });
    drop(stranger);
    let done = run.wait();
    assert_eq!(done.code, Some(0), "{}", done.told());
    assert_eq!(outcomes(&done), [Outcome::Crash, Outcome::Refused, Outcome::Success], "{}", done.told());
    let spawned = |event: &&Event| matches!(event.kind, EventKind::ServerSpawned { .. });
    assert_eq!(done.events().iter().filter(spawned).count(), 2, "nothing is started on a port that is taken");
    assert_eq!(done.report()["attempts"][1]["verdict"]["cause"], "port-in-use");
    done.assert_nothing_left(&place);
    done.assert_replays(&place);
}

#[test]
fn a_run_folder_is_diagnosed_by_its_journal_and_a_torn_one_by_its_log() {
    let place = Place::new();
    let done = run(&place, "fault=crash(weights)@loading", "", &[], &["--max-model-len", "160"]);
    assert_eq!(done.code, Some(93), "{}", done.told());
    let said = |args: &[&str]| {
        let answer = place.ask(&[&["diagnose", "out"], args].concat());
        assert_eq!(answer.err, "");
        (answer.code, answer.out)
    };
    let (code, text) = said(&["--json"]);
    let verdict: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &verdict["cause"]), (Some(0), &json!("weights-corrupt")), "{verdict:#}");
    assert_eq!((&verdict["outcome"], &verdict["retry"]), (&json!("startup-failure"), &json!("no")));
    let (code, page) = said(&["--exit-code"]);
    assert_eq!(code, Some(1));
    assert!(page.contains("weights-corrupt") && page.contains("invalid header length"), "{page}");
    // As if the guard had been killed when the server had just been started.
    let journal = done.out.join("events.jsonl");
    let whole = std::fs::read_to_string(&journal).unwrap();
    let torn: Vec<&str> = whole.lines().take_while(|line| !line.contains("\"finding\"")).collect();
    std::fs::write(&journal, torn.join("\n")).unwrap();
    let (_, text) = said(&["--json"]);
    let verdict: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(verdict["cause"], "weights-corrupt", "{verdict:#}");
}
