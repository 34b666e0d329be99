//! From the plan to a load: reads the mix, its datasets and the trace, and finds every mistake before a server is asked. An
//! edge.

use super::arrivals::Arrivals;
use super::dataset::{self, Traced};
use super::mix::{Mix, Workload};
use super::prompt::CHARS_PER_TOKEN;
use super::schedule::Schedule;
use super::spec::{Limits, Load, Target};
use super::tally::Slo;
use crate::config::{LoadPlan, Process};
use std::path::Path;

/// What is asked and when, with every file read.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// What is asked.
    pub mix: Mix,
    arrivals: Arrivals,
    trace: Option<Vec<Traced>>,
    plan: LoadPlan,
}

/// A mistake, and the line of guard.toml it stands in, if it stands there.
pub type Problem = (Option<usize>, String);

/// Every mistake in the plan of a load; what the configuration asks before anything is started.
pub fn check(plan: &LoadPlan) -> Vec<Problem> {
    Recipe::read(plan).err().unwrap_or_default()
}

impl Recipe {
    /// Reads what the plan names. Every mistake is found in one go.
    pub fn read(plan: &LoadPlan) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut note = |result: Result<Mix, Vec<Problem>>| result.map_err(|p| problems.extend(p)).ok();
        let arrivals = arrivals(plan);
        let (mix, trace) = match &plan.trace {
            Some(path) => {
                let trace = read(path).and_then(|text| {
                    dataset::parse_trace(&text).map_err(|e| format!("{}: {e}", path.display()))
                });
                // The name is all that is needed of it: a trace brings its own workloads.
                let mix = note(trace.as_ref().map(|_| Mix::mixed()).map_err(|e| vec![(None, e.clone())]));
                (mix, trace.ok())
            }
            None => (note(read_mix(plan)), None),
        };
        if let Some(mix) = mix.as_ref().filter(|_| plan.trace.is_none()) {
            problems.extend(mix.problems().into_iter().map(|problem| (None, problem)));
        }
        problems.extend(arrivals.problems().into_iter().map(|problem| (None, problem)));
        if plan.duration.is_zero() {
            problems.push((None, "a duration of 0: there would be nothing to send".to_owned()));
        }
        if !(plan.temperature.is_finite() && plan.temperature >= 0.0) {
            let problem = format!("temperature {}: it must be a number of at least 0", plan.temperature);
            problems.push((None, problem));
        }
        match mix {
            Some(mix) if problems.is_empty() => Ok(Self { mix, arrivals, trace, plan: plan.clone() }),
            _ => Err(problems),
        }
    }

    /// The same at another rate; a ramp keeps its shape.
    #[must_use]
    pub fn at_rate(&self, rate: f64) -> Self {
        let to_rate = self.plan.to_rate * rate / self.plan.rate;
        let plan = LoadPlan { rate, to_rate, ..self.plan.clone() };
        Self { arrivals: arrivals(&plan), plan, ..self.clone() }
    }

    /// Draws the load for a server: the shape from `seed`, the words from `word_seed`.
    pub fn load(&self, target: &Target, seed: u64, word_seed: u64) -> Result<Load, String> {
        let plan = &self.plan;
        let context = target.max_model_len;
        let schedule = match &self.trace {
            Some(trace) => Schedule::from_trace(trace.clone(), plan.duration, context)?,
            None => Schedule::draw(self.mix.clone(), self.arrivals.clone(), plan.duration, context, seed)?,
        };
        Ok(Load {
            api: plan.endpoint.into(),
            limits: Limits { total: plan.request_timeout, idle: plan.idle_timeout },
            drain: plan.drain,
            max_concurrency: plan.max_concurrency,
            slo: Slo { ttft: plan.slo_ttft, tpot: plan.slo_tpot, e2el: plan.slo_e2el },
            ignore_eos: plan.ignore_eos,
            temperature: plan.temperature,
            ..Load::new(schedule, seed, word_seed)
        })
    }
}

fn arrivals(plan: &LoadPlan) -> Arrivals {
    let rate = plan.rate;
    match plan.arrivals {
        Process::Poisson => Arrivals::Poisson { rate },
        Process::Constant => Arrivals::Constant { rate },
        Process::Gamma => Arrivals::Gamma { rate, burstiness: plan.burstiness },
        Process::Hawkes => Arrivals::Hawkes { rate, branching: plan.branching, decay: plan.decay },
        Process::Cyclic => {
            Arrivals::Cyclic { rate, amplitude: plan.amplitude, period: plan.period.as_secs_f64() }
        }
        Process::Ramp => Arrivals::Ramp { from: rate, to: plan.to_rate },
        Process::Closed => Arrivals::Closed { streams: plan.streams },
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("read {}: {e}", path.display()))
}

fn read_mix(plan: &LoadPlan) -> Result<Mix, Vec<Problem>> {
    let mut problems = Vec::new();
    let (mut mix, folder) = if plan.workloads.is_empty() {
        if let Some(mix) = Mix::named(&plan.mix) {
            return Ok(mix);
        }
        let path = Path::new(&plan.mix);
        if !path.exists() {
            let problem = format!(
                "mix {}: neither a file nor one of the built-in mixes mixed, chat, rag and code",
                plan.mix
            );
            return Err(vec![(None, problem)]);
        }
        let mix = read(path)
            .and_then(|text| Mix::from_toml(&text).map_err(|e| format!("{}: {e}", path.display())))
            .map_err(|problem| vec![(None, problem)])?;
        (mix, path.parent().unwrap_or(Path::new(".")))
    } else {
        let mut workloads = Vec::new();
        for own in &plan.workloads {
            match serde_json::from_value::<Workload>(own.table.clone()) {
                Ok(workload) => workloads.push(workload),
                Err(error) => problems.push((Some(own.line), format!("`load.workload`: {error}"))),
            }
        }
        (Mix { name: "guard.toml".to_owned(), workloads }, Path::new("."))
    };
    for workload in &mut mix.workloads {
        let Some(name) = &workload.dataset else { continue };
        let data = folder.join(name);
        let examples = read(&data).and_then(|text| {
            dataset::parse(&text, CHARS_PER_TOKEN).map_err(|e| format!("{}: {e}", data.display()))
        });
        match examples {
            Ok(examples) => workload.examples = examples,
            Err(problem) => problems.push((None, problem)),
        }
    }
    if problems.is_empty() { Ok(mix) } else { Err(problems) }
}
