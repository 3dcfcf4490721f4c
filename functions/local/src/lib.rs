//! The three functions in one process: for a laptop, for tests and for small installs.

pub mod child;
pub mod cli;
mod client;
mod demo;
mod http;
pub mod postgres;
mod preview;
pub mod service;
mod table;
mod up;
mod worker;
