//! Sockets: one request over a pooled HTTP/1.1 connection, its answer given on event by event. An edge.
//!
//! Everything of one load runs on one thread, so the read buffer and the pool are shared without locks, and an open
//! stream costs little more than its socket.

use super::http1::{Decoder, Progress};
use super::outcome::{ErrorClass, Fault};
use super::spec::Limits;
use super::stream::{Meaning, SseParser, interpret, read_error};
use crate::time::instant_now;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// vLLM's web server closes a connection that was idle for 5 s; one that we reuse must be younger, or a request meets the
/// closing and fails through no fault of the server.
const REUSE_BEFORE: Duration = Duration::from_millis(3500);
const READ_BUFFER: usize = 64 * 1024;
/// An error body is kept up to this; what follows is read and dropped.
const KEPT_BODY: usize = 64 * 1024;

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`, also the Host header.
    pub authority: String,
    /// What stands before `/v1/...`, without a slash at its end.
    pub prefix: String,
}

impl Endpoint {
    /// Reads `http://host:port/prefix`; a `/v1` at the end is taken off, as people copy it from OpenAI's settings.
    pub fn parse(url: &str) -> Result<Self, String> {
        let url = url.trim();
        if url.starts_with("https://") {
            return Err(format!(
                "{url}: https is not supported for the load; give the server's http address"
            ));
        }
        let rest = url.strip_prefix("http://").ok_or_else(|| {
            format!("{url:?} is not a server address: it must look like http://127.0.0.1:8000")
        })?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port_at = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
        let (host, port) = match port_at {
            Some(at) => (&authority[..at], &authority[at + 1..]),
            None => (authority, "80"),
        };
        if host.is_empty() || host.contains(['@', '?', '#', ' ']) || port.parse::<u16>().is_err() {
            return Err(format!("{url:?} is not a server address: it must look like http://127.0.0.1:8000"));
        }
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/v1").unwrap_or(if path == "v1" { "" } else { path });
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { authority: format!("{host}:{port}"), prefix })
    }

    /// The head of a POST with a JSON body, and the body.
    pub fn post(&self, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let mut request = Vec::with_capacity(body.len() + 256);
        request.extend_from_slice(
            format!(
                "POST {}{path} HTTP/1.1\r\nhost: {}\r\nuser-agent: varcas-guard\r\naccept: text/event-stream\r\n\
                 content-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
                self.prefix,
                self.authority,
                body.len()
            )
            .as_bytes(),
        );
        request.extend_from_slice(body);
        request
    }
}

/// What is told while an answer comes in.
#[derive(Debug)]
pub enum Seen {
    /// The head, with its status.
    Head(u16),
    /// An event of the stream.
    Event(Meaning),
}

/// Connections, idle ones kept for reuse.
pub struct Client {
    addresses: Vec<SocketAddr>,
    idle: RefCell<Vec<(TcpStream, Instant)>>,
    buffer: RefCell<Vec<u8>>,
}

impl Client {
    /// Looks the host up once; a name service must not be part of a latency.
    pub async fn new(endpoint: &Endpoint) -> Result<Self, String> {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(&endpoint.authority)
            .await
            .map_err(|e| format!("look up {}: {e}", endpoint.authority))?
            .collect();
        if addresses.is_empty() {
            return Err(format!("look up {}: the name has no address", endpoint.authority));
        }
        Ok(Self { addresses, idle: RefCell::default(), buffer: RefCell::new(vec![0; READ_BUFFER]) })
    }

    /// A pooled connection that is still alive, or a new one, and whether it was used before.
    async fn connect(&self) -> Result<(TcpStream, bool), Fault> {
        while let Some((stream, since)) = self.idle.borrow_mut().pop() {
            // A closed or talking connection is of no use; one in good order has nothing to read.
            let silent = matches!(stream.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            if silent && instant_now().duration_since(since) < REUSE_BEFORE {
                return Ok((stream, true));
            }
        }
        let mut last = None;
        for address in &self.addresses {
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    let _ = stream.set_nodelay(true);
                    return Ok((stream, false));
                }
                Err(error) => last = Some((address, error)),
            }
        }
        let Some((address, error)) = last else {
            return Err(Fault::new(ErrorClass::ConnectFailed, "no address to connect to"));
        };
        let class = match error.kind() {
            io::ErrorKind::ConnectionRefused => ErrorClass::ConnectRefused,
            io::ErrorKind::ConnectionReset => ErrorClass::Reset,
            _ => ErrorClass::ConnectFailed,
        };
        Err(Fault::new(class, format!("connect to {address}: {error}")))
    }

    /// Sends one request and reads its answer to the end, within the limits.
    pub async fn exchange(
        &self,
        request: Vec<u8>,
        limits: Limits,
        mut seen: impl FnMut(Instant, Seen),
    ) -> Result<(), Fault> {
        let began = instant_now();
        let deadline = began + limits.total;
        let timer =
            tokio::time::sleep_until(deadline.min(began + limits.idle.unwrap_or(limits.total)).into());
        tokio::pin!(timer);
        let (mut stream, used) = tokio::select! {
            connection = self.connect() => connection?,
            () = timer.as_mut() => return Err(timed_out(began, began, deadline)),
        };
        tokio::select! {
            written = stream.write_all(&request) => written.map_err(|e| broken(&e, "while sending", used))?,
            () = timer.as_mut() => return Err(timed_out(began, began, deadline)),
        }
        drop(request);
        let mut answer = Answer::default();
        let mut active = instant_now();
        loop {
            let read = poll_fn(|cx| {
                let mut buffer = self.buffer.borrow_mut();
                let mut into = ReadBuf::new(&mut buffer);
                match Pin::new(&mut stream).poll_read(cx, &mut into) {
                    Poll::Ready(Ok(())) if into.filled().is_empty() => Poll::Ready(Read::Closed),
                    Poll::Ready(Ok(())) => {
                        // One stamp per read, before any parsing: pieces of one read arrived together.
                        active = instant_now();
                        Poll::Ready(match answer.push(into.filled(), active, &mut seen) {
                            Ok(Progress::Complete) => Read::Complete,
                            Ok(Progress::More) => Read::More,
                            Err(fault) => Read::Bad(fault),
                        })
                    }
                    Poll::Ready(Err(error)) => Poll::Ready(Read::Failed(error)),
                    Poll::Pending => timer.as_mut().poll(cx).map(|()| Read::Timer),
                }
            })
            .await;
            match read {
                Read::More => {}
                Read::Complete => break,
                Read::Bad(fault) => return Err(fault),
                Read::Closed if answer.decoder.close() => break,
                Read::Closed => {
                    let when =
                        if answer.decoder.head().is_some() { "in mid-answer" } else { "before an answer" };
                    let reused = if used { " (a reused connection)" } else { "" };
                    return Err(Fault::new(ErrorClass::Reset, format!("connection closed {when}{reused}")));
                }
                Read::Failed(error) => return Err(broken(&error, "while reading", used)),
                Read::Timer => {
                    let now = instant_now();
                    let next = limits.idle.map_or(deadline, |idle| deadline.min(active + idle));
                    if now >= next {
                        return Err(timed_out(began, active, deadline));
                    }
                    timer.as_mut().reset(next.into());
                }
            }
        }
        if answer.decoder.reusable() {
            self.idle.borrow_mut().push((stream, instant_now()));
        }
        answer.finish()
    }
}

enum Read {
    More,
    Complete,
    Closed,
    Timer,
    Bad(Fault),
    Failed(io::Error),
}

/// The state of one answer.
#[derive(Default)]
struct Answer {
    decoder: Decoder,
    events: SseParser,
    /// The body of an answer that is not a stream.
    body: Vec<u8>,
    told: bool,
}

impl Answer {
    fn push(
        &mut self,
        bytes: &[u8],
        at: Instant,
        seen: &mut impl FnMut(Instant, Seen),
    ) -> Result<Progress, Fault> {
        let bad = |error: String| Fault::new(ErrorClass::BadResponse, error);
        let Self { decoder, events, body, told } = self;
        let mut broken = None;
        let progress = decoder
            .push(bytes, |head, part| {
                if !*told {
                    *told = true;
                    seen(at, Seen::Head(head.status));
                }
                if head.status == 200 && head.event_stream {
                    if broken.is_none() {
                        broken = events.push(part, |data| seen(at, Seen::Event(interpret(data)))).err();
                    }
                } else {
                    body.extend_from_slice(&part[..part.len().min(KEPT_BODY - body.len())]);
                }
            })
            .map_err(bad)?;
        match broken {
            Some(error) => Err(bad(error)),
            None => {
                if !self.told
                    && let Some(head) = self.decoder.head()
                {
                    self.told = true;
                    seen(at, Seen::Head(head.status));
                }
                Ok(progress)
            }
        }
    }

    /// What the complete answer amounts to, apart from the events already given on.
    fn finish(self) -> Result<(), Fault> {
        let Some(head) = self.decoder.head() else {
            return Err(Fault::new(ErrorClass::BadResponse, "an answer without a head"));
        };
        if head.status == 200 && head.event_stream {
            return Ok(());
        }
        let message = match read_error(&self.body) {
            Some(Meaning::Error { message, .. }) => Some(message),
            _ => None,
        };
        let text = || String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).into_owned();
        Err(match head.status {
            200 => match message {
                Some(message) => Fault::new(ErrorClass::StreamError, message),
                None => Fault::new(
                    ErrorClass::BadResponse,
                    format!("status 200, but not an event stream: {}", text()),
                ),
            },
            status => {
                let class = match status {
                    400..=499 => ErrorClass::Http4xx,
                    500..=599 => ErrorClass::Http5xx,
                    _ => ErrorClass::HttpOther,
                };
                Fault::new(class, format!("status {status}: {}", message.unwrap_or_else(text)))
            }
        })
    }
}

fn broken(error: &io::Error, when: &str, used: bool) -> Fault {
    let reused = if used { " (a reused connection)" } else { "" };
    Fault::new(ErrorClass::Reset, format!("connection broke {when}: {error}{reused}"))
}

fn timed_out(began: Instant, active: Instant, deadline: Instant) -> Fault {
    let now = instant_now();
    if now >= deadline {
        let took = now.duration_since(began).as_secs_f64();
        Fault::new(ErrorClass::TotalTimeout, format!("not complete after {took:.1} s"))
    } else {
        let idle = now.duration_since(active).as_secs_f64();
        Fault::new(ErrorClass::IdleTimeout, format!("no byte for {idle:.1} s"))
    }
}
