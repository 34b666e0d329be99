//! `varcas-guard reap`: ends what runs whose guard is dead have left. Processes of living runs are never touched.

use crate::error::{Context, ExitCode, Failure};
use crate::event::Leftover;
use crate::recovery::report::story;
use crate::supervisor::reap::{self, Abandoned};
use crate::supervisor::{journal, os};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode as ProcessExit;

/// Flags of `reap`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folders whose journals are to be closed too, if their guards are dead; those whose temporary folder still lies
    /// here are found without being named
    runs: Vec<PathBuf>,
    /// Only say what would be ended
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What was found of a run and done about it.
#[derive(Debug, Default)]
struct Found {
    processes: Vec<String>,
    folder: Option<PathBuf>,
    removed: Vec<String>,
    left: Vec<Leftover>,
    problems: Vec<String>,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    if !args.dry_run {
        reap::let_keepers_finish();
    }
    let mut runs: BTreeMap<String, Found> = BTreeMap::new();
    let mine = os::own_uid();
    for process in
        reap::find_marked().into_iter().filter(|process| !process.guard_alive && process.uid == mine)
    {
        let text = format!("{} ({})", process.comm, process.proc);
        runs.entry(process.run_id.as_str().to_owned()).or_default().processes.push(text);
    }
    for abandoned in abandoned(args)? {
        let found = runs.entry(abandoned.spec.run_id.clone()).or_default();
        found.folder = Some(abandoned.run_folder().to_owned());
        if args.dry_run {
            continue;
        }
        let closed = abandoned.close();
        found.removed.extend(closed.removed);
        found.left.extend(closed.leftovers);
        found.problems.extend(closed.problems);
    }
    for (run, found) in &mut runs {
        if !args.dry_run {
            found.left.extend(reap::kill_marked(run, &[], &[os::own_pid()]).1);
        }
        if !args.json {
            tell(run, found, args.dry_run);
        }
    }
    if args.json {
        let runs = runs.iter().map(|(run, found)| {
            serde_json::json!({
                "run_id": run, "processes": found.processes, "folder": found.folder, "removed": found.removed,
                "left": found.left, "problems": found.problems,
            })
        });
        println!("{}", runs.collect::<serde_json::Value>());
    } else if runs.is_empty() {
        println!("no run has left anything");
    }
    let well = runs.values().all(|found| found.left.is_empty() && found.problems.is_empty());
    Ok(if well { ExitCode::Success } else { ExitCode::AttemptsFailed }.into())
}

fn abandoned(args: &Args) -> Result<Vec<Abandoned>, Failure> {
    let mut all = Vec::new();
    for run in &args.runs {
        let run = std::path::absolute(run).context(format_args!("find {}", run.display()))?;
        journal::last(&reap::journal_of(&run)).map_err(|error| {
            Failure::new(ExitCode::Usage, format!("cannot read the journal in {}: {error}", run.display()))
                .hint("give the folder of a run, the one that holds events.jsonl")
        })?;
        all.extend(reap::of_run(&run).context(format_args!("look into {}", run.display()))?);
    }
    // Those found above are locked by us now, so none is found twice.
    all.extend(reap::find_abandoned());
    Ok(all)
}

fn tell(run: &str, found: &Found, dry_run: bool) {
    let (ended, closed) = if dry_run { ("would end", "would close") } else { ("ended", "closed") };
    if !found.processes.is_empty() {
        println!("run {run}: {ended} {}", found.processes.join(", "));
    }
    if let Some(folder) = &found.folder {
        println!("run {run}: interrupted; {closed} its journal in {}", folder.display());
    }
    for what in &found.removed {
        println!("  removed {what}");
    }
    for left in &found.left {
        println!("  not ended: {}", story::leftover(left));
    }
    for problem in &found.problems {
        println!("  {problem}");
    }
}
