//! What can go wrong in the simulated server, and when: `[WHO.]NAME[(ARG)]@PHASE[:N[+]][#ATTEMPT[-ATTEMPT]]`. Pure: it says
//! what is due, the process that is hit does it. The scenarios of `varcas-guard drill` are put into these words.

use super::crash::CRASHES;
pub(super) use super::crash::Crash;
use super::knobs::{duration, near};
use crate::event::signal_name;
use std::path::PathBuf;
use std::time::Duration;

/// A process of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The launched process.
    Api,
    /// `VLLM::EngineCore`.
    Engine,
    /// `VLLM::Worker_TPn`; with one rank the engine is also worker 0.
    Worker(u32),
}

/// The moment. Each is counted from 1 by the process that lives through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Before anything else.
    Start,
    /// In the middle of loading the model.
    Loading,
    /// When the server has become ready.
    Ready,
    /// Before the N-th engine step.
    Step,
    /// At the N-th generation request.
    Request,
    /// While window N is written; windows count from 0.
    Window,
    /// When SIGTERM arrives.
    Stop,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The process ends with this code, without a word.
    Exit(u8),
    /// It sends itself this signal.
    Signal(i32),
    /// A Python exception with its real log lines.
    Crash(Crash),
    /// The main thread never comes back; the API server goes on saying 200.
    Hang,
    /// The main thread works for ever and gets nowhere.
    Spin,
    /// The main thread sleeps as only the kernel can wake it.
    Asleep,
    /// SIGTERM has no effect.
    IgnoreTerm,
    /// Everything takes this much longer at that moment.
    Slow(Duration),
    /// An error event inside a stream that began with 200, after this many tokens.
    StreamError(u64),
    /// The connection breaks in the middle of a stream, after this many tokens.
    Cut(u64),
    /// Nothing more comes in a stream after this many tokens, and it does not end.
    Stall(u64),
    /// A stream goes on for ever.
    NeverEnds,
    /// Half a trace under its temporary name, then SIGKILL.
    Half,
    /// The window is lost, the engine goes on.
    Fail,
    /// The profiler switches itself off, the engine goes on.
    Disable,
    /// The window takes this much longer to write, and its file grows all the time.
    Grow(Duration),
    /// The window is written to a device that is full.
    Full,
    /// A stranger listens on the port and stays this long after the API server is gone.
    Steal(Duration),
    /// A grandchild that leaves session and parents behind, ignores SIGTERM and lives this long.
    Escape(Duration),
    /// Children that end at once and are never waited for.
    Zombies(u64),
    /// A tree of children, three by each, this many levels deep, all deaf to SIGTERM.
    Bomb(u64),
    /// So many processes that start a successor and end, over and over.
    Chain(u64),
    /// So many MiB are taken and never given back, within a second or two.
    Leak(u64),
    /// The lines of this file go into the log.
    Say(PathBuf),
    /// So many MiB of lines go into the log.
    Flood(u64),
    /// This process writes nothing into the log any more.
    Silence,
    /// The log is cut to nothing.
    TruncateLog,
    /// The log is renamed, and this process goes on in a new one.
    RotateLog,
    /// From now on `/health` says something else than it should.
    Health(Lie),
    /// From now on `/metrics` does.
    Metrics(Lie),
    /// The guard gets this signal.
    Guard(i32),
    /// The keeper does.
    Keeper(i32),
}

/// How an endpoint may lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lie {
    /// Not at all.
    Truth,
    /// With this status.
    Status(u16),
    /// It takes two seconds.
    Slow,
    /// The connection is taken and never answered.
    Silent,
    /// Bytes without a meaning.
    Garbage,
    /// The answer and 12 MiB more.
    Huge,
    /// The same answer again and again.
    Frozen,
    /// Every counter begins at 0 again, once.
    Reset,
}

const FAULTS: [&str; 36] = [
    "exit",
    "signal",
    "segv",
    "abort",
    "kill",
    "stop",
    "crash",
    "hang",
    "spin",
    "asleep",
    "ignore-term",
    "slow",
    "stream-error",
    "cut",
    "stall",
    "never-ends",
    "half",
    "fail",
    "disable",
    "grow",
    "full",
    "steal",
    "escape",
    "zombies",
    "bomb",
    "chain",
    "leak",
    "say",
    "flood",
    "silence",
    "truncate-log",
    "rotate-log",
    "health",
    "metrics",
    "guard",
    "keeper",
];
const LIES: [(&str, Lie); 10] = [
    ("truth", Lie::Truth),
    ("200", Lie::Status(200)),
    ("404", Lie::Status(404)),
    ("503", Lie::Status(503)),
    ("slow", Lie::Slow),
    ("silent", Lie::Silent),
    ("garbage", Lie::Garbage),
    ("huge", Lie::Huge),
    ("frozen", Lie::Frozen),
    ("reset", Lie::Reset),
];
const PHASES: [(&str, Phase); 7] = [
    ("start", Phase::Start),
    ("loading", Phase::Loading),
    ("ready", Phase::Ready),
    ("step", Phase::Step),
    ("request", Phase::Request),
    ("window", Phase::Window),
    ("stop", Phase::Stop),
];

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Whom it hits.
    pub(super) who: Who,
    /// What happens to it.
    pub(super) what: What,
    /// When.
    pub(super) phase: Phase,
    /// At which count of that moment.
    pub(super) n: u64,
    /// At every later count too.
    pub(super) onward: bool,
    /// The first and the last attempt in which it happens; none for all.
    pub(super) attempts: Option<(u32, u32)>,
    /// As it was asked for.
    pub(super) text: String,
    /// Its place among all that were asked for.
    pub(super) index: usize,
}

impl Fault {
    /// Reads `[WHO.]NAME[(ARG)]@PHASE[:N[+]][#A[-B]]`; the error is a lowercase fragment.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // A path is the only argument that may hold one of these signs, and none after its last parenthesis.
        let (left, right) = text
            .rsplit_once('@')
            .ok_or_else(|| format!("fault `{text}` has no moment: write NAME@PHASE, as kill@step:50"))?;
        let (right, attempts) = match right.split_once('#') {
            Some((right, attempts)) => (right, Some(range(text, attempts)?)),
            None => (right, None),
        };
        let (phase, n) = right.split_once(':').map_or((right, None), |(phase, n)| (phase, Some(n)));
        let phase = lookup("phase", phase, &PHASES)?;
        let onward = n.is_some_and(|n| n.ends_with('+'));
        let n = match n {
            Some(n) => {
                n.trim_end_matches('+').parse().map_err(|_| format!("fault `{text}`: `{n}` is no count"))?
            }
            None if phase == Phase::Window => 0,
            None => 1,
        };
        let (call, argument) = match left.split_once('(') {
            Some((call, rest)) => {
                let argument = rest.strip_suffix(')').ok_or_else(|| format!("fault `{text}` lacks a `)`"))?;
                (call, Some(argument))
            }
            None => (left, None),
        };
        let (who, name) = call.split_once('.').map_or((None, call), |(who, name)| (Some(who), name));
        let what = what(text, name, argument)?;
        let who = match who {
            Some(who) => process(who)?,
            None => default_victim(&what, phase),
        };
        fits(text, who, &what, phase)?;
        Ok(Self { who, what, phase, n, onward, attempts, text: text.to_owned(), index: 0 })
    }

    /// Whether it belongs to an attempt; `None` is a server without one.
    pub(super) fn in_attempt(&self, attempt: Option<u32>) -> bool {
        match (self.attempts, attempt) {
            (None, _) => true,
            (Some((first, last)), Some(attempt)) => (first..=last).contains(&attempt),
            (Some(_), None) => false,
        }
    }
}

fn range(text: &str, attempts: &str) -> Result<(u32, u32), String> {
    let (first, last) = attempts.split_once('-').unwrap_or((attempts, attempts));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 0 < first && first <= last => Ok((first, last)),
        _ => Err(format!("fault `{text}`: `{attempts}` names no attempts: write #2 or #1-3")),
    }
}

/// A fault that its process never lives to see would be no fault at all.
fn fits(text: &str, who: Who, what: &What, phase: Phase) -> Result<(), String> {
    let phases: &[Phase] = match what {
        What::StreamError(_) | What::Cut(_) | What::Stall(_) | What::NeverEnds => &[Phase::Request],
        What::Half | What::Fail | What::Disable | What::Grow(_) | What::Full => &[Phase::Window],
        What::Steal(_) => &[Phase::Start, Phase::Ready],
        What::IgnoreTerm => &[Phase::Stop],
        _ => match who {
            Who::Api => &[Phase::Start, Phase::Loading, Phase::Ready, Phase::Request, Phase::Stop],
            Who::Engine => &[Phase::Start, Phase::Loading, Phase::Ready, Phase::Step],
            Who::Worker(_) => &[Phase::Loading, Phase::Step, Phase::Window],
        },
    };
    let only_api = matches!(
        what,
        What::StreamError(_)
            | What::Cut(_)
            | What::Stall(_)
            | What::NeverEnds
            | What::Steal(_)
            | What::Health(_)
            | What::Metrics(_)
            | What::Guard(_)
            | What::Keeper(_)
    );
    if only_api && who != Who::Api {
        return Err(format!("fault `{text}`: only the api can do that"));
    }
    if phase == Phase::Window
        && !matches!(who, Who::Worker(_))
            | !matches!(
                what,
                What::Half
                    | What::Fail
                    | What::Disable
                    | What::Grow(_)
                    | What::Full
                    | What::Slow(_)
                    | What::Hang
                    | What::Signal(_)
            )
    {
        return Err(format!(
            "fault `{text}`: a window can only be slow, hang, half, fail, disable, grow, full or a signal of its worker"
        ));
    }
    if !phases.contains(&phase) {
        let names = phases.iter().filter_map(|wanted| PHASES.iter().find(|(_, phase)| phase == wanted));
        let names: Vec<&str> = names.map(|(name, _)| *name).collect();
        return Err(format!("fault `{text}` would never happen there: it can at {}", names.join(", ")));
    }
    Ok(())
}

fn process(name: &str) -> Result<Who, String> {
    match name {
        "api" => Ok(Who::Api),
        "engine" => Ok(Who::Engine),
        _ => name
            .strip_prefix("worker")
            .and_then(|rank| rank.parse().ok())
            .map(Who::Worker)
            .ok_or_else(|| format!("no process `{name}`: there are api, engine, worker0, worker1, ...")),
    }
}

fn default_victim(what: &What, phase: Phase) -> Who {
    match (what, phase) {
        (What::Steal(_) | What::Health(_) | What::Metrics(_) | What::Guard(_) | What::Keeper(_), _)
        | (_, Phase::Start | Phase::Request | Phase::Stop) => Who::Api,
        (_, Phase::Window) => Who::Worker(0),
        _ => Who::Engine,
    }
}

fn what(text: &str, name: &str, argument: Option<&str>) -> Result<What, String> {
    let lasting = |default: u64| match argument {
        Some(argument) => duration(name, argument).map_err(|error| error.0),
        None => Ok(Duration::from_secs(default)),
    };
    let count = |default: u64| match argument {
        Some(argument) => argument.parse().map_err(|_| format!("fault `{text}`: `{argument}` is no number")),
        None => Ok(default),
    };
    let lie = || match argument {
        Some(argument) => lookup("answer", argument, &LIES),
        None => Err(format!("fault `{text}` says nothing: write {name}(503), {name}(silent), ...")),
    };
    let signal = || signal_number(argument.unwrap_or("TERM"));
    Ok(match name {
        "exit" => What::Exit(
            u8::try_from(count(1)?).map_err(|_| format!("fault `{text}`: an exit code is at most 255"))?,
        ),
        "signal" => What::Signal(signal()?),
        "segv" => What::Signal(SIGSEGV),
        "abort" => What::Signal(SIGABRT),
        "kill" => What::Signal(SIGKILL),
        "stop" => What::Signal(SIGSTOP),
        "crash" => What::Crash(lookup("crash", argument.unwrap_or("illegal-access"), &CRASHES)?),
        "hang" => What::Hang,
        "spin" => What::Spin,
        "asleep" => What::Asleep,
        "ignore-term" => What::IgnoreTerm,
        "slow" => What::Slow(lasting(5)?),
        "stream-error" => What::StreamError(count(3)?),
        "cut" => What::Cut(count(3)?),
        "stall" => What::Stall(count(3)?),
        "never-ends" => What::NeverEnds,
        "half" => What::Half,
        "fail" => What::Fail,
        "disable" => What::Disable,
        "grow" => What::Grow(lasting(5)?),
        "full" => What::Full,
        "steal" => What::Steal(lasting(2)?),
        "escape" => What::Escape(lasting(120)?),
        "zombies" => What::Zombies(count(100)?.min(2000)),
        "bomb" => What::Bomb(count(4)?.min(5)),
        "chain" => What::Chain(count(3)?.min(50)),
        "leak" => What::Leak(count(100)?.min(4096)),
        "say" => What::Say(PathBuf::from(
            argument.ok_or_else(|| format!("fault `{text}` says nothing: write say(FILE)"))?,
        )),
        "flood" => What::Flood(count(20)?.min(1024)),
        "silence" => What::Silence,
        "truncate-log" => What::TruncateLog,
        "rotate-log" => What::RotateLog,
        "health" => What::Health(lie()?),
        "metrics" => What::Metrics(lie()?),
        "guard" => What::Guard(signal()?),
        "keeper" => What::Keeper(signal()?),
        unknown => return Err(format!("no fault `{unknown}`{}", near(unknown, &FAULTS))),
    })
}

/// From signal(7); a pure file does not name libc.
const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGSEGV: i32 = 11;
const SIGSTOP: i32 = 19;

/// `KILL`, `SIGKILL` or 9.
fn signal_number(text: &str) -> Result<i32, String> {
    let wanted = text.trim_start_matches("SIG");
    (1..=31)
        .find(|number| {
            number.to_string() == wanted || signal_name(*number).trim_start_matches("SIG") == wanted
        })
        .ok_or_else(|| format!("no signal `{text}`: write TERM, KILL, BUS, ... or a number from 1 to 31"))
}

fn lookup<T: Copy>(kind: &str, name: &str, table: &[(&str, T)]) -> Result<T, String> {
    let found = table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(known, _)| *known).collect();
        format!("no {kind} `{name}`{}", near(name, &names))
    })
}

/// All faults of one run of the simulator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    /// In the order in which they are asked for.
    pub(super) fn new(faults: Vec<Fault>) -> Self {
        Self(faults)
    }

    /// Whether nothing goes wrong.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What hits `who` at the `n`-th `phase`.
    pub(super) fn due(&self, who: Who, phase: Phase, n: u64) -> impl Iterator<Item = &Fault> {
        self.0.iter().filter(move |fault| {
            let now = fault.n == n || fault.onward && fault.n <= n;
            fault.who == who && fault.phase == phase && now
        })
    }

    /// Whether it hits `who` then.
    pub(super) fn is_due(&self, who: Who, phase: Phase, n: u64, what: &What) -> bool {
        self.due(who, phase, n).any(|fault| fault.what == *what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (Who, What, Phase, u64) {
        let fault = Fault::parse(text).unwrap();
        (fault.who, fault.what, fault.phase, fault.n)
    }

    #[test]
    fn the_whole_grammar_is_read() {
        assert_eq!(parts("kill@step:50"), (Who::Engine, What::Signal(9), Phase::Step, 50));
        assert_eq!(parts("api.exit(7)@ready"), (Who::Api, What::Exit(7), Phase::Ready, 1));
        let slow = What::Slow(Duration::from_millis(300));
        assert_eq!(parts("slow(300ms)@window:2"), (Who::Worker(0), slow, Phase::Window, 2));
        assert_eq!(Fault::parse("worker1.segv@step").unwrap().who, Who::Worker(1));
        assert_eq!(Fault::parse("half@window").unwrap().n, 0);
        assert_eq!(parts("signal(BUS)@step").1, What::Signal(7));
        assert_eq!(parts("api.signal(SIGPIPE)@ready").1, What::Signal(13));
        assert_eq!(parts("say(/tmp/a#b@c.txt)@step:3").1, What::Say(PathBuf::from("/tmp/a#b@c.txt")));
        assert_eq!(parts("metrics(garbage)@request:5").1, What::Metrics(Lie::Garbage));
        let fault = Fault::parse("cut(2)@request:5+#1-2").unwrap();
        assert!(fault.onward && fault.in_attempt(Some(2)) && !fault.in_attempt(Some(3)));
        assert!(!fault.in_attempt(None), "a server without a number is in no attempt");
    }

    #[test]
    fn nonsense_is_refused_with_the_near_name() {
        assert_eq!(Fault::parse("kil@step").unwrap_err(), "no fault `kil`: did you mean `kill`?");
        assert_eq!(Fault::parse("kill@setp").unwrap_err(), "no phase `setp`: did you mean `step`?");
        for bad in [
            "kill",
            "kill@step:x",
            "exit(999)@step",
            "slow(3)@window",
            "bob.kill@step",
            "exit(3@step",
            "kill@step#0",
            "kill@step#2-1",
            "signal(NONE)@step",
            "health@ready",
            "say@step",
        ] {
            assert!(Fault::parse(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn what_can_never_happen_is_refused() {
        for never in
            ["api.kill@step", "engine.kill@request", "half@step", "engine.cut@request", "flood@window"]
        {
            assert!(Fault::parse(never).is_err(), "{never} was accepted");
        }
        let error = Fault::parse("api.kill@step").unwrap_err();
        assert!(error.ends_with("it can at start, loading, ready, request, stop"), "{error}");
    }

    #[test]
    fn every_fault_of_the_list_is_understood_somewhere() {
        for name in FAULTS {
            let call = match name {
                "say" | "health" | "metrics" => format!("{name}(503)"),
                _ => name.to_owned(),
            };
            let somewhere = PHASES.iter().any(|(phase, _)| Fault::parse(&format!("{call}@{phase}")).is_ok());
            assert!(somewhere, "{name}");
        }
    }

    #[test]
    fn a_fault_is_due_at_its_count_only_or_from_then_on() {
        let faults = Faults::new(vec![Fault::parse("hang@step:3").unwrap()]);
        assert_eq!(faults.due(Who::Engine, Phase::Step, 3).count(), 1);
        assert_eq!(faults.due(Who::Engine, Phase::Step, 2).count(), 0);
        assert_eq!(faults.due(Who::Engine, Phase::Step, 4).count(), 0);
        assert_eq!(faults.due(Who::Api, Phase::Step, 3).count(), 0);
        let faults = Faults::new(vec![Fault::parse("slow(1ms)@step:3+").unwrap()]);
        assert_eq!(faults.due(Who::Engine, Phase::Step, 400).count(), 1);
        assert_eq!(faults.due(Who::Engine, Phase::Step, 2).count(), 0);
    }
}
