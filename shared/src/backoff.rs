//! How long to wait before the next attempt: exponential with full jitter.
//!
//! Never sleeps. The caller stores the instant in the database, so that a wait outlives the process.

use std::time::Duration;

/// The longest wait that somebody else's `Retry-After` can impose.
pub const FLOOR_MAX: Duration = Duration::from_secs(24 * 3600);

/// The wait after the failed attempt number `attempt` (the first is 1).
///
/// A random duration between zero and `base` doubled with each attempt, at most `cap`. `floor` is
/// what the other side asked for with `Retry-After`: the wait is never shorter, up to
/// [`FLOOR_MAX`].
#[must_use]
pub fn delay(attempt: u32, base: Duration, cap: Duration, floor: Option<Duration>) -> Duration {
    let jittered = rand::random_range(Duration::ZERO..=ceiling(attempt, base, cap));
    jittered.max(floor.unwrap_or_default().min(FLOOR_MAX))
}

/// The longest wait that [`delay`] can choose without a floor.
#[must_use]
pub fn ceiling(attempt: u32, base: Duration, cap: Duration) -> Duration {
    let doublings = attempt.saturating_sub(1);
    base.saturating_mul(2_u32.checked_pow(doublings).unwrap_or(u32::MAX))
        .min(cap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_secs(5);
    const CAP: Duration = Duration::from_secs(3600);

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let seconds: Vec<u64> = [0, 1, 2, 3, 10, 11, 33, u32::MAX]
            .map(|attempt| ceiling(attempt, BASE, CAP).as_secs())
            .to_vec();
        assert_eq!(seconds, [5, 5, 10, 20, 2560, 3600, 3600, 3600]);
    }

    #[test]
    fn the_jitter_fills_the_whole_range_and_never_leaves_it() {
        let waits: Vec<Duration> = (0..2000).map(|_| delay(4, BASE, CAP, None)).collect();
        let top = Duration::from_secs(40);
        assert!(waits.iter().all(|wait| *wait <= top));
        assert!(waits.iter().any(|wait| *wait < top / 10));
        assert!(waits.iter().any(|wait| *wait > top * 9 / 10));
    }

    #[test]
    fn a_floor_holds_but_not_for_ever() {
        let floor = Duration::from_secs(90);
        assert_eq!(delay(1, BASE, CAP, Some(floor)), floor);
        assert!(delay(12, BASE, CAP, Some(floor)) >= floor);
        assert_eq!(delay(1, BASE, CAP, Some(Duration::MAX)), FLOOR_MAX);
    }
}
