//! Continuous batching, counted in tokens and cache blocks. Pure: it neither sleeps nor reads a clock.

use super::wire::{Finish, NewRequest, Output, StepReport};
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq)]
struct Sequence {
    request: NewRequest,
    arrived: Duration,
    started: Option<Duration>,
    /// Tokens in the cache.
    computed: u64,
    generated: u64,
    /// Tokens of the step in progress.
    scheduled: u64,
}

impl Sequence {
    fn known(&self) -> u64 {
        self.request.prompt + self.generated
    }
}

/// What the next step will do; from it the engine works out how long the step takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StepPlan {
    /// Prompt and output tokens in the step.
    pub(super) tokens: u64,
    /// Requests that leave the queue.
    pub(super) starts: u64,
    /// Whether one of them has a temperature.
    pub(super) sampled: bool,
}

/// The queue and the batch.
#[derive(Debug, Clone)]
pub(super) struct Scheduler {
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    blocks: u64,
    block_size: u64,
    max_seqs: usize,
    max_tokens: u64,
    preemptions: u64,
}

impl Scheduler {
    /// `blocks` of `block_size` tokens; at most `max_seqs` sequences and `max_tokens` tokens a step.
    pub(super) fn new(blocks: u64, block_size: u64, max_seqs: usize, max_tokens: u64) -> Self {
        Self {
            waiting: VecDeque::new(),
            running: Vec::new(),
            blocks,
            block_size,
            max_seqs: max_seqs.max(1),
            max_tokens: max_tokens.max(1),
            preemptions: 0,
        }
    }

    /// A request joins the queue.
    pub(super) fn add(&mut self, request: NewRequest, now: Duration) {
        self.waiting.push_back(Sequence {
            request,
            arrived: now,
            started: None,
            computed: 0,
            generated: 0,
            scheduled: 0,
        });
    }

    /// A request leaves before its end.
    pub(super) fn abort(&mut self, id: u64) {
        self.waiting.retain(|sequence| sequence.request.id != id);
        self.running.retain(|sequence| sequence.request.id != id);
    }

    /// Whether there is anything to do.
    pub(super) fn has_work(&self) -> bool {
        !(self.waiting.is_empty() && self.running.is_empty())
    }

    fn blocks_of(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.block_size)
    }

    fn used(&self) -> u64 {
        self.running.iter().map(|sequence| self.blocks_of(sequence.computed + sequence.scheduled)).sum()
    }

    /// Chooses the tokens of the next step.
    pub(super) fn plan(&mut self, now: Duration) -> StepPlan {
        let mut plan = StepPlan::default();
        let mut budget = self.max_tokens;
        for sequence in &mut self.running {
            sequence.scheduled = 0;
        }
        let mut index = 0;
        let mut preempted = false;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let tokens = (sequence.known() - sequence.computed).min(budget);
            sequence.scheduled = tokens;
            // The youngest goes back to the queue until the others fit, as in vLLM.
            while self.used() > self.blocks && self.running.len() > 1 {
                preempted = true;
                self.preemptions += 1;
                if let Some(mut victim) = self.running.pop() {
                    victim.computed = 0;
                    victim.scheduled = 0;
                    self.waiting.push_front(victim);
                }
            }
            if index < self.running.len() {
                budget -= tokens;
                plan.tokens += tokens;
            }
            index += 1;
        }
        while !preempted && budget > 0 && self.running.len() < self.max_seqs {
            let Some(next) = self.waiting.front() else { break };
            if self.used() + self.blocks_of(next.known() + 1) > self.blocks && !self.running.is_empty() {
                break;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            let tokens = sequence.known().min(budget);
            sequence.scheduled = tokens;
            budget -= tokens;
            plan.tokens += tokens;
            plan.starts += 1;
            plan.sampled |= sequence.request.sampled;
            sequence.started.get_or_insert(now);
            self.running.push(sequence);
        }
        plan
    }

    /// The planned step is over.
    pub(super) fn complete(&mut self) -> StepReport {
        let mut report = StepReport::default();
        for sequence in &mut self.running {
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            if sequence.computed < sequence.known() {
                continue;
            }
            sequence.generated += 1;
            report.generation_tokens += 1;
            let first = sequence.generated == 1;
            if first {
                report.prompt_tokens += sequence.request.prompt;
            }
            let done = sequence.generated >= sequence.request.output;
            let queued = sequence.started.unwrap_or_default().saturating_sub(sequence.arrived);
            report.outputs.push(Output {
                id: sequence.request.id,
                first,
                finish: done.then_some(if sequence.request.stops { Finish::Stop } else { Finish::Length }),
                queued_s: if first { queued.as_secs_f64() } else { 0.0 },
            });
        }
        self.running.retain(|sequence| sequence.generated < sequence.request.output);
        report.running = self.running.len() as u64;
        report.waiting = self.waiting.len() as u64;
        report.kv_usage = self.used() as f64 / self.blocks as f64;
        report.preemptions = std::mem::take(&mut self.preemptions);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, prompt: u64, output: u64) -> NewRequest {
        NewRequest { id, prompt, output, stops: false, sampled: false }
    }

    fn run(scheduler: &mut Scheduler) -> (Vec<StepReport>, u64) {
        let (mut reports, mut steps) = (Vec::new(), 0);
        while scheduler.has_work() {
            scheduler.plan(Duration::ZERO);
            reports.push(scheduler.complete());
            steps += 1;
            assert!(steps < 10_000, "the scheduler makes no progress");
        }
        (reports, steps)
    }

    #[test]
    fn every_running_sequence_gets_one_token_a_step() {
        let mut scheduler = Scheduler::new(100, 16, 8, 2048);
        for id in 1..=3 {
            scheduler.add(request(id, 10, 5), Duration::ZERO);
        }
        let (reports, steps) = run(&mut scheduler);
        assert_eq!(steps, 5);
        assert_eq!(reports[0].prompt_tokens, 30);
        assert!(reports.iter().all(|report| report.generation_tokens == 3));
        assert!(reports[4].outputs.iter().all(|output| output.finish == Some(Finish::Length)));
        assert_eq!(reports[4].kv_usage, 0.0);
    }

    #[test]
    fn a_long_prompt_is_read_in_pieces() {
        let mut scheduler = Scheduler::new(1000, 16, 8, 100);
        scheduler.add(request(1, 250, 1), Duration::ZERO);
        let (reports, steps) = run(&mut scheduler);
        assert_eq!(steps, 3);
        assert!(reports[0].outputs.is_empty());
        assert_eq!(reports[2].prompt_tokens, 250);
    }

    #[test]
    fn more_requests_than_seats_wait() {
        let mut scheduler = Scheduler::new(1000, 16, 2, 2048);
        for id in 1..=5 {
            scheduler.add(request(id, 10, 4), Duration::ZERO);
        }
        scheduler.plan(Duration::ZERO);
        let report = scheduler.complete();
        assert_eq!((report.running, report.waiting), (2, 3));
    }

    #[test]
    fn a_full_cache_preempts_and_everybody_still_gets_all_tokens() {
        let mut scheduler = Scheduler::new(6, 16, 8, 2048);
        for id in 1..=3 {
            scheduler.add(request(id, 16, 40), Duration::ZERO);
        }
        let (reports, _) = run(&mut scheduler);
        let generated: u64 = reports.iter().map(|report| report.generation_tokens).sum();
        assert_eq!(generated, 120);
        assert!(reports.iter().map(|report| report.preemptions).sum::<u64>() > 0);
        assert!(reports.iter().all(|report| report.kv_usage <= 1.0));
    }

    #[test]
    fn an_aborted_request_gives_its_blocks_back() {
        let mut scheduler = Scheduler::new(100, 16, 8, 2048);
        scheduler.add(request(1, 160, 50), Duration::ZERO);
        scheduler.plan(Duration::ZERO);
        assert!(scheduler.complete().kv_usage > 0.0);
        scheduler.abort(1);
        assert!(!scheduler.has_work());
        assert_eq!(scheduler.used(), 0);
    }
}
