//! What is left to chance. The seed is printed, and gives the same choices again.

#![expect(
    clippy::unwrap_used,
    reason = "only tests call this, and a test may panic"
)]

use std::env;

/// Choices that follow from a seed.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The choices of one case of a seed.
    #[must_use]
    pub fn of_case(seed: u64, case: u64) -> Self {
        let mut chance = Self(seed);
        Self(chance.next() ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number under `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Whether something that comes once in so many times comes now.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A place in something that is so long, and not empty.
    ///
    /// # Panics
    /// When it is empty.
    pub fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length.try_into().unwrap())).unwrap()
    }

    /// One of these.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.place(from.len())].clone()
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
///
/// # Panics
/// When the variable holds no number.
#[must_use]
pub fn seed() -> u64 {
    match env::var("CARILLON_TEST_SEED") {
        Ok(given) => given.parse().expect("CARILLON_TEST_SEED is a number"),
        Err(_) => uuid::Uuid::now_v7().as_u64_pair().1,
    }
}
