//! `varcas-guard diagnose`: what a vLLM server log failed of, whoever ran the server, or what a run of ours did.

use crate::cut_log::{self, Cut, Part};
use crate::error::{Context, ExitCode, Failure};
use crate::event::{Confidence, Ending, Event, EventKind, Finding, Outcome, Phase, Quote, Retry, Verdict};
use crate::health::log_rules::{Rules, plain};
use crate::health::log_starts::{Start, Starts};
use crate::recovery::causes;
use crate::recovery::verdict::Inquiry;
use crate::supervisor::journal;
use crate::supervisor::layout::RunDir;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExit;

/// Read at once.
const PIECE: usize = 1 << 20;
/// Nothing lies beside it.
const STDIN: &str = "/dev/stdin";
/// Lines shown around the decisive one.
const AROUND: usize = 3;
/// So much of a log is read to show them.
const NEAR: u64 = 64 << 10;
/// A shown line is cut to this many characters.
const WIDTH: usize = 160;
/// The decisive one is worth more room.
const DECISIVE_WIDTH: usize = 600;

/// Say what a vLLM server log, or a run of varcas-guard, failed of.
///
/// A log may come from any vLLM (0.6 to 0.32) on any machine, be of any size, have colours, and hold several starts of the
/// server: the last one that says something decides, the others are listed. A run folder is judged by its journal, which
/// also knows exit statuses, the kernel's log and the GPU.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 a verdict was given, whatever it is; 2 there is no such log or run. With \
    --exit-code also 1: the verdict is a failure."
)]
pub struct Args {
    /// A server log, a run folder, or - for standard input
    #[arg(value_name = "LOG|RUN_DIR|-")]
    source: PathBuf,
    /// Print one JSON object: cause, outcome, retry, mitigation, decisive_line, line_number, consequences, confidence,
    /// explanation, references and more
    #[arg(long)]
    json: bool,
    /// Exit with 1 if something failed
    #[arg(long)]
    exit_code: bool,
    /// Further rules for lines of the log (see the README)
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let rules = rules(args.rules.as_deref())?;
    let diagnosis = if args.source.as_os_str() == "-" {
        of_stdin(&rules)?
    } else if args.source.is_dir() {
        of_run(&args.source, &rules)?
    } else {
        let file = File::open(&args.source).map_err(|error| unreadable(&args.source, &error))?;
        of_log(&args.source.display().to_string(), &args.source, &file, &rules)?
    };
    let text = if args.json {
        serde_json::to_string_pretty(&diagnosis.json()).context("write the verdict as JSON")? + "\n"
    } else {
        diagnosis.page()
    };
    // A reader that went away (`| head`) is no failure.
    drop(std::io::stdout().write_all(text.as_bytes()));
    let failed = diagnosis.verdict.outcome != Outcome::Success;
    Ok(ProcessExit::from(u8::from(args.exit_code && failed)))
}

fn rules(path: Option<&Path>) -> Result<Rules, Failure> {
    let file = match path {
        Some(path) => Some((
            path.display().to_string(),
            std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?,
        )),
        None => None,
    };
    let files: Vec<(&str, &str)> = file.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    Rules::load(&files).map_err(|errors| Failure {
        exit: ExitCode::Usage,
        problems: errors.iter().map(ToString::to_string).collect(),
        hint: None,
    })
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(ExitCode::Usage, format!("cannot read {}: {error}", path.display()))
        .hint("give a server log, the folder of a run, or - for standard input")
}

/// One life of a server and its verdict.
struct Life {
    title: String,
    verdict: Verdict,
}

/// A verdict with what is needed to show it.
struct Diagnosis {
    source: String,
    verdict: Verdict,
    /// Every start of the log, or attempt of the run.
    lives: Vec<Life>,
    /// Number and text of the decisive line and its neighbours.
    around: Vec<(u64, String)>,
}

fn of_stdin(rules: &Rules) -> Result<Diagnosis, Failure> {
    // Kept, to show the neighbours of a line that can be anywhere.
    let mut kept = tempfile::tempfile().context("make a temporary file for standard input")?;
    let mut starts = Starts::new(rules);
    let mut input = std::io::stdin().lock();
    pieces(&mut input, |piece| {
        starts.push(piece);
        kept.write_all(piece)
    })
    .context("read standard input")?;
    // Again from its beginning: it may be a log of ours of which a part was taken out.
    if Cut::of(&kept).is_ok_and(|cut| cut.is_some()) {
        return of_log("standard input", Path::new(STDIN), &kept, rules);
    }
    Ok(of_starts("standard input", &starts.finish(), Path::new(STDIN), &kept))
}

fn of_log(name: &str, path: &Path, file: &File, rules: &Rules) -> Result<Diagnosis, Failure> {
    let mut starts = Starts::new(rules);
    let lost = whole(path, file, &mut starts).map_err(|error| unreadable(Path::new(name), &error))?;
    let mut diagnosis = of_starts(name, &starts.finish(), path, file);
    diagnosis.verdict.missing.extend(lost);
    Ok(diagnosis)
}

/// Reads a log with what was taken out of it. What of it is nowhere any more comes back in words.
fn whole(path: &Path, file: &File, starts: &mut Starts<'_>) -> std::io::Result<Option<String>> {
    let mut lost = None;
    cut_log::read(path, file, &mut |part| {
        match part {
            Part::Bytes(bytes) => starts.push(bytes),
            Part::Missing { first, last, to } => {
                lost = (first <= last).then(|| {
                    format!("lines {first} to {last} of the log, which were dropped because of disk.max-log")
                });
                starts.skip(last, to);
            }
        }
        Ok(())
    })?;
    Ok(lost)
}

fn pieces(source: &mut impl Read, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => take(&buffer[..length])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn of_starts(name: &str, starts: &[Start], path: &Path, file: &File) -> Diagnosis {
    let lives: Vec<Life> = starts
        .iter()
        .map(|start| Life {
            title: format!("lines {} to {}", start.line, start.last_line),
            verdict: named(judge(&start.findings).of_log(), name),
        })
        .collect();
    // A start that has only begun says nothing about why the one before it ended.
    let says =
        |life: &Life| !(life.verdict.cause == causes::HEALTHY && life.verdict.confidence == Confidence::Weak);
    let at = lives.iter().rposition(says).unwrap_or(lives.len().saturating_sub(1));
    let mut verdict = lives[at].verdict.clone();
    let around = neighbours(&mut verdict, &starts[at].findings, path, file);
    Diagnosis { source: name.to_owned(), verdict, lives, around }
}

fn judge(findings: &[Finding]) -> Inquiry {
    let mut inquiry = Inquiry::default();
    for finding in findings {
        inquiry.hear(Phase::Loading, &EventKind::Finding(finding.clone()));
    }
    inquiry
}

/// The quotes name the file that was read and not the name it has in a run.
fn named(mut verdict: Verdict, name: &str) -> Verdict {
    for quote in verdict.decisive.iter_mut().chain(&mut verdict.consequences) {
        if quote.line.is_some() {
            name.clone_into(&mut quote.source);
        }
    }
    verdict
}

/// The decisive line whole, and what stands around it. Without them the verdict is as good.
fn neighbours(verdict: &mut Verdict, findings: &[Finding], path: &Path, file: &File) -> Vec<(u64, String)> {
    let Some(Quote { line: Some(line), text, .. }) = &mut verdict.decisive else { return Vec::new() };
    let Some(finding) = findings.iter().find(|finding| finding.line == *line) else { return Vec::new() };
    let Ok((from, bytes)) = cut_log::near(path, file, finding.offset, NEAR) else { return Vec::new() };
    let Some(at) = finding.offset.checked_sub(from).and_then(|at| usize::try_from(at).ok()) else {
        return Vec::new();
    };
    if at >= bytes.len() {
        return Vec::new();
    }
    let (before, after) = bytes.split_at(at);
    let show = |line: &[u8]| plain(line, usize::try_from(NEAR).unwrap_or(usize::MAX)).trim_end().to_owned();
    let before: Vec<&[u8]> = before.split(|byte| *byte == b'\n').rev().skip(1).take(AROUND).collect();
    let after: Vec<&[u8]> = after.split(|byte| *byte == b'\n').take(AROUND + 1).collect();
    let first = *line - before.len().min(usize::try_from(*line - 1).unwrap_or(usize::MAX)) as u64;
    if let Some(whole) = after.first() {
        *text = show(whole);
    }
    let lines = before.into_iter().rev().chain(after);
    (first..).zip(lines).map(|(number, line)| (number, show(line))).collect()
}

fn of_run(root: &Path, rules: &Rules) -> Result<Diagnosis, Failure> {
    let dir = RunDir::new(root);
    if !dir.journal().exists() {
        let log = root.join("vllm_server.log");
        let file = File::open(&log).map_err(|_| {
            Failure::new(
                ExitCode::Usage,
                format!("{} holds neither events.jsonl nor vllm_server.log", root.display()),
            )
            .hint("give the folder of a run, or a log")
        })?;
        return of_log(&log.display().to_string(), &log, &file, rules);
    }
    let read = journal::read(&dir.journal()).map_err(|error| unreadable(&dir.journal(), &error))?;
    let attempts = read.events.last().map_or(0, |event| event.attempt);
    if attempts == 0 {
        let problem = format!("{} holds no attempt", dir.journal().display());
        return Err(Failure::new(ExitCode::Usage, problem));
    }
    let mut lives = Vec::new();
    let mut around = Vec::new();
    for number in 1..=attempts {
        let events: Vec<&Event> = read.events.iter().filter(|event| event.attempt == number).collect();
        let log = dir.attempt(number).server_log();
        let (mut verdict, findings) = of_attempt(&events, &log, rules);
        if let Ok(file) = File::open(&log) {
            around = neighbours(&mut verdict, &findings, &log, &file);
        }
        lives.push(Life { title: format!("attempt {number}"), verdict });
    }
    let verdict = lives[lives.len() - 1].verdict.clone();
    Ok(Diagnosis { source: root.display().to_string(), verdict, lives, around })
}

/// What the run concluded itself, or what follows from its journal and log when it could not.
fn of_attempt(events: &[&Event], log: &Path, rules: &Rules) -> (Verdict, Vec<Finding>) {
    let mut inquiry = Inquiry::default();
    let mut phase = Phase::Preflight;
    let (mut ending, mut closed, mut judged) = (None, false, None);
    for event in events {
        match &event.kind {
            EventKind::PhaseEntered { phase: entered, .. } => phase = *entered,
            EventKind::AttemptEnding(seen) => ending = Some(seen.clone()),
            EventKind::AttemptEnded(seen) => (ending, closed) = (Some(seen.clone()), true),
            EventKind::Judged { verdict } => judged = Some((**verdict).clone()),
            _ => {}
        }
        inquiry.hear(phase, &event.kind);
    }
    if let Some(verdict) = judged {
        return (verdict, inquiry.findings().to_vec());
    }
    // The journal is torn: what it has not seen stands in the log.
    let seen = inquiry.findings().last().map_or(0, |finding| finding.line);
    let unseen = if closed { Vec::new() } else { last_start(log, rules) };
    for finding in unseen.into_iter().filter(|finding| finding.line > seen) {
        inquiry.hear(phase, &EventKind::Finding(finding));
    }
    let mut verdict = match ending {
        Some(Ending { outcome: Outcome::Success | Outcome::Stopped, reason, .. }) => {
            let mut verdict = Inquiry::default().of_log();
            (verdict.explanation, verdict.confidence) = (reason, Confidence::Certain);
            verdict.missing.clear();
            verdict
        }
        Some(ending) => inquiry.verdict(&ending),
        None => inquiry.of_log(),
    };
    if !closed {
        verdict.missing.push("the end of the journal: varcas-guard itself was killed".to_owned());
    }
    (verdict, inquiry.findings().to_vec())
}

fn last_start(log: &Path, rules: &Rules) -> Vec<Finding> {
    let mut starts = Starts::new(rules);
    if File::open(log).and_then(|file| whole(log, &file, &mut starts)).is_err() {
        return Vec::new();
    }
    starts.finish().pop().map(|start| start.findings).unwrap_or_default()
}

/// The words for outcomes that people use of logs.
fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Success => "harmless",
        Outcome::Refused => "refused",
        Outcome::StartupFailure => "startup-failure",
        Outcome::Crash => "crash",
        Outcome::Hang => "hang",
        Outcome::Degraded => "degraded",
        Outcome::Stopped => "stopped",
        Outcome::GuardFault => "guard-fault",
    }
}

#[derive(Serialize)]
struct Json<'a> {
    source: &'a str,
    cause: &'a str,
    outcome: &'static str,
    retry: Retry,
    mitigation: &'a str,
    decisive_line: Option<&'a str>,
    line_number: Option<u64>,
    decisive_source: Option<&'a str>,
    consequences: Vec<&'a str>,
    consequence_line_numbers: Vec<Option<u64>>,
    confidence: Confidence,
    explanation: &'a str,
    references: &'a [String],
    supports: &'a [String],
    contradicts: &'a [String],
    ruled_out: Vec<serde_json::Value>,
    missing: &'a [String],
    fingerprint: &'a str,
    starts: Vec<serde_json::Value>,
}

impl Diagnosis {
    fn json(&self) -> Json<'_> {
        let v = &self.verdict;
        let short = |life: &Life| {
            serde_json::json!({
                "what": life.title,
                "cause": life.verdict.cause,
                "outcome": outcome(life.verdict.outcome),
                "line_number": life.verdict.decisive.as_ref().and_then(|quote| quote.line),
            })
        };
        Json {
            source: &self.source,
            cause: &v.cause,
            outcome: outcome(v.outcome),
            retry: v.retry,
            mitigation: &v.advice,
            decisive_line: v.decisive.as_ref().map(|quote| quote.text.as_str()),
            line_number: v.decisive.as_ref().and_then(|quote| quote.line),
            decisive_source: v.decisive.as_ref().map(|quote| quote.source.as_str()),
            consequences: v.consequences.iter().map(|quote| quote.text.as_str()).collect(),
            consequence_line_numbers: v.consequences.iter().map(|quote| quote.line).collect(),
            confidence: v.confidence,
            explanation: &v.explanation,
            references: &v.references,
            supports: &v.supports,
            contradicts: &v.contradicts,
            ruled_out: v
                .ruled_out
                .iter()
                .map(|out| serde_json::json!({"cause": out.cause, "why": out.why}))
                .collect(),
            missing: &v.missing,
            fingerprint: &v.fingerprint,
            starts: self.lives.iter().map(short).collect(),
        }
    }

    fn page(&self) -> String {
        let v = &self.verdict;
        let mut out = String::new();
        let mut row = |name: &str, text: &str| {
            for (index, line) in wrapped(text, 96).iter().enumerate() {
                let _ = writeln!(out, "{:<11}{line}", if index == 0 { name } else { "" });
            }
        };
        row("source", &self.source);
        row("cause", &format!("{} ({})", v.cause, v.confidence));
        row("outcome", outcome(v.outcome));
        row("what", &v.explanation);
        row("to do", &v.advice);
        row("retry", &v.retry.to_string());
        if let Some(quote) = &v.decisive {
            let place = quote.line.map_or_else(String::new, |line| format!(", line {line}"));
            row("shown by", &format!("{}{place}", quote.source));
            out.push('\n');
            if self.around.is_empty() {
                let _ = writeln!(out, "  > {}", cut_at(&quote.text, DECISIVE_WIDTH));
            }
            for (number, text) in &self.around {
                let decisive = Some(*number) == quote.line;
                let (mark, width) = if decisive { ('>', DECISIVE_WIDTH) } else { (' ', WIDTH) };
                let _ = writeln!(out, "  {mark}{number:>8} | {}", cut_at(text, width));
            }
        }
        let mut list = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                let _ = writeln!(out, "\n{title}");
                for line in lines {
                    let _ = writeln!(out, "  - {}", cut(&line));
                }
            }
        };
        let line = |quote: &Quote| {
            quote
                .line
                .map_or_else(|| quote.text.clone(), |line| format!("line {line}: {}", quote.text.trim()))
        };
        list("only follows from it", v.consequences.iter().map(line).collect());
        list("also speaks for it", v.supports.clone());
        list("speaks against it", v.contradicts.clone());
        list("ruled out", v.ruled_out.iter().map(|out| format!("{}: {}", out.cause, out.why)).collect());
        list("not known", v.missing.clone());
        if self.lives.len() > 1 {
            let short = |life: &Life| {
                format!("{}: {} ({})", life.title, life.verdict.cause, outcome(life.verdict.outcome))
            };
            list("all of them", self.lives.iter().map(short).collect());
        }
        let _ = writeln!(out, "\nknown from {}", v.references.join("; "));
        out
    }
}

fn cut(text: &str) -> String {
    cut_at(text, WIDTH)
}

fn cut_at(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width).chain(" ...".chars()).collect()
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        if !lines[last].is_empty() && lines[last].len() + word.len() >= width {
            lines.push(word.to_owned());
        } else {
            if !lines[last].is_empty() {
                lines[last].push(' ');
            }
            lines[last].push_str(word);
        }
    }
    lines
}
