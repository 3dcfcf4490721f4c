//! What is wrong with a request, one entry per fault.
//!
//! Parsers collect every fault before they give up, so that a caller mends a request once.

use serde::Serialize;
use utoipa::ToSchema;

/// One thing wrong with one field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Fault {
    /// Where: a dotted path with indexes, for example `schedule.expression` or `destinations[1].url`.
    pub field: String,
    /// Which rule was broken: stable, lower snake case, for example `never_fires`.
    #[schema(value_type = String)]
    pub code: &'static str,
    /// What is wrong with the value that was sent.
    pub detail: String,
    /// What to send instead.
    pub hint: String,
}

impl Fault {
    /// Builds a fault; `field` may be empty when the parser does not know its own place yet.
    pub fn new(
        field: impl Into<String>,
        code: &'static str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            code,
            detail: detail.into(),
            hint: hint.into(),
        }
    }

    /// The same fault seen from the parent: `expression` under `schedule` is `schedule.expression`.
    #[must_use]
    pub fn under(mut self, parent: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => parent.to_owned(),
            field if field.starts_with('[') => format!("{parent}{field}"),
            field => format!("{parent}.{field}"),
        };
        self
    }
}

/// A stable warning about a request that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Warning {
    /// Stable, lower snake case, for example `step_restarts`.
    #[schema(value_type = String)]
    pub code: &'static str,
    /// What the caller may not expect.
    pub detail: String,
}
