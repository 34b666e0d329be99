//! Loads of other shapes than single random prompts: datasets, conversations in a closed loop, limits by workload.

use super::support::{Bench, Mock, block_on, good, json, lines};
use std::time::Duration;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::dataset;
use varcas_guard::workload::load::driver::{Api, Load, run_load};
use varcas_guard::workload::load::mix::Mix;
use varcas_guard::workload::load::schedule::Schedule;

fn draw(mix: Mix, arrivals: Arrivals, duration: Duration) -> Load {
    Load::new(Schedule::draw(mix, arrivals, duration, 1024, 1).unwrap(), 1, 1)
}

fn mix(text: &str) -> Mix {
    Mix::from_toml(&format!("name = \"own\"\n[[workload]]\nname = \"a\"\n{text}")).unwrap()
}

#[test]
fn prompts_of_a_dataset_are_counted_by_the_server_and_their_answers_fitted() {
    // One word is one token here, so the estimate of four characters a token is far too low for "a a a ...".
    let server = Mock::start(|request| match request.line.split(' ').nth(1).unwrap() {
        "/tokenize" => {
            let words = request.body["prompt"].as_str().unwrap().split(' ').count();
            json(200, &format!(r#"{{"count":{words}}}"#))
        }
        _ => good(1),
    });
    let bench = Bench::new(&server.url(), 1.0, Duration::from_secs(1));
    let mut own = mix("output = { dist = \"fixed\", tokens = 300 }\n");
    let text = format!("{{\"prompt\":\"{}\"}}\n", vec!["a"; 900].join(" "));
    own.workloads[0].examples = dataset::parse(&text, 4.0).unwrap();
    let load = draw(own, Arrivals::Constant { rate: 20.0 }, Duration::from_millis(300));
    assert_eq!((load.schedule.requests[0].input, load.schedule.requests[0].output), (449, 300));
    block_on(run_load(&bench.target, load, &bench.files(), bench.stop.subscribe(), |_| {})).unwrap();
    let lines = lines(&bench.files().requests);
    assert_eq!(lines.len(), 5);
    for line in &lines {
        // 1024 tokens of context, 50 kept free.
        assert_eq!((&line["planned_input"], &line["planned_output"]), (&900.into(), &74.into()), "{line}");
    }
    let counts = server.counts.lock().unwrap();
    let counted = counts.requests.iter().filter(|r| r.line.contains("/tokenize")).count();
    assert_eq!(counted, 1, "the same prompt is counted once");
}

#[test]
fn in_a_closed_loop_a_turn_waits_for_the_answer_to_the_one_before() {
    let server = Mock::start(|_| good(2));
    let bench = Bench::new(&server.url(), 1.0, Duration::from_secs(1));
    let own = mix("input = { dist = \"fixed\", tokens = 10 }\noutput = { dist = \"fixed\", tokens = 5 }\n\
         turns = { count = 3, think = 0.02 }\n");
    let load = draw(own, Arrivals::Closed { streams: 3 }, Duration::from_secs(2));
    let load = Load { api: Api::Chat, ..load };
    block_on(run_load(&bench.target, load, &bench.files(), bench.stop.subscribe(), |_| {})).unwrap();
    let mut lines = lines(&bench.files().requests);
    lines.sort_by_key(|line| line["id"].as_u64());
    let ms = |line: &serde_json::Value, key: &str| line[key].as_f64().unwrap();
    let mut later_turns = 0;
    // Three ids in a row are one conversation.
    for pair in lines.windows(2).filter(|pair| {
        let (a, b) = (pair[0]["id"].as_u64().unwrap(), pair[1]["id"].as_u64().unwrap());
        b == a + 1 && b % 3 != 0
    }) {
        later_turns += 1;
        assert!(ms(&pair[1], "sent_ms") >= ms(&pair[0], "ended_ms") + 20.0, "{pair:?}");
    }
    assert!(later_turns > 5, "{later_turns}");
    let counts = server.counts.lock().unwrap();
    let said: Vec<usize> =
        counts.requests.iter().map(|r| r.body["messages"].as_array().unwrap().len()).collect();
    assert!(said.iter().all(|n| [1, 3, 5].contains(n)), "{said:?}");
    assert!(said.contains(&5));
}

#[test]
fn a_workload_may_have_limits_of_its_own_and_goodput_keeps_to_them() {
    let server = Mock::start(|_| good(2));
    let bench = Bench::new(&server.url(), 1.0, Duration::from_secs(1));
    let own = mix("output = { dist = \"fixed\", tokens = 5 }\nslo = { e2el = 0.000001 }\n\
         [[workload]]\nname = \"b\"\noutput = { dist = \"fixed\", tokens = 5 }\nslo = { e2el = 60000 }\n");
    let load = draw(own, Arrivals::Constant { rate: 100.0 }, Duration::from_millis(500));
    block_on(run_load(&bench.target, load, &bench.files(), bench.stop.subscribe(), |_| {})).unwrap();
    let result = bench.result();
    let of = |name: &str, key: &str| result["by_workload"][name][key].as_u64().unwrap();
    assert!(of("a", "completed") > 5 && of("b", "completed") > 5);
    assert_eq!((of("a", "good"), of("b", "good")), (0, of("b", "completed")));
    let (goodput, throughput) = (result["request_goodput"].as_f64(), result["request_throughput"].as_f64());
    let share = of("b", "completed") as f64 / (of("a", "completed") + of("b", "completed")) as f64;
    assert!((goodput.unwrap() / throughput.unwrap() - share).abs() < 1e-9, "{goodput:?} {throughput:?}");
}
