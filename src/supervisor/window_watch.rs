//! Follows the index that the workers write of their profiler windows.

use super::packer::Lines;
use crate::event::EventKind;
use crate::health::tail::Tail;
use crate::workload::profiler::windows;
use std::path::PathBuf;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

/// Turns the workers' index into events, and says when every worker has answered the request to close.
pub(super) async fn follow_windows(
    traces: PathBuf,
    mut closing: watch::Receiver<bool>,
    packer: Lines,
    facts: UnboundedSender<EventKind>,
) {
    let mut tail = match Tail::new(traces.join(windows::INDEX)) {
        Ok(tail) => tail,
        Err(error) => {
            let what = "follow the index of the profiler windows".to_owned();
            drop(facts.send(EventKind::Trouble { what, error: error.to_string() }));
            return;
        }
    };
    let mut index = windows::Index::default();
    let mut answered = false;
    loop {
        tokio::select! {
            lines = tail.next_lines() => {
                if lines.is_empty() {
                    return;
                }
                for line in lines {
                    let Some(line) = windows::parse_line(&line.text).inspect(|_| drop(packer.send(Some(line.text.to_string())))) else {
                        continue;
                    };
                    index.push(&line);
                    drop(facts.send(EventKind::Window(line)));
                }
            }
            changed = closing.changed(), if !answered => {
                if changed.is_err() {
                    return;
                }
            }
        }
        if *closing.borrow() && !answered && (index.workers.is_empty() || index.all_finished()) {
            answered = true;
            let workers = u32::try_from(index.workers.len()).unwrap_or(u32::MAX);
            drop(facts.send(EventKind::WindowsClosed { workers }));
        }
    }
}
