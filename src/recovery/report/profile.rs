//! "What the windows saw" as Markdown: where the time of GPU and host went, with what each figure is worth. Pure.

use crate::event::ProfileSummary;
use crate::event::profile::{
    Gaps, GpuProfile, KernelShare, OperatorShare, Spread, StepGroup, StepKind, confidence,
};
use std::fmt::{Result, Write};

/// The section without its heading.
pub fn section(out: &mut String, profile: &ProfileSummary) -> Result {
    let plural = |n: u64, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let ranks = match profile.ranks {
        Some(ranks) if ranks > 1 => format!(" of {ranks} ranks"),
        _ => String::new(),
    };
    writeln!(
        out,
        "{}{ranks}, {} and {} {}. All figures below speak of {} only; {}.\n",
        plural(profile.traces.into(), "trace"),
        plural(profile.steps, "engine step"),
        plural(profile.events, "event"),
        profile.sample(),
        if profile.windows == 1 { "this window" } else { "these windows" },
        confidence(profile.windows),
    )?;
    match &profile.gpu {
        Some(gpu) => gpu_section(out, gpu, profile.windows)?,
        None => writeln!(out, "No GPU work was recorded: operators and steps only.\n")?,
    }
    steps(out, &profile.step_groups)?;
    shares(out, "GPU time by kernel", "of the GPU work of a window", &profile.kernels)?;
    shares(out, "GPU time by copy", "of the GPU work of a window", &profile.copies)?;
    operators(out, "Host time by operator, without the operators it called", &profile.operators)?;
    for note in &profile.notes {
        writeln!(out, "- left out: {note}")?;
    }
    if !profile.notes.is_empty() {
        writeln!(out)?;
    }
    Ok(())
}

fn gpu_section(out: &mut String, gpu: &GpuProfile, windows: u32) -> Result {
    match &gpu.busy {
        Some(busy) if busy.windows < windows => {
            writeln!(
                out,
                "GPU busy for {} of a window, in the {} with GPU work.",
                spread(busy),
                busy.windows
            )?;
        }
        Some(busy) => writeln!(out, "GPU busy for {} of a window.", spread(busy))?,
        None => writeln!(out, "The busy share of the GPU is not known.")?,
    }
    if !gpu.busy_by_rank.is_empty() {
        let ranks: Vec<String> =
            gpu.busy_by_rank.iter().map(|(rank, share)| format!("rank {rank} {}", percent(*share))).collect();
        writeln!(out, "By rank: {}.", ranks.join(", "))?;
    }
    writeln!(
        out,
        "Kernels ran for {} together ({} kinds), copies and fills for {}.",
        time(gpu.kernel_s),
        gpu.distinct_kernels,
        time(gpu.copy_s)
    )?;
    if let Some(gaps) = &gpu.gaps {
        writeln!(out, "{}", idle(gaps))?;
    }
    writeln!(out)
}

/// The gaps in two sentences.
pub(super) fn idle(gaps: &Gaps) -> String {
    let head = format!(
        "Between its work the GPU stood idle {} times, {} together: median {}, p99 {}, longest {}.",
        gaps.count,
        time(gaps.total_s),
        time(gaps.median_us / 1e6),
        time(gaps.p99_us / 1e6),
        time(gaps.longest_us / 1e6)
    );
    let operators = format!("For {} of that time the host was in operators", percent(gaps.in_operators));
    match gaps.in_steps {
        Some(steps) => format!(
            "{head} {operators}, for {} elsewhere in an engine step, for {} between steps.",
            percent(steps),
            percent((1.0 - gaps.in_operators - steps).max(0.0))
        ),
        None => format!("{head} {operators}."),
    }
}

fn steps(out: &mut String, groups: &[StepGroup]) -> Result {
    if groups.is_empty() {
        return Ok(());
    }
    let unknown = groups.iter().all(|group| group.kind == StepKind::Unknown);
    writeln!(
        out,
        "Engine steps, median of each{}:\n",
        if unknown { " (the index does not say which carried a prefill)" } else { "" }
    )?;
    writeln!(
        out,
        "| steps | n | on the host | GPU work launched | prompt tokens (mean) | output tokens (mean) | requests (mean) | worth |\n\
        |---|---:|---:|---:|---:|---:|---:|---|"
    )?;
    for group in groups {
        let number = |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.1}"));
        writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            group.kind,
            group.steps,
            time(group.wall_ms / 1e3),
            group.gpu_ms.map_or("?".to_owned(), |ms| time(ms / 1e3)),
            number(group.prefill_tokens),
            number(group.decode_tokens),
            number(group.requests),
            confidence(group.windows)
        )?;
    }
    writeln!(out)
}

fn shares(out: &mut String, title: &str, of: &str, rows: &[KernelShare]) -> Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(out, "| {title} | share {of} | n | together |\n|---|---:|---:|---:|")?;
    for row in rows {
        writeln!(
            out,
            "| {} | {} | {} | {} |",
            name(&row.name),
            spread(&row.share),
            row.count,
            time(row.total_s)
        )?;
    }
    writeln!(out)
}

fn operators(out: &mut String, title: &str, rows: &[OperatorShare]) -> Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "| {title} | share of all operators | n | itself | with those it called |\n|---|---:|---:|---:|---:|"
    )?;
    for row in rows {
        writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            name(&row.name),
            spread(&row.share),
            row.count,
            time(row.self_s),
            time(row.total_s)
        )?;
    }
    writeln!(out)
}

/// `31.2 % (95 %: 30.1 to 32.3)`, or the range where there are too few windows for an interval.
pub(super) fn spread(spread: &Spread) -> String {
    let mean = percent(spread.mean);
    let digits = |share: f64| format!("{:.1}", share * 100.0);
    match spread.ci95 {
        Some([low, high]) => format!("{mean} (95 %: {} to {})", digits(low), digits(high)),
        None if spread.windows > 1 => format!("{mean} ({} to {})", digits(spread.min), digits(spread.max)),
        None => mean,
    }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// From nanoseconds to hours in three or four digits.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Names come from anywhere: none may break the table.
fn name(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() || c == '`' { ' ' } else { c }).collect();
    format!("`{}`", text.replace('|', "\\|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> ProfileSummary {
        let share = Spread { mean: 0.312, min: 0.25, max: 0.4, windows: 4, ci95: Some([0.3, 0.325]) };
        ProfileSummary {
            windows: 4,
            ranks: Some(2),
            traces: 8,
            steps: 80,
            events: 40_000,
            recorded_s: 1.25,
            observed_s: Some(118.0),
            gpu: Some(GpuProfile {
                busy: Some(share),
                busy_by_rank: vec![(0, 0.3), (1, 0.324)],
                gaps: Some(Gaps {
                    count: 900,
                    total_s: 0.8,
                    median_us: 3.4,
                    p99_us: 1200.0,
                    longest_us: 45_000.0,
                    in_operators: 0.5,
                    in_steps: Some(0.2),
                }),
                kernel_s: 0.4,
                copy_s: 0.000_9,
                distinct_kernels: 7,
            }),
            kernels: vec![KernelShare { name: "a|b`c\nd".to_owned(), count: 3, total_s: 0.2, share }],
            operators: vec![OperatorShare {
                name: "aten::mm".to_owned(),
                count: 5,
                total_s: 0.3,
                self_s: 0.1,
                share: Spread { ci95: None, windows: 2, ..share },
            }],
            step_groups: vec![StepGroup {
                kind: StepKind::Decode,
                steps: 70,
                windows: 1,
                wall_ms: 12.5,
                gpu_ms: None,
                prefill_tokens: Some(0.0),
                decode_tokens: Some(31.5),
                requests: None,
            }],
            ..ProfileSummary::default()
        }
    }

    #[test]
    fn every_figure_comes_with_what_it_is_worth() {
        let mut text = String::new();
        section(&mut text, &some()).unwrap();
        for part in [
            "8 traces of 2 ranks, 80 engine steps and 40000 events in the 4 recorded windows (1.25 s of the 118 s from",
            "speak of these windows only; 4 windows: rough.",
            "GPU busy for 31.2 % (95 %: 30.0 to 32.5) of a window.",
            "By rank: rank 0 30.0 %, rank 1 32.4 %.",
            "idle 900 times, 800.00 ms together: median 3.4 µs, p99 1.20 ms, longest 45.00 ms.",
            "For 50.0 % of that time the host was in operators, for 20.0 % elsewhere in an engine step, for 30.0 % between",
            "| decode only | 70 | 12.50 ms | ? | 0.0 | 31.5 | ? | one window: an example, not a measurement |",
            "| `a\\|b c d` | 31.2 % (95 %: 30.0 to 32.5) | 3 | 200.00 ms |",
            "| `aten::mm` | 31.2 % (25.0 to 40.0) | 5 | 100.00 ms | 300.00 ms |",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
    }

    #[test]
    fn a_cpu_is_said_to_be_one() {
        let mut text = String::new();
        section(&mut text, &ProfileSummary { gpu: None, kernels: Vec::new(), ..some() }).unwrap();
        assert!(text.contains("No GPU work was recorded"), "{text}");
        assert!(!text.contains("GPU busy"));
    }
}
