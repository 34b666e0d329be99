//! `varcas-guard replay RUN`: the facts of the journal go through the state machine again; states, decisions and report
//! must come out the same.

use super::report;
use crate::error::{Context, ExitCode, Failure};
use crate::event::{Event, EventKind};
use crate::recovery::report::model;
use crate::supervisor::journal;
use crate::supervisor::layout::RunDir;
use crate::supervisor::machine::Machine;
use crate::supervisor::state::Action;
use std::path::PathBuf;
use std::process::ExitCode as ProcessExit;

/// Flags of `replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The run folder
    run: PathBuf,
}

/// Runs it.
pub fn run(args: &Args) -> Result<ProcessExit, Failure> {
    let dir = RunDir::new(&args.run);
    let read = journal::read(&dir.journal()).context(format_args!("read {}", dir.journal().display()))?;
    let again = replay(&read.events);
    let whole = read.events.iter().position(|event| matches!(event.kind, EventKind::JournalThinned { .. }));
    if let Some(whole) = whole {
        return thinned(&read.events[..whole], &again);
    }
    let mut differences = 0;
    for (number, (old, new)) in read.events.iter().zip(&again).enumerate() {
        if old != new {
            differences += 1;
            println!("event {number} differs:\n  then {:?}\n  now  {:?}", old.kind, new.kind);
        }
    }
    if read.events.len() != again.len() {
        differences += 1;
        println!("the journal has {} events, the replay {}", read.events.len(), again.len());
    }
    if let Ok(stored) = std::fs::read_to_string(dir.report_json()) {
        // Byte for byte, its last line break included.
        let now = report::json(&model::build(&again))? + "\n";
        if stored != now {
            differences += 1;
            println!("report.json differs from the report of the replay");
        }
    } else {
        println!("there is no report.json to compare with");
    }
    if differences > 0 {
        return Err(differ(differences));
    }
    println!("{} events, the same states, decisions and report", again.len());
    Ok(ProcessExit::SUCCESS)
}

fn differ(differences: usize) -> Failure {
    Failure::new(ExitCode::Bug, format!("{differences} differences between the run and its replay"))
}

/// What follows was decided with samples that are not in the journal.
fn thinned(whole: &[Event], again: &[Event]) -> Result<ProcessExit, Failure> {
    let differences = whole.iter().zip(again).filter(|(old, new)| old != new).count();
    if differences > 0 {
        return Err(differ(differences));
    }
    println!(
        "{} events, the same states and decisions; what follows is not compared, because the journal had grown so large \
         that samples were left out",
        whole.len()
    );
    Ok(ProcessExit::SUCCESS)
}

/// The journal as it would be written today from the same facts.
pub fn replay(events: &[Event]) -> Vec<Event> {
    let mut machine = Machine::new();
    let mut out: Vec<Event> = Vec::with_capacity(events.len());
    for event in events.iter().filter(|event| event.kind.is_fact()) {
        let push = |out: &mut Vec<Event>, attempt, kind: EventKind| {
            let seq = out.len() as u64;
            out.push(Event { v: event.v, seq, at: event.at, attempt, kind });
        };
        let actions = machine.step(event.at, &event.kind);
        push(&mut out, event.attempt, event.kind.clone());
        for action in actions {
            if let Action::Conclude(kind) = action {
                push(&mut out, machine.attempt(), kind);
            }
        }
    }
    out
}
