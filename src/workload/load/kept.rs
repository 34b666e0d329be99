//! A result file whose room is taken before the benchmark begins: what an hour has measured must not be lost because
//! something filled the disk meanwhile. An edge.

use nix::fcntl::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// More than any of these files becomes.
const ROOM: i64 = 512 << 10;

/// See the module. Until [`Self::write`] it has another name.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    partial: PathBuf,
    file: File,
}

impl Kept {
    /// Takes the room. Where the file system cannot, nothing is taken, but a full one is told now.
    pub(super) fn start(path: &Path) -> Result<Self, String> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let error = |error: io::Error| format!("make {}: {error}", partial.display());
        let file = File::create(&partial).map_err(error)?;
        match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, ROOM).map_err(io::Error::from) {
            Err(full) if matches!(full.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                drop(std::fs::remove_file(&partial));
                Err(error(full))
            }
            _ => Ok(Self { path: path.to_owned(), partial, file }),
        }
    }

    /// Writes the whole file and gives it its name when it is complete and durable.
    pub(super) fn write(mut self, text: &str) -> Result<(), String> {
        self.finish(text).map_err(|error| format!("write {}: {error}", self.path.display()))
    }

    fn finish(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all(text.as_bytes())?;
        let length = i64::try_from(text.len()).map_err(io::Error::other)?;
        if length < ROOM {
            let flags = FallocateFlags::FALLOC_FL_KEEP_SIZE | FallocateFlags::FALLOC_FL_PUNCH_HOLE;
            // What is not given back costs room and nothing else.
            let _ = fallocate(&self.file, flags, length, ROOM - length);
        }
        self.file.sync_all()?;
        std::fs::rename(&self.partial, &self.path)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // After `write` there is none.
        drop(std::fs::remove_file(&self.partial));
    }
}
