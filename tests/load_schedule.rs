//! The realised `mixed` workload against numbers that do not come from our code: `TABLE` was drawn with numpy (4 million
//! requests a row) after the rules of the user's harness, `HARNESS` are counts and percentiles of the harness itself (its own
//! sampler with numpy, seed 42, 120 s).

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::time::Duration;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::mix::{Mix, Template};
use varcas_guard::workload::load::prompt::{self, TokenModel};
use varcas_guard::workload::load::schedule::{CONTEXT_MARGIN, Planned, Schedule, clamp};
use varcas_guard::workload::load::stats::Sorted;

fn draw(context: u32, seconds: u64, seed: u64) -> Schedule {
    Schedule::draw(
        Mix::mixed(),
        Arrivals::Poisson { rate: 25.0 },
        Duration::from_secs(seconds),
        context,
        seed,
    )
    .unwrap()
}

fn column(schedule: &Schedule, workload: u16, value: impl Fn(&Planned) -> u32) -> Sorted {
    Sorted::new(
        schedule.requests.iter().filter(|r| r.workload == workload).map(|r| f64::from(value(r))).collect(),
    )
}

/// Context, workload, then mean, p50 and p99 of input and of output.
const TABLE: [(u32, u16, [f64; 3], [f64; 3]); 9] = [
    (2048, 0, [49.5, 42.0, 155.0], [149.5, 132.0, 423.0]),
    (2048, 1, [1754.4, 1841.0, 1961.0], [152.9, 135.0, 427.0]),
    (2048, 2, [1453.4, 1527.0, 1931.0], [379.2, 316.0, 1186.0]),
    (4096, 0, [49.5, 42.0, 156.0], [149.5, 132.0, 423.0]),
    (4096, 1, [2424.2, 2321.0, 3962.0], [196.4, 176.0, 528.0]),
    (4096, 2, [1933.0, 1787.0, 3873.0], [487.8, 385.0, 1882.0]),
    (8192, 0, [49.5, 42.0, 155.0], [149.5, 132.0, 424.0]),
    (8192, 1, [2498.7, 2321.0, 5686.0], [199.5, 178.0, 536.0]),
    (8192, 2, [1998.2, 1788.0, 5367.0], [499.1, 390.0, 2008.0]),
];

#[test]
fn lengths_agree_with_the_harness_at_every_context() {
    // 200,000 requests: what is left of sampling error (1.2 % for the p99 of code) is below the tolerances.
    for context in [2048, 4096, 8192] {
        let schedule = draw(context, 8000, 7);
        for (_, workload, input, output) in TABLE.iter().filter(|row| row.0 == context) {
            for (what, sample, want) in [
                ("input", column(&schedule, *workload, |r| r.input), input),
                ("output", column(&schedule, *workload, |r| r.output), output),
            ] {
                let got = [sample.mean(), sample.percentile(50.0), sample.percentile(99.0)];
                for (got, (want, tolerance)) in got.iter().zip(want.iter().zip([0.012, 0.015, 0.04])) {
                    assert!(
                        (got / want - 1.0).abs() < tolerance || (got - want).abs() <= 1.0,
                        "context {context}, workload {workload}, {what}: got {got}, want {want}"
                    );
                }
            }
        }
    }
}

/// One run of the harness at one context.
struct Harness {
    context: u32,
    /// Requests of chat, rag and code.
    counts: [u32; 3],
    /// Tokens a second: prompts, `max_tokens`.
    rates: [f64; 2],
    /// Median and 99th percentile of the input of rag and code.
    input: [[f64; 2]; 2],
    /// The same of the output of chat, rag and code.
    output: [[f64; 2]; 3],
}

const HARNESS: [Harness; 3] = [
    Harness {
        context: 2048,
        counts: [1784, 882, 301],
        rates: [17_400.0, 4_300.0],
        input: [[1847.0, 1962.0], [1565.0, 1947.0]],
        output: [[133.0, 449.0], [136.0, 412.0], [299.0, 1217.0]],
    },
    Harness {
        context: 4096,
        counts: [1814, 849, 288],
        rates: [22_800.0, 4_800.0],
        input: [[2318.0, 3971.0], [1776.0, 3900.0]],
        output: [[138.0, 403.0], [174.0, 511.0], [389.0, 1930.0]],
    },
    Harness {
        context: 8192,
        counts: [1776, 910, 295],
        rates: [25_100.0, 4_900.0],
        input: [[2397.0, 5564.0], [1874.0, 5606.0]],
        output: [[130.0, 433.0], [180.0, 554.0], [385.0, 1687.0]],
    },
];

/// Standard deviations that a difference may have: more happens once in a thousand by chance.
const DEVIATIONS: f64 = 3.3;

/// Whether `value`, the percentile of a sample of `n` from the harness, splits ours as it split theirs.
fn splits_alike(ours: &Sorted, percent: f64, value: f64, n: u32) -> Result<(), String> {
    let (share, total) = (percent / 100.0, ours.len() as f64);
    let below = ours.values().iter().filter(|v| **v < value).count() as f64;
    let equal = ours.values().iter().filter(|v| **v == value).count() as f64;
    let seen = (below + equal / 2.0) / total;
    // Half a request of theirs: with 3 requests above a p99, ranks are coarse.
    let noise = (share * (1.0 - share) * (1.0 / f64::from(n) + 1.0 / total)).sqrt();
    let tolerance = DEVIATIONS * noise + 0.5 / f64::from(n);
    if (seen - share).abs() <= tolerance {
        return Ok(());
    }
    Err(format!("p{percent} of the harness is {value}, but {seen:.4} of ours lie below (+- {tolerance:.4})"))
}

#[test]
fn the_harness_and_we_draw_from_the_same_distributions() {
    // Two minutes as the user runs it, and a sample so large that only the noise of the harness is left.
    for (seconds, seed) in [(120, 42), (8000, 9)] {
        for run in &HARNESS {
            let schedule = draw(run.context, seconds, seed);
            for (workload, n) in (0..).zip(run.counts) {
                let input = column(&schedule, workload, |r| r.input);
                let output = column(&schedule, workload, |r| r.output);
                let mut checks = vec![("output", &output, run.output[usize::from(workload)])];
                if let Some(index) = usize::from(workload).checked_sub(1) {
                    checks.push(("input", &input, run.input[index]));
                }
                for (what, ours, [p50, p99]) in checks {
                    for (percent, value) in [(50.0, p50), (99.0, p99)] {
                        splits_alike(ours, percent, value, n).unwrap_or_else(|error| {
                            panic!(
                                "context {}, {seconds} s, workload {workload}, {what}: {error}",
                                run.context
                            )
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn the_harness_and_we_send_as_many_requests_of_each_kind_with_as_many_tokens() {
    for run in &HARNESS {
        let schedule = draw(run.context, 120, 42);
        let ours = [0, 1, 2].map(|w| schedule.requests.iter().filter(|r| r.workload == w).count() as f64);
        let theirs = run.counts.map(f64::from);
        let (all_ours, all_theirs) = (ours.iter().sum::<f64>(), theirs.iter().sum::<f64>());
        // Two Poisson counts differ by the root of their sum.
        let deviations = (all_ours - all_theirs).abs() / (all_ours + all_theirs).sqrt();
        assert!(deviations < DEVIATIONS, "{all_ours} requests, the harness {all_theirs}");
        // Pearson's two-sample statistic with 2 degrees of freedom: 13.8 is exceeded once in a thousand.
        let chi: f64 = ours
            .iter()
            .zip(theirs)
            .map(|(a, b)| {
                let share = (a + b) / (all_ours + all_theirs);
                (a - share * all_ours).powi(2) / (share * all_ours)
                    + (b - share * all_theirs).powi(2) / (share * all_theirs)
            })
            .sum();
        assert!(chi < 13.8, "context {}: chi square {chi}", run.context);

        // Mean tokens of a request, against a sample of ours so large that only the noise of the harness is left.
        let large = draw(run.context, 8000, 9);
        let columns: [fn(&Planned) -> u32; 2] = [|r| r.input, |r| r.output];
        for (value, rate) in columns.into_iter().zip(run.rates) {
            let all = Sorted::new(large.requests.iter().map(|r| f64::from(value(r))).collect());
            let want = rate * 120.0 / all_theirs;
            // The rates are known to 50 tokens a second, and a prompt's template adds up to 10 tokens to what is drawn.
            let rounding = 50.0 * 120.0 / all_theirs + if rate > 10_000.0 { 10.0 } else { 0.0 };
            let tolerance = DEVIATIONS * all.std() / all_theirs.sqrt() + rounding;
            assert!(
                (all.mean() - want).abs() < tolerance,
                "context {}: mean {}, the harness {want} (+- {tolerance})",
                run.context,
                all.mean()
            );
        }
    }
}

#[test]
fn gaps_are_exponential_with_the_rate_asked_for() {
    let schedule = draw(8192, 4000, 3);
    let at: Vec<f64> = schedule.requests.iter().map(|r| r.at.as_secs_f64()).collect();
    let mut gaps: Vec<f64> = at.windows(2).map(|w| w[1] - w[0]).collect();
    gaps.sort_by(f64::total_cmp);
    let n = gaps.len() as f64;
    // Kolmogorov-Smirnov against 1 - exp(-25 x); 1.95 is exceeded once in a thousand.
    let worst = gaps.iter().enumerate().fold(0.0_f64, |worst, (i, gap)| {
        let cdf = 1.0 - (-25.0 * gap).exp();
        worst.max((cdf - i as f64 / n).abs()).max((cdf - (i + 1) as f64 / n).abs())
    });
    assert!(worst * n.sqrt() < 1.95, "KS {}", worst * n.sqrt());
}

#[test]
fn no_request_ever_exceeds_the_context() {
    for context in [100, 600, 1024, 2048, 4096] {
        let schedule = draw(context, 2000, 1);
        let over = schedule.requests.iter().find(|r| r.input + r.output > context - CONTEXT_MARGIN);
        assert_eq!(over, None, "context {context}");
        assert!(schedule.requests.iter().all(|r| r.input > 0 && r.output > 0));
    }
}

#[test]
fn a_clamped_request_keeps_its_minimum_and_the_other_length_pays() {
    assert_eq!(clamp(500, 100, 10, 10, 1000), (500, 100));
    assert_eq!(clamp(3000, 1000, 500, 50, 2000), (1500, 500));
    assert_eq!(clamp(500, 9500, 500, 50, 1000), (500, 500));
    assert_eq!(clamp(9500, 100, 500, 50, 1000), (950, 50));
    assert_eq!(clamp(2500, 200, 500, 50, 270), (250, 20));
}

#[test]
fn the_same_seed_gives_the_same_load_and_another_seed_another() {
    assert_eq!(draw(4096, 60, 42), draw(4096, 60, 42));
    assert_ne!(draw(4096, 60, 42).requests, draw(4096, 60, 43).requests);
}

#[test]
fn nonsense_is_refused_before_the_first_request() {
    let try_draw = |mix: Mix, rate: f64, seconds: u64, context: u32| {
        Schedule::draw(mix, Arrivals::Poisson { rate }, Duration::from_secs(seconds), context, 1).unwrap_err()
    };
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(try_draw(Mix::mixed(), rate, 1, 8192).contains("must be a number above 0"), "{rate}");
    }
    assert!(try_draw(Mix::mixed(), 25.0, 0, 8192).contains("duration is 0"));
    assert!(try_draw(Mix::mixed(), 25.0, 1, 60).contains("smaller than the smallest request"));
    let mut weightless = Mix::mixed();
    for workload in &mut weightless.workloads {
        workload.weight = 0.0;
    }
    assert!(try_draw(weightless, 25.0, 1, 8192).contains("sum to 0"));
    let empty = Mix { name: "own".to_owned(), workloads: Vec::new() };
    assert!(try_draw(empty, 25.0, 1, 8192).contains("no workloads"));
}

#[test]
fn prompts_have_the_shapes_of_the_harness() {
    let model = TokenModel::default();
    let of = |name| prompt::build(&Template::parse(name).unwrap(), 100, &model, 42, 0);
    let chat = of("chat");
    assert!(chat.starts_with("User: ") && chat.ends_with(".\nAssistant:"), "{chat}");
    assert_eq!(chat.len(), "User: ".len() + 400 + 1 + "\nAssistant:".len());
    let rag = of("rag");
    let (context, question) = rag.strip_prefix("Context: ").unwrap().split_once("\n\nQuestion: ").unwrap();
    assert_eq!((context.len(), question.len()), (321, 81));
    let code = of("code");
    let (file, task) = code.strip_prefix("# File context:\n# ").unwrap().split_once("\n\n# Task: ").unwrap();
    assert_eq!((file.len(), task.len()), (281, 122));
}

#[test]
fn two_requests_share_no_prefix_beyond_their_template_and_another_seed_changes_the_words() {
    let model = TokenModel::default();
    let plain = Template::parse("plain").unwrap();
    let words = |seed, id| prompt::build(&plain, 50, &model, seed, id);
    assert_eq!(words(1, 1), words(1, 1));
    assert_ne!(words(1, 1), words(2, 1));
    let mut heads: Vec<String> = (0..1000).map(|id| words(1, id)[..40].to_owned()).collect();
    heads.sort_unstable();
    heads.dedup();
    assert_eq!(heads.len(), 1000);
}

#[test]
fn a_turn_that_would_begin_when_the_load_ends_is_not_sent() {
    let mix = "name = \"m\"\n[[workload]]\nname = \"w\"\noutput = { dist = \"fixed\", tokens = 5 }\nturns = { count = 2, think = 0.5 }\n";
    let mix = Mix::from_toml(mix).unwrap();
    let schedule =
        Schedule::draw(mix, Arrivals::Constant { rate: 2.0 }, Duration::from_secs(10), 4096, 1).unwrap();
    // Nineteen conversations, the last of which begins half a second before the end.
    assert_eq!(schedule.requests.len(), 19 + 18);
}
