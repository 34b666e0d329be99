//! `/metrics`: what is known of the run in Prometheus' text format 0.0.4. Pure. `docs/metrics.md` lists every name, and a
//! test compares the two.
//!
//! What is not known is not there, never 0. Base units, `_total` for what only grows within an attempt. Counters begin anew
//! with each attempt, as they do when a process starts anew; `varcas_guard_attempt` tells which one it is.

use crate::event::{GpuSample, Outcome, Phase, Reading};
use crate::view::now::Now;
use std::fmt::Write as _;
use std::time::Duration;

/// Beside the run: what only the guard's own process knows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Own {
    /// The moment on the run's clock.
    pub at: Duration,
    /// How long the loop that decides has not turned.
    pub silence: Duration,
    /// Events so far.
    pub events: u64,
    /// Connections open.
    pub connections: u64,
    /// Connections and requests that were turned away.
    pub refused: u64,
    /// Messages that wait for their delivery; none when nobody is notified.
    pub waiting: Option<u64>,
    /// Messages that were delivered.
    pub delivered: Option<u64>,
}

/// What kind of number it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Comes and goes.
    Gauge,
    /// Only grows within an attempt.
    Counter,
    /// Quantiles.
    Summary,
}

impl Type {
    /// As the format writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Summary => "summary",
        }
    }
}

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// Its kind.
    pub kind: Type,
    /// One line.
    pub help: &'static str,
    take: fn(&Now, &Own, &mut Out),
}

/// One line: what follows the name, labels, value.
type Sample = (&'static str, Vec<(&'static str, String)>, f64);

/// Collects the samples of one metric.
#[derive(Debug, Default)]
struct Out {
    samples: Vec<Sample>,
}

impl Out {
    fn put(&mut self, value: f64) {
        self.samples.push(("", Vec::new(), value));
    }

    fn some(&mut self, value: Option<f64>) {
        if let Some(value) = value {
            self.put(value);
        }
    }

    fn with(&mut self, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
        self.samples.push(("", labels, value));
    }

    fn gpus<T>(&mut self, now: &Now, take: impl Fn(&GpuSample) -> &Reading<T>, scale: impl Fn(&T) -> f64) {
        for gpu in now.gpus.as_ref().and_then(Reading::value).into_iter().flatten() {
            if let Some(value) = take(gpu).value() {
                self.with(&[("gpu", &gpu.gpu.to_string())], scale(value));
            }
        }
    }
}

const fn gauge(name: &'static str, help: &'static str, take: fn(&Now, &Own, &mut Out)) -> Metric {
    Metric { name, kind: Type::Gauge, help, take }
}

const fn counter(name: &'static str, help: &'static str, take: fn(&Now, &Own, &mut Out)) -> Metric {
    Metric { name, kind: Type::Counter, help, take }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn number(n: u64) -> f64 {
    n as f64
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn epoch(at: jiff::Timestamp) -> f64 {
    at.as_microsecond() as f64 / 1e6
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Since the run began, as a time of day.
fn moment(now: &Now, at: Duration) -> Option<f64> {
    now.started.map(|started| epoch(started) + at.as_secs_f64())
}

fn progress(now: &Now, take: fn(&crate::event::LoadProgress) -> u64) -> Option<f64> {
    now.load.as_ref().map(|load| number(take(&load.progress)))
}

fn engine(now: &Now, take: fn(&crate::event::EngineSample) -> f64) -> Option<f64> {
    now.engine.as_ref().and_then(Reading::value).map(take)
}

fn disk(reading: Option<&Reading<u64>>) -> Option<f64> {
    reading.and_then(Reading::value).map(|bytes| number(*bytes))
}

const PHASES: [Phase; 10] = [
    Phase::Preflight,
    Phase::Loading,
    Phase::WarmUp,
    Phase::Measuring,
    Phase::Flushing,
    Phase::Stopping,
    Phase::Draining,
    Phase::Collecting,
    Phase::Waiting,
    Phase::Done,
];

fn outcome(outcome: Outcome) -> String {
    outcome.to_string().replace(' ', "-")
}

/// Every metric, in the order in which they are written.
pub const METRICS: &[Metric] = &[
    gauge("varcas_guard_info", "Always 1; its labels say which run this is.", |now, _, out| {
        let version = now.server_version.clone().unwrap_or_default();
        let labels = [
            ("run_id", now.run_id.as_str()),
            ("version", &now.guard_version),
            ("model", &now.model),
            ("server_version", &version),
        ];
        out.with(&labels, 1.0);
    }),
    gauge(
        "varcas_guard_start_time_seconds",
        "When the run began, in seconds since the epoch.",
        |now, _, out| out.some(now.started.map(epoch)),
    ),
    gauge(
        "varcas_guard_deadline_timestamp_seconds",
        "When the whole run must be over, in seconds since the epoch.",
        |now, _, out| out.some(now.deadline.and_then(|deadline| moment(now, deadline))),
    ),
    gauge(
        "varcas_guard_last_turn_age_seconds",
        "How long the loop that decides has not turned; a large value means that the guard is stuck.",
        |_, own, out| out.put(own.silence.as_secs_f64()),
    ),
    counter("varcas_guard_events_total", "Lines of the journal.", |_, own, out| out.put(number(own.events))),
    gauge("varcas_guard_attempt", "The present attempt, from 1.", |now, _, out| {
        out.put(f64::from(now.attempt));
    }),
    gauge("varcas_guard_attempts_max", "Attempts that the run may take.", |now, _, out| {
        out.put(f64::from(now.attempts));
    }),
    gauge("varcas_guard_phase", "1 for the present phase, 0 for the others.", |now, _, out| {
        for phase in PHASES {
            out.with(&[("phase", &phase.to_string())], truth(now.phase == Some(phase)));
        }
    }),
    gauge("varcas_guard_phase_seconds", "How long the present phase has lasted.", |now, own, out| {
        if now.phase.is_some() {
            out.put(own.at.saturating_sub(now.phase_since).as_secs_f64());
        }
    }),
    gauge("varcas_guard_phase_budget_seconds", "How long the present phase may last.", |now, _, out| {
        out.some(now.phase_budget.map(|budget| budget.as_secs_f64()));
    }),
    gauge("varcas_guard_server_ready", "Whether the server answers requests.", |now, _, out| {
        out.put(truth(now.ready));
    }),
    gauge("varcas_guard_attempts_ended", "Attempts that are over, by how they ended.", |now, _, out| {
        let mut ended: std::collections::BTreeMap<String, u64> = std::collections::BTreeMap::new();
        for past in &now.past {
            *ended.entry(outcome(past.outcome)).or_default() += 1;
        }
        if let Some(ending) = &now.ending {
            *ended.entry(outcome(ending.outcome)).or_default() += 1;
        }
        for (name, n) in ended {
            out.with(&[("outcome", &name)], number(n));
        }
    }),
    gauge(
        "varcas_guard_verdict_info",
        "Always 1; its labels say what the present attempt failed of.",
        |now, _, out| {
            if let Some(verdict) = &now.verdict {
                let sure = verdict.confidence.to_string();
                out.with(&[("cause", &verdict.cause), ("confidence", &sure)], 1.0);
            }
        },
    ),
    gauge("varcas_guard_changed_settings", "Settings that differ from those asked for.", |now, _, out| {
        out.put(number(now.changes.len() as u64));
    }),
    gauge(
        "varcas_guard_standstill_seconds",
        "How long nothing has moved although work is pending, as far as it is suspected.",
        |now, _, out| {
            if let Some(suspicion) = &now.suspicion {
                out.with(&[("kind", &suspicion.kind.to_string())], suspicion.still.as_secs_f64());
            }
        },
    ),
    counter("varcas_guard_findings_total", "Lines of the server's log that a rule knows.", |now, _, out| {
        out.put(number(now.findings_count));
    }),
    gauge("varcas_guard_run_finished", "Whether the run has come to its end.", |now, _, out| {
        out.put(truth(now.end.is_some()));
    }),
    gauge("varcas_guard_run_exit_code", "The exit code, once there is one.", |now, _, out| {
        out.some(now.end.as_ref().map(|end| f64::from(end.exit_code)));
    }),
    gauge("varcas_guard_left_behind", "Things of ours that outlived their attempt.", |now, _, out| {
        out.put(number(now.left_behind));
    }),
    gauge("varcas_guard_requests_planned", "Requests in the schedule.", |now, _, out| {
        out.some(now.load.as_ref().map(|load| number(load.planned)));
    }),
    counter("varcas_guard_requests_sent_total", "Requests sent.", |now, _, out| {
        out.some(progress(now, |p| p.sent));
    }),
    counter("varcas_guard_requests_completed_total", "Requests that succeeded.", |now, _, out| {
        out.some(progress(now, |p| p.completed));
    }),
    counter("varcas_guard_requests_failed_total", "Requests that failed.", |now, _, out| {
        out.some(progress(now, |p| p.failed));
    }),
    gauge("varcas_guard_requests_in_flight", "Requests open at the client.", |now, _, out| {
        out.some(progress(now, |p| p.in_flight));
    }),
    counter(
        "varcas_guard_stream_chunks_total",
        "Pieces of streams that reached the client.",
        |now, _, out| {
            out.some(progress(now, |p| p.chunks));
        },
    ),
    counter(
        "varcas_guard_prompt_tokens_total",
        "Prompt tokens of finished requests, by the server's usage.",
        |now, _, out| out.some(progress(now, |p| p.prompt_tokens)),
    ),
    counter(
        "varcas_guard_output_tokens_total",
        "Output tokens of finished requests, by the server's usage.",
        |now, _, out| out.some(progress(now, |p| p.output_tokens)),
    ),
    gauge(
        "varcas_guard_output_tokens_per_second",
        "Output tokens per second over the last seconds, by the engine's counter or by pieces at the client.",
        |now, own, out| out.some(now.tokens_per_s(own.at).map(|(rate, _)| rate)),
    ),
    Metric {
        name: "varcas_guard_ttft_seconds",
        kind: Type::Summary,
        help: "Time from a request's send to its first token, over the whole benchmark.",
        take: ttft,
    },
    counter(
        "varcas_guard_engine_prompt_tokens_total",
        "Prompt tokens by the engine's own counter.",
        |now, _, out| out.some(engine(now, |e| e.prompt_tokens)),
    ),
    counter(
        "varcas_guard_engine_generation_tokens_total",
        "Output tokens by the engine's own counter.",
        |now, _, out| out.some(engine(now, |e| e.generation_tokens)),
    ),
    counter("varcas_guard_engine_iterations_total", "Steps of the engine.", |now, _, out| {
        out.some(engine(now, |e| e.iterations));
    }),
    gauge("varcas_guard_engine_requests_running", "Requests the engine works on.", |now, _, out| {
        out.some(engine(now, |e| e.running));
    }),
    gauge("varcas_guard_engine_requests_waiting", "Requests that wait in the engine.", |now, _, out| {
        out.some(engine(now, |e| e.waiting));
    }),
    gauge("varcas_guard_engine_kv_cache_usage_ratio", "Share of the KV cache in use.", |now, _, out| {
        out.some(engine(now, |e| e.kv_usage));
    }),
    gauge("varcas_guard_gpu_utilization_ratio", "Share of time with a kernel running.", |now, _, out| {
        out.gpus(now, |gpu| &gpu.util, |v| f64::from(*v) / 100.0);
    }),
    gauge(
        "varcas_guard_gpu_memory_utilization_ratio",
        "Share of time in which the GPU's memory was read or written.",
        |now, _, out| out.gpus(now, |gpu| &gpu.mem_util, |v| f64::from(*v) / 100.0),
    ),
    gauge("varcas_guard_gpu_memory_used_bytes", "GPU memory in use.", |now, _, out| {
        out.gpus(now, |gpu| &gpu.mem_used, |v| number(*v));
    }),
    gauge("varcas_guard_gpu_memory_size_bytes", "GPU memory in all.", |now, _, out| {
        out.gpus(now, |gpu| &gpu.mem_total, |v| number(*v));
    }),
    gauge("varcas_guard_gpu_power_watts", "Power of the GPU.", |now, _, out| {
        out.gpus(now, |gpu| &gpu.power_w, |v| *v);
    }),
    gauge("varcas_guard_server_processes", "Processes of the server.", |now, _, out| {
        out.put(number(now.processes.len() as u64));
    }),
    gauge(
        "varcas_guard_server_resident_memory_bytes",
        "Resident memory of the server's processes; what they share counts for each.",
        |now, _, out| out.some(now.rss().map(number)),
    ),
    gauge("varcas_guard_disk_free_bytes", "Free on the filesystem of the run folder.", |now, _, out| {
        out.some(disk(now.disk.as_ref().map(|disk| &disk.free)));
    }),
    gauge("varcas_guard_traces_bytes", "Size of the attempt's trace folder.", |now, _, out| {
        out.some(disk(now.disk.as_ref().map(|disk| &disk.traces)));
    }),
    gauge("varcas_guard_logs_bytes", "Size of the attempt's logs.", |now, _, out| {
        out.some(disk(now.disk.as_ref().map(|disk| &disk.logs)));
    }),
    gauge("varcas_guard_profile_ranks", "Workers that have a profiler.", |now, _, out| {
        out.put(number(now.windows.ranks));
    }),
    gauge("varcas_guard_profile_ranks_recording", "Workers that record at this moment.", |now, _, out| {
        out.put(number(now.windows.recording));
    }),
    gauge("varcas_guard_profile_ranks_disabled", "Workers that switched profiling off.", |now, _, out| {
        out.put(number(now.windows.disabled));
    }),
    counter("varcas_guard_profile_windows_total", "Finished profiler windows.", |now, _, out| {
        out.put(number(now.windows.finished));
    }),
    counter("varcas_guard_profile_windows_lost_total", "Profiler windows that were lost.", |now, _, out| {
        out.put(number(now.windows.lost));
    }),
    counter("varcas_guard_profile_bytes_total", "Bytes of finished traces as written.", |now, _, out| {
        out.put(number(now.windows.bytes));
    }),
    gauge(
        "varcas_guard_profile_overhead_ratio",
        "Share of the engine's working time that windows have taken.",
        |now, _, out| out.some(now.windows.taken),
    ),
    gauge("varcas_guard_notifications_waiting", "Messages that are not delivered yet.", |_, own, out| {
        out.some(own.waiting.map(number));
    }),
    counter("varcas_guard_notifications_delivered_total", "Messages delivered.", |_, own, out| {
        out.some(own.delivered.map(number));
    }),
    gauge("varcas_guard_http_connections", "Connections to the guard's own server.", |_, own, out| {
        out.put(number(own.connections));
    }),
    counter(
        "varcas_guard_http_refused_total",
        "Connections and requests that the guard's own server turned away.",
        |_, own, out| out.put(number(own.refused)),
    ),
];

fn ttft(now: &Now, _: &Own, out: &mut Out) {
    let Some(load) = &now.load else { return };
    let p = &load.progress;
    let exact = load.summary.as_ref().filter(|summary| summary.ttft_ms.n > 0).map(|summary| summary.ttft_ms);
    if p.ttft_p99_us == 0 && exact.is_none() {
        return;
    }
    let seconds = |us: u64, ms: Option<f64>| ms.map_or(number(us) / 1e6, |ms| ms / 1e3);
    out.with(&[("quantile", "0.5")], seconds(p.ttft_p50_us, exact.map(|latency| latency.p50)));
    out.with(&[("quantile", "0.99")], seconds(p.ttft_p99_us, exact.map(|latency| latency.p99)));
    // A sum is kept by nobody until the end, so there is none before; the count is that of successes.
    if let Some(latency) = exact {
        out.samples.push(("_sum", Vec::new(), latency.mean * number(latency.n) / 1e3));
    }
    out.samples.push(("_count", Vec::new(), number(exact.map_or(p.completed, |latency| latency.n))));
}

/// The whole answer.
pub fn render(now: &Now, own: &Own) -> String {
    let mut text = String::with_capacity(16 << 10);
    for metric in METRICS {
        let mut out = Out::default();
        (metric.take)(now, own, &mut out);
        if out.samples.is_empty() {
            continue;
        }
        let name = metric.name;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {}", metric.help);
        let _ = writeln!(text, "# TYPE {name} {}", metric.kind.name());
        for (suffix, labels, value) in out.samples {
            let _ = write!(text, "{name}{suffix}");
            for (index, (label, value)) in labels.iter().enumerate() {
                let _ = write!(text, "{}{label}=\"{}\"", if index == 0 { '{' } else { ',' }, escaped(value));
            }
            let _ = writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" });
        }
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The table of `docs/metrics.md`.
pub fn table() -> String {
    let mut text = String::from("| name | type | meaning |\n|---|---|---|\n");
    for metric in METRICS {
        let _ = writeln!(text, "| `{}` | {} | {} |", metric.name, metric.kind.name(), metric.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in METRICS {
            let name = metric.name;
            assert!(seen.insert(name), "{name} is there twice");
            assert!(name.starts_with("varcas_guard_"), "{name}");
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit()),
                "{name}"
            );
            assert_eq!(name.ends_with("_total"), metric.kind == Type::Counter, "{name}");
            assert!(metric.help.ends_with('.') && !metric.help.contains('\n'), "{name}");
        }
    }

    #[test]
    fn the_documentation_lists_exactly_what_there_is() {
        let document = include_str!("../../../docs/metrics.md");
        assert!(document.contains(&table()), "put this into docs/metrics.md:\n{}", table());
    }

    #[test]
    fn what_is_not_known_is_not_there() {
        let text = render(&Now::default(), &Own::default());
        for absent in ["requests_sent", "gpu_", "ttft", "disk_", "exit_code", "notifications"] {
            assert!(!text.contains(absent), "{absent}: {text}");
        }
    }

    #[test]
    fn a_label_cannot_break_out() {
        let mut now = Now::default();
        now.model.push_str("a\"} 1\nevil 2\\");
        let text = render(&now, &Own::default());
        assert!(text.contains(r#"model="a\"} 1\nevil 2\\""#), "{text}");
        assert!(!text.lines().any(|line| line.starts_with("evil")), "{text}");
    }
}
