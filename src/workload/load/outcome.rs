//! What became of one request. Pure.

use super::stream::{Finish, Usage};
use serde::Serialize;
use std::time::Duration;

/// Why a request failed. Every failure has exactly one class, and none is retried: an outage must stay visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorClass {
    /// Nobody listens.
    ConnectRefused,
    /// The connection could not be made for another reason.
    ConnectFailed,
    /// The connection was reset or closed before the answer was complete.
    Reset,
    /// No byte came for too long.
    IdleTimeout,
    /// The whole request took too long.
    TotalTimeout,
    /// The server refused the request.
    #[serde(rename = "http-4xx")]
    Http4xx,
    /// The server failed.
    #[serde(rename = "http-5xx")]
    Http5xx,
    /// Another status than 200.
    HttpOther,
    /// An error object inside an answer that began with 200.
    StreamError,
    /// The stream ended in good order but without `[DONE]` and without a finish reason.
    Truncated,
    /// Complete, but without a single token.
    EmptyOutput,
    /// Not HTTP, not a stream, or not JSON.
    BadResponse,
    /// We gave it up: the drain was over or the load was stopped.
    Cancelled,
}

impl ErrorClass {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect-refused",
            Self::ConnectFailed => "connect-failed",
            Self::Reset => "reset",
            Self::IdleTimeout => "idle-timeout",
            Self::TotalTimeout => "total-timeout",
            Self::Http4xx => "http-4xx",
            Self::Http5xx => "http-5xx",
            Self::HttpOther => "http-other",
            Self::StreamError => "stream-error",
            Self::Truncated => "truncated",
            Self::EmptyOutput => "empty-output",
            Self::BadResponse => "bad-response",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A failure: its class and what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The class.
    pub class: ErrorClass,
    /// A lowercase fragment with the server's own words where there are any.
    pub detail: String,
}

impl Fault {
    /// A failure with a detail, cut to a length that a log line can bear.
    pub fn new(class: ErrorClass, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        if detail.len() > 500 {
            let cut = (0..=500).rev().find(|at| detail.is_char_boundary(*at)).unwrap_or(0);
            detail.truncate(cut);
            detail.push('…');
        }
        Self { class, detail }
    }
}

/// One request as it goes and as it went. Moments count from the start of the load.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Counts from 0 in the order of the schedule.
    pub id: u32,
    /// Index into the mix.
    pub workload: u16,
    /// When it should have been sent.
    pub intended: Duration,
    /// When sending it began; before the connection is made, so that a slow accept counts.
    pub sent: Duration,
    /// First piece with text.
    pub first: Option<Duration>,
    /// Last piece with text.
    pub last: Option<Duration>,
    /// When it was over, well or not.
    pub ended: Duration,
    /// Prompt tokens of the schedule.
    pub planned_input: u32,
    /// `max_tokens` of the schedule.
    pub planned_output: u32,
    /// Token counts of the server.
    pub usage: Option<Usage>,
    /// Pieces with text. A piece can hold several tokens.
    pub pieces: u32,
    /// Pieces that came in the same read as the one before, so that no gap between them was seen.
    pub coalesced: u32,
    /// Why the server stopped.
    pub finish: Option<Finish>,
    /// The HTTP status, if a head came.
    pub status: Option<u16>,
    /// Why it failed; none is success.
    pub fault: Option<Fault>,
}

impl Record {
    /// A request about to be sent.
    pub fn new(id: u32, workload: u16, intended: Duration, planned_input: u32, planned_output: u32) -> Self {
        Self {
            id,
            workload,
            intended,
            sent: intended,
            first: None,
            last: None,
            ended: intended,
            planned_input,
            planned_output,
            usage: None,
            pieces: 0,
            coalesced: 0,
            finish: None,
            status: None,
            fault: None,
        }
    }

    /// Whether it succeeded.
    pub fn ok(&self) -> bool {
        self.fault.is_none()
    }

    /// A piece with text came.
    pub fn piece(&mut self, at: Duration) {
        if self.first.is_none() {
            self.first = Some(at);
        } else if self.last == Some(at) {
            self.coalesced += 1;
        }
        self.last = Some(at);
        self.pieces += 1;
    }

    /// Time to first token, from the real send.
    pub fn ttft(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.sent))
    }

    /// The same from the intended send: what a user behind the schedule would have waited.
    pub fn ttft_intended(&self) -> Option<Duration> {
        Some(self.first?.saturating_sub(self.intended))
    }

    /// Real send to last token.
    pub fn e2e(&self) -> Option<Duration> {
        Some(self.last?.saturating_sub(self.sent))
    }

    /// Intended send to last token.
    pub fn e2e_intended(&self) -> Option<Duration> {
        Some(self.last?.saturating_sub(self.intended))
    }

    /// Output tokens, only from the server's usage: pieces are not tokens.
    pub fn output_tokens(&self) -> Option<u64> {
        self.usage.map(|usage| usage.completion_tokens)
    }

    /// Time per output token after the first; none with fewer than two tokens.
    pub fn tpot(&self) -> Option<Duration> {
        let tokens = self.output_tokens()?;
        if tokens < 2 {
            return None;
        }
        let rest = self.e2e()?.saturating_sub(self.ttft()?);
        Some(Duration::from_secs_f64(rest.as_secs_f64() / (tokens - 1) as f64))
    }

    /// How late it was sent.
    pub fn lag(&self) -> Duration {
        self.sent.saturating_sub(self.intended)
    }

    /// Its line of `requests.jsonl`.
    pub fn line<'a>(&'a self, workload: &'a str) -> Line<'a> {
        let ms = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        Line {
            id: self.id,
            workload,
            ok: self.ok(),
            error: self.fault.as_ref().map(|f| f.class.name()),
            detail: self.fault.as_ref().map(|f| f.detail.as_str()),
            status: self.status,
            finish: self.finish.map(Finish::name),
            intended_ms: ms(self.intended),
            sent_ms: ms(self.sent),
            first_ms: self.first.map(ms),
            last_ms: self.last.map(ms),
            ended_ms: ms(self.ended),
            planned_input: self.planned_input,
            planned_output: self.planned_output,
            prompt_tokens: self.usage.map(|u| u.prompt_tokens),
            output_tokens: self.output_tokens(),
            pieces: self.pieces,
            coalesced: self.coalesced,
            ttft_ms: self.ttft().map(ms),
            tpot_ms: self.tpot().map(ms),
            e2el_ms: self.e2e().map(ms),
        }
    }
}

/// A line of `requests.jsonl`. Times are milliseconds from the start of the load.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    id: u32,
    workload: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    status: Option<u16>,
    finish: Option<&'a str>,
    intended_ms: f64,
    sent_ms: f64,
    first_ms: Option<f64>,
    last_ms: Option<f64>,
    ended_ms: f64,
    planned_input: u32,
    planned_output: u32,
    prompt_tokens: Option<u64>,
    output_tokens: Option<u64>,
    pieces: u32,
    coalesced: u32,
    ttft_ms: Option<f64>,
    tpot_ms: Option<f64>,
    e2el_ms: Option<f64>,
}
