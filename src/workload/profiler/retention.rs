//! Which windows give way when there is no room for all of them. Pure.
//!
//! What is kept to the last: the newest, because it may show what comes before a failure; the one under the largest
//! load; and the first of each phase, which has the warm-up in it. Of the others the oldest go first.

use std::collections::{BTreeMap, BTreeSet};

/// A window, all its ranks together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Phase of the run in which it closed.
    pub phase: String,
    /// Tokens of its steps, where the worker tells; otherwise its steps.
    pub load: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The windows to remove so that the rest fits into `room`, or comes as near to it as may be.
pub fn give_way(windows: &BTreeMap<u32, Kept>, room: u64) -> Vec<u32> {
    let mut protected: BTreeSet<u32> = windows.keys().next_back().copied().into_iter().collect();
    // Of several with the same load the first one.
    let busiest = windows.iter().max_by_key(|(number, kept)| (kept.load, std::cmp::Reverse(**number)));
    protected.extend(busiest.map(|(number, _)| *number));
    let mut phases = BTreeSet::new();
    protected.extend(
        windows.iter().filter(|(_, kept)| phases.insert(kept.phase.as_str())).map(|(number, _)| *number),
    );
    let mut total: u64 = windows.values().map(|kept| kept.bytes).sum();
    let mut out = Vec::new();
    for (number, kept) in windows.iter().filter(|(number, _)| !protected.contains(number)) {
        if total <= room {
            break;
        }
        total = total.saturating_sub(kept.bytes);
        out.push(*number);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn windows(list: &[(&str, u64)]) -> BTreeMap<u32, Kept> {
        let kept = |(phase, load): &(&str, u64)| Kept { phase: (*phase).to_owned(), load: *load, bytes: 10 };
        (0..).zip(list.iter().map(kept)).collect()
    }

    #[test]
    fn the_oldest_go_first_and_the_telling_ones_never() {
        let all = windows(&[
            ("warm-up", 1),
            ("warm-up", 1),
            ("measuring", 5),
            ("measuring", 6),
            ("measuring", 99),
            ("measuring", 7),
            ("measuring", 8),
        ]);
        assert_eq!(give_way(&all, 70), Vec::<u32>::new());
        assert_eq!(give_way(&all, 60), [1]);
        assert_eq!(
            give_way(&all, 0),
            [1, 3, 5],
            "0 and 2 begin a phase, 4 has the largest load, 6 is the newest"
        );
    }

    proptest! {
        #[test]
        fn no_more_goes_than_must(
            list in proptest::collection::vec(("[ab]", 0..9_u64, 0..100_u64), 0..40), room in 0..3000_u64
        ) {
            let all: BTreeMap<u32, Kept> =
                (0..).zip(list.into_iter().map(|(phase, load, bytes)| Kept { phase, load, bytes })).collect();
            let gone = give_way(&all, room);
            let total = |without: &[u32]| -> u64 {
                all.iter().filter(|(n, _)| !without.contains(n)).map(|(_, kept)| kept.bytes).sum()
            };
            if let Some((_, but_last)) = gone.split_last() {
                prop_assert!(total(but_last) > room);
            }
            prop_assert!(all.keys().next_back().is_none_or(|newest| !gone.contains(newest)));
            prop_assert!(total(&gone) <= room || all.len() - gone.len() <= 4);
        }
    }
}
