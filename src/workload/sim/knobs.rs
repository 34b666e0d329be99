//! The simulator's own settings: `VARCAS_SIM=load=1s,step=10ms,fault=kill@step:50`. Pure: text in, settings out.

use super::fault::{Fault, Faults};
use std::fmt;
use std::time::Duration;

/// Everything `VARCAS_SIM` can say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Knobs {
    /// Time from the start of the engine until it is ready.
    pub(super) load: Duration,
    /// One engine step, which is also the time between two tokens of a sequence.
    pub(super) step: Duration,
    /// What a step takes longer when it starts the prefill of a request.
    pub(super) ttft: Duration,
    /// What a step takes longer per token in it.
    pub(super) per_token: Duration,
    /// What the first request with a temperature takes longer: vLLM compiles its sampler inside the engine loop.
    pub(super) sampled_compile: Duration,
    /// From the death of the engine until the API server gives up. 5 s in vLLM.
    pub(super) watchdog: Duration,
    /// SIGTERM to SIGKILL for the engine. 5 s in vLLM.
    pub(super) engine_grace: Duration,
    /// How long the API server lingers before its end.
    pub(super) shutdown_hang: Duration,
    /// An engine without an API server lives this long. For ever in vLLM; bounded here, so that nothing stays behind.
    pub(super) orphan: Duration,
    /// After how long a silent worker is complained about. 60 s in vLLM.
    pub(super) ring_warning: Duration,
    /// Blocks of the KV cache.
    pub(super) kv_blocks: u64,
    /// Tokens per block.
    pub(super) block_size: u64,
    /// Events in a window's trace.
    pub(super) window_events: u64,
    /// Share of chunks that carry more than one token.
    pub(super) merge: f64,
    /// Share of sequences that end before `max_tokens` unless `ignore_eos` is set.
    pub(super) eos: f64,
    /// Seed of texts, lengths, merges and trace durations.
    pub(super) seed: u64,
    /// The version to claim.
    pub(super) version: String,
    /// The torch version to claim.
    pub(super) torch: String,
    /// What goes wrong.
    pub(super) faults: Faults,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            load: Duration::from_secs(1),
            step: Duration::from_millis(10),
            ttft: Duration::from_millis(20),
            per_token: Duration::ZERO,
            sampled_compile: Duration::from_secs(1),
            watchdog: Duration::from_secs(1),
            engine_grace: Duration::from_secs(5),
            shutdown_hang: Duration::ZERO,
            orphan: Duration::from_secs(900),
            ring_warning: Duration::from_secs(60),
            kv_blocks: 8192,
            block_size: 16,
            window_events: 2000,
            merge: 0.1,
            eos: 0.25,
            seed: 1,
            version: "0.15.1".to_owned(),
            torch: "2.9.1".to_owned(),
            faults: Faults::default(),
        }
    }
}

const NAMES: [&str; 22] = [
    "load",
    "step",
    "itl",
    "ttft",
    "per_token",
    "sampled_compile",
    "watchdog",
    "engine_grace",
    "shutdown_hang",
    "orphan",
    "ring_warning",
    "kv_blocks",
    "block_size",
    "window_events",
    "merge",
    "eos",
    "seed",
    "version",
    "torch",
    "fault",
    "only_attempt",
    "cured_by",
];

/// What is wrong with a setting, as a lowercase fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BadKnob(pub(super) String);

impl fmt::Display for BadKnob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VARCAS_SIM: {}", self.0)
    }
}

impl Knobs {
    /// Reads the comma list. `attempt` is the value of `VARCAS_ATTEMPT`; faults of another attempt are dropped here, so
    /// that nobody else has to know about attempts. `cured_by=NAME` drops them when `has` says that a setting of this name
    /// is in force (`cured_by=!NAME`: that it is not).
    pub(super) fn parse(
        text: &str,
        attempt: Option<u32>,
        has: impl Fn(&str) -> bool,
    ) -> Result<Self, BadKnob> {
        let mut knobs = Self::default();
        let mut faults: Vec<Fault> = Vec::new();
        let mut only_attempt = None;
        let mut cured = false;
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let Some((key, value)) = item.split_once('=') else {
                return Err(BadKnob(format!("`{item}` has no value: write KEY=VALUE")));
            };
            let (key, value) = (key.trim(), value.trim());
            match key {
                "load" => knobs.load = duration(key, value)?,
                "step" | "itl" => knobs.step = duration(key, value)?,
                "ttft" => knobs.ttft = duration(key, value)?,
                "per_token" => knobs.per_token = duration(key, value)?,
                "sampled_compile" => knobs.sampled_compile = duration(key, value)?,
                "watchdog" => knobs.watchdog = duration(key, value)?,
                "engine_grace" => knobs.engine_grace = duration(key, value)?,
                "shutdown_hang" => knobs.shutdown_hang = duration(key, value)?,
                "orphan" => knobs.orphan = duration(key, value)?,
                "ring_warning" => knobs.ring_warning = duration(key, value)?,
                "kv_blocks" => knobs.kv_blocks = positive(key, value)?,
                "block_size" => knobs.block_size = positive(key, value)?,
                "window_events" => knobs.window_events = number(key, value)?,
                "merge" => knobs.merge = share(key, value)?,
                "eos" => knobs.eos = share(key, value)?,
                "seed" => knobs.seed = number(key, value)?,
                "version" => knobs.version = value.to_owned(),
                "torch" => knobs.torch = value.to_owned(),
                "fault" => faults.push(Fault::parse(value).map_err(BadKnob)?),
                "only_attempt" => only_attempt = Some(number::<u32>(key, value)?),
                "cured_by" => {
                    cured |= value.strip_prefix('!').map_or_else(|| has(value), |name| !has(name));
                }
                unknown => return Err(BadKnob(format!("no setting `{unknown}`{}", near(unknown, &NAMES)))),
            }
        }
        for (index, fault) in faults.iter_mut().enumerate() {
            fault.index = index;
        }
        if !cured && only_attempt.is_none_or(|only| Some(only) == attempt) {
            faults.retain(|fault| fault.in_attempt(attempt));
            knobs.faults = Faults::new(faults);
        }
        Ok(knobs)
    }
}

/// What is wrong with a value of `VARCAS_SIM`, as a lowercase fragment.
pub fn check(text: &str) -> Result<(), String> {
    Knobs::parse(text, None, |_| false).map(drop).map_err(|error| error.0)
}

/// ` (did you mean ...)`, or the whole list when nothing is near.
pub(super) fn near(word: &str, names: &[&str]) -> String {
    let best = names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), *name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3);
    match best {
        Some((_, name)) => format!(": did you mean `{name}`?"),
        None => format!(": there are {}", names.join(", ")),
    }
}

/// `2s`, `300ms`, `50us`, `1.5m`, `1h`; a bare number is refused, because nobody can know its unit.
pub(super) fn duration(key: &str, text: &str) -> Result<Duration, BadKnob> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(BadKnob(format!("{key}: `{text}` is no duration: write 300ms, 2s or 5m"))),
    };
    digits
        .parse::<f64>()
        .ok()
        .and_then(|value| Duration::try_from_secs_f64(value * scale).ok())
        .ok_or_else(|| BadKnob(format!("{key}: `{text}` is no duration: write 300ms, 2s or 5m")))
}

fn number<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, BadKnob> {
    text.parse().map_err(|_| BadKnob(format!("{key}: `{text}` is no whole number")))
}

fn positive(key: &str, text: &str) -> Result<u64, BadKnob> {
    match number(key, text)? {
        0 => Err(BadKnob(format!("{key}: must be at least 1"))),
        value => Ok(value),
    }
}

fn share(key: &str, text: &str) -> Result<f64, BadKnob> {
    text.parse::<f64>()
        .ok()
        .filter(|value| (0.0..=1.0).contains(value))
        .ok_or_else(|| BadKnob(format!("{key}: `{text}` is no share between 0 and 1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("load", "300ms").unwrap(), Duration::from_millis(300));
        assert_eq!(duration("load", "1.5m").unwrap(), Duration::from_secs(90));
        for bad in ["3", "", "ms", "-1s", "1..2s", "1d"] {
            assert!(duration("load", bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn an_unknown_setting_is_an_error_that_names_the_near_one() {
        let error = Knobs::parse("sampled_compil=1s", None, |_| false).unwrap_err().to_string();
        assert_eq!(error, "VARCAS_SIM: no setting `sampled_compil`: did you mean `sampled_compile`?");
        let error = Knobs::parse("zzz=1", None, |_| false).unwrap_err().to_string();
        assert!(error.contains("there are load, step"), "{error}");
        assert!(Knobs::parse("load", None, |_| false).is_err());
    }

    #[test]
    fn every_name_of_the_list_is_understood() {
        for name in NAMES {
            let value = match name {
                "fault" => "kill@step:3",
                "cured_by" => "enforce_eager",
                "version" | "torch" => "1.2.3",
                "kv_blocks" | "block_size" | "window_events" | "seed" | "only_attempt" => "7",
                "merge" | "eos" => "0.5",
                _ => "2s",
            };
            let parsed = Knobs::parse(&format!("{name}={value}"), Some(7), |_| false).unwrap();
            assert_ne!(parsed, Knobs { seed: 8, ..Knobs::default() });
            if name != "only_attempt" && name != "cured_by" {
                assert_ne!(parsed, Knobs::default(), "{name} changed nothing");
            }
        }
    }

    #[test]
    fn a_fault_that_a_setting_cures_does_not_exist_with_it() {
        let there =
            |text: &str, set: &str| !Knobs::parse(text, None, |name| name == set).unwrap().faults.is_empty();
        let text = "fault=kill@step:3,cured_by=enforce_eager";
        assert!(there(text, "other") && !there(text, "enforce_eager"));
        let text = "fault=kill@step:3,cured_by=!VARCAS_TRACE_DIR";
        assert!(!there(text, "other") && there(text, "VARCAS_TRACE_DIR"));
    }

    #[test]
    fn a_fault_of_another_attempt_does_not_exist() {
        let text = "fault=kill@step:3,only_attempt=1";
        assert!(!Knobs::parse(text, Some(1), |_| false).unwrap().faults.is_empty());
        assert!(Knobs::parse(text, Some(2), |_| false).unwrap().faults.is_empty());
        assert!(Knobs::parse(text, None, |_| false).unwrap().faults.is_empty());
    }
}
