//! From events to messages. Pure.

use crate::config::Occasion;
use crate::error::ExitCode;
use crate::event::{Event, EventKind, Mitigation, Outcome};
use crate::time::{Stamp, human, secs};
use crate::view::names::{cause, first_up, sentence};
use crate::view::now::Now;
use crate::view::units::{count, figure};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

/// The deadline is near when so much is left, or a tenth of it all if that is less.
const NEAR: Duration = Duration::from_secs(600);

/// What a webhook gets as JSON, and every template is filled from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Why it is sent.
    pub occasion: Occasion,
    /// `info`, `warning` or `error`.
    pub severity: String,
    /// Half a sentence.
    pub title: String,
    /// A few lines.
    pub text: String,
    /// When it happened.
    pub at: jiff::Timestamp,
    /// The run.
    pub run: String,
    /// Its folder.
    pub folder: String,
    /// The machine.
    pub host: String,
    /// The model.
    pub model: String,
    /// The attempt, from 1.
    pub attempt: u32,
    /// How many there may be.
    pub attempts: u32,
    /// The phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Since the run began.
    #[serde(with = "secs")]
    pub elapsed_s: Duration,
    /// How the attempt or the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// What it failed of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// Of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// Requests that succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<u64>,
    /// Requests sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// Output tokens per second of a benchmark that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_throughput: Option<f64>,
}

impl Message {
    /// What a placeholder becomes; empty when it is not known.
    pub fn field(&self, name: &str) -> String {
        let some = |text: &Option<String>| text.clone().unwrap_or_default();
        match name {
            "occasion" => self.occasion.word().to_owned(),
            "severity" => self.severity.clone(),
            "title" => self.title.clone(),
            "text" => self.text.clone(),
            "run" => self.run.clone(),
            "folder" => self.folder.clone(),
            "report" => format!("{}/report.html", self.folder),
            "host" => self.host.clone(),
            "model" => self.model.clone(),
            "attempt" => self.attempt.to_string(),
            "attempts" => self.attempts.to_string(),
            "phase" => some(&self.phase),
            "elapsed" => human(self.elapsed_s),
            "outcome" => some(&self.outcome),
            "cause" => some(&self.cause),
            "explanation" => some(&self.explanation),
            "advice" => some(&self.advice),
            "exit_code" => self.exit_code.map(|code| code.to_string()).unwrap_or_default(),
            "requests" => match (self.completed, self.sent) {
                (Some(done), Some(sent)) => format!("{} of {}", count(done), count(sent)),
                _ => String::new(),
            },
            "throughput" => self.output_throughput.map(figure).unwrap_or_default(),
            _ => String::new(),
        }
    }
}

/// Makes messages while the journal streams by.
#[derive(Debug, Clone)]
pub struct Composer {
    now: Now,
    host: String,
    near_told: bool,
}

impl Composer {
    /// `host` is the machine's name.
    pub fn new(host: impl Into<String>) -> Self {
        Self { now: Now::default(), host: host.into(), near_told: false }
    }

    /// Takes the next event. What is to be told of it, if anything.
    pub fn push(&mut self, event: &Event) -> Option<Message> {
        self.now.push(event);
        match &event.kind {
            EventKind::RunStarted { .. } => Some(self.started(event.at)),
            EventKind::Judged { .. } => Some(self.judged(event.at)),
            EventKind::Decided { retry: true, why } => Some(self.again(event.at, why)),
            EventKind::RunFinished { outcome, exit_code, reason } => {
                Some(self.finished(event.at, *outcome, *exit_code, reason))
            }
            _ => None,
        }
    }

    /// When the deadline is near, on the run's clock; none when there is none or it was told.
    pub fn near_at(&self) -> Option<Duration> {
        let deadline = self.now.deadline.filter(|_| !self.near_told && !self.now.is_over())?;
        Some(deadline.saturating_sub(NEAR.min(deadline / 10)))
    }

    /// The deadline is near.
    pub fn near(&mut self, at: Stamp) -> Message {
        self.near_told = true;
        let left = human(self.now.deadline_left(at.mono).unwrap_or_default());
        let phase = crate::view::phrases::phase(&self.now);
        let text = format!(
            "Attempt {} is in the phase {phase}. What is not over by then is stopped in good order, and what there is is kept.",
            self.now.attempt.max(1)
        );
        self.message(at, Occasion::Deadline, "warning", format!("{left} until the deadline"), text)
    }

    /// A message that only shows whether it arrives.
    pub fn test(&self, at: Stamp) -> Message {
        let text = "This is what a message of varcas-guard looks like. Nothing was started.".to_owned();
        self.message(at, Occasion::Test, "info", "Test message".to_owned(), text)
    }

    /// The run's end, of which nobody was left to tell: its guard is dead.
    pub fn orphaned(&self) -> Option<Message> {
        let last = self.now.last.filter(|_| self.now.end.is_none())?;
        let text = format!(
            "Its journal ends after {} in attempt {}. `varcas-guard report {}` says how far it came, `varcas-guard reap` ends \
             what may be left.",
            human(last.mono),
            self.now.attempt.max(1),
            self.now.output.display()
        );
        let mut message =
            self.message(last, Occasion::Failure, "error", "varcas-guard itself was killed".to_owned(), text);
        message.outcome = Some("interrupted".to_owned());
        Some(message)
    }

    fn message(&self, at: Stamp, occasion: Occasion, severity: &str, title: String, text: String) -> Message {
        let now = &self.now;
        let progress = now.load.as_ref().map(|load| load.progress);
        let summary = now.load.as_ref().and_then(|load| load.summary.as_ref());
        Message {
            schema: SCHEMA,
            occasion,
            severity: severity.to_owned(),
            title,
            text,
            at: at.wall,
            run: now.run_id.clone(),
            folder: now.output.display().to_string(),
            host: self.host.clone(),
            model: now.model.clone(),
            attempt: now.attempt,
            attempts: now.attempts,
            phase: now.phase.map(|phase| phase.to_string()),
            elapsed_s: at.mono,
            outcome: now.ending.as_ref().map(|ending| word(ending.outcome)),
            cause: now.verdict.as_ref().map(|verdict| verdict.cause.clone()),
            explanation: now.verdict.as_ref().map(|verdict| verdict.explanation.clone()),
            advice: now
                .verdict
                .as_ref()
                .map(|verdict| verdict.advice.clone())
                .filter(|text| !text.is_empty()),
            exit_code: now.end.as_ref().map(|end| end.exit_code),
            completed: progress.map(|progress| progress.completed),
            sent: progress.map(|progress| progress.sent),
            output_throughput: summary.map(|summary| summary.output_throughput),
        }
    }

    fn started(&self, at: Stamp) -> Message {
        let now = &self.now;
        let mut text = format!("{} of load, at most {} attempts.", human(now.load_duration), now.attempts);
        if let Some(deadline) = now.deadline {
            text.push_str(&format!(" It is over in {} at the latest.", human(deadline)));
        }
        text.push_str(&format!("\nFolder: {}", now.output.display()));
        self.message(at, Occasion::Start, "info", format!("Started: {}", now.model), text)
    }

    fn judged(&self, at: Stamp) -> Message {
        let Some(verdict) = &self.now.verdict else {
            return self.message(at, Occasion::Verdict, "warning", "Judged".to_owned(), String::new());
        };
        let mut lines = vec![sentence(&verdict.explanation)];
        if let Some(quote) = &verdict.decisive {
            let line = quote.line.map(|line| format!(" line {line}")).unwrap_or_default();
            lines.push(format!("{}{line}: {}", quote.source, quote.text));
        }
        if !verdict.advice.trim().is_empty() {
            lines.push(sentence(&verdict.advice));
        }
        let title = format!("Attempt {} failed: {}", self.now.attempt, cause(&verdict.cause));
        self.message(at, Occasion::Verdict, "warning", title, lines.join("\n"))
    }

    fn again(&self, at: Stamp, why: &str) -> Message {
        let changes: Vec<String> = self.now.changes.iter().map(Mitigation::to_string).collect();
        let mut text = sentence(why);
        if !changes.is_empty() {
            text.push_str(&format!("\nIt runs with {}.", changes.join("; ")));
        }
        let title = format!("Attempt {} of at most {} follows", self.now.attempt + 1, self.now.attempts);
        self.message(at, Occasion::Retry, "warning", title, text)
    }

    fn finished(&self, at: Stamp, outcome: Outcome, exit_code: u8, reason: &str) -> Message {
        let now = &self.now;
        let good = exit_code == ExitCode::Success.code();
        let mut lines = Vec::new();
        if let (false, Some(verdict)) = (good, &now.verdict) {
            lines.push(sentence(&verdict.explanation));
            if !verdict.advice.trim().is_empty() {
                lines.push(sentence(&verdict.advice));
            }
        } else {
            lines.push(sentence(reason));
        }
        if let Some(bench) = now.load.as_ref().and_then(|load| load.summary.as_ref()) {
            lines.push(format!(
                "{} of {} requests succeeded, {} output tokens/s, TTFT p50 {} ms, p99 {} ms.",
                count(bench.progress.completed),
                count(bench.progress.sent),
                figure(bench.output_throughput),
                figure(bench.ttft_ms.p50),
                figure(bench.ttft_ms.p99)
            ));
        }
        if good && !now.changes.is_empty() {
            let changes: Vec<String> = now.changes.iter().map(Mitigation::to_string).collect();
            lines.push(format!("It was measured with changed settings: {}.", changes.join("; ")));
        }
        if now.left_behind > 0 {
            lines.push(format!("{} things were left behind, see the report.", now.left_behind));
        }
        lines.push(format!(
            "It took {} and {} attempts; exit code {exit_code}.",
            human(at.mono),
            now.attempt.max(1)
        ));
        lines.push(format!("Report: {}/report.html", now.output.display()));
        let (occasion, severity) = match (good, outcome) {
            (true, _) => (Occasion::Success, "info"),
            (false, Outcome::Stopped) => (Occasion::Failure, "warning"),
            (false, _) => (Occasion::Failure, "error"),
        };
        let title = match (good, &now.verdict) {
            (true, _) => format!("Success: {}", now.model),
            (false, Some(verdict)) => format!("Failed: {}", cause(&verdict.cause)),
            (false, None) => first_up(&format!("{outcome}: {reason}")),
        };
        let mut message = self.message(at, occasion, severity, title, lines.join("\n"));
        message.outcome = Some(word(outcome));
        message
    }
}

fn word(outcome: Outcome) -> String {
    outcome.to_string().replace(' ', "-")
}
