//! Where log lines go.
//!
//! Callers write fields with dots (`run.id`, `tenant.id`), and never a prompt, an output, an
//! address or a key.

use tracing_subscriber::{EnvFilter, fmt};

/// What reads the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// A machine: one JSON object a line on standard output, as CloudWatch Logs wants it.
    Machine,
    /// A person at a terminal: text on standard error.
    Person,
}

/// Begins to log. `RUST_LOG` chooses what; without it, `level` and worse. A second call does nothing.
pub fn init(reader: Reader, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = fmt().with_env_filter(filter).with_target(false);
    // Only a second call fails, and then the first one's subscriber stays.
    let _ = match reader {
        Reader::Machine => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
        Reader::Person => builder.with_writer(std::io::stderr).try_init(),
    };
}

/// What lies behind an error, in one line.
#[must_use]
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(error.source(), |&cause| cause.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
