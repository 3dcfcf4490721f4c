//! What must hold of bytes that others send, whatever they are: one check a target, each more than
//! "it does not panic".
//!
//! The same checks run under cargo-fuzz (`tests/fuzz`) and, for a bounded time on stable, under the
//! test `fuzz`, which makes its inputs by [`mutate`]. A check must not read a clock or a file, so that an
//! input that breaks it breaks it again.

#![expect(
    clippy::unwrap_used,
    reason = "only tests call this, and a test ends at the first thing that is not as it must be"
)]

mod answers;
mod bodies;
mod cron;
mod faults;
mod message;
pub mod mutate;
mod template;
mod webhook;

use chrono::{DateTime, Utc};

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The product takes it.
    Accepted,
    /// The product refuses it.
    Refused,
}

/// Something that reads what others send.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of its folder of seeds, of its dictionary, and of its program under cargo-fuzz.
    pub name: &'static str,
    /// Panics where something does not hold.
    pub check: fn(&[u8]) -> Verdict,
}

/// All of them.
pub const TARGETS: [Target; 9] = [
    target("cron", cron::check),
    target("template", template::check),
    target("webhook", webhook::check),
    target("message", message::check),
    target("openai", answers::openai),
    target("anthropic", answers::anthropic),
    target("bedrock", answers::bedrock),
    target("prompt", bodies::prompt),
    target("body", bodies::body),
];

/// The check of a target, for a program of cargo-fuzz.
///
/// # Panics
/// Where something does not hold, or when there is no such target.
pub fn check(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    (target.check)(data);
}

const fn target(name: &'static str, check: fn(&[u8]) -> Verdict) -> Target {
    Target { name, check }
}

/// The instant of every request.
fn now() -> DateTime<Utc> {
    "2026-01-01T10:07:20Z".parse().unwrap()
}

/// The first line, and what follows it.
fn first_line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}
