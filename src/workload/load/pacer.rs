//! Builds requests ahead of time, on a thread of its own, and hands each over at its moment. An edge.

use super::mix::Workload;
use super::prompt;
use super::schedule::Planned;
use super::spec::{Api, Load, Target};
use super::wire::Endpoint;
use crate::time::instant_now;
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;
use tokio::sync::mpsc;

/// A request ready to be sent.
#[derive(Debug)]
pub struct Shot {
    /// Its place in the schedule.
    pub planned: Planned,
    /// Head and body.
    pub request: Vec<u8>,
    /// In a closed loop, the further turns of its conversation: each is sent when the one before has been answered.
    pub then: Vec<Shot>,
}

/// The thread's state.
#[derive(Debug)]
pub struct Pacer {
    /// Where requests go.
    pub target: Target,
    /// The same, taken apart.
    pub endpoint: Endpoint,
    /// What is sent.
    pub load: Arc<Load>,
    /// The zero of the schedule.
    pub start: Instant,
    /// What was said in open conversations.
    pub talks: HashMap<u32, Vec<Message>>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    role: &'static str,
    content: String,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    max_tokens: u32,
    temperature: f64,
    seed: u64,
    stream: bool,
    stream_options: StreamOptions,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_eos: bool,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl Pacer {
    /// Hands over the whole schedule, or for a closed loop as much as is asked for. Ends at once when `gone` is dropped.
    pub fn pace(mut self, shots: &mpsc::Sender<Shot>, gone: &Receiver<()>) {
        let load = Arc::clone(&self.load);
        if load.schedule.arrivals.streams().is_some() {
            let mut shapes = load.schedule.shapes();
            loop {
                let turns = shapes.conversation(&load.schedule.mix, std::time::Duration::ZERO);
                let mut turns =
                    turns.iter().map(|planned| self.shot(planned)).collect::<Vec<_>>().into_iter();
                let Some(first) = turns.next() else { return };
                let shot = Shot { then: turns.collect(), ..first };
                // The channel holds a few; the other side closes it when the load is over.
                if shots.blocking_send(shot).is_err() {
                    return;
                }
            }
        }
        for planned in &load.schedule.requests {
            let shot = self.shot(planned);
            let wait = (self.start + planned.at).saturating_duration_since(instant_now());
            // The other side never sends: it is dropped when the load is over, and that ends the wait at once.
            if gone.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) || shots.blocking_send(shot).is_err()
            {
                return;
            }
        }
    }

    fn shot(&mut self, planned: &Planned) -> Shot {
        Shot { planned: *planned, request: self.request(planned), then: Vec::new() }
    }

    fn request(&mut self, planned: &Planned) -> Vec<u8> {
        let load = Arc::clone(&self.load);
        let workload = &load.schedule.mix.workloads[usize::from(planned.workload)];
        let messages = self.messages(workload, planned);
        let joined = match load.api {
            Api::Completions => {
                let texts: Vec<&str> = messages.iter().map(|m| m.content.as_str()).collect();
                Some(texts.join("\n"))
            }
            Api::Chat => None,
        };
        let body = Body {
            model: &self.target.model,
            prompt: joined.as_deref(),
            messages: joined.is_none().then_some(&messages),
            max_tokens: planned.output,
            temperature: load.temperature,
            // The harness sends this seed whatever its own is; at temperature 0 it changes nothing.
            seed: 42,
            stream: true,
            stream_options: StreamOptions { include_usage: true },
            ignore_eos: load.ignore_eos,
        };
        // Writing numbers and strings into memory cannot fail.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let headers = self
            .target
            .api_key
            .as_ref()
            .map_or(String::new(), |key| format!("authorization: Bearer {key}\r\n"));
        self.endpoint.post(load.api.path(), &headers, &body)
    }

    fn messages(&mut self, workload: &Workload, planned: &Planned) -> Vec<Message> {
        let (tokens, seed) = (&self.target.tokens, self.load.word_seed);
        let mut messages =
            if planned.turn > 0 { self.talks.remove(&planned.talk) } else { None }.unwrap_or_default();
        if messages.is_empty()
            && let Some(shared) = workload.prefix
        {
            let content = prompt::prefix(shared.tokens, tokens, seed, planned.group);
            messages.push(Message { role: "system", content });
        }
        let content = match planned.example.and_then(|index| workload.examples.get(index as usize)) {
            Some(example) => example.prompt.clone(),
            None => prompt::build(&workload.template, planned.input, tokens, seed, planned.id),
        };
        messages.push(Message { role: "user", content });
        // Only a conversation that goes on is remembered.
        if workload.turns.is_some_and(|turns| u32::from(planned.turn) + 1 < turns.count) {
            let mut said = messages.clone();
            let content = prompt::answer(planned.output, tokens, seed, planned.id);
            said.push(Message { role: "assistant", content });
            self.talks.insert(planned.talk, said);
        }
        messages
    }
}
