//! Until when this process may work: nothing begins that cannot end before.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What follows a model's answer takes at most so long: it is recorded, and each delivery is tried
/// once (a webhook and an object have 15 s, an email of SES 20 s, a file 30 s).
pub const FINISH_MAX: Duration = Duration::from_secs(40);

/// The instant at which this process is to be done, if there is one.
#[derive(Debug, Clone, Copy)]
pub struct Until(Option<Instant>);

impl Until {
    /// The process goes on until somebody stops it.
    pub const STOPPED: Self = Self(None);

    /// The process may be gone after this instant.
    #[must_use]
    pub fn instant(instant: Instant) -> Self {
        Self(Some(instant))
    }

    /// Whether a run whose model may take so long can end in time; zero asks for the rest alone.
    pub(crate) fn allows(self, model: Duration) -> bool {
        self.0
            .is_none_or(|instant| Instant::now() + model + FINISH_MAX <= instant)
    }

    /// Waits until a model's answer would come too late to be recorded and delivered.
    pub(crate) async fn too_late_for_an_answer(self) {
        match self.0.and_then(|instant| instant.checked_sub(FINISH_MAX)) {
            Some(instant) => sleep_until(instant).await,
            None if self.0.is_some() => {}
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn what_does_not_end_in_time_is_not_allowed() {
        let model = Duration::from_secs(300);
        assert!(Until::STOPPED.allows(model));
        let long = Until::instant(Instant::now() + model + FINISH_MAX + Duration::from_secs(60));
        assert!(long.allows(model));
        let short = Until::instant(Instant::now() + model);
        assert!(!short.allows(model) && short.allows(Duration::ZERO));
        assert!(!Until::instant(Instant::now()).allows(Duration::ZERO));
    }

    #[tokio::test]
    async fn an_answer_must_come_in_time_to_be_recorded() {
        assert!(
            Until::STOPPED
                .too_late_for_an_answer()
                .now_or_never()
                .is_none()
        );
        let enough = Until::instant(Instant::now() + FINISH_MAX + Duration::from_secs(60));
        assert!(enough.too_late_for_an_answer().now_or_never().is_none());
        let little = Until::instant(Instant::now() + FINISH_MAX / 2);
        assert!(little.too_late_for_an_answer().now_or_never().is_some());
    }
}
