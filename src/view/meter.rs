//! The present rate of a counter. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Over how long a rate is taken: engines emit tokens in steps, and a number that jumps cannot be read.
const SPAN: Duration = Duration::from_secs(5);

/// A counter without a new value for so long says nothing of the present.
const STALE: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Meter {
    /// The last one is the newest; the first one is at least [`SPAN`] older, if there is such an old one.
    values: VecDeque<(Duration, f64)>,
}

impl Meter {
    /// The counter stood at `value`. One that has become smaller began anew.
    pub fn set(&mut self, at: Duration, value: f64) {
        if !value.is_finite() {
            return;
        }
        if let Some((before, last)) = self.values.back()
            && (value < *last || at < *before || at.saturating_sub(*before) > STALE)
        {
            self.values.clear();
        }
        self.values.push_back((at, value));
        // The second one is old enough to be the first.
        while self.values.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= SPAN) {
            self.values.pop_front();
        }
    }

    /// The counter cannot be read.
    pub fn forget(&mut self) {
        self.values.clear();
    }

    /// Per second; none when too little is known, or nothing of the present.
    pub fn rate(&self, now: Duration) -> Option<f64> {
        let ((first, from), (last, to)) = (self.values.front()?, self.values.back()?);
        let passed = last.saturating_sub(*first).as_secs_f64();
        (passed >= 0.1 && now.saturating_sub(*last) < STALE).then(|| (to - from) / passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_steady_counter_has_its_rate_whatever_the_steps() {
        let mut meter = Meter::default();
        for second in 0..60 {
            meter.set(at(f64::from(second)), f64::from(second / 2 * 2) * 100.0);
        }
        let rate = meter.rate(at(59.5)).unwrap();
        assert!((80.0..=120.0).contains(&rate), "{rate}");
    }

    #[test]
    fn one_value_is_no_rate_and_an_old_one_says_nothing_of_now() {
        let mut meter = Meter::default();
        meter.set(at(1.0), 5.0);
        assert_eq!(meter.rate(at(1.0)), None);
        meter.set(at(2.0), 9.0);
        assert_eq!(meter.rate(at(2.0)), Some(4.0));
        assert_eq!(meter.rate(at(12.0)), None);
    }

    #[test]
    fn a_counter_that_begins_anew_gives_no_negative_rate() {
        let mut meter = Meter::default();
        meter.set(at(1.0), 500.0);
        meter.set(at(2.0), 600.0);
        meter.set(at(3.0), 10.0);
        assert_eq!(meter.rate(at(3.0)), None);
        meter.set(at(4.0), 30.0);
        assert_eq!(meter.rate(at(4.0)), Some(20.0));
    }

    proptest! {
        #[test]
        fn no_sequence_gives_a_rate_below_zero_or_holds_more_than_its_span(
            values in proptest::collection::vec((0.0..20.0_f64, 0.0..1e6_f64), 1..200)
        ) {
            let (mut meter, mut now) = (Meter::default(), 0.0);
            for (step, value) in values {
                now += step;
                meter.set(at(now), value);
                if let Some(rate) = meter.rate(at(now)) {
                    prop_assert!(rate >= 0.0 && rate.is_finite());
                }
                let middle = meter.values.get(1).map(|(then, _)| at(now).saturating_sub(*then));
                prop_assert!(meter.values.len() < 3 || middle.is_some_and(|age| age < SPAN));
            }
        }
    }
}
