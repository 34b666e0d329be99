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
    pub min: u32,
    /// No longer than this.
    pub max: u32,
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

/// The text around the words of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Template {
    /// `User: {words}\nAssistant:`
    Chat,
    /// `Context: {80%}\n\nQuestion: {rest}`
    Rag,
    /// `# File context:\n# {70%}\n\n# Task: {rest}\n`
    Code,
    /// Nothing but the words.
    Plain,
}

/// One kind of request in a mix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Its name in every result.
    pub name: String,
    /// Its share, relative to the sum of all weights.
    pub weight: f64,
    /// Prompt tokens.
    pub input: Length,
    /// `max_tokens`.
    pub output: Length,
    /// The text around the words.
    pub template: Template,
}

/// A named mix of workloads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// `mixed`, `chat`, ...
    pub name: String,
    /// At least one, with a positive sum of weights.
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
    Workload {
        name: "chat".to_owned(),
        weight,
        input: Length::lognormal(50.0, 30.0, 10, 300),
        output: Length::lognormal(150.0, 80.0, 20, 800),
        template: Template::Chat,
    }
}

fn rag(weight: f64) -> Workload {
    Workload {
        name: "rag".to_owned(),
        weight,
        input: Length::lognormal(2500.0, 1000.0, 500, 8000),
        output: Length::lognormal(200.0, 100.0, 50, 1000),
        template: Template::Rag,
    }
}

fn code(weight: f64) -> Workload {
    Workload {
        name: "code".to_owned(),
        weight,
        input: Length::lognormal(2000.0, 1000.0, 300, 8000),
        output: Length::lognormal(500.0, 400.0, 100, 3000),
        template: Template::Code,
    }
}
