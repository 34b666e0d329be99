//! What a reader might look for in vain, each with its reason: silence is not health. Pure.

use super::View;
use super::series::Metric;
use super::story;
use crate::config::ProfileMode;

/// One sentence each.
pub fn list(view: &View<'_>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let track = story::subject(view.report).and_then(|attempt| view.series.track(attempt.number));
    if let Some(track) = track {
        let loaded = track.has(Metric::Sent);
        let parts = [
            (Metric::GpuUtil, true, "GPU utilisation, power and memory: no GPU answered."),
            (Metric::OutputRate, loaded, "Tokens per second of the engine: /metrics gave no two samples."),
            (Metric::Rss, true, "Memory and CPU of the server: no process of it was sampled."),
            (
                Metric::TtftMedian,
                loaded,
                "Time to first token over time: no request succeeded, or an older version wrote the journal.",
            ),
        ];
        let absent = parts.iter().filter(|(metric, asked, _)| *asked && !track.has(*metric));
        out.extend(absent.map(|(.., text)| (*text).to_owned()));
        if !loaded {
            out.push("The benchmark: it did not begin in this attempt.".to_owned());
        }
    }
    if view.series.left_out > 0 {
        let n = view.series.left_out;
        out.push(format!("Charts of {n} attempts in the middle: only the first and the last ones are kept."));
    }
    if view.report.benchmark.as_ref().is_some_and(|bench| bench.itl_ms.n == 0) {
        out.push(
            "Inter-token latency: no stream had two pieces, or an older version wrote the journal."
                .to_owned(),
        );
    }
    if view.report.plan.as_ref().is_some_and(|plan| plan.profile.mode == ProfileMode::Off) {
        out.push("Kernels and operators: the profiler was off.".to_owned());
    }
    out.extend(view.report.unreadable.iter().take(MOST).map(|what| story::first_up(what)));
    out.extend(view.unread.iter().take(MOST).map(|line| format!("Journal, {line}")));
    let more = view.report.unreadable.len().saturating_sub(MOST) + view.unread.len().saturating_sub(MOST);
    if more > 0 {
        out.push(format!("{more} further things."));
    }
    out
}

/// Of one kind.
const MOST: usize = 20;
