//! Scheduled prompts: what their owners write.

/// What happens to a slot while a run of the prompt is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlap {
    /// It is skipped, and its row says which run was in the way.
    Skip,
    /// One waits; others are skipped.
    BufferOne,
    /// It runs beside it.
    AllowAll,
}

/// Which late slots inside the catch-up window run after downtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misfire {
    /// None.
    Skip,
    /// The newest.
    RunLatest,
    /// All, one after the other.
    RunAll,
}
