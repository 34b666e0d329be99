//! What had to give way, because a disk is not endless.

use serde::{Deserialize, Serialize};

/// Lines that were taken out of the middle of the server's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCut {
    /// The first line that is missing, from 1.
    pub first: u64,
    /// The last one.
    pub last: u64,
    /// The last one that is kept beside the log; below `first` when none is.
    pub kept: u64,
    /// So many bytes are missing in the log.
    pub bytes: u64,
    /// Bytes of what is kept.
    pub piece: u64,
}

/// Windows of an earlier attempt that were removed for a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GaveWay {
    /// The earlier attempt.
    pub of: u32,
    /// Names of their files.
    pub files: Vec<String>,
    /// So much room was made.
    pub bytes: u64,
}
