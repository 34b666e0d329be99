//! The pause before the next attempt: exponential with jitter.
//!
//! This is the only file that knows the `backoff` crate, which is unmaintained (RUSTSEC-2025-0012); it was asked for by
//! name, and is easy to replace from here. The drawn delay becomes an event, so a replay needs no random numbers.

use crate::config::BackoffPlan;
use backoff::backoff::Backoff;
use std::time::Duration;

/// The pause after `failed` failed attempts (1 or more).
pub fn delay(plan: &BackoffPlan, failed: u32) -> Duration {
    let mut policy = backoff::ExponentialBackoff {
        current_interval: plan.initial,
        initial_interval: plan.initial,
        randomization_factor: 0.25,
        multiplier: 2.0,
        max_interval: plan.max,
        max_elapsed_time: None,
        ..backoff::ExponentialBackoff::default()
    };
    let mut delay = plan.initial;
    for _ in 0..failed.clamp(1, 64) {
        delay = policy.next_backoff().unwrap_or(plan.max);
    }
    delay.min(plan.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_with_jitter_and_never_passes_the_maximum() {
        let plan = BackoffPlan { initial: Duration::from_secs(4), max: Duration::from_secs(30) };
        for failed in 1..100 {
            let expected = (4.0 * 2f64.powi(failed as i32 - 1)).min(30.0);
            let drawn = delay(&plan, failed).as_secs_f64();
            assert!(
                drawn <= 30.0 && drawn >= expected * 0.74 && drawn <= expected * 1.26,
                "{failed}: {drawn}"
            );
        }
        let drawn: std::collections::BTreeSet<_> = (0..20).map(|_| delay(&plan, 1)).collect();
        assert!(drawn.len() > 1, "no jitter");
    }

    #[test]
    fn a_pause_of_zero_stays_zero() {
        assert_eq!(delay(&BackoffPlan { initial: Duration::ZERO, max: Duration::ZERO }, 3), Duration::ZERO);
    }
}
