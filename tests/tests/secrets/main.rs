//! Secrets: where they come from, how they are sealed, and that they stay where they are.
//!
//! Against an emulator of AWS, and against a server that does what an emulator does not.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod database;
mod faults;
mod log;
mod provider;
mod provider_keys;
mod sealing;
mod server;
