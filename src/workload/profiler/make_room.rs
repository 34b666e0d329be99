//! Makes room in the trace folder of an attempt that is over, by the same rule by which windows give way to each other while
//! they are recorded ([`super::retention`]).

use super::listing::{LISTING, Listing};
use super::retention::{Kept, give_way};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

/// Removes windows until `bytes` are free, or none may go any more; says which files went and how much they took. The
/// folder's `index.json` then says so too; a folder without one is left alone.
pub fn make_room(traces: &Path, bytes: u64) -> io::Result<(Vec<String>, u64)> {
    let path = traces.join(LISTING);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let mut listing: Listing = serde_json::from_slice(&text)?;
    let mut windows: BTreeMap<u32, Kept> = BTreeMap::new();
    for listed in listing.windows.iter().filter(|listed| listed.file.is_some()) {
        let tokens = listed.prefill_tokens.unwrap_or(0) + listed.decode_tokens.unwrap_or(0);
        let steps = listed.last_step.unwrap_or(0).saturating_sub(listed.first_step.unwrap_or(0));
        let kept = windows.entry(listed.window).or_default();
        kept.phase = listed.phase.clone().unwrap_or_default();
        kept.load = kept.load.max(tokens.max(steps));
        kept.bytes += listed.bytes.unwrap_or(0);
    }
    let all: u64 = windows.values().map(|kept| kept.bytes).sum();
    let gone: BTreeSet<u32> = give_way(&windows, all.saturating_sub(bytes)).into_iter().collect();
    let (mut files, mut freed) = (Vec::new(), 0);
    for listed in listing.windows.iter_mut().filter(|listed| gone.contains(&listed.window)) {
        // A name that leads elsewhere was not written by us.
        let Some(file) = listed.file.take_if(|file| !file.contains('/')) else { continue };
        match fs::remove_file(traces.join(&file)) {
            Ok(()) => freed += listed.bytes.unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        listed.state = "removed".to_owned();
        files.push(file);
    }
    if !files.is_empty() {
        let unfinished = traces.join(format!(".{LISTING}.tmp"));
        fs::write(&unfinished, serde_json::to_vec_pretty(&listing)?)?;
        fs::rename(&unfinished, &path)?;
    }
    Ok((files, freed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::profiler::listing::{LISTING_SCHEMA, Listed};

    fn folder(sizes: &[usize]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let listed = |(window, size): (u32, &usize)| {
            let file = format!("window-{window}.pt.trace.json.gz");
            fs::write(dir.path().join(&file), vec![0; *size]).unwrap();
            Listed {
                window,
                state: "complete".to_owned(),
                file: Some(file),
                phase: Some("measuring".to_owned()),
                decode_tokens: Some(if window == 3 { 99 } else { 1 }),
                bytes: Some(*size as u64),
                ..Listed::default()
            }
        };
        let listing = Listing {
            schema: LISTING_SCHEMA,
            run: "r".to_owned(),
            attempt: 1,
            taken: BTreeMap::new(),
            windows: (1..).zip(sizes).map(listed).collect(),
            remarks: Vec::new(),
        };
        fs::write(dir.path().join(LISTING), serde_json::to_vec(&listing).unwrap()).unwrap();
        dir
    }

    fn left(dir: &Path) -> Vec<u32> {
        let listing: Listing = serde_json::from_slice(&fs::read(dir.join(LISTING)).unwrap()).unwrap();
        let complete = listing.windows.iter().filter(|listed| listed.file.is_some());
        let complete: Vec<u32> = complete.map(|listed| listed.window).collect();
        for listed in &listing.windows {
            let is_there = dir.join(format!("window-{}.pt.trace.json.gz", listed.window)).exists();
            assert_eq!((is_there, listed.state == "removed"), (listed.file.is_some(), listed.file.is_none()));
        }
        complete
    }

    #[test]
    fn the_first_the_busiest_and_the_newest_stay_and_no_more_goes_than_must() {
        let dir = folder(&[100; 6]);
        assert_eq!(make_room(dir.path(), 0).unwrap(), (Vec::new(), 0));
        assert_eq!(left(dir.path()), [1, 2, 3, 4, 5, 6]);
        assert_eq!(make_room(dir.path(), 150).unwrap().1, 200);
        assert_eq!(left(dir.path()), [1, 3, 5, 6]);
        assert_eq!(make_room(dir.path(), 10_000).unwrap().1, 100);
        assert_eq!(left(dir.path()), [1, 3, 6]);
        assert_eq!(make_room(dir.path(), 10_000).unwrap().1, 0);
    }

    #[test]
    fn a_folder_without_an_index_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("window-1.pt.trace.json.gz"), "x").unwrap();
        assert_eq!(make_room(dir.path(), 1000).unwrap(), (Vec::new(), 0));
        assert!(dir.path().join("window-1.pt.trace.json.gz").exists());
    }
}
