//! Everything that a page is made of. Pure.

use super::model::Report;
use super::series::Series;

/// Part of a file of the run folder. It is no part of `report.json`, which is made from the journal alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// The attempt that it belongs to.
    pub attempt: u32,
    /// Path below the attempt's folder.
    pub path: String,
    /// Whether it is the server's log, and not stacks.
    pub log: bool,
    /// What it says.
    pub text: String,
    /// Number of its first line in the file, from 1.
    pub first_line: u64,
    /// Number of the line that shows the cause.
    pub decisive: Option<u64>,
    /// `the last 12 kB of 3.4 MB`; empty when it is the whole file.
    pub note: String,
}

/// Everything that a page is made of.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The report.
    pub report: &'a Report,
    /// Measurements over time.
    pub series: &'a Series,
    /// What the run folder says beside the journal.
    pub files: &'a [Excerpt],
    /// Lines of the journal that could not be read.
    pub unread: &'a [String],
}
