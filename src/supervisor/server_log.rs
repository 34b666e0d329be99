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
    let mut hearing = Hearing { length: length(), waited: Duration::ZERO };
    while of.iter().any(|(id, _)| proc::is_alive(*id)) {
        tokio::time::sleep(QUIET).await;
        if hearing.is_over(length()) {
            return;
        }
    }
}

/// How the log has grown while its last words are waited for.
struct Hearing {
    length: Option<u64>,
    waited: Duration,
}

impl Hearing {
    /// After a pause of [`QUIET`], with the length of the log now: whether no further one is waited for.
    fn is_over(&mut self, length: Option<u64>) -> bool {
        let before = std::mem::replace(&mut self.length, length);
        self.waited += QUIET;
        length == before || self.waited >= LAST_WORDS
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn hearing(length: Option<u64>) -> Hearing {
        Hearing { length, waited: Duration::ZERO }
    }

    #[test]
    fn last_words_are_waited_for_until_the_log_is_quiet() {
        let mut hearing = hearing(None);
        assert!(!hearing.is_over(Some(0)), "it was made just now");
        assert!(!hearing.is_over(Some(70)));
        assert!(hearing.is_over(Some(70)));
    }

    #[test]
    fn a_server_that_has_nothing_to_say_is_waited_for_once() {
        assert!(hearing(Some(70)).is_over(Some(70)));
        assert!(hearing(None).is_over(None), "its log is gone");
    }

    #[test]
    fn a_flood_is_not_waited_for_longer_than_last_words_may_take() {
        let mut hearing = hearing(Some(0));
        let pauses = (1..=100).find(|length| hearing.is_over(Some(*length))).unwrap();
        assert_eq!(QUIET.saturating_mul(u32::try_from(pauses).unwrap()), LAST_WORDS);
    }

    #[test]
    fn the_dead_are_not_waited_for() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = proc::id(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        // Without a timer, so that any pause is a panic.
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(last_words(Path::new("/"), &[(dead, "true".to_owned())]));
    }
}
