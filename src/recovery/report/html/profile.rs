//! What the profiler's windows saw: where the time of GPU and host went, with what each figure is worth.

use super::verdict::list;
use crate::event::ProfileSummary;
use crate::event::profile::{KernelShare, OperatorShare, Spread, StepGroup, StepKind, confidence};
use crate::recovery::report::profile::{idle, percent, spread, time};
use crate::recovery::report::units::count;
use maud::{Markup, html};

/// Rows of a table that stand open.
const OPEN: usize = 8;

/// The section without its heading.
pub(super) fn body(profile: &ProfileSummary) -> Markup {
    html! {
        p {
            (count(profile.traces.into())) " traces"
            @if let Some(ranks) = profile.ranks.filter(|ranks| *ranks > 1) { " of " (ranks) " ranks" }
            ", " (count(profile.steps)) " engine steps " (profile.sample()) ". "
            span.note { "All figures here speak of the recorded windows only: " (confidence(profile.windows)) "." }
        }
        @match &profile.gpu {
            None => p { "No GPU work was recorded: operators and steps only." },
            Some(gpu) => {
                dl.facts {
                    div { dt { "GPU busy" } dd { @match &gpu.busy { Some(busy) => (spread(busy)), None => "not known" } } }
                    div { dt { "Kernels" } dd { (time(gpu.kernel_s)) ", " (count(gpu.distinct_kernels)) " kinds" } }
                    div { dt { "Copies and fills" } dd { (time(gpu.copy_s)) } }
                    @for (rank, share) in gpu.busy_by_rank.iter().take(16) { div { dt { "Busy, rank " (rank) } dd { (percent(*share)) } } }
                }
                @if let Some(gaps) = &gpu.gaps { p.spaced { (idle(gaps)) } }
            }
        }
        (shares("GPU time by kernel", &profile.kernels))
        (shares("GPU time by copy", &profile.copies))
        (operators(&profile.operators))
        (steps(&profile.step_groups))
        (list("What was left out", profile.notes.len(), html! { ul { @for note in &profile.notes { li { (note) } } } }))
    }
}

/// What it is worth stands below it, or the table would be too wide for a phone.
fn share(share: &Spread) -> Markup {
    let text = spread(share);
    match text.split_once(" (") {
        Some((mean, worth)) => html! { (mean) br; small { "(" (worth) } },
        None => html! { (text) },
    }
}

/// A bar as long as the share, so that a table can be read without its figures.
fn bar(share: &Spread) -> Markup {
    html! { i.bar style={ "width:" (format!("{:.1}%", (share.mean * 100.0).clamp(0.0, 100.0))) } {} }
}

fn shares(title: &str, all: &[KernelShare]) -> Markup {
    if all.is_empty() {
        return html! {};
    }
    let rows = |part: &[KernelShare]| {
        html! {
            div.scroll { table.shares {
                thead { tr { th { (title) } th.n { "share" } th.n { "n" } th.n { "together" } } }
                tbody { @for row in part { tr {
                    td { code { (row.name) } (bar(&row.share)) }
                    td.n { (share(&row.share)) } td.n { (count(row.count)) } td.n { (time(row.total_s)) }
                } } }
            } }
        }
    };
    folded(all, rows)
}

fn operators(all: &[OperatorShare]) -> Markup {
    if all.is_empty() {
        return html! {};
    }
    let rows = |part: &[OperatorShare]| {
        html! {
            div.scroll { table.shares {
                thead { tr { th { "Host time by operator, without those it called" } th.n { "share" } th.n { "n" } th.n { "itself" } } }
                tbody { @for row in part { tr {
                    td { code { (row.name) } (bar(&row.share)) }
                    td.n { (share(&row.share)) } td.n { (count(row.count)) } td.n { (time(row.self_s)) }
                } } }
            } }
        }
    };
    folded(all, rows)
}

fn folded<T>(all: &[T], rows: impl Fn(&[T]) -> Markup) -> Markup {
    let (open, rest) = all.split_at(all.len().min(OPEN));
    html! { (rows(open)) (list("Further ones", rest.len(), rows(rest))) }
}

fn steps(groups: &[StepGroup]) -> Markup {
    if groups.is_empty() {
        return html! {};
    }
    let number = |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.1}"));
    html! {
        div.scroll { table {
            caption {
                "Engine steps, median of each"
                @if groups.iter().all(|group| group.kind == StepKind::Unknown) { "; the index does not say which carried a prefill" }
            }
            thead { tr { th { "steps" } th.n { "n" } th.n { "on the host" } th.n { "GPU work" } th.n { "prompt" } th.n { "output" } th.n { "requests" } th { "worth" } } }
            tbody { @for group in groups { tr {
                th scope="row" { (group.kind) } td.n { (count(group.steps)) } td.n { (time(group.wall_ms / 1e3)) }
                td.n { @match group.gpu_ms { Some(ms) => (time(ms / 1e3)), None => "?" } }
                td.n { (number(group.prefill_tokens)) } td.n { (number(group.decode_tokens)) } td.n { (number(group.requests)) }
                td { (confidence(group.windows)) }
            } } }
        } }
    }
}
