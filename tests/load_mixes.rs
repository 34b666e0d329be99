//! Mixes, datasets, traces and arrivals as data; confidence and steady state, against numbers known otherwise.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::time::Duration;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::dataset::{parse, parse_trace};
use varcas_guard::workload::load::mix::{Mix, Template};
use varcas_guard::workload::load::prompt::{TokenModel, WORDS, build};
use varcas_guard::workload::load::schedule::{CONTEXT_MARGIN, Schedule};
use varcas_guard::workload::load::stats::{Gaps, Second, Sorted};
use varcas_guard::workload::load::steady::{bootstrap, bootstrap_rate, window};

fn draw(mix: Mix, arrivals: Arrivals, seconds: u64) -> Schedule {
    Schedule::draw(mix, arrivals, Duration::from_secs(seconds), 4096, 5).unwrap()
}

fn counts(arrivals: Arrivals, seconds: u64) -> Vec<f64> {
    let schedule = draw(Mix::named("chat").unwrap(), arrivals, seconds);
    let mut counts = vec![0.0; seconds as usize];
    for request in &schedule.requests {
        counts[request.at.as_secs() as usize] += 1.0;
    }
    counts
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Variance over mean of the counts a second: 1 for Poisson.
fn dispersion(values: &[f64]) -> f64 {
    let m = mean(values);
    values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / values.len() as f64 / m
}

#[test]
fn every_process_delivers_the_rate_it_was_asked_for() {
    let rate = 20.0;
    for arrivals in [
        Arrivals::Poisson { rate },
        Arrivals::Constant { rate },
        Arrivals::Gamma { rate, burstiness: 0.5 },
        Arrivals::Hawkes { rate, branching: 0.6, decay: 2.0 },
        Arrivals::Cyclic { rate, amplitude: 0.8, period: 50.0 },
        Arrivals::Ramp { from: 5.0, to: 35.0 },
    ] {
        let name = arrivals.name();
        let got = mean(&counts(arrivals, 3000));
        assert!((got / rate - 1.0).abs() < 0.04, "{name}: {got}");
    }
}

#[test]
fn processes_differ_in_the_way_they_are_named_for() {
    let rate = 20.0;
    let spread = |arrivals| dispersion(&counts(arrivals, 4000));
    let poisson = spread(Arrivals::Poisson { rate });
    assert!((poisson - 1.0).abs() < 0.09, "{poisson}");
    assert!(spread(Arrivals::Constant { rate }) < 0.01);
    // Gamma gaps of shape k: the counts of long intervals have a dispersion of 1/k.
    let gamma = spread(Arrivals::Gamma { rate, burstiness: 0.25 });
    assert!((3.0..4.2).contains(&gamma), "{gamma}");
    // Hawkes with branching n: 1/(1-n)^2 over long intervals, less over one second.
    let hawkes = spread(Arrivals::Hawkes { rate, branching: 0.6, decay: 10.0 });
    assert!((4.0..6.3).contains(&hawkes), "{hawkes}");
    let ramp = counts(Arrivals::Ramp { from: 0.0, to: 40.0 }, 4000);
    let (first, last) = (mean(&ramp[..1000]), mean(&ramp[3000..]));
    assert!((first / 5.0 - 1.0).abs() < 0.1 && (last / 35.0 - 1.0).abs() < 0.05, "{first} {last}");
    let cyclic = counts(Arrivals::Cyclic { rate, amplitude: 1.0, period: 4.0 }, 8000);
    let rising: Vec<f64> = cyclic.iter().step_by(4).copied().collect();
    let falling: Vec<f64> = cyclic.iter().skip(2).step_by(4).copied().collect();
    // Mean of 1 + sin over the first and third quarter of a swing: 1 + 2/pi and 1 - 2/pi.
    assert!((mean(&rising) / 32.7 - 1.0).abs() < 0.05, "{}", mean(&rising));
    assert!((mean(&falling) / 7.3 - 1.0).abs() < 0.08, "{}", mean(&falling));
}

#[test]
fn nonsense_arrivals_say_what_is_wrong() {
    for (arrivals, what) in [
        (Arrivals::Gamma { rate: 1.0, burstiness: 0.0 }, "burstiness"),
        (Arrivals::Hawkes { rate: 1.0, branching: 1.0, decay: 1.0 }, "branching"),
        (Arrivals::Cyclic { rate: 1.0, amplitude: 1.5, period: 1.0 }, "amplitude"),
        (Arrivals::Ramp { from: 0.0, to: 0.0 }, "ramp"),
        (Arrivals::Trace { times: vec![] }, "trace"),
        (Arrivals::Closed { streams: 0 }, "streams"),
        (Arrivals::Constant { rate: 1e12 }, "more than"),
        (Arrivals::Constant { rate: 0.001 }, "empty"),
    ] {
        let mix = Mix::named("chat").unwrap();
        let error = Schedule::draw(mix, arrivals, Duration::from_secs(10), 4096, 1).unwrap_err();
        assert!(error.contains(what), "{error}");
    }
}

const OWN: &str = r#"
name = "own"
[[workload]]
name = "ask"
weight = 3
template = "Summarise: {words}\nSummary:"
input = { dist = "uniform", min = 100, max = 200 }
output = { dist = "fixed", tokens = 64 }
prefix = { tokens = 300, groups = 4 }
[[workload]]
name = "talk"
weight = 1
input = { dist = "normal", mean = 30, std = 5, min = 5, max = 60 }
output = { dist = "empirical", tokens = [10, 20] }
turns = { count = 3, think = 2.0 }
"#;

#[test]
fn an_own_mix_is_read_from_toml_and_drawn_as_written() {
    let mix = Mix::from_toml(OWN).unwrap();
    let schedule = draw(mix, Arrivals::Poisson { rate: 20.0 }, 400);
    let ask: Vec<_> = schedule.requests.iter().filter(|r| r.workload == 0).collect();
    let talk: Vec<_> = schedule.requests.iter().filter(|r| r.workload == 1 && r.turn == 0).collect();
    let share = ask.len() as f64 / (ask.len() + talk.len()) as f64;
    assert!((share - 0.75).abs() < 0.03, "{share}");
    assert!(ask.iter().all(|r| (100..=200).contains(&r.input) && r.output == 64 && r.group < 4));
    assert!(talk.iter().all(|r| (5..=60).contains(&r.input) && [10, 20].contains(&r.output)));
    for first in talk.iter().filter(|r| r.at < Duration::from_secs(390)) {
        let mut turns: Vec<_> = schedule.requests.iter().filter(|r| r.talk == first.id).collect();
        turns.sort_by_key(|r| r.turn);
        assert_eq!(turns.iter().map(|r| r.turn).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(turns[2].at - turns[0].at, Duration::from_secs(4));
    }
    assert!(schedule.requests.is_sorted_by_key(|r| r.at));
}

#[test]
fn mistakes_in_a_mix_are_named() {
    let error = Mix::from_toml("name = \"x\"\n[[workload]]\nname = \"a\"\nwieght = 2\n").unwrap_err();
    assert!(error.contains("wieght") && error.contains("line 4"), "{error}");
    assert!(Template::parse("no words").is_err());
    assert!(Template::parse("{80%}{30%}").is_err());
    assert!(Template::parse("{wrds}").unwrap_err().contains("wrds"));
    let mut mix = Mix::from_toml(OWN).unwrap();
    mix.workloads[0].name = "talk".to_owned();
    mix.workloads[0].weight = f64::NAN;
    assert_eq!(mix.problems().len(), 2, "{:?}", mix.problems());
}

#[test]
fn datasets_of_both_layouts_are_read_and_a_bad_line_is_named() {
    let jsonl =
        "{\"prompt\":\"a\",\"max_tokens\":7}\n\n{\"messages\":[{\"role\":\"user\",\"content\":\"b\"}]}\n";
    let examples = parse(jsonl, 4.0).unwrap();
    assert_eq!((examples[0].prompt.as_str(), examples[0].output), ("a", Some(7)));
    assert_eq!((examples[1].prompt.as_str(), examples[1].output), ("b", None));
    let sharegpt = r#"[{"conversations":[]},{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"12345678"}]}]"#;
    let examples = parse(sharegpt, 4.0).unwrap();
    assert_eq!((examples.len(), examples[0].prompt.as_str(), examples[0].output), (1, "q", Some(2)));
    assert!(parse("{\"prompt\":\"a\"}\nnot json\n", 4.0).unwrap_err().starts_with("line 2 is not JSON"));
    assert!(parse("{\"prompt\":\"a\"}\n{\"q\":1}\n", 4.0).unwrap_err().starts_with("line 2 holds none"));
    assert!(parse("", 4.0).is_err());
}

#[test]
fn traces_and_result_files_of_the_harness_are_replayed_at_their_moments() {
    let trace = r#"{"metadata":{},"prompts":[
        {"timestamp":12.5,"prompt":"second","max_tokens":9,"workload_type":"rag","input_tokens":3,"output_tokens":4},
        {"timestamp":10.0,"prompt":"first","max_tokens":8,"workload_type":"chat","input_tokens":3,"output_tokens":4}]}"#;
    let schedule = Schedule::from_trace(parse_trace(trace).unwrap(), Duration::MAX, 4096).unwrap();
    let at: Vec<f64> = schedule.requests.iter().map(|r| r.at.as_secs_f64()).collect();
    assert_eq!(at, [0.0, 2.5]);
    let text = |index: usize| {
        let r = &schedule.requests[index];
        schedule.mix.workloads[usize::from(r.workload)].examples[r.example.unwrap() as usize].prompt.as_str()
    };
    assert_eq!((text(0), text(1)), ("first", "second"));
    assert_eq!(schedule.requests[1].output, 9);
    let result = r#"{"records":[{"workload_name":"code","timestamp_sent":1.0,"prompt_text":"p","input_tokens":2,"output_tokens":5}]}"#;
    assert_eq!(parse_trace(result).unwrap()[0].example.output, Some(5));
    assert!(parse_trace("{}").unwrap_err().contains("neither"));
    assert!(parse_trace(r#"{"prompts":[{"timestamp":1}]}"#).unwrap_err().contains("request 1"));
}

#[test]
fn with_known_word_costs_a_prompt_has_its_length_to_the_token() {
    let costs: Vec<u32> = WORDS.iter().map(|w| if w.len() > 5 { 3 } else { 1 }).collect();
    let mut model = TokenModel::measured(400, 100).with_costs(costs.clone());
    let template = Template::parse("rag").unwrap();
    model.set_around(&template, 9);
    for id in 0..200 {
        let text = build(&template, 100 + id, &model, 3, id);
        let text = text.replace("Context: ", "").replace("\n\nQuestion: ", " ");
        let tokens: u32 = text
            .split_whitespace()
            .map(|w| w.trim_end_matches('.').to_ascii_lowercase())
            .map(|w| costs[WORDS.iter().position(|known| *known == w).unwrap()])
            .sum();
        assert_eq!(tokens + 9, 100 + id, "{text}");
    }
}

#[test]
fn conversations_and_prefixes_stay_within_the_context() {
    let schedule = draw(Mix::from_toml(OWN).unwrap(), Arrivals::Constant { rate: 50.0 }, 100);
    for first in schedule.requests.iter().filter(|r| r.workload == 1 && r.turn == 0) {
        let total: u32 =
            schedule.requests.iter().filter(|r| r.talk == first.id).map(|r| r.input + r.output).sum();
        assert!(total <= 4096 - CONTEXT_MARGIN);
    }
    let error = Schedule::draw(
        Mix::from_toml(&OWN.replace("tokens = 300", "tokens = 9000")).unwrap(),
        Arrivals::Constant { rate: 1.0 },
        Duration::from_secs(5),
        80,
        1,
    );
    assert!(error.unwrap_err().contains("does not fit"));
}

#[test]
fn percentiles_are_those_of_numpy() {
    // numpy.percentile([1, 2, 4, 8, 16], [0, 50, 90, 99, 100]) and numpy.std of the same.
    let sorted = Sorted::new(vec![16.0, 1.0, 8.0, 2.0, 4.0]);
    for (percent, want) in [(0.0, 1.0), (50.0, 4.0), (90.0, 12.8), (99.0, 15.68), (100.0, 16.0)] {
        assert!((sorted.percentile(percent) - want).abs() < 1e-9, "{percent}");
    }
    assert!((sorted.std() - 5.455_272_678_794_34).abs() < 1e-9);
    let mut gaps = Gaps::default();
    for micros in [16_000_000, 1000, 8000, 2000, 4000] {
        gaps.add(Duration::from_micros(micros));
    }
    // The same list with 16 s for its last: 8 + 0.6 * (16000 - 8) at 90 %.
    let [p50, p90] = gaps.percentiles([50.0, 90.0]);
    assert!((p50 - 4.0).abs() < 1e-9 && (p90 - 9603.2).abs() < 1e-6, "{p50} {p90}");
    assert!((gaps.moments().0 - 3203.0).abs() < 1e-9);
}

#[test]
fn intervals_of_the_median_cover_the_truth_as_often_as_they_say() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let covered = (0..100)
        .filter(|seed| {
            let sample = Sorted::new((0..100).map(|_| rng.random::<f64>()).collect());
            let [median] = bootstrap(&sample, [50.0], *seed).unwrap();
            median.low <= 0.5 && 0.5 <= median.high
        })
        .count();
    // 4 standard deviations of a binomial around 95 are 9.
    assert!((86..=100).contains(&covered), "{covered}");
    assert!(bootstrap(&Sorted::new(vec![1.0; 9]), [50.0], 1).is_none());
}

#[test]
fn an_interval_of_a_rate_covers_the_truth_as_often_as_it_says() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(10);
    let mut covered = 0;
    for seed in 0..100 {
        // 100 seconds around 25 a second, where each second resembles the one before.
        let mut level = 0.0;
        let seconds: Vec<f64> = (0..100)
            .map(|_| {
                level = 0.3 * level + (rng.random::<f64>() - 0.5) * 10.0;
                25.0 + level
            })
            .collect();
        let interval = bootstrap_rate(&seconds, seed).unwrap();
        covered += usize::from(interval.low <= 25.0 && 25.0 <= interval.high);
        assert!(interval.high - interval.low < 3.0, "{interval:?}");
    }
    // Block bootstraps of short series cover a little less than they say.
    assert!((80..=100).contains(&covered), "{covered}");
    assert_eq!(bootstrap_rate(&[25.0; 49], 1), None);
}

#[test]
fn the_steady_window_leaves_the_start_out_and_a_backlog_is_called_one() {
    let series = |open: &dyn Fn(usize) -> u64| -> Vec<Second> {
        (0..60).map(|s| Second { in_flight: open(s), ..Second::default() }).collect()
    };
    let ramp = series(&|s| if s < 10 { s as u64 * 2 } else { 20 + (s as u64 * 7) % 3 });
    let steady = window(&ramp, 60).unwrap();
    assert!((8..=11).contains(&steady.from_s) && steady.to_s == 60 && !steady.growing, "{steady:?}");
    assert!(window(&series(&|s| s as u64 * 10), 60).unwrap().growing);
    assert!(!window(&series(&|s| 20 + (s as u64 * 13) % 9), 60).unwrap().growing);
    assert_eq!(window(&ramp, 3), None);
}
