//! The program `carillon` as its users have it: real processes, real servers, HTTP alone.
//!
//! Nothing here reads the database. The clock's test comes first by its name and takes a minute;
//! the tests beside it share its process.

#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic")]

mod backfills;
mod canaries;
mod carillon;
mod clock;
mod crash;
mod deliveries;
mod faults;
mod hostile;
mod isolation;
mod program;
mod providers;
mod tenant;
