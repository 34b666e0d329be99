//! A mix of workloads, a dataset, a trace of requests: what passes the checks can be drawn from, within its bounds and within the
//! server's context, in bounded time and memory.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rand::SeedableRng;
use std::time::Duration;
use varcas_guard::workload::load::arrivals::Arrivals;
use varcas_guard::workload::load::dataset;
use varcas_guard::workload::load::mix::{Mix, Part, Template};
use varcas_guard::workload::load::prompt::{self, TokenModel};
use varcas_guard::workload::load::schedule::{CONTEXT_MARGIN, Schedule};
use varcas_guard_fuzz::hash;

fn template(text: &str) {
    let Ok(template) = Template::parse(text) else { return };
    let mut at = 0;
    let mut share = 0.0;
    for part in template.parts() {
        match *part {
            Part::Text(from, to) => {
                assert!(at <= from && from < to && to <= template.pattern().len());
                template.text(from, to);
                at = to;
            }
            Part::Words(part) => share += part,
            Part::Rest => {}
        }
    }
    assert!(share <= 1.0);
    let built = prompt::build(&template, 20, &TokenModel::default(), 1, 1);
    assert!(built.len() >= template.fixed_chars());
}

fn schedule(mix: Mix, context: u32, seed: u64) {
    let (duration, arrivals) = (Duration::from_secs(1), Arrivals::Constant { rate: 8.0 });
    let (original, room) = (mix.clone(), context.saturating_sub(CONTEXT_MARGIN));
    let Ok(schedule) = Schedule::draw(mix, arrivals, duration, context, seed) else { return };
    assert!(original.problems().is_empty());
    for request in &schedule.requests {
        let workload = &schedule.mix.workloads[usize::from(request.workload)];
        assert!(request.at < duration && workload.weight > 0.0);
        assert!(request.input >= 1 && request.output >= 1);
        let prefix = workload.prefix.map_or(0, |prefix| prefix.tokens);
        let sum = u64::from(request.input) + u64::from(request.output) + u64::from(prefix);
        // The last token of an answer is always asked for.
        assert!(
            sum <= u64::from(room).max(2) + u64::from(request.example.is_some()),
            "{request:?} in {room}"
        );
        assert!(request.group < workload.prefix.map_or(1, |prefix| prefix.groups));
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    template(text);
    if let Ok(mut mix) = Mix::from_toml(text) {
        let text = toml_free(&mix);
        // What was read is what a result file says.
        assert_eq!(
            serde_json::from_str::<Mix>(&text).map(|again| again.workloads.len()).ok(),
            Some(mix.workloads.len())
        );
        // Datasets are files.
        mix.workloads.iter_mut().for_each(|workload| workload.dataset = None);
        if mix.problems().is_empty() {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(hash(data));
            for workload in &mix.workloads {
                for length in [&workload.input, &workload.output] {
                    assert!((length.min..=length.max).contains(&length.draw(&mut rng)), "{length:?}");
                }
                template(workload.template.pattern());
            }
            assert!(mix.workloads[mix.pick(&mut rng)].weight > 0.0);
            for context in [60, 2048, 1 << 17] {
                schedule(mix.clone(), context, hash(data));
            }
        }
    }
    if let Ok(examples) = dataset::parse(text, 4.0) {
        assert!(!examples.is_empty());
        assert!(examples.iter().all(|example| example.output != Some(0)));
    }
    if let Ok(traced) = dataset::parse_trace(text) {
        assert!(traced.windows(2).all(|pair| pair[0].at <= pair[1].at));
        if let Ok(schedule) = Schedule::from_trace(traced, Duration::from_secs(100), 2048) {
            assert!(schedule.requests.iter().all(|request| request.output >= 1));
        }
    }
});

fn toml_free(mix: &Mix) -> String {
    serde_json::to_string(mix).expect("a mix can be written")
}
