//! `scenario.toml`: what goes wrong, when, in which process, and what must come of it.

use crate::config::settings::suggestion;
use crate::health::gpu_script::GpuStep;
use crate::time::Jump;
use crate::workload::sim;
use serde::Deserialize;
use std::time::Duration;
use toml::Spanned;

/// The scenarios that come with varcas-guard, by file.
pub(super) const SHIPPED: &[(&str, &str)] = &[
    ("deaths.toml", include_str!("scenarios/deaths.toml")),
    ("hangs.toml", include_str!("scenarios/hangs.toml")),
    ("gpu.toml", include_str!("scenarios/gpu.toml")),
    ("processes.toml", include_str!("scenarios/processes.toml")),
    ("log.toml", include_str!("scenarios/log.toml")),
    ("http.toml", include_str!("scenarios/http.toml")),
    ("machine.toml", include_str!("scenarios/machine.toml")),
    ("profiler.toml", include_str!("scenarios/profiler.toml")),
    ("cures.toml", include_str!("scenarios/cures.toml")),
];

/// One scenario.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Scenario {
    /// Unique, in kebab case.
    pub(super) name: Spanned<String>,
    /// One sentence.
    pub(super) about: String,
    /// What goes wrong, in the order in which it does.
    #[serde(default)]
    pub(super) fault: Vec<Fault>,
    /// Further settings of the simulator, as in `VARCAS_SIM`.
    #[serde(default)]
    pub(super) sim: String,
    /// The server's arguments.
    #[serde(default = "server_arguments")]
    pub(super) server: Vec<String>,
    /// Settings as in guard.toml.
    #[serde(default)]
    pub(super) guard: toml::Table,
    /// All of `patience`, except for a flush.
    #[serde(default)]
    pub(super) patience: Option<String>,
    /// What is there before the run begins.
    #[serde(default)]
    pub(super) before: Option<Before>,
    /// What the GPU says.
    #[serde(default)]
    pub(super) gpu: Vec<GpuStep>,
    /// What the wall clock of the guard does.
    #[serde(default)]
    pub(super) clock: Vec<ClockJump>,
    /// What must come of it.
    pub(super) expect: Expect,
}

pub(super) fn server_arguments() -> Vec<String> {
    vec!["--max-model-len".to_owned(), "160".to_owned()]
}

/// One fault.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Fault {
    /// Its name, with its argument in parentheses if it has one.
    pub(super) what: Spanned<String>,
    /// api, engine, worker0, ...; left out: whom it usually hits.
    #[serde(default)]
    pub(super) who: Option<String>,
    /// start, loading, ready, step, request, window or stop.
    pub(super) at: String,
    /// At the n-th step, request or window.
    #[serde(default)]
    pub(super) n: Option<u64>,
    /// At every later one too.
    #[serde(default)]
    pub(super) onward: bool,
    /// `"2"` or `"1-3"`; left out: every attempt.
    #[serde(default)]
    pub(super) attempts: Option<String>,
    /// For `say`: the example line of this rule.
    #[serde(default)]
    pub(super) rule: Option<String>,
    /// For `say`: this text.
    #[serde(default)]
    pub(super) text: Option<String>,
}

/// What is there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Before {
    /// Somebody listens on the port.
    PortHeld,
    /// Somebody has bound it and does not listen.
    PortBound,
    /// Somebody listens on it who would share it.
    PortShared,
    /// When a first fault has struck, somebody listens on the port together with the server.
    StrangerJoins,
    /// Something that the guard cannot know of and the drill must find: a process without the run's mark, and a file.
    Leak,
    /// The run folder cannot be written to.
    FolderIsAFile,
}

/// A jump of the wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClockJump {
    /// So long after the guard began.
    pub(super) after: jiff::SignedDuration,
    /// Forward, or back.
    pub(super) by: jiff::SignedDuration,
}

impl ClockJump {
    /// As the guard takes it.
    pub(super) fn jump(self) -> Jump {
        Jump { after: Duration::try_from(self.after).unwrap_or_default(), by: self.by }
    }
}

/// What must come of it. What is left out is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Expect {
    /// The guard's exit code.
    #[serde(default)]
    pub(super) exit: Option<i32>,
    /// Or the signal that ended it.
    #[serde(default)]
    pub(super) signal: Option<i32>,
    /// How many attempts there were.
    #[serde(default)]
    pub(super) attempts: Option<usize>,
    /// The cause of each failed attempt, in order.
    #[serde(default)]
    pub(super) causes: Option<Vec<String>>,
    /// As what the first standstill was acted upon.
    #[serde(default)]
    pub(super) hang: Option<String>,
    /// The fatal rules whose lines were noticed first, attempt by attempt.
    #[serde(default)]
    pub(super) rules: Option<Vec<String>>,
    /// Settings that were changed in the end.
    #[serde(default)]
    pub(super) changed: Option<Vec<String>>,
    /// Traces that were saved out of halves.
    #[serde(default)]
    pub(super) saved: Option<usize>,
    /// What the guard says was left: process, port, file, gpu-memory.
    #[serde(default)]
    pub(super) left: Option<Vec<String>>,
}

impl Expect {
    /// Whether nothing may be killed: one attempt, and a good one.
    pub(super) fn is_healthy(&self) -> bool {
        self.exit == Some(0) && self.attempts == Some(1)
    }
}

impl Scenario {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.name.as_ref()
    }

    /// The value of `VARCAS_SIM`; `say` makes a file of a text and gives its path.
    pub(super) fn simulator(&self, mut say: impl FnMut(usize, &Fault) -> String) -> String {
        let mut words = vec![FAST.to_owned()];
        words.extend((!self.sim.is_empty()).then(|| self.sim.clone()));
        for (index, fault) in self.fault.iter().enumerate() {
            let what = if fault.what.as_ref() == "say" {
                format!("say({})", say(index, fault))
            } else {
                fault.what.as_ref().clone()
            };
            words.push(format!("fault={}", fault.words(&what)));
        }
        words.join(",")
    }
}

/// A server in no need of much time.
const FAST: &str =
    "load=50ms,step=2ms,ttft=2ms,sampled_compile=10ms,window_events=50,watchdog=200ms,engine_grace=1s";

impl Fault {
    fn words(&self, what: &str) -> String {
        let who = self.who.as_ref().map_or(String::new(), |who| format!("{who}."));
        let n = self.n.map_or(String::new(), |n| format!(":{n}{}", if self.onward { "+" } else { "" }));
        let attempts = self.attempts.as_ref().map_or(String::new(), |attempts| format!("#{attempts}"));
        format!("{who}{what}@{}{n}{attempts}", self.at)
    }

    fn problem(&self) -> Option<String> {
        let what: &str = self.what.as_ref();
        let says = what == "say";
        if says != (self.rule.is_some() || self.text.is_some()) || self.rule.is_some() && self.text.is_some()
        {
            return Some("`say` needs a `rule` or a `text`, and nothing else has one".to_owned());
        }
        if self.onward && self.n.is_none() {
            return Some("`onward` needs an `n` from which on".to_owned());
        }
        if what.contains(',') {
            return Some(format!("`{what}` has a comma: one fault a table"));
        }
        let words = self.words(if says { "say(x)" } else { what });
        sim::check(&format!("fault={words}")).err()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    scenario: Vec<Scenario>,
}

/// Reads a file of scenarios. Every mistake is `NAME:LINE: what is wrong`.
pub(super) fn read(name: &str, text: &str) -> Result<Vec<Scenario>, Vec<String>> {
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1;
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        vec![format!("{name}:{}: {}", line(at), error.message().replace('\n', "; "))]
    })?;
    let mut problems = Vec::new();
    let mut problem = |at: usize, what: String| problems.push(format!("{name}:{}: {what}", line(at)));
    if file.scenario.is_empty() {
        problem(0, "there is no [[scenario]] in it".to_owned());
    }
    for (index, scenario) in file.scenario.iter().enumerate() {
        let at = scenario.name.span().start;
        let known = |name: &str| file.scenario[..index].iter().any(|earlier| earlier.name() == name);
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if scenario.name().is_empty() || scenario.name().len() > 40 || !scenario.name().chars().all(plain) {
            problem(
                at,
                format!("`{}` is no name: small letters, digits and hyphens, at most 40", scenario.name()),
            );
        } else if known(scenario.name()) {
            problem(at, format!("`{}` is here twice", scenario.name()));
        }
        if scenario.expect.exit.is_some() == scenario.expect.signal.is_some() {
            problem(at, format!("`{}` must expect an `exit` or a `signal`", scenario.name()));
        }
        if let Err(what) = sim::check(&scenario.sim) {
            problem(at, format!("`{}`, sim: {what}", scenario.name()));
        }
        if let Some(key) = super::config::not_for_scenarios(&scenario.guard) {
            problem(at, format!("`{}`, guard: `{key}` belongs to the drill", scenario.name()));
        }
        for fault in &scenario.fault {
            if let Some(what) = fault.problem() {
                problem(fault.what.span().start, what);
            }
        }
    }
    if problems.is_empty() { Ok(file.scenario) } else { Err(problems) }
}

/// All that come with varcas-guard, without those made of the log rules.
pub(super) fn shipped() -> Vec<Scenario> {
    let read = |(name, text): &(&str, &str)| {
        // The tests read them all.
        read(name, text).unwrap_or_else(|problems| panic!("{}", problems.join("\n")))
    };
    SHIPPED.iter().flat_map(read).collect()
}

/// Those named, in the order of `all`; the error is a lowercase fragment.
pub(super) fn choose(all: Vec<Scenario>, only: &[String]) -> Result<Vec<Scenario>, String> {
    let names: Vec<&str> = all.iter().map(Scenario::name).collect();
    for wanted in only {
        if !names.iter().any(|name| matches(name, wanted)) {
            let hint = match suggestion(wanted, &names) {
                none if none.is_empty() => "; `varcas-guard drill --list` names them all".to_owned(),
                hint => hint,
            };
            return Err(format!("no scenario is called `{wanted}`{hint}"));
        }
    }
    let chosen =
        |scenario: &Scenario| only.is_empty() || only.iter().any(|wanted| matches(scenario.name(), wanted));
    Ok(all.into_iter().filter(chosen).collect())
}

/// `metrics-*` stands for all that begin so.
fn matches(name: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "[[scenario]]\nname = \"a\"\nabout = \"b\"\nexpect = { exit = 0 }\n";

    fn problems(text: &str) -> Vec<String> {
        read("s.toml", text).unwrap_err()
    }

    #[test]
    fn the_shipped_scenarios_are_sound_and_their_names_unique() {
        let mut names: Vec<String> = shipped().iter().map(|scenario| scenario.name().to_owned()).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(count >= 60, "{count}");
    }

    #[test]
    fn every_cause_that_is_expected_exists() {
        for scenario in shipped() {
            for cause in scenario.expect.causes.iter().flatten().flat_map(|one| one.split('|')) {
                let known = crate::recovery::causes::ALL.iter().any(|known| known.name == cause);
                assert!(known, "{}: {cause}", scenario.name());
            }
        }
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        assert!(read("s.toml", ONE).is_ok());
        let unknown = problems(&ONE.replace("about", "abuot"));
        assert!(unknown[0].starts_with("s.toml:3: unknown field `abuot`, expected one of"), "{unknown:?}");
        let unknown = problems(&ONE.replace("exit", "exti"));
        assert!(unknown[0].starts_with("s.toml:4: unknown field `exti`"), "{unknown:?}");
        let fault = problems(&format!("{ONE}[[scenario.fault]]\nwhat = \"kil\"\nat = \"step\"\n"));
        assert_eq!(fault, ["s.toml:6: no fault `kil`: did you mean `kill`?"]);
        let never =
            problems(&format!("{ONE}[[scenario.fault]]\nwhat = \"kill\"\nwho = \"api\"\nat = \"step\"\n"));
        assert!(never[0].contains("would never happen there"), "{never:?}");
        let twice = problems(&format!("{ONE}{ONE}"));
        assert_eq!(twice, ["s.toml:6: `a` is here twice"]);
        assert_eq!(problems(""), ["s.toml:1: there is no [[scenario]] in it"]);
        let nothing = problems(&ONE.replace("exit = 0", ""));
        assert_eq!(nothing, ["s.toml:2: `a` must expect an `exit` or a `signal`"]);
        let port = problems(&format!("{ONE}guard.server.port = 80\n"));
        assert_eq!(port, ["s.toml:2: `a`, guard: `server.port` belongs to the drill"]);
        assert!(problems(&format!("{ONE}sim = \"lod=1s\"\n"))[0].contains("did you mean `load`?"));
        assert!(problems(&format!("{ONE}[[scenario.gpu]]\nutl = 3\n"))[0].contains("unknown field `utl`"));
        assert!(problems("x = = 1")[0].starts_with("s.toml:1: "));
    }

    #[test]
    fn a_fault_becomes_the_words_of_the_simulator() {
        let text = format!(
            "{ONE}[[scenario.fault]]\nwhat = \"cut(3)\"\nat = \"request\"\nn = 5\nonward = true\nattempts = \"1-2\"\n\
             [[scenario.fault]]\nwhat = \"say\"\nat = \"step\"\ntext = \"x\"\n"
        );
        let scenarios = read("s.toml", &text).unwrap();
        let words = scenarios[0].simulator(|index, _| format!("/t/{index}"));
        assert!(words.ends_with("fault=cut(3)@request:5+#1-2,fault=say(/t/1)@step"), "{words}");
        assert_eq!(sim::check(&words), Ok(()));
    }

    #[test]
    fn names_are_chosen_and_an_unknown_one_gets_the_near_one() {
        let all = || read("s.toml", &format!("{ONE}{}", ONE.replace("\"a\"", "\"metrics-slow\""))).unwrap();
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            choose(all(), &only).map(|list| list.iter().map(|s| s.name().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["a", "metrics-slow"]);
        assert_eq!(names(&["metrics-*"]).unwrap(), ["metrics-slow"]);
        let error = names(&["metrics-slo"]).unwrap_err();
        assert_eq!(error, "no scenario is called `metrics-slo`; did you mean `metrics-slow`?");
        assert!(names(&["zzzzzzzzzz"]).unwrap_err().contains("--list"));
    }
}
