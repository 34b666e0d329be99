//! What a client sees of a healthy server.

use crate::support::{Options, Sim, chunk, fixture, until};
use serde_json::Value;
use std::collections::BTreeSet;

const PROMPT: &str = "The quick brown fox jumps over the lazy dog";

/// Keys and types of a JSON value, with every array and object opened.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let fields: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}:{}", shape(value))).collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(list) => format!("[{}]", list.first().map(shape).unwrap_or_default()),
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
    }
}

/// What varies from run to run.
const VARYING: [&str; 6] =
    ["\"id\":\"", "\"created\":", "\"text\":\"", "\"content\":\"", "_tokens\":", "modelperm-"];

/// The text with what varies blanked, so that order, blanks and everything else count.
fn skeleton(event: &str) -> String {
    let mut out = String::new();
    let mut rest = event;
    while let Some((at, key)) = VARYING.iter().filter_map(|key| rest.find(key).map(|at| (at, *key))).min() {
        let after = at + key.len();
        out.push_str(&rest[..after]);
        let ends: &[char] = if key.ends_with(':') { &[',', '}'] } else { &['"'] };
        rest = &rest[after + rest[after..].find(ends).unwrap()..];
        out.push('*');
    }
    out + rest
}

fn recorded_events(name: &str) -> Vec<String> {
    let recording = fixture(name);
    let (_, body) = recording.split_once("\r\n\r\n").unwrap();
    let mut reader = body.as_bytes();
    std::iter::from_fn(|| chunk(&mut reader)).collect()
}

/// Which kinds of events there are, in the order of their first appearance.
fn kinds(events: &[String]) -> Vec<String> {
    let mut seen = Vec::new();
    for event in events {
        let skeleton = skeleton(event);
        if !seen.contains(&skeleton) {
            seen.push(skeleton);
        }
    }
    seen
}

#[test]
fn a_completion_stream_has_the_layout_of_the_real_server() {
    let sim = Sim::with("merge=0.3");
    let body = format!(
        r#"{{"model":"tiny","prompt":"{PROMPT}","max_tokens":8,"temperature":0,"ignore_eos":true,"stream":true,"stream_options":{{"include_usage":true}}}}"#
    );
    let events = sim.stream("/v1/completions", &body).rest();
    assert_eq!(kinds(&events), kinds(&recorded_events("completion-stream.http")));
    assert!(events.iter().all(|event| event.starts_with("data: ") && event.ends_with("\n\n")));
    let body = body.replace("true}}", r#"true,"continuous_usage_stats":true}}"#);
    let events = sim.stream("/v1/completions", &body).rest();
    assert_eq!(kinds(&events), kinds(&recorded_events("completion-stream-continuous.http")));
}

#[test]
fn a_chat_stream_has_the_layout_of_the_real_server() {
    let sim = Sim::with("");
    let body = r#"{"messages":[{"role":"user","content":"Hello there"}],"max_tokens":6,"temperature":0,"ignore_eos":true,"stream":true,"stream_options":{"include_usage":true}}"#;
    let events = sim.stream("/v1/chat/completions", body).rest();
    assert_eq!(kinds(&events), kinds(&recorded_events("chat-stream.http")));
}

#[test]
fn whole_answers_have_the_keys_of_the_real_server() {
    let sim = Sim::with("");
    let recorded = |name: &str| shape(&serde_json::from_str(&fixture(name)).unwrap());
    assert_eq!(shape(&sim.complete(5).json()), recorded("completion.json"));
    let chat = r#"{"messages":[{"role":"user","content":"Hello"}],"max_tokens":5,"temperature":0,"ignore_eos":true}"#;
    assert_eq!(shape(&sim.post("/v1/chat/completions", chat).json()), recorded("chat.json"));
    assert_eq!(shape(&sim.post("/tokenize", r#"{"prompt":"abc"}"#).json()), recorded("tokenize.json"));
    let models = sim.get("/v1/models").unwrap();
    assert_eq!(shape(&models.json()), recorded("models.json"));
    assert_eq!(skeleton(&models.body), skeleton(fixture("models.json").trim_end()));
    assert_eq!(models.json()["data"][0]["max_model_len"], 1024);
    assert_eq!(sim.get("/version").unwrap().body, fixture("version.json").trim_end());
    assert!(models.head.contains("server: uvicorn\r\n"), "{}", models.head);
}

#[test]
fn errors_are_word_for_word_those_of_the_real_server() {
    let sim = Sim::with("");
    let long = format!(r#"{{"prompt":[{}],"max_tokens":4}}"#, vec!["5"; 2000].join(","));
    for (path, body, status, recording) in [
        ("/v1/completions", r#"{"model":"nope","prompt":"a"}"#, 404, "error-unknown-model.json"),
        ("/v1/completions", long.as_str(), 400, "error-too-long.json"),
        ("/v1/completions", r#"{"prompt":"a","max_tokens":5000}"#, 400, "error-max-tokens.json"),
        ("/v1/completions", r#"{"prompt":"a","max_tokens":-3}"#, 400, "error-negative.json"),
        ("/start_profile", "", 404, "error-not-found.json"),
    ] {
        let reply = sim.post(path, body);
        assert_eq!((reply.status, reply.body.as_str()), (status, fixture(recording).trim_end()));
    }
    let reply = sim.get("/v1/completions").unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (405, fixture("error-method.json").trim_end()));
}

/// Names, label names and bucket borders, but no values.
fn series(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter(|line| line.contains("vllm:"))
        .map(|line| match line.strip_prefix("vllm:cache_config_info{") {
            // Its labels are the configuration of the machine that was recorded.
            Some(_) => "vllm:cache_config_info".to_owned(),
            None if line.starts_with('#') => line.to_owned(),
            None => line.rsplit_once(' ').unwrap().0.to_owned(),
        })
        .collect()
}

#[test]
fn the_metrics_page_has_exactly_the_series_of_the_real_server() {
    let sim = Sim::with("");
    let page = sim.get("/metrics").unwrap();
    assert!(page.head.contains("content-type: text/plain; version=1.0.0; charset=utf-8"), "{}", page.head);
    let (ours, theirs) = (series(&page.body), series(&fixture("metrics.txt")));
    let missing: Vec<_> = theirs.difference(&ours).collect();
    let invented: Vec<_> = ours.difference(&theirs).collect();
    assert!(missing.is_empty() && invented.is_empty(), "missing {missing:#?}\ninvented {invented:#?}");
}

#[test]
fn usage_and_counters_agree() {
    let sim = Sim::with("");
    let (prompt, generated) = (sim.metric("prompt_tokens_total"), sim.metric("generation_tokens_total"));
    let usage = sim.complete(7).json()["usage"].clone();
    assert_eq!(usage["completion_tokens"], 7);
    assert_eq!(usage["total_tokens"].as_u64(), Some(usage["prompt_tokens"].as_u64().unwrap() + 7));
    assert_eq!(sim.metric("generation_tokens_total") - generated, 7.0);
    assert_eq!(Some(sim.metric("prompt_tokens_total") - prompt), usage["prompt_tokens"].as_f64());
    let default = sim.post("/v1/completions", r#"{"prompt":"a","temperature":0,"ignore_eos":true}"#);
    assert_eq!(default.json()["usage"]["completion_tokens"], 16);
    assert_eq!(sim.metric("e2e_request_latency_seconds_count"), 2.0);
    assert_eq!(sim.metric("request_generation_tokens_sum"), 23.0);
}

#[test]
fn metrics_move_step_by_step_under_load() {
    let sim = Sim::with("");
    let _stream = sim.long_stream();
    let before = sim.metric("iteration_tokens_total_count");
    until("further iterations", || (sim.metric("iteration_tokens_total_count") > before + 5.0).then_some(()));
    assert_eq!(sim.metric("num_requests_running"), 1.0);
    assert!(sim.metric("kv_cache_usage_perc") > 0.0);
}

#[test]
fn a_client_that_goes_away_is_forgotten() {
    let sim = Sim::with("step=60ms");
    drop(sim.long_stream());
    until("nothing runs any more", || {
        (sim.metric("num_requests_running") == 0.0).then_some(()).or_else(|| {
            // The gauges are only as fresh as the last step, as in vLLM.
            sim.complete(1);
            None
        })
    });
    assert!(sim.get("/metrics").unwrap().body.contains("finished_reason=\"abort\",model_name=\"tiny\"} 1.0"));
}

#[test]
fn the_same_seed_says_the_same_words() {
    let say = |knobs: &str| Sim::with(knobs).complete(12).json()["choices"][0]["text"].clone();
    let first = say("seed=7");
    assert_eq!(first, say("seed=7"));
    assert_ne!(first, say("seed=8"));
}

#[test]
fn the_first_sampled_request_pays_for_the_compiler() {
    let sim = Sim::with("sampled_compile=300ms");
    let ask = |temperature: &str| {
        let before = sim.metric("time_to_first_token_seconds_sum");
        sim.post(
            "/v1/completions",
            &format!(r#"{{"prompt":"a","max_tokens":1,"temperature":{temperature}}}"#),
        );
        sim.metric("time_to_first_token_seconds_sum") - before
    };
    let (greedy, first, second) = (ask("0"), ask("0.8"), ask("0.8"));
    assert!(first >= 0.3, "{first}");
    assert!(greedy < first && second < first, "{greedy} {first} {second}");
}

#[test]
fn a_setting_that_does_not_exist_ends_with_a_hint() {
    let mut sim = Sim::start(&Options { knobs: "lood=1s", ..Options::default() });
    assert_eq!(sim.code(), 2);
    assert!(
        sim.log().contains("api_server.py: error: VARCAS_SIM: no setting `lood`: did you mean `load`?"),
        "{}",
        sim.log()
    );
}

#[test]
fn the_log_says_what_the_real_one_says_on_the_way_up() {
    let sim = Sim::ready(&Options { env: &[("VLLM_LOG_STATS_INTERVAL", "0.1")], ..Options::default() });
    sim.complete(3);
    let log = until("a statistics line", || {
        Some(sim.log()).filter(|log| log.contains("Engine 000: Avg prompt throughput: "))
    });
    let pid = sim.pid;
    for line in [
        format!("(APIServer pid={pid}) INFO:     Application startup complete.\n"),
        format!("(APIServer pid={pid}) INFO:     Started server process [{pid}]\n"),
        format!("[api_server.py:946] Starting vLLM API server 0 on http://127.0.0.1:{}\n", sim.port),
        "non-default args: {'model': '/srv/vllm/tiny', 'served_model_name': ['tiny']".to_owned(),
        format!("(EngineCore_DP0 pid={}) INFO ", sim.engine()),
        "\"POST /v1/completions HTTP/1.1\" 200 OK\n".to_owned(),
    ] {
        assert!(log.contains(&line), "{line:?} is not in:\n{log}");
    }
}
