//! Self time: how long an operator ran itself, without the operators it called.
//!
//! Nothing in a trace says who called whom; on one thread it follows from the times. Each moment belongs to the operator that
//! began last and has not ended. That is nesting where the intervals nest, and still counts every moment once where they
//! do not (clocks are rounded, and Kineto's order is not that of time).

use super::intervals::{Interval, union};

/// One operator call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    /// Calls of different threads do not nest.
    pub(super) thread: u32,
    pub(super) name: u32,
    pub(super) start: i64,
    pub(super) duration: i64,
}

/// Self time by name, and when any of the threads was in an operator.
pub(super) fn self_times(mut calls: Vec<Call>, names: usize) -> (Vec<u64>, Vec<Interval>) {
    // Of two that begin together the longer one called the other. The sort is stable: Kineto's order decides between equals.
    calls.sort_by_key(|call| (call.thread, call.start, std::cmp::Reverse(call.duration)));
    let mut out = vec![0_u64; names];
    let mut busy: Vec<Interval> = Vec::new();
    let mut stack: Vec<Interval> = Vec::new();
    let mut owners: Vec<u32> = Vec::new();
    let mut now = i64::MIN;
    let mut thread = None;
    let mut run = |until: i64, stack: &mut Vec<Interval>, owners: &mut Vec<u32>, now: &mut i64| {
        while let (Some((_, end)), Some(owner)) = (stack.last(), owners.last()) {
            let stop = (*end).min(until);
            if stop > *now {
                if let Some(sum) = out.get_mut(*owner as usize) {
                    *sum = sum.saturating_add(stop.abs_diff(*now));
                }
                match busy.last_mut() {
                    Some(last) if last.1 == *now => last.1 = stop,
                    _ => busy.push((*now, stop)),
                }
                *now = stop;
            }
            if *end > until {
                break;
            }
            stack.pop();
            owners.pop();
        }
    };
    for call in calls {
        if thread != Some(call.thread) {
            run(i64::MAX, &mut stack, &mut owners, &mut now);
            thread = Some(call.thread);
        }
        run(call.start, &mut stack, &mut owners, &mut now);
        now = call.start;
        stack.push((call.start, call.start.saturating_add(call.duration)));
        owners.push(call.name);
    }
    run(i64::MAX, &mut stack, &mut owners, &mut now);
    (out, union(busy))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(thread: u32, name: u32, start: i64, end: i64) -> Call {
        Call { thread, name, start, duration: end - start }
    }

    #[test]
    fn children_are_not_counted_in_their_parents() {
        // 0: 0..100 calls 1: 10..40 which calls 2: 20..30, then 1 again: 50..60.
        let calls = vec![call(0, 0, 0, 100), call(0, 1, 10, 40), call(0, 2, 20, 30), call(0, 1, 50, 60)];
        let (own, busy) = self_times(calls, 3);
        assert_eq!(own, [60, 30, 10]);
        assert_eq!(busy, [(0, 100)]);
    }

    #[test]
    fn the_order_of_the_file_does_not_matter() {
        let mut calls =
            vec![call(0, 0, 0, 100), call(0, 1, 0, 40), call(0, 2, 40, 100), call(0, 1, 120, 130)];
        let expected = (vec![0, 50, 60], vec![(0, 100), (120, 130)]);
        assert_eq!(self_times(calls.clone(), 3), expected);
        calls.reverse();
        assert_eq!(self_times(calls, 3), expected);
    }

    #[test]
    fn threads_do_not_nest() {
        let (own, busy) = self_times(vec![call(0, 0, 0, 100), call(1, 1, 10, 40), call(1, 0, 90, 120)], 2);
        assert_eq!(own, [130, 30]);
        assert_eq!(busy, [(0, 120)]);
    }

    #[test]
    fn calls_that_overlap_without_nesting_count_every_moment_once() {
        // 0: 0..50, 1: 40..80, both within 2: 0..100 (longer, so it began first).
        let (own, busy) = self_times(vec![call(0, 0, 0, 50), call(0, 1, 40, 80), call(0, 2, 0, 100)], 3);
        assert_eq!(own, [40, 40, 20]);
        assert_eq!(busy, [(0, 100)]);
    }

    proptest::proptest! {
        #[test]
        fn self_times_fill_the_busy_time_of_a_thread(
            calls in proptest::collection::vec((0_u32..4, 0_i64..60, 0_i64..30), 0..30),
        ) {
            let calls: Vec<Call> = calls.iter().map(|(name, start, d)| call(0, *name, *start, start + d)).collect();
            let (own, busy) = self_times(calls.clone(), 4);
            let whole = union(calls.iter().map(|c| (c.start, c.start + c.duration)).collect());
            assert_eq!(busy, whole);
            assert_eq!(own.iter().sum::<u64>(), super::super::intervals::length(&whole));
            for (name, own) in own.iter().enumerate() {
                let total: i64 = calls.iter().filter(|c| c.name as usize == name).map(|c| c.duration).sum();
                assert!(*own <= total.unsigned_abs());
            }
        }
    }
}
