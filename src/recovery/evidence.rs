//! What to save before the kill. Every piece has a deadline of its own and fails alone, all are asked for at once, and
//! the answer comes in time whatever the system does: the kill never waits for the evidence.
//!
//! Whatever may sleep in the kernel (a dead disk, `/proc` of a process that holds its memory lock) is done on a thread
//! that is given up when its time is over.

mod processes;

use crate::event::{Evidence, ProcId};
use crate::redact::Redactor;
use crate::time::instant_now;
use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::{self, StreamExt};
use serde::Serialize;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Where NCCL 2.24 and later answers questions about its collectives, unless `NCCL_RAS_ADDR` says otherwise. Whoever
/// came first on this machine has it, so that the text may speak of somebody else's job.
pub const NCCL_RAS: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 28028));

/// How much of the log's end is kept.
const LOG_TAIL: u64 = 256 << 10;

/// More is no metrics page.
const MAX_METRICS: usize = 1 << 20;

/// More is no report on some hundred ranks.
const MAX_RAS: u64 = 4 << 20;

/// An HTTP answer that takes longer comes from a server that does not answer.
const METRICS_LIMIT: Duration = Duration::from_secs(2);

/// A process that runs at all writes its stacks within milliseconds.
const STACKS_LIMIT: Duration = Duration::from_millis(1500);

/// NCCL gathers the answers of all ranks and gives up on silent ones after 5 s.
const RAS_LIMIT: Duration = Duration::from_secs(8);

/// Stack walkers at work at the same time: each needs a core and memory for the symbols of a Python with torch.
const PY_SPIES: usize = 4;

/// Sends SIGUSR1 to exactly this process. An error when it cannot, also when the process is gone.
pub type AskStacks = Arc<dyn Fn(ProcId) -> io::Result<()> + Send + Sync>;

/// What is asked for.
pub struct Request {
    /// `attempt-N/evidence`; it exists.
    pub dir: PathBuf,
    /// The processes of the tree with their command names.
    pub processes: Vec<(ProcId, String)>,
    /// What the GPUs say; may take for ever.
    pub gpus: BoxFuture<'static, serde_json::Value>,
    /// The server's log.
    pub log: PathBuf,
    /// `http://127.0.0.1:8000`, when a server is expected to answer there.
    pub base_url: Option<String>,
    /// Asks a process for its Python stacks. Only used where the worker module said that the signal is safe.
    pub ask_stacks: AskStacks,
    /// py-spy, if there is one ([`find_py_spy`]).
    pub py_spy: Option<PathBuf>,
    /// Usually [`NCCL_RAS`].
    pub nccl_ras: SocketAddr,
    /// Takes secrets out of what others said.
    pub redactor: Arc<Redactor>,
    /// Time for all together.
    pub within: Duration,
}

/// Saves what can be had within the time and says for every piece what became of it. `index.json` beside the pieces says
/// the same.
pub async fn save(request: Request) -> Vec<Evidence> {
    let Request { dir, processes, gpus, log, base_url, ask_stacks, py_spy, nccl_ras, redactor, within } =
        request;
    let dir = Arc::new(Folder { path: dir, redactor });
    // A piece that was gathered must still be written.
    let limit = |own: Duration| own.min(within.mul_f64(0.8));
    let ids: Vec<ProcId> = processes.iter().map(|(proc, _)| *proc).collect();
    let mut pieces: Vec<BoxFuture<'_, Vec<Evidence>>> = vec![
        one(within, "processes", save_processes(dir.clone(), ids.clone(), limit(Duration::from_secs(3)))),
        one(within, "gpus", save_gpus(dir.clone(), gpus, limit(Duration::from_secs(4)))),
        one(within, "log tail", save_log_tail(dir.clone(), log)),
    ];
    if let Some(base_url) = base_url {
        pieces.push(one(within, "metrics", save_metrics(dir.clone(), base_url, limit(METRICS_LIMIT))));
    }
    pieces.push(save_ras(dir.clone(), nccl_ras, limit(RAS_LIMIT), within).boxed());
    pieces.push(save_stacks(dir.clone(), ids, ask_stacks, limit(STACKS_LIMIT), within).boxed());
    if let Some(py_spy) = py_spy {
        pieces.push(save_py_spies(dir.clone(), py_spy, processes, within).boxed());
    }
    let mut items: Vec<Evidence> = join_all(pieces).await.into_iter().flatten().collect();
    let rest = Duration::from_millis(100);
    let recorder = timeout(
        rest,
        aside({
            let dir = dir.clone();
            move || flight_recorder(&dir.path)
        }),
    )
    .await;
    items.extend(recorder.ok().flatten().unwrap_or_default());
    let index = serde_json::json!({ "items": items });
    // An index that cannot be written is told by nobody: the items are in the journal too.
    drop(timeout(rest, store_json(dir, "index.json", index)).await);
    items
}

/// `py-spy` beside the interpreter, or on `path` (the value of `PATH`).
pub fn find_py_spy(python: &Path, path: Option<&std::ffi::OsStr>) -> Option<PathBuf> {
    let beside = python.parent().filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_owned);
    let on_path = path.into_iter().flat_map(std::env::split_paths);
    beside.into_iter().chain(on_path).map(|folder| folder.join("py-spy")).find(|file| file.is_file())
}

/// Where the pieces go, and what they must not hold.
struct Folder {
    path: PathBuf,
    redactor: Arc<Redactor>,
}

/// A piece that lies on the disk.
struct Saved {
    file: String,
    bytes: u64,
    problem: Option<String>,
}

/// Gives a piece its last deadline and puts down what became of it.
async fn piece(
    within: Duration,
    what: String,
    work: impl Future<Output = Result<Saved, String>>,
) -> Evidence {
    let began = instant_now();
    let result = match timeout(within, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("given up after {within:?}")),
    };
    // Whole microseconds, as the journal stores it.
    let took = Duration::from_micros(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
    match result {
        Ok(Saved { file, bytes, problem }) => Evidence { what, file: Some(file), bytes, took, problem },
        Err(problem) => Evidence { what, file: None, bytes: 0, took, problem: Some(problem) },
    }
}

fn one<'a>(
    within: Duration,
    what: &str,
    work: impl Future<Output = Result<Saved, String>> + Send + 'a,
) -> BoxFuture<'a, Vec<Evidence>> {
    let what = what.to_owned();
    async move { vec![piece(within, what, work).await] }.boxed()
}

/// Runs `work` on a thread of its own, which is lost when `work` never returns; tokio's pool would wait for it at its
/// end. `None` when no thread can be had.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("evidence".to_owned()).spawn(move || drop(tell.send(work()))).ok()?;
    told.await.ok()
}

const NO_THREAD: &str = "no thread could be started";

async fn store(
    dir: Arc<Folder>,
    file: impl Into<String>,
    content: Vec<u8>,
    problem: Option<String>,
) -> Result<Saved, String> {
    let file = file.into();
    let written = {
        let (path, file) = (dir.path.join(&file), file.clone());
        aside(move || {
            let content = dir.redactor.bytes(&content);
            let bytes = content.len() as u64;
            std::fs::write(path, &content).map(|()| bytes).map_err(|error| format!("write {file}: {error}"))
        })
    };
    let bytes = written.await.ok_or(NO_THREAD)??;
    Ok(Saved { file, bytes, problem })
}

async fn store_json(dir: Arc<Folder>, file: &str, value: impl Serialize) -> Result<Saved, String> {
    let text = serde_json::to_vec_pretty(&value).map_err(|error| format!("write {file}: {error}"))?;
    store(dir, file, text, None).await
}

async fn save_processes(dir: Arc<Folder>, ids: Vec<ProcId>, limit: Duration) -> Result<Saved, String> {
    let (text, problem) = processes::describe(&ids, limit).await;
    store(dir, "processes.txt", text.into_bytes(), problem).await
}

async fn save_gpus(
    dir: Arc<Folder>,
    gpus: BoxFuture<'static, serde_json::Value>,
    limit: Duration,
) -> Result<Saved, String> {
    let value = timeout(limit, gpus).await.map_err(|_| format!("no answer within {limit:?}"))?;
    store_json(dir, "gpus.json", value).await
}

async fn save_log_tail(dir: Arc<Folder>, log: PathBuf) -> Result<Saved, String> {
    let read = aside(move || -> io::Result<Vec<u8>> {
        let mut file = File::open(&log)?;
        let start = file.metadata()?.len().saturating_sub(LOG_TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        // It may grow meanwhile.
        file.take(LOG_TAIL).read_to_end(&mut tail)?;
        // The first line is cut, unless it is the only one.
        if start > 0
            && let Some(end) = memchr::memchr(b'\n', &tail)
        {
            tail.drain(..=end);
        }
        Ok(tail)
    });
    let tail = read.await.ok_or(NO_THREAD)?.map_err(|error| format!("read the log: {error}"))?;
    store(dir, "log-tail.txt", tail, None).await
}

async fn save_metrics(dir: Arc<Folder>, base_url: String, limit: Duration) -> Result<Saved, String> {
    let (mut page, mut problem) = (Vec::new(), None);
    match timeout(limit, fetch(&format!("{base_url}/metrics"), &mut page)).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(note)) | Err(note)) => problem = Some(note),
        Err(_) => problem = Some(format!("no complete answer within {limit:?}")),
    }
    match problem {
        Some(problem) if page.is_empty() => Err(problem),
        problem => store(dir, "metrics.txt", page, problem).await,
    }
}

/// The page as far as it came, and what is wrong with it.
async fn fetch(url: &str, page: &mut Vec<u8>) -> Result<Option<String>, String> {
    let explain = |error: reqwest::Error| {
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        format!("GET {url}: {cause}")
    };
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(explain)?;
    let mut response = client.get(url).send().await.map_err(explain)?;
    let status = response.status();
    while let Some(chunk) = response.chunk().await.map_err(explain)? {
        let room = MAX_METRICS - page.len();
        page.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            return Ok(Some(format!("cut after {} KiB", MAX_METRICS >> 10)));
        }
    }
    Ok((!status.is_success()).then(|| format!("HTTP status {}", status.as_u16())))
}

/// NCCL's own view of its collectives. That nobody answers is the usual case and worth no item.
async fn save_ras(dir: Arc<Folder>, address: SocketAddr, limit: Duration, within: Duration) -> Vec<Evidence> {
    let connect = tokio::net::TcpStream::connect(address);
    let Ok(Ok(mut stream)) = timeout(limit.min(Duration::from_millis(500)), connect).await else {
        return Vec::new();
    };
    let work = async {
        let mut text = Vec::new();
        // The words that the manual gives for use with netcat; NCCL answers and closes.
        let talk = async {
            stream.write_all(b"verbose status\n").await?;
            stream.take(MAX_RAS).read_to_end(&mut text).await
        };
        let problem = match timeout(limit, talk).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no complete answer within {limit:?}")),
        };
        match problem {
            Some(problem) if text.is_empty() => Err(problem),
            problem => store(dir, "nccl-ras.txt", text, problem).await,
        }
    };
    vec![piece(within, "nccl ras".to_owned(), work).await]
}

/// Stacks of every process whose worker module has made the file for them.
async fn save_stacks(
    dir: Arc<Folder>,
    ids: Vec<ProcId>,
    ask: AskStacks,
    limit: Duration,
    within: Duration,
) -> Vec<Evidence> {
    let able = {
        let dir = dir.clone();
        let able =
            move || ids.into_iter().filter(|proc| dir.path.join(stacks_file(*proc)).exists()).collect();
        let found: Result<Option<Vec<ProcId>>, _> = timeout(within, aside(able)).await;
        found.ok().flatten().unwrap_or_default()
    };
    join_all(able.into_iter().map(|proc| {
        piece(within, format!("stacks of {proc}"), stacks(dir.clone(), proc, ask.clone(), limit))
    }))
    .await
}

fn stacks_file(proc: ProcId) -> String {
    format!("stacks-{}.txt", proc.pid)
}

async fn stacks(dir: Arc<Folder>, proc: ProcId, ask: AskStacks, limit: Duration) -> Result<Saved, String> {
    let file = stacks_file(proc);
    let path = dir.path.join(&file);
    let length = move || std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
    let before = aside({
        let length = length.clone();
        move || {
            let before = length();
            processes::can_be_asked(proc)?;
            ask(proc).map_err(|error| format!("SIGUSR1: {error}"))?;
            Ok::<_, String>(before)
        }
    });
    let before = before.await.ok_or(NO_THREAD)??;
    // Told in many small writes: complete when it grows no more.
    let mut last = before;
    let answered = timeout(limit, async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = aside(length.clone()).await.unwrap_or(last);
            if now > before && now == last {
                break;
            }
            last = now;
        }
    });
    match answered.await {
        Ok(()) => Ok(Saved { file, bytes: last, problem: None }),
        Err(_) if last > before => Ok(Saved { file, bytes: last, problem: Some("still growing".to_owned()) }),
        Err(_) => Err(format!("asked, but no answer within {limit:?}")),
    }
}

async fn save_py_spies(
    dir: Arc<Folder>,
    py_spy: PathBuf,
    processes: Vec<(ProcId, String)>,
    within: Duration,
) -> Vec<Evidence> {
    let began = instant_now();
    stream::iter(processes.into_iter().filter(|(_, comm)| is_python(comm)))
        .map(|(proc, _)| {
            let (dir, py_spy) = (dir.clone(), py_spy.clone());
            async move {
                let left = within.saturating_sub(began.elapsed());
                let work = run_py_spy(dir, &py_spy, proc, left.mul_f64(0.8));
                piece(left, format!("py-spy of {proc}"), work).await
            }
        })
        .buffered(PY_SPIES)
        .collect()
        .await
}

/// By command name: vLLM names its processes, torch names the main thread of its workers.
fn is_python(comm: &str) -> bool {
    ["python", "VLLM::", "pt_main_thread"].iter().any(|prefix| comm.starts_with(prefix))
}

async fn run_py_spy(dir: Arc<Folder>, py_spy: &Path, proc: ProcId, limit: Duration) -> Result<Saved, String> {
    // Nonblocking: a debugger that pauses a process and is killed leaves it paused.
    let mut command = tokio::process::Command::new(py_spy);
    command.args(["dump", "--nonblocking", "--pid", &proc.pid.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("start {}: {error}", py_spy.display()))?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
        return Err("py-spy without pipes".to_owned());
    };
    let finished = timeout(limit, async {
        let (mut stdout, mut stderr) = (stdout.take(MAX_RAS), stderr.take(64 << 10));
        let _ = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        drop((stdout, stderr));
        child.wait().await
    });
    let problem = match finished.await {
        Ok(Ok(status)) if status.success() => None,
        Ok(Ok(status)) => {
            let said: String = String::from_utf8_lossy(&err).trim().chars().take(300).collect();
            Some(format!("py-spy ended with {status}: {said}"))
        }
        Ok(Err(error)) => Some(format!("py-spy: {error}")),
        Err(_) => {
            drop(child.start_kill());
            Some(format!("py-spy was not done within {limit:?} and killed"))
        }
    };
    match problem {
        Some(problem) if out.is_empty() => Err(problem),
        problem => store(dir, format!("py-spy-{}.txt", proc.pid), out, problem).await,
    }
}

/// The dumps that torch's flight recorder has written, one a rank (`TORCH_FR_DUMP_TEMP_FILE` in the server's
/// environment). Nobody can ask for one; a timed out collective makes them.
fn flight_recorder(dir: &Path) -> Vec<Evidence> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut dumps: Vec<(String, u64)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.starts_with("nccl_trace_rank_").then_some(())?;
            Some((name, entry.metadata().ok()?.len()))
        })
        .collect();
    dumps.sort();
    dumps
        .into_iter()
        .map(|(name, bytes)| Evidence {
            what: format!("flight recorder of rank {}", name.trim_start_matches("nccl_trace_rank_")),
            file: Some(name),
            bytes,
            took: Duration::ZERO,
            problem: (bytes == 0).then(|| "empty".to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn py_spy_is_found_beside_the_interpreter_before_the_path() {
        let (venv, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = std::env::join_paths([other.path()]).unwrap();
        let python = venv.path().join("python");
        assert_eq!(find_py_spy(&python, Some(&path)), None);
        std::fs::write(other.path().join("py-spy"), "").unwrap();
        assert_eq!(find_py_spy(&python, Some(&path)), Some(other.path().join("py-spy")));
        std::fs::write(venv.path().join("py-spy"), "").unwrap();
        assert_eq!(find_py_spy(&python, Some(&path)), Some(venv.path().join("py-spy")));
        assert_eq!(find_py_spy(Path::new("python3"), None), None);
    }

    #[test]
    fn vllm_s_processes_are_known_by_their_cut_names() {
        for comm in ["python3", "python3.12", "VLLM::EngineCor", "VLLM::Worker_TP", "pt_main_thread"] {
            assert!(is_python(comm), "{comm}");
        }
        assert!(!is_python("sh") && !is_python("nvidia-smi"));
    }
}
