//! The whole load, drawn once before the first byte is sent: when, which workload, how long in, how long out. Pure.
//!
//! Shape and words have seeds of their own: a second attempt keeps the shape and changes the words, or it would measure
//! the server's prefix cache (the same prompts again) instead of the server.

use super::arrivals::Arrivals;
use super::dataset::Traced;
use super::mix::{Length, Mix, Shape, Template, Workload};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
use std::time::Duration;

/// Tokens kept free below the server's context, as in the user's harness: templates and special tokens are not counted.
pub const CONTEXT_MARGIN: u32 = 50;

/// One request of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Counts from 0.
    pub id: u32,
    /// When it is to be sent, from the start of the load; in a closed loop, nobody knows before.
    pub at: Duration,
    /// Index into the mix.
    pub workload: u16,
    /// Prompt tokens, without a shared prefix and former turns.
    pub input: u32,
    /// `max_tokens`.
    pub output: u32,
    /// Index into the examples of its workload, if it has any.
    pub example: Option<u32>,
    /// The group of its shared prefix.
    pub group: u32,
    /// The first request of its conversation; its own id when it is one.
    pub talk: u32,
    /// Which turn of the conversation it is, from 0.
    pub turn: u16,
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
    /// Every request, by time; for a closed loop, empty.
    pub requests: Vec<Planned>,
    /// How many requests the clamp made shorter than drawn.
    pub clamped: u32,
    /// Prompts of datasets that are too long for the context and are never sent.
    pub left_out: u32,
    seed: u64,
}

/// Draws the shapes of requests, one after the other.
#[derive(Debug)]
pub struct Shapes {
    rng: ChaCha8Rng,
    room: u32,
    next: u32,
    /// How many the clamp made shorter.
    pub clamped: u32,
}

impl Shapes {
    fn new(seed: u64, room: u32) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1);
        Self { rng, room, next: 0, clamped: 0 }
    }

    /// The next conversation, begun at `at`: a single request, if its workload knows no turns.
    pub fn conversation(&mut self, mix: &Mix, at: Duration) -> Vec<Planned> {
        let first = self.draw(mix, at);
        let mut all = vec![first];
        let asked = &mix.workloads[usize::from(first.workload)];
        let Some(turns) = asked.turns else { return all };
        let mut before = first.input.saturating_add(first.output);
        for turn in 1..turns.count.min(u32::from(u16::MAX)) {
            let at = first.at + Duration::from_secs_f64(turns.think * f64::from(turn));
            let (input, output) = (asked.input.draw(&mut self.rng), asked.output.draw(&mut self.rng));
            // A conversation that has filled the context ends, as it does for people.
            let taken = before.saturating_add(asked.prefix.map_or(0, |p| p.tokens));
            if taken.saturating_add(asked.input.min).saturating_add(asked.output.min) > self.room {
                break;
            }
            let id = self.next;
            self.next += 1;
            let mut planned = Planned { id, at, input, output, turn: turn as u16, example: None, ..first };
            self.fit(asked, &mut planned, before);
            before = before.saturating_add(planned.input).saturating_add(planned.output);
            all.push(planned);
        }
        all
    }

    fn draw(&mut self, mix: &Mix, at: Duration) -> Planned {
        let rng = &mut self.rng;
        let workload = mix.pick(rng);
        let asked = &mix.workloads[workload];
        let (mut input, mut output) = (asked.input.draw(rng), asked.output.draw(rng));
        let mut example = None;
        if !asked.examples.is_empty() {
            let index = rng.random_range(0..asked.examples.len());
            example = Some(index as u32);
            input = estimate(&asked.examples[index].prompt);
            output = asked.examples[index].output.unwrap_or(output);
        }
        let group = asked.prefix.map_or(0, |prefix| rng.random_range(0..prefix.groups));
        let id = self.next;
        self.next += 1;
        let mut planned =
            Planned { id, at, workload: workload as u16, input, output, example, group, talk: id, turn: 0 };
        self.fit(asked, &mut planned, 0);
        planned
    }

    /// Clamps a request to the context, of which `before` tokens are taken by former turns.
    fn fit(&mut self, asked: &Workload, planned: &mut Planned, before: u32) {
        let room = self.room.saturating_sub(asked.prefix.map_or(0, |p| p.tokens)).saturating_sub(before);
        let drawn = (planned.input, planned.output);
        if planned.example.is_some() {
            // A text of the user is not cut; its answer is.
            planned.output = drawn.1.min(room.saturating_sub(drawn.0)).max(1);
        } else {
            (planned.input, planned.output) =
                clamp(drawn.0, drawn.1, asked.input.min, asked.output.min, room);
        }
        self.clamped += u32::from((planned.input, planned.output) != drawn);
    }
}

impl Schedule {
    /// Draws the load. The same arguments give the same load on every machine.
    pub fn draw(
        mut mix: Mix,
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
        let left_out = leave_out(&mut mix, room)?;
        let minima = |w: &Workload| w.input.min.saturating_add(w.output.min);
        let shortest = |w: &Workload| if w.examples.is_empty() { minima(w) } else { 2 };
        let need = |w: &Workload| shortest(w).saturating_add(w.prefix.map_or(0, |p| p.tokens));
        let smallest = mix.workloads.iter().filter(|w| w.weight > 0.0).map(need).min().unwrap_or(0);
        if room < smallest {
            return Err(format!(
                "the server's context of {context} tokens less a margin of {CONTEXT_MARGIN} is smaller than the \
                 smallest request of mix {} ({smallest} tokens): use a larger --max-model-len or another mix",
                mix.name
            ));
        }
        for workload in mix.workloads.iter().filter(|w| w.weight > 0.0) {
            if let Some(prefix) = workload.prefix.filter(|p| p.tokens.saturating_add(2) > room) {
                return Err(format!(
                    "mix {}, workload {}: a shared prefix of {} tokens does not fit the server's context of \
                     {context} tokens less a margin of {CONTEXT_MARGIN}",
                    mix.name, workload.name, prefix.tokens
                ));
            }
        }
        let mut schedule =
            Self { mix, arrivals, duration, context, requests: Vec::new(), clamped: 0, left_out, seed };
        let times = schedule.arrivals.times(duration, &mut ChaCha8Rng::seed_from_u64(seed))?;
        if times.is_empty() && schedule.arrivals.streams().is_none() {
            return Err(format!(
                "the schedule is empty: no request falls into {} s at this rate; use a longer duration or a \
                 higher rate",
                duration.as_secs_f64()
            ));
        }
        let mut shapes = schedule.shapes();
        for at in times {
            let turns = shapes.conversation(&schedule.mix, at);
            schedule.requests.extend(turns.into_iter().filter(|turn| turn.at < duration));
        }
        // Turns of different conversations overlap.
        schedule.requests.sort_by_key(|r| (r.at, r.id));
        schedule.clamped = shapes.clamped;
        Ok(schedule)
    }

    /// A schedule with the moments, prompts and lengths of a trace, as far as they lie before `until`.
    pub fn from_trace(mut trace: Vec<Traced>, until: Duration, context: u32) -> Result<Self, String> {
        trace.retain(|row| row.at < until.as_secs_f64());
        if trace.is_empty() {
            return Err("the trace holds no request within the duration".to_owned());
        }
        let mut workloads: Vec<Workload> = Vec::new();
        // A trace may name a workload of its own in every line.
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut requests = Vec::with_capacity(trace.len());
        let (mut times, mut clamped) = (Vec::with_capacity(trace.len()), 0);
        for (id, row) in (0_u32..).zip(trace) {
            let index = *places.entry(row.workload).or_insert_with_key(|name| {
                let any = Length { shape: Shape::Fixed { tokens: 1 }, min: 1, max: 1_000_000 };
                let plain =
                    Template::parse("plain").unwrap_or_else(|_| Mix::mixed().workloads[0].template.clone());
                workloads.push(Workload::simple(name, 0.0, any.clone(), any, plain));
                workloads.len() - 1
            });
            let Ok(place) = u16::try_from(index) else {
                return Err(format!("the trace names more than {} workloads", u32::from(u16::MAX) + 1));
            };
            let workload = &mut workloads[index];
            workload.weight += 1.0;
            let asked = row.example.output.unwrap_or(16);
            let output = asked.min(context.saturating_sub(CONTEXT_MARGIN).saturating_sub(row.input)).max(1);
            clamped += u32::from(output != asked);
            requests.push(Planned {
                id,
                at: Duration::try_from_secs_f64(row.at).map_err(|e| format!("a time of the trace: {e}"))?,
                workload: place,
                input: row.input,
                output,
                example: Some(workload.examples.len() as u32),
                group: 0,
                talk: id,
                turn: 0,
            });
            workload.examples.push(row.example);
            times.push(row.at);
        }
        let last = requests.last().map_or(Duration::ZERO, |r| r.at);
        Ok(Self {
            mix: Mix { name: "trace".to_owned(), workloads },
            arrivals: Arrivals::Trace { times },
            duration: last + Duration::from_millis(1),
            context,
            requests,
            clamped,
            left_out: 0,
            seed: 0,
        })
    }

    /// In a closed loop, the pause between the turns of a conversation.
    pub fn think(&self, planned: &Planned) -> Duration {
        let turns = self.mix.workloads[usize::from(planned.workload)].turns;
        turns.map_or(Duration::ZERO, |turns| Duration::from_secs_f64(turns.think))
    }

    /// The source of shapes, from its beginning: for a closed loop.
    pub fn shapes(&self) -> Shapes {
        Shapes::new(self.seed, self.context.saturating_sub(CONTEXT_MARGIN))
    }

    /// Corrects the prompt length of a request whose text the server has counted, and its answer with it.
    pub fn counted(&mut self, index: usize, tokens: u32) {
        let request = &mut self.requests[index];
        let prefix = self.mix.workloads[usize::from(request.workload)].prefix.map_or(0, |p| p.tokens);
        let room = self.context.saturating_sub(CONTEXT_MARGIN).saturating_sub(prefix);
        request.input = tokens.max(1);
        let output = request.output.min(room.saturating_sub(request.input)).max(1);
        self.clamped += u32::from(output != request.output);
        request.output = output;
    }
}

/// Takes out the prompts of datasets that the server would refuse for their length, as `vllm bench serve` does, and says how
/// many.
fn leave_out(mix: &mut Mix, room: u32) -> Result<u32, String> {
    let mut left_out = 0;
    let name = mix.name.clone();
    for workload in mix.workloads.iter_mut().filter(|w| w.weight > 0.0 && !w.examples.is_empty()) {
        let room = room.saturating_sub(workload.prefix.map_or(0, |p| p.tokens));
        let before = workload.examples.len();
        workload.examples.retain(|example| estimate(&example.prompt) < room);
        if workload.examples.is_empty() {
            return Err(format!(
                "mix {name}, workload {}: each of the {before} prompts of its dataset is too long for the server: \
                 {room} tokens are left for prompt and answer",
                workload.name
            ));
        }
        left_out += (before - workload.examples.len()) as u32;
    }
    Ok(left_out)
}

/// Tokens of a text that the server has not counted.
fn estimate(text: &str) -> u32 {
    u32::try_from(text.len() / 4).unwrap_or(u32::MAX).max(1)
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
    if min_input.saturating_add(min_output) > room {
        // Not even the minima fit: only the proportion is left to keep.
        let input = scaled_in.clamp(1, room.saturating_sub(1).max(1));
        return (input, scaled_out.max(1).min(room.saturating_sub(input).max(1)));
    }
    if scaled_in < min_input {
        (min_input, scaled_out.max(min_output).min(room - min_input))
    } else if scaled_out < min_output {
        (scaled_in.min(room - min_output), min_output)
    } else {
        (scaled_in, scaled_out)
    }
}
