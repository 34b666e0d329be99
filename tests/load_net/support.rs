//! A server on 127.0.0.1 that answers as it is told, well or badly. It ends with the test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use varcas_guard::config::{LoadPlan, Plan};
use varcas_guard::event::{BenchSummary, EventKind};
use varcas_guard::workload::load::driver::{LoadFiles, Target, run};
use varcas_guard::workload::load::prompt::TokenModel;

type Answer = dyn Fn(&Request) -> Vec<Step> + Send + Sync;

/// One thing a server does while it answers.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Sends bytes.
    Send(Vec<u8>),
    /// Waits.
    Pause(Duration),
    /// Closes in good order.
    Close,
    /// Resets the connection.
    Reset,
    /// Says nothing more.
    Hang,
}

/// What a request said.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// Method and path.
    pub line: String,
    /// All headers as they came.
    pub head: String,
    /// The JSON body, or null.
    pub body: serde_json::Value,
    /// How many completions came before.
    pub index: usize,
}

/// Counts that a test waits for.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Every request so far.
    pub requests: Vec<Request>,
    /// Connections accepted.
    pub connections: usize,
    /// Connections gone.
    pub closed: usize,
}

/// The server.
pub(crate) struct Mock {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it saw.
    pub counts: Arc<Mutex<Counts>>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Mock {
    /// Starts it. `answer` gives the steps for each request.
    pub(crate) fn start(answer: impl Fn(&Request) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let counts = Arc::new(Mutex::new(Counts::default()));
        let (stop, stopped) = watch::channel(false);
        let shared = Arc::clone(&counts);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(listener, shared, Arc::new(answer), stopped));
        });
        Self { addr, counts, stop, thread: Some(thread) }
    }

    /// Its address as users give it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Ends it at once, with every connection.
    pub(crate) fn kill(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Waits until the counts satisfy `enough`.
    pub(crate) fn wait(&self, what: &str, enough: impl Fn(&Counts) -> bool) {
        for _ in 0..6000 {
            if enough(&self.counts.lock().unwrap()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited a minute in vain: {what}");
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve(
    listener: std::net::TcpListener,
    counts: Arc<Mutex<Counts>>,
    answer: Arc<Answer>,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            connection = listener.accept() => {
                let Ok((stream, _)) = connection else { continue };
                counts.lock().unwrap().connections += 1;
                let (counts, answer) = (Arc::clone(&counts), Arc::clone(&answer));
                tasks.spawn(async move {
                    let _ = connection_loop(stream, &counts, &*answer).await;
                    counts.lock().unwrap().closed += 1;
                });
            }
        }
    }
}

async fn connection_loop(
    mut stream: TcpStream,
    counts: &Mutex<Counts>,
    answer: &Answer,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let Some((line, head, body)) = read_request(&mut stream, &mut bytes).await? else { return Ok(()) };
        // The driver looks at the counters of the prefix cache; that is no request of the load.
        if line.starts_with("GET /metrics ") {
            stream.write_all(b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n").await?;
            continue;
        }
        let request = {
            let mut counts = counts.lock().unwrap();
            let index = counts.requests.iter().filter(|r| r.line.starts_with("POST /v1/completions")).count();
            let request = Request { line, head, body, index };
            counts.requests.push(request.clone());
            request
        };
        for step in answer(&request) {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                // A client that goes away ends the pause, as it does for a real server.
                Step::Pause(time) => {
                    let mut byte = [0];
                    tokio::select! {
                        () = tokio::time::sleep(time) => {}
                        n = stream.peek(&mut byte) => if n? == 0 { return Ok(()) },
                    }
                }
                Step::Close => return Ok(()),
                Step::Reset => {
                    stream.set_zero_linger()?;
                    return Ok(());
                }
                Step::Hang => {
                    let mut byte = [0];
                    while stream.read(&mut byte).await? > 0 {}
                    return Ok(());
                }
            }
        }
    }
}

async fn read_request(
    stream: &mut TcpStream,
    bytes: &mut Vec<u8>,
) -> std::io::Result<Option<(String, String, serde_json::Value)>> {
    loop {
        if let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
            let length: usize = head
                .lines()
                .find_map(|l| l.strip_prefix("content-length:"))
                .map_or(0, |l| l.trim().parse().unwrap());
            if bytes.len() >= end + 4 + length {
                let line = String::from_utf8_lossy(&bytes[..end]).lines().next().unwrap_or("").to_owned();
                let body = serde_json::from_slice(&bytes[end + 4..end + 4 + length]).unwrap_or_default();
                bytes.drain(..end + 4 + length);
                return Ok(Some((line, head, body)));
            }
        }
        let mut more = [0; 16 * 1024];
        let n = stream.read(&mut more).await?;
        if n == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&more[..n]);
    }
}

/// The head of a streamed answer.
pub(crate) fn stream_head() -> Step {
    Step::Send(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec(),
    )
}

/// Bytes framed as one chunk of the body.
pub(crate) fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
    out
}

/// A piece of text as vLLM sends it.
pub(crate) fn piece(text: &str) -> Step {
    Step::Send(chunk(format!("data: {}\n\n", piece_json(text)).as_bytes()))
}

/// The JSON of a piece.
pub(crate) fn piece_json(text: &str) -> String {
    serde_json::json!({
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "mock",
        "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": null, "stop_reason": null}],
        "usage": null,
    })
    .to_string()
}

/// Finish reason, usage, end mark and end of the body.
pub(crate) fn tail(prompt: u64, output: u64) -> Step {
    let mut bytes = chunk(
        b"data: {\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n",
    );
    bytes.extend(chunk(
        format!(
            "data: {{\"object\":\"text_completion\",\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\
             \"total_tokens\":{},\"completion_tokens\":{output}}}}}\n\n",
            prompt + output
        )
        .as_bytes(),
    ));
    bytes.extend(chunk(b"data: [DONE]\n\n"));
    bytes.extend_from_slice(b"0\r\n\r\n");
    Step::Send(bytes)
}

/// A good answer of `n` pieces.
pub(crate) fn good(n: usize) -> Vec<Step> {
    let mut steps = vec![stream_head()];
    steps.extend((0..n).map(|_| piece(" word")));
    steps.push(tail(11, n as u64));
    steps
}

/// An answer with a JSON body.
pub(crate) fn json(status: u16, body: &str) -> Vec<Step> {
    vec![Step::Send(
        format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes(),
    )]
}

/// The lines of a JSONL file.
pub(crate) fn lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// A place for results, a plan, and what happened.
pub(crate) struct Bench {
    dir: TempDir,
    pub(crate) plan: LoadPlan,
    pub(crate) target: Target,
    pub(crate) events: Arc<Mutex<Vec<EventKind>>>,
    pub(crate) stop: watch::Sender<bool>,
}

impl Bench {
    pub(crate) fn new(url: &str, rate: f64, duration: Duration) -> Self {
        let plan = LoadPlan { duration, rate, drain: Duration::from_secs(60), ..Plan::default().load };
        let target = Target {
            base_url: url.to_owned(),
            model: "mock".to_owned(),
            max_model_len: 2048,
            context_detected: true,
            tokens: TokenModel::default(),
            api_key: None,
        };
        let (stop, _) = watch::channel(false);
        Self { dir: tempfile::tempdir().unwrap(), plan, target, events: Arc::default(), stop }
    }

    pub(crate) fn files(&self) -> LoadFiles {
        LoadFiles {
            requests: self.dir.path().join("requests.jsonl"),
            benchmark_json: self.dir.path().join("benchmark.json"),
            benchmark_log: self.dir.path().join("benchmark_output.log"),
        }
    }

    pub(crate) async fn run(&self) -> Result<BenchSummary, String> {
        let events = Arc::clone(&self.events);
        run(&self.target, &self.plan, 42, &self.files(), self.stop.subscribe(), move |event| {
            events.lock().unwrap().push(event);
        })
        .await
    }

    pub(crate) fn result(&self) -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(self.files().benchmark_json).unwrap()).unwrap()
    }

    pub(crate) fn classes(&self) -> BTreeMap<String, usize> {
        let mut classes = BTreeMap::new();
        for line in lines(&self.files().requests) {
            *classes.entry(line["error"].as_str().unwrap_or("ok").to_owned()).or_default() += 1;
        }
        classes
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
