//! What one window shows: where the time of the GPU and of the host went. Pure and streaming: it is fed the events of one trace
//! one by one, in any order, and keeps a few numbers of each (about 24 bytes of an operator or kernel, 5 MB for a window of 200,000
//! events), never the events.
//!
//! Definitions:
//! - *total* of a name is the sum of its events' durations; an operator that calls itself counts twice, as in torch's own tables.
//! - *self* of an operator leaves out the operators it called on the same thread (`nesting`).
//! - The *span* of a window reaches from the first to the last moment at which host or GPU did something that was recorded.
//! - A GPU is *busy* while at least one kernel, copy or fill runs on it, on whatever stream; a *gap* is the time between two busy
//!   stretches. Before the first and after the last of them lies no gap, but idle time all the same.
//! - A piece of GPU work belongs to the step during which it was *launched*: the launch has the same correlation id.

mod intervals;
mod names;
mod nesting;

pub use names::{NameTime, OTHER};

use super::read::{Category, TraceEvent};
use intervals::{Interval, gaps, intersection, length, union};
use names::Names;
pub(super) use names::cut;
use nesting::{Call, self_times};
use std::collections::{BTreeMap, HashMap};

/// How the recorder names the annotation around each engine step, as torch does.
const STEP: &str = "ProfilerStep#";

/// What an analysis may keep. Beyond it a figure becomes unknown; it never becomes wrong.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Operator calls; beyond it there are no self times.
    pub calls: usize,
    /// Pieces of GPU work, and launches; beyond it there is no busy share, no gap and no GPU time of a step.
    pub work: usize,
    /// Engine steps; later ones are left out.
    pub steps: usize,
}

impl Default for Limits {
    /// For some 50 MB at most: windows are closed at 150,000 events, but others may hold millions.
    fn default() -> Self {
        Self { calls: 1_000_000, work: 500_000, steps: 100_000 }
    }
}

/// Time of one operator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OperatorTime {
    /// The name, calls and total time.
    pub time: NameTime,
    /// Without the operators it called; none if there were too many calls to say.
    pub self_ns: Option<u64>,
}

/// What one GPU did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number as the process saw it.
    pub device: i64,
    /// While anything ran.
    pub busy_ns: u64,
    /// Between the stretches, in nanoseconds, shortest first.
    pub gaps_ns: Vec<u64>,
    /// Of `gaps_ns`: while the host was in an operator.
    pub gap_in_operator_ns: u64,
    /// Of `gaps_ns`: while the host was in an engine step, but in no operator. None without recorded steps.
    pub gap_in_step_ns: Option<u64>,
}

/// One engine step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// As the worker counts.
    pub number: u64,
    /// Begin, in nanoseconds after the trace's base.
    pub start_ns: i64,
    /// Length on the host.
    pub wall_ns: u64,
    /// Sum of the GPU work that was launched during it; none if the trace does not tell.
    pub gpu_ns: Option<u64>,
}

/// What one window of one rank shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WindowProfile {
    /// All events.
    pub events: u64,
    /// Events of category `kernel`.
    pub kernels: u64,
    /// See the module; none in a trace without any slice.
    pub span_ns: Option<u64>,
    /// Kernels, longest time first.
    pub kernel_times: Vec<NameTime>,
    /// Copies and fills, likewise.
    pub copies: Vec<NameTime>,
    /// Operators, longest self time first.
    pub operators: Vec<OperatorTime>,
    /// Every GPU on which something ran. None if there was too much to say, empty if nothing ran.
    pub devices: Option<Vec<Device>>,
    /// In order of time.
    pub steps: Vec<Step>,
    /// GPU time whose launch is not in the trace or lies in no step; none if the trace has no steps.
    pub unattributed_ns: Option<u64>,
    /// What was left out and why.
    pub notes: Vec<String>,
}

impl WindowProfile {
    /// Kernels, copies and fills.
    pub fn gpu_ns(&self) -> u64 {
        total(&self.kernel_times).saturating_add(total(&self.copies))
    }

    /// All self times together: how long threads were in operators. None if it is unknown.
    pub fn self_ns(&self) -> Option<u64> {
        self.operators.iter().try_fold(0_u64, |sum, operator| Some(sum.saturating_add(operator.self_ns?)))
    }

    /// Mean busy share of the GPUs on which something ran. None without GPU work.
    pub fn busy_share(&self) -> Option<f64> {
        let devices = self.devices.as_ref().filter(|devices| !devices.is_empty())?;
        let span = self.span_ns.filter(|span| *span > 0)?;
        let busy: f64 = devices.iter().map(|device| ratio(device.busy_ns, span)).sum();
        #[expect(clippy::cast_precision_loss, reason = "a handful of devices")]
        let count = devices.len() as f64;
        Some(busy / count)
    }
}

fn total(rows: &[NameTime]) -> u64 {
    rows.iter().fold(0, |sum: u64, row| sum.saturating_add(row.total_ns))
}

/// As a share; both are nanoseconds.
#[expect(clippy::cast_precision_loss, reason = "a share needs no 53 bits")]
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// A piece of GPU work.
#[derive(Debug, Clone, Copy)]
struct Work {
    device: i64,
    start: i64,
    duration: i64,
    correlation: Option<i64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Analyser {
    limits: Limits,
    events: u64,
    kernels: u64,
    span: Option<Interval>,
    kernel_times: Names,
    copies: Names,
    operators: Names,
    calls: Vec<Call>,
    all_calls: u64,
    threads: HashMap<(i64, i64), u32>,
    work: Vec<Work>,
    all_work: u64,
    launches: Vec<(i64, i64)>,
    all_launches: u64,
    steps: Vec<Step>,
    all_steps: u64,
}

impl Analyser {
    /// With other limits than usual.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes one event in.
    pub fn event(&mut self, event: &TraceEvent) {
        self.events += 1;
        self.kernels += u64::from(event.category == Category::Kernel);
        // Only complete slices have a length; a lone begin or end says nothing.
        let (Some(start), Some(duration), b'X') = (event.start_ns, event.duration_ns, event.phase) else {
            return;
        };
        let end = start.saturating_add(duration);
        match event.category {
            Category::Other => return,
            Category::Operator => self.operator(event, start, duration),
            Category::Runtime => {
                self.all_launches += 1;
                if let Some(correlation) = event.correlation
                    && self.launches.len() < self.limits.work
                {
                    self.launches.push((correlation, start));
                }
            }
            Category::Kernel => {
                self.kernel_times.add(&event.name, duration);
                self.gpu_work(event, start, duration);
            }
            Category::Copy => {
                self.copies.add(&event.name, duration);
                self.gpu_work(event, start, duration);
            }
            Category::Annotation => self.annotation(event, start, duration),
            Category::Python => {}
        }
        self.span = Some(self.span.map_or((start, end), |(first, last)| (first.min(start), last.max(end))));
    }

    fn operator(&mut self, event: &TraceEvent, start: i64, duration: i64) {
        let name = self.operators.add(&event.name, duration);
        self.all_calls += 1;
        if self.calls.len() < self.limits.calls {
            // As many threads as calls at most, and those are limited.
            let next = u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
            let thread = *self.threads.entry((event.pid, event.tid)).or_insert(next);
            self.calls.push(Call { thread, name, start, duration });
        }
    }

    fn gpu_work(&mut self, event: &TraceEvent, start: i64, duration: i64) {
        self.all_work += 1;
        if self.work.len() < self.limits.work {
            // Kineto gives GPU work the device's number as its process.
            let device = event.device.unwrap_or(event.pid);
            self.work.push(Work { device, start, duration, correlation: event.correlation });
        }
    }

    fn annotation(&mut self, event: &TraceEvent, start: i64, duration: i64) {
        let Some(number) = event.name.strip_prefix(STEP).and_then(|number| number.parse().ok()) else {
            return;
        };
        self.all_steps += 1;
        if self.steps.len() < self.limits.steps {
            self.steps.push(Step { number, start_ns: start, wall_ns: duration.unsigned_abs(), gpu_ns: None });
        }
    }

    /// After the last event.
    pub fn finish(mut self) -> WindowProfile {
        let mut notes = Vec::new();
        let rows = self.operators.into_rows();
        let calls_known = self.all_calls == self.calls.len() as u64;
        if !calls_known {
            notes.push(format!("{} operator calls are too many: no self times", self.all_calls));
        }
        // Of a part of the calls it would be wrong.
        let (own, in_operators) = if calls_known {
            self_times(std::mem::take(&mut self.calls), rows.len())
        } else {
            (Vec::new(), Vec::new())
        };
        let mut operators: Vec<OperatorTime> = rows
            .into_iter()
            .enumerate()
            .map(|(number, time)| OperatorTime { time, self_ns: own.get(number).copied() })
            .collect();
        operators.sort_by(|a, b| {
            (b.self_ns, b.time.total_ns)
                .cmp(&(a.self_ns, a.time.total_ns))
                .then_with(|| a.time.name.cmp(&b.time.name))
        });
        if self.all_steps > self.steps.len() as u64 {
            notes.push(format!(
                "of {} steps only the first {} are looked at",
                self.all_steps,
                self.steps.len()
            ));
        }
        self.steps.sort_by_key(|step| (step.start_ns, step.number));
        let work_known =
            self.all_work == self.work.len() as u64 && self.all_launches <= self.limits.work as u64;
        if !work_known {
            notes.push(format!(
                "{} pieces of GPU work and {} launches are too many: no busy share, no gaps, no GPU time of steps",
                self.all_work, self.all_launches
            ));
        }
        let unattributed_ns =
            if work_known { attribute(&mut self.steps, &self.work, self.launches) } else { None };
        let in_steps = union(self.steps.iter().map(|s| (s.start_ns, end_of(s))).collect());
        let devices = work_known.then(|| devices(&self.work, &in_operators, &in_steps));
        WindowProfile {
            events: self.events,
            kernels: self.kernels,
            span_ns: self.span.map(|(first, last)| last.abs_diff(first)),
            kernel_times: self.kernel_times.sorted(),
            copies: self.copies.sorted(),
            operators,
            devices,
            steps: self.steps,
            unattributed_ns,
            notes,
        }
    }
}

fn end_of(step: &Step) -> i64 {
    step.start_ns.saturating_add_unsigned(step.wall_ns)
}

/// Adds every piece of work to the step that launched it and returns the time of the others.
fn attribute(steps: &mut [Step], work: &[Work], mut launches: Vec<(i64, i64)>) -> Option<u64> {
    if steps.is_empty() {
        return None;
    }
    if !work.is_empty() && launches.is_empty() {
        // Recorded without the host's side: nothing can be said of steps.
        return Some(work.iter().fold(0, |sum: u64, work| sum.saturating_add(work.duration.unsigned_abs())));
    }
    // A launch may appear as a call of the runtime and of the driver: the first of them counts.
    launches.sort_unstable();
    launches.dedup_by_key(|(correlation, _)| *correlation);
    let mut rest = 0_u64;
    if !work.is_empty() {
        for step in steps.iter_mut() {
            step.gpu_ns = Some(0);
        }
    }
    for piece in work {
        let launched = piece.correlation.and_then(|id| {
            launches
                .binary_search_by_key(&id, |(correlation, _)| *correlation)
                .ok()
                .map(|index| launches[index].1)
        });
        let step = launched.and_then(|at| {
            let next = steps.partition_point(|step| step.start_ns <= at);
            steps[..next].last_mut().filter(|step| at < end_of(step))
        });
        let time = match step {
            Some(step) => step.gpu_ns.get_or_insert(0),
            None => &mut rest,
        };
        *time = time.saturating_add(piece.duration.unsigned_abs());
    }
    Some(rest)
}

fn devices(work: &[Work], in_operators: &[Interval], in_steps: &[Interval]) -> Vec<Device> {
    let mut by_device: BTreeMap<i64, Vec<Interval>> = BTreeMap::new();
    for piece in work {
        let interval = (piece.start, piece.start.saturating_add(piece.duration));
        by_device.entry(piece.device).or_default().push(interval);
    }
    by_device
        .into_iter()
        .map(|(device, list)| {
            let busy = union(list);
            let gaps = gaps(&busy);
            let in_operator = intersection(&gaps, in_operators);
            let gap_in_step_ns = (!in_steps.is_empty()).then(|| {
                let inside = intersection(&gaps, in_steps);
                length(&inside) - length(&intersection(&inside, in_operators))
            });
            let mut gaps_ns: Vec<u64> = gaps.iter().map(|(start, end)| end.abs_diff(*start)).collect();
            gaps_ns.sort_unstable();
            Device {
                device,
                busy_ns: length(&busy),
                gaps_ns,
                gap_in_operator_ns: length(&in_operator),
                gap_in_step_ns,
            }
        })
        .collect()
}

/// Smallest value with at least this share of all at or below it. `sorted` is in ascending order.
pub fn quantile(sorted: &[u64], share: f64) -> Option<u64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index, bounded by the line below"
    )]
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1).min(last)).copied()
}

#[cfg(test)]
#[path = "analyse/tests.rs"]
mod tests;
