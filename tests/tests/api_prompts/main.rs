//! Prompts, runs and deliveries through the real router, on a real Postgres.

mod changes;
mod isolation;
mod lists;
mod plans;
mod refusals;
mod runs;
mod world;
