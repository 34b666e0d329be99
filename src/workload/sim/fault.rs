//! What can go wrong in the simulated server, and when: `[WHO.]NAME[(ARG)]@PHASE[:N]`. Pure: it says what is due, the
//! process that is hit does it. A scenario file would build the same [`Faults`] from another text.

use super::knobs::{duration, near};
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
    Signal(Sig),
    /// A Python exception with its real log lines.
    Crash(Crash),
    /// The main thread never comes back; the API server goes on saying 200.
    Hang,
    /// SIGTERM has no effect.
    IgnoreTerm,
    /// Everything takes this much longer at that moment.
    Slow(Duration),
    /// An error event inside a stream that began with 200, after this many tokens.
    StreamError(u64),
    /// Half a trace under its temporary name, then SIGKILL.
    Half,
    /// The window is lost, the engine goes on.
    Fail,
    /// The profiler switches itself off, the engine goes on.
    Disable,
    /// A stranger listens on the port and stays this long after the API server is gone.
    Steal(Duration),
    /// A grandchild that leaves session and parents behind, ignores SIGTERM and lives this long.
    Escape(Duration),
}

/// Signals a process may send itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sig {
    Segv,
    Abort,
    Kill,
    Stop,
}

/// Exceptions with known log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crash {
    /// Somebody else's memory is still on the GPU.
    GpuMemory,
    /// A weight file is broken.
    Weights,
    /// No room for the KV cache.
    KvCache,
    /// CUDA out of memory.
    Oom,
    /// An illegal memory access.
    IllegalAccess,
    /// NCCL.
    Nccl,
    /// A CUDA graph cannot be captured.
    Graph,
    /// flashinfer has no compiler.
    Flashinfer,
    /// Triton's assembler is too old.
    Triton,
    /// torch.compile has no compiler.
    Compile,
    /// /dev/shm is too small.
    Shm,
    /// Too many open files.
    Files,
    /// The profiler takes the memory of the host.
    HostMemory,
    /// An index beyond a table.
    Assert,
    /// The model is gated.
    Gated,
    /// There is no such model.
    NotFound,
    /// A setting that the model does not take.
    Config,
    /// A Python module is missing.
    Module,
    /// The tokenizer's files are broken.
    Tokenizer,
    /// The driver is too old.
    Driver,
    /// No GPU is visible.
    NoGpu,
    /// The GPU's memory is broken.
    Ecc,
    /// A worker process is gone. Not a fault by itself: kill a worker.
    Executor,
    /// A worker did not answer. Not a fault by itself: stop a worker.
    RpcTimeout,
}

const CRASHES: [(&str, Crash); 22] = [
    ("gpu-memory", Crash::GpuMemory),
    ("weights", Crash::Weights),
    ("kv-cache", Crash::KvCache),
    ("oom", Crash::Oom),
    ("illegal-access", Crash::IllegalAccess),
    ("nccl", Crash::Nccl),
    ("graph", Crash::Graph),
    ("flashinfer", Crash::Flashinfer),
    ("triton", Crash::Triton),
    ("compile", Crash::Compile),
    ("shm", Crash::Shm),
    ("files", Crash::Files),
    ("host-memory", Crash::HostMemory),
    ("assert", Crash::Assert),
    ("gated", Crash::Gated),
    ("not-found", Crash::NotFound),
    ("config", Crash::Config),
    ("module", Crash::Module),
    ("tokenizer", Crash::Tokenizer),
    ("driver", Crash::Driver),
    ("no-gpu", Crash::NoGpu),
    ("ecc", Crash::Ecc),
];
const FAULTS: [&str; 15] = [
    "exit",
    "segv",
    "abort",
    "kill",
    "stop",
    "crash",
    "hang",
    "ignore-term",
    "slow",
    "stream-error",
    "half",
    "fail",
    "disable",
    "steal",
    "escape",
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

/// One thing that goes wrong once.
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
}

impl Fault {
    /// Reads `[WHO.]NAME[(ARG)]@PHASE[:N]`; the error is a lowercase fragment.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (left, right) = text
            .split_once('@')
            .ok_or_else(|| format!("fault `{text}` has no moment: write NAME@PHASE, as kill@step:50"))?;
        let (phase, n) = right.split_once(':').map_or((right, None), |(phase, n)| (phase, Some(n)));
        let phase = lookup("phase", phase, &PHASES)?;
        let n = match n {
            Some(n) => n.parse().map_err(|_| format!("fault `{text}`: `{n}` is no count"))?,
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
        Ok(Self { who, what, phase, n })
    }
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
        (What::Steal(_) | What::StreamError(_), _) | (_, Phase::Start | Phase::Request | Phase::Stop) => {
            Who::Api
        }
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
    Ok(match name {
        "exit" => What::Exit(
            u8::try_from(count(1)?).map_err(|_| format!("fault `{text}`: an exit code is at most 255"))?,
        ),
        "segv" => What::Signal(Sig::Segv),
        "abort" => What::Signal(Sig::Abort),
        "kill" => What::Signal(Sig::Kill),
        "stop" => What::Signal(Sig::Stop),
        "crash" => What::Crash(lookup("crash", argument.unwrap_or("illegal-access"), &CRASHES)?),
        "hang" => What::Hang,
        "ignore-term" => What::IgnoreTerm,
        "slow" => What::Slow(lasting(5)?),
        "stream-error" => What::StreamError(count(3)?),
        "half" => What::Half,
        "fail" => What::Fail,
        "disable" => What::Disable,
        "steal" => What::Steal(lasting(2)?),
        "escape" => What::Escape(lasting(120)?),
        unknown => return Err(format!("no fault `{unknown}`{}", near(unknown, &FAULTS))),
    })
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
    pub(super) fn due(&self, who: Who, phase: Phase, n: u64) -> impl Iterator<Item = &What> {
        self.0
            .iter()
            .filter(move |fault| fault.who == who && fault.phase == phase && fault.n == n)
            .map(|fault| &fault.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_grammar_is_read() {
        let fault = Fault::parse("kill@step:50").unwrap();
        assert_eq!(
            fault,
            Fault { who: Who::Engine, what: What::Signal(Sig::Kill), phase: Phase::Step, n: 50 }
        );
        let fault = Fault::parse("api.exit(7)@ready").unwrap();
        assert_eq!(fault, Fault { who: Who::Api, what: What::Exit(7), phase: Phase::Ready, n: 1 });
        let fault = Fault::parse("slow(300ms)@window:2").unwrap();
        assert_eq!((fault.who, fault.n), (Who::Worker(0), 2));
        assert_eq!(fault.what, What::Slow(Duration::from_millis(300)));
        assert_eq!(Fault::parse("worker1.segv@step").unwrap().who, Who::Worker(1));
        assert_eq!(Fault::parse("half@window").unwrap().n, 0);
    }

    #[test]
    fn nonsense_is_refused_with_the_near_name() {
        assert_eq!(Fault::parse("kil@step").unwrap_err(), "no fault `kil`: did you mean `kill`?");
        assert_eq!(Fault::parse("kill@setp").unwrap_err(), "no phase `setp`: did you mean `step`?");
        for bad in ["kill", "kill@step:x", "exit(999)@step", "slow(3)@window", "bob.kill@step", "exit(3@step"]
        {
            assert!(Fault::parse(bad).is_err(), "{bad} was accepted");
        }
        for name in FAULTS {
            Fault::parse(&format!("{name}@step")).unwrap();
        }
    }

    #[test]
    fn a_fault_is_due_at_its_count_only() {
        let faults = Faults::new(vec![Fault::parse("hang@step:3").unwrap()]);
        assert_eq!(faults.due(Who::Engine, Phase::Step, 3).count(), 1);
        assert_eq!(faults.due(Who::Engine, Phase::Step, 2).count(), 0);
        assert_eq!(faults.due(Who::Api, Phase::Step, 3).count(), 0);
    }
}
