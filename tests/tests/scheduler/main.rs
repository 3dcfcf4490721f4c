//! The scheduler's entries follow the rows: against two emulators of AWS, and against a server that
//! does what neither does.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod drift;
mod emulators;
mod faults;
mod fires;
mod order;
mod rows;
mod world;
