//! How much of a run its journal takes. Pure.
//!
//! Up to [`WHOLE`] bytes everything is written. From there on, one sample of each kind a minute is; from [`FULL`] bytes
//! on, only what changes the run or is told to people, and how often that happens is bounded by the attempts. The run
//! itself goes on as before: the machine, and everybody who looks on, hears all of it. A replay hears only what is
//! written, so the journal says from where on it is thinned, and a replay vouches for what stands before.

use crate::event::{EventKind, ExitHow};
use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

/// Bytes up to which everything is written.
pub const WHOLE: u64 = 256 << 20;
/// Bytes from which on no sample is written.
pub const FULL: u64 = 384 << 20;
/// Between two samples of one kind, once they are rare.
const RARELY: Duration = Duration::from_secs(60);

/// Decides line by line.
#[derive(Debug)]
pub(super) struct Ration {
    whole: u64,
    full: u64,
    taken: u64,
    /// When the last one of each kind was let through, once they are rare.
    last: HashMap<Discriminant<EventKind>, Duration>,
    told: Rate,
}

/// How many of the samples are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rate {
    All,
    Rare,
    None,
}

impl Ration {
    pub(super) fn new(whole: u64, full: u64) -> Self {
        Self { whole, full, taken: 0, last: HashMap::new(), told: Rate::All }
    }

    fn rate(&self) -> Rate {
        match self.taken {
            taken if taken < self.whole => Rate::All,
            taken if taken < self.full => Rate::Rare,
            _ => Rate::None,
        }
    }

    /// Whether it is written.
    pub(super) fn admits(&mut self, now: Duration, kind: &EventKind) -> bool {
        match self.rate() {
            Rate::All => true,
            Rate::Rare if is_sample(kind) => {
                let last = self.last.get(&discriminant(kind));
                let due = last.is_none_or(|last| now.saturating_sub(*last) >= RARELY);
                if due {
                    self.last.insert(discriminant(kind), now);
                }
                due
            }
            Rate::Rare => true,
            Rate::None => !(is_sample(kind) || comes_and_goes(kind)),
        }
    }

    /// So many bytes were written.
    pub(super) fn take(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes as u64);
    }

    /// What the journal must say before its next line: from here on it is thinner.
    pub(super) fn news(&mut self) -> Option<EventKind> {
        let now = self.rate();
        if std::mem::replace(&mut self.told, now) == now {
            return None;
        }
        Some(EventKind::JournalThinned { bytes: self.taken, every: (now == Rate::Rare).then_some(RARELY) })
    }
}

/// What is measured again and again.
fn is_sample(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::LoadProgressed(_)
            | EventKind::EngineSampled(_)
            | EventKind::ProcessesSampled { .. }
            | EventKind::GpusSampled(_)
            | EventKind::DiskSampled { .. }
    )
}

/// What a server can do any number of times without anything being wrong: windows, and helpers that end as they should.
fn comes_and_goes(kind: &EventKind) -> bool {
    match kind {
        EventKind::ProcessSeen { .. } | EventKind::Window(_) => true,
        EventKind::ProcessExited { how: ExitHow::Code { code: 0 }, main: false, comm, .. } => {
            !comm.starts_with("VLLM::")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EngineSample, LoadProgress, ProcId, Reading};

    fn engine() -> EventKind {
        EventKind::EngineSampled(Reading::Value(EngineSample::default()))
    }

    fn progress() -> EventKind {
        EventKind::LoadProgressed(LoadProgress::default())
    }

    fn ended(comm: &str, how: ExitHow, main: bool) -> EventKind {
        EventKind::ProcessExited { proc: ProcId { pid: 7, start: 1 }, comm: comm.into(), how, main }
    }

    fn admitted(ration: &mut Ration, seconds: std::ops::Range<u64>, kind: &EventKind) -> usize {
        seconds.filter(|second| ration.admits(Duration::from_secs(*second), kind)).count()
    }

    #[test]
    fn everything_is_written_up_to_the_mark_then_one_a_minute_of_each_kind_then_no_sample() {
        let mut ration = Ration::new(1000, 2000);
        ration.take(999);
        assert_eq!(admitted(&mut ration, 0..300, &engine()), 300);
        assert_eq!(ration.news(), None);
        ration.take(1);
        assert_eq!(
            ration.news(),
            Some(EventKind::JournalThinned { bytes: 1000, every: Some(Duration::from_secs(60)) })
        );
        assert_eq!(ration.news(), None, "once");
        assert_eq!(admitted(&mut ration, 300..600, &engine()), 5);
        assert_eq!(admitted(&mut ration, 300..600, &progress()), 5, "each kind for itself");
        assert_eq!(admitted(&mut ration, 300..600, &EventKind::AttemptStarted {}), 300);
        ration.take(1000);
        assert_eq!(ration.news(), Some(EventKind::JournalThinned { bytes: 2000, every: None }));
        assert_eq!(admitted(&mut ration, 600..10_000, &engine()), 0);
        assert_eq!(admitted(&mut ration, 600..900, &EventKind::AttemptStarted {}), 300);
    }

    #[test]
    fn a_storm_of_helpers_does_not_fill_the_journal_and_a_death_that_matters_is_always_written() {
        let mut ration = Ration::new(1, 2);
        ration.take(1);
        let well = ExitHow::Code { code: 0 };
        assert!(ration.admits(Duration::ZERO, &ended("nvcc", well, false)), "there is room");
        ration.take(1);
        assert!(!ration.admits(Duration::ZERO, &ended("nvcc", well, false)));
        assert!(!ration.admits(
            Duration::ZERO,
            &EventKind::ProcessSeen { proc: ProcId { pid: 7, start: 1 }, ppid: 1, comm: "nvcc".into() }
        ));
        let killed = ExitHow::Signal { signal: 9, core: false };
        for kind in
            [ended("nvcc", killed, false), ended("VLLM::Worker", well, false), ended("python", well, true)]
        {
            assert!(ration.admits(Duration::ZERO, &kind), "{kind:?}");
        }
    }
}
