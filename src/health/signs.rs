//! What processes and GPUs did in the last seconds, and what a standstill with such signs is called. Pure.

use crate::event::{GpuSample, HangKind, ProcSample, Reading};
use std::collections::VecDeque;
use std::time::Duration;

/// NVML averages over up to a second and single samples mislead, so everything is judged over this long.
const WINDOW: Duration = Duration::from_secs(8);

/// From this many CPU seconds a second on the host is busy. A deadlock uses below 0.02; a compile that has to share the
/// machine gets little more than this.
const BUSY: f64 = 0.2;

/// Or a process wants the CPU in this share of the looks and does not get it.
const RUNNABLE: f64 = 0.5;

/// A kernel that waits reads 90 to 100 % utilisation and 0 % memory utilisation (measured on an H100).
const SPIN_UTIL: f64 = 80.0;
const SPIN_MEM_UTIL: f64 = 1.5;

/// Samples of a GPU before it is judged, and of silence before the driver is called dead.
const ENOUGH: usize = 3;

/// A name for a standstill and what speaks for it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    pub(super) kind: HangKind,
    pub(super) reasons: Vec<String>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Signs {
    looks: VecDeque<Look>,
    gpus: VecDeque<(Duration, Option<Vec<Gpu>>)>,
    gpu_memory: u64,
    /// There is a driver, so its silence means something.
    gpu_answered: bool,
}

#[derive(Debug, Clone)]
struct Look {
    at: Duration,
    cpu: f64,
    stopped: Vec<(i32, String)>,
    asleep: Vec<(i32, String)>,
    runnable: bool,
}

#[derive(Debug, Clone, Copy)]
struct Gpu {
    index: u32,
    util: Option<u32>,
    mem_util: Option<u32>,
    power: Option<f64>,
}

impl Signs {
    pub(super) fn clear(&mut self) {
        self.looks.clear();
        self.gpus.clear();
    }

    pub(super) fn processes(&mut self, now: Duration, processes: &[ProcSample]) {
        let in_state = |states: &[char]| {
            processes
                .iter()
                .filter(|process| states.contains(&process.state))
                .map(|process| (process.proc.pid, process.comm.clone()))
                .collect()
        };
        self.looks.push_back(Look {
            at: now,
            cpu: processes.iter().map(|process| process.cpu_s).sum(),
            stopped: in_state(&['T', 't']),
            asleep: in_state(&['D']),
            runnable: processes.iter().any(|process| process.state == 'R' && !answers_us(process, processes)),
        });
        while self.looks.front().is_some_and(|look| now.saturating_sub(look.at) > WINDOW) {
            self.looks.pop_front();
        }
    }

    pub(super) fn gpus(&mut self, now: Duration, reading: &Reading<Vec<GpuSample>>) {
        let sample = match reading {
            Reading::Value(gpus) => {
                self.gpu_answered = true;
                self.gpu_memory = gpus.iter().filter_map(|gpu| gpu.mem_used.value()).sum();
                Some(gpus.iter().map(Gpu::from).collect())
            }
            Reading::Stale => None,
            // No driver from the start is no sign of anything.
            Reading::Unavailable { .. } if !self.gpu_answered => return,
            Reading::Unavailable { .. } => None,
        };
        self.gpus.push_back((now, sample));
        while self.gpus.front().is_some_and(|(at, _)| now.saturating_sub(*at) > WINDOW) {
            self.gpus.pop_front();
        }
    }

    pub(super) fn looks(&self) -> usize {
        self.looks.len()
    }

    pub(super) fn gpu_memory(&self) -> u64 {
        self.gpu_memory
    }

    /// CPU seconds a second over the window; a process that ended takes its seconds along, which is not less than 0.
    pub(super) fn cpu_rate(&self) -> f64 {
        let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) else { return 0.0 };
        let time = last.at.saturating_sub(first.at).as_secs_f64();
        if time <= 0.0 {
            return 0.0;
        }
        // Sums only what was added, look by look, so that an exit hides at most the seconds of one look.
        let pairs = self.looks.iter().zip(self.looks.iter().skip(1));
        pairs.map(|(before, after)| (after.cpu - before.cpu).max(0.0)).sum::<f64>() / time
    }

    pub(super) fn name(&self) -> Verdict {
        let named = |kind, reason: String| Verdict { kind, reasons: vec![reason] };
        if let Some((pid, comm)) = self.stopped() {
            return named(HangKind::Stopped, format!("{comm} (pid {pid}) is stopped by a signal"));
        }
        if self.gpus.len() >= ENOUGH && self.gpus.iter().all(|(_, sample)| sample.is_none()) {
            return named(HangKind::DriverDead, "the GPU driver no longer answers".to_owned());
        }
        if let Some((pid, comm)) =
            self.in_every_look(|look| &look.asleep).filter(|_| self.looks.len() > ENOUGH)
        {
            return named(HangKind::DriverDead, format!("{comm} (pid {pid}) sleeps uninterruptibly"));
        }
        if let Some(reason) = self.spinning() {
            return named(HangKind::GpuSpin, reason);
        }
        if self.looks.len() < 2 {
            return named(HangKind::Undetermined, "the processes could not be sampled".to_owned());
        }
        let cpu = self.cpu_rate();
        if self.gpu_works() {
            return named(HangKind::Undetermined, "a GPU computes and touches its memory".to_owned());
        }
        if cpu >= BUSY {
            return named(HangKind::HostBusy, format!("the processes use {cpu:.1} CPU cores"));
        }
        let runnable = self.looks.iter().filter(|look| look.runnable).count();
        if runnable as f64 >= RUNNABLE * self.looks.len() as f64 {
            return named(HangKind::HostBusy, "a process waits for a CPU".to_owned());
        }
        named(HangKind::GpuIdleHostIdle, format!("the processes use {cpu:.2} CPU cores and no GPU is busy"))
    }

    /// Nothing resembles it, so the last two looks are enough.
    fn stopped(&self) -> Option<(i32, String)> {
        let mut looks = self.looks.iter().rev();
        let (last, before) = (looks.next()?, looks.next()?);
        last.stopped.iter().find(|process| before.stopped.contains(process)).cloned()
    }

    /// A process that is in a list in every look of the window, and there are at least two.
    fn in_every_look(&self, list: impl Fn(&Look) -> &Vec<(i32, String)>) -> Option<(i32, String)> {
        let first = self.looks.front().filter(|_| self.looks.len() >= 2)?;
        list(first).iter().find(|process| self.looks.iter().all(|look| list(look).contains(process))).cloned()
    }

    fn means(&self) -> impl Iterator<Item = (u32, Option<f64>, Option<f64>, Option<f64>)> {
        let samples: Vec<&Vec<Gpu>> = self.gpus.iter().filter_map(|(_, sample)| sample.as_ref()).collect();
        let gpus = samples.last().filter(|_| samples.len() >= ENOUGH).map_or(0, |gpus| gpus.len());
        (0..gpus).map(move |place| {
            let all = || samples.iter().filter_map(|gpus| gpus.get(place));
            let index = all().next().map_or(0, |gpu| gpu.index);
            (
                index,
                mean(all().map(|gpu| gpu.util.map(f64::from))),
                mean(all().map(|gpu| gpu.mem_util.map(f64::from))),
                mean(all().map(|gpu| gpu.power)),
            )
        })
    }

    /// One GPU is enough: in a collective that misses a rank the others spin, or one spins and the others are idle.
    fn spinning(&self) -> Option<String> {
        self.means().find_map(|(index, util, mem_util, power)| {
            let (util, mem_util) = (util?, mem_util?);
            (util >= SPIN_UTIL && mem_util < SPIN_MEM_UTIL).then(|| {
                let watts = power.map_or(String::new(), |power| format!(", {power:.0} W"));
                format!(
                    "GPU {index} is busy ({util:.0} %) without touching its memory ({mem_util:.1} %{watts})"
                )
            })
        })
    }

    fn gpu_works(&self) -> bool {
        self.means().any(|(_, util, mem_util, _)| {
            util.is_some_and(|util| util >= SPIN_UTIL)
                && mem_util.is_none_or(|mem_util| mem_util >= SPIN_MEM_UTIL)
        })
    }
}

impl From<&GpuSample> for Gpu {
    fn from(gpu: &GpuSample) -> Self {
        Self {
            index: gpu.gpu,
            util: gpu.util.value().copied(),
            mem_util: gpu.mem_util.value().copied(),
            power: gpu.power_w.value().copied(),
        }
    }
}

/// Of the values that are known; none when none is.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (sum, count) = values.flatten().fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

/// The first process of several is the API server: our own questions, which come as often as our looks, keep it awake.
fn answers_us(process: &ProcSample, all: &[ProcSample]) -> bool {
    let is_child = all.iter().any(|other| other.proc.pid == process.ppid);
    let has_children = all.iter().any(|other| other.ppid == process.proc.pid);
    has_children && !is_child
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ProcId;

    fn process(state: char, cpu_s: f64) -> ProcSample {
        ProcSample {
            proc: ProcId { pid: 7, start: 1 },
            ppid: 1,
            comm: "VLLM::EngineCor".to_owned(),
            state,
            cpu_s,
            rss: 1,
            threads: 1,
            read_bytes: None,
            written_bytes: None,
            wchan: None,
        }
    }

    fn gpu(util: u32, mem_util: Option<u32>) -> GpuSample {
        let mem_util = match mem_util {
            Some(value) => Reading::Value(value),
            None => Reading::Unavailable { why: "no".to_owned() },
        };
        GpuSample {
            gpu: 3,
            util: Reading::Value(util),
            mem_util,
            power_w: Reading::Value(120.0),
            mem_used: Reading::Value(1 << 30),
            mem_total: Reading::Value(2 << 30),
            xid: None,
            details: None,
        }
    }

    /// A look a second, each with the CPU seconds so far.
    fn looks(states: &str, cpu: impl Fn(u32) -> f64) -> Signs {
        let mut signs = Signs::default();
        for (second, state) in (0..).zip(states.chars()) {
            signs.processes(Duration::from_secs(second.into()), &[process(state, cpu(second))]);
        }
        signs
    }

    #[test]
    fn the_rate_is_what_was_added_by_the_time_it_took() {
        assert_eq!(looks("SSS", |second| f64::from(second) * 0.5).cpu_rate(), 0.5);
        assert_eq!(looks("S", |_| 9.0).cpu_rate(), 0.0, "one look has no rate");
        assert_eq!(Signs::default().cpu_rate(), 0.0);
        // A process that ended takes its seconds along.
        let fell = looks("SSS", |second| if second == 1 { 1.0 } else { 100.0 });
        assert_eq!(fell.cpu_rate(), 49.5);
    }

    #[test]
    fn an_api_server_that_answers_our_questions_is_no_busy_host() {
        let child = |state| ProcSample { proc: ProcId { pid: 8, start: 1 }, ppid: 7, ..process(state, 0.0) };
        for (parent, engine, kind) in [
            ('R', 'S', HangKind::GpuIdleHostIdle),
            ('S', 'R', HangKind::HostBusy),
            ('R', 'R', HangKind::HostBusy),
        ] {
            let mut signs = Signs::default();
            for second in 0..4 {
                signs.processes(Duration::from_secs(second), &[process(parent, 0.0), child(engine)]);
            }
            assert_eq!(signs.name().kind, kind, "{parent} {engine}");
        }
    }

    #[test]
    fn what_is_busy_is_named_by_how_it_is_busy() {
        assert_eq!(looks("SSSS", f64::from).name().kind, HangKind::HostBusy);
        assert_eq!(looks("SSSS", |_| 0.0).name().kind, HangKind::GpuIdleHostIdle);
        assert_eq!(looks("RRRR", |_| 0.0).name().kind, HangKind::HostBusy, "it waits for a CPU");
        assert_eq!(looks("RSSSSSSSSS", |_| 0.0).name().kind, HangKind::GpuIdleHostIdle);
        assert_eq!(looks("S", |_| 0.0).name().kind, HangKind::Undetermined);
        assert_eq!(looks("STT", |_| 0.0).name().kind, HangKind::Stopped);
        assert_ne!(looks("TTS", |_| 0.0).name().kind, HangKind::Stopped, "it runs again");
        assert_eq!(looks("DDDD", |_| 0.0).name().kind, HangKind::DriverDead);
        assert_ne!(looks("DDD", |_| 0.0).name().kind, HangKind::DriverDead, "too short to tell");
        assert_ne!(looks("DDSD", |_| 0.0).name().kind, HangKind::DriverDead, "it woke up");
    }

    #[test]
    fn a_gpu_is_judged_by_the_mean_of_some_looks() {
        let after = |samples: &[(u32, Option<u32>)]| {
            let mut signs = looks("SSSS", |_| 0.0);
            for (second, (util, mem_util)) in (0..).zip(samples) {
                signs.gpus(Duration::from_secs(second), &Reading::Value(vec![gpu(*util, *mem_util)]));
            }
            signs
        };
        let spin = after(&[(100, Some(0)); 3]);
        assert_eq!(spin.name().kind, HangKind::GpuSpin);
        assert!(spin.name().reasons[0].starts_with("GPU 3 is busy (100 %)"), "{:?}", spin.name());
        assert_eq!(spin.gpu_memory(), 1 << 30);
        assert_eq!(after(&[(100, Some(0)); 2]).name().kind, HangKind::GpuIdleHostIdle, "too few");
        assert_eq!(after(&[(100, Some(30)); 3]).name().kind, HangKind::Undetermined, "it computes");
        assert_eq!(after(&[(100, None); 3]).name().kind, HangKind::Undetermined, "nobody knows");
        assert_eq!(after(&[(0, Some(0)); 3]).name().kind, HangKind::GpuIdleHostIdle);
        assert_eq!(
            after(&[(0, None); 3]).name().kind,
            HangKind::GpuIdleHostIdle,
            "it does not compute at all"
        );
        assert_eq!(
            after(&[(100, Some(0)), (0, Some(0)), (0, Some(0))]).name().kind,
            HangKind::GpuIdleHostIdle
        );
    }

    #[test]
    fn only_a_driver_that_has_answered_can_fall_silent() {
        let silent = || Reading::Unavailable { why: "no".to_owned() };
        let mut signs = looks("SSSS", |_| 0.0);
        (0..5).for_each(|second| signs.gpus(Duration::from_secs(second), &silent()));
        assert_eq!(signs.name().kind, HangKind::GpuIdleHostIdle);
        signs.gpus(Duration::from_secs(5), &Reading::Value(vec![gpu(0, Some(0))]));
        (100..102).for_each(|second| signs.gpus(Duration::from_secs(second), &silent()));
        assert_ne!(signs.name().kind, HangKind::DriverDead, "twice is not enough");
        signs.gpus(Duration::from_secs(102), &Reading::Stale);
        assert_eq!(signs.name().kind, HangKind::DriverDead);
    }
}
