//! The whole load, drawn once before the first byte is sent: when, which workload, how long in, how long out. Pure.
//!
//! Shape and words have seeds of their own: a second attempt keeps the shape and changes the words, or it would measure
//! the server's prefix cache (the same prompts again) instead of the server.

use super::arrivals::Arrivals;
use super::mix::Mix;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::time::Duration;

/// Tokens kept free below the server's context, as in the user's harness: templates and special tokens are not counted.
pub const CONTEXT_MARGIN: u32 = 50;

/// One request of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Counts from 0.
    pub id: u32,
    /// When it is to be sent, from the start of the load.
    pub at: Duration,
    /// Index into the mix.
    pub workload: u16,
    /// Prompt tokens.
    pub input: u32,
    /// `max_tokens`.
    pub output: u32,
}

/// The load to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The mix it was drawn from.
    pub mix: Mix,
    /// The arrivals it was drawn from.
    pub arrivals: Arrivals,
    /// How long requests are sent.
    pub duration: Duration,
    /// The context it was clamped to.
    pub context: u32,
    /// Every request, by time.
    pub requests: Vec<Planned>,
    /// How many requests the clamp made shorter than drawn.
    pub clamped: u32,
}

impl Schedule {
    /// Draws the load. The same arguments give the same load on every machine.
    pub fn draw(
        mix: Mix,
        arrivals: Arrivals,
        duration: Duration,
        context: u32,
        seed: u64,
    ) -> Result<Self, String> {
        let mut problems = mix.problems();
        problems.extend(arrivals.problems());
        if duration.is_zero() {
            problems.push("duration is 0: there would be nothing to send".to_owned());
        }
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let room = context.saturating_sub(CONTEXT_MARGIN);
        let smallest = mix.workloads.iter().map(|w| w.input.min + w.output.min).min().unwrap_or(0);
        if room < smallest {
            return Err(format!(
                "the server's context of {context} tokens less a margin of {CONTEXT_MARGIN} is smaller than the \
                 smallest request of mix {} ({smallest} tokens): use a larger --max-model-len or another mix",
                mix.name
            ));
        }
        let mut times = ChaCha8Rng::seed_from_u64(seed);
        let mut shapes = ChaCha8Rng::seed_from_u64(seed);
        shapes.set_stream(1);
        let times = arrivals.times(duration, &mut times)?;
        let mut clamped = 0;
        let mut requests = Vec::with_capacity(times.len());
        for (id, at) in (0_u32..).zip(times) {
            let workload = mix.pick(&mut shapes);
            let asked = &mix.workloads[workload];
            let (drawn_in, drawn_out) = (asked.input.draw(&mut shapes), asked.output.draw(&mut shapes));
            let (input, output) = clamp(drawn_in, drawn_out, asked.input.min, asked.output.min, room);
            clamped += u32::from((input, output) != (drawn_in, drawn_out));
            requests.push(Planned { id, at, workload: workload as u16, input, output });
        }
        Ok(Self { mix, arrivals, duration, context, requests, clamped })
    }
}

/// Fits a request into `room` tokens. Both lengths shrink by the same factor; a length that falls below its minimum is
/// raised to it again and the other pays, so that the sum never exceeds the room (the user's harness raised both and
/// got HTTP 400 for it).
pub fn clamp(input: u32, output: u32, min_input: u32, min_output: u32, room: u32) -> (u32, u32) {
    let total = u64::from(input) + u64::from(output);
    if total <= u64::from(room) {
        return (input, output);
    }
    // f64, as the harness does it, so that truncation falls the same way.
    let factor = f64::from(room) / total as f64;
    let scaled_in = (f64::from(input) * factor) as u32;
    let scaled_out = (f64::from(output) * factor) as u32;
    if min_input + min_output > room {
        // Not even the minima fit: only the proportion is left to keep.
        return (scaled_in.clamp(1, room.saturating_sub(1).max(1)), scaled_out.max(1));
    }
    if scaled_in < min_input {
        (min_input, scaled_out.max(min_output).min(room - min_input))
    } else if scaled_out < min_output {
        (scaled_in.min(room - min_output), min_output)
    } else {
        (scaled_in, scaled_out)
    }
}
