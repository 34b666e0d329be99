//! `varcas-guard salvage`: repairs what a killed export left, from anywhere and without a run.

use crate::recovery::salvage::{Options, Salvaged, Status, salvage};
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Files below this size are done before a bar could be read.
const BAR_FROM: u64 = 64 << 20;

/// Repair profiler traces that were cut or damaged.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Traces, or folders that are searched for them
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Print one JSON object per trace, in an array
    #[arg(long)]
    pub json: bool,
    /// Write outputs into this folder instead of beside each trace
    #[arg(long, value_name = "DIR", conflicts_with = "in_place")]
    pub out: Option<PathBuf>,
    /// Give outputs the traces' own names and keep each broken file as NAME.broken
    #[arg(long)]
    pub in_place: bool,
    /// Only say what is there; exit 1 if a trace is not complete
    #[arg(long)]
    pub check: bool,
}

/// Runs the command. 0: all that could be saved was; 1: something could not be, or with `--check` is not complete.
pub fn run(args: &Args) -> ExitCode {
    let bar = Bar { last: Cell::new(None), shown: Cell::new(false) };
    let progress = |path: &Path, done: u64, total: u64| bar.show(path, done, total);
    let options = Options {
        out: args.out.clone(),
        in_place: args.in_place,
        check: args.check,
        whole: Vec::new(),
        progress: if std::io::stderr().is_terminal() { Some(&progress) } else { None },
    };
    let records = salvage(&args.paths, &options);
    bar.clear();
    let text = if args.json {
        serde_json::to_string_pretty(&records)
            .map_or_else(|e| format!("{{\"error\": \"{e}\"}}"), |t| t + "\n")
    } else {
        table(&records)
    };
    // A reader that went away (`| head`) is no failure of the salvage.
    let _ = std::io::stdout().write_all(text.as_bytes());
    let failed = records.iter().any(|record| {
        record.error.is_some()
            || (args.check && !matches!(record.status, Status::Complete | Status::NothingToSave))
    });
    ExitCode::from(u8::from(failed))
}

struct Bar {
    last: Cell<Option<std::time::Instant>>,
    shown: Cell<bool>,
}

impl Bar {
    fn show(&self, path: &Path, done: u64, total: u64) {
        let now = crate::time::instant_now();
        let recent =
            self.last.get().is_some_and(|last| now.duration_since(last) < Duration::from_millis(200));
        if total < BAR_FROM || recent {
            return;
        }
        self.last.set(Some(now));
        self.shown.set(true);
        let share = (done.min(total) * 30 / total.max(1)) as usize;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Progress is a courtesy: a terminal that is gone does not stop the work.
        let _ = write!(
            std::io::stderr(),
            "\r\x1b[K[{}{}] {:>3} % {name}",
            "#".repeat(share),
            "-".repeat(30 - share),
            done.min(total) * 100 / total.max(1)
        );
    }

    fn clear(&self) {
        if self.shown.get() {
            // As above.
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Names of files and categories come from anywhere: none may break the table or steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn table(records: &[Salvaged]) -> String {
    if records.is_empty() {
        return "no traces found\n".to_owned();
    }
    let mut text =
        format!("{:<15} {:>10} {:>8} {:>12} {:>10}  trace\n", "status", "kept", "dropped", "read", "lost");
    for record in records {
        text.push_str(&format!(
            "{:<15} {:>10} {:>8} {:>12} {:>10}  {}\n",
            record.status.to_string(),
            record.events_kept,
            record.events_dropped,
            record.bytes_read,
            record.bytes_lost,
            printable(&record.input.display().to_string())
        ));
        if let Some(output) = &record.output {
            text.push_str(&format!("{:15} -> {}\n", "", printable(&output.display().to_string())));
        }
        if !record.note.is_empty() {
            text.push_str(&format!("{:15} {}\n", "", printable(&record.note)));
        }
        if let Some(error) = &record.error {
            text.push_str(&format!("{:15} error: {}\n", "", printable(error)));
        }
    }
    text
}
