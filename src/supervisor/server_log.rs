//! The server's log while an attempt lives: it is read as it grows, and kept from filling the disk.

use super::layout::AttemptDir;
use super::log_limit::LogLimit;
use super::performer::Run;
use super::proc;
use crate::event::{EventKind, Phase, ProcId};
use crate::health::log_watch::LogWatch;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc::UnboundedSender, watch};

/// A disk that yields nothing for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of the log may take to be read in all: what is not read cannot be judged.
const LONGEST: Duration = Duration::from_secs(20);

/// Who dies writes a traceback in one go; a log that is quiet for so long has its last words.
const QUIET: Duration = Duration::from_millis(250);

/// They are not waited for longer: a log may be flooded.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Waits until these processes have said what they die of: the line that shows that something is wrong often comes before
/// the one that says what, and whoever is killed between the two says nothing more.
pub(super) async fn last_words(log: &Path, of: &[(ProcId, String)]) {
    let length = || std::fs::metadata(log).map(|meta| meta.len()).ok();
    let quiet = async {
        let mut before = length();
        while of.iter().any(|(id, _)| proc::is_alive(*id)) {
            tokio::time::sleep(QUIET).await;
            let now = length();
            if now == before {
                return;
            }
            before = now;
        }
    };
    drop(tokio::time::timeout(LAST_WORDS, quiet).await);
}

/// Both end when this is dropped.
pub(super) struct ServerLog {
    watch: Option<LogWatch>,
    limit: Option<LogLimit>,
}

impl ServerLog {
    /// What cannot be started is told; the attempt goes on without it.
    pub(super) fn start(
        dir: &AttemptDir,
        run: &Run,
        phase: watch::Receiver<Phase>,
        facts: &UnboundedSender<EventKind>,
    ) -> Self {
        let trouble = |what: &str, error: std::io::Error| {
            drop(facts.send(EventKind::Trouble { what: what.to_owned(), error: error.to_string() }));
        };
        let watch = LogWatch::spawn(dir.server_log(), &run.rules, phase, facts.clone())
            .map_err(|error| trouble("watch the server's log", error))
            .ok();
        let limit = run.plan.disk.as_ref().and_then(|disk| disk.max_log).and_then(|limit| {
            LogLimit::start(dir.server_log(), limit, watch.as_ref(), Arc::clone(&run.redactor), facts.clone())
                .map_err(|error| trouble("limit the server's log", error))
                .ok()
        });
        Self { watch, limit }
    }

    /// Nobody writes any more: what is left is read, and the file left alone from then on.
    pub(super) async fn finish(self) {
        let Self { watch, limit } = self;
        if let Some(watch) = &watch {
            drop(tokio::time::timeout(LONGEST, read_to_its_end(watch)).await);
        }
        if let Some(limit) = limit {
            // A disk that does not answer must not hold up the end.
            let over = tokio::task::spawn_blocking(move || limit.finish());
            drop(tokio::time::timeout(PATIENCE, over).await);
        }
    }
}

/// Returns when everything is read, or when nothing more comes.
async fn read_to_its_end(watch: &LogWatch) {
    let read = watch.drain();
    tokio::pin!(read);
    loop {
        let before = watch.bytes();
        if tokio::time::timeout(PATIENCE, &mut read).await.is_ok() || watch.bytes() == before {
            return;
        }
    }
}
