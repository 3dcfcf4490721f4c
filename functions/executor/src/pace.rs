//! How often a process that has much under way looks for what came in.
//!
//! An answer that comes alone costs a wake-up, a read, and caches that others have used meanwhile;
//! answers that are read together share them. PostgreSQL sends one for every statement. So a thread
//! with several messages under way naps for a moment before it waits for the next answer, by when
//! others are there too. What it waits for takes seconds: nobody sees the moment.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// Some round trips of a database, and some hundredths of the quickest model call.
const NAP: Duration = Duration::from_millis(2);

/// Whether to look less often. A clone shares it.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    is_crowded: Arc<AtomicBool>,
}

impl Pace {
    /// Naps if several messages are under way. For a runtime with one thread, each time before it
    /// waits for input.
    #[expect(
        clippy::disallowed_methods,
        reason = "to block the runtime for a moment is what it is for"
    )]
    pub fn nap(&self) {
        if self.is_crowded() {
            thread::sleep(NAP);
        }
    }

    /// Whether several messages are under way.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.is_crowded.load(Ordering::Relaxed)
    }

    /// Notes how many messages are under way.
    pub(crate) fn note(&self, under_way: usize) {
        self.is_crowded.store(under_way > 1, Ordering::Relaxed);
    }
}
