//! From a request to a response: the endpoints of vLLM that varcas-guard and its users touch.

use super::body::Answer;
use super::client::Client;
use super::fault::Lie;
use super::generate::token_numbers;
use super::harm;
use super::request::{self, ApiError};
use crate::time::wall_now;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, SERVER, VARY};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A response on its way out.
pub(super) type Reply = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// What the real server lists when it starts.
pub(super) const ROUTES: [(&str, &[&str]); 5] = [
    ("/openapi.json", &["GET", "HEAD"]),
    ("/docs", &["GET", "HEAD"]),
    ("/docs/oauth2-redirect", &["GET", "HEAD"]),
    ("/redoc", &["GET", "HEAD"]),
    ("/metrics", &["GET"]),
];

/// Answers one request and writes the access log.
pub(super) async fn answer(client: Arc<Client>, peer: SocketAddr, request: Request<Incoming>) -> Reply {
    let (method, target) = (request.method().clone(), request.uri().clone());
    let path = target.path().to_owned();
    let mut reply = dispatch(&client, request).await;
    let headers = reply.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("uvicorn"));
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    let status = reply.status();
    if client.args.access_log {
        let target = target.path_and_query().map_or(path.as_str(), |target| target.as_str());
        client.log.uvicorn(&format!("{peer} - \"{method} {target} HTTP/1.1\" {status}"));
    }
    // The real server leaves its own checks out of these counters.
    if !["/health", "/ping", "/load", "/version", "/metrics"].contains(&path.as_str()) {
        let handler =
            if status == StatusCode::NOT_FOUND && allowed(&path).is_none() { "none" } else { &path };
        client.metrics(|metrics| metrics.http(handler, method.as_str(), status.as_u16()));
    }
    reply
}

fn allowed(path: &str) -> Option<&'static [Method]> {
    match path {
        "/health" | "/version" | "/v1/models" | "/load" | "/metrics" => Some(&[Method::GET]),
        "/ping" => Some(&[Method::GET, Method::POST]),
        "/v1/completions" | "/v1/chat/completions" | "/tokenize" => Some(&[Method::POST]),
        _ => None,
    }
}

async fn dispatch(client: &Arc<Client>, request: Request<Incoming>) -> Reply {
    let path = request.uri().path().to_owned();
    let Some(methods) = allowed(&path) else {
        return text(StatusCode::NOT_FOUND, JSON, r#"{"detail":"Not Found"}"#);
    };
    if !methods.contains(request.method()) {
        let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, JSON, r#"{"detail":"Method Not Allowed"}"#);
        let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
        if let Ok(value) = HeaderValue::from_str(&names.join(", ")) {
            reply.headers_mut().insert(ALLOW, value);
        }
        return reply;
    }
    match path.as_str() {
        "/health" | "/metrics" if let Some(reply) = lied(client, &path).await => reply,
        "/health" | "/ping" => {
            let status = if client.is_dead() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            let mut reply = text(status, JSON, "");
            reply.headers_mut().remove(CONTENT_TYPE);
            reply
        }
        "/version" => text(StatusCode::OK, JSON, format!("{{\"version\":{}}}", json!(client.knobs.version))),
        // Always 0 without --enable-server-load-tracking, also under load.
        "/load" => text(StatusCode::OK, JSON, r#"{"server_load":0}"#),
        "/metrics" => {
            let page = client.metrics(|metrics| metrics.text());
            text(StatusCode::OK, "text/plain; version=1.0.0; charset=utf-8", page)
        }
        "/v1/models" => text(StatusCode::OK, JSON, models(client)),
        _ => {
            let Ok(body) = request.into_body().collect().await else {
                return text(
                    StatusCode::BAD_REQUEST,
                    JSON,
                    r#"{"detail":"There was an error parsing the body"}"#,
                );
            };
            generate(client, &path, &body.to_bytes()).await
        }
    }
}

/// What a lying endpoint says; none when it says the truth.
async fn lied(client: &Client, path: &str) -> Option<Reply> {
    static FROZEN: Mutex<Option<String>> = Mutex::new(None);
    let lies = harm::lies();
    let page = || client.metrics(|metrics| metrics.text());
    match if path == "/health" { lies.health } else { lies.metrics } {
        Lie::Truth => None,
        Lie::Status(status) => {
            Some(text(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), JSON, ""))
        }
        Lie::Slow => {
            tokio::time::sleep(Duration::from_secs(2)).await;
            None
        }
        Lie::Silent => std::future::pending().await,
        Lie::Garbage => {
            let noise: Vec<u8> = (0..65536u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            Some(text(StatusCode::OK, "text/plain", noise))
        }
        Lie::Huge => {
            Some(text(StatusCode::OK, "text/plain", page() + &"# nothing of interest\n".repeat(600_000)))
        }
        Lie::Frozen => {
            let mut frozen = FROZEN.lock().unwrap_or_else(PoisonError::into_inner);
            Some(text(StatusCode::OK, "text/plain", frozen.get_or_insert_with(page).clone()))
        }
        Lie::Reset => {
            client.metrics(|metrics| metrics.reset());
            harm::lie(|lies| lies.metrics = Lie::Truth);
            None
        }
    }
}

async fn generate(client: &Arc<Client>, path: &str, body: &[u8]) -> Reply {
    let (served, context) = (&client.args.served_name, client.args.max_model_len);
    if path == "/tokenize" {
        return match request::tokenize(body, served) {
            Ok(count) => text(
                StatusCode::OK,
                JSON,
                format!(
                    "{{\"count\":{count},\"max_model_len\":{context},\"tokens\":{},\"token_strs\":null}}",
                    json!(token_numbers(count, client.knobs.seed))
                ),
            ),
            Err(error) => refuse(client, &error),
        };
    }
    let wanted = match request::parse(body, path == "/v1/chat/completions", served, context) {
        Ok(wanted) => wanted,
        Err(error) => return refuse(client, &error),
    };
    let stream = wanted.stream;
    let answer = Answer::new(client.submit(&wanted), wanted);
    if !stream {
        return text(StatusCode::OK, JSON, answer.whole().await);
    }
    let events = futures_util::stream::unfold(answer, |mut answer| async move {
        let event = answer.event().await?;
        Some((event.map(Frame::data), answer))
    });
    reply(StatusCode::OK, "text/event-stream; charset=utf-8", StreamBody::new(events).boxed_unsync())
}

fn refuse(client: &Client, error: &ApiError) -> Reply {
    if error.param == Some("input_tokens") {
        super::lines::request_refused(&client.log, &error.message);
    }
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
    text(status, JSON, error.body())
}

fn models(client: &Client) -> String {
    let now = wall_now().as_second();
    let (name, root) = (json!(client.args.served_name), json!(client.args.model));
    format!(
        "{{\"object\":\"list\",\"data\":[{{\"id\":{name},\"object\":\"model\",\"created\":{now},\"owned_by\":\"vllm\",\
         \"root\":{root},\"parent\":null,\"max_model_len\":{},\"permission\":[{{\"id\":\"modelperm-{:016x}\",\
         \"object\":\"model_permission\",\"created\":{now},\"allow_create_engine\":false,\"allow_sampling\":true,\
         \"allow_logprobs\":true,\"allow_search_indices\":false,\"allow_view\":true,\"allow_fine_tuning\":false,\
         \"organization\":\"*\",\"group\":null,\"is_blocking\":false}}]}}]}}",
        client.args.max_model_len,
        rand::random::<u64>()
    )
}

const JSON: &str = "application/json";

fn text(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    reply(status, kind, Full::new(body.into()).map_err(|never| match never {}).boxed_unsync())
}

fn reply(status: StatusCode, kind: &'static str, body: UnsyncBoxBody<Bytes, std::io::Error>) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}
