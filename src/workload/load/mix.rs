//! What is asked of the server: workloads with weights, lengths and a template. Pure, and data rather than code, so that
//! the user's `mixed` is only one of many.

use rand::{Rng, RngExt};
use rand_distr::{Distribution, LogNormal, Normal};
use serde::{Deserialize, Serialize};

/// How a length in tokens is drawn, before clamping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "dist")]
pub enum Shape {
    /// With these *arithmetic* moments, not those of the logarithm.
    Lognormal {
        /// Mean of the tokens.
        mean: f64,
        /// Standard deviation of the tokens.
        std: f64,
    },
    /// The bell curve; what falls outside the bounds is clamped.
    Normal {
        /// Mean of the tokens.
        mean: f64,
        /// Standard deviation of the tokens.
        std: f64,
    },
    /// Every whole number between the bounds.
    Uniform,
    /// Always the same.
    Fixed {
        /// The tokens.
        tokens: u32,
    },
    /// One of these, each as likely.
    Empirical {
        /// The observed lengths.
        tokens: Vec<u32>,
    },
}

/// A length: a shape within bounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Length {
    /// The shape.
    #[serde(flatten)]
    pub shape: Shape,
    /// No shorter than this.
    #[serde(default = "one")]
    pub min: u32,
    /// No longer than this.
    #[serde(default = "a_million")]
    pub max: u32,
}

const fn one() -> u32 {
    1
}

const fn a_million() -> u32 {
    1_000_000
}

impl Length {
    /// Lognormal by arithmetic mean and standard deviation.
    pub const fn lognormal(mean: f64, std: f64, min: u32, max: u32) -> Self {
        Self { shape: Shape::Lognormal { mean, std }, min, max }
    }

    /// Draws one length: shape, then clamp, then truncate, in the order of the user's own sampler.
    pub fn draw(&self, rng: &mut impl Rng) -> u32 {
        let raw = match &self.shape {
            Shape::Lognormal { mean, std } => {
                let variance = (1.0 + (std / mean).powi(2)).ln();
                let mu = mean.ln() - 0.5 * variance;
                LogNormal::new(mu, variance.sqrt()).map_or(*mean, |d| d.sample(rng))
            }
            Shape::Normal { mean, std } => Normal::new(*mean, *std).map_or(*mean, |d| d.sample(rng)),
            Shape::Uniform => f64::from(rng.random_range(self.min..=self.max)),
            Shape::Fixed { tokens } => f64::from(*tokens),
            Shape::Empirical { tokens } => f64::from(tokens[rng.random_range(0..tokens.len())]),
        };
        raw.clamp(f64::from(self.min), f64::from(self.max)) as u32
    }

    /// The arithmetic mean that the shape aims at, for the `config` of a result.
    pub fn nominal_mean(&self) -> f64 {
        match &self.shape {
            Shape::Lognormal { mean, .. } | Shape::Normal { mean, .. } => *mean,
            Shape::Uniform => f64::midpoint(f64::from(self.min), f64::from(self.max)),
            Shape::Fixed { tokens } => f64::from(*tokens),
            Shape::Empirical { tokens } => {
                tokens.iter().map(|t| f64::from(*t)).sum::<f64>() / tokens.len().max(1) as f64
            }
        }
    }

    fn problems(&self, whose: &str, problems: &mut Vec<String>) {
        if self.min == 0 {
            problems.push(format!("{whose}: min is 0, but a request needs at least 1 token"));
        }
        if self.min > self.max {
            problems.push(format!("{whose}: min {} is above max {}", self.min, self.max));
        }
        match &self.shape {
            Shape::Lognormal { mean, std } | Shape::Normal { mean, std } => {
                if !(mean.is_finite() && *mean > 0.0) {
                    problems.push(format!("{whose}: mean {mean} must be a number above 0"));
                }
                if !(std.is_finite() && *std >= 0.0) {
                    problems.push(format!("{whose}: std {std} must be a number of at least 0"));
                }
            }
            Shape::Empirical { tokens } if tokens.is_empty() => {
                problems.push(format!("{whose}: the list of observed lengths is empty"));
            }
            Shape::Uniform | Shape::Fixed { .. } | Shape::Empirical { .. } => {}
        }
    }
}

/// The text around the words of a prompt, as a pattern: `{words}` stands for all of them, `{80%}` for a share and `{rest}`
/// for what a share leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Template {
    pattern: String,
    parts: Vec<Part>,
}

/// A part of a template.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Part {
    /// The bytes of the pattern from here to there.
    Text(usize, usize),
    /// This share of the words.
    Words(f64),
    /// The words that are left.
    Rest,
}

impl Template {
    /// A built-in template by its name, or a pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pattern = match text {
            "chat" => "User: {words}\nAssistant:",
            "rag" => "Context: {80%}\n\nQuestion: {rest}",
            "code" => "# File context:\n# {70%}\n\n# Task: {rest}\n",
            "plain" => "{words}",
            pattern => pattern,
        };
        let (mut parts, mut at, mut share, mut rest) = (Vec::new(), 0, 0.0, 0);
        while let Some(open) = pattern[at..].find('{').map(|i| at + i) {
            let close = pattern[open..].find('}').map(|i| open + i);
            let Some(close) = close else { return Err(format!("template {text:?}: a {{ is not closed")) };
            if open > at {
                parts.push(Part::Text(at, open));
            }
            match &pattern[open + 1..close] {
                "words" | "rest" => {
                    rest += 1;
                    parts.push(Part::Rest);
                }
                other => {
                    let percent = other.strip_suffix('%').and_then(|n| n.parse::<f64>().ok());
                    let Some(percent) = percent.filter(|p| *p > 0.0 && *p <= 100.0) else {
                        return Err(format!(
                            "template {text:?}: {{{other}}} is none of {{words}}, {{rest}} and {{NN%}}"
                        ));
                    };
                    share += percent / 100.0;
                    parts.push(Part::Words(percent / 100.0));
                }
            }
            at = close + 1;
        }
        if at < pattern.len() {
            parts.push(Part::Text(at, pattern.len()));
        }
        if rest > 1 || (rest == 0 && share == 0.0) || share > 1.0 {
            return Err(format!(
                "template {text:?}: it needs {{words}} once, or shares up to 100 % and {{rest}} once"
            ));
        }
        Ok(Self { pattern: pattern.to_owned(), parts })
    }

    /// The parts, in order.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The text of a [`Part::Text`].
    pub fn text(&self, from: usize, to: usize) -> &str {
        &self.pattern[from..to]
    }

    /// The pattern.
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// Characters that are not words.
    pub fn fixed_chars(&self) -> usize {
        self.parts.iter().map(|part| if let Part::Text(from, to) = part { to - from } else { 0 }).sum()
    }
}

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Template> for String {
    fn from(template: Template) -> Self {
        template.pattern
    }
}

/// One prompt of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The text, sent as it is.
    pub prompt: String,
    /// `max_tokens`, if the dataset knows it.
    pub output: Option<u32>,
}

/// A beginning that many prompts of a workload share, as a system prompt does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prefix {
    /// Its length, on top of the input length.
    pub tokens: u32,
    /// How many different ones there are.
    #[serde(default = "one")]
    pub groups: u32,
}

/// Further turns of a conversation. Each turn repeats what was said before; the answers in it are random words of the
/// planned length, so that the load stays the same whatever the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turns {
    /// Requests of a conversation.
    pub count: u32,
    /// Seconds between the sends of two turns.
    pub think: f64,
}

/// Limits of a good request in milliseconds; what is not given does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Goal {
    /// Time to first token.
    #[serde(default)]
    pub ttft: Option<f64>,
    /// Time per output token.
    #[serde(default)]
    pub tpot: Option<f64>,
    /// Send to last token.
    #[serde(default)]
    pub e2el: Option<f64>,
}

/// One kind of request in a mix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its name in every result.
    pub name: String,
    /// Its share, relative to the sum of all weights.
    #[serde(default = "whole")]
    pub weight: f64,
    /// Prompt tokens, without a shared prefix and former turns.
    #[serde(default = "fifty")]
    pub input: Length,
    /// `max_tokens`.
    pub output: Length,
    /// The text around the words.
    #[serde(default = "plain")]
    pub template: Template,
    /// A file of prompts instead of words and template: JSONL, or a JSON array in the layout of ShareGPT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dataset: Option<String>,
    /// Its prompts, once the file is read.
    #[serde(skip)]
    pub examples: Vec<Example>,
    /// A shared beginning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<Prefix>,
    /// Conversations instead of single requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turns: Option<Turns>,
    /// What a request of this workload must keep to be good, where it differs from the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<Goal>,
}

const fn whole() -> f64 {
    1.0
}

const fn fifty() -> Length {
    Length { shape: Shape::Fixed { tokens: 50 }, min: 1, max: 1_000_000 }
}

fn plain() -> Template {
    built_in("{words}")
}

/// The built-in patterns parse; a test holds each of them.
fn built_in(name: &str) -> Template {
    Template::parse(name).unwrap_or(Template { pattern: String::new(), parts: vec![Part::Rest] })
}

impl Workload {
    /// Words in a template, without anything special.
    pub fn simple(name: &str, weight: f64, input: Length, output: Length, template: Template) -> Self {
        Self {
            name: name.to_owned(),
            weight,
            input,
            output,
            template,
            dataset: None,
            examples: Vec::new(),
            prefix: None,
            turns: None,
            slo: None,
        }
    }
}

/// Nobody thinks longer than a day, in seconds.
const LONGEST_THINK: f64 = 86_400.0;

/// A named mix of workloads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mix {
    /// `mixed`, `chat`, ...
    pub name: String,
    /// At least one, with a positive sum of weights.
    #[serde(rename = "workload")]
    pub workloads: Vec<Workload>,
}

impl Mix {
    /// The user's mix: 60 % chat, 30 % retrieval, 10 % code.
    pub fn mixed() -> Self {
        Self { name: "mixed".to_owned(), workloads: vec![chat(0.6), rag(0.3), code(0.1)] }
    }

    /// One of the built-in mixes.
    pub fn named(name: &str) -> Option<Self> {
        let workloads = match name {
            "mixed" => return Some(Self::mixed()),
            "chat" => vec![chat(1.0)],
            "rag" => vec![rag(1.0)],
            "code" => vec![code(1.0)],
            _ => return None,
        };
        Some(Self { name: name.to_owned(), workloads })
    }

    /// Reads a mix from TOML: a `name` and `[[workload]]` tables. Datasets are named in it, not read.
    pub fn from_toml(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    /// Everything that is wrong with it, in one go.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mix = &self.name;
        if self.workloads.is_empty() {
            problems.push(format!("mix {mix}: it has no workloads, so there is nothing to send"));
            return problems;
        }
        for workload in &self.workloads {
            let whose = format!("mix {mix}, workload {}", workload.name);
            if !(workload.weight.is_finite() && workload.weight >= 0.0) {
                problems.push(format!("{whose}: weight {} must be a number of at least 0", workload.weight));
            }
            if workload.dataset.is_some() && workload.examples.is_empty() {
                problems.push(format!("{whose}: its dataset holds no prompt"));
            }
            if let Some(prefix) = &workload.prefix
                && (prefix.tokens == 0 || prefix.groups == 0)
            {
                problems.push(format!("{whose}: a shared prefix needs at least 1 token and 1 group"));
            }
            if let Some(turns) = &workload.turns
                && !(turns.count > 0 && (0.0..=LONGEST_THINK).contains(&turns.think))
            {
                problems
                    .push(format!("{whose}: turns need a count above 0 and a think time of 0 s to a day"));
            }
            if let Some(goal) = &workload.slo {
                for (what, limit) in [("ttft", goal.ttft), ("tpot", goal.tpot), ("e2el", goal.e2el)] {
                    if limit.is_some_and(|ms| !(ms.is_finite() && ms > 0.0 && ms < 1e9)) {
                        problems.push(format!("{whose}: slo {what} must be milliseconds above 0"));
                    }
                }
            }
            workload.input.problems(&format!("{whose}, input"), &mut problems);
            workload.output.problems(&format!("{whose}, output"), &mut problems);
        }
        let sum: f64 = self.workloads.iter().map(|w| w.weight).sum();
        if problems.is_empty() && sum <= 0.0 {
            problems.push(format!("mix {mix}: the weights sum to {sum}; give at least one a weight above 0"));
        }
        let mut names: Vec<&str> = self.workloads.iter().map(|w| w.name.as_str()).collect();
        names.sort_unstable();
        for pair in names.windows(2).filter(|pair| pair[0] == pair[1]) {
            problems.push(format!("mix {mix}: two workloads are named {}", pair[0]));
        }
        problems
    }

    /// Picks a workload by weight.
    pub fn pick(&self, rng: &mut impl Rng) -> usize {
        let sum: f64 = self.workloads.iter().map(|w| w.weight).sum();
        let mut left = rng.random::<f64>() * sum;
        for (index, workload) in self.workloads.iter().enumerate() {
            if left < workload.weight {
                return index;
            }
            left -= workload.weight;
        }
        // Rounding can leave a crumb behind the last one; a workload of weight 0 must still never be drawn.
        self.workloads.iter().rposition(|w| w.weight > 0.0).unwrap_or(0)
    }
}

fn chat(weight: f64) -> Workload {
    let (input, output) = (Length::lognormal(50.0, 30.0, 10, 300), Length::lognormal(150.0, 80.0, 20, 800));
    Workload::simple("chat", weight, input, output, built_in("chat"))
}

fn rag(weight: f64) -> Workload {
    let (input, output) =
        (Length::lognormal(2500.0, 1000.0, 500, 8000), Length::lognormal(200.0, 100.0, 50, 1000));
    Workload::simple("rag", weight, input, output, built_in("rag"))
}

fn code(weight: f64) -> Workload {
    let (input, output) =
        (Length::lognormal(2000.0, 1000.0, 300, 8000), Length::lognormal(500.0, 400.0, 100, 3000));
    Workload::simple("code", weight, input, output, built_in("code"))
}
