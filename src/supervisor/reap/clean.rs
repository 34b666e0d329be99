//! What dead processes leave in the file system: the private temporary folder and shared memory.

use crate::event::Leftover;
use crate::supervisor::keeper::KeeperSpec;
use crate::supervisor::{os, proc};
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where POSIX shared memory and semaphores have their names.
const SHM: &str = "/dev/shm";

/// How names begin that Python's multiprocessing, vLLM and NCCL give to shared memory.
const SHM_PREFIXES: [&str; 6] =
    ["psm_", "sem.mp-", "VLLM_OBJECT_STORAGE_SHM_BUFFER_", "nccl-", "vllm_offload_", "vllm_ec_"];

/// Every name in `/dev/shm`, sorted: to be remembered before an attempt, so that nothing of others is removed after.
pub fn shm_names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(SHM) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Makes the private temporary folder of an attempt, with a short path (a socket's path may have 107 bytes, and vLLM
/// puts sockets with names of 36 there), readable by nobody else.
pub fn make_scratch(base: &Path) -> io::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let private = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new().prefix("vg-").permissions(private).tempdir_in(base).map(tempfile::TempDir::keep)
}

/// The same in the usual place for temporary files, or in /tmp if that has a long name.
pub fn make_scratch_somewhere() -> Result<PathBuf, String> {
    let temp = std::env::temp_dir();
    let base = if temp.as_os_str().len() > 40 { Path::new("/tmp") } else { temp.as_path() };
    make_scratch(base).map_err(|error| format!("cannot make a private folder in {}: {error}", base.display()))
}

/// In the scratch folder: to whom it belongs, for whoever finds it when all who knew it are dead.
const OWNER: &str = ".owner";

/// Takes a share in the folder's lock, so that it is not taken for abandoned as long as the returned file, or the
/// keeper's own share, is held, and leaves word in it.
pub fn own_scratch(spec: &KeeperSpec) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let hold = os::share_lock_of_folder(&spec.scratch)?;
    let text = serde_json::to_vec(&KeeperSpec { secrets: Vec::new(), ..spec.clone() })?;
    let mut owner =
        File::options().write(true).create_new(true).mode(0o600).open(spec.scratch.join(OWNER))?;
    owner.write_all(&text)?;
    Ok(hold)
}

/// What [`own_scratch`] left there.
pub(super) fn owner_of(scratch: &Path) -> Option<KeeperSpec> {
    serde_json::from_slice(&fs::read(scratch.join(OWNER)).ok()?).ok()
}

/// How names begin in the scratch folder that are no evidence: a compiler's cache, which can be large, and the file by
/// which vLLM's workers find each other.
const NOT_SAVED: [&str; 2] = ["torchinductor_", "vllm_dist_"];

/// In the scratch folder: names in `/dev/shm` that processes of the attempt were seen to use, one a line.
const SEEN: &str = ".shm-of-ours";

/// Writes down which shared memory these processes of ours use, for [`clean`], which comes when they are dead.
pub(crate) fn note_shm(scratch: &Path, pids: impl Iterator<Item = i32>) -> io::Result<()> {
    let mut names = read_noted(scratch);
    let before = names.len();
    for pid in pids {
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        let maps = String::from_utf8_lossy(&maps);
        let used = maps.lines().filter_map(|line| Some(line.split_once("/dev/shm/")?.1));
        // Already unlinked ones show ` (deleted)` after the name and are no concern any more.
        names.extend(used.filter(|name| !name.ends_with(" (deleted)")).map(str::to_owned));
    }
    if names.len() == before {
        return Ok(());
    }
    fs::write(scratch.join(SEEN), names.into_iter().collect::<Vec<_>>().join("\n"))
}

fn read_noted(scratch: &Path) -> BTreeSet<String> {
    fs::read_to_string(scratch.join(SEEN)).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Whether every process of this machine is in our `/proc`. In a container it is not, but `/dev/shm` may be shared
/// with the host and its other containers (`--ipc=host`, as vLLM is often run).
fn sees_everybody() -> bool {
    /// The kernel's fixed number of the first pid namespace.
    const FIRST: &str = "pid:[4026531836]";
    fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(FIRST))
}

/// Cleans up when no process of the attempt is left: saves regular files of `scratch` (vLLM's profiler leaves
/// unfinished traces there) to `save_to`, removes `scratch` with its sockets, and removes shared memory that is new
/// since `shm_before`, ours, named like vLLM's, and used by no living process. In a container, which does not show
/// everybody who may use it, it must also have been seen in use by the attempt. Says what it removed and what it could
/// not.
pub fn clean(scratch: &Path, save_to: &Path, shm_before: &[String]) -> (Vec<String>, Vec<Leftover>) {
    let mut removed = Vec::new();
    let mut leftovers = Vec::new();
    let noted = read_noted(scratch);
    let may_go = |name: &str| sees_everybody() || noted.contains(name);
    clean_scratch(scratch, save_to, &mut removed, &mut leftovers);
    clean_shm(shm_before, &may_go, &mut removed, &mut leftovers);
    (removed, leftovers)
}

fn clean_scratch(scratch: &Path, save_to: &Path, removed: &mut Vec<String>, leftovers: &mut Vec<Leftover>) {
    let meta = match fs::symlink_metadata(scratch) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return leftovers.push(stuck(scratch, &error)),
    };
    if let Some(why) = not_ours(scratch, &meta) {
        return leftovers.push(Leftover::File { path: scratch.to_owned(), why });
    }
    let stuck_before = leftovers.len();
    save_files(scratch, scratch, save_to, removed, leftovers);
    // A file that could not be saved is the only copy: then the folder stays.
    if leftovers.len() == stuck_before {
        match fs::remove_dir_all(scratch) {
            Ok(()) => removed.push(scratch.display().to_string()),
            Err(error) => leftovers.push(stuck(scratch, &error)),
        }
    }
}

/// A wrong path here would delete somebody's home, so three things must agree.
fn not_ours(scratch: &Path, meta: &Metadata) -> Option<String> {
    let named_so = scratch.is_absolute()
        && scratch.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vg-"));
    if !named_so {
        Some("not removed: its name does not begin with `vg-`".to_owned())
    } else if !meta.is_dir() {
        Some("not removed: it is not a folder".to_owned())
    } else if meta.uid() != os::own_uid() {
        Some(format!("not removed: it belongs to user {}", meta.uid()))
    } else {
        None
    }
}

fn save_files(
    root: &Path,
    folder: &Path,
    save_to: &Path,
    removed: &mut Vec<String>,
    leftovers: &mut Vec<Leftover>,
) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return leftovers.push(stuck(folder, &error)),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // Of the entry itself, not of what a link points to.
        let Ok(kind) = entry.file_type() else { continue };
        let name = entry.file_name();
        if name == SEEN
            || name == OWNER
            || NOT_SAVED.iter().any(|start| name.to_string_lossy().starts_with(start))
        {
            continue;
        }
        if kind.is_dir() {
            save_files(root, &path, save_to, removed, leftovers);
        } else if kind.is_file() {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            if let Err(error) = move_file(&path, &save_to.join(relative)) {
                leftovers.push(stuck(&path, &error));
            }
        } else {
            removed.push(path.display().to_string());
        }
    }
}

/// Moves a file, across file systems too, without overwriting anything.
fn move_file(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    let to = free_name(to);
    if fs::rename(from, &to).is_ok() {
        return Ok(());
    }
    if let Err(error) = fs::copy(from, &to) {
        // Half a copy would pass for the whole. The original is still there.
        drop(fs::remove_file(&to));
        return Err(error);
    }
    fs::remove_file(from)
}

fn free_name(wanted: &Path) -> PathBuf {
    let taken = |path: &Path| fs::symlink_metadata(path).is_ok();
    let numbered = (1..).map(|number| {
        let mut name = wanted.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    });
    std::iter::once(wanted.to_owned())
        .chain(numbered)
        .find(|path| !taken(path))
        .unwrap_or_else(|| wanted.to_owned())
}

fn clean_shm(
    before: &[String],
    may_go: &dyn Fn(&str) -> bool,
    removed: &mut Vec<String>,
    leftovers: &mut Vec<Leftover>,
) {
    let ours =
        |name: &String| SHM_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name.contains("cpushm");
    let candidates: Vec<(PathBuf, Metadata)> = shm_names()
        .into_iter()
        .filter(|name| ours(name) && !before.contains(name) && may_go(name))
        .map(|name| Path::new(SHM).join(name))
        .filter_map(|path| fs::symlink_metadata(&path).ok().map(|meta| (path, meta)))
        .filter(|(_, meta)| meta.is_file() && meta.uid() == os::own_uid())
        .collect();
    if candidates.is_empty() {
        return;
    }
    let used = used_inodes(candidates.iter().map(|(_, meta)| (meta.dev(), meta.ino())).collect());
    for (path, meta) in candidates {
        if used.contains(&(meta.dev(), meta.ino())) {
            continue;
        }
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path.display().to_string()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => leftovers.push(stuck(&path, &error)),
        }
    }
}

/// Which of these inodes some living process has mapped or open. By inode and not by name: another mount namespace
/// shows another path.
fn used_inodes(wanted: BTreeSet<(u64, u64)>) -> BTreeSet<(u64, u64)> {
    let mut used = BTreeSet::new();
    for pid in proc::pids() {
        // Of a process that we may not look into, we learn nothing; it runs as another user, and these are 0600.
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        used.extend(
            String::from_utf8_lossy(&maps).lines().filter_map(mapped_inode).filter(|i| wanted.contains(i)),
        );
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for meta in open.flatten().filter_map(|entry| fs::metadata(entry.path()).ok()) {
            let inode = (meta.dev(), meta.ino());
            if wanted.contains(&inode) {
                used.insert(inode);
            }
        }
    }
    used
}

/// Device and inode in a line of `/proc/PID/maps`: `begin-end perms offset major:minor inode path`.
fn mapped_inode(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = os::device(u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    Some((device, fields.next()?.parse().ok()?))
}

fn stuck(path: &Path, error: &io::Error) -> Leftover {
    Leftover::File { path: path.to_owned(), why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_container_only_what_was_seen_in_use_by_us_is_removed() {
        let own = std::process::id();
        let names = [format!("psm_vgseen{own}"), format!("psm_vgforeign{own}")];
        let paths = names.clone().map(|name| Path::new(SHM).join(name));
        for path in &paths {
            fs::write(path, "x").unwrap();
        }
        let before: Vec<String> = shm_names().into_iter().filter(|name| !names.contains(name)).collect();
        let mut removed = Vec::new();
        let mut leftovers = Vec::new();
        clean_shm(&before, &|name| name == names[0], &mut removed, &mut leftovers);
        let there = paths.clone().map(|path| path.exists());
        drop(fs::remove_file(&paths[1]));
        assert_eq!(there, [false, true]);
        assert_eq!((removed, leftovers), (vec![paths[0].display().to_string()], vec![]));
    }

    #[test]
    fn a_line_of_maps_gives_device_and_inode() {
        let line =
            "7f0000000000-7f0000001000 rw-s 00000000 00:1a 4711                       /dev/shm/psm_x y";
        assert_eq!(mapped_inode(line), Some((os::device(0, 0x1a), 4711)));
        assert_eq!(mapped_inode("7f00-7f01 rw-p 0 zz"), None);
    }
}
