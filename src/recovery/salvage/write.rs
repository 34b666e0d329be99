//! Puts an output on the disk whole or not at all: written beside its place under a name of its own, synced, renamed.
//! What a killed salvage leaves behind is swept by the next one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// An output that has not got its name yet. Dropped before [`Pending::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Pending {
    file: File,
    part: Option<PathBuf>,
    target: PathBuf,
}

fn part_prefix(target: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".");
    name
}

/// Removes what a killed salvage of the same target left. Whoever still writes holds a lock on it.
fn sweep(target: &Path) {
    let (Some(folder), prefix) = (target.parent(), part_prefix(target)) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let bytes = name.as_encoded_bytes();
        if !bytes.starts_with(prefix.as_encoded_bytes()) || !bytes.ends_with(b".part") {
            continue;
        }
        if File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            // Best effort: a leftover that stays is only untidy.
            let _ = fs::remove_file(entry.path());
        }
    }
}

impl Pending {
    /// Begins an output for `target`, whose folder is made if it is missing.
    pub fn create(target: &Path) -> io::Result<Self> {
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            fs::create_dir_all(folder)?;
        }
        sweep(target);
        let mut name = part_prefix(target);
        name.push(format!("{}.part", std::process::id()));
        let part = target.with_file_name(name);
        let file = File::create(&part)?;
        // A file system without locks only loses the sweep's protection, not the output.
        let _ = file.try_lock();
        Ok(Self { file, part: Some(part), target: target.to_owned() })
    }

    /// Makes the output durable and gives it its name. An earlier file of that name is replaced in one step; with
    /// `keep` it stays reachable under that name.
    pub fn commit(mut self, keep: Option<&Path>) -> io::Result<()> {
        self.file.flush()?;
        self.file.sync_all()?;
        if let Some(keep) = keep
            && self.target.exists()
        {
            fs::hard_link(&self.target, keep)?;
        }
        if let Some(part) = self.part.take()
            && let Err(error) = fs::rename(&part, &self.target)
        {
            self.part = Some(part);
            return Err(error);
        }
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        // The rename itself must survive a power loss too.
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(part) = &self.part {
            // Nothing can be done about a failure here; the next salvage sweeps it.
            let _ = fs::remove_file(part);
        }
    }
}
