//! Compresses finished windows while the run goes on, on a thread of the lowest priority: the benchmark comes first.

use super::os;
use super::performer::Run;
use crate::event::{EngineSample, EventKind, Phase, Reading};
use crate::health::disk::folder_size;
use crate::time::wall_now;
use crate::workload::profiler::listing::{LISTING, LoadSample, listing};
use crate::workload::profiler::windows::{Collected, Gatherer, PHASE};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Of the room that is left for an attempt this part is for logs, evidence and reports.
const FOR_OTHERS: u64 = 10;

/// Lines of the index, or `None` for the end.
pub(super) type Lines = Sender<Option<String>>;

/// Windows are chosen by phase, and carry its name.
pub(super) fn tell_workers(traces: &Path, phase: Phase) -> std::io::Result<()> {
    if !matches!(phase, Phase::Loading | Phase::WarmUp | Phase::Measuring) {
        return Ok(());
    }
    std::fs::write(traces.join(PHASE), phase.to_string())
}

/// The windows of one attempt.
pub(super) struct Packer {
    traces: PathBuf,
    lines: Lines,
    thread: Option<JoinHandle<Gatherer>>,
    load: Vec<LoadSample>,
}

impl Packer {
    pub(super) fn start(traces: &Path, run: &Run) -> Self {
        let (lines, heard) = channel::<Option<String>>();
        let room = run.plan.disk.as_ref().and_then(|disk| disk.max).map(|max| {
            let left = max.saturating_sub(folder_size(run.dir.root()).bytes);
            left - left / FOR_OTHERS
        });
        let mut gatherer = Gatherer::new(traces).with_room(room);
        let thread = std::thread::Builder::new().name("varcas-pack".to_owned()).spawn(move || {
            os::lowest_priority();
            while let Ok(Some(line)) = heard.recv() {
                gatherer.hear(&line);
            }
            gatherer
        });
        // Without a thread everything is done at the end.
        Self { traces: traces.to_owned(), lines, thread: thread.ok(), load: Vec::new() }
    }

    /// Where the lines of the index go.
    pub(super) fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Keeps what a window's listing will need.
    pub(super) fn observe(&mut self, fact: &EventKind) {
        if let EventKind::EngineSampled(Reading::Value(EngineSample { running, waiting, .. })) = fact {
            let t = wall_now().as_millisecond() as f64 / 1e3;
            self.load.push(LoadSample { t, running: *running, waiting: *waiting });
        }
    }

    /// Takes the rest, and writes the listing. Blocks.
    pub(super) fn finish(self, run: &str, attempt: u32) -> Collected {
        let Self { traces, lines, thread, load } = self;
        drop(lines.send(None));
        let gatherer = thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| Gatherer::new(&traces));
        let mut collected = gatherer.finish();
        let mut made = listing(run, attempt, &collected.index, &collected.traces, &load);
        for listed in &mut made.windows {
            if collected.gave_way.contains(&(listed.rank, listed.window)) {
                listed.state = "removed".to_owned();
            }
        }
        let written = serde_json::to_vec_pretty(&made).map_err(std::io::Error::from).and_then(|text| {
            let unfinished = traces.join(format!(".{LISTING}.tmp"));
            std::fs::write(&unfinished, text)?;
            std::fs::rename(&unfinished, traces.join(LISTING))
        });
        if let Err(error) = written {
            collected.problems.push(format!("{LISTING} could not be written: {error}"));
        }
        collected
    }
}
