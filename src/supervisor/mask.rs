//! Overwrites secrets in files that others wrote: the server writes its own log, so what it says of keys and tokens can
//! only be taken out afterwards. In place and with as many bytes, so that no offset changes; before that, the folder in
//! which they lie is readable by its owner only.

use crate::redact::Redactor;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Read at once.
const CHUNK: usize = 1 << 20;
/// No secret is longer.
const OVERLAP: usize = 8 << 10;

/// Masks every text file below a folder; traces are not looked into, they hold names of functions and numbers. Says what
/// could not be done.
pub fn mask_folder(folder: &Path, redactor: &Redactor) -> Vec<String> {
    let mut problems = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            // Of the entry itself, not of what a link points to.
            let Ok(kind) = entry.file_type() else { continue };
            let name = name.to_string_lossy();
            if kind.is_dir() && name != "python" {
                folders.push(path);
            } else if kind.is_file()
                && !name.contains(".pt.trace.json")
                && !name.ends_with(".gz")
                && let Err(error) = mask_file(&path, redactor)
            {
                problems.push(format!("look for secrets in {}: {error}", path.display()));
            }
        }
    }
    problems
}

fn mask_file(path: &Path, redactor: &Redactor) -> io::Result<()> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut at = 0;
    let mut chunk = vec![0; CHUNK + OVERLAP];
    loop {
        let length = read_full(&file, &mut chunk, at)?;
        for span in redactor.spans(&chunk[..length]) {
            let stars = vec![b'*'; span.len()];
            file.write_all_at(&stars, at + span.start as u64)?;
        }
        if length < chunk.len() {
            return Ok(());
        }
        at += CHUNK as u64;
    }
}

fn read_full(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < into.len() {
        match file.read_at(&mut into[length..], at + length as u64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_overwritten_also_where_two_reads_meet_and_nothing_moves() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let redactor = Redactor::of_values(vec!["geheimnis".to_owned()]);
        for place in [0, 17, CHUNK - 4, CHUNK, CHUNK + OVERLAP - 3, CHUNK + OVERLAP] {
            let mut text = vec![b'.'; 2 * CHUNK];
            text[place..place + 9].copy_from_slice(b"geheimnis");
            fs::write(&path, &text).unwrap();
            assert_eq!(mask_folder(dir.path(), &redactor), Vec::<String>::new());
            text[place..place + 9].copy_from_slice(b"*********");
            assert!(fs::read(&path).unwrap() == text, "at {place}");
        }
    }

    #[test]
    fn a_link_to_somebody_elses_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let other = tempfile::NamedTempFile::new().unwrap();
        fs::write(other.path(), "geheimnis").unwrap();
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        mask_folder(dir.path(), &Redactor::of_values(vec!["geheimnis".to_owned()]));
        assert_eq!(fs::read(other.path()).unwrap(), b"geheimnis");
    }
}
