//! The end of the page: what happened when, what is needed to repeat it, and what nobody could measure.

use super::{View, file_link, more, section, verdict::list};
use crate::recovery::report::model::{Moment, Report};
use crate::recovery::report::{missing, safe};
use maud::{Markup, html};
use std::time::Duration;

/// Lines of the timeline; a run of a whole night has hundreds, and all of them are in report.json.
const MAX_MOMENTS: usize = 1200;

/// Things of ours that did not work.
const MAX_TROUBLES: usize = 50;

/// A timeline of so many lines stands open.
const MAX_OPEN: usize = 40;

/// What happened when.
pub(super) fn timeline(report: &Report) -> Markup {
    if report.timeline.is_empty() {
        return html! {};
    }
    let all = report.timeline.as_slice();
    let half = MAX_MOMENTS / 2;
    let (head, tail) =
        if all.len() > MAX_MOMENTS { (&all[..half], &all[all.len() - half..]) } else { (all, &all[..0]) };
    section(
        "timeline",
        "Timeline",
        html! { details open[all.len() <= MAX_OPEN] {
            summary { "Phases, attempts and decisions " span.count { (all.len()) } }
            div.scroll { table.timeline {
                thead { tr { th.n { "time" } th.n { "attempt" } th { "what happened" } } }
                tbody {
                    @for moment in head { (row(moment)) }
                    @if !tail.is_empty() { tr { td {} td {} td { (all.len() - MAX_MOMENTS) " lines are left out here; they are in " (file_link("report.json", "report.json")) "." } } }
                    @for moment in tail { (row(moment)) }
                }
            } }
        } },
    )
}

fn row(moment: &Moment) -> Markup {
    html! { tr { td.n { (clock(moment.at_s)) } td.n { (moment.attempt) } td { (&moment.what) } } }
}

/// `1:02:03.4` since the run began.
fn clock(at: Duration) -> String {
    let (seconds, tenth) = (at.as_secs(), at.subsec_millis() / 100);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds:02}.{tenth}")
    } else {
        format!("{minutes}:{seconds:02}.{tenth}")
    }
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
    let command: Vec<String> =
        safe::command_line(&report.argv).iter().map(|word| safe::quoted(word)).collect();
    section(
        "repeat",
        "To repeat it",
        html! {
            dl.facts.wide {
                @for (name, value) in [("Server", &server.version), ("torch", &server.torch), ("Device", &server.device)] {
                    div { dt { (name) } dd { @match value { Some(value) => (value), None => "not known" } } }
                }
                div { dt { "varcas-guard" } dd { (report.guard_version) } }
            }
            @if !command.is_empty() {
                p.label { "Command line of the server" }
                pre.wrap { (&command.join(" ")) }
            }
            (list("Environment beside what is inherited", report.env.len(), html! {
                pre.wrap { @for (name, value) in &report.env {
                    (name) "=" @if safe::secret(name) { (safe::HIDDEN) } @else { (&safe::quoted(value)) } "\n"
                } }
            }))
            @if let Some(plan) = plan {
                details { summary { "The whole plan" } pre.file { (&plan) } }
            }
        },
    )
}

/// Silence is not health.
pub(super) fn not_measured(view: &View<'_>) -> Markup {
    let (missing, troubles) = (missing::list(view), &view.report.troubles);
    if missing.is_empty() && troubles.is_empty() {
        return html! {};
    }
    section(
        "missing",
        "What was not measured or could not be read",
        html! {
            ul { @for what in &missing { li { (what) } } }
            @if !troubles.is_empty() {
                h3 { "Troubles of varcas-guard itself" }
                ul { @for trouble in troubles.iter().take(MAX_TROUBLES) { li { (trouble) } } }
                @if troubles.len() > MAX_TROUBLES { (more(troubles.len() - MAX_TROUBLES)) }
            }
        },
    )
}
