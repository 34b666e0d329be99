//! The driver against a server on loopback that answers well and badly.

use super::support::{
    Bench, Mock, Step, block_on, chunk, good, json, lines, piece, piece_json, stream_head, tail,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use varcas_guard::event::EventKind;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::driver::{Api, Load, run, run_load};
use varcas_guard::workload::load::mix::Mix;
use varcas_guard::workload::load::schedule::Schedule;
use varcas_guard::workload::load::tally::Slo;

#[test]
fn a_good_server_gives_a_complete_result_with_its_own_token_counts() {
    let server = Mock::start(|_| good(5));
    let bench = Bench::new(&server.url(), 200.0, Duration::from_millis(500));
    let summary = block_on(bench.run()).unwrap();
    let sent = summary.progress.sent;
    assert!(sent > 30, "{sent}");
    assert!(summary.is_complete);
    assert_eq!((summary.progress.completed, summary.progress.failed, summary.cancelled), (sent, 0, 0));
    assert_eq!((summary.progress.prompt_tokens, summary.progress.output_tokens), (11 * sent, 5 * sent));
    assert_eq!(summary.progress.chunks, 5 * sent);
    assert_eq!(summary.ttft_ms.n, sent);
    assert_eq!(lines(&bench.files().requests).len() as u64, sent);

    let result = bench.result();
    for key in
        ["completed", "failed", "total_input_tokens", "request_throughput", "mean_ttft_ms", "p99_itl_ms"]
    {
        assert!(result[key].is_number(), "vLLM's {key}: {}", result[key]);
    }
    let metrics = result["metrics"].as_object().unwrap();
    assert_eq!(metrics.len(), 11);
    assert!(metrics.values().all(serde_json::Value::is_number), "{metrics:?}");
    assert_eq!(result["is_complete"], true);
    assert_eq!(result["by_workload"].as_object().unwrap().len(), 3);

    let log = std::fs::read_to_string(bench.files().benchmark_log).unwrap();
    // On a busy machine the client says so in further lines.
    let lines = log.lines().filter(|l| !l.starts_with("Warning: "));
    let heads: Vec<&str> = lines.map(|l| l.split(':').next().unwrap()).collect();
    assert_eq!(
        heads,
        [
            "Auto-detected model max context",
            "Starting load test",
            "Model max context",
            "Duration",
            "Mode",
            "Temperature",
            "Target",
            "",
            "Completed",
            "Success rate",
            "Throughput",
            "TTFT",
            "TPOT",
            "Latency",
            "",
            "Results saved to benchmark.json",
        ]
    );
    let events = bench.events.lock().unwrap();
    assert!(matches!(events[0], EventKind::LoadStarted { planned, seed: 42 } if planned == sent));
    assert!(events.iter().any(|e| matches!(e, EventKind::LoadProgressed(p) if p.sent == sent)));
}

#[test]
fn requests_carry_the_body_of_the_harness_and_ask_for_usage() {
    let server = Mock::start(|_| good(1));
    let mut bench = Bench::new(&server.url(), 100.0, Duration::from_millis(200));
    bench.target.api_key = Some("secret".to_owned());
    block_on(bench.run()).unwrap();
    let counts = server.counts.lock().unwrap();
    let request = &counts.requests[0];
    assert_eq!(request.line, "POST /v1/completions HTTP/1.1");
    assert!(request.head.contains("authorization: bearer secret"), "{}", request.head);
    let body = &request.body;
    assert_eq!(body["model"], "mock");
    assert_eq!(body["temperature"], 0.0);
    assert_eq!(body["seed"], 42);
    assert_eq!(body["stream"], true);
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert!(body["max_tokens"].as_u64().unwrap() > 0);
    assert_eq!(body.as_object().unwrap().len(), 7, "{body}");
    assert!(!format!("{:?}", bench.target).contains("secret"));
}

#[test]
fn every_way_to_fail_has_its_class_and_none_is_retried() {
    let bad: Vec<(&str, Vec<Step>)> = vec![
        ("ok", good(2)),
        ("http-4xx", json(400, r#"{"error":{"message":"maximum context length is 9 tokens","code":400}}"#)),
        ("http-5xx", json(500, "")),
        ("http-other", json(302, "")),
        ("stream-error", json(200, r#"{"error":{"message":"EngineCore encountered an issue","code":500}}"#)),
        (
            "stream-error",
            vec![
                stream_head(),
                piece(" a"),
                Step::Send(chunk(b"data: {\"error\":{\"message\":\"EngineCore died\",\"code\":500}}\n\n")),
                tail(1, 1),
            ],
        ),
        ("truncated", vec![stream_head(), piece(" a"), Step::Send(b"0\r\n\r\n".to_vec())]),
        ("empty-output", vec![stream_head(), tail(1, 0)]),
        ("reset", vec![stream_head(), piece(" a"), Step::Close]),
        ("reset", vec![Step::Close]),
        ("reset", vec![stream_head(), piece(" a"), Step::Reset]),
        ("bad-response", vec![Step::Send(b"220 mail.example ESMTP\r\n".to_vec()), Step::Hang]),
        (
            "bad-response",
            vec![stream_head(), Step::Send(chunk(b"data: {\"choices\":[{\"te\n\n")), tail(1, 1)],
        ),
        ("bad-response", json(200, r#"{"choices":[{"text":"not streamed"}]}"#)),
        ("total-timeout", vec![stream_head(), piece(" a"), Step::Hang]),
    ];
    let kinds = bad.len();
    let expected: Vec<&str> = bad.iter().map(|(class, _)| *class).collect();
    let server = Mock::start(move |request| bad[request.index % kinds].1.clone());
    let mut bench = Bench::new(&server.url(), 100.0, Duration::from_secs(1));
    bench.plan.request_timeout = Duration::from_secs(2);
    let summary = block_on(bench.run()).unwrap();
    let sent = summary.progress.sent as usize;
    assert!(sent > 3 * kinds, "{sent}");
    let mut want: BTreeMap<String, usize> = BTreeMap::new();
    for index in 0..sent {
        *want.entry(expected[index % kinds].to_owned()).or_default() += 1;
    }
    assert_eq!(bench.classes(), want);
    assert_eq!(server.counts.lock().unwrap().requests.len(), sent, "no request is sent twice");
    want.remove("ok");
    let errors: BTreeMap<String, usize> =
        summary.errors.iter().map(|(k, v)| (k.clone(), *v as usize)).collect();
    assert_eq!(errors, want);
    assert!(summary.is_complete, "failed requests do not cut the load short");
    let examples = &bench.result()["error_examples"];
    assert!(examples["http-4xx"].as_str().unwrap().contains("maximum context length"), "{examples}");
}

#[test]
fn a_server_that_is_away_is_a_refused_connection_for_every_request() {
    let mut server = Mock::start(|_| good(1));
    server.kill();
    let bench = Bench::new(&server.url(), 100.0, Duration::from_millis(300));
    let summary = block_on(bench.run()).unwrap();
    assert_eq!(summary.errors.keys().collect::<Vec<_>>(), ["connect-refused"]);
    assert_eq!(summary.progress.failed, summary.progress.sent);
    assert!(bench.result()["mean_ttft_ms"].is_null(), "unknown is null, not 0");
}

#[test]
fn a_missing_end_mark_is_forgiven_after_a_finish_reason() {
    let server = Mock::start(|_| {
        let last = br#"data: {"choices":[{"text":"b","finish_reason":"stop"}],"usage":{"prompt_tokens":4,"completion_tokens":2}}"#;
        let mut end = chunk(&[&last[..], b"\n\n"].concat());
        end.extend_from_slice(b"0\r\n\r\n");
        vec![stream_head(), piece("a"), Step::Send(end)]
    });
    let bench = Bench::new(&server.url(), 100.0, Duration::from_millis(200));
    let summary = block_on(bench.run()).unwrap();
    assert_eq!(summary.progress.completed, summary.progress.sent);
    assert_eq!(summary.progress.output_tokens, 2 * summary.progress.sent);
}

#[test]
fn pieces_in_one_read_share_a_moment_and_are_counted_as_such() {
    let server = Mock::start(|_| {
        let event = format!("data: {}\n\n", piece_json(" é"));
        let mut bytes = chunk(event.repeat(3).as_bytes());
        // The fourth is cut in the middle of a character.
        let (head, rest) = event.as_bytes().split_at(event.find('é').unwrap() + 1);
        bytes.extend(chunk(head));
        vec![
            stream_head(),
            Step::Send(bytes),
            // Long, so that even a starved client reads before the rest comes.
            Step::Pause(Duration::from_millis(500)),
            Step::Send(chunk(rest)),
            tail(1, 4),
        ]
    });
    let bench = Bench::new(&server.url(), 50.0, Duration::from_millis(200));
    let summary = block_on(bench.run()).unwrap();
    assert_eq!(summary.progress.completed, summary.progress.sent);
    for line in lines(&bench.files().requests) {
        assert_eq!((line["pieces"].as_u64(), line["coalesced"].as_u64()), (Some(4), Some(2)), "{line}");
        assert!(line["last_ms"].as_f64().unwrap() > line["first_ms"].as_f64().unwrap(), "{line}");
    }
}

#[test]
fn connections_are_reused_and_one_that_the_server_closed_is_not() {
    let keeping = Mock::start(|_| good(1));
    let bench = Bench::new(&keeping.url(), 50.0, Duration::from_millis(600));
    let summary = block_on(bench.run()).unwrap();
    let connections = keeping.counts.lock().unwrap().connections as u64;
    assert!(connections < summary.progress.sent / 2, "{connections} for {}", summary.progress.sent);

    let closing = Mock::start(|_| [good(1), vec![Step::Close]].concat());
    let bench = Bench::new(&closing.url(), 50.0, Duration::from_millis(600));
    let summary = block_on(bench.run()).unwrap();
    assert_eq!(summary.progress.completed, summary.progress.sent, "{:?}", summary.errors);
}

#[test]
fn a_stop_cancels_what_is_open_and_still_writes_a_result_marked_incomplete() {
    let server = Mock::start(|request| match request.index {
        0..10 => good(1),
        _ => vec![stream_head(), piece(" a"), Step::Hang],
    });
    let bench = Bench::new(&server.url(), 100.0, Duration::from_secs(3600));
    let summary = block_on(async {
        let stopper = async {
            wait_async(|| server.counts.lock().unwrap().requests.len() > 30).await;
            bench.stop.send(true).unwrap();
        };
        tokio::join!(bench.run(), stopper).0.unwrap()
    });
    assert!(!summary.is_complete);
    assert!(summary.incomplete_reason.is_some());
    assert_eq!(summary.progress.completed, 10);
    assert_eq!(summary.cancelled + 10, summary.progress.sent);
    assert_eq!(summary.progress.in_flight, 0);
    let result = bench.result();
    assert_eq!((&result["is_complete"], &result["cancelled"]), (&false.into(), &summary.cancelled.into()));
    assert_eq!(lines(&bench.files().requests).len() as u64, summary.progress.sent);
    assert!(std::fs::read_to_string(bench.files().benchmark_log).unwrap().contains("INCOMPLETE: "));
    server.wait("every connection is closed", |c| c.closed == c.connections);
}

#[test]
fn what_is_open_when_the_drain_is_over_is_cancelled() {
    let server = Mock::start(|_| vec![stream_head(), piece(" a"), Step::Hang]);
    let mut bench = Bench::new(&server.url(), 50.0, Duration::from_millis(300));
    bench.plan.drain = Duration::from_millis(200);
    let summary = block_on(bench.run()).unwrap();
    assert!(summary.is_complete, "the whole schedule was sent");
    assert_eq!((summary.cancelled, summary.progress.failed), (summary.progress.sent, 0));
}

#[test]
fn finished_requests_are_on_disk_while_the_load_goes_on() {
    let server = Mock::start(|_| good(1));
    let bench = Bench::new(&server.url(), 100.0, Duration::from_secs(3600));
    let requests = bench.files().requests;
    block_on(async {
        let watcher = async {
            wait_async(|| std::fs::read_to_string(&requests).is_ok_and(|text| text.lines().count() > 20))
                .await;
            bench.stop.send(true).unwrap();
        };
        tokio::join!(bench.run(), watcher).0.unwrap()
    });
}

#[test]
fn a_dropped_load_closes_its_connections() {
    let server = Mock::start(|_| vec![stream_head(), piece(" a"), Step::Hang]);
    let bench = Bench::new(&server.url(), 100.0, Duration::from_secs(3600));
    block_on(async {
        tokio::select! {
            _ = bench.run() => panic!("it cannot end"),
            () = wait_async(|| server.counts.lock().unwrap().connections > 10) => {}
        }
    });
    server.wait("every connection is closed", |c| c.closed == c.connections);
}

#[test]
fn an_unwritable_folder_is_an_error_before_the_first_request() {
    let server = Mock::start(|_| good(1));
    let bench = Bench::new(&server.url(), 100.0, Duration::from_secs(1));
    std::fs::create_dir(bench.files().requests).unwrap();
    let error = block_on(bench.run()).unwrap_err();
    assert!(error.contains("requests.jsonl"), "{error}");
    assert_eq!(server.counts.lock().unwrap().requests.len(), 0);
}

#[test]
fn two_seeds_send_the_same_shape_with_other_words() {
    let server = Mock::start(|_| good(1));
    let bench = Bench::new(&server.url(), 50.0, Duration::from_millis(300));
    let run_with = |seed| {
        server.counts.lock().unwrap().requests.clear();
        block_on(run(&bench.target, &bench.plan, seed, &bench.files(), bench.stop.subscribe(), |_| {}))
            .unwrap();
        let counts = server.counts.lock().unwrap();
        let mut sent: Vec<(u64, String)> = counts
            .requests
            .iter()
            .map(|r| (r.body["max_tokens"].as_u64().unwrap(), r.body["prompt"].as_str().unwrap().to_owned()))
            .collect();
        sent.sort();
        sent
    };
    let (one, two) = (run_with(42), run_with(43));
    let shape = |sent: &[(u64, String)]| {
        sent.iter().map(|(n, p)| (*n, p.len())).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(shape(&one), shape(&two));
    assert!(one.iter().all(|(_, prompt)| two.iter().all(|(_, other)| other != prompt)));
}

async fn wait_async(mut enough: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if enough() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited a minute in vain");
}

fn fixed(streams: Option<u32>, rate: f64, duration: Duration) -> Load {
    let mix = Mix::from_toml(
        "name = \"fixed\"\n[[workload]]\nname = \"a\"\ninput = { dist = \"fixed\", tokens = 20 }\n\
         output = { dist = \"fixed\", tokens = 5 }\nprefix = { tokens = 30 }\n",
    )
    .unwrap();
    let arrivals = streams.map_or(Arrivals::Constant { rate }, |streams| Arrivals::Closed { streams });
    Load::new(Schedule::draw(mix, arrivals, duration, 4096, 1).unwrap(), 1, 1)
}

#[test]
fn a_closed_loop_keeps_its_streams_busy_and_ends_by_the_clock() {
    let server = Mock::start(|_| {
        [vec![stream_head(), Step::Pause(Duration::from_millis(20))], good(3)[1..].to_vec()].concat()
    });
    let bench = Bench::new(&server.url(), 1.0, Duration::from_secs(1));
    let load = fixed(Some(4), 0.0, Duration::from_secs(1));
    let summary =
        block_on(run_load(&bench.target, load, &bench.files(), bench.stop.subscribe(), |_| {})).unwrap();
    let result = bench.result();
    assert_eq!(result["max_concurrent_requests"], 4);
    assert_eq!(result["config"]["open_loop"], false);
    assert!(result["request_rate"].is_null());
    assert!(summary.is_complete && summary.progress.completed == summary.progress.sent);
    assert!(summary.progress.sent > 20, "{}", summary.progress.sent);
}

#[test]
fn the_wait_behind_a_concurrency_limit_is_counted() {
    // One request takes 50 ms, 40 a second are asked for, and one may be open: the queue grows.
    let server = Mock::start(|_| {
        [vec![stream_head(), Step::Pause(Duration::from_millis(50))], good(2)[1..].to_vec()].concat()
    });
    let bench = Bench::new(&server.url(), 1.0, Duration::from_secs(1));
    let mut load = fixed(None, 40.0, Duration::from_secs(1));
    load.max_concurrency = Some(1);
    load.slo = Slo { e2el: Some(Duration::from_millis(400)), ..Slo::default() };
    let summary =
        block_on(run_load(&bench.target, load, &bench.files(), bench.stop.subscribe(), |_| {})).unwrap();
    let result = bench.result();
    assert_eq!(result["max_concurrent_requests"], 1);
    assert_eq!(summary.progress.completed, 39);
    // The last of 39 waits for 38 others: 38 * 50 ms less the second in which they were sent.
    let from_intended = result["load"]["e2el_from_intended_ms"]["max"].as_f64().unwrap();
    assert!(from_intended > 850.0, "{from_intended}");
    assert!(summary.e2el_ms.p50 < from_intended / 2.0, "{}", summary.e2el_ms.p50);
    assert!(result["load"]["send_lag_ms"]["max"].as_f64().unwrap() > 800.0);
    let (good, all) = (result["request_goodput"].as_f64().unwrap(), summary.request_throughput);
    assert!(good > 0.0 && good < 0.8 * all, "{good} of {all}");
}

#[test]
fn the_chat_endpoint_gets_messages_and_its_first_role_only_piece_is_no_token() {
    let server = Mock::start(|_| {
        let event = |json: &str| Step::Send(chunk(format!("data: {json}\n\n").as_bytes()));
        vec![
            stream_head(),
            event(r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#),
            Step::Pause(Duration::from_millis(40)),
            event(r#"{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}"#),
            event(r#"{"choices":[{"index":0,"delta":{"content":"yes"},"finish_reason":"stop"}]}"#),
            tail(9, 2),
        ]
    });
    let bench = Bench::new(&server.url(), 1.0, Duration::from_secs(1));
    let load = Load { api: Api::Chat, ..fixed(None, 20.0, Duration::from_millis(500)) };
    let summary =
        block_on(run_load(&bench.target, load, &bench.files(), bench.stop.subscribe(), |_| {})).unwrap();
    assert_eq!(summary.progress.completed, 9);
    assert!(lines(&bench.files().requests).iter().all(|l| l["ttft_ms"].as_f64().unwrap() >= 39.0));
    let counts = server.counts.lock().unwrap();
    assert_eq!(counts.requests[0].line, "POST /v1/chat/completions HTTP/1.1");
    let messages = counts.requests[0].body["messages"].as_array().unwrap();
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user"]);
    let shared = &messages[0]["content"];
    assert!(
        counts.requests.iter().all(|r| r.body["messages"][0]["content"] == *shared),
        "one group, one prefix"
    );
}

#[test]
fn a_conversation_repeats_what_was_said_before() {
    let server = Mock::start(|_| good(1));
    let bench = Bench::new(&server.url(), 1.0, Duration::from_secs(1));
    let mix = Mix::from_toml(
        "name = \"talk\"\n[[workload]]\nname = \"a\"\ninput = { dist = \"fixed\", tokens = 20 }\n\
         output = { dist = \"fixed\", tokens = 5 }\nturns = { count = 3, think = 0.1 }\n",
    )
    .unwrap();
    let arrivals = Arrivals::Trace { times: vec![0.0] };
    let schedule = Schedule::draw(mix, arrivals, Duration::from_secs(1), 4096, 1).unwrap();
    let load = Load { api: Api::Chat, ..Load::new(schedule, 1, 1) };
    block_on(run_load(&bench.target, load, &bench.files(), bench.stop.subscribe(), |_| {})).unwrap();
    let counts = server.counts.lock().unwrap();
    let talks: Vec<_> =
        counts.requests.iter().map(|r| r.body["messages"].as_array().unwrap().clone()).collect();
    assert_eq!(talks.iter().map(Vec::len).collect::<Vec<_>>(), [1, 3, 5]);
    assert_eq!(talks[0][..], talks[1][..1]);
    assert_eq!(talks[1][..], talks[2][..3]);
    assert_eq!(talks[2][3]["role"], "assistant");
}

#[test]
fn the_kill_of_a_server_leaves_every_finished_request_on_disk_and_classes_the_open_ones() {
    let mut server = Mock::start(|request| match request.index {
        0..20 => good(2),
        _ => vec![stream_head(), piece(" a"), Step::Hang],
    });
    let bench = Bench::new(&server.url(), 100.0, Duration::from_secs(3600));
    let counts = Arc::clone(&server.counts);
    let stop = bench.stop.clone();
    let requests = bench.files().requests;
    let killer = std::thread::spawn(move || {
        let until = |what: &str, enough: &dyn Fn() -> bool| {
            let seen = (0..6000).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                enough()
            });
            assert!(seen, "{what}");
        };
        until("requests are open", &|| counts.lock().unwrap().requests.len() > 40);
        server.kill();
        until("refused ones are on disk", &|| {
            std::fs::read_to_string(&requests).is_ok_and(|t| t.contains("connect-refused"))
        });
        stop.send(true).unwrap();
    });
    let summary = block_on(bench.run()).unwrap();
    killer.join().unwrap();
    assert!(!summary.is_complete);
    let classes = bench.classes();
    assert_eq!(classes["ok"], 20, "{classes:?}");
    assert!(classes["reset"] > 10 && classes["connect-refused"] > 0, "{classes:?}");
    assert_eq!(classes.values().sum::<usize>() as u64, summary.progress.sent);
}

#[test]
fn a_load_whose_server_stays_away_ends_early_and_says_so() {
    let mut server = Mock::start(|_| good(1));
    server.kill();
    let bench = Bench::new(&server.url(), 20.0, Duration::from_secs(3600));
    let summary = block_on(bench.run()).unwrap();
    assert!(!summary.is_complete);
    assert!(summary.incomplete_reason.unwrap().contains("nobody listens"));
    assert_eq!(bench.result()["is_complete"], false);
}

#[test]
fn the_table_of_open_files_is_large_before_many_are_open() {
    // Else it doubles in mid-load, and each time no request is sent for 10 ms and more.
    let server = Mock::start(|_| good(1));
    let bench = Bench::new(&server.url(), 20.0, Duration::from_millis(300));
    block_on(bench.run()).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let size: u64 = size.trim().parse().unwrap();
    assert!(size >= soft.min(1 << 16), "{size} of {soft}");
}
