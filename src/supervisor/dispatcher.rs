//! The only `select!` loop of a run: a fact goes to the journal, to the performer's memory and to the machine; what the
//! machine concludes goes to the journal; what it asks for is begun. Sinks only look on.

use super::journal::Journal;
use super::machine::Machine;
use super::performer::{Performer, Run};
use super::state::Action;
use crate::error::{Context, Failure};
use crate::event::{Event, EventKind};
use crate::redact::Redactor;
use crate::time::{Clock, SystemClock};
use std::io::Write as _;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

/// Between two signs of life.
const PULSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Something that looks on: the console, the log.
pub trait Sink {
    /// Called once for every event, in order. Must not block.
    fn event(&mut self, event: &Event);

    /// Called about once a second, as long as the loop goes round. Must not block.
    fn alive(&mut self) {}
}

/// The loop.
pub struct Dispatcher<'a> {
    clock: SystemClock,
    journal: Journal,
    machine: Machine,
    performer: Performer,
    sinks: Vec<&'a mut dyn Sink>,
    journal_failed: bool,
    redactor: Arc<Redactor>,
}

impl<'a> Dispatcher<'a> {
    /// Everything is ready to go.
    pub fn new(
        run: Arc<Run>,
        clock: SystemClock,
        journal: Journal,
        facts: UnboundedSender<EventKind>,
        sinks: Vec<&'a mut dyn Sink>,
    ) -> Result<Self, Failure> {
        let redactor = Arc::clone(&run.redactor);
        let performer = Performer::new(run, facts).context("start the thread that asks the GPUs")?;
        Ok(Self {
            clock,
            journal,
            machine: Machine::new(),
            performer,
            sinks,
            journal_failed: false,
            redactor,
        })
    }

    /// Runs to the end and returns the exit code.
    pub async fn run(mut self, first: EventKind, mut facts: UnboundedReceiver<EventKind>) -> u8 {
        let mut exit = crate::error::ExitCode::Bug.code();
        let mut fact = first;
        loop {
            if let Some(code) = self.handle(fact) {
                exit = code;
            }
            if self.machine.is_done() {
                if !self.journal.close() {
                    let path = self.journal.path().display();
                    let mut told = std::io::stderr();
                    let _ = writeln!(told, "error: {path} is incomplete: the disk did not take all of it");
                }
                return exit;
            }
            fact = self.next(&mut facts).await;
        }
    }

    async fn next(&mut self, facts: &mut UnboundedReceiver<EventKind>) -> EventKind {
        let deadline = self.machine.next_deadline();
        let at = deadline.map(|(due, _)| tokio::time::Instant::from_std(self.clock.deadline(due)));
        loop {
            for sink in &mut self.sinks {
                sink.alive();
            }
            let heard = tokio::time::timeout(PULSE, Self::wait(facts, deadline, at)).await;
            if let Ok(fact) = heard {
                return fact;
            }
        }
    }

    async fn wait(
        facts: &mut UnboundedReceiver<EventKind>,
        deadline: Option<(std::time::Duration, crate::event::Timer)>,
        at: Option<tokio::time::Instant>,
    ) -> EventKind {
        tokio::select! {
            biased;
            Some(fact) = facts.recv() => fact,
            () = async { match at { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                // The branch runs only with a deadline.
                let timer = deadline.map_or(crate::event::Timer::Phase, |(_, timer)| timer);
                EventKind::TimerFired { timer }
            }
        }
    }

    /// Returns the exit code when the run is over.
    fn handle(&mut self, fact: EventKind) -> Option<u8> {
        let at = self.clock.now();
        // What the machine concludes from a fact must be what a replay of the journal concludes.
        let fact = match fact {
            // The plan is needed as it is, and is redacted when it is written.
            EventKind::RunStarted { .. } => fact,
            fact => self.redactor.event(fact),
        };
        self.performer.observe(&fact);
        let actions = self.machine.step(at, &fact);
        self.performer.phase(self.machine.phase());
        // A fact belongs to the attempt it was seen in, and the first one begins attempt 1.
        let attempt =
            if matches!(fact, EventKind::RunStarted { .. }) { 0 } else { self.attempt_before(&actions) };
        self.record(at, attempt, fact);
        if let Some(thinned) = self.journal.thinned() {
            self.record(at, attempt, thinned);
        }
        let mut exit = None;
        let number = self.machine.attempt();
        for action in actions {
            match action {
                Action::Conclude(conclusion) => {
                    if let EventKind::RunFinished { exit_code, .. } = &conclusion {
                        exit = Some(*exit_code);
                    }
                    self.record(at, number, conclusion);
                }
                other => self.performer.perform(other, number),
            }
        }
        exit
    }

    fn attempt_before(&self, actions: &[Action]) -> u32 {
        let began =
            actions.iter().any(|action| matches!(action, Action::Conclude(EventKind::AttemptStarted {})));
        self.machine.attempt() - u32::from(began)
    }

    fn record(&mut self, at: crate::time::Stamp, attempt: u32, kind: EventKind) {
        match self.journal.append(at, attempt, self.redactor.event(kind)) {
            Ok(event) => {
                for sink in &mut self.sinks {
                    sink.event(&event);
                }
            }
            Err(error) if !self.journal_failed => {
                // The run is worth more than its diary: go on, and say so where it can still be seen.
                self.journal_failed = true;
                tracing::error!("cannot write {}: {error}", self.journal.path().display());
            }
            Err(_) => {}
        }
    }
}
