//! Delivers messages on a thread of its own. What the run does with a message is to leave it here, which takes no time; each
//! recipient has a queue of its own, so that one who hangs holds up nobody else.

use super::message::{Composer, Message};
use super::outbox::Outbox;
use super::pause::pause;
use super::send::Recipient;
use crate::event::Event;
use crate::time::{Clock, SystemClock};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, UnboundedReceiver, channel, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Events that may wait for the thread. It only has to write a line for a few of them, so they never do.
const QUEUE: usize = 4096;

/// Counts for whoever wants to know.
#[derive(Debug, Default)]
pub struct Tally {
    due: AtomicU64,
    delivered: AtomicU64,
    lost: AtomicU64,
}

impl Tally {
    /// Messages that are not delivered yet.
    pub fn waiting(&self) -> u64 {
        self.due.load(Ordering::Relaxed).saturating_sub(self.delivered())
    }

    /// Messages delivered.
    pub fn delivered(&self) -> u64 {
        self.delivered.load(Ordering::Relaxed)
    }
}

/// The thread.
pub struct Poster {
    events: Sender<Event>,
    tally: Arc<Tally>,
    grace: Duration,
    thread: std::thread::JoinHandle<()>,
}

impl Poster {
    /// Starts it. `grace` is how long the end waits for what is not delivered yet.
    pub fn start(
        recipients: Vec<Recipient>,
        outbox: Outbox,
        composer: Composer,
        clock: SystemClock,
        grace: Duration,
    ) -> io::Result<Self> {
        let (events, received) = channel(QUEUE);
        let tally = Arc::new(Tally::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let post = Post {
            recipients,
            outbox: Arc::new(Mutex::new(outbox)),
            composer,
            clock,
            tally: Arc::clone(&tally),
        };
        let thread = std::thread::Builder::new().name("notify".to_owned()).spawn(move || {
            runtime.block_on(post.run(received, grace));
            // A name that does not resolve must not hold up the end.
            runtime.shutdown_background();
        })?;
        Ok(Self { events, tally, grace, thread })
    }

    /// Takes the next event. Never waits.
    pub fn push(&self, event: &Event) {
        // Samples never make a message, and what they tell stands in the next event that does.
        if !event.kind.is_milestone() && !matches!(event.kind, crate::event::EventKind::LoadProgressed(_)) {
            return;
        }
        if self.events.try_send(event.clone()).is_err()
            && self.tally.lost.fetch_add(1, Ordering::Relaxed) == 0
        {
            tracing::error!("the thread that notifies does not keep up; something will not be told");
        }
    }

    /// Counts for whoever wants to know.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Nothing more will come. Waits for what is not delivered yet, but no longer than the grace; returns how much then
    /// still waits in the outbox.
    pub fn end(self) -> u64 {
        drop(self.events);
        if self.tally.waiting() > 0 {
            tracing::info!(
                "up to {} for messages that are not delivered yet",
                crate::time::human(self.grace)
            );
        }
        drop(self.thread.join());
        self.tally.waiting()
    }
}

struct Post {
    recipients: Vec<Recipient>,
    outbox: Arc<Mutex<Outbox>>,
    composer: Composer,
    clock: SystemClock,
    tally: Arc<Tally>,
}

impl Post {
    async fn run(mut self, mut events: Receiver<Event>, grace: Duration) {
        let (ending, is_ending) = watch::channel(false);
        let mut routes = Vec::new();
        let mut couriers = JoinSet::new();
        for recipient in std::mem::take(&mut self.recipients) {
            let (queue, waiting) = unbounded_channel();
            routes.push((recipient.plan.on.clone(), recipient.name().to_owned(), queue));
            couriers.spawn(courier(
                recipient,
                waiting,
                Arc::clone(&self.outbox),
                Arc::clone(&self.tally),
                is_ending.clone(),
            ));
        }
        loop {
            let near =
                self.composer.near_at().map(|at| tokio::time::Instant::from_std(self.clock.deadline(at)));
            let message = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.composer.push(&event),
                    None => break,
                },
                () = async { match near { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                    Some(self.composer.near(self.clock.now()))
                }
            };
            let Some(message) = message else { continue };
            for (_, name, queue) in routes.iter().filter(|(on, ..)| on.contains(&message.occasion)) {
                let id = self.outbox.lock().unwrap_or_else(PoisonError::into_inner).due(name, &message);
                self.tally.due.fetch_add(1, Ordering::Relaxed);
                // Only a courier that panicked is gone; its messages stay in the outbox.
                drop(queue.send((id, message.clone())));
            }
        }
        drop(routes);
        ending.send_replace(true);
        let all = async { while couriers.join_next().await.is_some() {} };
        drop(tokio::time::timeout(grace, all).await);
    }
}

async fn comes(ending: &mut watch::Receiver<bool>) {
    drop(ending.wait_for(|ending| *ending).await);
}

/// Brings one recipient its messages, in order. A message that nobody wants is left in the outbox and holds up nothing.
async fn courier(
    recipient: Recipient,
    mut queue: UnboundedReceiver<(u64, Message)>,
    outbox: Arc<Mutex<Outbox>>,
    tally: Arc<Tally>,
    mut ending: watch::Receiver<bool>,
) {
    let outbox = || outbox.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((id, message)) = queue.recv().await {
        let mut failed = 0;
        loop {
            match recipient.deliver(&message).await {
                Ok(answer) => {
                    outbox().delivered(id, &answer);
                    tally.delivered.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(trouble) => {
                    failed += 1;
                    outbox().tried(id, &trouble.what);
                    tracing::warn!(
                        "{} was not told of {}: {}",
                        recipient.name(),
                        message.occasion.word(),
                        trouble.what
                    );
                    if !trouble.again {
                        break;
                    }
                    if failed > 1 && *ending.borrow() {
                        // Not even now, so the rest would not arrive either.
                        return;
                    }
                    let pause = pause(failed, rand::random(), trouble.asked);
                    // The end of the run cuts the pause short for one more try.
                    drop(tokio::time::timeout(pause, comes(&mut ending)).await);
                }
            }
        }
    }
}

/// Delivers what waits, each message once; how many arrived, and why the others did not. For a run that is over.
pub async fn again(
    recipients: &[Recipient],
    waiting: Vec<super::outbox::Due>,
    outbox: &mut Outbox,
) -> (u64, Vec<String>) {
    let (mut arrived, mut problems) = (0, Vec::new());
    let mut gone: Vec<String> = Vec::new();
    for due in VecDeque::from(waiting) {
        let occasion = due.message.occasion.word();
        let Some(recipient) = recipients.iter().find(|recipient| recipient.name() == due.target) else {
            problems.push(format!(
                "{occasion} to {}: nobody is called so in guard.toml or after --notify",
                due.target
            ));
            continue;
        };
        if gone.contains(&due.target) {
            problems.push(format!("{occasion} to {}: not tried, see above", due.target));
            continue;
        }
        match recipient.deliver(&due.message).await {
            Ok(answer) => {
                outbox.delivered(due.id, &answer);
                arrived += 1;
            }
            Err(trouble) => {
                outbox.tried(due.id, &trouble.what);
                problems.push(format!("{occasion} to {}: {}", due.target, trouble.what));
                if trouble.again {
                    gone.push(due.target);
                }
            }
        }
    }
    (arrived, problems)
}
