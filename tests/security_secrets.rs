//! Secrets in the environment, in guard.toml and on the command line of a server that prints all of them reach no file of
//! the run and no word of the program; and a log full of HTML does no harm to the report.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

mod e2e_support;

use e2e_support::{FAST, Place};
use std::path::Path;
use varcas_guard::event::EventKind;

/// Name in the environment, secret.
const IN_ENVIRONMENT: [(&str, &str); 5] = [
    ("HF_TOKEN", "hf_PlantedPlantedPlanted01"),
    ("OPENAI_API_KEY", "sk-planted-planted-planted-02"),
    ("NOTIFY_WEBHOOK_URL", "https://hooks.slack.com/services/TPLANT/BPLANT/planted03"),
    ("SOME_PASSWORD", "planted?pass!04"),
    ("AWS_SECRET_ACCESS_KEY", "planted/secret/05"),
];
const IN_FILE: &str = "planted-in-guard-toml-06";
const IN_ARGV: &str = "planted-in-argv-07";
/// Not told to us in any other way than in the log.
const IN_HEADER: &str = "planted.header.08";
const IN_URL: &str = "plantedurl09";

fn secrets() -> Vec<&'static str> {
    let all = IN_ENVIRONMENT.iter().map(|(_, secret)| *secret);
    all.chain([IN_FILE, IN_ARGV, IN_HEADER, IN_URL]).collect()
}

/// Every file below in which one of the texts stands.
fn holding(root: &Path, texts: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                for text in texts {
                    if memchr::memmem::find(&bytes, text.as_bytes()).is_some() {
                        found.push(format!("{text} in {}", path.display()));
                    }
                }
            }
        }
    }
    found
}

/// A server that prints what it was given, works as a simulated one, and `then` does something else.
fn start<'a>(place: &'a Place, print: &str, then: &str) -> e2e_support::Running<'a> {
    let script = format!(
        "{print}\n{} __sim --model m --served-model-name m --host 127.0.0.1 --port {} --max-model-len 160 &\n{then}",
        env!("CARGO_BIN_EXE_varcas-guard"),
        place.port
    );
    std::fs::write(place.path("server.sh"), script).unwrap();
    let config = place.config(&format!("{FAST}\"\nMY_API_KEY = \"{IN_FILE}"), "");
    let (port, config) = (place.port.to_string(), config.to_string_lossy().into_owned());
    let server = place.path("server.sh").display().to_string();
    let env = IN_ENVIRONMENT.map(|(name, secret)| (name.to_owned(), secret.to_owned()));
    let args = ["run", "--server", "command", "--port", &port, "--config", &config, "--retries", "0"];
    let rest = ["--duration", "20m", "out", "--", "/bin/sh", &server, "--api-key", IN_ARGV];
    place.start_with("out", &[&args[..], &rest].concat(), &env)
}

fn print_all() -> String {
    format!(
        "env\necho \"args: $*\"\necho \"non-default args: {{'api_key': ['$2'], 'hf_token': '$HF_TOKEN'}}\"\n\
         echo \"POST /x Authorization: Bearer {IN_HEADER}\"\necho \"cannot reach https://me:{IN_URL}@example.org/x\"\n\
         echo \"$HF_TOKEN\" > \"$TMPDIR/note.txt\"\n"
    )
}

/// The folder holds something, and no secret.
fn assert_clean(place: &Place) {
    let log = std::fs::read_to_string(place.path("out/attempt-1/vllm_server.log")).unwrap();
    assert!(log.contains("SOME_PASSWORD=***") && log.contains("Bearer ***"), "{log}");
    let found = holding(&place.path("out"), &secrets());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn secrets_reach_neither_the_run_folder_nor_the_screen() {
    let place = Place::new();
    // A line that a rule knows is quoted by journal, verdict, report and screen; so it gets a secret too.
    let fatal = "while [ ! -s requests.jsonl ]; do sleep 0.05; done\n\
                 echo \"(EngineCore_DP0 pid=7) ERROR 11-24 03:10:01 [core.py:770] torch.OutOfMemoryError: CUDA out of memory. \
                 Tried to allocate 2.00 GiB. $HF_TOKEN $SOME_PASSWORD $2\"\n\
                 kill -9 $!; exit 1";
    let done = start(&place, &print_all(), fatal).wait();
    assert!(matches!(done.code, Some(75 | 93)), "{}", done.told());
    assert!(done.said().contains("CUDA out of memory"), "{}", done.told());
    assert!(place.path("out/attempt-1/evidence/log-tail.txt").exists());
    assert_clean(&place);
    for text in secrets() {
        assert!(!done.said().contains(text), "{text} was printed: {}", done.said());
    }
    done.assert_replays(&place);
}

#[test]
fn the_keeper_of_a_killed_guard_takes_the_secrets_out_of_the_log() {
    let place = Place::new();
    let mut running = start(&place, &print_all(), "wait");
    running
        .until("the server to be ready", |kind| matches!(kind, EventKind::ServerReady { .. }).then_some(()));
    running.signal(9);
    let out = running.out.clone();
    let done = running.wait();
    e2e_support::wait_for("the report", || out.join("report.html").exists().then_some(()));
    assert_eq!(done.signal, Some(9));
    assert_clean(&place);
    place.assert_no_scratch();
}

#[test]
fn a_dry_run_prints_no_secret() {
    let place = Place::new();
    let config = place.config(&format!("{FAST}\"\nMY_API_KEY = \"{IN_FILE}"), "");
    let (port, config) = (place.port.to_string(), config.to_string_lossy().into_owned());
    for json in [&[][..], &["--json"]] {
        let args = ["run", "--dry-run", "--server", "command", "--port", &port, "--config", &config];
        let answer = place.ask(&[&args[..], json, &["--", "/bin/sh", "x", "--api-key", IN_ARGV]].concat());
        assert!(answer.out.contains("[redacted]"), "{answer:?}");
        assert!(!answer.out.contains(IN_FILE) && !answer.out.contains(IN_ARGV), "{answer:?}");
    }
}

#[test]
fn a_log_full_of_script_tags_is_only_text_in_the_report() {
    let place = Place::new();
    let evil = r#"<script>alert(1)</script><img src=x onerror=alert(2)>"><svg/onload=alert(3)>'"#;
    let print = format!(
        "cat > evil.txt <<'END'\n{evil}\nERROR {evil} ValueError: {evil}\nEND\nfor i in 1 2 3 4 5; do cat evil.txt; done\n"
    );
    let then = "while [ ! -s requests.jsonl ]; do sleep 0.05; done\n\
                echo \"ERROR torch.OutOfMemoryError: CUDA out of memory. $(head -1 evil.txt)\"; cat evil.txt; kill -9 $!; exit 1";
    let done = start(&place, &print, then).wait();
    assert!(matches!(done.code, Some(75 | 93)), "{}", done.told());
    let printed = place.ask(&["report", "out", "--format", "html"]);
    for page in [std::fs::read_to_string(done.out.join("report.html")).unwrap(), printed.out] {
        assert!(page.contains("&lt;script&gt;alert(1)"), "the log is not shown");
        for tag in ["<script>alert", "<img src=x", "<svg/onload"] {
            assert!(!page.contains(tag), "{tag} in the page");
        }
    }
}
