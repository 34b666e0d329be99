//! `varcas-guard report RUN`: the post-mortem from the journal, also of a run that never came to its end.

use crate::error::{Context, ExitCode, Failure};
use crate::recovery::report::model::Report;
use crate::recovery::report::{markdown, model};
use crate::supervisor::journal;
use crate::supervisor::layout::RunDir;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode as ProcessExit;

/// Flags of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run folder
    run: PathBuf,
    /// Print report.json instead of report.md
    #[arg(long)]
    json: bool,
    /// Write report.json and report.md into the folder instead of printing
    #[arg(long)]
    write: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let dir = RunDir::new(&args.run);
    let report = of_run(&dir)?;
    if args.write {
        write(&dir, &report)?;
    } else if args.json {
        println!("{}", json(&report)?);
    } else {
        println!("{}", markdown::render(&report));
    }
    Ok(ProcessExit::SUCCESS)
}

/// The report of the journal in a run folder.
pub fn of_run(dir: &RunDir) -> Result<Report, Failure> {
    let path = dir.journal();
    let read = journal::read(&path).map_err(|error| {
        let problem = format!("cannot read {}: {error}", path.display());
        Failure::new(ExitCode::Usage, problem)
            .hint("give the folder of a run, the one that holds events.jsonl")
    })?;
    if read.events.is_empty() {
        return Err(Failure::new(ExitCode::Usage, format!("{} holds no event", path.display())));
    }
    Ok(model::build(&read.events))
}

/// As it stands in report.json.
pub fn json(report: &Report) -> Result<String, Failure> {
    serde_json::to_string_pretty(report).context("write the report as JSON")
}

/// Writes both forms; a reader never sees a half one.
pub fn write(dir: &RunDir, report: &Report) -> Result<(), Failure> {
    let mut text = json(report)?;
    text.push('\n');
    replace(&dir.report_json(), text.as_bytes())?;
    replace(&dir.report_md(), markdown::render(report).as_bytes())
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let what = format!("write {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).context(&what)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).context(&what)?;
    file.persist(path).context(&what)?;
    Ok(())
}
