//! An invented GPU whose readings a drill has written down. It takes the driver's place only when [`install`] was called,
//! which is done for a run that a drill has started, and for no other (`cli/drill/stage.rs`).

use super::gpu::{BoxFuture, GpuMemory, GpuSource};
use super::nvml::NvmlSource;
use crate::event::{GpuSample, Reading};
use crate::time::instant_now;
use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What the GPU says from a moment on, until the next of the list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GpuStep {
    /// From when on.
    #[serde(default)]
    pub after: When,
    /// How it answers.
    #[serde(default)]
    pub answer: Answer,
    /// Percent of time with a kernel running.
    #[serde(default)]
    pub util: u32,
    /// Percent of time in which memory was read or written.
    #[serde(default)]
    pub mem_util: u32,
    /// Watts.
    #[serde(default = "idle_watts")]
    pub power: f64,
    /// GiB in use, of 80.
    #[serde(default)]
    pub mem_used: f64,
    /// A critical error, told once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xid: Option<u64>,
}

fn idle_watts() -> f64 {
    70.0
}

/// How the driver answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// With values.
    #[default]
    Values,
    /// Not at all, although it did before.
    Silent,
    /// That there is no such GPU.
    Lost,
}

/// A moment of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum When {
    /// So long after the guard began.
    Start(Duration),
    /// So long after a fault of the simulator has struck.
    Fault(Duration),
}

impl Default for When {
    fn default() -> Self {
        Self::Start(Duration::ZERO)
    }
}

impl TryFrom<String> for When {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no moment: write \"3s\", \"fault\" or \"fault + 3s\"");
        let time = |text: &str| {
            let span: jiff::SignedDuration = text.trim().parse().map_err(|_| wrong())?;
            Duration::try_from(span).map_err(|_| wrong())
        };
        match text.trim().strip_prefix("fault").map(str::trim) {
            Some("") => Ok(Self::Fault(Duration::ZERO)),
            Some(rest) => time(rest.strip_prefix('+').ok_or_else(wrong)?).map(Self::Fault),
            None => time(&text).map(Self::Start),
        }
    }
}

impl From<When> for String {
    fn from(when: When) -> Self {
        match when {
            When::Start(time) => format!("{} ms", time.as_millis()),
            When::Fault(time) => format!("fault + {} ms", time.as_millis()),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuScript {
    /// In the order of their moments.
    pub steps: Vec<GpuStep>,
    /// Where the simulator writes down its faults.
    pub marks: PathBuf,
}

static SCRIPT: OnceLock<GpuScript> = OnceLock::new();

/// From now on [`source`] gives the invented GPU. The first script stays.
pub fn install(script: GpuScript) {
    drop(SCRIPT.set(script));
}

/// The driver; or the invented GPU in a run of a drill.
pub fn source() -> std::io::Result<Box<dyn GpuSource>> {
    Ok(match SCRIPT.get() {
        Some(script) => Box::new(InventedGpu::new(script.clone())),
        None => Box::new(NvmlSource::start()?),
    })
}

#[derive(Debug)]
struct InventedGpu {
    script: GpuScript,
    began: Instant,
    fault: Option<Instant>,
    xid_told: Option<usize>,
}

impl InventedGpu {
    fn new(script: GpuScript) -> Self {
        Self { script, began: instant_now(), fault: None, xid_told: None }
    }

    /// The step in force and its place. A fault is noticed at the first look after it.
    fn now(&mut self) -> Option<(usize, &GpuStep)> {
        if self.fault.is_none() {
            let marks = std::fs::read_to_string(&self.script.marks).unwrap_or_default();
            self.fault = marks.contains("\"fault\"").then(instant_now);
        }
        let has_come = |step: &GpuStep| match step.after {
            When::Start(time) => self.began.elapsed() >= time,
            When::Fault(time) => self.fault.is_some_and(|fault| fault.elapsed() >= time),
        };
        let last = self.script.steps.iter().rposition(has_come)?;
        Some((last, &self.script.steps[last]))
    }

    fn reading<T>(&mut self, make: impl FnOnce(&GpuStep, bool) -> T) -> Reading<Vec<T>> {
        let told = self.xid_told;
        let Some((index, step)) = self.now() else { return Reading::Value(Vec::new()) };
        let reading = match step.answer {
            Answer::Values => Reading::Value(vec![make(step, told != Some(index))]),
            Answer::Silent => return Reading::Stale,
            Answer::Lost => return Reading::Unavailable { why: "NVML: the GPU is lost".to_owned() },
        };
        self.xid_told = Some(index);
        reading
    }
}

fn bytes(gib: f64) -> u64 {
    (gib * f64::from(1 << 30)) as u64
}

const TOTAL: u64 = 80 << 30;

impl GpuSource for InventedGpu {
    fn sample(&mut self) -> BoxFuture<'_, Reading<Vec<GpuSample>>> {
        let sample = self.reading(|step, first| GpuSample {
            gpu: 0,
            util: Reading::Value(step.util),
            mem_util: Reading::Value(step.mem_util),
            power_w: Reading::Value(step.power),
            mem_used: Reading::Value(bytes(step.mem_used)),
            mem_total: Reading::Value(TOTAL),
            xid: step.xid.filter(|_| first),
            details: None,
        });
        std::future::ready(sample).boxed()
    }

    fn memory(&mut self) -> BoxFuture<'_, Reading<Vec<GpuMemory>>> {
        let told = self.xid_told;
        let memory = self.reading(|step, _| GpuMemory {
            gpu: 0,
            name: "an invented GPU".to_owned(),
            used: Reading::Value(bytes(step.mem_used)),
            total: Reading::Value(TOTAL),
            processes: Reading::Value(Vec::new()),
        });
        // Only a sample tells of an error.
        self.xid_told = told;
        std::future::ready(memory).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<GpuStep> {
        #[derive(Deserialize)]
        struct File {
            gpu: Vec<GpuStep>,
        }
        toml::from_str::<File>(text).unwrap().gpu
    }

    #[tokio::test]
    async fn a_step_holds_from_its_moment_and_an_error_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let marks = dir.path().join("marks");
        let text = "[[gpu]]\nutil = 9\n[[gpu]]\nafter = \"fault\"\nutil = 100\nxid = 79\n[[gpu]]\nafter = \"fault + 1h\"\n";
        let mut gpu = InventedGpu::new(GpuScript { steps: steps(text), marks: marks.clone() });
        let Reading::Value(before) = gpu.sample().await else { panic!("no value") };
        assert_eq!((&before[0].util, before[0].xid), (&Reading::Value(9), None));
        std::fs::write(
            &marks,
            "{\"t\":1.0,\"attempt\":1,\"pid\":7,\"fault\":{\"index\":0,\"text\":\"x\"}}\n",
        )
        .unwrap();
        drop(gpu.memory().await);
        let Reading::Value(after) = gpu.sample().await else { panic!("no value") };
        assert_eq!((&after[0].util, after[0].xid), (&Reading::Value(100), Some(79)));
        let Reading::Value(again) = gpu.sample().await else { panic!("no value") };
        assert_eq!(again[0].xid, None);
    }

    #[test]
    fn moments_are_read_and_nonsense_is_refused() {
        for (text, when) in [
            ("3s", When::Start(Duration::from_secs(3))),
            ("fault", When::Fault(Duration::ZERO)),
            ("fault + 500ms", When::Fault(Duration::from_millis(500))),
        ] {
            assert_eq!(When::try_from(text.to_owned()), Ok(when));
            assert_eq!(When::try_from(String::from(when)), Ok(when));
        }
        for bad in ["", "soon", "fault 3s", "-3s", "3"] {
            assert!(When::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_a_script_the_driver_is_asked() {
        // Nothing in this test program installs one, and only a drill's guard does elsewhere.
        assert!(SCRIPT.get().is_none());
        assert!(source().is_ok());
    }
}
