//! Somebody who is told: a small HTTP server that can be in a bad mood.
#![expect(clippy::unwrap_used, reason = "a test may panic, also in a helper of tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// What it does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Takes it.
    Good,
    /// Answers this status.
    Answers(u16),
    /// Takes the connection and says nothing.
    Hangs,
}

/// A message that was taken.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Taken {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

#[derive(Debug)]
struct Inside {
    mood: Mood,
    asked: u32,
    taken: Vec<Taken>,
    /// Connections of those who get no answer.
    held: Vec<TcpStream>,
}

pub(crate) struct Hook {
    pub(crate) port: u16,
    inside: Arc<(Mutex<Inside>, Condvar)>,
}

impl Hook {
    pub(crate) fn new(mood: Mood) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), mood)
    }

    pub(crate) fn on(listener: TcpListener, mood: Mood) -> Self {
        let port = listener.local_addr().unwrap().port();
        let inside = Inside { mood, asked: 0, taken: Vec::new(), held: Vec::new() };
        let inside = Arc::new((Mutex::new(inside), Condvar::new()));
        let shared = Arc::clone(&inside);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || drop(answer(stream.unwrap(), &shared)));
            }
        });
        Self { port, inside }
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.inside.0.lock().unwrap().mood = mood;
    }

    /// Waits until it was asked so often.
    pub(crate) fn until_asked(&self, times: u32) {
        let (lock, changed) = &*self.inside;
        drop(changed.wait_while(lock.lock().unwrap(), |inside| inside.asked < times).unwrap());
    }

    /// Waits until it has taken so many.
    pub(crate) fn until_taken(&self, n: usize) -> Vec<Taken> {
        let (lock, changed) = &*self.inside;
        changed.wait_while(lock.lock().unwrap(), |inside| inside.taken.len() < n).unwrap().taken.clone()
    }

    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.inside.0.lock().unwrap().taken.clone()
    }

    /// What it was told about, in order.
    pub(crate) fn occasions(&self) -> Vec<String> {
        self.taken().iter().map(|taken| taken.json()["occasion"].as_str().unwrap().to_owned()).collect()
    }
}

fn answer(stream: TcpStream, shared: &(Mutex<Inside>, Condvar)) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut inside = shared.0.lock().unwrap();
    inside.asked += 1;
    let status = match inside.mood {
        Mood::Good => {
            inside.taken.push(Taken { head, body: String::from_utf8(body).unwrap() });
            200
        }
        Mood::Answers(status) => status,
        Mood::Hangs => {
            inside.held.push(stream);
            shared.1.notify_all();
            return Ok(());
        }
    };
    shared.1.notify_all();
    drop(inside);
    (&stream).write_all(
        format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").as_bytes(),
    )
}
