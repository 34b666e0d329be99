//! The guard's side of the keeper: starts it, passes orders on, turns its reports into events, notices its death.

use crate::error::{Context, Failure};
use crate::event::{EventKind, ExitHow, ProcId};
use crate::supervisor::keeper::wire::{self, KeeperSpec, Order};
use crate::supervisor::{os, proc};
use std::os::unix::net::UnixStream as StdStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

/// A keeper that closed its socket is given this long to be gone: the socket closes when it exits.
const TIME_TO_DIE: Duration = Duration::from_secs(5);
/// A keeper that was told to quit kills first, which it bounds at ten seconds itself.
const TIME_TO_QUIT: Duration = Duration::from_secs(15);

/// What the guard knows without asking, shared with the task that reads the reports.
#[derive(Debug, Default)]
struct Shared {
    /// Processes reported and not reported dead.
    known: Mutex<Vec<ProcId>>,
    /// Whether its end is wanted.
    leaving: AtomicBool,
}

/// A running keeper. Dropping it closes the socket, which the keeper takes for the guard's death: it kills everything.
#[derive(Debug)]
pub struct Keeper {
    proc: ProcId,
    orders: UnboundedSender<Vec<u8>>,
    shared: Arc<Shared>,
    reader: JoinHandle<ExitHow>,
}

impl Keeper {
    /// Starts `exe __keeper` and sends it the spec. Reports arrive at `facts`; the first is `KeeperStarted`.
    /// Needs a tokio runtime with I/O and time.
    pub fn start(exe: &Path, spec: &KeeperSpec, facts: UnboundedSender<EventKind>) -> Result<Self, Failure> {
        let (ours, theirs) = StdStream::pair().context("make a socket pair for the keeper")?;
        ours.set_nonblocking(true).context("prepare the keeper's socket")?;
        let ours = UnixStream::from_std(ours).context("prepare the keeper's socket")?;
        let first = wire::encode(spec).context("encode the keeper's spec")?;
        // Its standard error stays ours: a keeper that fails before it has its spec can tell nobody else.
        let child = Command::new(exe)
            .arg("__keeper")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .context(format_args!("start the keeper ({} __keeper)", exe.display()))?;
        let pid = i32::try_from(child.id()).context("read the keeper's pid")?;
        let proc = proc::id(pid).ok_or_else(|| {
            Failure::new(crate::error::ExitCode::Bug, format!("cannot read /proc/{pid}/stat of the keeper"))
        })?;
        let shared = Arc::new(Shared::default());
        let (read, write) = ours.into_split();
        let (orders, queue) = unbounded_channel();
        // The receiver below lives, so this cannot fail.
        drop(orders.send(first));
        drop(facts.send(EventKind::KeeperStarted { proc }));
        tokio::spawn(write_orders(write, queue));
        let reader = tokio::spawn(read_reports(read, child, proc, Arc::clone(&shared), facts));
        Ok(Self { proc, orders, shared, reader })
    }

    /// Which process it is.
    pub fn proc(&self) -> ProcId {
        self.proc
    }

    /// Passes an order on. To a dead keeper it is lost; `KeeperLost` says so.
    pub fn order(&self, order: &Order) {
        if *order == Order::Quit {
            self.shared.leaving.store(true, Ordering::Relaxed);
        }
        if let Ok(bytes) = wire::encode(order) {
            drop(self.orders.send(bytes));
        }
    }

    /// The same as soon as `first` has ended.
    pub fn order_after(&self, first: impl Future<Output = ()> + Send + 'static, order: &Order) {
        let orders = self.orders.clone();
        if let Ok(bytes) = wire::encode(order) {
            tokio::spawn(async move {
                first.await;
                drop(orders.send(bytes));
            });
        }
    }

    /// The processes of the tree that live as far as was reported; what to give [`reap::kill_marked`] after
    /// `KeeperLost`.
    ///
    /// [`reap::kill_marked`]: crate::supervisor::reap::kill_marked
    pub fn known(&self) -> Vec<ProcId> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells it to leave and waits until it is gone and reaped; one that does not go is killed. It killed what was left
    /// of the server before: exit code 0 means that nothing is left.
    pub async fn quit(self) -> ExitHow {
        self.order(&Order::Quit);
        self.join(TIME_TO_QUIT).await
    }

    /// Kills a keeper that does not answer any more and reaps it. Its processes are then the guard's, see
    /// [`Self::known`].
    pub async fn abandon(self) -> ExitHow {
        self.shared.leaving.store(true, Ordering::Relaxed);
        self.join(Duration::ZERO).await
    }

    async fn join(mut self, patience: Duration) -> ExitHow {
        if let Ok(ended) = tokio::time::timeout(patience, &mut self.reader).await {
            return ended.unwrap_or(ExitHow::Unknown);
        }
        drop(os::signal(self.proc, os::SIGKILL));
        self.reader.await.unwrap_or(ExitHow::Unknown)
    }
}

async fn write_orders(mut socket: OwnedWriteHalf, mut orders: UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = orders.recv().await {
        // A broken socket is noticed by the reader, which reports it.
        if socket.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read_reports(
    mut socket: OwnedReadHalf,
    child: Child,
    proc: ProcId,
    shared: Arc<Shared>,
    facts: UnboundedSender<EventKind>,
) -> ExitHow {
    let mut buffer = Vec::new();
    let closed = loop {
        match socket.read_buf(&mut buffer).await {
            Ok(0) => break "it closed its socket".to_owned(),
            Ok(_) => {
                for line in wire::take_lines(&mut buffer) {
                    let kind = serde_json::from_slice(&line).unwrap_or_else(|error| EventKind::Trouble {
                        what: "read a report of the keeper".to_owned(),
                        error: error.to_string(),
                    });
                    remember(&shared.known, &kind);
                    drop(facts.send(kind));
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    let how = wait(child, proc).await;
    if !shared.leaving.load(Ordering::Relaxed) {
        let how = match how {
            ExitHow::Unknown => closed,
            how => how.to_string(),
        };
        drop(facts.send(EventKind::KeeperLost { how }));
    }
    how
}

fn remember(known: &Mutex<Vec<ProcId>>, kind: &EventKind) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    match kind {
        EventKind::ServerSpawned { proc, .. } | EventKind::ProcessSeen { proc, .. }
            if !known.contains(proc) =>
        {
            known.push(*proc);
        }
        EventKind::ProcessExited { proc, .. } => known.retain(|other| other != proc),
        _ => {}
    }
}

/// Reaps the keeper, whose socket is closed. Polled: a blocking wait would need a thread that may never return.
async fn wait(mut child: Child, proc: ProcId) -> ExitHow {
    let mut waited = Duration::ZERO;
    let step = Duration::from_millis(10);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return decode(status),
            Ok(None) => {}
            Err(_) => return ExitHow::Unknown,
        }
        if waited == TIME_TO_DIE {
            drop(os::signal(proc, os::SIGKILL));
        }
        waited += step;
        tokio::time::sleep(step).await;
    }
}

fn decode(status: ExitStatus) -> ExitHow {
    os::decode_status(status.into_raw())
}
