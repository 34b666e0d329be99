//! Sets of moments as sorted, disjoint intervals `(start, end)` in nanoseconds.

/// From, and up to but not including.
pub(super) type Interval = (i64, i64);

/// Sorts and joins what touches or overlaps; empty intervals go.
pub(super) fn union(mut list: Vec<Interval>) -> Vec<Interval> {
    list.retain(|(start, end)| end > start);
    list.sort_unstable();
    let mut length = 0;
    for index in 0..list.len() {
        let (start, end) = list[index];
        match length {
            0 => length = 1,
            _ if start <= list[length - 1].1 => list[length - 1].1 = list[length - 1].1.max(end),
            _ => {
                list[length] = (start, end);
                length += 1;
            }
        }
    }
    list.truncate(length);
    list
}

/// What lies between the intervals of a union.
pub(super) fn gaps(union: &[Interval]) -> Vec<Interval> {
    union.windows(2).map(|pair| (pair[0].1, pair[1].0)).collect()
}

/// What lies in both unions.
pub(super) fn intersection(a: &[Interval], b: &[Interval]) -> Vec<Interval> {
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while let (Some(left), Some(right)) = (a.get(i), b.get(j)) {
        let (start, end) = (left.0.max(right.0), left.1.min(right.1));
        if end > start {
            out.push((start, end));
        }
        if left.1 <= right.1 {
            i += 1;
        } else {
            j += 1;
        }
    }
    out
}

/// Their length together.
pub(super) fn length(list: &[Interval]) -> u64 {
    list.iter().fold(0, |sum: u64, (start, end)| sum.saturating_add(end.abs_diff(*start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_union_counts_no_moment_twice() {
        let list = union(vec![(10, 20), (0, 5), (15, 18), (20, 22), (30, 30), (40, 41)]);
        assert_eq!(list, [(0, 5), (10, 22), (40, 41)]);
        assert_eq!(length(&list), 18);
        assert_eq!(gaps(&list), [(5, 10), (22, 40)]);
        assert_eq!(union(Vec::new()), []);
        assert_eq!(gaps(&[]), []);
    }

    #[test]
    fn an_intersection_holds_what_is_in_both() {
        let a = [(0, 10), (20, 30), (40, 50)];
        assert_eq!(intersection(&a, &[(5, 25), (29, 60)]), [(5, 10), (20, 25), (29, 30), (40, 50)]);
        assert_eq!(intersection(&a, &[]), []);
        assert_eq!(intersection(&a, &a), a);
    }

    proptest::proptest! {
        #[test]
        fn sets_agree_with_a_list_of_moments(
            a in proptest::collection::vec((0_i64..40, 0_i64..10), 0..12),
            b in proptest::collection::vec((0_i64..40, 0_i64..10), 0..12),
        ) {
            let spans = |list: &[(i64, i64)]| list.iter().map(|(s, d)| (*s, s + d)).collect::<Vec<_>>();
            let holds = |list: &[Interval], t: i64| list.iter().any(|(s, e)| *s <= t && t < *e);
            let (a, b) = (spans(&a), spans(&b));
            let (ua, ub) = (union(a.clone()), union(b.clone()));
            let both = intersection(&ua, &ub);
            for t in 0..60 {
                assert_eq!(holds(&a, t), holds(&ua, t));
                assert_eq!(holds(&a, t) && holds(&b, t), holds(&both, t));
            }
            if let (Some(first), Some(last)) = (ua.first(), ua.last()) {
                assert_eq!(length(&ua) + length(&gaps(&ua)), first.0.abs_diff(last.1));
            }
        }
    }
}
