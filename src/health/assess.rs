//! Hung, or only busy? Pure: events go in, suspicions come out.
//!
//! Each phase has its own signs of life. While the server serves, only counters and streams count: a standstill is that
//! none of them moves while work is pending. What the processes and GPUs do meanwhile does not excuse it but gives it a
//! name, and each name has its patience. A kill needs two independent sources that agree, and while any counter
//! moves there is none.

use super::signs::{Signs, Verdict};
use crate::config::Patience;
use crate::event::{
    EngineSample, EventKind, HangKind, LoadProgress, Phase, Reading, Suspicion, SuspicionStep, WindowEvent,
};
use crate::time::Stamp;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

/// What can be said about life at a moment.
#[derive(Debug, Clone, PartialEq)]
pub enum Life {
    /// Other clocks watch this phase.
    NotWatched,
    /// No work is pending; the clock stands.
    Idle,
    /// Something moved this long ago, which means nothing yet.
    Moving {
        /// Since the last movement.
        still: Duration,
    },
    /// Nothing moves.
    Standing(Suspicion),
}

/// Without an event for longer than this, or with a wall clock that ran so much more than the monotonic one, it was we
/// who stood still (a laptop that slept, a stopped guard), and every clock begins anew.
const OWN_GAP: Duration = Duration::from_secs(30);

/// Gaps between movements that are remembered, and how many are needed so that one outlier teaches nothing.
const GAPS: usize = 2048;
const MIN_GAPS: usize = 100;

/// What moves so soon after the stock profiler was asked to stop may have moved before.
const SETTLING: Duration = Duration::from_secs(5);

/// So often must the engine move before the stock profiler is taken to be done.
const STOCK_MOVES: u32 = 5;

/// Resident memory or files must grow by this much to be a sign of life.
const GROWTH: u64 = 256 << 10;

/// Judges the life of a server from the events of its run.
#[derive(Debug, Clone)]
pub struct Assessor {
    patience: Patience,
    phase: Phase,
    last: Option<Stamp>,
    /// When something that counts in this phase moved last.
    moved: Duration,
    engine: Option<EngineSample>,
    engine_seen: Option<Duration>,
    engine_moved: Duration,
    load: Option<LoadProgress>,
    load_seen: Option<Duration>,
    streams_moved: Duration,
    /// When a request for one token was not answered.
    probe_failed: Option<Duration>,
    signs: Signs,
    memory: Level,
    gpu_memory: Level,
    /// Bytes that the processes have written to files, and read from them.
    written: Level,
    read: Level,
    traces: u64,
    logs: u64,
    open_flushes: HashSet<(u32, u32)>,
    /// The stock profiler was asked to stop; it says nothing more until it is done.
    stock_flush: bool,
    /// How often the engine has moved since; one step in the middle does not end it (measured on an H100: `stop()` took
    /// 70 s, then the engine took a step, then the export took minutes).
    stock_moves: u32,
    flush_began: Option<Duration>,
    grew: Duration,
    gaps: VecDeque<Duration>,
    kineto: bool,
    /// The kind of the present standstill, and since when it looks like that.
    kind: Option<(HangKind, Duration)>,
    told: Option<(SuspicionStep, HangKind)>,
}

impl Assessor {
    /// Before the first event.
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            phase: Phase::Preflight,
            last: None,
            moved: Duration::ZERO,
            engine: None,
            engine_seen: None,
            engine_moved: Duration::ZERO,
            load: None,
            load_seen: None,
            streams_moved: Duration::ZERO,
            probe_failed: None,
            signs: Signs::default(),
            memory: Level::default(),
            gpu_memory: Level::default(),
            written: Level::default(),
            read: Level::default(),
            traces: 0,
            logs: 0,
            open_flushes: HashSet::new(),
            stock_flush: false,
            stock_moves: 0,
            flush_began: None,
            grew: Duration::ZERO,
            gaps: VecDeque::new(),
            kineto: false,
            kind: None,
            told: None,
        }
    }

    /// Takes an event, with conclusions like `PhaseEntered` among them, and tells when a standstill begins, becomes
    /// surer, changes its kind, or ends. An event a second (processes are sampled that often) is enough of a clock.
    pub fn feed(&mut self, at: Stamp, event: &EventKind) -> Option<Suspicion> {
        self.notice_own_gap(at);
        let now = at.mono;
        match event {
            EventKind::AttemptStarted {} => {
                let patience = self.patience.clone();
                *self = Self { last: Some(at), gaps: std::mem::take(&mut self.gaps), ..Self::new(patience) };
                self.forgive(now);
            }
            EventKind::PhaseEntered { phase, .. } => {
                self.phase = *phase;
                self.load = None;
                self.flush_began = (*phase == Phase::Flushing).then_some(now);
                self.forgive(now);
            }
            EventKind::EngineSampled(Reading::Value(sample)) => self.engine_sampled(now, sample),
            EventKind::LoadProgressed(progress) => self.load_progressed(now, progress),
            EventKind::ProcessesSampled { processes } => {
                self.signs.processes(now, processes);
                let grew = self.memory.grows_to(processes.iter().map(|process| process.rss).sum());
                let written = processes.iter().map(|process| process.written_bytes);
                let wrote = written.sum::<Option<u64>>().is_some_and(|sum| self.written.grows_to(sum));
                let read = processes.iter().map(|process| process.read_bytes);
                let fetched = read.sum::<Option<u64>>().is_some_and(|sum| self.read.grows_to(sum));
                if self.phase == Phase::Loading && (self.signs.cpu_rate() >= 0.02 || grew || wrote || fetched)
                {
                    self.move_on(now);
                }
                if grew || wrote {
                    self.grew = now;
                }
            }
            EventKind::GpusSampled(reading) => {
                self.signs.gpus(now, reading);
                if self.gpu_memory.grows_to(self.signs.gpu_memory()) && self.phase == Phase::Loading {
                    self.move_on(now);
                }
            }
            EventKind::DiskSampled { traces, logs, .. } => {
                self.disk_sampled(now, traces.value(), logs.value())
            }
            EventKind::Window(line) => self.window(now, line.rank, &line.what),
            EventKind::Probed { error: None, .. } if self.serving() => self.move_on(now),
            EventKind::Probed { error: Some(_), .. } => self.probe_failed = Some(now),
            // Compilers come and go.
            EventKind::ProcessSeen { .. } | EventKind::ProcessExited { .. }
                if matches!(self.phase, Phase::Loading | Phase::WarmUp) =>
            {
                self.move_on(now);
            }
            EventKind::Finding(finding) => match finding.cause.as_str() {
                "kineto-thread-mismatch" => self.kineto = true,
                "profiler-flush-stall" => {
                    (self.stock_flush, self.stock_moves) = (true, 0);
                    self.flush_began.get_or_insert(now);
                    self.grew = now;
                }
                _ => {}
            },
            _ => {}
        }
        self.tell(now)
    }

    fn notice_own_gap(&mut self, at: Stamp) {
        if let Some(last) = self.last.replace(at) {
            let mono = at.mono.saturating_sub(last.mono);
            let wall = at.wall.duration_since(last.wall).as_secs_f64();
            if mono > OWN_GAP || (wall - mono.as_secs_f64()).abs() > OWN_GAP.as_secs_f64() {
                self.forgive(at.mono);
            }
        }
    }

    /// Every clock begins now; what was seen before is the baseline.
    fn forgive(&mut self, now: Duration) {
        (self.moved, self.engine_moved, self.streams_moved, self.grew) = (now, now, now, now);
        (self.engine_seen, self.load_seen, self.probe_failed, self.kind) = (None, None, None, None);
        self.flush_began = self.flush_began.map(|_| now);
        self.signs.clear();
    }

    /// Something that counts has moved.
    fn move_on(&mut self, now: Duration) {
        let gap = now.saturating_sub(self.moved);
        // A flush is known to take long and says nothing about the next standstill.
        let usual = self.phase == Phase::Measuring && self.flush_began.is_none() && self.pending();
        if usual && gap > Duration::ZERO {
            self.gaps.push_back(gap);
            if self.gaps.len() > GAPS {
                self.gaps.pop_front();
            }
        }
        self.moved = now;
        self.kind = None;
        // What was seen before says nothing about a standstill that begins now. While the server loads, the looks are
        // what moves.
        if self.serving() {
            self.signs.clear();
        }
    }

    fn engine_sampled(&mut self, now: Duration, sample: &EngineSample) {
        // A counter that goes back belongs to a restarted engine, which is alive as well. The gauges count too: only
        // the engine's own loop sets them.
        if self.engine.is_some_and(|before| before != *sample) {
            self.engine_moved = now;
            if self.serving() {
                self.move_on(now);
            }
            // The last steps before the stop may be seen after the log line.
            let begun = self.flush_began.is_none_or(|began| now.saturating_sub(began) > SETTLING);
            self.stock_moves += u32::from(self.stock_flush && begun);
            if self.stock_moves >= STOCK_MOVES {
                (self.stock_flush, self.stock_moves) = (false, 0);
                self.flush_began = None;
            }
        }
        self.engine = Some(*sample);
        self.engine_seen = Some(now);
    }

    fn load_progressed(&mut self, now: Duration, progress: &LoadProgress) {
        let counters = |p: &LoadProgress| (p.chunks, p.completed, p.prompt_tokens, p.output_tokens);
        // What we send and what fails for lack of an answer are our own doing and no sign of the server's life.
        if self.load.is_none_or(|before| counters(&before) != counters(progress)) {
            self.streams_moved = now;
            if self.serving() {
                self.move_on(now);
            }
        }
        if progress.in_flight == 0 {
            self.streams_moved = now;
        }
        self.load = Some(*progress);
        self.load_seen = Some(now);
    }

    fn disk_sampled(&mut self, now: Duration, traces: Option<&u64>, logs: Option<&u64>) {
        if let Some(traces) = traces {
            if *traces > self.traces {
                self.grew = now;
            }
            self.traces = *traces;
        }
        if let Some(logs) = logs {
            if self.phase == Phase::Loading && *logs > self.logs {
                self.move_on(now);
            }
            self.logs = *logs;
        }
    }

    fn window(&mut self, now: Duration, rank: u32, what: &WindowEvent) {
        match what {
            WindowEvent::Flushing { window } => {
                self.open_flushes.insert((rank, *window));
                self.flush_began.get_or_insert(now);
                self.grew = now;
            }
            WindowEvent::Closed { window, .. } | WindowEvent::Failed { window, .. } => {
                self.open_flushes.remove(&(rank, *window));
                self.move_on(now);
            }
            WindowEvent::Disabled { .. } | WindowEvent::Finished {} => {
                self.open_flushes.retain(|(of, _)| *of != rank);
                self.move_on(now);
            }
            WindowEvent::Hello { .. }
            | WindowEvent::Opened { .. }
            | WindowEvent::Planned { .. }
            | WindowEvent::Primed { .. } => self.move_on(now),
            WindowEvent::Held { .. } => {}
        }
        if self.phase != Phase::Flushing && self.open_flushes.is_empty() && !self.stock_flush {
            self.flush_began = None;
        }
    }

    fn serving(&self) -> bool {
        matches!(self.phase, Phase::WarmUp | Phase::Measuring)
    }

    fn pending(&self) -> bool {
        match (self.phase, &self.load, &self.engine) {
            (Phase::Measuring, Some(load), _) => load.in_flight > 0,
            // The gauges may be stale in a hang, but then they say what was pending.
            (Phase::Measuring, None, Some(engine)) => engine.running + engine.waiting > 0.0,
            (Phase::Measuring, None, None) => false,
            // Our own requests are under way, or files are loaded or written.
            _ => true,
        }
    }

    /// Kind, patience and reasons of the present standstill.
    fn name(&self, now: Duration) -> Verdict {
        let flush = self.flush_began.filter(|_| now.saturating_sub(self.grew) < self.patience.flush_still);
        if let Some(began) = flush {
            let lasted = now.saturating_sub(began).as_secs();
            let grew = now.saturating_sub(self.grew).as_secs();
            let reason = format!("the profiler has been writing for {lasted} s and grew {grew} s ago");
            return Verdict { kind: HangKind::ProfilerFlush, reasons: vec![reason] };
        }
        self.signs.name()
    }

    fn patience_for(&self, kind: HangKind) -> Duration {
        let p = &self.patience;
        let base = match kind {
            HangKind::Stopped => return p.stopped,
            HangKind::ProfilerFlush => return p.flush,
            // A model on a slow disk sleeps uninterruptibly as well.
            _ if self.phase == Phase::Loading => return p.loading,
            HangKind::DriverDead => p.driver_dead,
            HangKind::GpuSpin => p.gpu_spin,
            HangKind::GpuIdleHostIdle => p.idle,
            HangKind::HostBusy if self.phase == Phase::WarmUp => p.compile,
            HangKind::HostBusy => p.host_busy,
            HangKind::Client => p.client,
            HangKind::Undetermined => p.undetermined,
        };
        let cut = if self.kineto { base.mul_f64(p.kineto_factor.clamp(0.0, 1.0)) } else { base };
        cut.max(self.learned())
    }

    /// What the run's own gaps ask for.
    fn learned(&self) -> Duration {
        if self.gaps.len() < MIN_GAPS {
            return Duration::ZERO;
        }
        let mut gaps: Vec<Duration> = self.gaps.iter().copied().collect();
        let rank = (gaps.len() * 99).div_ceil(100) - 1;
        let (_, p99, _) = gaps.select_nth_unstable(rank);
        p99.mul_f64(self.patience.adapt_factor.max(0.0)).min(self.patience.adapt_max)
    }

    /// What can be said now. Remembers since when a standstill looks as it does.
    fn judge(&mut self, now: Duration) -> Life {
        if !(self.serving() || matches!(self.phase, Phase::Loading | Phase::Flushing)) {
            return Life::NotWatched;
        }
        if !self.pending() {
            self.moved = now;
            self.kind = None;
            return Life::Idle;
        }
        if let Some(client) = self.client(now) {
            return Life::Standing(client);
        }
        let still = now.saturating_sub(self.moved);
        if still < self.patience.suspect_after {
            return Life::Moving { still };
        }
        let Verdict { kind, mut reasons } = self.name(now);
        let since = match self.kind {
            Some((before, since)) if before == kind => since,
            Some((HangKind::ProfilerFlush, _)) => self.grew,
            Some((before, _)) if before != HangKind::Undetermined => now,
            // The first name holds for the whole standstill.
            _ => self.moved,
        };
        self.kind = Some((kind, since));
        let patience = self.patience_for(kind);
        let step = self.step(now, kind, since, patience, &mut reasons);
        Life::Standing(Suspicion { step, kind, still, patience, reasons })
    }

    fn step(
        &self,
        now: Duration,
        kind: HangKind,
        since: Duration,
        patience: Duration,
        reasons: &mut Vec<String>,
    ) -> SuspicionStep {
        // A failed scrape proves nothing: a source counts only with a value from the time of the standstill.
        let fresh = |seen: Option<Duration>| seen.is_some_and(|seen| seen > self.moved);
        let engine = self.serving() && fresh(self.engine_seen);
        let streams = self.serving() && fresh(self.load_seen);
        let probed = self.serving() && fresh(self.probe_failed);
        let named = kind != HangKind::Undetermined;
        if engine {
            reasons.push("the engine's counters stand still while work is pending".to_owned());
        }
        if streams {
            reasons.push("no stream of ours moves".to_owned());
        }
        if probed {
            reasons.push("a request for one token was not answered".to_owned());
        }
        // Outside of serving, two looks at the processes that agree stand for the counters.
        let quiet = !self.serving() && self.signs.looks() >= 2;
        let sources = [engine, streams, probed, named, quiet].into_iter().filter(|agrees| *agrees).count();
        // A flush is counted from its beginning, or it could outlast its budget by growing a little now and then.
        let flushing = kind == HangKind::ProfilerFlush;
        let from = if flushing { self.flush_began.unwrap_or(since) } else { since };
        // A change of looks begins the patience anew, or the last seconds of a compile could look like a deadlock of
        // three minutes; but the longest patience of all is not exceeded by changing looks.
        let quiet_since = if self.flush_began.is_some() { self.moved.max(self.grew) } else { self.moved };
        let longest = self.patience_for(HangKind::Undetermined).max(patience);
        let spent =
            now.saturating_sub(from) >= patience || (!flushing && now.saturating_sub(quiet_since) >= longest);
        match sources {
            0 | 1 => SuspicionStep::Suspect,
            _ if spent => SuspicionStep::Act,
            _ => SuspicionStep::Confirmed,
        }
    }

    /// The server progresses and our streams do not: told, and left to the time limit of the requests.
    fn client(&self, now: Duration) -> Option<Suspicion> {
        let still = now.saturating_sub(self.streams_moved);
        let engine_moves = now.saturating_sub(self.engine_moved) < self.patience.suspect_after;
        let patience = self.patience_for(HangKind::Client);
        let ours = self.phase == Phase::Measuring && self.load.is_some_and(|load| load.in_flight > 0);
        (ours && engine_moves && self.engine_moved > self.streams_moved && still >= patience / 2).then(|| {
            Suspicion {
                step: if still >= patience { SuspicionStep::Confirmed } else { SuspicionStep::Suspect },
                kind: HangKind::Client,
                still,
                patience,
                reasons: vec!["the engine's counters move, but no stream of ours does".to_owned()],
            }
        })
    }

    fn tell(&mut self, now: Duration) -> Option<Suspicion> {
        let life = self.judge(now);
        if life == Life::NotWatched {
            self.told = None;
            return None;
        }
        let new = match &life {
            Life::Standing(suspicion) => Some((suspicion.step, suspicion.kind)),
            _ => None,
        };
        if new == self.told {
            return None;
        }
        let before = std::mem::replace(&mut self.told, new);
        match (life, before) {
            (Life::Standing(suspicion), _) => Some(suspicion),
            (_, Some((_, kind))) => Some(Suspicion {
                step: SuspicionStep::Cleared,
                kind,
                still: now.saturating_sub(self.moved),
                patience: self.patience_for(kind),
                reasons: Vec::new(),
            }),
            (_, None) => None,
        }
    }

    /// What can be said at this moment, for a status line.
    pub fn life(&mut self, now: Duration) -> Life {
        self.judge(now)
    }
}

/// A level that only counts as growing when it has grown by [`GROWTH`], however slowly.
#[derive(Debug, Default, Clone)]
struct Level(u64);

impl Level {
    fn grows_to(&mut self, now: u64) -> bool {
        let grew = now >= self.0.saturating_add(GROWTH);
        // A process that ended takes its memory along; growth counts from there.
        if grew || now < self.0 {
            self.0 = now;
        }
        grew
    }
}

#[cfg(test)]
#[path = "assess_tests.rs"]
mod tests;
