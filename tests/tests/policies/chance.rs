//! What is left to chance. The seed is printed, and gives the same choices again.

use std::env;

/// Choices that follow from a seed.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// The choices of one case of a seed.
    pub(crate) fn of_case(seed: u64, case: u64) -> Self {
        let mut chance = Self(seed);
        Self(chance.next() ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number under `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let at = usize::try_from(self.below(from.len().try_into().unwrap())).unwrap();
        from[at].clone()
    }

    /// SplitMix64, by Sebastiano Vigna.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The seed of this run: `CARILLON_TEST_SEED`, else another each time. To be printed.
pub(crate) fn seed() -> u64 {
    match env::var("CARILLON_TEST_SEED") {
        Ok(given) => given.parse().expect("CARILLON_TEST_SEED is a number"),
        Err(_) => uuid::Uuid::now_v7().as_u64_pair().1,
    }
}
