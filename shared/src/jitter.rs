//! How much later than its slot a prompt is woken, so that prompts of one minute do not all call at
//! once.
//!
//! Pure. A slot's key never moves: only the wake-up does.

use chrono::TimeDelta;
use sha2::{Digest, Sha256};

use crate::ids::PromptId;

/// The longest spread, in minutes.
pub const JITTER_MINUTES_MAX: u32 = 60;

/// The delay of every slot of a prompt: whole seconds, less than `jitter_minutes`, the same each time
/// it is asked for, and spread evenly over prompts.
#[must_use]
pub fn delay(prompt_id: PromptId, jitter_minutes: u32) -> TimeDelta {
    let spread_s = u64::from(jitter_minutes) * 60;
    let digest: [u8; 32] = Sha256::digest(prompt_id.uuid().as_bytes()).into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    let drawn = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let delay_s = drawn.checked_rem(spread_s).unwrap_or(0);
    TimeDelta::seconds(i64::try_from(delay_s).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(jitter_minutes: u32, count: usize) -> Vec<i64> {
        std::iter::repeat_with(|| delay(PromptId::new(), jitter_minutes).num_seconds())
            .take(count)
            .collect()
    }

    #[test]
    fn a_delay_is_stable_and_under_its_bound() {
        let id: PromptId = "01931f5e-7c4f-7d3a-8b1e-2f6a9c0d4e5b".parse().unwrap();
        assert_eq!(delay(id, 15), delay(id, 15));
        assert_eq!(delay(id, 0), TimeDelta::zero());
        for minutes in [1, 7, JITTER_MINUTES_MAX] {
            let bound = i64::from(minutes) * 60;
            assert!(delays(minutes, 500).iter().all(|s| (0..bound).contains(s)));
        }
    }

    #[test]
    fn delays_are_spread_over_the_minutes() {
        let mut per_minute = [0; 10];
        for seconds in delays(10, 10_000) {
            per_minute[usize::try_from(seconds / 60).unwrap()] += 1;
        }
        assert!(
            per_minute.iter().all(|count| (800..1_200).contains(count)),
            "{per_minute:?}"
        );
    }
}
