//! `varcas-guard bench --sweep`: one load after the other, until it is known what the server can take.

use super::bench::{Bench, usage, verdict};
use crate::error::{ExitCode as Code, Failure};
use crate::event::{BenchSummary, Latency};
use crate::workload::load::driver::SATURATED;
use serde::Serialize;

/// Halvings of the gap between the last rate that went well and the first that did not, once both are known.
const HALVINGS: u32 = 2;

/// A rate and what came of it.
#[derive(Debug, Serialize)]
struct Step {
    rate: f64,
    offered: f64,
    request_throughput: f64,
    output_throughput: f64,
    ttft_ms: Latency,
    tpot_ms: Latency,
    failed: u64,
    saturated: bool,
    folder: String,
}

/// `sweep.json`
#[derive(Debug, Default, Serialize)]
struct Sweep {
    /// The highest rate that went well.
    sustained_rate: Option<f64>,
    /// The lowest rate that did not.
    saturated_rate: Option<f64>,
    steps: Vec<Step>,
}

/// Doubles the rate until the server answers less than 90 % of it, fails, or falls behind; then halves the gap.
pub(crate) async fn run(bench: &Bench<'_>) -> Result<Code, Failure> {
    println!(
        "{:>9} {:>9} {:>10} {:>10} {:>10} {:>7}",
        "rate", "done/s", "ttft p50", "ttft p99", "tpot p50", "failed"
    );
    let mut sweep = Sweep::default();
    let mut halvings = 0;
    loop {
        let rate = match (sweep.sustained_rate, sweep.saturated_rate) {
            (None, None) => bench.args.rate,
            (Some(good), None) => good * 2.0,
            // The arithmetic mean would look too high: capacity is a factor.
            (Some(good), Some(bad)) if halvings < HALVINGS => {
                halvings += 1;
                (good * bad).sqrt()
            }
            _ => break,
        };
        let (summary, step) = one(bench, rate, sweep.steps.len() as u64).await?;
        let Latency { p50, p99, .. } = step.ttft_ms;
        println!(
            "{rate:>9.2} {:>9.2} {p50:>10.1} {p99:>10.1} {:>10.2} {:>7}",
            step.request_throughput, step.tpot_ms.p50, step.failed
        );
        let (saturated, interrupted) = (step.saturated, !summary.is_complete && !step.saturated);
        sweep.steps.push(step);
        if saturated {
            sweep.saturated_rate = Some(rate);
        } else if !interrupted {
            sweep.sustained_rate = Some(rate);
        }
        // After each step: a sweep that dies keeps what it has.
        write(bench, &sweep)?;
        if interrupted {
            return Ok(verdict(&summary, bench.args.max_failure_share));
        }
    }
    match (sweep.sustained_rate, sweep.saturated_rate) {
        (Some(good), Some(bad)) => println!("Saturated between {good:.2} and {bad:.2} requests per second"),
        _ => println!("Saturated already at {} requests per second: start the sweep lower", bench.args.rate),
    }
    Ok(Code::Success)
}

async fn one(bench: &Bench<'_>, rate: f64, index: u64) -> Result<(BenchSummary, Step), Failure> {
    // Other words at each step, or the later steps would measure the prefix cache.
    let mut load = bench
        .recipe
        .at_rate(rate)
        .load(bench.target, bench.args.seed + index, bench.word_seed + index)
        .map_err(usage)?;
    load.stop_when_saturated = true;
    let offered = load.schedule.requests.len() as f64 / load.schedule.duration.as_secs_f64();
    let name = format!("rate-{}", (rate * 100.0).round() / 100.0);
    let (summary, _) = bench.one(load, &bench.args.output.join(&name)).await?;
    let lost = summary.progress.failed + summary.cancelled;
    let early = summary.incomplete_reason.as_deref() == Some(SATURATED);
    let behind = summary.request_throughput < 0.9 * offered || lost * 100 > summary.progress.sent;
    let step = Step {
        rate,
        offered,
        request_throughput: summary.request_throughput,
        output_throughput: summary.output_throughput,
        ttft_ms: summary.ttft_ms,
        tpot_ms: summary.tpot_ms,
        failed: summary.progress.failed,
        saturated: early || (summary.is_complete && behind),
        folder: name,
    };
    Ok((summary, step))
}

fn write(bench: &Bench<'_>, sweep: &Sweep) -> Result<(), Failure> {
    let path = bench.args.output.join("sweep.json");
    let text = serde_json::to_string_pretty(sweep).unwrap_or_default();
    std::fs::write(&path, text).map_err(|e| usage(format!("write {}: {e}", path.display())))
}
