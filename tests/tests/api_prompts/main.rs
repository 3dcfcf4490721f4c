//! Prompts, runs and deliveries through the real router, on a real Postgres.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod backfills;
mod calendars;
mod changes;
mod hostile;
mod isolation;
mod lists;
mod plans;
mod previews;
mod refusals;
mod round_trips;
mod runs;
mod versions;
mod world;
