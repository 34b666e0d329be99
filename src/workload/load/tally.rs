//! Adds requests up while they end, and sums up when the load is over. Pure.

use super::mix::Goal;
use super::outcome::{ErrorClass, Record};
use super::schedule::Schedule;
use super::stats::{Gaps, Samples, Second, Series, Sorted};
use super::steady::{Window, window};
use crate::event::{BenchSummary, LoadProgress, WorkloadSummary};
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// Latencies and counts of a group of requests.
#[derive(Debug, Clone, Default)]
struct Group {
    completed: u64,
    good: u64,
    failed: u64,
    cancelled: u64,
    with_usage: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    planned_input: u64,
    planned_output: u64,
    ttft: Samples,
    ttft_intended: Samples,
    tpot: Samples,
    gaps: Gaps,
    e2el: Samples,
    e2el_intended: Samples,
}

impl Group {
    fn add(&mut self, record: &Record, good: bool) {
        self.good += u64::from(good);
        self.planned_input += u64::from(record.planned_input);
        self.planned_output += u64::from(record.planned_output);
        match &record.fault {
            Some(fault) if fault.class == ErrorClass::Cancelled => self.cancelled += 1,
            Some(_) => self.failed += 1,
            None => {
                self.completed += 1;
                if let Some(usage) = record.usage {
                    self.with_usage += 1;
                    self.prompt_tokens += usage.prompt_tokens;
                    self.output_tokens += usage.completion_tokens;
                }
                self.ttft.add(record.ttft());
                self.ttft_intended.add(record.ttft_intended());
                self.tpot.add(record.tpot());
                self.e2el.add(record.e2e());
                self.e2el_intended.add(record.e2e_intended());
            }
        }
    }

    fn finish(self) -> Sums {
        Sums {
            completed: self.completed,
            good: self.good,
            failed: self.failed,
            cancelled: self.cancelled,
            with_usage: self.with_usage,
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens,
            planned_input: self.planned_input,
            planned_output: self.planned_output,
            ttft: self.ttft.finish(),
            ttft_intended: self.ttft_intended.finish(),
            tpot: self.tpot.finish(),
            gaps: self.gaps,
            e2el: self.e2el.finish(),
            e2el_intended: self.e2el_intended.finish(),
        }
    }
}

/// A group of requests, summed up. Latencies are those of requests that succeeded.
#[derive(Debug, Clone, Default)]
pub struct Sums {
    /// Succeeded.
    pub completed: u64,
    /// Succeeded and kept what was asked of them.
    pub good: u64,
    /// Failed.
    pub failed: u64,
    /// Given up by us.
    pub cancelled: u64,
    /// Succeeded, and the server sent its token counts.
    pub with_usage: u64,
    /// Prompt tokens by the server's usage.
    pub prompt_tokens: u64,
    /// Output tokens by the server's usage.
    pub output_tokens: u64,
    /// Prompt tokens of the schedule, of every request that was sent.
    pub planned_input: u64,
    /// `max_tokens` of the schedule, of every request that was sent.
    pub planned_output: u64,
    /// Time to first token.
    pub ttft: Sorted,
    /// From the intended send.
    pub ttft_intended: Sorted,
    /// Time per output token after the first.
    pub tpot: Sorted,
    /// Between pieces of the same request, also of one that failed later.
    pub gaps: Gaps,
    /// Send to last token.
    pub e2el: Sorted,
    /// From the intended send.
    pub e2el_intended: Sorted,
}

impl Sums {
    /// Requests that were sent.
    pub fn count(&self) -> u64 {
        self.completed + self.failed + self.cancelled
    }

    /// Means over the requests whose tokens the server counted.
    pub fn mean_tokens(&self) -> (f64, f64) {
        let n = self.with_usage.max(1) as f64;
        (self.prompt_tokens as f64 / n, self.output_tokens as f64 / n)
    }
}

/// What a request must keep to count as good; what is not given does not matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Slo {
    /// Time to first token.
    pub ttft: Option<Duration>,
    /// Time per output token.
    pub tpot: Option<Duration>,
    /// Send to last token.
    pub e2el: Option<Duration>,
}

impl Slo {
    /// Of a workload that has limits of its own.
    fn of(goal: Goal) -> Self {
        let span = |ms: Option<f64>| ms.and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
        Self { ttft: span(goal.ttft), tpot: span(goal.tpot), e2el: span(goal.e2el) }
    }

    /// Whether anything is asked for.
    pub fn is_set(&self) -> bool {
        *self != Self::default()
    }

    /// Whether a request that succeeded keeps it. Latency counts from the intended send: a user does not care why he waits.
    pub fn kept(&self, record: &Record) -> bool {
        let within = |limit: Option<Duration>, seen: Option<Duration>| {
            limit.is_none_or(|limit| seen.is_some_and(|seen| seen <= limit))
        };
        // A single token has no time per token to miss.
        let tpot = record.tpot().or(record.output_tokens().filter(|n| *n < 2).map(|_| Duration::ZERO));
        within(self.ttft, record.ttft_intended())
            && within(self.tpot, tpot)
            && within(self.e2el, record.e2e_intended())
    }
}

/// A request that succeeded, kept small: a window of the load can then be summed up on its own.
#[derive(Debug, Clone, Copy)]
struct Point {
    sent: f32,
    ended: f32,
    ttft: f32,
    tpot: f32,
    e2el: f32,
    output: u32,
}

/// Sums over a part of the load.
#[derive(Debug, Clone)]
pub struct Part {
    /// Requests sent in it that succeeded.
    pub completed: u64,
    /// Requests per second that ended in it.
    pub request_throughput: f64,
    /// Output tokens per second of the requests that ended in it.
    pub output_throughput: f64,
    /// Time to first token.
    pub ttft: Sorted,
    /// Time per output token.
    pub tpot: Sorted,
    /// Send to last token.
    pub e2el: Sorted,
}

/// Seconds before a load can be judged saturated.
const JUDGE_AFTER: usize = 9;
/// A minute without a first token is off the scale of the live view.
const LIVE_MAX_US: u64 = 60_000_000;

#[expect(clippy::expect_used, reason = "the bounds are constants, and a test makes a tally")]
fn live() -> Histogram<u32> {
    Histogram::new_with_max(LIVE_MAX_US, 3).expect("a range and three digits make a histogram")
}

/// Everything known of a load that is going on.
#[derive(Debug)]
pub struct Tally {
    names: Vec<String>,
    all: Group,
    by_workload: Vec<Group>,
    series: Series,
    lag: Samples,
    errors: BTreeMap<String, u64>,
    example: BTreeMap<String, String>,
    progress: LoadProgress,
    slos: Vec<Slo>,
    points: Vec<Point>,
    /// Microseconds to the first token: three digits are enough for the live view, and its size does not grow.
    live: Histogram<u32>,
    /// Microseconds to the first token of the requests that succeeded since the last [`Tally::tick`].
    recent: Vec<u64>,
    coalesced: u64,
    peak_in_flight: u64,
    first_sent: Option<Duration>,
    last_sent: Duration,
    last_ended: Duration,
}

impl Tally {
    /// For the workloads of a schedule.
    pub fn new(schedule: &Schedule, slo: Slo) -> Self {
        let names: Vec<String> = schedule.mix.workloads.iter().map(|w| w.name.clone()).collect();
        Self {
            by_workload: vec![Group::default(); names.len()],
            names,
            all: Group::default(),
            series: Series::default(),
            lag: Samples::default(),
            errors: BTreeMap::new(),
            example: BTreeMap::new(),
            progress: LoadProgress::default(),
            slos: schedule.mix.workloads.iter().map(|w| w.slo.map_or(slo, Slo::of)).collect(),
            points: Vec::new(),
            live: live(),
            recent: Vec::new(),
            coalesced: 0,
            peak_in_flight: 0,
            first_sent: None,
            last_sent: Duration::ZERO,
            last_ended: Duration::ZERO,
        }
    }

    /// The counts so far.
    pub fn progress(&self) -> LoadProgress {
        LoadProgress {
            ttft_p50_us: self.live.value_at_quantile(0.5),
            ttft_p99_us: self.live.value_at_quantile(0.99),
            ..self.progress
        }
    }

    /// The counts so far, and what was seen since the last tick.
    pub fn tick(&mut self) -> LoadProgress {
        let mut recent = std::mem::take(&mut self.recent);
        recent.sort_unstable();
        LoadProgress {
            recent_ttft_p50_us: recent.get(recent.len().saturating_sub(1) / 2).copied().unwrap_or(0),
            recent_ttft_max_us: recent.last().copied().unwrap_or(0),
            ..self.progress()
        }
    }

    /// Whether the open requests grow as they do when a server gets more than it can take.
    pub fn is_falling_behind(&self) -> bool {
        let series = self.series.clone().finish();
        // The last second is still going on; a few seconds show nothing.
        let whole = series.len().saturating_sub(1);
        whole >= JUDGE_AFTER && window(&series, whole).is_some_and(|window| window.growing)
    }

    /// A request begins.
    pub fn sent(&mut self, record: &Record) {
        self.progress.sent += 1;
        self.progress.in_flight += 1;
        self.peak_in_flight = self.peak_in_flight.max(self.progress.in_flight);
        self.first_sent = Some(self.first_sent.map_or(record.sent, |first| first.min(record.sent)));
        self.last_sent = self.last_sent.max(record.sent);
        self.series.at(record.sent).sent += 1;
        self.lag.add(Some(record.lag()));
    }

    /// A piece with text of a request of workload `of` came at `at`; `before` is the one before it in the same request.
    pub fn piece(&mut self, of: u16, at: Duration, before: Option<Duration>) {
        self.progress.chunks += 1;
        self.series.at(at).pieces += 1;
        if let Some(before) = before {
            let gap = at.saturating_sub(before);
            self.all.gaps.add(gap);
            if let Some(group) = self.by_workload.get_mut(usize::from(of)) {
                group.gaps.add(gap);
            }
        }
    }

    /// A request is over.
    pub fn ended(&mut self, record: &Record) {
        self.progress.in_flight = self.progress.in_flight.saturating_sub(1);
        self.last_ended = self.last_ended.max(record.ended);
        self.coalesced += u64::from(record.coalesced);
        let second = self.series.at(record.ended);
        match &record.fault {
            None => {
                second.completed += 1;
                second.output_tokens += record.output_tokens().unwrap_or(0);
                self.progress.completed += 1;
                if let Some(ttft) = record.ttft() {
                    self.live.saturating_record(ttft.as_micros() as u64);
                    self.recent.push(ttft.as_micros() as u64);
                }
                let ms = |d: Option<Duration>| d.map_or(f32::NAN, |d| (d.as_secs_f64() * 1e3) as f32);
                self.points.push(Point {
                    sent: record.sent.as_secs_f32(),
                    ended: record.ended.as_secs_f32(),
                    ttft: ms(record.ttft()),
                    tpot: ms(record.tpot()),
                    e2el: ms(record.e2e()),
                    output: u32::try_from(record.output_tokens().unwrap_or(0)).unwrap_or(u32::MAX),
                });
                self.progress.prompt_tokens += record.usage.map_or(0, |u| u.prompt_tokens);
                self.progress.output_tokens += record.output_tokens().unwrap_or(0);
            }
            Some(fault) => {
                if fault.class == ErrorClass::Cancelled {
                    second.cancelled += 1;
                } else {
                    second.failed += 1;
                    self.progress.failed += 1;
                }
                let class = fault.class.name().to_owned();
                self.example.entry(class.clone()).or_insert_with(|| fault.detail.clone());
                *self.errors.entry(class).or_default() += 1;
            }
        }
        let index = usize::from(record.workload);
        let good = record.ok() && self.slos.get(index).is_some_and(|slo| slo.kept(record));
        self.all.add(record, good);
        if let Some(group) = self.by_workload.get_mut(index) {
            group.add(record, good);
        }
    }

    /// Sums up. `incomplete` says why the load was cut short, if it was.
    pub fn finish(self, incomplete: Option<String>) -> Totals {
        let progress = self.progress();
        Totals {
            duration: self.last_ended.saturating_sub(self.first_sent.unwrap_or(self.last_ended)),
            all: self.all.finish(),
            by_workload: self
                .names
                .into_iter()
                .zip(self.by_workload.into_iter().map(Group::finish))
                .collect(),
            series: self.series.finish(),
            has_slo: self.slos.iter().any(Slo::is_set),
            points: self.points,
            sending: self.last_sent,
            lag: self.lag.finish(),
            progress,
            errors: self.errors,
            example: self.example,
            coalesced: self.coalesced,
            peak_in_flight: self.peak_in_flight,
            incomplete,
        }
    }
}

/// A load that is over.
#[derive(Debug)]
pub struct Totals {
    /// First send to last end.
    pub duration: Duration,
    /// All requests.
    pub all: Sums,
    /// By workload, in the order of the mix.
    pub by_workload: Vec<(String, Sums)>,
    /// Second by second.
    pub series: Vec<Second>,
    /// Whether anything was asked of a good request.
    pub has_slo: bool,
    points: Vec<Point>,
    /// When the last request was sent.
    pub sending: Duration,
    /// How late requests were sent.
    pub lag: Sorted,
    /// Error class to count.
    pub errors: BTreeMap<String, u64>,
    /// Error class to the first detail seen.
    pub example: BTreeMap<String, String>,
    /// The last counts.
    pub progress: LoadProgress,
    /// Pieces that shared a read with the one before.
    pub coalesced: u64,
    /// The most requests open at once.
    pub peak_in_flight: u64,
    /// Why the load was cut short, if it was.
    pub incomplete: Option<String>,
}

impl Totals {
    /// `count` per second of the load; 0 when it lasted no time.
    pub fn per_second(&self, count: u64) -> f64 {
        let seconds = self.duration.as_secs_f64();
        if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
    }

    /// The steady part of the load, if it lasted long enough to have one.
    pub fn steady(&self) -> Option<Window> {
        window(&self.series, self.sending.as_secs() as usize)
    }

    /// Sums over a window.
    pub fn part(&self, window: &Window) -> Part {
        let span = window.from_s as f32..window.to_s as f32;
        let inside: Vec<&Point> = self.points.iter().filter(|p| span.contains(&p.sent)).collect();
        let sorted = |value: fn(&Point) -> f32| {
            Sorted::new(inside.iter().map(|p| f64::from(value(p))).filter(|v| !v.is_nan()).collect())
        };
        let ended: Vec<&Point> = self.points.iter().filter(|p| span.contains(&p.ended)).collect();
        let seconds = (window.to_s - window.from_s).max(1) as f64;
        Part {
            completed: inside.len() as u64,
            request_throughput: ended.len() as f64 / seconds,
            output_throughput: ended.iter().map(|p| f64::from(p.output)).sum::<f64>() / seconds,
            ttft: sorted(|p| p.ttft),
            tpot: sorted(|p| p.tpot),
            e2el: sorted(|p| p.e2el),
        }
    }

    /// The short form that events carry.
    pub fn summary(&self) -> BenchSummary {
        let workload = |(name, sums): &(String, Sums)| {
            let (mean_prompt_tokens, mean_output_tokens) = sums.mean_tokens();
            WorkloadSummary {
                name: name.clone(),
                completed: sums.completed,
                failed: sums.failed,
                mean_prompt_tokens,
                mean_output_tokens,
                good: self.has_slo.then_some(sums.good),
                ttft_ms: sums.ttft.latency(),
                tpot_ms: sums.tpot.latency(),
                itl_ms: sums.gaps.latency(),
                e2el_ms: sums.e2el.latency(),
            }
        };
        BenchSummary {
            is_complete: self.incomplete.is_none(),
            incomplete_reason: self.incomplete.clone(),
            duration: self.duration,
            progress: self.progress,
            cancelled: self.all.cancelled,
            request_throughput: self.per_second(self.all.completed),
            output_throughput: self.per_second(self.all.output_tokens),
            ttft_ms: self.all.ttft.latency(),
            tpot_ms: self.all.tpot.latency(),
            itl_ms: self.all.gaps.latency(),
            e2el_ms: self.all.e2el.latency(),
            request_goodput: self.has_slo.then(|| self.per_second(self.all.good)),
            by_workload: self.by_workload.iter().map(workload).collect(),
            errors: self.errors.clone(),
            warnings: Vec::new(),
        }
    }
}
