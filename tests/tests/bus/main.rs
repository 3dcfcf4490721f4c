//! The event bus: what is written with which fact, in which order it is put, and what becomes of it
//! when the bus fails: against an emulator of AWS, and a server that does what it does not.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod emulator;
mod facts;
mod faults;
mod order;
mod plans;
mod schema;
mod scripted;
mod world;
