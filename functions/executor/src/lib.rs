//! Turns a wake-up into a run: claim, render, model call, record, deliver.

pub mod deliver;
pub mod http;
