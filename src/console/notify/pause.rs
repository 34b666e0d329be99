//! The pause before a message is tried again. Pure.
//!
//! Not `recovery::backoff`: a pause between attempts is drawn once, recorded and replayed, and follows the user's settings;
//! this one belongs to nobody's journal, starts short, and minds what the other side asks for.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);
/// Who asks for more than this is not believed.
const ASKED: Duration = Duration::from_secs(900);

/// After `failed` tries (1 or more). `jitter` is between 0 and 1; `asked` is what the other side wants.
pub(super) fn pause(failed: u32, jitter: f64, asked: Option<Duration>) -> Duration {
    let doubled = FIRST.saturating_mul(1 << failed.saturating_sub(1).min(10)).min(LONGEST);
    let drawn = doubled.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0);
    drawn.max(asked.unwrap_or_default().min(ASKED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_a_limit_with_jitter() {
        for failed in 1..100 {
            let middle = 2f64.powi(failed as i32 - 1).min(120.0);
            for jitter in [0.0, 0.5, 1.0, 7.0] {
                let drawn = pause(failed, jitter, None).as_secs_f64();
                assert!(drawn >= middle * 0.74 && drawn <= middle * 1.26, "{failed}: {drawn}");
            }
        }
    }

    #[test]
    fn what_the_other_side_asks_for_is_minded_within_reason() {
        assert_eq!(pause(1, 0.5, Some(Duration::from_secs(30))), Duration::from_secs(30));
        assert_eq!(pause(1, 0.5, Some(Duration::from_secs(86_400))), ASKED);
        assert_eq!(pause(3, 0.5, Some(Duration::ZERO)), Duration::from_secs(4));
    }
}
