//! The three functions in one process: for a laptop, for tests and for small installs.

pub mod child;
pub mod postgres;
