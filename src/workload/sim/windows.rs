//! Profiler windows as `worker.py` opens and closes them inside a real worker: same environment, same files, same index.

use super::fault::{Faults, Phase, What, Who};
use super::trace::Recording;
use super::tree::{kill_self, sleep};
use crate::event::{WindowContent, WindowEvent, WindowLine};
use crate::time::{instant_now, wall_now};
use nix::sys::signal::Signal;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The limits of a window, from the environment.
#[derive(Debug, Clone, PartialEq)]
struct Limits {
    steps: u64,
    window: Duration,
    rest: Duration,
    idle: Duration,
    /// Share of time that flushing may take; 0 without one.
    budget: f64,
}

#[derive(Debug)]
enum State {
    /// Nothing is recorded until then.
    Resting(Option<Instant>),
    Open {
        since: Instant,
        start_ns: i128,
        last_step: Instant,
        first: u64,
    },
    /// Switched off: it opens no window, and still says when it is finished.
    Disabled,
    /// The last line was written.
    Over,
}

/// The profiler of one rank.
#[derive(Debug)]
pub(super) struct Recorder {
    folder: PathBuf,
    rank: u32,
    limits: Limits,
    events: u64,
    seed: u64,
    faults: Faults,
    state: State,
    window: u32,
    steps: u64,
}

fn env_number(name: &str, default: f64) -> f64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn env_duration(name: &str, default: f64) -> Duration {
    Duration::try_from_secs_f64(env_number(name, default)).unwrap_or(Duration::MAX)
}

impl Recorder {
    /// None without `VARCAS_TRACE_DIR`.
    pub(super) fn from_env(rank: u32, events: u64, seed: u64, torch: &str, faults: &Faults) -> Option<Self> {
        let folder = std::env::var_os("VARCAS_TRACE_DIR").filter(|value| !value.is_empty())?;
        let recorder = Self {
            folder: PathBuf::from(folder),
            rank,
            limits: Limits {
                steps: env_number("VARCAS_WINDOW_STEPS", 20.0) as u64,
                window: env_duration("VARCAS_WINDOW_SECONDS", 2.0),
                rest: env_duration("VARCAS_REST_SECONDS", 5.0),
                idle: env_duration("VARCAS_IDLE_SECONDS", 1.0),
                budget: env_number("VARCAS_PROFILE_BUDGET", 0.0),
            },
            events,
            seed,
            faults: faults.clone(),
            state: State::Resting(None),
            window: 0,
            steps: 0,
        };
        // A folder that cannot be made shows as a missing index; the engine serves all the same.
        let _ = std::fs::create_dir_all(&recorder.folder);
        let activities = vec!["CPU".to_owned(), "CUDA".to_owned()];
        recorder.say(WindowEvent::Hello { torch: torch.to_owned(), activities });
        Some(recorder)
    }

    /// Before the model runs.
    pub(super) fn before_step(&mut self) {
        if self.close_if_asked() {
            return;
        }
        let rested =
            matches!(&self.state, State::Resting(until) if until.is_none_or(|until| instant_now() >= until));
        if rested && self.phase() != crate::event::Phase::Loading.to_string() {
            let now = instant_now();
            self.state = State::Open {
                since: now,
                start_ns: wall_now().as_nanosecond(),
                last_step: now,
                first: self.steps,
            };
            self.say(WindowEvent::Opened { window: self.window, step: self.steps, phase: self.phase() });
        }
    }

    /// As the guard tells it.
    fn phase(&self) -> String {
        std::fs::read_to_string(self.folder.join("phase")).unwrap_or_default().trim().to_owned()
    }

    /// After the model ran.
    pub(super) fn after_step(&mut self) {
        self.steps += 1;
        let State::Open { since, last_step, first, .. } = &mut self.state else { return };
        *last_step = instant_now();
        if self.steps - *first >= self.limits.steps {
            self.close("steps");
        } else if since.elapsed() >= self.limits.window {
            self.close("time");
        }
    }

    /// From time to time while no step comes.
    pub(super) fn tick(&mut self) {
        if self.close_if_asked() {
            return;
        }
        if let State::Open { last_step, .. } = &self.state
            && last_step.elapsed() >= self.limits.idle
        {
            self.close("idle");
        }
    }

    /// The worker is asked to end.
    pub(super) fn shutdown(&mut self) {
        self.close("shutdown");
    }

    fn close_if_asked(&mut self) -> bool {
        if matches!(self.state, State::Over) {
            return true;
        }
        if !self.folder.join("close").exists() {
            return false;
        }
        self.close("asked");
        if !matches!(self.state, State::Over) {
            self.state = State::Over;
            self.say(WindowEvent::Finished {});
        }
        true
    }

    fn close(&mut self, why: &str) {
        let State::Open { since, start_ns, first, .. } = self.state else { return };
        let window = self.window;
        let recorded = since.elapsed();
        self.window += 1;
        self.state = State::Resting(instant_now().checked_add(self.limits.rest));
        self.say(WindowEvent::Flushing { window });
        let due = self.faults.due(Who::Worker(self.rank), Phase::Window, u64::from(window));
        let hits: Vec<What> =
            due.inspect(|fault| super::marks::struck(fault)).map(|fault| fault.what.clone()).collect();
        let stopping = instant_now();
        for hit in &hits {
            match hit {
                What::Slow(time) => sleep(*time),
                What::Hang => super::tree::hang(),
                What::Fail => {
                    self.say(WindowEvent::Failed { window, error: "RuntimeError: simulated".to_owned() });
                    return;
                }
                What::Disable => {
                    self.state = State::Disabled;
                    self.say(WindowEvent::Disabled { reason: "RuntimeError: simulated".to_owned() });
                    return;
                }
                What::Signal(signal) => kill_self(*signal),
                What::Grow(time) => self.grow(window, *time),
                _ => {}
            }
        }
        let stop_s = stopping.elapsed().as_secs_f64();
        if self.limits.budget > 0.0 {
            let pay = Duration::try_from_secs_f64(stop_s / self.limits.budget).unwrap_or(Duration::MAX);
            self.state = State::Resting(instant_now().checked_add(self.limits.rest.max(pay)));
        }
        let exporting = instant_now();
        let file = format!("window-{window:04}-rank{}.pt.trace.json", self.rank);
        let recording = Recording {
            pid: std::process::id(),
            rank: self.rank,
            start_ns,
            seconds: recorded.as_secs_f64(),
            events: self.events,
            steps: first..self.steps,
            seed: self.seed ^ (u64::from(window) << 32) ^ u64::from(self.rank),
            name: file.clone(),
        };
        let text = recording.text();
        let (path, temporary) = (self.folder.join(&file), self.folder.join(format!("{file}.tmp")));
        if hits.contains(&What::Half) {
            // What a SIGKILL in the middle of an export leaves behind.
            let _ = std::fs::write(&temporary, &text.as_bytes()[..text.len() / 2]);
            super::tree::signal_self(Signal::SIGKILL);
        }
        if hits.contains(&What::Full) {
            // The error is the kernel's own: this device is always full.
            let error = std::fs::write("/dev/full", &text).err().and_then(|error| error.raw_os_error());
            let error = format!("OSError: [Errno {}] No space left on device", error.unwrap_or_default());
            self.say(WindowEvent::Failed { window, error });
            return;
        }
        let written = std::fs::write(&temporary, &text).and_then(|()| std::fs::rename(&temporary, &path));
        match written {
            Ok(()) => self.say(WindowEvent::Closed {
                window,
                file,
                bytes: text.len() as u64,
                first_step: first,
                last_step: self.steps,
                recorded_s: recorded.as_secs_f64(),
                stop_s,
                export_s: exporting.elapsed().as_secs_f64(),
                why: why.to_owned(),
                content: WindowContent { phase: self.phase(), ..WindowContent::default() },
            }),
            Err(error) => {
                let _ = std::fs::remove_file(&temporary);
                self.say(WindowEvent::Failed { window, error: format!("OSError: {error}") });
            }
        }
    }

    /// An export that takes its time: its file grows all the while, as a real one does.
    fn grow(&self, window: u32, time: Duration) {
        let path = self.folder.join(format!("window-{window:04}-rank{}.pt.trace.json.tmp", self.rank));
        let until = instant_now() + time;
        let Ok(mut file) = std::fs::File::create(path) else { return };
        while instant_now() < until {
            let _ = file.write_all(&[b' '; 16 << 10]);
            sleep(Duration::from_millis(50));
        }
    }

    /// One write per line: several ranks append to the same file.
    fn say(&self, what: WindowEvent) {
        let t = wall_now().as_nanosecond() as f64 / 1e9;
        let line = WindowLine { rank: self.rank, pid: std::process::id() as i32, t, what };
        let Ok(mut text) = serde_json::to_string(&line) else { return };
        text.push('\n');
        let opened =
            std::fs::OpenOptions::new().append(true).create(true).open(self.folder.join("windows.jsonl"));
        // A worker that cannot write its index goes on serving, as worker.py does.
        let _ = opened.and_then(|mut index| index.write_all(text.as_bytes()));
    }
}
