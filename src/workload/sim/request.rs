//! A completion request: what vLLM reads from it, and the errors it answers with. Pure.

use super::generate::tokens_of;
use serde::Deserialize;
use serde_json::{Value, json};

/// An error in vLLM's JSON shape.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ApiError {
    /// HTTP status; also in the body.
    pub(super) status: u16,
    /// For people.
    pub(super) message: String,
    /// `BadRequestError`, `NotFoundError`, `Bad Request`.
    pub(super) kind: &'static str,
    /// The parameter at fault.
    pub(super) param: Option<&'static str>,
}

impl ApiError {
    fn bad(message: String, param: &'static str) -> Self {
        Self { status: 400, message, kind: "BadRequestError", param: Some(param) }
    }

    fn invalid(message: &str) -> Self {
        Self {
            status: 400,
            message: format!("1 validation error:\n  {message}"),
            kind: "Bad Request",
            param: None,
        }
    }

    /// The body.
    pub(super) fn body(&self) -> String {
        // By hand, because the order of the keys is vLLM's.
        let param = self.param.map_or("null".to_owned(), |param| format!("\"{param}\""));
        format!(
            "{{\"error\":{{\"message\":{},\"type\":\"{}\",\"param\":{param},\"code\":{}}}}}",
            json!(self.message),
            self.kind,
            self.status
        )
    }
}

/// What the simulator honours of a request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wanted {
    /// Chat or completion.
    pub(super) chat: bool,
    /// Tokens of the prompt.
    pub(super) prompt: u64,
    /// Upper limit of the answer.
    pub(super) max_tokens: u64,
    /// Lower limit.
    pub(super) min_tokens: u64,
    /// Never stop early.
    pub(super) ignore_eos: bool,
    /// Temperature above zero; absent means 1.
    pub(super) sampled: bool,
    /// Server-sent events.
    pub(super) stream: bool,
    /// A last chunk with the counts.
    pub(super) usage: bool,
    /// Counts in every chunk.
    pub(super) continuous_usage: bool,
}

#[derive(Debug, Deserialize)]
struct Body {
    model: Option<String>,
    prompt: Option<Value>,
    messages: Option<Vec<Message>>,
    max_tokens: Option<i64>,
    max_completion_tokens: Option<i64>,
    #[serde(default)]
    min_tokens: u64,
    #[serde(default)]
    ignore_eos: bool,
    temperature: Option<f64>,
    #[serde(default)]
    stream: bool,
    stream_options: Option<StreamOptions>,
    n: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Message {
    #[serde(default)]
    content: Value,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    // vLLM 0.15.1: true as soon as stream_options is given at all.
    #[serde(default = "yes")]
    include_usage: bool,
    #[serde(default)]
    continuous_usage_stats: bool,
}

fn yes() -> bool {
    true
}

/// Reads the body of `/v1/completions` or `/v1/chat/completions`.
pub(super) fn parse(body: &[u8], chat: bool, served: &str, context: u64) -> Result<Wanted, ApiError> {
    let body: Body = read(body)?;
    known_model(body.model.as_deref(), served)?;
    if body.stream_options.is_some() && !body.stream {
        return Err(ApiError::invalid(
            "{'type': 'value_error', 'loc': ('body',), 'msg': 'Value error, Stream options can only be defined when \
             `stream=True`. (parameter=stream_options)'}",
        ));
    }
    if body.n.is_some_and(|n| n != 1) {
        return Err(ApiError::bad("n other than 1 is not simulated".to_owned(), "n"));
    }
    let prompt = if chat {
        let messages = body.messages.as_ref().ok_or_else(|| {
            ApiError::invalid("{'type': 'missing', 'loc': ('body', 'messages'), 'msg': 'Field required'}")
        })?;
        chat_tokens(messages)
    } else {
        let prompt = body.prompt.as_ref().ok_or_else(no_prompt)?;
        prompt_tokens(prompt).ok_or_else(no_prompt)?
    };
    let asked = if chat { body.max_completion_tokens.or(body.max_tokens) } else { body.max_tokens };
    if let Some(asked) = asked.filter(|asked| *asked < 1) {
        let message =
            format!("max_tokens must be at least 1, got {asked}. (parameter=max_tokens, value={asked})");
        return Err(ApiError::bad(message, "max_tokens"));
    }
    let max_tokens = fit(chat, prompt, asked.map(i64::unsigned_abs), context)?;
    let options = body.stream_options;
    Ok(Wanted {
        chat,
        prompt,
        max_tokens,
        min_tokens: body.min_tokens,
        ignore_eos: body.ignore_eos,
        sampled: body.temperature.unwrap_or(1.0) > 0.0,
        stream: body.stream,
        usage: options.as_ref().is_some_and(|options| options.include_usage),
        continuous_usage: options
            .is_some_and(|options| options.include_usage && options.continuous_usage_stats),
    })
}

/// `/tokenize`: how many tokens.
pub(super) fn tokenize(body: &[u8], served: &str) -> Result<u64, ApiError> {
    let body: Body = read(body)?;
    known_model(body.model.as_deref(), served)?;
    match (&body.messages, &body.prompt) {
        (Some(messages), _) => Ok(chat_tokens(messages)),
        (None, Some(prompt)) => prompt_tokens(prompt).ok_or_else(no_prompt),
        (None, None) => Err(no_prompt()),
    }
}

fn read(body: &[u8]) -> Result<Body, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::invalid(&format!(
            "{{'type': 'json_invalid', 'loc': ('body', {}), 'msg': 'JSON decode error', 'ctx': {{'error': '{error}'}}}}",
            error.column()
        ))
    })
}

fn known_model(asked: Option<&str>, served: &str) -> Result<(), ApiError> {
    match asked {
        Some(asked) if asked != served => Err(ApiError {
            status: 404,
            message: format!("The model `{asked}` does not exist."),
            kind: "NotFoundError",
            param: Some("model"),
        }),
        _ => Ok(()),
    }
}

fn no_prompt() -> ApiError {
    ApiError::invalid(
        "{'type': 'value_error', 'loc': ('body',), 'msg': 'Value error, Either prompt or prompt_embeds must be provided \
         and non-empty.'}",
    )
}

/// A text, a list of token numbers, or a list with one of these.
fn prompt_tokens(prompt: &Value) -> Option<u64> {
    match prompt {
        Value::String(text) if !text.is_empty() => Some(tokens_of(text)),
        Value::Array(list) if list.iter().all(Value::is_number) => {
            Some(list.len() as u64).filter(|count| *count > 0)
        }
        Value::Array(list) => match &list[..] {
            [only] => prompt_tokens(only),
            _ => None,
        },
        _ => None,
    }
}

fn chat_tokens(messages: &[Message]) -> u64 {
    let text = |content: &Value| match content {
        Value::String(text) => tokens_of(text),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).map(tokens_of).sum(),
        _ => 0,
    };
    // The chat template adds a few tokens around each message and opens the answer.
    messages.iter().map(|message| text(&message.content) + 4).sum::<u64>() + 3
}

fn too_long(context: u64, prompt: u64) -> ApiError {
    let message = format!(
        "This model's maximum context length is {context} tokens. However, your request has {prompt} input tokens. Please \
         reduce the length of the input messages. (parameter=input_tokens, value={prompt})"
    );
    ApiError::bad(message, "input_tokens")
}

/// The two endpoints of vLLM 0.15.1 check the same thing in different order and words.
fn fit(chat: bool, prompt: u64, asked: Option<u64>, context: u64) -> Result<u64, ApiError> {
    if chat {
        if prompt > context {
            return Err(too_long(context, prompt));
        }
        let max_tokens = asked.unwrap_or(context - prompt);
        if prompt + max_tokens > context {
            let message = format!(
                "'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This model's maximum context length is \
                 {context} tokens and your request has {prompt} input tokens ({max_tokens} > {context} - {prompt}). \
                 (parameter=max_tokens, value={max_tokens})"
            );
            return Err(ApiError::bad(message, "max_tokens"));
        }
        return Ok(max_tokens);
    }
    let max_tokens = asked.unwrap_or(16);
    if max_tokens > context {
        let message = format!(
            "'max_tokens' ({max_tokens}) cannot be greater than the model's maximum context length ({context}). \
             (parameter=max_tokens, value={max_tokens})"
        );
        return Err(ApiError::bad(message, "max_tokens"));
    }
    if prompt > context - max_tokens {
        return Err(too_long(context - max_tokens, prompt));
    }
    Ok(max_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(body: &str) -> Result<Wanted, ApiError> {
        parse(body.as_bytes(), false, "tiny", 1024)
    }

    #[test]
    fn defaults_are_vllms() {
        let wanted = completion(r#"{"model":"tiny","prompt":"abcdefgh"}"#).unwrap();
        assert_eq!((wanted.prompt, wanted.max_tokens, wanted.sampled, wanted.stream), (2, 16, true, false));
        let wanted = completion(r#"{"prompt":[1,2,3],"stream":true,"stream_options":{}}"#).unwrap();
        assert!(wanted.usage && !wanted.continuous_usage);
        let chat =
            parse(br#"{"messages":[{"role":"user","content":"Hello there"}]}"#, true, "tiny", 1024).unwrap();
        assert_eq!(chat.max_tokens, 1024 - chat.prompt);
    }

    #[test]
    fn what_does_not_fit_is_refused_in_vllms_words() {
        let tokens = vec!["5"; 2000].join(",");
        let error = completion(&format!(r#"{{"prompt":[{tokens}],"max_tokens":4}}"#)).unwrap_err();
        assert_eq!(
            error.body(),
            r#"{"error":{"message":"This model's maximum context length is 1020 tokens. However, your request has 2000 input tokens. Please reduce the length of the input messages. (parameter=input_tokens, value=2000)","type":"BadRequestError","param":"input_tokens","code":400}}"#
        );
        let error = completion(r#"{"prompt":"a","max_tokens":5000}"#).unwrap_err();
        assert!(error.message.starts_with("'max_tokens' (5000) cannot be greater"), "{}", error.message);
        let error = completion(r#"{"prompt":"a","max_tokens":-3}"#).unwrap_err();
        assert!(error.message.starts_with("max_tokens must be at least 1, got -3."), "{}", error.message);
    }

    #[test]
    fn an_unknown_model_is_404_and_broken_json_is_400() {
        let error = completion(r#"{"model":"nope","prompt":"a"}"#).unwrap_err();
        assert_eq!(
            error.body(),
            r#"{"error":{"message":"The model `nope` does not exist.","type":"NotFoundError","param":"model","code":404}}"#
        );
        assert_eq!(completion(r#"{"model": "#).unwrap_err().status, 400);
        assert_eq!(completion("{}").unwrap_err().status, 400);
        assert_eq!(completion(r#"{"prompt":"a","stream_options":{}}"#).unwrap_err().status, 400);
    }
}
