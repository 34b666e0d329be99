//! Labelled failure logs and whole server logs that lie beside the checkout. Nothing of them is copied here; without them a
//! test says that it did nothing.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use serde::Deserialize;
use std::path::PathBuf;

/// A log, and what it must be taken for.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) class: String,
    pub(crate) log: String,
    pub(crate) decisive_line: String,
    pub(crate) misleading_lines: Vec<String>,
    pub(crate) outcome: String,
    pub(crate) retry_helps: String,
    pub(crate) provenance: String,
}

/// A file beside the checkout.
pub(crate) fn shared(path: &str) -> Option<PathBuf> {
    // A checkout that lies elsewhere names the folder.
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared");
    let path = std::env::var_os("VARCAS_SHARED").map_or_else(beside, PathBuf::from).join(path);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {} does not exist, nothing was checked", path.display());
    None
}

/// All labelled logs.
pub(crate) fn cases() -> Option<Vec<Case>> {
    let text = std::fs::read_to_string(shared("logs/cases.jsonl")?).unwrap();
    let cases: Vec<Case> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let retried = cases.iter().filter(|case| case.retry_helps != "no").count();
    println!("{} labelled logs; for {retried} of them a retry may help", cases.len());
    Some(cases)
}
