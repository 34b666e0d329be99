//! What the driver's library answers, on the thread that may be lost in it.

use super::super::gpu::{GpuMemory, GpuProcess};
use super::{Driver, Questions};
use crate::event::{GpuDetails, GpuHolder, GpuSample, Reading};
use crate::time::instant_now;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, PcieUtilCounter};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::gpm::gpm_metrics_get;
use nvml_wrapper::{Device, GpmSample, Nvml};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Details are in the first sample and in every so many after it.
const DETAILS_EVERY: u64 = 5;

/// The driver measures PCIe traffic for 20 ms when asked, in each direction. A GPU that takes longer is not asked again.
const PCIE_LIMIT: Duration = Duration::from_millis(100);

/// Loads the library with the first question and answers until nobody asks any more. A failure to load is kept: loading
/// is expensive and the answer stays the same.
pub(super) fn answer(questions: Questions) {
    let Some(first) = questions.first() else { return };
    match Nvml::init() {
        Ok(nvml) => questions.answer(first, &mut Library::new(&nvml)),
        Err(error) => questions.answer(first, &mut Absent(format!("NVML: {}", chain(&error)))),
    }
}

/// No driver.
struct Absent(String);

impl Driver for Absent {
    fn samples(&mut self) -> Reading<Vec<GpuSample>> {
        Reading::Unavailable { why: self.0.clone() }
    }

    fn memory(&mut self) -> Reading<Vec<GpuMemory>> {
        Reading::Unavailable { why: self.0.clone() }
    }
}

struct Library<'a> {
    nvml: &'a Nvml,
    round: u64,
    more: HashMap<u32, More<'a>>,
}

/// What is kept of one GPU from one sample to the next.
#[derive(Default)]
struct More<'a> {
    /// Its critical errors; none where they cannot be had.
    errors: Option<EventSet<'a>>,
    /// The counters of the last details.
    counters: Option<GpmSample<'a>>,
    no_counters: bool,
    no_pcie: bool,
    notes: Notes,
}

/// Tells each reason once.
#[derive(Default)]
struct Notes {
    told: HashSet<String>,
    new: Vec<String>,
}

impl Notes {
    fn tell(&mut self, note: String) {
        if self.told.insert(note.clone()) {
            self.new.push(note);
        }
    }

    fn value<T>(&mut self, what: &str, result: Result<T, NvmlError>) -> Option<T> {
        result.map_err(|error| self.tell(format!("{what}: {}", chain(&error)))).ok()
    }
}

/// The library's errors say little without their causes.
fn chain(error: &NvmlError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

fn reading<T>(what: &str, result: Result<T, NvmlError>) -> Reading<T> {
    match result {
        Ok(value) => Reading::Value(value),
        Err(error) => Reading::Unavailable { why: format!("{what}: {}", chain(&error)) },
    }
}

/// What holds the clocks down, in words.
fn clock_limits(reasons: ThrottleReasons) -> Vec<String> {
    [
        (ThrottleReasons::GPU_IDLE, "idle"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "set by a user"),
        (ThrottleReasons::SW_POWER_CAP, "power cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::SYNC_BOOST, "another GPU"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "hot"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "too hot"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display"),
    ]
    .into_iter()
    .filter(|(reason, _)| reasons.contains(*reason))
    .map(|(_, word)| word.to_owned())
    .collect()
}

impl<'a> Library<'a> {
    fn new(nvml: &'a Nvml) -> Self {
        Self { nvml, round: 0, more: HashMap::new() }
    }

    fn each<T>(&mut self, mut read: impl FnMut(&mut Self, u32, &Device<'a>) -> T) -> Reading<Vec<T>> {
        let nvml = self.nvml;
        let all = nvml.device_count().and_then(|count| {
            (0..count)
                .map(|index| Ok(read(self, index, &nvml.device_by_index(index)?)))
                .collect::<Result<Vec<T>, _>>()
        });
        match all {
            Ok(all) => Reading::Value(all),
            Err(error) => Reading::Unavailable { why: format!("NVML: {}", chain(&error)) },
        }
    }
}

impl<'a> More<'a> {
    fn new(nvml: &'a Nvml, device: &Device<'a>) -> Self {
        let mut more = Self::default();
        let errors = nvml.create_event_set().map_err(|error| chain(&error)).and_then(|set| {
            let kinds = EventTypes::CRITICAL_XID_ERROR;
            device.register_events(kinds, set).map_err(|error| chain(&error.error))
        });
        more.errors = errors.map_err(|why| more.notes.tell(format!("critical errors: {why}"))).ok();
        more
    }

    /// The last critical error since the last call.
    fn xid(&mut self) -> Option<u64> {
        let set = self.errors.as_ref()?;
        let mut last = None;
        // Bounded, because a dying GPU may report without end.
        for _ in 0..16 {
            match set.wait(0) {
                Ok(event) => {
                    if let Some(XidError::Value(number)) = event.event_data {
                        last = Some(number);
                    }
                }
                Err(_) => break,
            }
        }
        last
    }

    fn details(&mut self, nvml: &'a Nvml, device: &Device<'a>) -> GpuDetails {
        let ecc = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
        let mut details = GpuDetails {
            sm_mhz: self.notes.value("SM clock", device.clock_info(Clock::SM)),
            sm_max_mhz: self.notes.value("highest SM clock", device.max_clock_info(Clock::SM)),
            mem_mhz: self.notes.value("memory clock", device.clock_info(Clock::Memory)),
            clock_limits: self
                .notes
                .value("clock limits", device.current_throttle_reasons())
                .map(clock_limits),
            holders: self.notes.value("compute processes", holders(device)),
            ecc_uncorrected: self.notes.value("ECC errors", ecc),
            ..GpuDetails::default()
        };
        self.pcie(device, &mut details);
        self.counters(nvml, device, &mut details);
        details.unavailable = std::mem::take(&mut self.notes.new);
        details
    }

    fn pcie(&mut self, device: &Device<'a>, details: &mut GpuDetails) {
        if self.no_pcie {
            return;
        }
        let began = instant_now();
        let mut ask = |direction| self.notes.value("PCIe traffic", device.pcie_throughput(direction));
        details.pcie_tx_kbs = ask(PcieUtilCounter::Send);
        details.pcie_rx_kbs = ask(PcieUtilCounter::Receive);
        let took = began.elapsed();
        if took > PCIE_LIMIT {
            self.notes.tell(format!("PCIe traffic: asking takes {took:.0?}"));
        }
        self.no_pcie = took > PCIE_LIMIT || details.pcie_tx_kbs.is_none();
    }

    /// Hopper's performance counters between the last details and these.
    fn counters(&mut self, nvml: &'a Nvml, device: &Device<'a>, details: &mut GpuDetails) {
        const WANTED: [GpmMetricId; 3] =
            [GpmMetricId::AnyTensorUtil, GpmMetricId::DramBwUtil, GpmMetricId::SmUtil];
        if self.no_counters {
            return;
        }
        let sample = device
            .gpm_support()
            .and_then(|supported| if supported { device.gpm_sample() } else { Err(NvmlError::NotSupported) });
        let Some(sample) = self.notes.value("performance counters", sample) else {
            self.no_counters = true;
            return;
        };
        if let Some(before) = self.counters.replace(sample)
            && let Some(now) = &self.counters
        {
            let all = self.notes.value("performance counters", gpm_metrics_get(nvml, &before, now, &WANTED));
            self.no_counters = all.is_none();
            for metric in all.unwrap_or_default() {
                let Some(metric) = self.notes.value("performance counter", metric) else { continue };
                // One digit is more than the counters are worth, and the journal keeps it.
                let value = Some((metric.value * 10.0).round() / 10.0).filter(|value| value.is_finite());
                match metric.metric_id {
                    GpmMetricId::AnyTensorUtil => details.tensor_util = value,
                    GpmMetricId::DramBwUtil => details.dram_util = value,
                    GpmMetricId::SmUtil => details.sm_util = value,
                    _ => {}
                }
            }
        }
    }
}

fn holders(device: &Device<'_>) -> Result<Vec<GpuHolder>, NvmlError> {
    let holder = |process: nvml_wrapper::struct_wrappers::device::ProcessInfo| GpuHolder {
        pid: process.pid,
        bytes: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
    };
    Ok(device.running_compute_processes()?.into_iter().map(holder).collect())
}

impl Driver for Library<'_> {
    fn samples(&mut self) -> Reading<Vec<GpuSample>> {
        let detailed = self.round.is_multiple_of(DETAILS_EVERY);
        self.round += 1;
        self.each(|this, gpu, device| {
            // Not supported on a GPU that is cut into instances (MIG), and then unknown, not 0.
            let rates = device.utilization_rates();
            let (util, mem_util) = match rates {
                Ok(rates) => (Reading::Value(rates.gpu), Reading::Value(rates.memory)),
                Err(error) => {
                    let why = format!("utilisation: {}", chain(&error));
                    (Reading::Unavailable { why: why.clone() }, Reading::Unavailable { why })
                }
            };
            let (mem_used, mem_total) = memory(device);
            let power = device.power_usage().map(|milliwatts| f64::from(milliwatts) / 1000.0);
            let nvml = this.nvml;
            let more = this.more.entry(gpu).or_insert_with(|| More::new(nvml, device));
            GpuSample {
                gpu,
                util,
                mem_util,
                power_w: reading("power", power),
                mem_used,
                mem_total,
                xid: more.xid(),
                details: detailed.then(|| Box::new(more.details(nvml, device))),
            }
        })
    }

    fn memory(&mut self) -> Reading<Vec<GpuMemory>> {
        self.each(|_, gpu, device| {
            let (used, total) = memory(device);
            let processes = holders(device).map(|all| {
                let unknown = || Reading::Unavailable { why: "the driver does not say".to_owned() };
                let process = |holder: GpuHolder| GpuProcess {
                    pid: holder.pid,
                    used: holder.bytes.map_or_else(unknown, Reading::Value),
                };
                all.into_iter().map(process).collect()
            });
            GpuMemory {
                gpu,
                name: device.name().unwrap_or_else(|_| format!("GPU {gpu}")),
                used,
                total,
                processes: reading("compute processes", processes),
            }
        })
    }
}

/// Used and in all.
fn memory(device: &Device<'_>) -> (Reading<u64>, Reading<u64>) {
    match device.memory_info() {
        Ok(memory) => (Reading::Value(memory.used), Reading::Value(memory.total)),
        Err(error) => {
            let why = format!("memory: {}", chain(&error));
            (Reading::Unavailable { why: why.clone() }, Reading::Unavailable { why })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_and_another_one_again() {
        let mut notes = Notes::default();
        assert_eq!(notes.value("power", Ok(7)), Some(7));
        for _ in 0..3 {
            assert_eq!(notes.value::<u32>("power", Err(NvmlError::NotSupported)), None);
        }
        assert_eq!(notes.new.len(), 1, "{:?}", notes.new);
        assert!(notes.new[0].starts_with("power: "), "{:?}", notes.new);
        notes.new.clear();
        assert_eq!(notes.value::<u32>("power", Err(NvmlError::NotSupported)), None);
        assert_eq!(notes.value::<u32>("power", Err(NvmlError::NoPermission)), None);
        assert_eq!(notes.new.len(), 1, "{:?}", notes.new);
    }

    #[test]
    fn every_limit_has_a_word_and_none_is_no_limit() {
        assert_eq!(clock_limits(ThrottleReasons::NONE), [""; 0]);
        let two = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::SW_THERMAL_SLOWDOWN;
        assert_eq!(clock_limits(two), ["power cap", "hot"]);
        let words = clock_limits(ThrottleReasons::all());
        assert_eq!(words.len(), 9);
        assert_eq!(words.iter().collect::<HashSet<_>>().len(), 9);
    }
}
