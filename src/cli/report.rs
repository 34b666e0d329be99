//! `varcas-guard report RUN`: the post-mortem from the journal, also of a run that never came to its end.

use crate::error::{Context, ExitCode, Failure};
use crate::recovery::report::model::{Builder, Report};
use crate::recovery::report::series::Series;
use crate::recovery::report::{Excerpt, View, excerpts, html, markdown, text};
use crate::supervisor::layout::RunDir;
use crate::supervisor::{journal, os, preflight};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode as ProcessExit, Stdio};

/// Flags of `report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run folder [default: the newest run in output]
    run: Option<PathBuf>,
    /// What to print: md (report.md), html, json, or text (a summary for a terminal) [default: md]
    #[arg(long, value_name = "FORMAT", value_enum)]
    format: Option<Format>,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Write report.html, report.md and report.json into the folder instead of printing
    #[arg(long, conflicts_with_all = ["format", "json"])]
    write: bool,
    /// Write them, and open report.html in a browser ($BROWSER, else xdg-open)
    #[arg(long, conflicts_with_all = ["format", "json"])]
    open: bool,
}

/// What is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Html,
    Md,
    Json,
    Text,
}

/// What is known of a run.
#[derive(Debug)]
pub struct Told {
    /// The report.
    pub report: Report,
    series: Series,
    files: Vec<Excerpt>,
    unread: Vec<String>,
}

impl Told {
    fn view(&self) -> View<'_> {
        View { report: &self.report, series: &self.series, files: &self.files, unread: &self.unread }
    }
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let dir = args.run.as_ref().map_or_else(|| super::runs::find(None), |run| Ok(RunDir::new(run)))?;
    let told = of_run(&dir)?;
    if args.write || args.open {
        write(&dir, &told)?;
        if args.open {
            open(&dir.report_html())?;
        }
        return Ok(ProcessExit::SUCCESS);
    }
    let shown = match args.format {
        None if args.json => json(&told.report)?,
        Some(Format::Json) => json(&told.report)?,
        Some(Format::Html) => html::render(&told.view()),
        Some(Format::Text) => text::render(&told.view()),
        Some(Format::Md) | None => markdown::render(&told.view()),
    };
    // A reader that has seen enough (`| head`) is no failure of ours.
    match writeln!(std::io::stdout(), "{}", shown.trim_end()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("print the report")
        }
        _ => Ok(ProcessExit::SUCCESS),
    }
}

/// The report of the journal in a run folder.
pub fn of_run(dir: &RunDir) -> Result<Told, Failure> {
    let path = dir.journal();
    let (mut builder, mut series, mut count) = (Builder::default(), Series::default(), 0_u64);
    let unread = journal::each(&path, |event| {
        count += 1;
        builder.push(&event);
        series.push(&event);
    });
    let unread = unread.map_err(|error| {
        let problem = format!("cannot read {}: {error}", path.display());
        Failure::new(ExitCode::Usage, problem)
            .hint("give the folder of a run, the one that holds events.jsonl")
    })?;
    if count == 0 {
        return Err(Failure::new(ExitCode::Usage, format!("{} holds no event", path.display())));
    }
    series.finish();
    let mut report = builder.finish();
    if report.is_open() && dir.lock().exists() && matches!(os::try_lock(&dir.lock()), Ok(None)) {
        report.still_running();
    }
    let files = excerpts::gather(dir.root(), &report);
    let unread = unread.into_iter().map(|(line, why)| format!("line {line}: {why}")).collect();
    Ok(Told { report, series, files, unread })
}

/// As it stands in report.json.
pub fn json(report: &Report) -> Result<String, Failure> {
    serde_json::to_string_pretty(report).context("write the report as JSON")
}

/// Writes all forms; a reader never sees a half one.
pub fn write(dir: &RunDir, told: &Told) -> Result<(), Failure> {
    let mut text = json(&told.report)?;
    text.push('\n');
    // Left by a guard that was killed.
    drop(std::fs::remove_file(dir.reserve()));
    replace(&dir.report_json(), text.as_bytes())?;
    replace(&dir.report_md(), markdown::render(&told.view()).as_bytes())?;
    replace(&dir.report_html(), html::render(&told.view()).as_bytes())
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let what = format!("write {}", path.display());
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).context(&what)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).context(&what)?;
    file.persist(path).context(&what)?;
    Ok(())
}

/// Hands the page to whatever shows pages here, and waits until that has taken it.
fn open(page: &Path) -> Result<(), Failure> {
    let browser = std::env::var("BROWSER").ok().filter(|name| !name.is_empty());
    let program = preflight::find_program(browser.as_deref().unwrap_or("xdg-open"));
    let status = program
        .map(|program| Command::new(program).arg(page).stdin(Stdio::null()).stdout(Stdio::null()).status());
    match status {
        Some(Ok(status)) if status.success() => Ok(()),
        Some(Ok(status)) => Err(format!("the browser ended with {status}")),
        Some(Err(error)) => Err(format!("the browser could not be started: {error}")),
        None => Err("no browser was found here".to_owned()),
    }
    .map_err(|problem| {
        Failure::new(ExitCode::Usage, problem)
            .hint(format!("open {} yourself, or name a browser in $BROWSER", page.display()))
    })
}
