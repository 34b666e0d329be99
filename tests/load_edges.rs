//! The borders of what the load is made of: what is just allowed, what is just refused, what is counted.

use std::time::Duration;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::dataset::{Traced, parse, parse_trace};
use varcas_guard::workload::load::mix::{Example, Length, Mix, Shape};
use varcas_guard::workload::load::outcome::{ErrorClass, Fault, Record};
use varcas_guard::workload::load::prompt::{self, TokenModel};
use varcas_guard::workload::load::schedule::{CONTEXT_MARGIN, Schedule, clamp};
use varcas_guard::workload::load::stream::{Finish, Usage};

fn mix(text: &str) -> Result<Mix, String> {
    Mix::from_toml(&format!("name = \"m\"\n[[workload]]\nname = \"w\"\n{text}"))
}

/// What is wrong with one workload of these lines.
fn problems(text: &str) -> Vec<String> {
    mix(text).expect("it is TOML of a mix").problems()
}

#[test]
fn what_is_just_allowed_is_allowed_and_what_is_not_is_named() {
    let fixed = "output = { dist = \"fixed\", tokens = 5 }";
    for (line, wrong) in [
        ("weight = 0.5", None),
        ("weight = -0.1", Some("weight")),
        ("input = { dist = \"uniform\", min = 7, max = 7 }", None),
        ("input = { dist = \"uniform\", min = 8, max = 7 }", Some("is above max")),
        ("input = { dist = \"fixed\", tokens = 1, min = 0 }", Some("min is 0")),
        ("input = { dist = \"normal\", mean = 5.0, std = 0.0 }", None),
        ("input = { dist = \"normal\", mean = 5.0, std = -1.0 }", Some("std")),
        ("input = { dist = \"lognormal\", mean = 0.0, std = 1.0 }", Some("mean")),
        ("input = { dist = \"empirical\", tokens = [] }", Some("is empty")),
        ("prefix = { tokens = 1, groups = 1 }", None),
        ("prefix = { tokens = 0, groups = 1 }", Some("shared prefix")),
        ("prefix = { tokens = 1, groups = 0 }", Some("shared prefix")),
        ("turns = { count = 1, think = 0.0 }", None),
        ("turns = { count = 2, think = 86400.0 }", None),
        ("turns = { count = 2, think = 86401.0 }", Some("turns")),
        ("turns = { count = 2, think = 1e300 }", Some("turns")),
        ("turns = { count = 0, think = 1.0 }", Some("turns")),
        ("slo = { ttft = 0.1, tpot = 1.0, e2el = 2.0 }", None),
        ("slo = { ttft = 0.0 }", Some("slo ttft")),
        ("slo = { e2el = 1e9 }", Some("slo e2el")),
    ] {
        let seen = problems(&format!("{line}\n{fixed}"));
        match wrong {
            None => assert!(seen.is_empty(), "{line}: {seen:?}"),
            Some(words) => assert!(seen.len() == 1 && seen[0].contains(words), "{line}: {seen:?}"),
        }
    }
    assert!(problems(&format!("weight = 0.0\n{fixed}"))[0].contains("the weights sum to 0"));
}

#[test]
fn absurd_lengths_neither_overflow_nor_fit() {
    let absurd = mix("input = { dist = \"fixed\", tokens = 9, min = 4294967295, max = 4294967295 }\n\
                      output = { dist = \"fixed\", tokens = 9, min = 4294967295, max = 4294967295 }\n\
                      prefix = { tokens = 4294967295 }");
    let absurd = absurd.expect("it is TOML of a mix");
    let drawn = Schedule::draw(absurd, Arrivals::Constant { rate: 1.0 }, Duration::from_secs(3), 2048, 1);
    assert!(drawn.expect_err("it does not fit").contains("smaller than the smallest request"));
}

#[test]
fn the_mean_that_a_length_aims_at_is_that_of_its_shape() {
    let of = |shape| Length { shape, min: 10, max: 30 }.nominal_mean();
    assert_eq!(of(Shape::Uniform), 20.0);
    assert_eq!(of(Shape::Fixed { tokens: 7 }), 7.0);
    assert_eq!(of(Shape::Empirical { tokens: vec![1, 2, 6] }), 3.0);
    assert_eq!(of(Shape::Normal { mean: 5.0, std: 1.0 }), 5.0);
}

#[test]
fn ramps_may_begin_or_end_at_nothing_but_not_both() {
    for (from, to, good) in
        [(0.0, 1.0, true), (1.0, 0.0, true), (0.0, 0.0, false), (-1.0, 3.0, false), (3.0, -1.0, false)]
    {
        assert_eq!(Arrivals::Ramp { from, to }.problems().is_empty(), good, "{from} to {to}");
    }
    for (times, good) in
        [(vec![0.0, 0.0, 1.0], true), (vec![1.0, 0.5], false), (vec![-1.0], false), (vec![], false)]
    {
        assert_eq!(Arrivals::Trace { times: times.clone() }.problems().is_empty(), good, "{times:?}");
    }
    assert_eq!(Arrivals::Trace { times: vec![0.0, 1.0, 4.0] }.rate(), Some(0.75));
    assert_eq!(Arrivals::Trace { times: vec![0.0] }.rate(), Some(1.0));
    assert_eq!(Arrivals::Ramp { from: 2.0, to: 4.0 }.rate(), Some(3.0));
    assert_eq!(Arrivals::Closed { streams: 4 }.rate(), None);
}

#[test]
fn a_request_that_just_fits_is_left_alone_and_one_that_does_not_keeps_its_minima() {
    assert_eq!(clamp(60, 40, 1, 1, 100), (60, 40));
    assert_eq!(clamp(60, 41, 1, 1, 100), (59, 40));
    // The scaled length is exactly its minimum.
    assert_eq!(clamp(100, 100, 50, 1, 100), (50, 50));
    assert_eq!(clamp(100, 100, 51, 1, 100), (51, 49));
    assert_eq!(clamp(100, 100, 1, 51, 100), (49, 51));
    assert_eq!(clamp(100, 100, 60, 60, 100), (50, 50), "where the minima do not fit, the proportion stays");
    assert_eq!(clamp(100, 100, 60, 40, 100), (60, 40));
    assert_eq!(clamp(5, 5, u32::MAX, u32::MAX, 4), (2, 2));
}

#[test]
fn a_trace_says_how_many_answers_were_cut() {
    let text = r#"{"prompts":[{"timestamp":1.0,"prompt":"abcd","max_tokens":9,"input_tokens":1000},
        {"timestamp":0.5,"prompt":"abcd","max_tokens":2000,"input_tokens":100,"workload_type":"x"},
        {"timestamp":7.0,"prompt":"abcdefgh"}]}"#;
    let traced = parse_trace(text).expect("it is a trace");
    assert_eq!(traced.iter().map(|row| row.at).collect::<Vec<_>>(), [0.0, 0.5, 6.5]);
    assert_eq!((traced[2].input, traced[2].example.output), (2, Some(16)), "four bytes a token");
    let schedule = Schedule::from_trace(traced, Duration::from_secs(5), 1000).expect("it can be sent");
    let room = 1000 - CONTEXT_MARGIN;
    let seen: Vec<_> = schedule.requests.iter().map(|r| (r.id, r.input, r.output)).collect();
    assert_eq!(seen, [(0, 100, room - 100), (1, 1000, 1)]);
    assert_eq!((schedule.clamped, schedule.duration), (2, Duration::from_millis(501)));
    let weights: Vec<_> = schedule.mix.workloads.iter().map(|w| (w.name.as_str(), w.weight)).collect();
    assert_eq!(weights, [("x", 1.0), ("trace", 1.0)]);
}

#[test]
fn a_trace_with_a_workload_for_every_request_is_read_in_no_more_time_and_refused_beyond_their_number() {
    let traced = |rows: u32| {
        let row = |n| Traced {
            at: f64::from(n) / 1e6,
            workload: format!("w{n}"),
            example: Example { prompt: "x".to_owned(), output: Some(1) },
            input: 1,
        };
        Schedule::from_trace((0..rows).map(row).collect(), Duration::from_secs(9), 2048)
    };
    let all = traced(65_536).expect("as many as can be told apart");
    assert_eq!((all.mix.workloads.len(), all.requests[65_535].workload), (65_536, 65_535));
    assert_eq!(traced(65_537).expect_err("one more"), "the trace names more than 65536 workloads");
}

#[test]
fn what_the_server_counted_corrects_a_request_and_is_counted_once() {
    let mix = mix("output = { dist = \"fixed\", tokens = 100 }\ninput = { dist = \"fixed\", tokens = 50 }\n\
                   prefix = { tokens = 10 }");
    let mix = mix.expect("it is TOML of a mix");
    let mut schedule = Schedule::draw(mix, Arrivals::Constant { rate: 2.0 }, Duration::from_secs(2), 550, 1)
        .expect("it can be drawn");
    let before = schedule.clamped;
    schedule.counted(0, 60);
    assert_eq!(
        (schedule.requests[0].input, schedule.requests[0].output, schedule.clamped),
        (60, 100, before)
    );
    schedule.counted(0, 450);
    assert_eq!((schedule.requests[0].input, schedule.requests[0].output), (450, 40));
    assert_eq!(schedule.clamped, before + 1);
    schedule.counted(1, 9999);
    assert_eq!((schedule.requests[1].output, schedule.clamped), (1, before + 2));
    schedule.counted(1, 0);
    assert_eq!(schedule.requests[1].input, 1);
}

#[test]
fn known_answers_become_lengths() {
    let all = parse(
        "{\"prompt\":\"q\",\"completion\":\"12345678\"}\n{\"text\":\"q\"}\n\
        {\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"role\":\"assistant\",\"content\":\"123456789012\"}]}\n\
        {\"prompt\":\"q\",\"completion\":\"1\"}\n{\"prompt\":\"q\",\"completion\":\"12345678\",\"max_tokens\":9}\n\
        {\"prompt\":\"q\",\"max_tokens\":0}",
        4.0,
    );
    let lengths: Vec<_> = all.expect("it is a dataset").iter().map(|example| example.output).collect();
    assert_eq!(lengths, [Some(2), None, Some(3), Some(1), Some(9), None]);
}

#[test]
fn a_long_detail_is_cut_between_characters_and_says_so() {
    let of = |text: String| Fault::new(ErrorClass::Cancelled, text).detail;
    assert_eq!(of("x".repeat(500)), "x".repeat(500));
    assert_eq!(of("x".repeat(501)), format!("{}\u{2026}", "x".repeat(500)));
    assert_eq!(of("\u{e9}".repeat(251)), format!("{}\u{2026}", "\u{e9}".repeat(250)));
    assert_eq!(of(format!("x{}", "\u{e9}".repeat(250))), format!("x{}\u{2026}", "\u{e9}".repeat(249)));
}

#[test]
fn a_record_tells_its_times_in_milliseconds() {
    let ms = Duration::from_millis;
    let record = Record {
        first: Some(ms(150)),
        last: Some(ms(1150)),
        ended: ms(1200),
        usage: Some(Usage { prompt_tokens: 7, completion_tokens: 11 }),
        pieces: 11,
        finish: Some(Finish::Stop),
        status: Some(200),
        sent: ms(50),
        ..Record::new(3, 0, ms(40), 7, 11)
    };
    assert_eq!((record.lag(), record.ttft()), (ms(10), Some(ms(100))));
    assert_eq!(record.tpot(), Some(ms(100)));
    let line = serde_json::to_value(record.line("chat")).expect("a line can be written");
    let of = |key: &str| line[key].as_f64().unwrap_or(f64::NAN);
    assert_eq!((of("intended_ms"), of("sent_ms"), of("first_ms")), (40.0, 50.0, 150.0));
    assert_eq!((of("last_ms"), of("ended_ms"), of("ttft_ms"), of("tpot_ms")), (1150.0, 1200.0, 100.0, 100.0));
    assert_eq!((line["ok"].as_bool(), line["finish"].as_str()), (Some(true), Some("stop")));
}

#[test]
fn words_fill_the_characters_asked_for() {
    let model = TokenModel::default();
    let prefix = prompt::prefix(25, &model, 1, 0);
    assert_eq!(prefix.len(), 101, "four characters a token and a full stop: {prefix}");
    assert_ne!(prefix, prompt::prefix(25, &model, 1, 1), "each group has its own");
    assert_eq!(prompt::answer(5, &model, 1, 0).len(), 21);
    assert!(!model.is_measured() && TokenModel::measured(90, 30).is_measured());
    assert_eq!(TokenModel::measured(90, 30).chars_per_token(), 3.0);
    assert!(!TokenModel::measured(0, 30).is_measured() && !TokenModel::measured(90, 0).is_measured());
    assert!(prompt::sample(1).len() > 8000);
}
