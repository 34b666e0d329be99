//! `varcas-guard traces`: what the traces of a run, or of any folder, are and show; and one window over all ranks.

use super::report;
use crate::error::{Context, ExitCode, Failure};
use crate::recovery::report::profile;
use crate::recovery::report::units::bytes;
use crate::supervisor::layout::RunDir;
use crate::workload::profiler::folder::{Entry, Survey, merge_window, survey};
use crate::workload::profiler::merge::MergeError;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExit;

/// Flags of `traces`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0, 1 if a trace is not complete, 2 if there is none or the window cannot be merged."
)]
pub struct Args {
    /// A run, any folder with PyTorch traces, or one trace
    #[arg(value_name = "RUN")]
    path: PathBuf,
    /// Print list and profile as one JSON object
    #[arg(long)]
    json: bool,
    /// Join the ranks of this window into one trace instead
    #[arg(long, value_name = "WINDOW")]
    merge: Option<u32>,
    /// Where the merged trace goes [default: window-NNNN-merged.pt.trace.json.gz beside its parts]
    #[arg(long, value_name = "FILE", requires = "merge")]
    out: Option<PathBuf>,
    /// Rows of each table
    #[arg(long, value_name = "N", default_value_t = 15)]
    top: usize,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let folder = folder(&args.path)?;
    if let Some(window) = args.merge {
        return merge(&folder, window, args);
    }
    let found = survey(&folder, args.top).map_err(|error| {
        Failure::new(ExitCode::Usage, format!("cannot read {}: {error}", folder.display()))
    })?;
    if found.traces.is_empty() {
        return Err(Failure::new(ExitCode::Usage, format!("there is no trace in {}", folder.display()))
            .hint("give a run, a folder with *.pt.trace.json.gz files, or one such file"));
    }
    let text = if args.json { json(&folder, &found)? } else { text(&folder, &found)? };
    // A reader that went away (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let whole = found.traces.iter().all(|entry| entry.complete);
    Ok(ProcessExit::from(u8::from(!whole)))
}

fn merge(folder: &Path, window: u32, args: &Args) -> Result<ProcessExit, Failure> {
    let (path, merged) = merge_window(folder, window, args.out.as_deref()).map_err(|error| {
        let hint = match &error {
            MergeError::Part { .. } => Some("varcas-guard salvage repairs cut and invalid traces"),
            MergeError::Nothing(_) => Some("varcas-guard traces, without --merge, lists what is there"),
            _ => None,
        };
        let failure = Failure::new(ExitCode::Usage, error.to_string());
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    println!("{}: {} events of {} ranks", path.display(), merged.events, merged.parts);
    Ok(ProcessExit::SUCCESS)
}

/// Where the traces lie: in the folder itself, in `traces/` of an attempt, or in that of the attempt of a run that counts.
fn folder(path: &Path) -> Result<PathBuf, Failure> {
    if !path.exists() {
        return Err(Failure::new(ExitCode::Usage, format!("{} does not exist", path.display())));
    }
    let dir = RunDir::new(path);
    if dir.journal().is_file() {
        let report = report::of_run(&dir)?.report;
        let last =
            report.attempts.iter().map(|attempt| attempt.number).rfind(|n| dir.attempt(*n).traces().is_dir());
        let number = report.counts.or(last);
        return number
            .map(|number| dir.attempt(number).traces())
            .filter(|traces| traces.is_dir())
            .ok_or_else(|| {
                Failure::new(ExitCode::Usage, format!("the run in {} has no trace folder", path.display()))
                    .hint("it was not profiled, or it ended before a server was started")
            });
    }
    let traces = path.join("traces");
    Ok(if traces.is_dir() { traces } else { path.to_owned() })
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Output<'a> {
    folder: &'a Path,
    #[serde(flatten)]
    found: &'a Survey,
}

fn json(folder: &Path, found: &Survey) -> Result<String, Failure> {
    let mut text =
        serde_json::to_string_pretty(&Output { folder, found }).context("write the result as JSON")?;
    text.push('\n');
    Ok(text)
}

/// Names of files come from anywhere: none may break the table or steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn text(folder: &Path, found: &Survey) -> Result<String, Failure> {
    let mut out = format!("{}\n\n", printable(&folder.display().to_string()));
    let mut row = |cells: [&str; 9]| {
        let [window, rank, phase, steps, events, kernels, seconds, size, file] = cells;
        // Writing to a String cannot fail.
        let _ = writeln!(
            out,
            "{window:>6} {rank:>4} {phase:<10} {steps:>6} {events:>9} {kernels:>8} {seconds:>9} {size:>9}  {file}"
        );
    };
    row(["window", "rank", "phase", "steps", "events", "kernels", "recorded", "size", "file"]);
    for entry in &found.traces {
        let number = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
        row([
            &number(entry.window.map(u64::from)),
            &number(entry.rank.map(u64::from)),
            entry.phase.as_deref().unwrap_or("?"),
            &number(entry.steps),
            &number(entry.events),
            &number(entry.kernels),
            &entry.seconds.map_or("?".to_owned(), |s| format!("{s:.3} s")),
            &bytes(entry.bytes),
            &format!("{}{}", printable(&entry.file), remark(entry)),
        ]);
    }
    out.push('\n');
    match &found.profile {
        Some(summary) => profile::section(&mut out, summary).context("write the profile")?,
        None => out.push_str("No complete trace: nothing to show.\n"),
    }
    Ok(out)
}

fn remark(entry: &Entry) -> String {
    match (&entry.problem, entry.made) {
        (Some(problem), _) => format!(" (not complete: {})", printable(problem)),
        (None, Some(made)) => format!(" ({made}; not in the profile)"),
        (None, None) => String::new(),
    }
}
