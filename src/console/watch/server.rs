//! The guard's own server. It runs on a thread of its own and holds nothing that the run waits for: whoever asks too much,
//! too slowly or too often is turned away.

use super::access::{Access, Refusal};
use super::metrics::{self, Own};
use super::page::{self, Copy};
use super::state::{STUCK, Watched};
use super::streams::{self, Drawn};
use crate::view::snapshot::Snapshot;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Connections open at any time; one more is closed at once.
const CONNECTIONS: usize = 64;
/// Streams among them; who asks for one more is told to come back.
const STREAMS: u64 = 32;
/// A request's head must be there by then; also how long an idle connection stays.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// A reader that takes nothing for so long is gone.
const WRITE_PATIENCE: Duration = Duration::from_secs(20);
/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;
/// Lines of it.
const HEAD_LINES: usize = 64;
/// At the end the last words may take so long.
const LAST_WORDS: Duration = Duration::from_secs(1);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Says how many messages wait and how many were delivered; none when nobody is notified.
pub type Messages = Arc<dyn Fn() -> Option<(u64, u64)> + Send + Sync>;

/// A server that listens already.
pub struct Server {
    at: SocketAddr,
    watched: Watched,
    thread: std::thread::JoinHandle<()>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everybody has heard the last words.
    Told,
    /// Its thread panicked on the way; the run was not disturbed.
    Panicked,
}

impl Server {
    /// Takes the address; nobody is answered yet.
    pub fn bind(at: SocketAddr) -> io::Result<TcpListener> {
        let listener = TcpListener::bind(at)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Answers from now on.
    pub fn start(
        listener: TcpListener,
        access: Access,
        watched: Watched,
        messages: Messages,
    ) -> io::Result<Self> {
        let at = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::new(Shared {
            access,
            drawn: Drawn::new(watched.clone()),
            watched: watched.clone(),
            messages,
            connections: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        });
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
            if let Err(error) = runtime.block_on(serve(listener, shared)) {
                tracing::error!("nobody can watch any more: {error}");
            }
        })?;
        Ok(Self { at, watched, thread })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// Says the last words to all who look on, and ends. `report` is where the report lies.
    pub fn end(self, report: Option<String>) -> Ended {
        self.watched.finish(report);
        match self.thread.join() {
            Ok(()) => Ended::Told,
            Err(_) => Ended::Panicked,
        }
    }
}

struct Shared {
    access: Access,
    watched: Watched,
    drawn: Drawn,
    messages: Messages,
    connections: AtomicU64,
    streams: AtomicU64,
    refused: AtomicU64,
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut finished = shared.watched.finished();
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if open.len() < CONNECTIONS => {
                    open.spawn(connection(stream, Arc::clone(&shared)));
                }
                Ok(_) => drop(shared.refused.fetch_add(1, Ordering::Relaxed)),
                // No file is left to open; one may be soon.
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            },
            Some(_) = open.join_next() => {}
            () = over(&mut finished) => break,
        }
        shared.connections.store(open.len() as u64, Ordering::Relaxed);
    }
    drop(listener);
    let all = async { while open.join_next().await.is_some() {} };
    drop(tokio::time::timeout(LAST_WORDS, all).await);
    Ok(())
}

/// Waits until nothing more will come.
pub(super) async fn over(finished: &mut watch::Receiver<bool>) {
    drop(finished.wait_for(|over| *over).await);
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let mut finished = shared.watched.finished();
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(&request, &shared)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEAD_LINES)
        .serve_connection(TokioIo::new(Impatient::new(stream)), service);
    tokio::pin!(connection);
    // Whatever a client does wrong ends its connection and nothing else.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = over(&mut finished) => {
            connection.as_mut().graceful_shutdown();
            drop(connection.await);
        }
    }
}

fn answer(request: &Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let mut response = route(request, shared);
    if response.status().is_client_error() || response.status().is_server_error() {
        shared.refused.fetch_add(1, Ordering::Relaxed);
    }
    let always = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in always {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
        .headers_mut()
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    response
}

fn text_of<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The value of a parameter, without its percent signs resolved: a token has none.
fn parameter<'a>(request: &'a Request<Incoming>, name: &str) -> Option<&'a str> {
    let pairs = request.uri().query()?.split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
}

fn route(request: &Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let headers = request.headers();
    // A request may name its host in its first line, too; then that one counts.
    let host = request.uri().authority().map(|at| at.as_str()).or_else(|| text_of(headers, &header::HOST));
    if let Err(why) = shared.access.host(host) {
        return refusal(why);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        // Nobody reads what such a request may bring along.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let path = request.uri().path();
    let cookies: Vec<&str> =
        headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).collect();
    let known = shared.access.token(text_of(headers, &header::AUTHORIZATION), &cookies);
    if path == "/healthz" {
        return health(shared, known.is_ok());
    }
    if let (Err(_), "/", Some(given)) = (known, path, parameter(request, "token")) {
        return shared.access.admit(given).map_or_else(refusal, |cookie| admitted(&cookie));
    }
    if let Err(why) = known {
        return refusal(why);
    }
    let watched = &shared.watched;
    match path {
        "/" => live_page(shared),
        "/live" => stream(shared, streams::live(shared.drawn.clone())),
        "/events" => {
            let last = text_of(headers, &HeaderName::from_static("last-event-id"));
            let last = last.or_else(|| parameter(request, "after"));
            let next = match last.map(|text| text.trim().parse::<u64>()) {
                None => 0,
                Some(Ok(last)) => last.saturating_add(1),
                Some(Err(_)) => {
                    return plain(StatusCode::BAD_REQUEST, "the last event id must be a number\n");
                }
            };
            stream(shared, streams::journal(watched.clone(), next))
        }
        "/metrics" => {
            let own = own(shared);
            let text = metrics::render(&watched.lock().now, &own);
            whole(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        "/api/run" => {
            let at = watched.moment();
            let now = watched.lock().now.clone();
            match serde_json::to_string(&Snapshot::new(&now, at, true)) {
                Ok(text) => whole(StatusCode::OK, "application/json", text + "\n"),
                Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
            }
        }
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are / (the live page), /metrics, /healthz, /api/run and /events\n",
        ),
    }
}

fn refusal(why: Refusal) -> Response<Body> {
    match why {
        Refusal::Host => plain(
            StatusCode::MISDIRECTED_REQUEST,
            "this name is not served: ask by address or as localhost, or add the name to listen.hosts\n",
        ),
        Refusal::Token => {
            let text = "a token is needed: Authorization: Bearer TOKEN, or open /?token=TOKEN in a browser\n";
            let mut response = plain(StatusCode::UNAUTHORIZED, text);
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
    }
}

fn whole(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    whole(status, "text/plain; charset=utf-8", text.to_owned())
}

/// The browser forgets the address with the token in it and shows its cookie from now on.
fn admitted(cookie: &str) -> Response<Body> {
    let mut response = plain(StatusCode::SEE_OTHER, "");
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("./"));
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

fn health(shared: &Shared, known: bool) -> Response<Body> {
    let silence = shared.watched.silence();
    let stuck = silence > STUCK;
    let word = if stuck { "stuck" } else { "ok" };
    let mut value = serde_json::json!({ "status": word });
    if known {
        let state = shared.watched.lock();
        value["version"] = env!("CARGO_PKG_VERSION").into();
        value["run_id"] = state.now.run_id.as_str().into();
        value["phase"] = state.now.phase.map(|phase| phase.to_string()).into();
        value["last_turn_age_s"] = silence.as_secs_f64().into();
    }
    let status = if stuck { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    whole(status, "application/json", format!("{value}\n"))
}

fn own(shared: &Shared) -> Own {
    let (waiting, delivered) = (shared.messages)().unzip();
    Own {
        at: shared.watched.moment(),
        silence: shared.watched.silence(),
        events: shared.watched.lock().version,
        connections: shared.connections.load(Ordering::Relaxed),
        refused: shared.refused.load(Ordering::Relaxed),
        waiting,
        delivered,
    }
}

fn live_page(shared: &Shared) -> Response<Body> {
    let nonce = random();
    let (copy, report) = {
        let state = shared.watched.lock();
        (Copy::of(&state, shared.watched.moment()), state.report.clone())
    };
    let text = page::render(&copy, &nonce, report.as_deref());
    let mut response = whole(StatusCode::OK, "text/html; charset=utf-8", text);
    if let Ok(policy) = HeaderValue::from_str(&page::policy(&nonce)) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// 128 bits that nobody can guess.
pub fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn stream(shared: &Arc<Shared>, pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let place = Place(Arc::clone(shared));
    if shared.streams.fetch_add(1, Ordering::Relaxed) >= STREAMS {
        let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "too many look on already\n");
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("10"));
        return response;
    }
    let frames = pieces.map(move |piece| {
        // Given back when the stream is dropped, however it ends.
        let _ = &place;
        Ok::<_, Infallible>(Frame::data(piece))
    });
    let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// A place among the streams.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection on which a write that does not get on is an error.
struct Impatient {
    inner: TcpStream,
    stuck: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Impatient {
    fn new(inner: TcpStream) -> Self {
        Self { inner, stuck: None }
    }

    fn bear<T>(&mut self, context: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.stuck = None;
            return done;
        }
        let timer = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(WRITE_PATIENCE)));
        timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.bear(context, done)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.inner).poll_flush(context);
        self.bear(context, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
