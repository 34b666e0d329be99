//! How full the disk is and how fast a folder grows.
//!
//! A folder on a dead network mount blocks whoever looks at it for ever, so the async entrances look from a thread
//! that may be lost and wait only so long.

use crate::event::Reading;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A folder with more entries is not counted to its end: counting must never become the load.
pub const MAX_ENTRIES: u64 = 200_000;

/// Room on the filesystem that holds a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bytes an ordinary user may still write.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// Files that may still be created; `None` where the filesystem has no such limit.
    pub free_files: Option<u64>,
}

/// What lies in a folder, its subfolders included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FolderSize {
    /// Regular files.
    pub files: u64,
    /// Sum of their lengths.
    pub bytes: u64,
    /// Whether counting stopped at [`MAX_ENTRIES`] or at something unreadable: both numbers are then lower bounds.
    pub partial: bool,
}

/// Room on the filesystem of `path`. The path need not exist yet: its nearest existing parent is asked.
pub fn space(path: &Path) -> std::io::Result<Space> {
    let existing = path.ancestors().find(|parent| parent.exists()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(existing).map_err(std::io::Error::from)?;
    let unit = stat.fragment_size();
    Ok(Space {
        free: stat.blocks_available().saturating_mul(unit),
        total: stat.blocks().saturating_mul(unit),
        free_files: (stat.files() > 0).then(|| stat.files_available()),
    })
}

/// Length of a file; of a log that has a hole in it, what it takes. Only of a log: file systems that compress, or that tell
/// late how many blocks a file has, would hide that a trace grows.
fn taken(path: &Path, metadata: &Metadata) -> u64 {
    let is_log = path.extension().is_some_and(|extension| extension == "log");
    if is_log { metadata.len().min(metadata.blocks() * 512) } else { metadata.len() }
}

/// Adds up a folder, or one file. One that does not exist is empty; symbolic links are not followed; a file that vanishes meanwhile
/// is not counted.
pub fn folder_size(folder: &Path) -> FolderSize {
    let mut size = FolderSize::default();
    let mut seen = 0;
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // A file was given, not a folder.
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                let length = std::fs::metadata(&folder).map_or(0, |metadata| taken(&folder, &metadata));
                size.files += 1;
                size.bytes = size.bytes.saturating_add(length);
                continue;
            }
            Err(error) => {
                size.partial |= error.kind() != std::io::ErrorKind::NotFound;
                continue;
            }
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > MAX_ENTRIES {
                size.partial = true;
                return size;
            }
            // Does not follow a link.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                todo.push(entry.path());
            } else if metadata.is_file() {
                size.files += 1;
                size.bytes = size.bytes.saturating_add(taken(&entry.path(), &metadata));
            }
        }
    }
    size
}

/// [`space`] for a task that must not stall.
pub async fn space_within(path: PathBuf, deadline: Duration) -> Reading<Space> {
    let shown = path.display().to_string();
    match within(deadline, move || space(&path)).await {
        Some(Ok(space)) => Reading::Value(space),
        Some(Err(error)) => Reading::Unavailable { why: format!("statvfs {shown}: {error}") },
        None => Reading::Unavailable { why: format!("statvfs {shown}: no answer within {deadline:?}") },
    }
}

/// [`folder_size`] for a task that must not stall.
pub async fn folder_size_within(folder: PathBuf, deadline: Duration) -> Reading<FolderSize> {
    let shown = folder.display().to_string();
    match within(deadline, move || folder_size(&folder)).await {
        Some(size) => Reading::Value(size),
        None => Reading::Unavailable { why: format!("read folder {shown}: no answer within {deadline:?}") },
    }
}

/// Runs `work` on a thread of its own and stops waiting after `deadline`; a thread that never returns is lost, which
/// tokio's pool of blocking threads would wait for at its end.
async fn within<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("disk".to_owned()).spawn(move || drop(tell.send(work()))).ok()?;
    tokio::time::timeout(deadline, told).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_added_up_with_its_subfolders_and_without_what_links_point_to() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("big"), vec![0; 1000]).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("a"), b"12345").unwrap();
        std::fs::write(dir.path().join("sub/b"), b"123").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink(other.path().join("big"), dir.path().join("link2")).unwrap();
        assert_eq!(folder_size(dir.path()), FolderSize { files: 2, bytes: 8, partial: false });
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_is_empty_and_its_filesystem_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let later = dir.path().join("later/traces");
        assert_eq!(folder_size(&later), FolderSize::default());
        let (there, later) = (space(dir.path()).unwrap(), space(&later).unwrap());
        assert_eq!(there.total, later.total);
        assert!(there.total > 0 && there.free <= there.total);
    }

    #[tokio::test]
    async fn a_disk_that_never_answers_is_a_finding_and_no_stall() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let answer = within(Duration::from_millis(20), move || held.recv()).await;
        assert!(answer.is_none());
        drop(release);
    }

    #[tokio::test]
    async fn an_answer_in_time_is_a_value() {
        let dir = tempfile::tempdir().unwrap();
        let reading = space_within(dir.path().to_owned(), Duration::from_secs(30)).await;
        assert!(reading.value().is_some_and(|space| space.total > 0));
        let size = folder_size_within(dir.path().to_owned(), Duration::from_secs(30)).await;
        assert_eq!(size, Reading::Value(FolderSize::default()));
    }
}
