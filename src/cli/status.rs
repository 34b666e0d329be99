//! `varcas-guard status [RUN]`: how a run goes or how it ended, in one screenful, one line, or JSON.

use super::runs::{find, fold, is_guarded, local, print};
use crate::console::live::frame::{frame, paint};
use crate::console::live::terminal::{Abilities, Size, size};
use crate::error::{Context, Failure};
use crate::supervisor::layout::RunDir;
use crate::time;
use crate::view::now::Now;
use crate::view::phrases;
use crate::view::snapshot::{Snapshot, Standing};
use std::path::PathBuf;
use std::process::ExitCode as ProcessExit;

/// Flags of `status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run folder, or a folder of runs of which the newest is meant [default: output]
    run: Option<PathBuf>,
    /// Print one line
    #[arg(long)]
    short: bool,
    /// Print everything that is known of the present
    #[arg(long, conflicts_with = "short")]
    json: bool,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let dir = find(args.run.as_deref())?;
    let now = fold(&dir)?;
    let alive = !now.is_over() && is_guarded(&dir, now.guard);
    let snapshot = Snapshot::new(&now, now.moment(time::wall_now()), alive);
    if args.json {
        return print(&serde_json::to_string_pretty(&snapshot).context("write the status as JSON")?);
    }
    if args.short {
        return print(&phrases::short(&now, snapshot.elapsed, snapshot.standing));
    }
    print(&screen(&dir, &now, &snapshot))
}

fn screen(dir: &RunDir, now: &Now, snapshot: &Snapshot<'_>) -> String {
    let out = std::io::stdout();
    let able = Abilities::of(&out);
    let columns = if able.frames { size(&out).columns } else { Size::USUAL.columns + 1 };
    let mut lines = vec![head(dir, now, snapshot.standing)];
    let rows = 100;
    lines.extend(
        frame(now, snapshot.elapsed, Size { columns, rows }, able).iter().map(|line| paint(line, able)),
    );
    for past in &now.past {
        let cause = past.cause.as_ref().map_or_else(String::new, |cause| format!(", {cause}"));
        lines.push(format!(" attempt {}: {}{cause}: {}", past.attempt, past.outcome, past.reason));
    }
    match snapshot.standing {
        Standing::Running => {}
        Standing::Interrupted => {
            lines.push(format!(" `varcas-guard report {}` says what is known of it.", dir.root().display()));
        }
        Standing::Finished => lines.push(format!(" {}", dir.report_html().display())),
    }
    lines.join("\n")
}

fn head(dir: &RunDir, now: &Now, standing: Standing) -> String {
    let began = now.started.map_or_else(String::new, |at| format!(", begun {}", local(at)));
    let how = match standing {
        Standing::Running => {
            let guard = now.guard.map_or_else(String::new, |guard| format!(", guarded by {guard}"));
            format!("running{guard}")
        }
        Standing::Finished => "finished".to_owned(),
        Standing::Interrupted => "interrupted: nobody guards it any more".to_owned(),
    };
    format!("{}: {how}{began}", dir.root().display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_whether_anybody_is_there() {
        let dir = RunDir::new("/runs/a");
        let heads = [Standing::Running, Standing::Finished, Standing::Interrupted]
            .map(|standing| head(&dir, &Now::default(), standing));
        assert_eq!(heads[0], "/runs/a: running");
        assert_eq!(heads[2], "/runs/a: interrupted: nobody guards it any more");
    }
}
