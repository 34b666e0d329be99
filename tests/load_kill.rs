//! `kill -9` in mid-load, of the server and of the client, as processes: what was finished is on disk, what was open has a
//! class, and a partial result says that it is one.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A simulated vLLM in a process group of its own.
struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        // Its engine would be nobody's child after the kill; so it becomes ours, and can be reaped.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_varcas-guard"))
            .args(["__sim", "--model", "m", "--served-model-name", "m", "--max-model-len", "1024"])
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .env("TMPDIR", folder.path())
            .env("VARCAS_SIM", "load=50ms,step=5ms,ttft=1ms,sampled_compile=1ms,watchdog=200ms")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self { child, port, _folder: folder }
    }

    fn kill(&self) {
        let _ = killpg(Pid::from_raw(self.child.id() as i32), Signal::SIGKILL);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
        let group = Pid::from_raw(-(self.child.id() as i32));
        while nix::sys::wait::waitpid(group, None).is_ok() {}
    }
}

/// A long bench against it.
fn bench(server: &Server, rate: u32, out: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_varcas-guard"))
        .args(["bench", "--url", &format!("http://127.0.0.1:{}", server.port)])
        .args(["--mix", "chat", "--rate", &rate.to_string(), "--duration", "1h", "--output"])
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The whole lines of `requests.jsonl`.
fn lines(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("requests.jsonl")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn wait_for_finished(out: &Path, n: usize) {
    for _ in 0..12_000 {
        if lines(out).iter().filter(|line| line["ok"] == true).count() >= n {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited two minutes in vain for {n} finished requests");
}

#[test]
fn after_a_kill_of_the_server_every_request_has_its_line_and_the_result_says_it_is_partial() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut client = bench(&server, 40, folder.path());
    wait_for_finished(folder.path(), 40);
    server.kill();
    assert_eq!(client.wait().unwrap().code(), Some(75));

    let text = std::fs::read_to_string(folder.path().join("benchmark.json")).unwrap();
    let result: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["is_complete"], false);
    assert!(result["incomplete_reason"].as_str().unwrap().contains("nobody listens"));
    let mut classes: BTreeMap<String, u64> = BTreeMap::new();
    let lines = lines(folder.path());
    for line in &lines {
        *classes.entry(line["error"].as_str().unwrap_or("ok").to_owned()).or_default() += 1;
    }
    assert_eq!(result["num_prompts"], lines.len() as u64);
    assert_eq!(result["completed"], classes["ok"]);
    assert!(classes["ok"] >= 40 && classes["connect-refused"] > 0, "{classes:?}");
    // At 40 requests a second some hundred milliseconds long, some were open.
    assert!(classes["reset"] > 0, "{classes:?}");
    let mut ids: Vec<u64> = lines.iter().map(|line| line["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert!(ids.iter().copied().eq(0..lines.len() as u64), "an id is missing or twice");
    let errors: BTreeMap<String, u64> = serde_json::from_value(result["errors"].clone()).unwrap();
    classes.remove("ok");
    assert_eq!(errors, classes);
    let log = std::fs::read_to_string(folder.path().join("benchmark_output.log")).unwrap();
    assert!(log.contains("INCOMPLETE: nobody listens"), "{log}");
}

#[test]
fn after_a_kill_of_the_client_the_finished_requests_are_on_disk() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut client = bench(&server, 10, folder.path());
    wait_for_finished(folder.path(), 5);
    // They did not come because a buffer was full: 64 KiB would have taken 15 s.
    let length = std::fs::metadata(folder.path().join("requests.jsonl")).unwrap().len();
    assert!(length < 48 * 1024, "{length} bytes at once");
    kill(Pid::from_raw(client.id() as i32), Signal::SIGKILL).unwrap();
    client.wait().unwrap();
    // `lines` fails on a whole line that is not JSON; half a line at the very end is all that may be broken.
    let lines = lines(folder.path());
    assert!(lines.iter().filter(|line| line["ok"] == true).count() >= 5);
    assert!(!folder.path().join("benchmark.json").exists(), "half a result must not look like a whole one");
}
