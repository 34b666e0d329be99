//! Server-sent events, byte by byte, and what one event of a completion stream means. Pure.
//!
//! Bytes are kept as bytes until an event is complete, so a character split over two reads stays whole. An event that
//! lies whole in one read is handed on without a copy. Every byte is looked at once: a partial line is not scanned again
//! when more of it arrives.

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// An event beyond this is refused: a server that never ends a line must not eat our memory.
pub const MAX_EVENT: usize = 16 * 1024 * 1024;

/// Splits bytes into the `data` of events, as the HTML standard defines them.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// Data lines of an event whose empty line has not come.
    data: Vec<u8>,
    has_data: bool,
    /// The last line ended with a carriage return; a newline right behind it belongs to it.
    skip_newline: bool,
    started: bool,
}

impl SseParser {
    /// Takes the bytes of one read and calls `event` with the data of each event that is complete.
    pub fn push(&mut self, mut bytes: &[u8], mut event: impl FnMut(&[u8])) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.skip_newline {
                self.skip_newline = false;
                if bytes[0] == b'\n' {
                    bytes = &bytes[1..];
                    continue;
                }
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                if self.partial.len() + self.data.len() + bytes.len() > MAX_EVENT {
                    return Err(format!("an event of the stream is longer than {MAX_EVENT} bytes"));
                }
                self.partial.extend_from_slice(bytes);
                return Ok(());
            };
            let line = &bytes[..end];
            let carriage_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if carriage_return {
                match bytes.first() {
                    Some(b'\n') => bytes = &bytes[1..],
                    Some(_) => {}
                    None => self.skip_newline = true,
                }
            }
            if self.partial.is_empty() {
                bytes = self.line(line, bytes, &mut event)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                bytes = self.line(&whole, bytes, &mut event)?;
                whole.clear();
                self.partial = whole;
            }
        }
        Ok(())
    }

    /// One line without its end; `rest` is what follows it in the same read and comes back less what was used.
    fn line<'a>(
        &mut self,
        mut line: &[u8],
        rest: &'a [u8],
        event: &mut impl FnMut(&[u8]),
    ) -> Result<&'a [u8], String> {
        if !self.started {
            self.started = true;
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            if self.has_data {
                event(&self.data);
                self.data.clear();
                self.has_data = false;
            }
            return Ok(rest);
        }
        let Some(value) = data_value(line) else { return Ok(rest) };
        if !self.has_data {
            // The usual case: one data line, and the empty line that ends the event is here already.
            if let Some(after) = rest.strip_prefix(b"\n") {
                event(value);
                return Ok(after);
            }
            if let Some(after) = rest.strip_prefix(b"\r\n") {
                event(value);
                return Ok(after);
            }
        } else {
            self.data.push(b'\n');
        }
        if self.data.len() + value.len() > MAX_EVENT {
            return Err(format!("an event of the stream is longer than {MAX_EVENT} bytes"));
        }
        self.data.extend_from_slice(value);
        self.has_data = true;
        Ok(rest)
    }
}

/// The value of a `data` field; none for comments, other fields and names that only begin with it.
fn data_value(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(b"data")?;
    match rest.first() {
        None => Some(rest),
        Some(b':') => Some(rest[1..].strip_prefix(b" ").unwrap_or(&rest[1..])),
        Some(_) => None,
    }
}

/// Token counts of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Of the answer, reasoning included.
    #[serde(default)]
    pub completion_tokens: u64,
}

/// Why the server stopped writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens` is used up.
    Length,
    /// The server gave the request up.
    Abort,
    /// Another word.
    Other,
}

impl Finish {
    fn parse(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "length" => Self::Length,
            "abort" | "error" => Self::Abort,
            _ => Self::Other,
        }
    }

    /// Its name in records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Other => "other",
        }
    }
}

/// What one event means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// `[DONE]`
    Done,
    /// The server reports a failure inside a stream that began with 200.
    Error {
        /// Its code, if it is a number.
        code: Option<i64>,
        /// Its message.
        message: String,
    },
    /// A piece of the answer, the usage, or both.
    Piece {
        /// Bytes of text or reasoning in it; the first chat chunk with only a role has none.
        text_bytes: usize,
        /// It carries a text of the completions endpoint, though maybe an empty one: a token can decode to nothing (half a
        /// character, a special token), and `vllm bench serve` counts it as the first token all the same.
        has_text: bool,
        /// Why the server stopped, in the last piece.
        finish: Option<Finish>,
        /// Token counts.
        usage: Option<Usage>,
    },
    /// Neither JSON of a completion nor an end mark.
    Unreadable,
}

/// Reads the data of one event.
pub fn interpret(data: &[u8]) -> Meaning {
    let trimmed = data.trim_ascii();
    if trimmed == b"[DONE]" {
        return Meaning::Done;
    }
    let Ok(chunk) = serde_json::from_slice::<Chunk>(trimmed) else {
        return read_error(trimmed).unwrap_or(Meaning::Unreadable);
    };
    if chunk.error.is_some() || chunk.object.0.is_some_and(|o| o.0) {
        return read_error(trimmed).unwrap_or(Meaning::Unreadable);
    }
    let Some(choices) = chunk.choices else {
        // Not a completion: unless it carries the usage alone, nobody knows what it is.
        return match chunk.usage {
            Some(usage) => {
                Meaning::Piece { text_bytes: 0, has_text: false, finish: None, usage: Some(usage) }
            }
            None => Meaning::Unreadable,
        };
    };
    Meaning::Piece {
        text_bytes: choices.text_bytes,
        has_text: choices.has_text,
        finish: choices.finish,
        usage: chunk.usage,
    }
}

/// Reads an error body in the shapes that servers use: OpenAI's object, older vLLM's flat one, FastAPI's detail.
pub fn read_error(data: &[u8]) -> Option<Meaning> {
    let value: serde_json::Value = serde_json::from_slice(data).ok()?;
    let object = value.as_object()?;
    let inner = match object.get("error") {
        Some(serde_json::Value::Object(inner)) => inner,
        Some(serde_json::Value::String(message)) => {
            return Some(Meaning::Error { code: None, message: message.clone() });
        }
        Some(serde_json::Value::Null) | None if object.get("object").is_some_and(|o| o == "error") => object,
        Some(serde_json::Value::Null) | None => {
            let detail = object.get("detail")?;
            let message = detail.as_str().map_or_else(|| detail.to_string(), str::to_owned);
            return Some(Meaning::Error { code: None, message });
        }
        Some(other) => return Some(Meaning::Error { code: None, message: other.to_string() }),
    };
    let message = match inner.get("message") {
        Some(serde_json::Value::String(message)) => message.clone(),
        Some(other) => other.to_string(),
        None => serde_json::Value::Object(inner.clone()).to_string(),
    };
    Some(Meaning::Error { code: inner.get("code").and_then(serde_json::Value::as_i64), message })
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    object: Word<IsError>,
    #[serde(default)]
    choices: Option<Choices>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<IgnoredAny>,
}

/// All choices of a chunk, added up: we ask for one, but a server may stream several.
#[derive(Default)]
struct Choices {
    text_bytes: usize,
    has_text: bool,
    finish: Option<Finish>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: Word<Bytes>,
    #[serde(default)]
    delta: Option<ChatDelta>,
    #[serde(default)]
    finish_reason: Word<Finish>,
}

#[derive(Deserialize)]
struct ChatDelta {
    #[serde(default)]
    content: Word<Bytes>,
    #[serde(default)]
    reasoning_content: Word<Bytes>,
    #[serde(default)]
    reasoning: Word<Bytes>,
}

/// A string or null, read without keeping it: `Option<Cow<str>>` would allocate one for every token.
struct Word<T>(Option<T>);

impl<T> Default for Word<T> {
    fn default() -> Self {
        Self(None)
    }
}

/// What is kept of a string.
trait FromWord {
    fn from_word(word: &str) -> Self;
}

struct Bytes(usize);

impl FromWord for Bytes {
    fn from_word(word: &str) -> Self {
        Self(word.len())
    }
}

impl FromWord for Finish {
    fn from_word(word: &str) -> Self {
        Self::parse(word)
    }
}

struct IsError(bool);

impl FromWord for IsError {
    fn from_word(word: &str) -> Self {
        Self(word == "error")
    }
}

impl<'de, T: FromWord> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read<T>(PhantomData<T>);
        impl<T: FromWord> Visitor<'_> for Read<T> {
            type Value = Word<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or null")
            }

            fn visit_str<E>(self, word: &str) -> Result<Word<T>, E> {
                Ok(Word(Some(T::from_word(word))))
            }

            fn visit_unit<E>(self) -> Result<Word<T>, E> {
                Ok(Word(None))
            }
        }
        from.deserialize_any(Read(PhantomData))
    }
}

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Choices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of choices")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Choices, A::Error> {
                let mut all = Choices::default();
                while let Some(choice) = seq.next_element::<Choice>()? {
                    let bytes = |word: &Word<Bytes>| word.0.as_ref().map_or(0, |b| b.0);
                    all.text_bytes += bytes(&choice.text);
                    all.has_text |= choice.text.0.is_some();
                    if let Some(delta) = &choice.delta {
                        all.text_bytes +=
                            bytes(&delta.content) + bytes(&delta.reasoning_content) + bytes(&delta.reasoning);
                    }
                    all.finish = all.finish.or(choice.finish_reason.0);
                }
                Ok(all)
            }
        }
        from.deserialize_seq(All)
    }
}
