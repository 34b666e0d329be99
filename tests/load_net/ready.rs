//! Readiness and warm-up against a server on loopback.

use super::support::{Mock, Request, Step, block_on, good, json, piece, stream_head};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use varcas_guard::workload::load::driver::Api;
use varcas_guard::workload::load::mix::Mix;
use varcas_guard::workload::load::ready::{DEFAULT_CONTEXT, ReadyInfo, wait_ready, warm_up};

const MODELS: &str = r#"{"data":[{"id":"one","max_model_len":1024},{"id":"two"}]}"#;

/// A healthy vLLM, but for what `other` answers.
fn server(other: impl Fn(&Request) -> Option<Vec<Step>> + Send + Sync + 'static) -> Mock {
    Mock::start(move |request| {
        if let Some(steps) = other(request) {
            return steps;
        }
        match request.line.split(' ').nth(1).unwrap() {
            "/health" => json(200, ""),
            "/v1/models" => json(200, MODELS),
            "/tokenize" => {
                let chars = request.body["prompt"].as_str().unwrap().len();
                json(200, &format!(r#"{{"count":{}}}"#, chars / 5))
            }
            "/v1/completions" => good(1),
            _ => json(404, r#"{"detail":"Not Found"}"#),
        }
    })
}

fn path(request: &Request) -> &str {
    request.line.split(' ').nth(1).unwrap()
}

fn ready(server: &Mock) -> Result<ReadyInfo, String> {
    block_on(wait_ready(&server.url(), None, Api::Completions, &Mix::mixed()))
}

#[test]
fn a_healthy_server_tells_its_model_context_and_tokens() {
    let info = ready(&server(|_| None)).unwrap();
    assert_eq!((info.model.as_str(), info.max_model_len, info.context_detected), ("one", 1024, true));
    assert!(info.has_usage && info.notes.is_empty(), "{:?}", info.notes);
    assert!((info.tokens.chars_per_token() - 5.0).abs() < 0.01);
}

#[test]
fn it_waits_while_the_server_is_not_healthy() {
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let server = server(move |request| {
        (path(request) == "/health" && counted.fetch_add(1, Ordering::SeqCst) < 3).then(|| json(503, ""))
    });
    ready(&server).unwrap();
    assert_eq!(polls.load(Ordering::SeqCst), 4);
}

#[test]
fn a_server_without_health_tokenizer_or_context_is_used_with_notes() {
    let server = server(|request| match path(request) {
        "/health" | "/tokenize" => Some(json(404, "")),
        "/v1/models" => Some(json(200, r#"{"data":[{"id":"plain"}]}"#)),
        _ => None,
    });
    let info = ready(&server).unwrap();
    assert_eq!((info.max_model_len, info.context_detected), (DEFAULT_CONTEXT, false));
    assert!(!info.tokens.is_measured());
    assert_eq!(info.notes.len(), 2, "{:?}", info.notes);
}

#[test]
fn an_empty_model_list_and_an_unknown_model_are_errors() {
    let empty = server(|request| (path(request) == "/v1/models").then(|| json(200, r#"{"data":[]}"#)));
    assert!(ready(&empty).unwrap_err().contains("lists no model"));
    let some = server(|_| None);
    let error =
        block_on(wait_ready(&some.url(), Some("three"), Api::Completions, &Mix::mixed())).unwrap_err();
    assert!(error.contains("three") && error.contains("one, two"), "{error}");
    assert_eq!(
        block_on(wait_ready(&some.url(), Some("two"), Api::Completions, &Mix::mixed())).unwrap().model,
        "two"
    );
}

#[test]
fn a_first_completion_that_fails_is_an_error_with_the_servers_words() {
    for answer in [
        json(500, r#"{"error":{"message":"EngineCore died","code":500}}"#),
        json(200, r#"{"error":{"message":"EngineCore died","code":500}}"#),
    ] {
        let server = server(move |request| (path(request) == "/v1/completions").then(|| answer.clone()));
        let error = ready(&server).unwrap_err();
        assert!(error.contains("EngineCore died"), "{error}");
    }
}

#[test]
fn a_server_without_usage_is_noted() {
    let server = server(|request| {
        (path(request) == "/v1/completions").then(|| {
            vec![stream_head(), piece("a"), Step::Send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n".to_vec())]
        })
    });
    let info = ready(&server).unwrap();
    assert!(!info.has_usage && info.notes[0].contains("no usage"), "{:?}", info.notes);
}

#[test]
fn only_the_second_warm_up_request_is_sampled() {
    let server = server(|_| None);
    let info = ready(&server).unwrap();
    server.counts.lock().unwrap().requests.clear();
    assert_eq!(block_on(warm_up(&info.target(), Api::Completions, 3)).unwrap().0, 3);
    let counts = server.counts.lock().unwrap();
    let temperatures: Vec<f64> =
        counts.requests.iter().map(|r| r.body["temperature"].as_f64().unwrap()).collect();
    assert_eq!(temperatures, [0.0, 1.0, 0.0]);
}

#[test]
fn a_failed_warm_up_says_which_request_and_why() {
    let server = server(|request| {
        (request.body["temperature"] == 1.0).then(|| json(500, r#"{"error":{"message":"no compiler"}}"#))
    });
    let info = ready(&server).unwrap();
    let error = block_on(warm_up(&info.target(), Api::Completions, 3)).unwrap_err();
    assert!(error.contains("request 2 of 3") && error.contains("no compiler"), "{error}");
}

#[test]
fn a_server_that_only_chats_is_asked_to_chat() {
    let server = server(|request| match path(request) {
        "/v1/chat/completions" => Some(good(1)),
        "/v1/completions" => Some(json(404, r#"{"detail":"Not Found"}"#)),
        _ => None,
    });
    assert!(ready(&server).unwrap_err().contains("Not Found"));
    let info = block_on(wait_ready(&server.url(), None, Api::Chat, &Mix::mixed())).unwrap();
    assert!(info.has_usage);
    assert_eq!(block_on(warm_up(&info.target(), Api::Chat, 2)).unwrap().0, 2);
    let counts = server.counts.lock().unwrap();
    let last = counts.requests.last().unwrap();
    assert_eq!((path(last), &last.body["messages"][0]["role"]), ("/v1/chat/completions", &"user".into()));
}
