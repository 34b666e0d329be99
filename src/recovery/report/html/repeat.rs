//! The end of the page: what happened when, what is needed to repeat it, and what nobody could measure.

use super::{View, file_link, safe, section, verdict::list};
use crate::recovery::report::model::{Moment, Report};
use crate::recovery::report::story::first_up;
use maud::{Markup, html};
use std::time::Duration;

/// Lines of the timeline; a run of a whole night has hundreds, and all of them are in report.json.
const MAX_MOMENTS: usize = 1200;

/// A timeline of so many lines stands open.
const MAX_OPEN: usize = 40;

/// What happened when.
pub(super) fn timeline(report: &Report) -> Markup {
    if report.timeline.is_empty() {
        return html! {};
    }
    let all = report.timeline.as_slice();
    let half = MAX_MOMENTS / 2;
    let (head, tail) = if all.len() > MAX_MOMENTS { (&all[..half], &all[all.len() - half..]) } else { (all, &all[..0]) };
    section("timeline", "Timeline", html! { details open[all.len() <= MAX_OPEN] {
        summary { "Phases, attempts and decisions " span.count { (all.len()) } }
        div.scroll { table.timeline {
            thead { tr { th.n { "time" } th.n { "attempt" } th { "what happened" } } }
            tbody {
                @for moment in head { (row(moment)) }
                @if !tail.is_empty() { tr { td {} td {} td { (all.len() - MAX_MOMENTS) " lines are left out here; they are in " (file_link("report.json", "report.json")) "." } } }
                @for moment in tail { (row(moment)) }
            }
        } }
    } })
}

fn row(moment: &Moment) -> Markup {
    html! { tr { td.n { (clock(moment.at_s)) } td.n { (moment.attempt) } td { (safe::clean(&moment.what)) } } }
}

/// `1:02:03.4` since the run began.
fn clock(at: Duration) -> String {
    let (seconds, tenth) = (at.as_secs(), at.subsec_millis() / 100);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}.{tenth}") } else { format!("{minutes}:{seconds:02}.{tenth}") }
}

/// Settings and versions.
pub(super) fn settings(report: &Report) -> Markup {
    let server = &report.server;
    let plan = report.plan.as_ref().map(|plan| {
        let mut plan = (**plan).clone();
        for (name, value) in &mut plan.server.env {
            if safe::secret(name) {
                safe::HIDDEN.clone_into(value);
            }
        }
        plan.server.extra = safe::command_line(&plan.server.extra);
        serde_json::to_string_pretty(&plan).unwrap_or_default()
    });
    let command: Vec<String> = safe::command_line(&report.argv).iter().map(|word| safe::quoted(word)).collect();
    section("repeat", "To repeat it", html! {
        dl.facts.wide {
            @for (name, value) in [("Server", &server.version), ("torch", &server.torch), ("Device", &server.device)] {
                div { dt { (name) } dd { @match value { Some(value) => (safe::clean(value)), None => "not known" } } }
            }
            div { dt { "varcas-guard" } dd { (report.guard_version) } }
        }
        @if !command.is_empty() {
            p.label { "Command line of the server" }
            pre.wrap { (safe::clean(&command.join(" "))) }
        }
        (list("Environment beside what is inherited", report.env.len(), html! {
            pre.wrap { @for (name, value) in &report.env {
                (safe::clean(name)) "=" @if safe::secret(name) { (safe::HIDDEN) } @else { (safe::clean(&safe::quoted(value))) } "\n"
            } }
        }))
        @if let Some(plan) = plan {
            details { summary { "The whole plan" } pre.file { (safe::clean(&plan)) } }
        }
    })
}

/// Silence is not health.
pub(super) fn not_measured(view: &View<'_>) -> Markup {
    let report = view.report;
    let missing = missing(view);
    if missing.is_empty() && report.unreadable.is_empty() && report.troubles.is_empty() && view.unread.is_empty() {
        return html! {};
    }
    section("missing", "What was not measured or could not be read", html! {
        ul {
            @for what in &missing { li { (what) } }
            @for what in &report.unreadable { li { (first_up(&safe::clean(what))) } }
            @for line in view.unread.iter().take(20) { li { "Journal: " (safe::clean(line)) } }
            @if view.unread.len() > 20 { li { "Journal: " (view.unread.len() - 20) " further lines" } }
        }
        @if !report.troubles.is_empty() {
            h3 { "Troubles of varcas-guard itself" }
            ul { @for trouble in report.troubles.iter().take(50) { li { (safe::clean(trouble)) } } }
            @if report.troubles.len() > 50 { p.note { (report.troubles.len() - 50) " more are in " (file_link("report.json", "report.json")) "." } }
        }
    })
}

/// What a reader might look for in vain, each with its reason.
fn missing(view: &View<'_>) -> Vec<String> {
    use crate::recovery::report::series::Metric;
    let mut out = Vec::new();
    let subject = crate::recovery::report::story::subject(view.report);
    let track = subject.and_then(|attempt| view.series.track(attempt.number));
    if let Some(track) = track {
        let loaded = track.has(Metric::Sent);
        let parts = [
            (Metric::GpuUtil, true, "GPU utilisation, power and memory: no GPU answered."),
            (Metric::OutputRate, loaded, "Tokens per second of the engine: its /metrics gave no two samples."),
            (Metric::Rss, true, "Memory and CPU of the server: no process of it was sampled."),
            (Metric::TtftMedian, loaded, "Time to first token over time: no request succeeded, or an older version wrote the journal."),
        ];
        out.extend(parts.iter().filter(|(metric, asked, _)| *asked && !track.has(*metric)).map(|(.., text)| (*text).to_owned()));
        if !loaded {
            out.push("The benchmark: it did not begin in this attempt.".to_owned());
        }
    }
    if view.series.left_out > 0 {
        out.push(format!("Charts of {} attempts in the middle: only the first and the last ones are drawn.", view.series.left_out));
    }
    if view.report.benchmark.as_ref().is_some_and(|bench| bench.itl_ms.n == 0) {
        out.push("Inter-token latency: no stream had two pieces, or an older version wrote the journal.".to_owned());
    }
    if view.report.plan.as_ref().is_some_and(|plan| plan.profile.mode == crate::config::ProfileMode::Off) {
        out.push("Kernels and operators: the profiler was off.".to_owned());
    }
    out
}
