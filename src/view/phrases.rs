//! [`Now`] in words, piece by piece, for whatever shows it as text. Pure. Each piece is short, without colours, and none
//! when there is nothing to say.

use super::now::{Now, TokensFrom};
use super::snapshot::Standing;
use super::units::{bytes, count, figure};
use crate::event::{Finding, GpuSample, Gravity, Phase, Reading, SuspicionStep};
use crate::time::human;
use std::time::Duration;

/// How a piece is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Neither.
    Plain,
    /// Worth a look.
    Doubtful,
    /// Something is lost.
    Bad,
}

/// `2:05`, `1:02:05`: a clock that runs.
pub fn clock(time: Duration) -> String {
    let s = time.as_secs();
    let (hours, minutes, seconds) = (s / 3600, s / 60 % 60, s % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// `measuring`, or what stands there instead of a phase.
pub fn phase(now: &Now) -> String {
    now.phase.map_or_else(|| "starting".to_owned(), |phase| phase.to_string())
}

/// `attempt 2 of 4`.
pub fn attempt(now: &Now) -> String {
    format!("attempt {} of {}", now.attempt.max(1), now.attempts.max(now.attempt).max(1))
}

/// `1:12 of 2:00, 0:48 left` of the benchmark, or `0:40, at most 29:20 more` of another phase.
pub fn time(now: &Now, at: Duration) -> String {
    if let Some(left) = now.load_left(at) {
        let load = now.load_duration.saturating_sub(left);
        if left > Duration::ZERO {
            return format!("{} of {}, {} left", clock(load), clock(now.load_duration), clock(left));
        }
        return format!("{} of {}, waiting for the last answers", clock(load), clock(now.load_duration));
    }
    let since = at.saturating_sub(now.phase_since);
    if now.phase == Some(Phase::Done) {
        return format!("took {}", clock(now.last.map_or(at, |last| last.mono)));
    }
    match (now.phase, now.phase_left(at)) {
        (Some(Phase::Waiting), Some(left)) => format!("next attempt in {}", clock(left)),
        (_, Some(left)) => format!("{}, at most {} more", clock(since), clock(left)),
        (_, None) => clock(since),
    }
}

/// `deadline in 7:12:00`.
pub fn deadline(now: &Now, at: Duration) -> Option<String> {
    now.deadline_left(at).map(|left| format!("deadline in {}", clock(left)))
}

/// `1,234 done, 2 failed, 17 open of 3,000`.
pub fn requests(now: &Now) -> Option<(Tone, String)> {
    let load = now.load.as_ref()?;
    let p = &load.progress;
    if p.sent == 0 {
        return Some((Tone::Plain, format!("{} to send", count(load.planned))));
    }
    let tone = if p.failed > 0 { Tone::Doubtful } else { Tone::Plain };
    let (done, failed, open) = (count(p.completed), count(p.failed), count(p.in_flight));
    Some((tone, format!("{done} done, {failed} failed, {open} open of {}", count(load.planned))))
}

/// `1,234 tokens/s`; `pieces/s` when only the client counts.
pub fn tokens(now: &Now, at: Duration) -> Option<String> {
    if let Some(summary) = now.load.as_ref().and_then(|load| load.summary.as_ref()) {
        return Some(format!("{} tokens/s", figure(summary.output_throughput)));
    }
    let (rate, from) = now.tokens_per_s(at)?;
    let unit = match from {
        TokensFrom::Engine => "tokens",
        TokensFrom::Client => "pieces",
    };
    Some(format!("{} {unit}/s", figure(rate)))
}

/// `TTFT p50 41 ms, p99 180 ms`.
pub fn ttft(now: &Now) -> Option<String> {
    let progress = now.load.as_ref()?.progress;
    (progress.ttft_p99_us > 0).then(|| {
        let ms = |us: u64| human(Duration::from_micros(us));
        format!("TTFT p50 {}, p99 {}", ms(progress.ttft_p50_us), ms(progress.ttft_p99_us))
    })
}

/// `12 running, 3 waiting, KV 41 %`.
pub fn engine(now: &Now) -> Option<String> {
    Some(match now.engine.as_ref()? {
        Reading::Value(e) => {
            format!("{:.0} running, {:.0} waiting, KV {:.0} %", e.running, e.waiting, e.kv_usage * 100.0)
        }
        Reading::Unavailable { .. } => "engine: no answer".to_owned(),
        Reading::Stale => "engine: no answer any more".to_owned(),
    })
}

/// `GPU0 97 % 61.2 of 85.0 GB 412 W`, one for each GPU; or that there is none although the server uses GPUs.
pub fn gpus(now: &Now) -> Vec<String> {
    let expected = now.device.as_deref() == Some("cuda");
    match &now.gpus {
        None => Vec::new(),
        Some(Reading::Unavailable { .. }) if !expected => Vec::new(),
        Some(Reading::Value(gpus)) => gpus.iter().map(gpu).collect(),
        Some(Reading::Unavailable { .. }) => vec!["no GPU readings".to_owned()],
        Some(Reading::Stale) => vec!["the GPU driver does not answer any more".to_owned()],
    }
}

fn gpu(gpu: &GpuSample) -> String {
    let mut text = format!("GPU{}", gpu.gpu);
    if let Some(util) = gpu.util.value() {
        text += &format!(" {util} %");
    }
    match (gpu.mem_used.value(), gpu.mem_total.value()) {
        (Some(used), Some(total)) => {
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let gigabytes = |n: u64| n as f64 / 1e9;
            text += &format!(" {:.1} of {:.1} GB", gigabytes(*used), gigabytes(*total));
        }
        (Some(used), None) => text += &format!(" {}", bytes(*used)),
        (None, _) => {}
    }
    if let Some(watts) = gpu.power_w.value() {
        text += &format!(" {watts:.0} W");
    }
    if let Some(xid) = gpu.xid {
        text += &format!(" Xid {xid}");
    }
    text
}

/// `12 windows, recording, the last cost 0.41 s, 4.1 % of the engine's time`.
pub fn windows(now: &Now) -> Option<(Tone, String)> {
    if !now.profiling || now.windows.ranks == 0 {
        return None;
    }
    let w = &now.windows;
    let mut text = format!("{} {}", count(w.finished), if w.finished == 1 { "window" } else { "windows" });
    if w.recording > 0 {
        text += ", recording";
    } else if w.flushing > 0 {
        text += ", writing";
    }
    if let Some(cost) = w.last_cost_s {
        text += &format!(", last cost {} s", figure(cost));
    }
    if let Some(taken) = w.taken {
        text += &format!(", {} % of the engine's time", figure(taken * 100.0));
    }
    if w.lost > 0 {
        text += &format!(", {} lost", count(w.lost));
    }
    if w.disabled > 0 {
        text += &format!(", off in {} of {} ranks", w.disabled, w.ranks);
    }
    Some((if w.lost + w.disabled > 0 { Tone::Doubtful } else { Tone::Plain }, text))
}

/// `14 processes, 12.3 GB`.
pub fn processes(now: &Now) -> Option<String> {
    let n = now.processes.len();
    let rss = now.rss()?;
    Some(format!("{n} {}, {}", if n == 1 { "process" } else { "processes" }, bytes(rss)))
}

/// `210.4 GB free on the disk, traces 1.2 GB, logs 3.4 MB`.
pub fn disk(now: &Now) -> Option<String> {
    let disk = now.disk.as_ref()?;
    let free = disk.free.value()?;
    let mut text = format!("disk {} free", bytes(*free));
    // Logs are small, unless something is wrong.
    for (name, reading, least) in [("traces", &disk.traces, 1), ("log", &disk.logs, 10_000_000)] {
        if let Some(size) = reading.value().filter(|size| **size >= least) {
            text += &format!(", {name} {}", bytes(*size));
        }
    }
    Some(text)
}

/// `log line 812: cuda-oom: torch.OutOfMemoryError: ...`.
pub fn finding(finding: &Finding) -> String {
    let times = if finding.count > 1 { format!(" ({} times)", count(finding.count)) } else { String::new() };
    format!("log line {}: {}{times}: {}", finding.line, finding.rule, finding.text)
}

/// What can be said about how it goes: the end, the verdict, how the attempt ends, a standstill, or the worst finding.
pub fn so_far(now: &Now) -> Option<(Tone, String)> {
    if let Some(end) = &now.end {
        let tone = if end.exit_code == 0 { Tone::Good } else { Tone::Bad };
        return Some((tone, format!("{}: {} (exit code {})", end.outcome, end.reason, end.exit_code)));
    }
    if now.guard_died {
        return Some((Tone::Bad, "the guard died, and what it had left was ended".to_owned()));
    }
    if let Some(verdict) = &now.verdict {
        let text = format!("{}, {}: {}", verdict.cause, verdict.confidence, verdict.explanation);
        return Some((Tone::Bad, text));
    }
    if let Some(ending) = &now.ending {
        let good = ending.outcome == crate::event::Outcome::Success;
        let tone = if good { Tone::Good } else { Tone::Bad };
        return Some((tone, format!("{}: {}", ending.outcome, ending.reason)));
    }
    if let Some(suspicion) = &now.suspicion {
        let sure = suspicion.step >= SuspicionStep::Confirmed;
        return Some((if sure { Tone::Bad } else { Tone::Doubtful }, suspicion.to_string()));
    }
    let findings: Vec<&Finding> = now.findings.iter().collect();
    let root = Finding::root(&findings).or_else(|| findings.first().copied())?;
    let tone = if root.gravity == Gravity::Fatal { Tone::Bad } else { Tone::Doubtful };
    Some((tone, finding(root)))
}

/// Everything in one line.
pub fn short(now: &Now, at: Duration, standing: Standing) -> String {
    let place = format!("{}, {}", phase(now), attempt(now));
    match standing {
        Standing::Finished => so_far(now).map_or(place, |(_, text)| text),
        Standing::Interrupted => {
            let why = if now.guard_died { "the guard died" } else { "the guard is gone" };
            format!("interrupted in {place}: {why}")
        }
        Standing::Running => {
            let pieces = [
                Some(time(now, at)),
                requests(now).map(|(_, text)| text),
                tokens(now, at),
                so_far(now).map(|(_, text)| text),
            ];
            format!("{place}: {}", pieces.into_iter().flatten().collect::<Vec<_>>().join("; "))
        }
    }
}

/// What follows from the attempt before or from this one, with the settings that are changed.
pub fn decision(now: &Now) -> Option<String> {
    let decision = now.decision.as_ref().filter(|_| now.end.is_none())?;
    let changes: Vec<String> = now.changes.iter().map(ToString::to_string).collect();
    let with = if changes.is_empty() { String::new() } else { format!("; with {}", changes.join("; ")) };
    Some(format!("{}{with}", decision.why))
}
