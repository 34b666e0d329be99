//! A decoder for one HTTP/1.1 response, fed with whatever a socket read gave. Pure.
//!
//! Why not hyper here: a load generator must know the moment of every socket read and whether a failure came before the
//! first byte, and it must not pay for a task and two queues per chunk. The head is parsed by `httparse`, hyper's parser;
//! only the framing of the body is ours. Control requests, which have no such needs, use reqwest.

/// A head beyond this is not an answer of an inference server.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;
/// A chunk-size line or trailer beyond this is not HTTP.
const MAX_LINE: usize = 8 * 1024;

/// What the head said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Whether the body is `text/event-stream`.
    pub event_stream: bool,
    /// Whether the server will take another request on this connection.
    keep_alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    UntilClose,
    Done,
}

/// Where a decoder stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// The response is complete.
    Complete,
}

/// Decodes one response.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    head: Option<Head>,
    line: Vec<u8>,
    surplus: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Head, head: None, line: Vec::new(), surplus: false }
    }
}

impl Decoder {
    /// The head, once it is complete.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// Whether the connection may carry another request: complete, framed, and nothing behind it.
    pub fn reusable(&self) -> bool {
        self.state == State::Done && !self.surplus && self.head.as_ref().is_some_and(|h| h.keep_alive)
    }

    /// Takes the bytes of one read; body bytes go to `body` as they are framed.
    pub fn push(&mut self, mut bytes: &[u8], mut body: impl FnMut(&Head, &[u8])) -> Result<Progress, String> {
        while !bytes.is_empty() {
            match self.state {
                State::Head => bytes = self.take_head(bytes)?,
                State::Length(left) | State::ChunkData(left) => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let (now, rest) = bytes.split_at(take);
                    if let Some(head) = &self.head {
                        body(head, now);
                    }
                    bytes = rest;
                    let left = left - take as u64;
                    self.state = match (self.state, left) {
                        (State::Length(_), 0) => State::Done,
                        (State::Length(_), left) => State::Length(left),
                        (_, 0) => State::ChunkEnd,
                        (_, left) => State::ChunkData(left),
                    };
                }
                State::ChunkSize => bytes = self.take_line(bytes, Self::chunk_size)?,
                State::ChunkEnd => bytes = self.take_line(bytes, Self::chunk_end)?,
                State::Trailer => bytes = self.take_line(bytes, Self::trailer)?,
                State::UntilClose => {
                    if let Some(head) = &self.head {
                        body(head, bytes);
                    }
                    bytes = &[];
                }
                State::Done => {
                    self.surplus = true;
                    bytes = &[];
                }
            }
        }
        Ok(if self.state == State::Done { Progress::Complete } else { Progress::More })
    }

    /// The peer closed the connection. Whether that is how this response was meant to end.
    pub fn close(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        self.state == State::Done
    }

    fn take_head<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], String> {
        // One buffer for the whole head; it is a few hundred bytes and comes in one read nearly always.
        let before = self.line.len();
        let buffered = before > 0;
        if buffered {
            self.line.extend_from_slice(bytes);
        }
        let all: &[u8] = if buffered { &self.line } else { bytes };
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(all).map_err(|e| format!("not an HTTP/1.1 response: {e}"))?;
        let httparse::Status::Complete(length) = parsed else {
            if all.len() > MAX_HEAD {
                return Err(format!("the response head is longer than {MAX_HEAD} bytes"));
            }
            if !buffered {
                self.line.extend_from_slice(bytes);
            }
            return Ok(&[]);
        };
        let (head, state) = read_head(&response)?;
        let rest = &bytes[length - before..];
        self.line = Vec::new();
        if (100..200).contains(&head.status) {
            return Ok(rest);
        }
        self.head = Some(head);
        self.state = state;
        Ok(rest)
    }

    /// Collects one line, across reads if need be, and gives it without its end to `then`.
    fn take_line<'a>(
        &mut self,
        bytes: &'a [u8],
        then: impl FnOnce(&mut Self, &[u8]) -> Result<(), String>,
    ) -> Result<&'a [u8], String> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            if self.line.len() + bytes.len() > MAX_LINE {
                return Err(format!("a line of the chunked body is longer than {MAX_LINE} bytes"));
            }
            self.line.extend_from_slice(bytes);
            return Ok(&[]);
        };
        let (now, rest) = (&bytes[..end], &bytes[end + 1..]);
        if self.line.is_empty() {
            then(self, now.strip_suffix(b"\r").unwrap_or(now))?;
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(now);
            then(self, line.strip_suffix(b"\r").unwrap_or(&line))?;
            line.clear();
            self.line = line;
        }
        Ok(rest)
    }

    fn chunk_size(&mut self, line: &[u8]) -> Result<(), String> {
        let mut size: u64 = 0;
        let mut digits = 0;
        for byte in line {
            let Some(digit) = char::from(*byte).to_digit(16) else { break };
            digits += 1;
            if digits > 15 {
                return Err("a chunk of the body claims an absurd size".to_owned());
            }
            size = size * 16 + u64::from(digit);
        }
        let rest = line[digits..].trim_ascii();
        if digits == 0 || !(rest.is_empty() || rest[0] == b';') {
            return Err(format!(
                "not a chunk size: {:?}",
                String::from_utf8_lossy(&line[..line.len().min(40)])
            ));
        }
        self.state = if size == 0 { State::Trailer } else { State::ChunkData(size) };
        Ok(())
    }

    fn chunk_end(&mut self, line: &[u8]) -> Result<(), String> {
        if !line.is_empty() {
            return Err("a chunk of the body is longer than it claims".to_owned());
        }
        self.state = State::ChunkSize;
        Ok(())
    }

    fn trailer(&mut self, line: &[u8]) -> Result<(), String> {
        if line.is_empty() {
            self.state = State::Done;
        }
        Ok(())
    }
}

fn read_head(response: &httparse::Response<'_, '_>) -> Result<(Head, State), String> {
    let status = response.code.unwrap_or(0);
    let mut keep_alive = response.version == Some(1);
    let (mut event_stream, mut chunked, mut length) = (false, false, None);
    for header in response.headers.iter() {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(value).unwrap_or("");
            length = Some(text.parse::<u64>().map_err(|_| format!("not a content-length: {text:?}"))?);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.to_ascii_lowercase().ends_with(b"chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            let value = value.to_ascii_lowercase();
            if value.windows(5).any(|w| w == b"close") {
                keep_alive = false;
            } else if value.windows(10).any(|w| w == b"keep-alive") {
                keep_alive = true;
            }
        } else if header.name.eq_ignore_ascii_case("content-type") {
            event_stream = value.to_ascii_lowercase().starts_with(b"text/event-stream");
        }
    }
    let state = if status == 204 || status == 304 {
        State::Done
    } else if chunked {
        State::ChunkSize
    } else {
        match length {
            Some(0) => State::Done,
            Some(length) => State::Length(length),
            None => State::UntilClose,
        }
    };
    Ok((Head { status, event_stream, keep_alive }, state))
}
