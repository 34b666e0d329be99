//! `varcas-guard clean`: removes old runs from a folder of runs. A live run is never touched, and neither is anything that
//! is no run; links are removed and never followed.

use super::runs::{Listed, all, glance, print};
use crate::error::{Context, ExitCode, Failure};
use crate::supervisor::layout::RunDir;
use crate::supervisor::{os, reap};
use crate::view::snapshot::Standing;
use crate::view::units::bytes;
use serde::Serialize;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode as ProcessExit;

/// Flags of `clean`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of runs
    #[arg(default_value = "output")]
    dir: PathBuf,
    /// Keep so many of the newest runs, and all live ones
    #[arg(long, value_name = "N")]
    keep_last: usize,
    /// Say what would be removed; remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Print one object: dry_run, removed[] (run, bytes), kept[] (run, why), freed
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Removed {
    run: PathBuf,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Kept {
    run: PathBuf,
    why: String,
    /// It should have gone.
    #[serde(skip)]
    failed: bool,
}

#[derive(Debug, Default, Serialize)]
struct Done {
    dry_run: bool,
    removed: Vec<Removed>,
    kept: Vec<Kept>,
    freed: u64,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    if RunDir::new(&args.dir).journal().exists() {
        return Err(Failure::new(ExitCode::Usage, format!("{} is one run", args.dir.display()))
            .hint("give the folder that holds it and others"));
    }
    let runs = all(&args.dir)?;
    let mut done = Done { dry_run: args.dry_run, ..Done::default() };
    let old = runs.len().saturating_sub(args.keep_last);
    for (index, dir) in runs.iter().enumerate() {
        let run = dir.root().to_owned();
        if index >= old {
            done.kept.push(Kept { run, why: "one of the newest".to_owned(), failed: false });
            continue;
        }
        match remove(dir, args.dry_run) {
            Ok(Ok(listed)) => {
                done.freed = done.freed.saturating_add(listed.bytes);
                done.removed.push(Removed { run, bytes: listed.bytes });
            }
            Ok(Err(why)) => done.kept.push(Kept { run, why, failed: false }),
            Err(error) => {
                let why = format!("it could not be removed, or not wholly: {error}");
                done.kept.push(Kept { run, why, failed: true });
            }
        }
    }
    let failed = done.kept.iter().any(|kept| kept.failed);
    print(&if args.json {
        serde_json::to_string_pretty(&done).context("write what was done as JSON")?
    } else {
        words(&done, &args.dir)
    })?;
    Ok(if failed { ExitCode::AttemptsFailed } else { ExitCode::Success }.into())
}

/// Removes a run, or says why it must stay.
fn remove(dir: &RunDir, dry: bool) -> io::Result<Result<Listed, String>> {
    let Some(listed) = glance(dir)? else { return Ok(Err("it is no run".to_owned())) };
    if listed.standing == Standing::Running {
        return Ok(Err("it is alive".to_owned()));
    }
    let pids: Vec<String> = reap::find_marked()
        .into_iter()
        .filter(|found| found.run_id.as_str() == listed.run_id)
        .map(|found| found.proc.pid.to_string())
        .collect();
    if !pids.is_empty() {
        let why = format!("processes of it are alive ({}): `varcas-guard reap` ends them", pids.join(", "));
        return Ok(Err(why));
    }
    if dry {
        return Ok(Ok(listed));
    }
    // Held until all is gone, so that no guard can take the folder meanwhile.
    let Some(_lock) = os::try_lock(&dir.lock())? else { return Ok(Err("it is alive".to_owned())) };
    // What makes it a run goes last, so that whoever is interrupted here can go on later.
    for entry in std::fs::read_dir(dir.root())? {
        let entry = entry?;
        let path = entry.path();
        if path == dir.journal() || path == dir.lock() {
            continue;
        }
        // The kind of a link is "link", wherever it points to.
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(&path)?;
        } else {
            std::fs::remove_file(&path)?;
        }
    }
    std::fs::remove_file(dir.journal())?;
    std::fs::remove_file(dir.lock())?;
    std::fs::remove_dir(dir.root())?;
    Ok(Ok(listed))
}

fn words(done: &Done, folder: &std::path::Path) -> String {
    let verb = if done.dry_run { "would remove" } else { "removed" };
    let mut lines: Vec<String> = done
        .removed
        .iter()
        .map(|removed| format!("{verb} {}, {}", removed.run.display(), bytes(removed.bytes)))
        .collect();
    let told = done.kept.iter().filter(|kept| kept.why != "one of the newest");
    lines.extend(told.map(|kept| format!("kept {}: {}", kept.run.display(), kept.why)));
    let runs = done.removed.len();
    if runs == 0 {
        lines.push(format!("nothing to remove from {}", folder.display()));
    } else {
        let freed = if done.dry_run { "would be free" } else { "freed" };
        lines.push(format!(
            "{} of {runs} {} {freed}",
            bytes(done.freed),
            if runs == 1 { "run" } else { "runs" }
        ));
    }
    lines.join("\n")
}
