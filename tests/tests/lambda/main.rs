//! The Lambda functions: batches with real rows, the queues of an emulator of AWS, and the programs
//! themselves behind a runtime API.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod batch;
mod canaries;
mod dead_letters;
mod programs;
mod queue;
mod round_trips;
mod world;
