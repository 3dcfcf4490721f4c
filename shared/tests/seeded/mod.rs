//! Property tests whose seed is printed: `CARILLON_TEST_SEED` gives the same cases again.

use std::env;

use proptest::test_runner::{Config, RngSeed};

/// So many cases, of the seed that is given or of another each time.
pub(crate) fn cases(cases: u32) -> Config {
    let seed = match env::var("CARILLON_TEST_SEED") {
        Ok(given) => given.parse().expect("CARILLON_TEST_SEED is a number"),
        Err(_) => uuid::Uuid::now_v7().as_u64_pair().1,
    };
    println!("CARILLON_TEST_SEED={seed}");
    Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        ..Config::default()
    }
}
