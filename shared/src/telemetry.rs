//! Where log lines go, and what may not get there.
//!
//! Callers write fields with dots (`run.id`, `tenant.id`), and never a prompt, an output, an
//! address or a key. Whatever `RUST_LOG` asks for, other people's crates say no more than their
//! warnings: at their finer levels HTTP clients and AWS SDKs write out whole requests.

use std::{
    error::Error,
    panic::{self, PanicHookInfo},
};

use tokio_postgres::error::DbError as Refusal;
use tracing::{Level, Metadata};
use tracing_subscriber::{
    Layer,
    filter::{Targets, filter_fn},
    fmt,
    layer::SubscriberExt,
    registry,
};

pub use tracing_subscriber::filter::LevelFilter;

use crate::env;

/// What reads the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A machine: one JSON object a line on standard output, as CloudWatch Logs wants it.
    Machine,
    /// A person at a terminal: text on standard error.
    Person,
}

/// The crates whose every line is written by the rules above.
const OURS: [&str; 7] = [
    "shared",
    "management",
    "executor",
    "sweeper",
    "migrate",
    "local",
    "carillon",
];

/// Causes of an error that are told at the most.
const CAUSES_MAX: usize = 8;

/// Begins to log. `RUST_LOG` chooses what (`info`, or `warn,executor=debug`); without it, or when it
/// cannot be read, `level` and worse. A second call does nothing.
pub fn init(reader: Reader, level: LevelFilter) {
    let chosen = env::process("RUST_LOG").filter(|text| !text.is_empty());
    let chosen = chosen.and_then(|text| text.parse::<Targets>().ok());
    let chosen = chosen.unwrap_or_else(|| Targets::new().with_default(level));
    let lines = fmt::layer().with_target(false);
    let lines = match reader {
        Reader::Machine => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed(),
        Reader::Person => lines.with_writer(std::io::stderr).boxed(),
    };
    let subscriber = registry()
        .with(lines)
        .with(chosen)
        .with(filter_fn(is_discreet));
    // Only a second call fails, and then the first one's subscriber stays.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        panic::set_hook(Box::new(tell_panic));
    }
}

fn is_discreet(metadata: &Metadata<'_>) -> bool {
    let name = metadata.target().split("::").next().unwrap_or_default();
    // Levels compare by how much they let through.
    *metadata.level() <= Level::WARN || OURS.contains(&name)
}

/// Where it happened, and not its message: a failed slice of a text quotes the text.
fn tell_panic(info: &PanicHookInfo<'_>) {
    let place = info.location().map(ToString::to_string);
    tracing::error!(panic.location = place, "panicked");
}

/// What lies behind an error, in one line.
#[must_use]
pub fn causes(error: &(dyn Error + 'static)) -> String {
    told(error.source())
}

/// An error and what lies behind it, in one line.
#[must_use]
pub fn whole(error: &(dyn Error + 'static)) -> String {
    told(Some(error))
}

fn told(first: Option<&(dyn Error + 'static)>) -> String {
    std::iter::successors(first, |&error| error.source())
        .take(CAUSES_MAX)
        .map(discreet)
        .collect::<Vec<_>>()
        .join(": ")
}

/// The first line of an error's text. Postgres puts the values of a row into the lines after it, and
/// into the first one where a value itself is refused or a function speaks: there its code must do.
fn discreet(error: &(dyn Error + 'static)) -> String {
    if let Some(refusal) = error.downcast_ref::<Refusal>() {
        let code = refusal.code().code();
        if ["22", "P0"].iter().any(|class| code.starts_with(class)) {
            return format!("SQLSTATE {code}");
        }
    }
    let text = error.to_string();
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command, thread};

    use super::*;

    /// Set in a process of its own: a subscriber and a hook are for good.
    const CHILD: &str = "CARILLON_TEST_TELEMETRY";

    #[test]
    fn panics_and_others_crates_tell_no_more_than_they_may() {
        if env::var_os(CHILD).is_some() {
            init(Reader::Person, LevelFilter::WARN);
            let text = "canary of a panic";
            let panics = thread::spawn(move || panic!("byte 3 is inside of {text}"));
            assert!(panics.join().is_err());
            tracing::info!(target: "aws_smithy_runtime::client", "canary of a client");
            tracing::trace!(target: "sharedness", "canary of another's");
            tracing::warn!(target: "hyper", "a client's warning");
            tracing::trace!(target: "shared::db", "our finest line");
            return;
        }
        let name = "telemetry::tests::panics_and_others_crates_tell_no_more_than_they_may";
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .env("RUST_LOG", "trace,aws_smithy_runtime=trace")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(!told.contains("canary"), "{told}");
        for line in [
            "panic.location",
            "telemetry.rs:",
            "a client's warning",
            "our finest line",
        ] {
            assert!(told.contains(line), "{line}: {told}");
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("outer\nwith a row")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("inner\nDETAIL: with a prompt")]
    struct Inner;

    #[test]
    fn only_the_first_line_of_each_cause_is_told() {
        assert_eq!(causes(&Outer(Inner)), "inner");
        assert_eq!(whole(&Outer(Inner)), "outer: inner");
    }
}
