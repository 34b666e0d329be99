//! Which line of a log says why. The earliest decisive line wins over the loudest, a line that only follows from something
//! never wins over a cause. Pure.

use super::super::causes::{self, GRACEFUL, HEALTHY, KILLED, UNDETERMINED};
use crate::event::{Confidence, Finding, Gravity};

/// Rules that mark a place in a server's life; none of them is a symptom.
pub const STARTING: &str = "server-starting";
/// The server answers requests.
pub const READY: &str = "server-ready";
const PROFILER_STOPPED: &str = "profiler-stopped";
/// The last line of a traceback, whatever it says.
const EXCEPTION: &str = "exception";
/// Rules of lines that say through which file an exception came.
const FRAME: &str = "frame-";
/// Suspects that live beside a failure without ever being its reason.
const BESIDE: [&str; 5] =
    ["kineto-thread-mismatch", "profiler-404", "profiler-failed", "profiler-flush-stall", "request-failed"];
/// Rules whose lines begin the traceback of whoever failed.
const HEADS: [&str; 4] = ["engine-failed-to-start", "engine-fatal", "worker-exception", "worker-failed"];
/// Words of exceptions that only pass on that another process failed.
const PASSED_ON: [&str; 9] = [
    "EngineDeadError",
    "Engine core initialization failed",
    "WorkerProc initialization failed",
    "Engine process failed to start",
    "Executor failed",
    "Worker failed with error",
    "cancelled",
    "CancelledError",
    "GeneratorExit",
];

/// What a log says about its own failure.
#[derive(Debug, Clone)]
pub struct Reading<'a> {
    /// The class.
    pub cause: String,
    /// The line that shows it.
    pub decisive: Option<&'a Finding>,
    /// How sure.
    pub confidence: Confidence,
    /// Whether a line said that the engine or a worker is lost.
    pub dead: bool,
}

/// Reads the findings of one attempt, or of one start of a server in a log.
pub fn read(findings: &[Finding]) -> Reading<'_> {
    let counts: Vec<&Finding> = findings.iter().filter(|finding| !cancelled(finding, findings)).collect();
    let dead = counts.iter().any(|f| f.gravity == Gravity::Fatal);
    if let Some(root) = root(&counts, dead) {
        let confidence = match root.gravity {
            Gravity::Fatal if is_guess(root) || root.cause == Finding::ENGINE_DEAD => Confidence::Likely,
            Gravity::Fatal => Confidence::Certain,
            _ => Confidence::Likely,
        };
        let cause = if root.cause == Finding::ENGINE_DEAD { KILLED } else { root.cause.as_str() };
        return Reading { cause: cause.to_owned(), decisive: Some(root), confidence, dead };
    }
    if dead {
        return silent(&counts);
    }
    uncaught(&counts).unwrap_or_else(|| harmless(&counts))
}

/// Whether the rule concludes more than its line says.
pub fn is_guess(finding: &Finding) -> bool {
    matches!(finding.rule.as_str(), "worker-sigkill" | "worker-sigbus")
}

/// Whether lines of this cause stand beside a failure without ever being its reason.
pub fn is_beside(cause: &str) -> bool {
    BESIDE.contains(&cause)
}

fn knows(finding: &Finding) -> bool {
    finding.cause != Finding::ENGINE_DEAD && finding.gravity >= Gravity::Suspect
}

/// A flush that ended is no stall, and what a stopped server leaves is no sign of a killing.
fn cancelled(finding: &Finding, all: &[Finding]) -> bool {
    let later = |rule: &str| all.iter().any(|other| other.rule == rule && other.line > finding.line);
    match finding.rule.as_str() {
        "profiler-stopping" => later(PROFILER_STOPPED),
        "profiler-404" => is_only_asked(all),
        "leaked-semaphores" => all.iter().any(|other| other.rule == GRACEFUL),
        _ => false,
    }
}

/// Somebody called the profile API, but not around any work: a look whether it is there, not a recording that is missed.
fn is_only_asked(all: &[Finding]) -> bool {
    let calls =
        |words: &str| all.iter().find(|f| f.rule == "profiler-404" && f.text.contains(words)).map(|f| f.line);
    let (start, stop) = (calls("start_profile"), calls("stop_profile"));
    let stopped_well = all.iter().any(|f| f.rule == GRACEFUL);
    let refused = all.iter().find(|f| f.rule == "request-too-long").map(|f| f.line);
    match (start, stop) {
        (Some(start), Some(stop)) => stopped_well && start < stop && stop - start <= 1,
        (Some(start), None) => stopped_well || refused.is_some_and(|refused| refused < start),
        _ => false,
    }
}

fn root<'a>(counts: &[&'a Finding], dead: bool) -> Option<&'a Finding> {
    let all = || counts.iter().copied().filter(|finding| knows(finding));
    let fatal = all().filter(|finding| finding.gravity == Gravity::Fatal);
    let suspect = all().filter(|finding| {
        finding.gravity == Gravity::Suspect
            && !(dead && is_beside(&finding.cause))
            && !(dead && finding.rule == "module-missing" && is_old_news(finding, counts))
    });
    // Who passes an exception on repeats it; whoever raised it may be read later, for several processes share the log. And
    // the line of code that raises it is shown before it, without the words or with their gaps still open.
    let repeats = |finding: &&Finding| {
        let code = finding.text.contains("raise ")
            && (!finding.text.contains(['"', '\''])
                || ["(f\"", "(f'"].iter().any(|f| finding.text.contains(f)));
        code || finding.text.contains("Worker failed with error '")
    };
    let first = fatal
        .clone()
        .find(|f| !repeats(f))
        .or_else(|| fatal.clone().next())
        .or_else(|| suspect.clone().find(|f| !repeats(f)))?;
    // A cause may be explained by another, and that by a third.
    let mut root = first;
    for _ in 0..4 {
        match all().find(|finding| finding.outranks.contains(&root.cause) && finding.cause != root.cause) {
            Some(deeper) => root = deeper,
            None => break,
        }
    }
    if let Some(gone) = silent_peer(root, counts) {
        return Some(gone);
    }
    // Of several lines of one cause the first that was not merely passed on.
    let own = || all().filter(|f| f.cause == root.cause && f.gravity == root.gravity && !repeats(f));
    own().find(|f| !is_guess(f)).or_else(|| own().next()).or(Some(root))
}

/// A rank complains that its peer is gone, and that peer died without a word: the death explains the complaint.
fn silent_peer<'a>(root: &Finding, counts: &[&'a Finding]) -> Option<&'a Finding> {
    const GONE: [&str; 4] = ["closed by peer", "reset by peer", "remote process exited", "ncclRemoteError"];
    if root.cause != "nccl-error" || !GONE.iter().any(|words| root.text.contains(words)) {
        return None;
    }
    let spoke = |rank: &str| {
        let names = [
            format!("(Worker_TP{rank} "),
            format!("(VllmWorker-{rank} "),
            format!("(VllmWorker rank={rank} "),
        ];
        counts.iter().any(|f| names.iter().any(|name| f.text.contains(name.as_str())))
    };
    counts.iter().copied().find(|f| {
        let rank =
            f.text.split_once("Worker proc ").and_then(|(_, rest)| rest.split(' ').next()).map(|name| {
                name.chars()
                    .rev()
                    .take_while(char::is_ascii_digit)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<String>()
            });
        f.rule == "worker-died" && rank.is_some_and(|rank| !rank.is_empty() && !spoke(&rank))
    })
}

/// Optional modules are looked for in vain long before the engine fails of something else.
fn is_old_news(finding: &Finding, counts: &[&Finding]) -> bool {
    let head = counts.iter().find(|f| HEADS.contains(&f.rule.as_str()) && f.gravity == Gravity::Fatal);
    head.is_some_and(|head| finding.line < head.line)
        && raised(counts).is_some_and(|raised| raised.line > finding.line)
}

/// Somebody is dead and no rule knows why.
fn silent<'a>(counts: &[&'a Finding]) -> Reading<'a> {
    if let Some(raised) = raised(counts) {
        return by_exception(counts, raised);
    }
    // An engine that fails by itself says so in a traceback. One that is gone without a word was ended.
    let spoke =
        counts.iter().any(|f| HEADS.contains(&f.rule.as_str()) && !f.text.contains("initialization failed"));
    let vanished = counts.iter().copied().find(|f| {
        matches!(f.rule.as_str(), "engine-fatal" | "worker-died")
            && (f.text.contains("died") || f.text.contains("exited unexpectedly"))
    });
    let first = counts.iter().copied().find(|f| f.gravity == Gravity::Fatal);
    if let Some(vanished) = vanished.filter(|_| counts.iter().all(|f| !is_trace(f))) {
        return Reading {
            cause: KILLED.to_owned(),
            decisive: Some(vanished),
            confidence: Confidence::Likely,
            dead: true,
        };
    }
    let whole = counts.iter().any(|f| f.rule == STARTING);
    if whole && !spoke && first.is_some_and(|f| f.rule == "engine-failed-to-start") {
        return Reading {
            cause: KILLED.to_owned(),
            decisive: first,
            confidence: Confidence::Weak,
            dead: true,
        };
    }
    Reading { cause: UNDETERMINED.to_owned(), decisive: first, confidence: Confidence::Weak, dead: true }
}

fn is_trace(finding: &Finding) -> bool {
    finding.text.contains("encountered a fatal error")
        || finding.text.contains("EngineCore failed to start")
        || finding.rule == "worker-exception"
}

/// The exception that ends the traceback of the one who failed, not of those who heard of it.
fn raised<'a>(counts: &[&'a Finding]) -> Option<&'a Finding> {
    let own = |f: &&&Finding| f.rule == EXCEPTION && !is_passed_on(f);
    let head = counts.iter().find(|f| HEADS.contains(&f.rule.as_str()) && f.gravity >= Gravity::Suspect)?;
    // The traceback follows its head; an older server prints the exception first.
    counts
        .iter()
        .filter(own)
        .find(|f| f.line > head.line)
        .or_else(|| counts.iter().filter(own).rfind(|f| f.line < head.line))
        .copied()
}

/// No rule knows the exception, but the files it came through say what was being done.
fn by_exception<'a>(counts: &[&'a Finding], raised: &'a Finding) -> Reading<'a> {
    // A traceback is seldom longer.
    const TRACEBACK: u64 = 120;
    let before =
        |f: &&&Finding| f.rule.starts_with(FRAME) && f.line < raised.line && f.line + TRACEBACK > raised.line;
    let hint = counts.iter().rfind(before);
    Reading {
        cause: hint.map_or(UNDETERMINED, |frame| frame.cause.as_str()).to_owned(),
        decisive: Some(raised),
        confidence: Confidence::Weak,
        dead: true,
    }
}

/// A server that never answered and whose last words are a traceback that nobody caught.
fn uncaught<'a>(counts: &[&'a Finding]) -> Option<Reading<'a>> {
    let ready = counts.iter().any(|f| f.rule == READY || f.rule == GRACEFUL);
    let raised =
        counts.iter().filter(|f| f.rule == EXCEPTION && !is_passed_on(f)).rfind(|f| is_raw(&f.text))?;
    let starting = counts.iter().any(|f| f.rule == STARTING);
    let served = counts.iter().any(|f| f.cause == "request-too-long");
    (!ready && (starting || !served)).then(|| by_exception(counts, raised))
}

/// Printed by the interpreter and not by a logger, which puts its level before the text. What stands before both (a process, a
/// container, a time) says nothing.
fn is_raw(text: &str) -> bool {
    let levels = ["ERROR ", "ERROR:", "WARNING ", "INFO ", "CRITICAL ", "DEBUG "];
    let head = text.char_indices().nth(120).map_or(text, |(at, _)| &text[..at]);
    !levels.iter().any(|level| head.contains(level))
}

fn is_passed_on(finding: &Finding) -> bool {
    PASSED_ON.iter().any(|words| finding.text.contains(words))
}

/// Nothing failed. The line that looks worst is the one that somebody will ask about.
fn harmless<'a>(counts: &[&'a Finding]) -> Reading<'a> {
    let of =
        |cause: &str| counts.iter().copied().find(|f| f.cause == cause && f.gravity == Gravity::Harmless);
    let found = |cause: &str, decisive, confidence| Reading {
        cause: cause.to_owned(),
        decisive,
        confidence,
        dead: false,
    };
    let stopped = counts.iter().copied().find(|f| f.rule == GRACEFUL);
    if stopped.is_some() {
        return found(GRACEFUL, stopped, Confidence::Certain);
    }
    if let Some(line) =
        counts.iter().copied().find(|f| f.rule == "request-too-long").or_else(|| of("request-too-long"))
    {
        return found("request-too-long", Some(line), Confidence::Certain);
    }
    if let Some(line) = of("client-disconnect") {
        return found("client-disconnect", Some(line), Confidence::Certain);
    }
    let marks = [STARTING, READY, PROFILER_STOPPED];
    let frightening = |f: &&&Finding| {
        f.cause == HEALTHY && f.gravity == Gravity::Harmless && !marks.contains(&f.rule.as_str())
    };
    let ready = counts.iter().copied().find(|f| f.rule == READY);
    let worst = counts
        .iter()
        .filter(frightening)
        .rfind(|f| f.text.contains("ERROR"))
        .or_else(|| counts.iter().rfind(frightening))
        .copied();
    let confidence = if ready.is_some() { Confidence::Certain } else { Confidence::Weak };
    found(HEALTHY, worst.or(ready), confidence)
}

/// A text without what differs between two failures that are the same.
pub fn same(text: &str) -> String {
    // `(EngineCore_DP0 pid=71) ERROR 11-24 03:00:00 [core.py:946] ` says who and when.
    let text = text.trim_start();
    let text =
        if text.starts_with('(') { text.split_once(") ").map_or(text, |(_, rest)| rest) } else { text };
    let levels = ["ERROR", "WARNING", "INFO", "CRITICAL", "DEBUG"];
    let text = match text.split_once("] ") {
        Some((head, rest)) if levels.iter().any(|level| head.starts_with(level)) => rest,
        _ => text,
    };
    let mut out = String::new();
    let mut number = false;
    for character in text.trim().chars() {
        let digit = character.is_ascii_digit();
        if digit && !number {
            out.push('#');
        }
        number = digit || (number && matches!(character, '.' | ',' | 'x'));
        if !number {
            out.push(character);
        }
        if out.len() >= 160 {
            break;
        }
    }
    out
}

/// Lines that only follow, for the reader who saw them first: without the decisive one, each text once.
pub fn consequences<'a>(findings: &'a [Finding], decisive: Option<&Finding>) -> Vec<&'a Finding> {
    const MOST: usize = 12;
    let mut seen: Vec<String> = Vec::new();
    let mut out = Vec::new();
    for finding in findings {
        let follows = finding.cause == Finding::ENGINE_DEAD && finding.rule != EXCEPTION
            || finding.gravity == Gravity::Consequence
                && finding.rule != EXCEPTION
                && !finding.rule.starts_with(FRAME)
            || finding.gravity >= Gravity::Suspect && causes::of(&finding.cause).name != UNDETERMINED
            || finding.rule == "process-group-leak";
        // What is normal while a server loads stays so when the server fails later.
        let before = finding.gravity <= Gravity::Consequence
            && finding.cause != Finding::ENGINE_DEAD
            && decisive.is_some_and(|d| finding.line < d.line);
        if !follows || before || decisive.is_some_and(|d| d.line == finding.line) {
            continue;
        }
        let text = same(&finding.text);
        if !seen.contains(&text) && out.len() < MOST {
            seen.push(text);
            out.push(finding);
        }
    }
    out
}

#[cfg(test)]
#[path = "lines_tests.rs"]
mod tests;
