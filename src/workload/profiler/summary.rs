//! From the profiles of many windows to one: shares are averaged over windows, so that a long window does not outweigh the others
//! and the spread between windows can be told. The ranks of a window are no independent samples; they are averaged first.
//! Pure; memory depends on the number of names and steps, not on that of windows.

use super::analyse::{Device, NameTime, OTHER, WindowProfile, cut, ratio};
use super::composition::{KnownStep, WindowFacts, join};
use crate::event::profile::{
    Gaps, GpuProfile, KernelShare, OperatorShare, ProfileSummary, Spread, StepGroup, StepKind,
};
use hdrhistogram::Histogram;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// Rows of a table.
const TOP: usize = 15;
/// Bytes of a name in a table.
const NAME: usize = 240;
/// Further names are counted as other ones.
const MAX_NAMES: usize = 8192;
/// Steps of one kind whose times are kept for the median.
const MAX_STEPS: usize = 200_000;
/// Notes of single windows are alike.
const MAX_NOTES: usize = 5;

/// Windows whose ranks may still come. Ranks close a window together, but engines that share no steps (data parallelism) drift.
const OPEN_GROUPS: usize = 4;

/// Rank and window of a trace, where they are known.
pub type Place = Option<(u32, u32)>;

/// One trace: where it belongs, what the index says of it, and what it shows.
struct Member {
    place: Place,
    facts: WindowFacts,
    profile: WindowProfile,
}

/// See the module. Takes traces as they come, so that it can be fed while a run goes on; the ranks of a window should come soon
/// after each other.
pub struct Aggregate {
    top: usize,
    open: VecDeque<Vec<Member>>,
    /// What was measured, and windows of which nobody wrote a phase down.
    counted: Sums,
    /// Windows of other phases. They count only if there are no others.
    other: Sums,
}

impl Default for Aggregate {
    fn default() -> Self {
        Self { top: TOP, open: VecDeque::new(), counted: Sums::default(), other: Sums::default() }
    }
}

impl Aggregate {
    /// Rows of each table.
    #[must_use]
    pub fn top(mut self, rows: usize) -> Self {
        self.top = rows;
        self
    }

    /// Takes one trace in, and what the index says of it. One whose place is unknown is a window of its own.
    pub fn push(&mut self, place: Place, facts: Option<&WindowFacts>, profile: WindowProfile) {
        let member = Member { place, facts: facts.cloned().unwrap_or_default(), profile };
        let window = |place: Place| place.map(|(_, window)| window);
        let group = self.open.iter_mut().find(|group| {
            // A rank that comes again is another recording, and so is each trace of unknown place.
            group.iter().all(|other| window(other.place) == window(place) && other.place != place)
        });
        match group {
            Some(group) => group.push(member),
            None => self.open.push_back(vec![member]),
        }
        if self.open.len() > OPEN_GROUPS {
            self.close_one();
        }
    }

    fn close_one(&mut self) {
        let Some(group) = self.open.pop_front() else { return };
        // One rank's word is enough: all of them open on the same step.
        let measured = group.iter().all(|member| member.facts.is_measured());
        if measured { &mut self.counted } else { &mut self.other }.add(group);
    }

    /// After the last trace. None if there was none.
    pub fn finish(mut self) -> Option<ProfileSummary> {
        while !self.open.is_empty() {
            self.close_one();
        }
        if self.counted.windows == 0 {
            return self.other.finish(self.top);
        }
        if self.other.windows > 0 {
            let windows = self.other.windows;
            let few = if windows == 1 { "1 window" } else { &format!("{windows} windows") };
            self.counted.notes.insert(0, format!("{few} outside of the measuring phase"));
        }
        self.counted.finish(self.top)
    }
}

/// What is added up.
#[derive(Default)]
struct Sums {
    windows: u32,
    ranks: BTreeSet<u32>,
    traces: u32,
    steps: u64,
    events: u64,
    recorded_ns: u64,
    opened_s: Option<f64>,
    closed_s: Option<f64>,
    kernels: Table,
    copies: Table,
    operators: Table,
    busy: Moments,
    busy_by_rank: BTreeMap<u32, Moments>,
    gaps: GapSum,
    known: BTreeMap<StepKind, StepSum>,
    notes: Vec<String>,
}

impl Sums {
    /// The ranks of one window.
    fn add(&mut self, mut group: Vec<Member>) {
        group.sort_by_key(|member| member.place);
        self.windows += 1;
        let most = |figure: fn(&WindowProfile) -> u64| group.iter().map(|m| figure(&m.profile)).max();
        self.steps += most(|profile| profile.steps.len() as u64).unwrap_or(0);
        let longest = most(|profile| profile.span_ns.unwrap_or(0)).unwrap_or(0);
        self.recorded_ns = self.recorded_ns.saturating_add(longest);
        let busy: Vec<f64> = group.iter().filter_map(|member| member.profile.busy_share()).collect();
        if let Some(mean) = mean(&busy) {
            self.busy.add(mean);
        }
        self.shares(&group);
        if let Some(member) = group.iter().find(|member| !member.profile.steps.is_empty()) {
            add_steps(&mut self.known, &member.profile, &member.facts);
        }
        for Member { place, facts, profile } in group {
            self.traces += 1;
            self.events += profile.events;
            self.opened_s = pick(self.opened_s, facts.opened_s, f64::min);
            self.closed_s = pick(self.closed_s, facts.closed_s, f64::max);
            if let Some((rank, _)) = place {
                self.ranks.insert(rank);
                if let Some(share) = profile.busy_share() {
                    self.busy_by_rank.entry(rank).or_default().add(share);
                }
            }
            for device in profile.devices.iter().flatten() {
                self.gaps.add(device);
            }
            for note in profile.notes {
                if self.notes.len() < MAX_NOTES && !self.notes.contains(&note) {
                    self.notes.push(note);
                }
            }
        }
    }

    /// Adds the group's times to the tables, and its shares as one window's.
    fn shares(&mut self, group: &[Member]) {
        let gpu: Vec<&WindowProfile> =
            group.iter().map(|member| &member.profile).filter(|profile| profile.gpu_ns() > 0).collect();
        for (table, rows) in [
            (&mut self.kernels, (|p| &p.kernel_times) as fn(&WindowProfile) -> &Vec<NameTime>),
            (&mut self.copies, |p| &p.copies),
        ] {
            if gpu.is_empty() {
                continue;
            }
            for profile in &gpu {
                for row in rows(profile) {
                    table.add(
                        &row.name,
                        row.count,
                        row.total_ns,
                        row.total_ns,
                        ratio(row.total_ns, profile.gpu_ns()),
                    );
                }
            }
            table.close(gpu.len());
        }
        let hosts: Vec<(&WindowProfile, u64)> = group
            .iter()
            .filter_map(|m| m.profile.self_ns().filter(|sum| *sum > 0).map(|sum| (&m.profile, sum)))
            .collect();
        for (profile, sum) in &hosts {
            for row in &profile.operators {
                let own = row.self_ns.unwrap_or(0);
                self.operators.add(&row.time.name, row.time.count, row.time.total_ns, own, ratio(own, *sum));
            }
        }
        if !hosts.is_empty() {
            self.operators.close(hosts.len());
        }
    }

    fn finish(self, top: usize) -> Option<ProfileSummary> {
        if self.windows == 0 {
            return None;
        }
        let observed = self.opened_s.zip(self.closed_s).map(|(begin, end)| end - begin);
        let gpu = (self.kernels.windows > 0).then(|| GpuProfile {
            busy: self.busy.spread(),
            busy_by_rank: if self.busy_by_rank.len() < 2 {
                Vec::new()
            } else {
                self.busy_by_rank.iter().filter_map(|(rank, m)| Some((*rank, m.spread()?.mean))).collect()
            },
            gaps: self.gaps.finish(),
            kernel_s: seconds(self.kernels.total_ns()),
            copy_s: seconds(self.copies.total_ns()),
            distinct_kernels: self.kernels.rows.len() as u64,
        });
        let by_total = self.operators.top(top, |row| row.total_ns);
        Some(ProfileSummary {
            windows: self.windows,
            ranks: u32::try_from(self.ranks.len()).ok().filter(|ranks| *ranks > 0),
            traces: self.traces,
            steps: self.steps,
            events: self.events,
            recorded_s: seconds(self.recorded_ns),
            observed_s: observed.filter(|seconds| *seconds > 0.0).map(round),
            gpu,
            kernels: self.kernels.top(top, |row| row.total_ns).into_iter().map(Into::into).collect(),
            copies: self.copies.top(top, |row| row.total_ns).into_iter().map(Into::into).collect(),
            operators: self.operators.top(top, |row| row.self_ns),
            operators_by_total: by_total,
            step_groups: self.known.into_iter().map(|(kind, sum)| sum.finish(kind)).collect(),
            notes: self.notes,
        })
    }
}

/// Of two that may not be there, the one that `choose` takes.
fn pick(a: Option<f64>, b: Option<f64>, choose: fn(f64, f64) -> f64) -> Option<f64> {
    a.zip(b).map(|(a, b)| choose(a, b)).or(a).or(b)
}

fn mean(list: &[f64]) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a handful of ranks")]
    let count = list.len() as f64;
    (!list.is_empty()).then(|| list.iter().sum::<f64>() / count)
}

/// Six digits behind the point: more would only claim more, and such numbers are the same after being written and read.
fn round(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "exact up to a hundred days")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Mean and spread of shares, one a window.
#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    count: u32,
    sum: f64,
    squares: f64,
    min: f64,
    max: f64,
}

impl Moments {
    fn add(&mut self, value: f64) {
        self.min = if self.count == 0 { value } else { self.min.min(value) };
        self.max = if self.count == 0 { value } else { self.max.max(value) };
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    fn spread(&self) -> Option<Spread> {
        self.spread_of(self.count)
    }

    /// Over so many windows; in those that were not added the value is 0.
    fn spread_of(&self, windows: u32) -> Option<Spread> {
        if windows == 0 {
            return None;
        }
        let n = f64::from(windows);
        let mean = self.sum / n;
        let ci95 = (windows >= 3).then(|| {
            let variance = ((self.squares - n * mean * mean) / (n - 1.0)).max(0.0);
            let half = student(windows - 1) * (variance / n).sqrt();
            // These are shares.
            [round((mean - half).max(0.0)), round((mean + half).min(1.0))]
        });
        let min = if self.count < windows { 0.0 } else { self.min };
        Some(Spread { mean: round(mean), min: round(min), max: round(self.max), windows, ci95 })
    }
}

/// The 97.5 % point of Student's t distribution; beyond the table its series in 1/df, good to three digits.
fn student(df: u32) -> f64 {
    const TABLE: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    let index = usize::try_from(df.saturating_sub(1)).unwrap_or(usize::MAX);
    TABLE.get(index).copied().unwrap_or_else(|| {
        let df = f64::from(df);
        1.959_964 + 2.372_27 / df + 2.822_5 / (df * df) + 2.555_85 / (df * df * df)
    })
}

#[derive(Debug, Default)]
struct Row {
    count: u64,
    total_ns: u64,
    self_ns: u64,
    /// Of the window that is being added: the sum of its ranks' shares.
    open: f64,
    share: Moments,
}

/// Times and shares by name.
#[derive(Debug, Default)]
struct Table {
    rows: HashMap<String, Row>,
    windows: u32,
}

impl Table {
    fn add(&mut self, name: &str, count: u64, total_ns: u64, self_ns: u64, share: f64) {
        let row = match self.rows.get_mut(name) {
            Some(row) => row,
            None => {
                let name = if self.rows.len() < MAX_NAMES { name } else { OTHER };
                self.rows.entry(name.to_owned()).or_default()
            }
        };
        row.count += count;
        row.total_ns = row.total_ns.saturating_add(total_ns);
        row.self_ns = row.self_ns.saturating_add(self_ns);
        row.open += share;
    }

    /// The window is complete; so many of its ranks had something to share.
    fn close(&mut self, ranks: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a handful of ranks")]
        let ranks = ranks as f64;
        self.windows += 1;
        for row in self.rows.values_mut() {
            if row.open > 0.0 {
                row.share.add(row.open / ranks);
                row.open = 0.0;
            }
        }
    }

    fn total_ns(&self) -> u64 {
        self.rows.values().fold(0, |sum: u64, row| sum.saturating_add(row.total_ns))
    }

    fn top(&self, rows: usize, by: fn(&Row) -> u64) -> Vec<OperatorShare> {
        let mut sorted: Vec<(&String, &Row)> = self.rows.iter().collect();
        sorted.sort_by(|(a, x), (b, y)| by(y).cmp(&by(x)).then_with(|| a.cmp(b)));
        sorted
            .into_iter()
            .take(rows)
            .map(|(name, row)| OperatorShare {
                name: shorten(name),
                count: row.count,
                total_s: seconds(row.total_ns),
                self_s: seconds(row.self_ns),
                share: row.share.spread_of(self.windows).unwrap_or_default(),
            })
            .collect()
    }
}

impl From<OperatorShare> for KernelShare {
    fn from(row: OperatorShare) -> Self {
        Self { name: row.name, count: row.count, total_s: row.total_s, share: row.share }
    }
}

fn shorten(name: &str) -> String {
    let short = cut(name, NAME);
    if short.len() < name.len() { format!("{short}…") } else { name.to_owned() }
}

struct GapSum {
    lengths: Option<Histogram<u64>>,
    count: u64,
    total_ns: u64,
    longest_ns: u64,
    in_operator_ns: u64,
    in_step_ns: u64,
    /// Whether every window with gaps has steps.
    steps_known: bool,
}

impl Default for GapSum {
    fn default() -> Self {
        Self {
            // Three digits; it grows with the longest gap, to less than a megabyte.
            lengths: Histogram::new(3).ok(),
            count: 0,
            total_ns: 0,
            longest_ns: 0,
            in_operator_ns: 0,
            in_step_ns: 0,
            steps_known: true,
        }
    }
}

impl GapSum {
    fn add(&mut self, device: &Device) {
        let Some(longest) = device.gaps_ns.last() else { return };
        self.count += device.gaps_ns.len() as u64;
        self.longest_ns = self.longest_ns.max(*longest);
        for gap in &device.gaps_ns {
            self.total_ns = self.total_ns.saturating_add(*gap);
            if let Some(lengths) = &mut self.lengths {
                // It fails only for lack of memory, and the other figures do not need it.
                let _ = lengths.record(*gap);
            }
        }
        self.in_operator_ns = self.in_operator_ns.saturating_add(device.gap_in_operator_ns);
        match device.gap_in_step_ns {
            Some(ns) => self.in_step_ns = self.in_step_ns.saturating_add(ns),
            None => self.steps_known = false,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "rounded to nanoseconds")]
    fn finish(&self) -> Option<Gaps> {
        let us = |ns: u64| round(ns as f64 / 1e3);
        let lengths = self.lengths.as_ref()?;
        (self.count > 0).then(|| Gaps {
            count: self.count,
            total_s: seconds(self.total_ns),
            median_us: us(lengths.value_at_quantile(0.5).min(self.longest_ns)),
            p99_us: us(lengths.value_at_quantile(0.99).min(self.longest_ns)),
            longest_us: us(self.longest_ns),
            in_operators: round(ratio(self.in_operator_ns, self.total_ns)),
            in_steps: self.steps_known.then(|| round(ratio(self.in_step_ns, self.total_ns))),
        })
    }
}

#[derive(Debug, Default)]
struct StepSum {
    steps: u64,
    windows: u32,
    walls_ns: Vec<u64>,
    gpu_ns: Vec<u64>,
    /// Sums of what is known, and of how many steps it is known.
    batch: [(u64, u64); 3],
}

fn add_steps(known: &mut BTreeMap<StepKind, StepSum>, profile: &WindowProfile, facts: &WindowFacts) {
    let mut kinds: BTreeSet<StepKind> = BTreeSet::new();
    for step in join(&profile.steps, Some(facts)) {
        let KnownStep { step: times, batch } = step;
        let kind = step.kind();
        let sum = known.entry(kind).or_default();
        sum.windows += u32::from(kinds.insert(kind));
        sum.steps += 1;
        if sum.walls_ns.len() < MAX_STEPS {
            sum.walls_ns.push(times.wall_ns);
            sum.gpu_ns.extend(times.gpu_ns);
        }
        for ((sum, known), value) in sum.batch.iter_mut().zip(batch.unwrap_or_default()) {
            *sum = sum.saturating_add(value.unwrap_or(0));
            *known += u64::from(value.is_some());
        }
    }
}

impl StepSum {
    #[expect(clippy::cast_precision_loss, reason = "means and milliseconds")]
    fn finish(mut self, kind: StepKind) -> StepGroup {
        let ms = |mut list: Vec<u64>| {
            list.sort_unstable();
            super::analyse::quantile(&list, 0.5).map(|ns| round(ns as f64 / 1e6))
        };
        let [prefill, decode, requests] =
            self.batch.map(|(sum, known)| (known > 0).then(|| round(sum as f64 / known as f64)));
        // Some steps without GPU time among others would make the median one of a part.
        let gpu_ms = if self.gpu_ns.len() == self.walls_ns.len() {
            ms(std::mem::take(&mut self.gpu_ns))
        } else {
            None
        };
        StepGroup {
            kind,
            steps: self.steps,
            windows: self.windows,
            wall_ms: ms(std::mem::take(&mut self.walls_ns)).unwrap_or_default(),
            gpu_ms,
            prefill_tokens: prefill,
            decode_tokens: decode,
            requests,
        }
    }
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;
