//! Answers of the two completion endpoints, whole and streamed, byte for byte in the layout of vLLM 0.15.1.

use super::client::{Got, Ticket};
use super::fault::What;
use super::generate::{Words, request_id};
use super::lines;
use super::request::{ApiError, Wanted};
use super::wire::Finish;
use crate::time::wall_now;
use bytes::Bytes;
use serde_json::json;
use std::collections::VecDeque;
use std::time::Duration;

/// The event inside a stream that began with 200. Python's json.dumps puts blanks where pydantic does not.
fn broken(message: &str) -> String {
    format!(
        "data: {{\"error\": {{\"message\": {}, \"type\": \"InternalServerError\", \"param\": null, \"code\": 500}}}}\n\n",
        json!(message)
    )
}

/// The pace of a stream that never ends.
const GOES_ON: Duration = Duration::from_millis(100);

const DONE: &str = "data: [DONE]\n\n";

/// What vLLM answers, with status 200, when its engine is dead.
pub(super) fn dead_body() -> String {
    let error = ApiError {
        status: 500,
        message: lines::ENGINE_DEAD.to_owned(),
        kind: "InternalServerError",
        param: None,
    };
    error.body()
}

/// One answer in the making.
#[derive(Debug)]
pub(super) struct Answer {
    ticket: Ticket,
    wanted: Wanted,
    id: String,
    created: i64,
    model: String,
    words: Words,
    generated: u64,
    ready: VecDeque<String>,
    over: bool,
    role_sent: bool,
    fault: Option<What>,
    cut: bool,
}

impl Answer {
    pub(super) fn new(ticket: Ticket, wanted: Wanted) -> Self {
        let client = ticket.client();
        let (seed, merge, number) = (client.knobs.seed, client.knobs.merge, ticket.number);
        Self {
            id: format!("{}-{}", if wanted.chat { "chatcmpl" } else { "cmpl" }, request_id(seed, number)),
            created: wall_now().as_second(),
            model: client.args.served_name.clone(),
            words: Words::new(seed, number, merge),
            fault: client.stream_fault(number),
            cut: false,
            generated: 0,
            ready: VecDeque::new(),
            over: false,
            role_sent: false,
            ticket,
            wanted,
        }
    }

    /// The whole answer as one JSON object; also when the engine dies, and then, as in vLLM, still with status 200.
    pub(super) async fn whole(mut self) -> String {
        let mut text = String::new();
        let finish = loop {
            match self.ticket.next().await {
                Got::Dead => return dead_body(),
                Got::Token(finish) => {
                    self.generated += 1;
                    text.push_str(self.words.next());
                    if let Some(finish) = finish {
                        break finish;
                    }
                }
            }
        };
        let (text, reason, usage) = (json!(text), finish.name(), self.usage(true));
        let (id, created, model) = (&self.id, self.created, json!(self.model));
        if self.wanted.chat {
            format!(
                "{{\"id\":\"{id}\",\"object\":\"chat.completion\",\"created\":{created},\"model\":{model},\"choices\":[{{\
                 \"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":{text},\"refusal\":null,\"annotations\":null,\
                 \"audio\":null,\"function_call\":null,\"tool_calls\":[],\"reasoning\":null,\"reasoning_content\":null}},\
                 \"logprobs\":null,\"finish_reason\":\"{reason}\",\"stop_reason\":null,\"token_ids\":null}}],\
                 \"service_tier\":null,\"system_fingerprint\":null,\"usage\":{usage},\"prompt_logprobs\":null,\
                 \"prompt_token_ids\":null,\"kv_transfer_params\":null}}"
            )
        } else {
            format!(
                "{{\"id\":\"{id}\",\"object\":\"text_completion\",\"created\":{created},\"model\":{model},\"choices\":[{{\
                 \"index\":0,\"text\":{text},\"logprobs\":null,\"finish_reason\":\"{reason}\",\"stop_reason\":null,\
                 \"token_ids\":null,\"prompt_logprobs\":null,\"prompt_token_ids\":null}}],\"service_tier\":null,\
                 \"system_fingerprint\":null,\"usage\":{usage},\"kv_transfer_params\":null}}"
            )
        }
    }

    /// The next server-sent event; an error breaks the connection.
    pub(super) async fn event(&mut self) -> Option<std::io::Result<Bytes>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(Bytes::from(event)));
            }
            if self.cut {
                return Some(Err(std::io::Error::other("the connection breaks")));
            }
            if self.over && self.fault != Some(What::NeverEnds) {
                return None;
            }
            if self.over {
                tokio::time::sleep(GOES_ON).await;
                self.chunk(" and", None);
                continue;
            }
            let got = self.ticket.next().await;
            self.take(got).await;
        }
    }

    /// One chunk from one token, or from several when they are there already or the seed says so.
    async fn take(&mut self, mut got: Got) {
        let mut text = String::new();
        loop {
            match got {
                Got::Dead => {
                    if !text.is_empty() {
                        self.chunk(&text, None);
                    }
                    lines::stream_failed(&self.ticket.client().log, self.wanted.chat);
                    return self.fail(lines::ENGINE_DEAD);
                }
                Got::Token(finish) => {
                    self.generated += 1;
                    text.push_str(self.words.next());
                    match self.fault {
                        Some(What::StreamError(after)) if self.generated >= after => {
                            self.chunk(&text, None);
                            return self.fail("Internal server error");
                        }
                        Some(What::Cut(after)) if self.generated >= after => {
                            self.chunk(&text, None);
                            self.cut = true;
                            return;
                        }
                        Some(What::Stall(after)) if self.generated >= after => {
                            self.chunk(&text, None);
                            // Its end comes with the connection's, which drops this.
                            std::future::pending::<()>().await;
                        }
                        _ => {}
                    }
                    if finish.is_some() {
                        self.chunk(&text, finish.filter(|_| self.fault != Some(What::NeverEnds)));
                        return self.close();
                    }
                }
            }
            got = match self.ticket.ready() {
                Some(more) => more,
                None if self.words.merges() => self.ticket.next().await,
                None => return self.chunk(&text, None),
            };
        }
    }

    fn chunk(&mut self, text: &str, finish: Option<Finish>) {
        let (id, created, model, text) = (&self.id, self.created, json!(self.model), json!(text));
        let reason = finish.map_or("null".to_owned(), |finish| format!("\"{}\"", finish.name()));
        if !self.wanted.chat {
            let usage = if self.wanted.continuous_usage { self.usage(true) } else { "null".to_owned() };
            self.ready.push_back(format!(
                "data: {{\"id\":\"{id}\",\"object\":\"text_completion\",\"created\":{created},\"model\":{model},\"choices\":[{{\
                 \"index\":0,\"text\":{text},\"logprobs\":null,\"finish_reason\":{reason},\"stop_reason\":null,\
                 \"prompt_token_ids\":null,\"token_ids\":null}}],\"usage\":{usage}}}\n\n"
            ));
            return;
        }
        let head = format!(
            "data: {{\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":{created},\"model\":{model},\"choices\":[{{\
             \"index\":0,\"delta\":{{"
        );
        if !std::mem::replace(&mut self.role_sent, true) {
            self.ready.push_back(format!(
                "{head}\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":null}},\"logprobs\":null,\
                 \"finish_reason\":null}}],\"prompt_token_ids\":null}}\n\n"
            ));
        }
        let stop = if finish.is_some() { "\"stop_reason\":null," } else { "" };
        let usage = if self.wanted.continuous_usage {
            format!(",\"usage\":{}", self.usage(true))
        } else {
            String::new()
        };
        self.ready.push_back(format!(
            "{head}\"content\":{text},\"reasoning_content\":null}},\"logprobs\":null,\"finish_reason\":{reason},{stop}\
             \"token_ids\":null}}]{usage}}}\n\n"
        ));
    }

    fn usage(&self, details: bool) -> String {
        let (prompt, generated) = (self.wanted.prompt, self.generated);
        let details = if details { ",\"prompt_tokens_details\":null" } else { "" };
        format!(
            "{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{generated}{details}}}",
            prompt + generated
        )
    }

    fn close(&mut self) {
        self.over = true;
        if self.fault == Some(What::NeverEnds) {
            return;
        }
        if self.wanted.usage {
            let kind = if self.wanted.chat { "chat.completion.chunk" } else { "text_completion" };
            self.ready.push_back(format!(
                "data: {{\"id\":\"{}\",\"object\":\"{kind}\",\"created\":{},\"model\":{},\"choices\":[],\"usage\":{}}}\n\n",
                self.id,
                self.created,
                json!(self.model),
                self.usage(false)
            ));
        }
        self.ready.push_back(DONE.to_owned());
    }

    fn fail(&mut self, message: &str) {
        self.ready.push_back(broken(message));
        self.ready.push_back(DONE.to_owned());
        self.over = true;
    }
}
