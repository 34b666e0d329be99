//! From everything an attempt brought to light to what it failed of. Pure: the machine judges while the run goes on, a
//! replay judges again and must say the same, and `varcas-guard diagnose` judges a log that somebody else has left.
//!
//! A source that must know (the kernel's log, an exit status, the engine's own exception) goes before one that infers,
//! and a cause goes before everything that only follows from it.

pub mod lines;

use super::causes::{self, GRACEFUL, HEALTHY, KILLED, UNDETERMINED};
use crate::event::{
    BenchSummary, Check, Clue, Confidence, Ending, EventKind, ExitHow, Finding, Gravity, HangKind, Outcome,
    Phase, ProcId, Quote, Reading, RuledOut, Severity, Suspicion, SuspicionStep, Verdict, WindowEvent,
};
use crate::time::human;
use std::collections::BTreeSet;

/// More lines explain nothing, and a log can be long.
const MAX_FINDINGS: usize = 1000;
/// The name of the log in a verdict.
const LOG: &str = "vllm_server.log";
const ENOSPC: &str = "No space left on device";

/// The end of a process.
#[derive(Debug, Clone, PartialEq)]
struct Death {
    proc: ProcId,
    comm: String,
    how: ExitHow,
    main: bool,
    phase: Phase,
    /// The guard had begun to kill, so it may only follow from that.
    late: bool,
}

/// What is known of one attempt, heard event by event.
#[derive(Debug, Clone, Default)]
pub struct Inquiry {
    findings: Vec<Finding>,
    clues: Vec<Clue>,
    deaths: Vec<Death>,
    struck: BTreeSet<ProcId>,
    suspicion: Option<Suspicion>,
    probe: Option<Option<String>>,
    refused: Vec<Check>,
    warned: Vec<Check>,
    spawn_error: Option<String>,
    stolen: Option<String>,
    bench: Option<Box<BenchSummary>>,
    windows_lost: Vec<String>,
    /// Rank and number of the window that was begun to be written last and is not closed.
    flushing: Option<(u32, u32)>,
    missing: BTreeSet<String>,
}

/// How much a death says of what happened: the least says most. An orderly end mostly follows from another's, and so does an
/// abort (of a rank whose peer is gone).
fn rank(how: ExitHow) -> u8 {
    match how {
        ExitHow::Signal { signal: 4 | 7 | 11, .. } => 0,
        ExitHow::Signal { signal: 1 | 2 | 9 | 15, .. } => 1,
        ExitHow::Signal { .. } => 2,
        ExitHow::Unknown => 3,
        ExitHow::Code { code: 0 } => 5,
        ExitHow::Code { .. } => 4,
    }
}

/// A cause with what speaks for it.
struct Found {
    cause: String,
    confidence: Confidence,
    decisive: Option<Quote>,
}

impl Found {
    fn new(cause: &str, confidence: Confidence, decisive: Option<Quote>) -> Self {
        Self { cause: cause.to_owned(), confidence, decisive }
    }
}

impl Inquiry {
    /// Hears a fact, or a conclusion about a standstill.
    pub fn hear(&mut self, phase: Phase, kind: &EventKind) {
        match kind {
            EventKind::Finding(finding) if self.findings.len() < MAX_FINDINGS => {
                let mut finding = finding.clone();
                // Once the guard has killed, a line about killing tells of that.
                if !self.struck.is_empty() && (finding.cause == KILLED || lines::is_guess(&finding)) {
                    finding.gravity = finding.gravity.min(Gravity::Consequence);
                }
                self.findings.push(finding);
            }
            EventKind::Clue(clue) => self.clues.push(clue.clone()),
            EventKind::ProcessExited { proc, comm, how, main } => {
                let (proc, comm, how, main) = (*proc, comm.clone(), *how, *main);
                if main || comm.starts_with("VLLM") || !matches!(how, ExitHow::Code { .. }) {
                    let late = !self.struck.is_empty();
                    self.deaths.push(Death { proc, comm, how, main, phase, late });
                }
            }
            EventKind::SignalSent { targets, .. } => self.struck.extend(targets),
            EventKind::Suspicion(suspicion) => {
                let cleared = suspicion.step == SuspicionStep::Cleared;
                self.suspicion = (!cleared).then(|| suspicion.clone());
            }
            EventKind::Probed { error, .. } => self.probe = Some(error.clone()),
            EventKind::PreflightFinished { checks, .. } => {
                let of = |severity| checks.iter().filter(move |c| c.severity == severity).cloned().collect();
                self.refused = of(Severity::Refuse);
                self.warned = of(Severity::Warn);
            }
            EventKind::SpawnFailed { error } => self.spawn_error = Some(error.clone()),
            EventKind::PortStolen { holder } => self.stolen = Some(holder.clone()),
            EventKind::LoadFinished { summary } => self.bench = Some(summary.clone()),
            EventKind::Window(line) => match &line.what {
                WindowEvent::Flushing { window } => self.flushing = Some((line.rank, *window)),
                WindowEvent::Closed { window, .. } if self.flushing == Some((line.rank, *window)) => {
                    self.flushing = None;
                }
                WindowEvent::Failed { error, .. } => {
                    self.flushing = None;
                    self.windows_lost.push(error.clone());
                }
                WindowEvent::Disabled { reason } => {
                    self.flushing = None;
                    self.windows_lost.push(reason.clone());
                }
                _ => {}
            },
            EventKind::GpusSampled(Reading::Unavailable { why }) => {
                self.missing.insert(format!("GPUs: {why}"));
            }
            EventKind::EngineSampled(Reading::Unavailable { why }) if phase == Phase::Measuring => {
                self.missing.insert(format!("the server's metrics: {why}"));
            }
            EventKind::DiskSampled { free: Reading::Unavailable { why }, .. } => {
                self.missing.insert(format!("free disk: {why}"));
            }
            EventKind::EvidenceSaved { items } => {
                for item in items.iter().filter(|item| item.file.is_none()) {
                    let why = item.problem.as_deref().unwrap_or("no reason given");
                    self.missing.insert(format!("{}: {why}", item.what));
                }
            }
            _ => {}
        }
    }

    /// Lines that a rule knew, in order.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What the system said.
    pub fn clues(&self) -> &[Clue] {
        &self.clues
    }

    /// The verdict on an attempt that ended like this.
    pub fn verdict(&self, ending: &Ending) -> Verdict {
        let reading = lines::read(&self.findings);
        let found = self.find(&reading, ending);
        let cause = causes::of(&found.cause);
        let mut verdict = self.write(found, &reading, ending.outcome);
        verdict.explanation = format!("{} ({}, during {})", cause.what, ending.outcome, ending.phase);
        verdict.supports.insert(0, ending.reason.clone());
        if cause.name == KILLED && ending.outcome != Outcome::Success {
            verdict.explanation = format!(
                "a process of the server was ended from outside ({}, during {})",
                ending.outcome, ending.phase
            );
        }
        if verdict.decisive.is_none() {
            verdict.fingerprint = format!("{}: {} during {}", verdict.cause, ending.outcome, ending.phase);
        }
        verdict
    }

    /// The verdict on a log alone.
    pub fn of_log(&self) -> Verdict {
        let reading = lines::read(&self.findings);
        let outcome = outcome_of_log(&reading, &self.findings);
        let found = Found::new(&reading.cause, reading.confidence, reading.decisive.map(quote));
        let cause = causes::of(&found.cause);
        let unready = reading.cause == HEALTHY && !self.has(lines::READY);
        let mut verdict = self.write(found, &reading, outcome);
        verdict.explanation = cause.what.to_owned();
        if unready && self.has(lines::STARTING) {
            verdict.explanation.push_str(
                "; it ends before the server was ready: it still starts, or was killed without a word",
            );
        }
        verdict.missing.push("everything but the log: exit status, kernel log, GPU".to_owned());
        verdict
    }

    fn has(&self, rule: &str) -> bool {
        self.findings.iter().any(|finding| finding.rule == rule)
    }

    /// Whoever must know best is asked first.
    fn find(&self, log: &lines::Reading<'_>, ending: &Ending) -> Found {
        let by_log = |confidence| Found::new(&log.cause, confidence, log.decisive.map(quote));
        if ending.outcome == Outcome::GuardFault {
            return Found::new("guard-fault", Confidence::Certain, None);
        }
        if ending.outcome == Outcome::Refused {
            return self.refusal();
        }
        if let Some(holder) = &self.stolen {
            return Found::new("port-in-use", Confidence::Certain, Some(said("/proc/net/tcp", holder)));
        }
        let signalled = self.clues.iter().find(|c| !c.inferred && c.proc.is_some());
        let kernel =
            signalled.or_else(|| self.clues.iter().find(|c| !c.inferred && c.cause == "xid-gpu-lost"));
        if let Some(clue) = kernel {
            let agrees = clue.cause == log.cause;
            // A process that aborts or dies of what it has just reported is no riddle.
            let known =
                log.dead && log.decisive.is_some_and(|f| f.gravity == Gravity::Fatal && !peer(&f.cause));
            if agrees || !known || clue.cause == "host-oom" || clue.cause == "xid-gpu-lost" {
                let decisive = log.decisive.filter(|_| agrees).map_or_else(|| told(clue), quote);
                return Found::new(&clue.cause, Confidence::Certain, Some(decisive));
            }
        }
        let named = log.decisive.filter(|f| f.gravity == Gravity::Fatal && f.cause != Finding::ENGINE_DEAD);
        let inferred = self.clues.iter().find(|c| c.inferred && c.proc.is_some());
        if let Some(finding) = named {
            match inferred {
                Some(clue) if peer(&finding.cause) || lines::is_guess(finding) => {
                    return Found::new(&clue.cause, Confidence::Likely, Some(told(clue)));
                }
                _ => return by_log(log.confidence),
            }
        }
        if ending.outcome == Outcome::Hang {
            return self.hang(log);
        }
        if let Some(clue) = inferred {
            return Found::new(&clue.cause, Confidence::Likely, Some(told(clue)));
        }
        // A line that only makes suspicious explains a death, and nothing if nobody died.
        let died = log.dead || self.unprovoked().next().is_some();
        let known = causes::of(&log.cause).outcome != Outcome::Success
            && ![UNDETERMINED, KILLED].contains(&log.cause.as_str())
            && !lines::is_beside(&log.cause);
        if known && died {
            return by_log(log.confidence);
        }
        if let Some(found) = self.by_words(ending) {
            return found;
        }
        // Processes that die within a moment are seen in any order.
        if let Some(death) = self.unprovoked().min_by_key(|death| rank(death.how))
            && let Some(found) = self.death(death, log)
        {
            return found;
        }
        if ending.outcome == Outcome::StartupFailure && self.unprovoked().next().is_none() && !log.dead {
            return Found::new("startup-timeout", Confidence::Certain, None);
        }
        if ending.outcome == Outcome::Degraded {
            return self.degraded(log);
        }
        // Something failed, whatever the log thinks of itself.
        match causes::of(&log.cause).outcome {
            Outcome::Success => Found::new(UNDETERMINED, Confidence::Weak, None),
            _ => by_log(Confidence::Weak),
        }
    }

    /// Deaths that nobody of ours brought about. What a process said before it died is often read before its status is, and
    /// then it dies while the attempt is being ended already.
    fn unprovoked(&self) -> impl Iterator<Item = &Death> {
        self.deaths.iter().filter(|death| {
            !self.struck.contains(&death.proc) && (death.phase != Phase::Draining || !death.late)
        })
    }

    fn refusal(&self) -> Found {
        let Some(check) = self.refused.first() else {
            return Found::new(UNDETERMINED, Confidence::Weak, None);
        };
        let cause = match check.check.as_str() {
            "port" => "port-in-use",
            "gpu" => "leftover-gpu-memory",
            "disk" => "disk-full",
            "model" => "model-not-found",
            "vllm" | "command" => "python-dependency-error",
            _ => UNDETERMINED,
        };
        Found::new(cause, Confidence::Certain, Some(said("preflight", &check.saw)))
    }

    fn hang(&self, log: &lines::Reading<'_>) -> Found {
        let cause = match self.suspicion.as_ref().map(|suspicion| suspicion.kind) {
            Some(HangKind::ProfilerFlush) => "profiler-flush-stall",
            Some(HangKind::DriverDead) => "driver-hang",
            Some(HangKind::Client) => "client-stall",
            // It stopped growing, so it looks like any other standstill; but the engine is inside it.
            _ if self.flushing.is_some() => "profiler-flush-stall",
            _ => "engine-hang",
        };
        let line = log.decisive.filter(|finding| finding.cause == cause).map(quote);
        let seen = self.suspicion.as_ref().map(|suspicion| said("signs of life", &suspicion.facts()));
        let sure =
            if line.is_some() || self.suspicion.as_ref().is_some_and(|s| s.kind != HangKind::Undetermined) {
                Confidence::Certain
            } else {
                Confidence::Likely
            };
        Found::new(cause, sure, line.or(seen))
    }

    /// What the system said in words of its own.
    fn by_words(&self, ending: &Ending) -> Option<Found> {
        let disk = self.windows_lost.iter().find(|error| error.contains(ENOSPC));
        if let Some(error) = disk
            && ending.outcome == Outcome::Degraded
        {
            return Some(Found::new("disk-full", Confidence::Certain, Some(said("windows.jsonl", error))));
        }
        let error = self.spawn_error.as_ref().filter(|_| self.unprovoked().next().is_none())?;
        let cause = [(ENOSPC, "disk-full"), ("Too many open files", "too-many-open-files")]
            .iter()
            .find(|(words, _)| error.contains(words))
            .map_or(UNDETERMINED, |(_, cause)| cause);
        Some(Found::new(cause, Confidence::Likely, Some(said("the system", error))))
    }

    fn death(&self, death: &Death, log: &lines::Reading<'_>) -> Option<Found> {
        let words = format!("{} ({}) ended with {}", death.comm, death.proc, death.how);
        let found =
            |cause: &str, confidence| Some(Found::new(cause, confidence, Some(said("exit status", &words))));
        match death.how {
            ExitHow::Signal { signal: 11, .. } => found("segfault", Confidence::Certain),
            ExitHow::Signal { signal: 7, .. } => found("shm-exhausted", Confidence::Likely),
            ExitHow::Signal { signal: 4, .. } => found("unsupported-hardware", Confidence::Likely),
            ExitHow::Signal { signal: 1 | 2 | 9 | 15, .. } => found(KILLED, Confidence::Likely),
            // Stopped in good order, and nobody of ours had asked for it.
            ExitHow::Code { code: 0 } if death.main && log.cause == GRACEFUL => {
                Some(Found::new(KILLED, Confidence::Likely, log.decisive.map(quote)))
            }
            // Vanished: it was not our child, so nobody told how.
            ExitHow::Unknown if log.cause == KILLED => {
                Some(Found::new(KILLED, Confidence::Likely, log.decisive.map(quote)))
            }
            // A status of its own rules out that somebody else ended it. That of the first process says nothing when the log
            // says that it only followed its engine.
            ExitHow::Signal { .. } | ExitHow::Code { .. }
                if log.cause == KILLED && !(death.main && log.dead) =>
            {
                found(UNDETERMINED, Confidence::Weak)
            }
            _ => None,
        }
    }

    fn degraded(&self, log: &lines::Reading<'_>) -> Found {
        let bench = self.bench.as_deref();
        let lost = bench.map_or(0, |bench| bench.progress.failed + bench.cancelled);
        let too_long = self.findings.iter().find(|finding| finding.cause == "request-too-long");
        if let Some(line) = too_long.filter(|_| lost > 0 || bench.is_none()) {
            return Found::new("request-too-long", Confidence::Certain, Some(quote(line)));
        }
        let known = causes::of(&log.cause).outcome != Outcome::Success && log.cause != UNDETERMINED;
        if known && lost > 0 && !lines::is_beside(&log.cause) {
            return Found::new(&log.cause, log.confidence, log.decisive.map(quote));
        }
        if lost > 0 || bench.is_none_or(|bench| !bench.is_complete) {
            let worst = bench.and_then(|b| b.errors.iter().max_by_key(|(_, count)| **count));
            let words = worst.map(|(class, count)| said("benchmark", &format!("{count} requests: {class}")));
            return Found::new("request-failed", Confidence::Likely, words);
        }
        Found::new(
            "traces-missing",
            Confidence::Certain,
            self.windows_lost.first().map(|e| said("windows.jsonl", e)),
        )
    }

    /// Everything beside the cause.
    fn write(&self, found: Found, log: &lines::Reading<'_>, outcome: Outcome) -> Verdict {
        let cause = causes::of(&found.cause);
        let decisive =
            log.decisive.filter(|f| found.decisive.as_ref().is_some_and(|d| d.line == Some(f.line)));
        let text = found.decisive.as_ref().map_or("", |quote| quote.text.as_str());
        let retry = match found.cause.as_str() {
            // A GPU that reports a fault of its own stays so; a kernel that failed for unknown reasons may not.
            "xid-gpu-lost" if text.contains("Xid") || text.contains("ECC") => crate::event::Retry::No,
            // A port taken at random, not the server's own: the next try takes another.
            "port-in-use" if text.contains("EADDRINUSE") || !text.contains('(') => crate::event::Retry::Yes,
            _ => cause.retry,
        };
        // Circumstances are worded by what could be read of them; that it was killed, and who, is the same all the same.
        let whom = found.decisive.as_ref().filter(|quote| found.cause == KILLED && quote.source != LOG);
        let print = whom
            .and_then(|quote| quote.text.split(' ').next())
            .map_or_else(|| lines::same(text), str::to_owned);
        let mut verdict = Verdict {
            cause: found.cause.clone(),
            outcome,
            confidence: found.confidence,
            explanation: cause.what.to_owned(),
            advice: cause.advice.to_owned(),
            fingerprint: format!("{}: {}", found.cause, print),
            decisive: found.decisive,
            consequences: lines::consequences(&self.findings, decisive).into_iter().map(quote).collect(),
            supports: Vec::new(),
            contradicts: Vec::new(),
            ruled_out: Vec::new(),
            missing: self.missing.iter().cloned().collect(),
            references: vec![cause.reference.to_owned()],
            retry,
        };
        self.witnesses(&mut verdict, log);
        verdict
    }

    fn witnesses(&self, verdict: &mut Verdict, log: &lines::Reading<'_>) {
        for clue in &self.clues {
            let words =
                format!("{}{}: {}", clue.source, if clue.inferred { " (inferred)" } else { "" }, clue.text);
            if clue.cause == verdict.cause {
                verdict.supports.push(words);
            } else if clue.cause != KILLED {
                verdict.contradicts.push(words);
            }
        }
        for death in self.unprovoked() {
            verdict.supports.push(format!("{} ({}) ended with {}", death.comm, death.proc, death.how));
        }
        if let Some(suspicion) = self.suspicion.as_ref().filter(|_| verdict.outcome == Outcome::Hang) {
            verdict.supports.push(suspicion.facts());
            if let Some(probe) = &self.probe {
                verdict.supports.push(match probe {
                    Some(error) => format!("a request for one token failed: {error}"),
                    None => "a request for one token was answered all the same".to_owned(),
                });
            }
            verdict.supports.push(format!("it was borne for {}", human(suspicion.patience)));
        }
        for check in &self.warned {
            verdict.supports.push(format!("the preflight had warned: {}", check.saw));
        }
        let mut seen = vec![verdict.cause.clone(), log.cause.clone()];
        for finding in &self.findings {
            let known = causes::of(&finding.cause).name != UNDETERMINED;
            if finding.gravity < Gravity::Suspect || !known || seen.contains(&finding.cause) {
                continue;
            }
            seen.push(finding.cause.clone());
            let why = if verdict
                .decisive
                .as_ref()
                .is_some_and(|d| d.line.is_some_and(|line| line < finding.line))
            {
                format!("line {} comes after the cause", finding.line)
            } else {
                format!("line {} alone ends no server, or is explained by the cause", finding.line)
            };
            verdict.ruled_out.push(RuledOut { cause: finding.cause.clone(), why });
        }
        if log.cause != verdict.cause && causes::of(&log.cause).outcome != Outcome::Success {
            let why = "another source knows better than the log".to_owned();
            verdict.ruled_out.push(RuledOut { cause: log.cause.clone(), why });
        }
        if verdict.cause != "host-oom"
            && self.unprovoked().any(|d| matches!(d.how, ExitHow::Signal { signal: 9, .. }))
        {
            let why = "neither the kernel nor the control group counted a kill for want of memory".to_owned();
            verdict.ruled_out.push(RuledOut { cause: "host-oom".to_owned(), why });
        }
    }
}

/// What a rank that lost its peer says.
fn peer(cause: &str) -> bool {
    matches!(cause, "nccl-error" | "nccl-timeout" | "engine-hang" | Finding::ENGINE_DEAD)
}

fn outcome_of_log(reading: &lines::Reading<'_>, findings: &[Finding]) -> Outcome {
    let cause = causes::of(&reading.cause);
    // Who is refused memory says so and ends by itself; who is killed for it does not.
    let refused = reading.decisive.is_some_and(|finding| finding.rule == "host-alloc");
    if cause.fixed && !refused || cause.outcome == Outcome::Success {
        return cause.outcome;
    }
    let said = |words: &str| findings.iter().any(|finding| finding.text.contains(words));
    let decisive = reading.decisive.map_or(0, |finding| finding.line);
    let ready = findings.iter().any(|f| f.rule == lines::READY && f.line < decisive);
    let never = ["failed to start", "initialization failed", "Timed out waiting for engine"];
    let later = ["encountered a fatal error", "EngineDeadError", "output_handler failed", "is already dead"];
    if ready {
        // What stops the start of a server loses only requests of one that runs.
        return match cause.outcome {
            _ if reading.dead => Outcome::Crash,
            Outcome::StartupFailure => Outcome::Degraded,
            other => other,
        };
    }
    if never.iter().any(|words| said(words)) {
        return Outcome::StartupFailure;
    }
    if later.iter().any(|words| said(words)) {
        return Outcome::Crash;
    }
    if findings.iter().any(|f| f.rule == lines::STARTING) && reading.dead {
        return Outcome::StartupFailure;
    }
    // A disk that is full at an unknown moment and a line that ended the process.
    if cause.outcome == Outcome::Degraded && reading.decisive.is_some_and(|f| f.gravity == Gravity::Fatal) {
        return Outcome::StartupFailure;
    }
    cause.outcome
}

fn quote(finding: &Finding) -> Quote {
    Quote { source: LOG.to_owned(), line: Some(finding.line), text: finding.text.trim_end().to_owned() }
}

fn told(clue: &Clue) -> Quote {
    said(&clue.source, &clue.text)
}

fn said(source: &str, text: &str) -> Quote {
    Quote { source: source.to_owned(), line: None, text: text.to_owned() }
}

#[cfg(test)]
#[path = "verdict/tests.rs"]
mod tests;
