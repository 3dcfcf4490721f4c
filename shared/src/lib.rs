//! What Carillon's functions share.
//!
//! The pure modules (`fault`, `ids`, `schedule`, `exclusion`, `jitter`, `prompt`, `template`, `run`, `price`, `outbound`)
//! import neither `db` nor a network client. All SQL lives in `db`; nothing outside it can run a
//! statement.

pub mod api_key;
pub mod aws;
pub mod backoff;
pub mod bus;
pub mod cache;
pub mod calendar;
pub mod crash;
pub mod db;
pub mod destination;
pub mod env;
pub mod exclusion;
pub mod fault;
pub mod fields;
pub mod ids;
pub mod jitter;
pub mod mail_tags;
pub mod message;
pub mod model;
pub mod outbound;
pub mod price;
pub mod prompt;
pub mod provider_key;
pub mod queue;
pub mod run;
pub mod schedule;
pub mod scheduler;
pub mod seal;
pub mod secret;
pub mod secrets;
pub mod simulate;
pub mod slots;
pub mod telemetry;
pub mod template;
pub mod tls;
pub mod webhook_secret;

#[cfg(test)]
#[path = "../tests/seeded/mod.rs"]
mod seeded;
