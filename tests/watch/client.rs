//! A client of few words, which can also misbehave.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use varcas_guard::time::instant_now;

/// Long: the machine may be busy. A test that works never waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again until there is an answer.
pub(crate) fn patiently<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let began = instant_now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(began.elapsed() < PATIENCE, "asked in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the other side has closed the connection.
pub(crate) fn closed_by_the_other_side(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut byte = [0];
    let read = stream.read(&mut byte);
    assert!(
        matches!(&read, Ok(0))
            || read.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    );
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    /// 0 when the connection was closed without one.
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A connection for one request.
pub(crate) struct Guest {
    stream: TcpStream,
}

impl Guest {
    pub(crate) fn new(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream }
    }

    fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> std::io::Result<()> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            text.push_str("Host: localhost\r\n");
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        self.stream.write_all((text + "\r\n").as_bytes())
    }

    pub(crate) fn get(self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("GET", path, headers)
    }

    pub(crate) fn try_get(mut self, path: &str) -> Option<Answer> {
        self.send("GET", path, &[]).ok()?;
        Some(self.read()).filter(|answer| answer.status != 0)
    }

    pub(crate) fn head(self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.ask("HEAD", path, headers)
    }

    pub(crate) fn ask(mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send(method, path, headers).unwrap();
        self.read()
    }

    /// Says exactly this. The line stays open on this side: hyper drops its answer when it sees the end of a half-closed one
    /// first.
    pub(crate) fn raw(mut self, text: &str) -> Answer {
        // Who is refused in the middle of it cannot say the rest.
        drop(self.stream.write_all(text.as_bytes()));
        self.read()
    }

    fn read(mut self) -> Answer {
        let mut bytes = Vec::new();
        drop(self.stream.read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        Answer { status, head: head.to_owned(), body: body.to_owned() }
    }

    /// Asks and never reads.
    pub(crate) fn unread(mut self, path: &str) -> TcpStream {
        self.send("GET", path, &[]).unwrap();
        self.stream
    }

    /// A stream of events.
    pub(crate) fn stream(mut self, path: &str, headers: &[(&str, &str)]) -> Events {
        self.send("GET", path, headers).unwrap();
        Events { stream: RefCell::new(self.stream), raw: RefCell::default() }
    }
}

/// A stream of events that can be read bit by bit.
pub(crate) struct Events {
    stream: RefCell<TcpStream>,
    raw: RefCell<Vec<u8>>,
}

impl Events {
    fn more(&self) -> bool {
        let mut buffer = [0; 64 << 10];
        let n = self.stream.borrow_mut().read(&mut buffer).unwrap();
        self.raw.borrow_mut().extend(&buffer[..n]);
        n > 0
    }

    /// What came so far, without head and chunk sizes.
    fn text(&self) -> String {
        let raw = self.raw.borrow();
        let Some(head) = raw.windows(4).position(|four| four == b"\r\n\r\n") else { return String::new() };
        let (mut rest, mut out) = (&raw[head + 4..], Vec::new());
        while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
            let size =
                std::str::from_utf8(&rest[..end]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
            let size = size.unwrap();
            let Some(chunk) = rest.get(end + 2..end + 2 + size) else { break };
            out.extend(chunk);
            rest = rest.get(end + 4 + size..).unwrap_or_default();
        }
        String::from_utf8(out).unwrap()
    }

    /// Reads until these words have come.
    pub(crate) fn until(&self, words: &str) {
        while !self.text().contains(words) {
            assert!(self.more(), "the stream ended before {words}: {}", self.text());
        }
    }

    /// The first so many numbers, and the last of them.
    pub(crate) fn take_ids(&self, n: usize) -> (Vec<u64>, u64) {
        while ids(&self.text()).len() < n {
            assert!(self.more(), "the stream ended early");
        }
        let mut ids = ids(&self.text());
        ids.truncate(n);
        let last = *ids.last().unwrap();
        (ids, last)
    }

    /// Everything up to its end.
    pub(crate) fn rest(self) -> String {
        while self.more() {}
        self.text()
    }
}

/// The numbers of the events.
pub(crate) fn ids(text: &str) -> Vec<u64> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect()
}
