//! The text of `/metrics` before the judges: promtool, and a real Prometheus that scrapes it. Debian has both in the package
//! `prometheus`.

use super::client::{Guest, patiently};
use super::{Show, full};
use std::io::Write;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

fn is_there(program: &str) -> bool {
    let there =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        println!("SKIPPED: {program} is not installed (Debian: apt-get install prometheus)");
    }
    there
}

#[test]
fn promtool_finds_nothing_to_say_about_the_metrics_at_any_moment_of_a_run() {
    if !is_there("promtool") {
        return;
    }
    let events = full().events;
    for upto in [0, 1, 3, 20, 150, 400, events.len()] {
        let show = Show::told(&events[..upto.min(events.len())]);
        let text = show.get("/metrics").body;
        let mut check = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = check.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(output.status.success() && said.is_empty(), "after {upto} events: {said}\n{text}");
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_real_prometheus_scrapes_it() {
    if !is_there("prometheus") {
        return;
    }
    let show = Show::told(&full().events);
    let folder = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n  - job_name: guard\n    static_configs:\n      - targets: \
         ['{}']\n",
        show.server.address()
    );
    let file = folder.path().join("prometheus.yml");
    std::fs::write(&file, config).unwrap();
    let child = Command::new("prometheus")
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _killed = Killed(child);
    let at = format!("127.0.0.1:{port}").parse().unwrap();
    let ask = |query: &str| -> Option<serde_json::Value> {
        std::net::TcpStream::connect(at).ok()?;
        let answer = Guest::new(at).try_get(&format!("/api/v1/query?query={query}"))?;
        let body = &answer.body[answer.body.find('{')?..=answer.body.rfind('}')?];
        let value: serde_json::Value = serde_json::from_str(body).ok()?;
        value["data"]["result"][0]["value"][1].as_str().map(|text| text.into())
    };
    let scraped = patiently(|| ask("varcas_guard_requests_completed_total"));
    assert_eq!(scraped, "2991");
    assert_eq!(patiently(|| ask("up")), "1");
    assert_eq!(patiently(|| ask("varcas_guard_run_exit_code")), "0");
    assert_eq!(patiently(|| ask("varcas_guard_ttft_seconds%7Bquantile=%220.99%22%7D")), "0.24");
}
