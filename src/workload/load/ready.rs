//! Is the server there, what does it serve, and is it warm? An edge; only control requests, so reqwest.

use super::mix::{Mix, Template};
use super::prompt::{self, TokenModel, WORDS};
use super::schedule::Schedule;
use super::spec::{Api, Target};
use super::stream::{Meaning, SseParser, Usage, interpret, read_error};
use crate::time::instant_now;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

/// Context assumed when a server does not tell, as in the user's harness.
pub const DEFAULT_CONTEXT: u32 = 8192;
const POLL: Duration = Duration::from_millis(250);
/// The hit rate of the prefix cache is worth a short wait, no more.
const METRICS_TIMEOUT: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// The first completions compile kernels; a minute is normal on a busy machine.
const FIRST_TIMEOUT: Duration = Duration::from_secs(600);

/// What is known of a server that answers.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadyInfo {
    /// Where.
    pub base_url: String,
    /// The name to send.
    pub model: String,
    /// Context length.
    pub max_model_len: u32,
    /// Whether the server told it.
    pub context_detected: bool,
    /// How text turns into its tokens.
    pub tokens: TokenModel,
    /// Whether it sends token counts with a stream.
    pub has_usage: bool,
    /// What people should know.
    pub notes: Vec<String>,
}

impl ReadyInfo {
    /// Where the load goes.
    pub fn target(&self) -> Target {
        Target {
            base_url: self.base_url.clone(),
            model: self.model.clone(),
            max_model_len: self.max_model_len,
            context_detected: self.context_detected,
            tokens: self.tokens.clone(),
            api_key: None,
        }
    }
}

/// A client for control requests: no proxy, and no connection that vLLM may be closing.
fn client() -> Result<reqwest::Client, String> {
    reqwest::Client::builder()
        .no_proxy()
        .pool_idle_timeout(Duration::from_secs(3))
        .connect_timeout(PROBE_TIMEOUT)
        .build()
        .map_err(|e| format!("make an http client: {}", chain(&e)))
}

/// Waits until the server is healthy, asks what it serves, has it answer one request and count the words of the mix. It has no deadline of its own:
/// drop it to give up. It fails when the server is up but cannot be used.
pub async fn wait_ready(
    base_url: &str,
    model: Option<&str>,
    api: Api,
    mix: &Mix,
) -> Result<ReadyInfo, String> {
    let base = base(base_url)?;
    let client = client()?;
    while !is_healthy(&client, &base).await {
        tokio::time::sleep(POLL).await;
    }
    let (model, context) = model_of(&client, &base, model).await?;
    let mut notes = Vec::new();
    let max_model_len = context.unwrap_or_else(|| {
        notes.push(format!("the server does not tell max_model_len: {DEFAULT_CONTEXT} tokens assumed"));
        DEFAULT_CONTEXT
    });
    let mut info = ReadyInfo {
        base_url: base,
        model,
        max_model_len,
        context_detected: context.is_some(),
        tokens: TokenModel::default(),
        has_usage: true,
        notes,
    };
    let usage = complete(&client, &info.target(), api, "Hello", 1, 0.0).await?;
    if usage.is_none() {
        info.has_usage = false;
        info.notes.push("the server sends no usage with a stream: token counts will be unknown".to_owned());
    }
    match calibrate(&info.target(), mix).await {
        Ok(tokens) => info.tokens = tokens,
        Err(why) => {
            info.notes.push(format!("prompt lengths assume 4 characters a token: {why}"));
        }
    }
    Ok(info)
}

/// Sends `n` requests one after the other; the second is sampled, because the first sampled request compiles the sampler.
/// Returns how many, and the slowest.
pub async fn warm_up(target: &Target, api: Api, n: u32) -> Result<(u32, Duration), String> {
    let client = client()?;
    let template = Template::parse("chat")?;
    let mut slowest = Duration::ZERO;
    let output = 16.min(target.max_model_len / 4).max(1);
    let input = 32.min(target.max_model_len / 4).max(1);
    for index in 0..n {
        let temperature = if index == 1 { 1.0 } else { 0.0 };
        let words = prompt::build(&template, input, &target.tokens, u64::MAX, index);
        let began = instant_now();
        complete(&client, target, api, &words, output, temperature)
            .await
            .map_err(|e| format!("warm-up request {} of {n}: {e}", index + 1))?;
        slowest = slowest.max(instant_now().duration_since(began));
    }
    Ok((n, slowest))
}

/// Whether the server answers the smallest of all requests.
pub async fn one_token(target: &Target, api: Api, within: Duration) -> Result<(), String> {
    let client = client()?;
    let answer = tokio::time::timeout(within, complete(&client, target, api, "Hello", 1, 0.0));
    match answer.await {
        Ok(answer) => answer.map(drop),
        Err(_) => Err(format!("no answer within {}", crate::time::human(within))),
    }
}

fn base(url: &str) -> Result<String, String> {
    let endpoint = super::wire::Endpoint::parse(url)?;
    Ok(format!("http://{}{}", endpoint.authority, endpoint.prefix))
}

async fn is_healthy(client: &reqwest::Client, base: &str) -> bool {
    let Ok(answer) = client.get(format!("{base}/health")).timeout(PROBE_TIMEOUT).send().await else {
        return false;
    };
    match answer.status().as_u16() {
        200 => true,
        // A server without /health is judged by its model list.
        404 | 405 => {
            let models = client.get(format!("{base}/v1/models")).timeout(PROBE_TIMEOUT).send().await;
            models.is_ok_and(|answer| answer.status().is_success())
        }
        _ => false,
    }
}

async fn model_of(
    client: &reqwest::Client,
    base: &str,
    wanted: Option<&str>,
) -> Result<(String, Option<u32>), String> {
    let url = format!("{base}/v1/models");
    let answer = client
        .get(&url)
        .timeout(PROBE_TIMEOUT * 6)
        .send()
        .await
        .map_err(|e| format!("get {url}: {}", chain(&e)))?;
    let status = answer.status();
    let body = answer.bytes().await.map_err(|e| format!("read {url}: {}", chain(&e)))?;
    if !status.is_success() {
        return Err(format!("get {url}: status {status}"));
    }
    let list: Value =
        serde_json::from_slice(&body).map_err(|e| format!("{url} did not answer with JSON: {e}"))?;
    let models = list.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
    let ids: Vec<&str> = models.iter().filter_map(|m| m.get("id")?.as_str()).collect();
    if ids.is_empty() {
        return Err(format!("{url} lists no model: is a model loaded?"));
    }
    let chosen = match wanted {
        None => ids[0],
        Some(wanted) if ids.contains(&wanted) => wanted,
        Some(wanted) => {
            return Err(format!("{url} does not list the model {wanted}; it lists {}", ids.join(", ")));
        }
    };
    let model = models.iter().find(|m| m.get("id").and_then(Value::as_str) == Some(chosen));
    let context = model.and_then(|m| m.get("max_model_len")?.as_u64()).and_then(|n| u32::try_from(n).ok());
    Ok((chosen.to_owned(), context.filter(|n| *n > 0)))
}

/// One completion over the same endpoint and in the same way as the load's, and its usage.
async fn complete(
    client: &reqwest::Client,
    target: &Target,
    api: Api,
    prompt: &str,
    max_tokens: u32,
    temperature: f64,
) -> Result<Option<Usage>, String> {
    let url = format!("{}{}", base(&target.base_url)?, api.path());
    let mut body = json!({
        "model": target.model, "max_tokens": max_tokens, "temperature": temperature,
        "stream": true, "stream_options": {"include_usage": true},
    });
    match api {
        Api::Completions => body["prompt"] = prompt.into(),
        Api::Chat => body["messages"] = json!([{"role": "user", "content": prompt}]),
    }
    let mut request = client.post(&url).timeout(FIRST_TIMEOUT).json(&body);
    if let Some(key) = &target.api_key {
        request = request.bearer_auth(key);
    }
    let answer = request.send().await.map_err(|e| format!("post {url}: {}", chain(&e)))?;
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await.map_err(|e| format!("read the answer of {url}: {}", chain(&e)))?;
    if let Some(Meaning::Error { message, .. }) = read_error(&bytes) {
        return Err(format!("{url} answered with status {status}: {message}"));
    }
    if status != 200 {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        return Err(format!("{url} answered with status {status}: {text}"));
    }
    let (mut usage, mut error, mut pieces) = (None, None, 0);
    SseParser::default().push(&bytes, |data| match interpret(data) {
        Meaning::Error { message, .. } => error = Some(message),
        Meaning::Piece { usage: counts, .. } => {
            pieces += 1;
            usage = counts.or(usage);
        }
        Meaning::Done | Meaning::Unreadable => {}
    })?;
    match error {
        Some(message) => Err(format!("{url} broke off with an error: {message}")),
        None if pieces == 0 => Err(format!("{url} answered 200, but not with a stream of completions")),
        None => Ok(usage),
    }
}

/// How often a word is repeated to see what it costs in the middle of a text.
const REPEATS: usize = 16;
/// Prompts of each template that are counted to see what stands around its words.
const TRIALS: u32 = 5;

/// Has the server count tokens: of a text like our prompts, of every word, and of every template of the mix. After that,
/// prompts have their length in the server's own tokens.
async fn calibrate(target: &Target, mix: &Mix) -> Result<TokenModel, String> {
    let counter = Counter::new(target)?;
    let text = prompt::sample(7);
    let tokens = counter.count(&text, false).await?;
    let mut measured = TokenModel::measured(text.len(), tokens);
    let mut costs = Vec::with_capacity(WORDS.len());
    for word in WORDS {
        let tokens = counter.count(&vec![word; REPEATS].join(" "), false).await?;
        costs.push(((tokens as f64 / REPEATS as f64).round() as u32).max(1));
    }
    measured = measured.with_costs(costs);
    for workload in mix.workloads.iter().filter(|w| w.examples.is_empty()) {
        let template = &workload.template;
        measured.set_around(template, 0);
        let asked = 100;
        let mut around = Vec::new();
        for id in 0..TRIALS {
            let text = prompt::build(template, asked, &measured, 7, id);
            around.push((counter.count(&text, true).await? as u32).saturating_sub(asked));
        }
        around.sort_unstable();
        measured.set_around(template, around[around.len() / 2]);
    }
    Ok(measured)
}

/// Has the server count the prompts of datasets and traces in a schedule, so that answers are fitted to their real length.
/// What it has not counted within 20 s keeps its estimate.
pub async fn count_examples(target: &Target, schedule: &mut Schedule) {
    let Ok(counter) = Counter::new(target) else { return };
    let until = instant_now() + COUNT_PATIENCE;
    let mut known = HashMap::new();
    for index in 0..schedule.requests.len() {
        let request = schedule.requests[index];
        let Some(example) = request.example else { continue };
        let key = (request.workload, example);
        if let Entry::Vacant(unknown) = known.entry(key) {
            let examples = &schedule.mix.workloads[usize::from(request.workload)].examples;
            let counting = counter.count(&examples[example as usize].prompt, true);
            let Ok(Ok(tokens)) = tokio::time::timeout_at(until.into(), counting).await else { return };
            unknown.insert(u32::try_from(tokens).unwrap_or(u32::MAX));
        }
        schedule.counted(index, known[&key]);
    }
}

/// Counting the prompts of a dataset delays the load, so it has an end.
const COUNT_PATIENCE: Duration = Duration::from_secs(20);

struct Counter<'a> {
    client: reqwest::Client,
    url: String,
    target: &'a Target,
}

impl<'a> Counter<'a> {
    fn new(target: &'a Target) -> Result<Self, String> {
        Ok(Self { client: client()?, url: format!("{}/tokenize", base(&target.base_url)?), target })
    }

    async fn count(&self, text: &str, special: bool) -> Result<usize, String> {
        let url = &self.url;
        let body = json!({"model": self.target.model, "prompt": text, "add_special_tokens": special});
        let mut request = self.client.post(url).timeout(PROBE_TIMEOUT * 6).json(&body);
        if let Some(key) = &self.target.api_key {
            request = request.bearer_auth(key);
        }
        let answer = request.send().await.map_err(|e| format!("post {url}: {}", chain(&e)))?;
        if !answer.status().is_success() {
            return Err(format!("{url} answered with status {}", answer.status().as_u16()));
        }
        let value: Value = answer.json().await.map_err(|e| format!("read {url}: {}", chain(&e)))?;
        let count = value.get("count").and_then(Value::as_u64).unwrap_or(0) as usize;
        if count == 0 || count > text.len() + 8 {
            return Err(format!("{url} counted {count} tokens in {} characters", text.len()));
        }
        Ok(count)
    }
}

/// Prompt tokens the server looked up in its prefix cache, and those it found, since it started.
pub async fn prefix_cache(base_url: &str) -> Option<(f64, f64)> {
    let url = format!("{}/metrics", base(base_url).ok()?);
    let answer = client().ok()?.get(url).timeout(METRICS_TIMEOUT).send().await.ok()?;
    if !answer.status().is_success() {
        return None;
    }
    let text = answer.text().await.ok()?;
    Some((sum(&text, "vllm:prefix_cache_queries_total")?, sum(&text, "vllm:prefix_cache_hits_total")?))
}

/// The sum of a counter over its labels, in the text format of Prometheus.
fn sum(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

/// An error with its causes; reqwest's own text hides the one that matters.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
