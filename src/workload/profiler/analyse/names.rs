//! Names and what was counted under each, with a limit: the names of a trace come from anywhere.

use std::collections::HashMap;

/// Further names are counted together under [`OTHER`]. vLLM windows have some 200.
const MAX_NAMES: usize = 4096;

/// Longer names are cut: C++ templates reach kilobytes.
const MAX_NAME: usize = 1024;

/// What all names beyond the limit are counted under.
pub const OTHER: &str = "(other names)";

/// Count and time of one name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameTime {
    /// The name.
    pub name: String,
    /// Events.
    pub count: u64,
    /// Sum of their durations, in nanoseconds.
    pub total_ns: u64,
}

/// A table of [`NameTime`], each with a small number.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<Box<str>, u32>,
    rows: Vec<NameTime>,
    other: Option<u32>,
}

impl Names {
    /// Counts one event and returns the number of its name.
    pub(super) fn add(&mut self, name: &str, duration_ns: i64) -> u32 {
        let number = self.number(cut(name, MAX_NAME));
        if let Some(row) = self.rows.get_mut(number as usize) {
            row.count += 1;
            row.total_ns = row.total_ns.saturating_add(duration_ns.unsigned_abs());
        }
        number
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        if self.rows.len() >= MAX_NAMES {
            if let Some(other) = self.other {
                return other;
            }
            let number = self.push(OTHER);
            self.other = Some(number);
            return number;
        }
        let number = self.push(name);
        self.numbers.insert(name.into(), number);
        number
    }

    fn push(&mut self, name: &str) -> u32 {
        self.rows.push(NameTime { name: name.to_owned(), ..NameTime::default() });
        // At most MAX_NAMES + 1 rows.
        u32::try_from(self.rows.len() - 1).unwrap_or(u32::MAX)
    }

    /// The rows, by number.
    pub(super) fn into_rows(self) -> Vec<NameTime> {
        self.rows
    }

    /// The rows, longest time first.
    pub(super) fn sorted(self) -> Vec<NameTime> {
        let mut rows = self.rows;
        rows.sort_by(|a, b| b.total_ns.cmp(&a.total_ns).then_with(|| a.name.cmp(&b.name)));
        rows
    }
}

/// At most so many bytes, whole characters.
pub(in crate::workload::profiler) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beyond_the_limit_are_counted_together() {
        let mut names = Names::default();
        for index in 0..MAX_NAMES + 10 {
            names.add(&format!("k{index}"), 1);
        }
        names.add("k0", 5);
        let rows = names.sorted();
        assert_eq!(rows.len(), MAX_NAMES + 1);
        assert_eq!((rows[0].name.as_str(), rows[0].count, rows[0].total_ns), (OTHER, 10, 10));
        assert_eq!((rows[1].name.as_str(), rows[1].count, rows[1].total_ns), ("k0", 2, 6));
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(cut("aäb", 2), "a");
        assert_eq!(cut("aäb", 9), "aäb");
    }
}
