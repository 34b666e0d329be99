//! Sums that were reckoned by hand: a load of six requests, the series of a minute, gaps, resamples.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use std::time::Duration;
use varcas_guard::event::Latency;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::mix::{Example, Goal, Mix, Template};
use varcas_guard::workload::load::outcome::{ErrorClass, Fault, Record};
use varcas_guard::workload::load::prompt::{TokenModel, WORDS, answer, build, prefix};
use varcas_guard::workload::load::result::{self, Client, Context, log_head, log_tail, warnings};
use varcas_guard::workload::load::schedule::Schedule;
use varcas_guard::workload::load::spec::{Api, Load};
use varcas_guard::workload::load::stats::{Gaps, Second, Sorted};
use varcas_guard::workload::load::steady::{Window, bootstrap, bootstrap_rate, window};
use varcas_guard::workload::load::stream::Usage;
use varcas_guard::workload::load::tally::{Slo, Tally, Totals};

const MS: Duration = Duration::from_millis(1);

fn mix() -> Mix {
    let workload = |name: &str| {
        format!("[[workload]]\nname = \"{name}\"\noutput = {{ dist = \"fixed\", tokens = 5 }}\n")
    };
    Mix::from_toml(&format!("name = \"m\"\n{}{}", workload("a"), workload("b"))).unwrap()
}

fn load() -> Load {
    let schedule = Schedule::draw(mix(), Arrivals::Constant { rate: 2.0 }, 10_000 * MS, 4096, 1).unwrap();
    Load::new(schedule, 1, 1)
}

fn context() -> Context {
    let epoch = jiff::Timestamp::UNIX_EPOCH;
    Context {
        started: epoch,
        ended: epoch,
        zone: jiff::tz::TimeZone::UTC,
        base_url: "http://127.0.0.1:1".to_owned(),
        model: "m".to_owned(),
        context_detected: true,
        chars_per_token: (4.0, false),
        client: Client { cpu_pct: None, loop_lag_ms: Latency::default() },
        prefix_cache_hit_rate: None,
        unrecorded: None,
    }
}

/// Milliseconds: when it was due, sent, answered with pieces, over; tokens of the prompt and the answer.
fn record(
    (id, workload): (u32, u16),
    [due, sent, ended]: [u32; 3],
    pieces: &[u32],
    tokens: Option<(u64, u64)>,
) -> Record {
    let mut record = Record::new(id, workload, due * MS, 20 + id, 3 * id);
    record.sent = sent * MS;
    pieces.iter().for_each(|at| record.piece(*at * MS));
    record.ended = ended * MS;
    record.usage =
        tokens.map(|(prompt_tokens, completion_tokens)| Usage { prompt_tokens, completion_tokens });
    record
}

fn lost(mut record: Record, class: ErrorClass, detail: &str) -> Record {
    record.fault = Some(Fault::new(class, detail));
    record
}

/// Of six requests three succeed, two fail, one is given up.
fn six() -> Totals {
    let records = [
        record((0, 0), [1000, 1010, 1520], &[1110, 1510], Some((20, 5))),
        record((1, 1), [2000, 2000, 2310], &[2300], Some((30, 1))),
        record((2, 0), [3000, 3000, 3810], &[3200, 3800, 3800], None),
        lost(record((3, 1), [4000, 4000, 4500], &[], None), ErrorClass::Http5xx, "first"),
        lost(record((4, 1), [5000, 5000, 6010], &[], None), ErrorClass::Cancelled, "given up"),
        lost(record((5, 0), [5000, 5000, 5100], &[], None), ErrorClass::Http5xx, "second"),
    ];
    let mut tally = Tally::new(&load().schedule, Slo { ttft: Some(250 * MS), ..Slo::default() });
    for record in &records {
        tally.sent(record);
        if record.id == 3 {
            tally.ended(record);
        }
    }
    for record in records.iter().filter(|record| record.id != 3) {
        if let (Some(first), Some(last)) = (record.first, record.last) {
            tally.piece(record.workload, first, None);
            if record.pieces > 1 {
                tally.piece(record.workload, last, Some(first));
            }
        }
        tally.ended(record);
    }
    tally.finish(None)
}

fn close(seen: &Value, expected: f64) {
    let seen = seen.as_f64().unwrap_or(f64::NAN);
    assert!((seen - expected).abs() < 1e-3, "{seen} is not {expected}");
}

#[test]
fn six_requests_are_summed_up_as_by_hand() {
    let (load, totals) = (load(), six());
    let seen: Value = serde_json::from_str(&result::json(&load, &totals, &context()).unwrap()).unwrap();
    for (key, value) in [
        ("num_prompts", 6),
        ("completed", 3),
        ("failed", 2),
        ("cancelled", 1),
        ("total_input_tokens", 50),
        ("total_output_tokens", 6),
        ("max_output_tokens_per_s", 2),
        ("max_concurrent_requests", 5),
    ] {
        assert_eq!(seen[key], json!(value), "{key}");
    }
    // From the first send, 1.01 s, to the last end, 6.01 s.
    for (key, value) in [
        ("duration", 5.0),
        ("request_throughput", 0.6),
        ("request_goodput", 0.4),
        ("output_throughput", 1.2),
        ("total_token_throughput", 11.2),
        ("mean_ttft_ms", 200.0),
        ("median_ttft_ms", 200.0),
        ("p99_ttft_ms", 298.0),
        ("mean_tpot_ms", 100.0),
        ("mean_e2el_ms", 1600.0 / 3.0),
        ("mean_itl_ms", 500.0),
        ("std_itl_ms", 100.0),
        ("median_itl_ms", 500.0),
    ] {
        close(&seen[key], value);
    }
    assert_eq!(seen["metrics"]["total_requests"], 6);
    assert_eq!(seen["metrics"]["successful_requests"], 3);
    assert_eq!(seen["metrics"]["failed_requests"], 3);
    let (a, b) = (&seen["by_workload"]["a"], &seen["by_workload"]["b"]);
    for (workload, counts) in [(a, [3, 2, 2, 1, 0]), (b, [3, 1, 0, 1, 1])] {
        let names = ["count", "completed", "good", "failed", "cancelled"];
        assert_eq!(names.map(|name| workload[name].as_u64().unwrap()), counts);
    }
    close(&a["mean_planned_input"], (20.0 + 22.0 + 25.0) / 3.0);
    close(&a["mean_planned_output"], (0.0 + 6.0 + 15.0) / 3.0);
    // Means only over the answers whose tokens were counted.
    close(&a["mean_prompt_tokens"], 20.0);
    close(&b["mean_output_tokens"], 1.0);
    let sent = &seen["load"];
    assert_eq!(
        (&sent["planned"], &sent["pieces"], &sent["coalesced_pieces"]),
        (&json!(19), &json!(5), &json!(1))
    );
    assert_eq!(sent["without_usage"], 1);
    close(&sent["achieved_rate"], 6.0 / 5.0);
    close(&sent["send_lag_ms"]["max"], 10.0);
    close(&sent["ttft_from_intended_ms"]["max"], 300.0);
    close(&sent["ttft_from_intended_ms"]["mean"], 610.0 / 3.0);
    assert_eq!(seen["errors"], json!({"cancelled": 1, "http-5xx": 2}));
    assert_eq!(seen["error_examples"], json!({"cancelled": "given up", "http-5xx": "first"}));
    let seconds: Vec<Vec<u64>> = seen["timeseries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|second| {
            ["sent", "completed", "failed", "cancelled", "pieces", "output_tokens", "in_flight"]
                .map(|key| second[key].as_u64().unwrap())
                .to_vec()
        })
        .collect();
    let expected = [
        [0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 2, 5, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 2, 0, 0],
        [1, 0, 1, 0, 0, 0, 0],
        [2, 0, 1, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 0],
    ];
    assert_eq!(seconds, expected);
    let short = totals.summary();
    assert_eq!((short.progress.sent, short.progress.completed, short.progress.failed), (6, 3, 2));
    assert_eq!((short.progress.prompt_tokens, short.progress.output_tokens), (50, 6));
    assert_eq!((short.progress.in_flight, short.progress.chunks, short.cancelled), (0, 5, 1));
    assert_eq!((short.request_throughput, short.request_goodput), (0.6, Some(0.4)));
    let told = log_tail(&totals, &warnings(&load, &totals, &context()), "x");
    assert!(told.contains("Success rate: 50.0%\nThroughput: 0.60 req/s, 1.2 tok/s\n"), "{told}");
    assert!(told.contains("Warning: 1 answers came without usage"), "{told}");
}

#[test]
fn a_part_of_the_load_counts_what_was_sent_in_it_and_what_ended_in_it() {
    let part = six().part(&Window { from_s: 1, to_s: 5, growing: false });
    assert_eq!((part.completed, part.request_throughput, part.output_throughput), (3, 0.75, 1.5));
    assert_eq!((part.ttft.len(), part.tpot.len(), part.e2el.len()), (3, 1, 3), "one token has no time each");
    let part = six().part(&Window { from_s: 3, to_s: 3, growing: false });
    assert_eq!((part.completed, part.request_throughput), (0, 0.0));
}

#[test]
fn a_load_that_sent_nothing_has_no_rates() {
    let (load, totals) = (load(), Tally::new(&load().schedule, Slo::default()).finish(None));
    assert_eq!(totals.per_second(3), 0.0);
    let seen: Value = serde_json::from_str(&result::json(&load, &totals, &context()).unwrap()).unwrap();
    for key in ["median_ttft_ms", "mean_itl_ms", "request_goodput", "steady_state"] {
        assert_eq!(seen[key], Value::Null, "{key}");
    }
    assert_eq!(seen["load"]["achieved_rate"], Value::Null);
    for key in ["mean_prompt_tokens", "mean_output_tokens"] {
        assert_eq!(seen["by_workload"]["a"][key], Value::Null, "{key}");
    }
    assert_eq!(seen["by_workload"]["a"]["mean_planned_input"], 0.0);
    assert!(warnings(&load, &totals, &context()).is_empty());
}

#[test]
fn the_head_of_the_log_names_what_was_asked() {
    let mut load = load();
    let head = log_head(&load, &context());
    assert!(head.contains("Auto-detected model max context: 4096 tokens\n"), "{head}");
    assert!(head.contains("Duration: 10s\nMode: Open loop\nTemperature: 0.0 (deterministic)\n"), "{head}");
    load.temperature = 0.7;
    load.schedule.arrivals = Arrivals::Closed { streams: 3 };
    let head = log_head(&load, &Context { context_detected: false, ..context() });
    assert!(head.contains("Could not detect model context"), "{head}");
    assert!(head.contains("Mode: Closed loop (3 streams)\nTemperature: 0.7 (sampled)\n"), "{head}");
}

fn series(open: &[u64]) -> Vec<Second> {
    open.iter().map(|in_flight| Second { in_flight: *in_flight, ..Second::default() }).collect()
}

#[test]
fn the_steady_part_begins_where_the_open_requests_settle() {
    let of = |open: &[u64]| window(&series(open), open.len());
    let settles = of(&[0, 3, 6, 8, 8, 8, 8, 8, 8, 8]).unwrap();
    assert_eq!(settles, Window { from_s: 3, to_s: 10, growing: false });
    assert_eq!(of(&[9, 9, 9, 9]).unwrap(), Window { from_s: 0, to_s: 4, growing: false });
    assert_eq!(of(&[9, 9, 9]), None);
    // At most the first half is cut off, and the drain is no part of it.
    assert_eq!(of(&[0, 100, 0, 100, 50, 0, 5, 5, 5, 5]).unwrap().from_s, 5);
    assert_eq!(window(&series(&[8, 8, 8, 8, 8, 3, 0]), 5).unwrap().to_s, 5);
}

#[test]
fn open_requests_grow_only_beyond_noise_and_a_quarter() {
    let grows = |middle: u64, end: u64| {
        let open = [&[middle / 2; 3][..], &[middle; 3], &[end; 3]].concat();
        window(&series(&open), 9).unwrap().growing
    };
    // From 4: five, and three times the root of 4, beyond it.
    assert!(!grows(4, 15) && grows(4, 16));
    // From 400: 65 are no noise, but less than a quarter.
    assert!(!grows(400, 465) && !grows(400, 500) && grows(400, 501));
    assert!(!grows(16, 4));
}

#[test]
fn an_interval_is_that_of_resamples_drawn_one_by_one() {
    let values: Vec<f64> = (0..37).map(|n| f64::from(n * n)).collect();
    let sample = Sorted::new(values.clone());
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
    let (mut medians, mut highs) = (Vec::new(), Vec::new());
    for _ in 0..1000 {
        let drawn = (0..values.len()).map(|_| values[rng.random_range(0..values.len())]).collect();
        let drawn = Sorted::new(drawn);
        medians.push(drawn.percentile(50.0));
        highs.push(drawn.percentile(98.0));
    }
    let [median, high] = bootstrap(&sample, [50.0, 98.0], 7).unwrap();
    for (interval, slow) in [(median, Sorted::new(medians)), (high, Sorted::new(highs))] {
        assert!((interval.low - slow.percentile(2.5)).abs() < 1e-9, "{interval:?}");
        assert!((interval.high - slow.percentile(97.5)).abs() < 1e-9, "{interval:?}");
    }
    let few = |n: usize| bootstrap(&Sorted::new(vec![1.0; n]), [50.0], 1).is_some();
    assert!(!few(9) && few(10), "an interval of a handful would pretend");
}

#[test]
fn the_interval_of_a_rate_holds_its_mean_and_is_narrow_where_nothing_varies() {
    let of = |seconds: &[f64]| bootstrap_rate(seconds, 3);
    assert_eq!(of(&[3.0; 49]), None);
    for n in [50, 52] {
        let same = of(&vec![3.0; n]).unwrap();
        assert_eq!((same.low, same.high), (3.0, 3.0), "{n} seconds");
    }
    let swings: Vec<f64> = (0..100).map(|n| if n < 50 { 0.0 } else { 10.0 }).collect();
    let interval = of(&swings).unwrap();
    assert!(interval.low > 1.0 && interval.low < 4.0, "{interval:?}");
    assert!(interval.high > 6.0 && interval.high < 9.0, "{interval:?}");
}

#[test]
fn gaps_are_exact_on_both_sides_of_the_border_of_their_array() {
    let micros = [7_u64, 7, 40_000, 65_535, 65_536, 65_537, 2_000_000];
    let mut gaps = Gaps::default();
    assert_eq!((gaps.count(), gaps.moments()), (0, (0.0, 0.0)));
    micros.iter().for_each(|gap| gaps.add(Duration::from_micros(*gap)));
    let slow = Sorted::new(micros.iter().map(|gap| *gap as f64 / 1e3).collect());
    assert_eq!(gaps.count(), 7);
    let (mean, std) = gaps.moments();
    assert!((mean - slow.mean()).abs() < 1e-9 && (std - slow.std()).abs() < 1e-9, "{mean} {std}");
    for percent in [0.0, 10.0, 25.0, 50.0, 60.0, 75.0, 90.0, 99.0, 100.0] {
        let [seen] = gaps.percentiles([percent]);
        assert!((seen - slow.percentile(percent)).abs() < 1e-9, "{percent} %: {seen}");
    }
    let short = gaps.latency();
    assert_eq!((short.n, short.max), (7, 2000.0));
}

#[test]
fn every_class_of_failure_is_named_in_sums_as_in_records() {
    use ErrorClass as E;
    for class in [
        E::ConnectRefused,
        E::ConnectFailed,
        E::Reset,
        E::IdleTimeout,
        E::TotalTimeout,
        E::Http4xx,
        E::Http5xx,
        E::HttpOther,
        E::StreamError,
        E::Truncated,
        E::EmptyOutput,
        E::BadResponse,
        E::Cancelled,
    ] {
        assert_eq!(serde_json::to_value(class).unwrap(), class.name());
    }
}

#[test]
fn shares_of_a_template_are_above_nothing_and_together_at_most_all() {
    for (pattern, good) in [
        ("{50%} x {50%}", true),
        ("{100%}", true),
        ("{40%}{rest}", true),
        ("{words}", true),
        ("{60%}{50%}", false),
        ("{0%}{rest}", false),
        ("{-5%}{rest}", false),
        ("{rest}{words}", false),
        ("x", false),
        ("", false),
    ] {
        assert_eq!(Template::parse(pattern).is_ok(), good, "{pattern}");
    }
}

#[test]
fn every_built_in_mix_sends_what_it_is_named_after() {
    for name in ["chat", "rag", "code"] {
        let mix = Mix::named(name).unwrap();
        assert_eq!((mix.name.as_str(), mix.workloads.len()), (name, 1));
        assert_eq!((mix.workloads[0].name.as_str(), mix.workloads[0].weight), (name, 1.0));
    }
    assert_eq!(Mix::named("mixed"), Some(Mix::mixed()));
    assert_eq!(Mix::named("other"), None);
}

#[test]
fn a_workload_that_is_never_drawn_keeps_no_load_from_being_sent() {
    let workload = |name: &str, weight: f64, input: u32, more: &str| {
        format!(
            "[[workload]]\nname = \"{name}\"\nweight = {weight}\ninput = {{ dist = \"fixed\", tokens = {input}, min = \
             {input} }}\noutput = {{ dist = \"fixed\", tokens = 5 }}\n{more}\n"
        )
    };
    let draw = |workloads: &[String]| {
        let mix = Mix::from_toml(&format!("name = \"m\"\n{}", workloads.concat())).unwrap();
        Schedule::draw(mix, Arrivals::Constant { rate: 2.0 }, 10_000 * MS, 150, 1)
    };
    let huge = "prefix = { tokens = 9000 }";
    assert!(draw(&[workload("a", 1.0, 20, ""), workload("b", 0.0, 20, huge)]).is_ok());
    assert!(draw(&[workload("a", 1.0, 20, ""), workload("b", 0.1, 20, huge)]).is_err());
    // The one that fits is never drawn.
    assert!(draw(&[workload("a", 1.0, 200, ""), workload("b", 0.0, 20, "")]).is_err());
    let mut mix = mix();
    let long = Example { prompt: "x".repeat(9000), output: None };
    (mix.workloads[1].examples, mix.workloads[1].weight) = (vec![long], 0.0);
    let drawn = Schedule::draw(mix, Arrivals::Constant { rate: 2.0 }, 10_000 * MS, 150, 1).unwrap();
    assert_eq!((drawn.left_out, drawn.clamped), (0, 0));
}

#[test]
fn requests_that_were_made_shorter_are_counted() {
    let draw = |context: u32| {
        let mix = "name = \"m\"\n[[workload]]\nname = \"a\"\ninput = { dist = \"fixed\", tokens = 100 }\noutput = { dist = \
                   \"fixed\", tokens = 100 }\n";
        let mix = Mix::from_toml(mix).unwrap();
        Schedule::draw(mix, Arrivals::Constant { rate: 2.0 }, 10_000 * MS, context, 1).unwrap()
    };
    assert_eq!(draw(250).clamped, 0);
    let short = draw(249);
    assert_eq!((short.clamped as usize, short.requests.len()), (19, 19));
}

#[test]
fn limits_count_from_the_moment_a_request_was_due_and_a_workload_may_have_its_own() {
    // Due at 1 s, sent at 1.01 s, first token at 1.11 s, last at 1.51 s, 100 ms a token.
    let seen = record((0, 0), [1000, 1010, 1520], &[1110, 1510], Some((20, 5)));
    let slo = |ttft: u32, tpot: u32, e2el: u32| Slo {
        ttft: Some(ttft * MS),
        tpot: Some(tpot * MS),
        e2el: Some(e2el * MS),
    };
    assert!(slo(110, 100, 510).kept(&seen));
    for broken in [slo(109, 100, 510), slo(110, 99, 510), slo(110, 100, 509)] {
        assert!(!broken.kept(&seen), "{broken:?}");
    }
    assert!(!slo(110, 100, 510).kept(&record((0, 0), [0, 0, 9], &[], None)), "it has no first token");
    let single = record((0, 0), [1000, 1000, 1100], &[1100], Some((20, 1)));
    assert!(slo(110, 1, 510).kept(&single), "one token has no time each to miss");
    assert!(Slo::default().kept(&seen) && !Slo::default().is_set() && slo(1, 1, 1).is_set());

    let mut schedule = load().schedule;
    let own = Goal { ttft: Some(105.0), tpot: None, e2el: None };
    schedule.mix.workloads[0].slo = Some(own);
    let mut tally = Tally::new(&schedule, slo(500, 500, 600));
    for workload in [0, 1] {
        let seen = Record { workload, ..seen.clone() };
        tally.sent(&seen);
        tally.ended(&seen);
    }
    let totals = tally.finish(None);
    assert_eq!(
        [0, 1].map(|at: usize| totals.by_workload[at].1.good),
        [0, 1],
        "110 ms are too much for the first"
    );
    let fast = record((0, 0), [1000, 1000, 1520], &[1105, 1510], Some((20, 5)));
    let mut tally = Tally::new(&schedule, Slo::default());
    tally.sent(&fast);
    tally.ended(&fast);
    assert_eq!(tally.finish(None).all.good, 1);
}

#[test]
fn two_tokens_are_enough_for_a_time_each_and_pieces_of_one_read_are_counted() {
    let two = record((0, 0), [0, 0, 500], &[100, 400, 400, 400, 500], Some((9, 2)));
    assert_eq!((two.tpot(), two.pieces, two.coalesced), (Some(400 * MS), 5, 2));
    assert_eq!((two.e2e(), two.e2e_intended(), two.lag()), (Some(500 * MS), Some(500 * MS), Duration::ZERO));
    let one = record((0, 0), [0, 7, 500], &[100], Some((9, 1)));
    assert_eq!((one.tpot(), one.e2e_intended(), one.lag()), (None, Some(100 * MS), 7 * MS));
}

#[test]
fn the_client_is_blamed_beyond_its_borders_and_not_at_them() {
    let (load, totals) = (load(), Tally::new(&load().schedule, Slo::default()).finish(None));
    let faults = |cpu: f64, n: u64, p99: f64| {
        let client = Client { cpu_pct: Some(cpu), loop_lag_ms: Latency { n, p99, ..Latency::default() } };
        warnings(&load, &totals, &Context { client, ..context() }).len()
    };
    assert_eq!(faults(80.0, 1, 20.0), 0);
    assert_eq!((faults(80.1, 1, 20.0), faults(80.0, 1, 20.1)), (1, 1));
    assert_eq!(faults(80.0, 0, 99.0), 0, "nothing was measured");
    let cached =
        |rate: f64| warnings(&load, &totals, &Context { prefix_cache_hit_rate: Some(rate), ..context() });
    assert!(cached(0.0099).is_empty());
    assert!(cached(0.01)[0].starts_with("1 % of the prompt tokens"));
    let late = |lag: u32| {
        let mut tally = Tally::new(&load.schedule, Slo::default());
        tally.sent(&record((0, 0), [0, lag, 900], &[], None));
        warnings(&load, &tally.finish(None), &context()).len()
    };
    assert_eq!((late(20), late(21)), (0, 1));
}

#[test]
fn results_name_the_endpoint_and_the_regularity_as_vllm_does() {
    let schedule = load().schedule;
    let of = |arrivals: Arrivals, api| {
        let mut schedule = schedule.clone();
        schedule.arrivals = arrivals;
        let load = Load { api, ..Load::new(schedule, 1, 1) };
        let totals = Tally::new(&load.schedule, Slo::default()).finish(None);
        serde_json::from_str::<Value>(&result::json(&load, &totals, &context()).unwrap()).unwrap()
    };
    let seen = of(Arrivals::Poisson { rate: 3.0 }, Api::Completions);
    assert_eq!((&seen["backend"], &seen["burstiness"]), (&json!("openai"), &json!(1.0)));
    assert_eq!((&seen["config"]["arrival_process"], &seen["request_rate"]), (&json!("poisson"), &json!(3.0)));
    let seen = of(Arrivals::Gamma { rate: 3.0, burstiness: 0.5 }, Api::Chat);
    assert_eq!((&seen["endpoint_type"], &seen["burstiness"]), (&json!("openai-chat"), &json!(0.5)));
    let seen = of(Arrivals::Ramp { from: 1.0, to: 4.0 }, Api::Chat);
    assert_eq!((&seen["request_rate"], &seen["burstiness"]), (&json!(2.5), &Value::Null));
    let seen = of(Arrivals::Trace { times: vec![0.0, 1.0, 4.0] }, Api::Chat);
    assert_eq!((&seen["request_rate"], &seen["config"]["open_loop"]), (&json!(0.75), &json!(true)));
    let seen = of(Arrivals::Closed { streams: 3 }, Api::Chat);
    assert_eq!((&seen["request_rate"], &seen["max_concurrency"]), (&Value::Null, &json!(3)));
    assert_eq!((&seen["config"]["concurrency"], &seen["config"]["open_loop"]), (&json!(3), &json!(false)));
}

#[test]
fn texts_of_one_seed_differ_by_what_they_are_for_and_by_their_number() {
    let plain = Template::parse("plain").unwrap();
    for model in [TokenModel::default(), TokenModel::default().with_costs(vec![1; WORDS.len()])] {
        let of =
            |id| [build(&plain, 40, &model, 9, id), answer(40, &model, 9, id), prefix(40, &model, 9, id)];
        let mut texts = [of(1), of(2)].concat();
        for text in &texts {
            let words: Vec<String> = text.trim_end_matches('.').split(' ').map(str::to_lowercase).collect();
            let (last, whole) = words.split_last().unwrap();
            assert!(whole.iter().all(|word| WORDS.contains(&word.as_str())), "{text}");
            assert!(WORDS.iter().any(|word| word.starts_with(last.as_str())), "{text}");
            assert!(text.starts_with(|first: char| first.is_ascii_uppercase()), "{text}");
        }
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 6);
    }
}

#[test]
fn a_context_that_just_holds_the_smallest_request_is_enough() {
    let draw = |context: u32| {
        let mut mix = mix();
        mix.workloads.truncate(1);
        (mix.workloads[0].input.min, mix.workloads[0].output.min) = (30, 5);
        Schedule::draw(mix, Arrivals::Constant { rate: 2.0 }, 10_000 * MS, context, 1)
    };
    assert!(draw(85).is_ok() && draw(84).is_err());
    let left = |bytes: usize| {
        let mut mix = mix();
        mix.workloads.truncate(1);
        mix.workloads[0].examples =
            [bytes, 4].map(|bytes| Example { prompt: "x".repeat(bytes), output: None }).to_vec();
        Schedule::draw(mix, Arrivals::Constant { rate: 2.0 }, 10_000 * MS, 150, 1).unwrap().left_out
    };
    // 100 tokens are left, and one of them for the answer.
    assert_eq!((left(99 * 4), left(100 * 4)), (0, 1));
}

#[test]
fn what_the_template_costs_is_taken_off_the_words_once_tokens_were_measured() {
    let chat = Template::parse("chat").unwrap();
    // "User: " and "\nAssistant:" are 17 characters, three tokens of five.
    let measured = TokenModel::measured(50, 10);
    assert_eq!((chat.fixed_chars(), measured.is_measured(), measured.is_exact()), (17, true, false));
    assert_eq!(build(&chat, 40, &measured, 1, 1).len(), 17 + 37 * 5 + 1);
    assert_eq!(build(&chat, 40, &TokenModel::default(), 1, 1).len(), 17 + 40 * 4 + 1);
    assert!(TokenModel::default().with_costs(vec![1; WORDS.len()]).is_exact());
    assert!(!TokenModel::default().with_costs(vec![1]).is_exact());
}

#[test]
fn the_live_view_knows_the_middle_and_the_worst_since_it_last_looked() {
    let load = load();
    let mut tally = Tally::new(&load.schedule, Slo::default());
    for first in [100, 900, 200, 300] {
        let seen = record((0, 0), [0, 0, 1000], &[first], Some((1, 1)));
        tally.sent(&seen);
        tally.ended(&seen);
    }
    let live = tally.tick();
    assert_eq!((live.recent_ttft_p50_us, live.recent_ttft_max_us, live.completed), (200_000, 900_000, 4));
    let live = tally.tick();
    assert_eq!((live.recent_ttft_p50_us, live.recent_ttft_max_us), (0, 0));
    let load = Load { slo: Slo { ttft: Some(250 * MS), ..Slo::default() }, ..load };
    let seen: Value =
        serde_json::from_str(&result::json(&load, &tally.finish(None), &context()).unwrap()).unwrap();
    assert_eq!(seen["slo_ms"], json!({"ttft": 250.0, "tpot": null, "e2el": null}));
}
