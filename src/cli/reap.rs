//! `varcas-guard reap`: ends what runs whose guard is dead have left. Processes of living runs are never touched.

use crate::error::{ExitCode, Failure};
use crate::supervisor::{os, reap};
use std::collections::BTreeMap;
use std::process::ExitCode as ProcessExit;

/// Flags of `reap`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be ended
    #[arg(long)]
    dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let mine = os::own_uid();
    let mut runs: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for process in
        reap::find_marked().into_iter().filter(|process| !process.guard_alive && process.uid == mine)
    {
        let text = format!("{} ({})", process.comm, process.proc);
        runs.entry(process.run_id.as_str().to_owned()).or_default().push(text);
    }
    let mut left = 0;
    let mut result = Vec::new();
    for (run, processes) in &runs {
        let leftovers =
            if args.dry_run { Vec::new() } else { reap::kill_marked(run, &[], &[os::own_pid()]).1 };
        left += leftovers.len();
        if !args.json {
            let verb = if args.dry_run { "would end" } else { "ended" };
            println!("run {run}: {verb} {}", processes.join(", "));
            for leftover in &leftovers {
                println!("  not ended: {leftover:?}");
            }
        }
        result.push(serde_json::json!({ "run_id": run, "processes": processes, "left": leftovers }));
    }
    if args.json {
        println!("{}", serde_json::Value::from(result));
    } else if runs.is_empty() {
        println!("no run has left anything");
    }
    Ok(if left == 0 { ExitCode::Success } else { ExitCode::AttemptsFailed }.into())
}
