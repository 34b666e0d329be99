//! What the charts of a report show: measurements over time, a track for each attempt, collected while the journal
//! streams by. Pure, and in bounded memory however long the run was: when a track outgrows its bins, two become one.

use crate::event::{
    EngineSample, Event, EventKind, GpuSample, LoadProgress, Outcome, ProcId, ProcSample, Reading,
    SuspicionStep, WindowEvent, WindowLine,
};
use crate::time::Stamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// More points than a chart of this width can show are no use.
const BINS: usize = 180;

/// The width of a bin at first: finer than the senses sample.
const FIRST_WIDTH: Duration = Duration::from_millis(250);

/// Bands of one kind that are kept apart.
const SPANS: usize = 160;

/// Attempts whose tracks are kept: the first ones show what was wrong, the last ones what became of it.
const KEEP_FIRST: usize = 3;
const KEEP_LAST: usize = 5;

/// Ranks whose windows are followed; the others do the same at the same time.
const RANKS: usize = 256;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    /// Requests sent so far.
    Sent,
    /// Requests that have succeeded so far.
    Completed,
    /// Requests that have failed so far.
    Failed,
    /// Requests open at the client.
    Open,
    /// Requests that the engine works on.
    Running,
    /// Requests that wait in the engine.
    Waiting,
    /// Output tokens per second by the engine's counter.
    OutputRate,
    /// Prompt tokens per second by the engine's counter.
    PromptRate,
    /// Pieces of streams per second that reached the client.
    PieceRate,
    /// Median time to first token of the requests that have just succeeded, in milliseconds.
    TtftMedian,
    /// The longest of them.
    TtftMax,
    /// Share of the KV cache in use, in percent.
    KvUsage,
    /// Percent of time that a GPU had work.
    GpuUtil,
    /// Percent of time that a GPU's memory was read or written.
    GpuMemUtil,
    /// Watts.
    GpuPower,
    /// Bytes in use.
    GpuMemory,
    /// Resident bytes of the server's processes together.
    Rss,
    /// Processor cores that they kept busy.
    Cores,
}

impl Metric {
    const COUNT: usize = Self::Cores as usize + 1;
}

/// All values that fell into one stretch of time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bin {
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    sum: f64,
    /// Sum of their moments in seconds.
    moments: f64,
    /// How many.
    pub n: u64,
    /// Somebody tried and could not read it.
    pub lost: bool,
}

impl Bin {
    const EMPTY: Self =
        Self { min: f64::INFINITY, max: f64::NEG_INFINITY, sum: 0.0, moments: 0.0, n: 0, lost: false };

    /// Their mean; none when there are none.
    pub fn mean(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "nobody samples that often")]
        (self.n > 0).then(|| self.sum / self.n as f64)
    }

    /// When they were taken, on average; in seconds since the attempt began.
    pub fn moment(&self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "nobody samples that often")]
        (self.n > 0).then(|| self.moments / self.n as f64)
    }

    fn add(&mut self, since: Duration, value: f64) {
        self.moments += since.as_secs_f64();
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        self.sum += value;
        self.n += 1;
    }

    fn join(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            sum: self.sum + other.sum,
            moments: self.moments + other.moments,
            n: self.n + other.n,
            lost: self.lost || other.lost,
        }
    }
}

/// Stretches of time, joined where they are too many to be told apart.
#[derive(Debug, Clone, Default)]
pub struct Spans {
    list: Vec<(Duration, Duration)>,
    join_below: Duration,
    count: u64,
}

impl Spans {
    /// From and to, since the attempt began.
    pub fn list(&self) -> &[(Duration, Duration)] {
        &self.list
    }

    /// How many there were before any were joined.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn add(&mut self, from: Duration, to: Duration) {
        self.count += 1;
        self.push(from, to.max(from));
        while self.list.len() > SPANS {
            let step = Duration::from_millis(50);
            self.join_below = (self.join_below * 2).max(step);
            for (from, to) in std::mem::take(&mut self.list) {
                self.push(from, to);
            }
        }
    }

    fn push(&mut self, from: Duration, to: Duration) {
        match self.list.last_mut() {
            Some(last) if from <= last.1 + self.join_below => {
                *last = (last.0.min(from), last.1.max(to));
            }
            _ => self.list.push((from, to)),
        }
    }
}

/// One attempt over time.
#[derive(Debug, Clone)]
pub struct Track {
    /// The attempt.
    pub attempt: u32,
    /// Its first event, since the run began.
    pub from: Duration,
    /// Its last event.
    pub to: Duration,
    /// Width of a bin.
    pub width: Duration,
    bins: Vec<Vec<Bin>>,
    /// While at least one rank recorded.
    pub windows: Spans,
    /// While at least one rank processed and wrote what it had recorded.
    pub flushes: Spans,
    /// While nothing moved although work was pending, and then it went on; a compile looks like that too.
    pub pauses: Spans,
    /// The standstill of which the attempt was lost.
    pub stills: Spans,
    /// The moment at which it was lost, since the attempt began.
    pub failed_at: Option<Duration>,
    /// Most GPUs seen in one sample.
    pub gpus: usize,
    /// Whether it brought a benchmark home.
    has_benchmark: bool,
    ranks: BTreeMap<u32, (Duration, bool)>,
    still_since: Option<Duration>,
    engine: Option<(Duration, EngineSample)>,
    load: Option<(Duration, LoadProgress)>,
    cpu: Option<(Duration, BTreeMap<ProcId, f64>)>,
}

impl Track {
    fn new(attempt: u32, from: Duration) -> Self {
        Self {
            attempt,
            from,
            to: from,
            width: FIRST_WIDTH,
            bins: vec![Vec::new(); Metric::COUNT],
            windows: Spans::default(),
            flushes: Spans::default(),
            pauses: Spans::default(),
            stills: Spans::default(),
            failed_at: None,
            gpus: 0,
            has_benchmark: false,
            ranks: BTreeMap::new(),
            still_since: None,
            engine: None,
            load: None,
            cpu: None,
        }
    }

    /// The bins of a metric, from the beginning of the attempt; shorter than the attempt when nothing came later.
    pub fn bins(&self, metric: Metric) -> &[Bin] {
        &self.bins[metric as usize]
    }

    /// Whether there are values of two moments at least, which make a line.
    pub fn has_line(&self, metric: Metric) -> bool {
        self.bins(metric).iter().filter(|bin| bin.n > 0).nth(1).is_some()
    }

    /// Whether there is any value.
    pub fn has(&self, metric: Metric) -> bool {
        self.bins(metric).iter().any(|bin| bin.n > 0)
    }

    /// How long it lasted.
    pub fn length(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }

    fn since(&self, at: Duration) -> Duration {
        at.saturating_sub(self.from)
    }

    fn bin(&mut self, metric: Metric, at: Duration) -> &mut Bin {
        let since = self.since(at);
        while since.as_nanos() / self.width.as_nanos() >= BINS as u128 {
            self.width *= 2;
            for bins in &mut self.bins {
                *bins = bins
                    .chunks(2)
                    .map(|pair| pair.iter().copied().reduce(Bin::join).unwrap_or(Bin::EMPTY))
                    .collect();
            }
        }
        let index = usize::try_from(since.as_nanos() / self.width.as_nanos()).unwrap_or(BINS - 1);
        let bins = &mut self.bins[metric as usize];
        if bins.len() <= index {
            bins.resize(index + 1, Bin::EMPTY);
        }
        &mut bins[index]
    }

    fn add(&mut self, metric: Metric, at: Duration, value: f64) {
        if value.is_finite() {
            let since = self.since(at);
            self.bin(metric, at).add(since, value);
        }
    }

    fn lost(&mut self, metrics: &[Metric], at: Duration) {
        for metric in metrics {
            // Before the first value it is not lost but not there yet.
            if self.has(*metric) {
                self.bin(*metric, at).lost = true;
            }
        }
    }

    fn push(&mut self, event: &Event) {
        let at = event.at.mono;
        self.to = self.to.max(at);
        match &event.kind {
            EventKind::LoadProgressed(progress) => self.load(at, progress),
            EventKind::LoadFinished { .. } => self.has_benchmark = true,
            EventKind::EngineSampled(Reading::Value(sample)) => self.engine(at, sample),
            EventKind::EngineSampled(_) => {
                self.engine = None;
                let all = [
                    Metric::Running,
                    Metric::Waiting,
                    Metric::OutputRate,
                    Metric::PromptRate,
                    Metric::KvUsage,
                ];
                self.lost(&all, at);
            }
            EventKind::GpusSampled(Reading::Value(gpus)) => self.gpus(at, gpus),
            EventKind::GpusSampled(_) => {
                let all = [Metric::GpuUtil, Metric::GpuMemUtil, Metric::GpuPower, Metric::GpuMemory];
                self.lost(&all, at);
            }
            EventKind::ProcessesSampled { processes } if !processes.is_empty() => {
                self.processes(at, processes);
            }
            EventKind::Window(line) => self.window(event.at, line),
            EventKind::Suspicion(suspicion) => match suspicion.step {
                SuspicionStep::Suspect | SuspicionStep::Confirmed | SuspicionStep::Act => {
                    let since = self.since(at).saturating_sub(suspicion.still);
                    self.still_since.get_or_insert(since);
                }
                SuspicionStep::Cleared => self.stirs(at, false),
            },
            EventKind::AttemptEnding(ending) => {
                if ending.outcome != Outcome::Success {
                    let since = self.since(at);
                    self.failed_at.get_or_insert(since);
                }
                self.stirs(at, ending.outcome == Outcome::Hang);
            }
            EventKind::GuardDied { .. } => {
                let since = self.since(at);
                self.failed_at.get_or_insert(since);
            }
            _ => {}
        }
    }

    fn stirs(&mut self, at: Duration, was_fatal: bool) {
        if let Some(since) = self.still_since.take() {
            let now = self.since(at);
            (if was_fatal { &mut self.stills } else { &mut self.pauses }).add(since, now);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a chart has fewer digits")]
    fn load(&mut self, at: Duration, now: &LoadProgress) {
        self.add(Metric::Sent, at, now.sent as f64);
        self.add(Metric::Completed, at, now.completed as f64);
        self.add(Metric::Failed, at, now.failed as f64);
        self.add(Metric::Open, at, now.in_flight as f64);
        if now.recent_ttft_max_us > 0 {
            self.add(Metric::TtftMedian, at, now.recent_ttft_p50_us as f64 / 1e3);
            self.add(Metric::TtftMax, at, now.recent_ttft_max_us as f64 / 1e3);
        }
        if let Some((before, then)) = self.load.replace((at, *now))
            && let Some(rate) = rate(then.chunks as f64, now.chunks as f64, before, at)
        {
            self.add(Metric::PieceRate, at, rate);
        }
    }

    fn engine(&mut self, at: Duration, now: &EngineSample) {
        self.add(Metric::Running, at, now.running);
        self.add(Metric::Waiting, at, now.waiting);
        self.add(Metric::KvUsage, at, now.kv_usage * 100.0);
        if let Some((before, then)) = self.engine.replace((at, *now)) {
            let rates = [
                (Metric::OutputRate, then.generation_tokens, now.generation_tokens),
                (Metric::PromptRate, then.prompt_tokens, now.prompt_tokens),
            ];
            for (metric, then, now) in rates {
                if let Some(rate) = rate(then, now, before, at) {
                    self.add(metric, at, rate);
                }
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a chart has fewer digits")]
    fn gpus(&mut self, at: Duration, gpus: &[GpuSample]) {
        self.gpus = self.gpus.max(gpus.len());
        for gpu in gpus {
            let values = [
                (Metric::GpuUtil, gpu.util.value().map(|v| f64::from(*v))),
                (Metric::GpuMemUtil, gpu.mem_util.value().map(|v| f64::from(*v))),
                (Metric::GpuPower, gpu.power_w.value().copied()),
                (Metric::GpuMemory, gpu.mem_used.value().map(|v| *v as f64)),
            ];
            for (metric, value) in values {
                match value {
                    Some(value) => self.add(metric, at, value),
                    None => self.lost(&[metric], at),
                }
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a chart has fewer digits")]
    fn processes(&mut self, at: Duration, processes: &[ProcSample]) {
        self.add(Metric::Rss, at, processes.iter().map(|p| p.rss as f64).sum());
        let now: BTreeMap<ProcId, f64> = processes.iter().map(|p| (p.proc, p.cpu_s)).collect();
        if let Some((before, then)) = self.cpu.take() {
            let passed = at.saturating_sub(before).as_secs_f64();
            if passed >= 0.05 {
                let used = |p: &ProcSample| {
                    let spent = p.cpu_s - then.get(&p.proc)?;
                    // A parent inherits the whole account of a child that it reaps.
                    Some(spent.clamp(0.0, passed * p.threads.max(1) as f64))
                };
                let used: f64 = processes.iter().filter_map(used).sum();
                self.add(Metric::Cores, at, used / passed);
            }
        }
        self.cpu = Some((at, now));
    }

    fn window(&mut self, read: Stamp, line: &WindowLine) {
        // Lines are read a moment after they were written.
        #[expect(clippy::cast_precision_loss, reason = "microseconds are enough")]
        let age = read.wall.as_microsecond() as f64 / 1e6 - line.t;
        let age = Duration::try_from_secs_f64(age).ok().filter(|age| *age < Duration::from_secs(60));
        let now = self.since(read.mono.saturating_sub(age.unwrap_or_default()));
        if self.ranks.len() >= RANKS && !self.ranks.contains_key(&line.rank) {
            return;
        }
        let flushing = match &line.what {
            WindowEvent::Opened { .. } => false,
            WindowEvent::Flushing { .. } => true,
            WindowEvent::Closed { .. }
            | WindowEvent::Failed { .. }
            | WindowEvent::Disabled { .. }
            | WindowEvent::Finished {} => return self.close(line.rank, now),
            WindowEvent::Hello { .. }
            | WindowEvent::Planned { .. }
            | WindowEvent::Held { .. }
            | WindowEvent::Primed { .. } => return,
        };
        self.close(line.rank, now);
        self.ranks.insert(line.rank, (now, flushing));
    }

    fn close(&mut self, rank: u32, now: Duration) {
        if let Some((since, flushing)) = self.ranks.remove(&rank) {
            (if flushing { &mut self.flushes } else { &mut self.windows }).add(since, now);
        }
    }

    fn finish(&mut self) {
        let end = self.failed_at.map_or(self.to, |at| self.from + at);
        self.stirs(end, false);
        let open: Vec<u32> = self.ranks.keys().copied().collect();
        for rank in open {
            self.close(rank, self.since(end));
        }
    }
}

/// Per second; none for a counter that began anew, or when no time has passed.
fn rate(then: f64, now: f64, before: Duration, at: Duration) -> Option<f64> {
    let passed = at.saturating_sub(before).as_secs_f64();
    (passed >= 0.01 && now >= then).then(|| (now - then) / passed)
}

/// All tracks.
#[derive(Debug, Clone, Default)]
pub struct Series {
    tracks: Vec<Track>,
    /// Attempts of which no track was kept.
    pub left_out: usize,
}

impl Series {
    /// Takes the next event of the journal.
    pub fn push(&mut self, event: &Event) {
        if event.attempt == 0 {
            return;
        }
        if self.tracks.last().is_none_or(|track| track.attempt != event.attempt) {
            if let Some(last) = self.tracks.last_mut() {
                last.finish();
            }
            self.make_room();
            self.tracks.push(Track::new(event.attempt, event.at.mono));
        }
        if let Some(track) = self.tracks.last_mut() {
            track.push(event);
        }
    }

    /// After the last event.
    pub fn finish(&mut self) {
        if let Some(last) = self.tracks.last_mut() {
            last.finish();
        }
    }

    /// The track of an attempt, if it was kept.
    pub fn track(&self, attempt: u32) -> Option<&Track> {
        self.tracks.iter().find(|track| track.attempt == attempt)
    }

    /// A copy of the track of an attempt as if the journal ended here.
    pub fn so_far(&self, attempt: u32) -> Option<Track> {
        let mut track = self.track(attempt)?.clone();
        track.finish();
        Some(track)
    }

    /// The attempt that counts may be the last one with a benchmark, so that one stays.
    fn make_room(&mut self) {
        if self.tracks.len() < KEEP_FIRST + KEEP_LAST {
            return;
        }
        let best = self.tracks.iter().rposition(|track| track.has_benchmark);
        let goes = (KEEP_FIRST..self.tracks.len()).find(|index| Some(*index) != best);
        if let Some(index) = goes {
            self.tracks.remove(index);
            self.left_out += 1;
        }
    }
}

/// The series of a journal.
pub fn of(events: &[Event]) -> Series {
    let mut series = Series::default();
    for event in events {
        series.push(event);
    }
    series.finish();
    series
}
