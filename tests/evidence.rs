//! What is saved before a kill: from real processes, and from servers that do not answer.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod keeper_support;

use futures_util::FutureExt;
use keeper_support::{python, wait_for};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use varcas_guard::event::{Evidence, ProcId};
use varcas_guard::recovery::evidence::{Request, save};
use varcas_guard::supervisor::{os, proc};

/// Killed and reaped at the end of its test.
struct Running(Child, ProcId);

impl Running {
    fn start(command: &mut Command) -> Self {
        let child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let id = proc::id(child.id() as i32).unwrap();
        Self(child, id)
    }

    /// What the worker module does in vLLM: the file first, then the handler.
    fn python(dir: &Path, then: &str) -> Self {
        let script = format!(
            "import faulthandler, os, signal, sys\n\
             def a_place_to_be_found():\n    {then}\n\
             file = open(os.path.join(sys.argv[1], f'stacks-{{os.getpid()}}.txt'), 'a')\n\
             faulthandler.register(signal.SIGUSR1, file=file, all_threads=True, chain=False)\n\
             open(os.path.join(sys.argv[1], 'ready'), 'w').close()\n\
             a_place_to_be_found()\n"
        );
        Self::start(Command::new(python()).arg("-c").arg(script).arg(dir))
    }

    fn comm(&self) -> (ProcId, String) {
        (self.1, "python3".to_owned())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn stop(running: &Running) {
    os::signal(running.1, os::SIGSTOP).unwrap();
    let state = || proc::stat(running.1.pid).filter(|stat| stat.state == 'T');
    wait_for("state T", state).await;
}

fn ask(proc: ProcId) -> io::Result<()> {
    match os::signal(proc, 10)? {
        os::Delivery::Sent => Ok(()),
        os::Delivery::Gone => Err(io::Error::other("gone")),
    }
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Everything there is to have is at once to be had.
async fn request(dir: &Path, processes: Vec<(ProcId, String)>) -> Request {
    std::fs::write(dir.join("server.log"), "first line\nlast line\n").unwrap();
    Request {
        dir: dir.to_owned(),
        processes,
        gpus: std::future::ready(serde_json::json!([{ "gpu": 0 }])).boxed(),
        log: dir.join("server.log"),
        base_url: None,
        ask_stacks: Arc::new(ask),
        py_spy: None,
        nccl_ras: nobody().await,
        redactor: Arc::default(),
        within: Duration::from_secs(30),
    }
}

fn item<'a>(items: &'a [Evidence], what: &str) -> &'a Evidence {
    items.iter().find(|item| item.what == what).unwrap_or_else(|| panic!("no {what} in {items:#?}"))
}

fn text(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap()
}

fn problem<'a>(items: &'a [Evidence], what: &str) -> &'a str {
    item(items, what).problem.as_deref().unwrap_or_else(|| panic!("{what} has no problem"))
}

/// Accepts one connection, reads a little, answers and keeps the connection open until the test is over.
async fn server(answer: Vec<u8>, close: bool) -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let read = stream.read(&mut asked).await.unwrap();
        asked.truncate(read);
        // The other side may have had enough before the end.
        drop(stream.write_all(&answer).await);
        if !close {
            std::future::pending::<()>().await;
        }
        asked
    });
    (address, task)
}

#[tokio::test]
async fn threads_and_states_of_a_process_are_told_but_not_its_secrets() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "read x", "sh", "--api-key", "hunter2"]).env("TOKEN", "hunter3");
    let running = Running::start(&mut command);
    let items = save(request(dir.path(), vec![(running.1, "sh".to_owned())]).await).await;
    let told = text(dir.path(), "processes.txt");
    assert!(
        told.contains("==== pid ") && told.contains("-- 1 threads") && told.contains("-- title: sh\n"),
        "{told}"
    );
    assert!(
        told.contains("VmRSS:") && told.contains("read_bytes:") && told.contains("Max open files"),
        "{told}"
    );
    assert!(!told.contains("hunter"), "{told}");
    assert_eq!(item(&items, "processes").problem, None);
    assert_eq!(item(&items, "processes").bytes, told.len() as u64);
}

#[tokio::test]
async fn every_piece_is_in_the_index_and_nothing_is_said_about_what_nobody_offers() {
    let dir = tempfile::tempdir().unwrap();
    let items = save(request(dir.path(), Vec::new()).await).await;
    let what: Vec<_> = items.iter().map(|item| item.what.as_str()).collect();
    assert_eq!(what, ["processes", "gpus", "log tail"]);
    assert_eq!(text(dir.path(), "log-tail.txt"), "first line\nlast line\n");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&text(dir.path(), "gpus.json")).unwrap()[0]["gpu"],
        0
    );
    let index: serde_json::Value = serde_json::from_str(&text(dir.path(), "index.json")).unwrap();
    assert_eq!(serde_json::from_value::<Vec<Evidence>>(index["items"].clone()).unwrap(), items);
}

#[tokio::test]
async fn a_python_process_says_where_each_of_its_threads_is() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::python(dir.path(), "sys.stdin.read()");
    wait_for("the handler", || dir.path().join("ready").exists().then_some(())).await;
    let items = save(request(dir.path(), vec![running.comm()]).await).await;
    let item = item(&items, &format!("stacks of {}", running.1));
    assert_eq!(item.problem, None);
    let told = text(dir.path(), item.file.as_deref().unwrap());
    assert!(told.contains("a_place_to_be_found"), "{told}");
    assert_eq!(item.bytes, told.len() as u64);
    assert!(proc::id(running.1.pid) == Some(running.1), "the question killed it");
}

#[tokio::test]
async fn a_stopped_process_is_described_and_not_asked() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::python(dir.path(), "sys.stdin.read()");
    wait_for("the handler", || dir.path().join("ready").exists().then_some(())).await;
    stop(&running).await;
    let mut request = request(dir.path(), vec![running.comm()]).await;
    request.ask_stacks = Arc::new(|proc| panic!("{proc} was asked"));
    let items = save(request).await;
    let said = problem(&items, &format!("stacks of {}", running.1));
    assert!(said.contains("stopped"), "{said}");
    assert!(text(dir.path(), "processes.txt").contains("state T"));
}

#[tokio::test]
async fn a_process_that_does_not_catch_the_signal_is_not_sent_it_although_the_file_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(Command::new("sh").args(["-c", "read x"]));
    std::fs::write(dir.path().join(format!("stacks-{}.txt", running.1.pid)), "").unwrap();
    let items = save(request(dir.path(), vec![(running.1, "sh".to_owned())]).await).await;
    let said = problem(&items, &format!("stacks of {}", running.1));
    assert!(said.contains("does not catch"), "{said}");
    assert_eq!(proc::id(running.1.pid), Some(running.1));
}

#[tokio::test]
async fn a_process_that_swallows_the_question_costs_only_its_own_time() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::python(dir.path(), "sys.stdin.read()");
    wait_for("the handler", || dir.path().join("ready").exists().then_some(())).await;
    let mut request = request(dir.path(), vec![running.comm()]).await;
    request.ask_stacks = Arc::new(|_| Ok(()));
    let items = save(request).await;
    let said = problem(&items, &format!("stacks of {}", running.1));
    assert!(said.contains("no answer"), "{said}");
}

#[tokio::test]
async fn a_dead_process_and_another_one_with_its_pid_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(Command::new("sh").args(["-c", "read x"]));
    let other = ProcId { start: running.1.start + 1, ..running.1 };
    std::fs::write(dir.path().join(format!("stacks-{}.txt", other.pid)), "").unwrap();
    let mut request = request(dir.path(), vec![(other, "sh".to_owned())]).await;
    request.ask_stacks = Arc::new(|proc| panic!("{proc} was asked"));
    let items = save(request).await;
    assert!(text(dir.path(), "processes.txt").contains("gone"));
    assert!(problem(&items, "processes").contains("no process could be"));
    assert!(problem(&items, &format!("stacks of {other}")).contains("gone"));
}

#[tokio::test]
async fn a_gpu_and_a_server_that_never_answer_hold_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let (address, task) = server(Vec::new(), false).await;
    let mut request = request(dir.path(), Vec::new()).await;
    request.gpus = std::future::pending().boxed();
    request.base_url = Some(format!("http://{address}"));
    request.within = Duration::from_secs(1);
    let items = save(request).await;
    assert!(problem(&items, "gpus").contains("no answer within"));
    assert!(problem(&items, "metrics").contains("no complete answer within"));
    assert_eq!(item(&items, "log tail").problem, None);
    task.abort();
}

#[tokio::test]
async fn a_page_is_kept_with_its_status_and_one_without_an_end_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _task) = server(b"HTTP/1.1 503 No\r\ncontent-length: 5\r\n\r\ndead\n".to_vec(), true).await;
    let mut first = request(dir.path(), Vec::new()).await;
    first.base_url = Some(format!("http://{address}"));
    assert!(problem(&save(first).await, "metrics").contains("503"));
    assert_eq!(text(dir.path(), "metrics.txt"), "dead\n");

    let mut endless = b"HTTP/1.1 200 OK\r\ncontent-length: 50000000\r\n\r\n".to_vec();
    endless.resize(3 << 20, b'#');
    let (address, task) = server(endless, false).await;
    let mut second = request(dir.path(), Vec::new()).await;
    second.base_url = Some(format!("http://{address}"));
    let items = save(second).await;
    assert!(problem(&items, "metrics").contains("cut after 1024 KiB"));
    assert_eq!(item(&items, "metrics").bytes, 1 << 20);
    task.abort();
}

#[tokio::test]
async fn the_end_of_a_long_log_begins_with_a_whole_line_and_a_missing_log_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = request(dir.path(), Vec::new()).await;
    let log: String = (0..60_000).map(|line| format!("line {line:06}\n")).collect();
    std::fs::write(&first.log, &log).unwrap();
    first.log = dir.path().join("server.log");
    save(first).await;
    let tail = text(dir.path(), "log-tail.txt");
    assert!(
        tail.starts_with("line ") && log.ends_with(&tail) && tail.len() > 250_000,
        "{} bytes",
        tail.len()
    );
    let mut second = request(dir.path(), Vec::new()).await;
    second.log = dir.path().join("nothing");
    assert!(problem(&save(second).await, "log tail").contains("No such file"));
}

#[tokio::test]
async fn a_full_disk_and_a_folder_that_is_none_are_told_and_the_rest_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("gpus.json")).unwrap();
    let items = save(request(dir.path(), Vec::new()).await).await;
    assert!(problem(&items, "gpus").contains("No space left"), "{items:?}");
    assert_eq!(item(&items, "log tail").problem, None);

    let mut request = request(dir.path(), Vec::new()).await;
    request.dir = dir.path().join("server.log");
    let items = save(request).await;
    assert_eq!(items.len(), 3);
    assert!(items.iter().all(|item| item.file.is_none() && item.problem.is_some()), "{items:?}");
}

#[tokio::test]
async fn nccl_is_asked_for_everything_and_half_an_answer_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (address, task) = server(b"NCCL version 2.27\nRAS: MISMATCH\n".to_vec(), true).await;
    let mut first = request(dir.path(), Vec::new()).await;
    first.nccl_ras = address;
    let items = save(first).await;
    assert_eq!(
        (item(&items, "nccl ras").problem.clone(), text(dir.path(), "nccl-ras.txt").lines().count()),
        (None, 2)
    );
    assert_eq!(task.await.unwrap(), b"verbose status\n");

    let (address, task) = server(b"NCCL version".to_vec(), false).await;
    let mut second = request(dir.path(), Vec::new()).await;
    (second.nccl_ras, second.within) = (address, Duration::from_secs(2));
    assert!(problem(&save(second).await, "nccl ras").contains("no complete answer"));
    assert_eq!(text(dir.path(), "nccl-ras.txt"), "NCCL version");
    task.abort();
}

#[tokio::test]
async fn dumps_of_the_flight_recorder_are_listed_by_rank() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("nccl_trace_rank_1"), "dump").unwrap();
    std::fs::write(dir.path().join("nccl_trace_rank_0"), "").unwrap();
    let items = save(request(dir.path(), Vec::new()).await).await;
    assert_eq!(item(&items, "flight recorder of rank 1").bytes, 4);
    assert_eq!(problem(&items, "flight recorder of rank 0"), "empty");
}

#[tokio::test]
async fn a_stack_walker_is_run_on_python_only_and_one_that_hangs_is_killed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(Command::new("sh").args(["-c", "read x"]));
    let tool = dir.path().join("py-spy");
    let script = |body: &str| {
        std::fs::write(&tool, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    let what = format!("py-spy of {}", running.1);
    let python = || vec![(running.1, "VLLM::EngineCor".to_owned()), (running.1, "sh".to_owned())];
    let file = format!("py-spy-{}.txt", running.1.pid);

    script("echo \"$@\"");
    let mut first = request(dir.path(), python()).await;
    first.py_spy = Some(tool.clone());
    let items = save(first).await;
    assert_eq!(items.iter().filter(|item| item.what.starts_with("py-spy")).count(), 1);
    assert_eq!(item(&items, &what).problem, None);
    assert_eq!(text(dir.path(), &file), format!("dump --nonblocking --pid {}\n", running.1.pid));

    script("echo no permission >&2; exit 3");
    let mut second = request(dir.path(), python()).await;
    second.py_spy = Some(tool.clone());
    let items = save(second).await;
    assert!(problem(&items, &what).contains("no permission"), "{items:?}");

    let pid_file = dir.path().join("pid");
    script(&format!("echo half; echo $$ > {}; exec sleep 600", pid_file.display()));
    let mut third = request(dir.path(), python()).await;
    (third.py_spy, third.within) = (Some(tool.clone()), Duration::from_secs(2));
    let items = save(third).await;
    assert!(problem(&items, &what).contains("killed"), "{items:?}");
    assert_eq!(text(dir.path(), &file), "half\n");
    let pid: i32 = text(dir.path(), "pid").trim().parse().unwrap();
    wait_for("its end", || proc::stat(pid).is_none_or(|stat| stat.state == 'Z').then_some(())).await;
}
