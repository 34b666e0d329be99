//! Asks the system why a process died that nobody of ours has killed.

use super::family::Family;
use crate::event::{EventKind, Phase, ProcId, ProcSample, Reading};
use crate::health::deaths::{self, Deaths};
use crate::health::system::xid_clue;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::UnboundedSender;

/// What is known of the living, for when they are dead.
#[derive(Debug, Default)]
pub(super) struct Autopsy {
    deaths: Arc<Mutex<Deaths>>,
    family: Family,
    /// As last sampled.
    last: BTreeMap<ProcId, ProcSample>,
    /// Memory that was free at that time.
    available: Option<u64>,
    /// Whom we have signalled.
    struck: BTreeSet<ProcId>,
}

impl Autopsy {
    /// Hears every fact of the attempt; what the system says about a death becomes a fact too.
    pub(super) fn observe(&mut self, fact: &EventKind, phase: Phase, facts: &UnboundedSender<EventKind>) {
        match fact {
            EventKind::ProcessesSampled { processes } => {
                self.last = processes.iter().map(|sample| (sample.proc, sample.clone())).collect();
                self.available = deaths::available();
            }
            EventKind::ProcessSeen { proc, ppid, comm } => self.family.seen(*proc, *ppid, comm),
            EventKind::SignalSent { targets, .. } => self.struck.extend(targets),
            EventKind::GpusSampled(Reading::Value(gpus)) => {
                let clues = gpus.iter().filter_map(|gpu| xid_clue(gpu.xid?, "NVML", None));
                clues.for_each(|clue| drop(facts.send(EventKind::Clue(clue))));
            }
            // Its last words may have been read before, and have ended the attempt; it died by itself as long as we have struck
            // nobody.
            EventKind::ProcessExited { proc, comm, how, main, .. }
                if (*main || self.family.is_essential(*proc, comm))
                    && !self.struck.contains(proc)
                    && (matches!(
                        phase,
                        Phase::Loading | Phase::WarmUp | Phase::Measuring | Phase::Flushing
                    ) || phase == Phase::Draining && self.struck.is_empty()) =>
            {
                let (proc, comm, how, available) = (*proc, comm.clone(), *how, self.available);
                let (deaths, last, facts) =
                    (Arc::clone(&self.deaths), self.last.get(&proc).cloned(), facts.clone());
                tokio::task::spawn_blocking(move || {
                    let mut deaths = deaths.lock().unwrap_or_else(PoisonError::into_inner);
                    for clue in deaths.explain(proc, &comm, how, last.as_ref(), available) {
                        // The run may be over.
                        drop(facts.send(EventKind::Clue(clue)));
                    }
                });
            }
            _ => {}
        }
    }
}
