//! Each target of cargo-fuzz for half a minute on stable Rust: the same checks, with inputs that are made
//! of the same seeds and dictionaries by chance.
//!
//! The seed is printed, and with what broke, the number of its case: `CARILLON_TEST_SEED` gives the
//! same inputs again, in the same order.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

use std::collections::VecDeque;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::chance::{Chance, seed};
use tests::fuzz::mutate::Corpus;
use tests::fuzz::{TARGETS, Target, Verdict};

/// What each target gets.
const TIME: Duration = Duration::from_secs(30);

/// On few cores several targets share one, so that all of them end within two minutes.
const AT_ONCE_MIN: usize = 3;

/// The stack of a worker of the product's runtime.
const STACK_BYTES: usize = 2 * 1024 * 1024;

#[test]
fn every_seed_holds_and_each_target_takes_some() {
    for target in TARGETS {
        let corpus = corpus(target);
        let accepted = corpus
            .seeds()
            .iter()
            .filter(|seed| (target.check)(seed) == Verdict::Accepted)
            .count();
        let all = corpus.seeds().len();
        println!("{}: {accepted} of {all} seeds are accepted", target.name);
        // Both ways must be walked, or the checks of one of them never are.
        assert!(accepted * 4 >= all, "{} takes too few", target.name);
        assert!(accepted < all, "{} refuses nothing", target.name);
    }
}

#[test]
fn nothing_that_chance_makes_of_the_seeds_breaks_a_target() {
    let seed = seed();
    println!("CARILLON_TEST_SEED={seed}");
    let waiting = Mutex::new(VecDeque::from(TARGETS));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let told: Vec<Result<String, String>> = thread::scope(|scope| {
        let work = || {
            let next = || waiting.lock().unwrap().pop_front();
            std::iter::from_fn(next)
                .map(|target| fuzzed(target, seed))
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..cores.max(AT_ONCE_MIN))
            .map(|_| {
                let builder = thread::Builder::new().stack_size(STACK_BYTES);
                builder.spawn_scoped(scope, work).unwrap()
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    for line in told.iter().flatten() {
        println!("{line}");
    }
    let broken: Vec<String> = told.into_iter().filter_map(Result::err).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// How many inputs there were, or which one broke it.
fn fuzzed(target: Target, seed: u64) -> Result<String, String> {
    let corpus = corpus(target);
    let ends = Instant::now() + TIME;
    let (mut case, mut accepted) = (0, 0);
    while Instant::now() < ends {
        let input = corpus.input(&mut Chance::of_case(seed, case));
        match catch_unwind(AssertUnwindSafe(|| (target.check)(&input))) {
            Ok(Verdict::Accepted) => accepted += 1,
            Ok(Verdict::Refused) => {}
            Err(_) => {
                return Err(format!(
                    "{} broke at case {case} of CARILLON_TEST_SEED={seed}: \"{}\"",
                    target.name,
                    input.escape_ascii()
                ));
            }
        }
        case += 1;
    }
    let name = target.name;
    Ok(format!("{name}: {case} inputs, {accepted} accepted"))
}

fn corpus(target: Target) -> Corpus {
    let mut corpus = Corpus::of(target.name).unwrap();
    if target.name == "cron" {
        vectors().into_iter().for_each(|seed| corpus.add(seed));
    }
    corpus
}

/// The expressions of the schedules' own vectors, good and bad.
fn vectors() -> Vec<Vec<u8>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/tests/vectors/vectors.json");
    let vectors: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let text = |vector: &Value, name: &str| vector[name].as_str().map(str::to_owned);
    let of = |list: &str| vectors[list].as_array().unwrap().clone();
    of("cron")
        .iter()
        .chain(&of("errors"))
        .filter_map(|vector| {
            let zone = text(vector, "timezone").unwrap_or_else(|| "UTC".to_owned());
            Some(format!("{zone}\n{}", text(vector, "unix")?).into_bytes())
        })
        .collect()
}
