//! How often a process that has much under way looks for what came in.
//!
//! An answer that comes alone costs a wake-up, a read, and caches that others have used meanwhile;
//! answers that are read together share them. PostgreSQL sends one for every statement. So a thread
//! with several messages under way naps for a moment before it waits for the next answer, by when
//! others are there too. What it waits for takes seconds: nobody sees the moment.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// Of a nap, for each message under way: what it waits for comes the sooner the fewer there are.
const NAP_FOR_EACH: Duration = Duration::from_micros(500);

/// Some round trips of a database, and some hundredths of the quickest model call.
const NAP_MAX: Duration = Duration::from_millis(5);

/// Whether to look less often. A clone shares it.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    under_way: Arc<AtomicUsize>,
}

impl Pace {
    /// Naps if several messages are under way. For a runtime with one thread, each time before it
    /// waits for input.
    #[expect(
        clippy::disallowed_methods,
        reason = "to block the runtime for a moment is what it is for"
    )]
    pub fn nap(&self) {
        let under_way = self.under_way.load(Ordering::Relaxed);
        if let Some(nap) = nap_among(under_way) {
            thread::sleep(nap);
        }
    }

    /// Whether several messages are under way.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        nap_among(self.under_way.load(Ordering::Relaxed)).is_some()
    }

    /// Notes how many messages are under way.
    pub(crate) fn note(&self, under_way: usize) {
        self.under_way.store(under_way, Ordering::Relaxed);
    }
}

fn nap_among(under_way: usize) -> Option<Duration> {
    let nap = NAP_FOR_EACH.saturating_mul(u32::try_from(under_way).unwrap_or(u32::MAX));
    (under_way > 1).then_some(nap.min(NAP_MAX))
}
