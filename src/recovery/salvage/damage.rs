//! What a walk found wrong.
//!
//! Pure.

/// What was wrong, in counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Damage {
    /// Offset of the first byte that is not as it should be.
    pub first: Option<u64>,
    /// Offset of the first byte that is wrong and could not be mended.
    pub broken: Option<u64>,
    /// Events and entries that were mended.
    pub mended: u64,
    /// Missing or surplus commas.
    pub commas: u64,
    /// Bytes that belong to nothing that was kept.
    pub lost_bytes: u64,
    /// Events of which something was there but that could not be kept.
    pub lost_events: u64,
    /// Entries of the document that could not be kept.
    pub lost_entries: u64,
}
