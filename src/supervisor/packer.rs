//! Compresses finished windows while the run goes on, on a thread of the lowest priority: the benchmark comes first.

use super::layout::RunDir;
use super::os;
use super::performer::Run;
use crate::event::{EngineSample, EventKind, GaveWay, Phase, Reading};
use crate::health::disk::folder_size;
use crate::time::wall_now;
use crate::workload::profiler::listing::{LISTING, LoadSample, listing};
use crate::workload::profiler::make_room::make_room;
use crate::workload::profiler::windows::{Collected, Gatherer, PHASE};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use tokio::sync::mpsc::UnboundedSender;

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

/// At least half of the room is for the attempt that begins: windows of those before it give way, of the oldest first.
fn make_room_before(dir: &RunDir, attempt: u32, max: u64, facts: &UnboundedSender<EventKind>) {
    for of in 1..attempt {
        let too_much = folder_size(dir.root()).bytes.saturating_sub(max / 2);
        if too_much == 0 {
            return;
        }
        let said = match make_room(&dir.attempt(of).traces(), too_much) {
            Ok((files, _)) if files.is_empty() => continue,
            Ok((files, bytes)) => EventKind::WindowsGaveWay(GaveWay { of, files, bytes }),
            Err(error) => {
                let what = format!("make room in the traces of attempt {of}");
                EventKind::Trouble { what, error: error.to_string() }
            }
        };
        drop(facts.send(said));
    }
}

/// The windows of one attempt.
pub(super) struct Packer {
    traces: PathBuf,
    lines: Lines,
    thread: Option<JoinHandle<Gatherer>>,
    load: Vec<LoadSample>,
    /// The benchmark is over: what is left is not for a thread that yields to everybody.
    hurry: Arc<AtomicBool>,
}

impl Packer {
    pub(super) fn start(traces: &Path, run: &Run, attempt: u32, facts: UnboundedSender<EventKind>) -> Self {
        let (lines, heard) = channel::<Option<String>>();
        let max = run.plan.disk.as_ref().and_then(|disk| disk.max);
        let (dir, mut gatherer) = (run.dir.clone(), Gatherer::new(traces));
        let hurry = Arc::new(AtomicBool::new(false));
        let hurried = Arc::clone(&hurry);
        let thread = std::thread::Builder::new().name("varcas-pack".to_owned()).spawn(move || {
            os::lowest_priority();
            if let Some(max) = max {
                make_room_before(&dir, attempt, max, &facts);
                let left = max.saturating_sub(folder_size(dir.root()).bytes);
                gatherer = gatherer.with_room(Some(left - left / FOR_OTHERS));
            }
            while let Ok(Some(line)) = heard.recv() {
                // With a limit each window is taken in its turn, so that others can give way to it.
                if max.is_none() && hurried.load(Ordering::Relaxed) {
                    break;
                }
                gatherer.hear(&line);
            }
            gatherer
        });
        // Without a thread everything is done at the end.
        Self { traces: traces.to_owned(), lines, thread: thread.ok(), load: Vec::new(), hurry }
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
        let Self { traces, lines, thread, load, hurry } = self;
        hurry.store(true, Ordering::Relaxed);
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
