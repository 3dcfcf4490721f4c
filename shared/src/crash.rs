//! Points between two effects at which a test stops or kills its own process.
//!
//! Only the feature `crash-points`, in a build with debug assertions, compiles them in, and only the
//! variable `CARILLON_CRASH` (`point=kill|stop[@n]`) makes one of them do anything. In every other build
//! [`crash_point!`](crate::crash_point) is nothing at all.

/// A point of this name: nothing, but in builds that tests run.
#[cfg(all(feature = "crash-points", debug_assertions))]
#[macro_export]
macro_rules! crash_point {
    ($point:ident) => {
        $crate::crash::reach($crate::crash::Point::$point)
    };
}

/// A point of this name: nothing, but in builds that tests run.
#[cfg(not(all(feature = "crash-points", debug_assertions)))]
#[macro_export]
macro_rules! crash_point {
    ($point:ident) => {};
}

#[cfg(feature = "crash-points")]
pub use points::{Point, reach};

#[cfg(feature = "crash-points")]
mod points {
    use std::{
        process,
        sync::{
            OnceLock,
            atomic::{AtomicU32, Ordering},
        },
    };

    use rustix::process::{Signal, getpid, kill_process};

    macro_rules! points {
        ($($(#[$doc:meta])* $point:ident = $name:literal,)+) => {
            /// A point between two effects.
            #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
            pub enum Point {
                $($(#[$doc])* $point,)+
            }

            impl Point {
                /// Every point.
                pub const ALL: &'static [Self] = &[$(Self::$point,)+];

                /// Its name in `CARILLON_CRASH`.
                #[must_use]
                pub fn name(self) -> &'static str {
                    match self {
                        $(Self::$point => $name,)+
                    }
                }
            }
        };
    }

    points! {
        /// The sweeper has found work and has not offered it.
        SweepFound = "sweep.found",
        /// The sweeper has offered what it found.
        SweepOffered = "sweep.offered",
        /// A queued run, or a prompt that changed while it was looked at, is locked; nothing is written.
        RunLocked = "run.locked",
        /// A slot's run is rendered; nothing is written.
        RunPlanned = "run.planned",
        /// Claim and intent are committed; the model was not called.
        RunClaimed = "run.claimed",
        /// The lease was renewed while the model is called.
        LeaseRenewed = "lease.renewed",
        /// The model has answered, or the call failed; nothing is recorded.
        ModelAnswered = "model.answered",
        /// An output that is too long for its row is stored; the row does not say so.
        OutputStored = "output.stored",
        /// The answer and its deliveries are committed; nothing was sent.
        RunRecorded = "run.recorded",
        /// A failed try is written and not committed.
        FailureWritten = "failure.written",
        /// A failed try is committed; nobody is woken for the next, and no notice was sent.
        FailureRecorded = "failure.recorded",
        /// A delivery's next attempt is claimed.
        DeliveryClaimed = "delivery.claimed",
        /// About to send.
        DeliverySending = "delivery.sending",
        /// Sent; nothing says so.
        DeliverySent = "delivery.sent",
        /// What the attempt came to is written and not committed.
        SettleWritten = "settle.written",
        /// What the attempt came to is committed; the run may have ended with it.
        DeliverySettled = "delivery.settled",
        /// Events are claimed; the bus was not called.
        BusClaimed = "bus.claimed",
        /// The bus has them; no row says so.
        BusPut = "bus.put",
        /// The rows say so.
        BusNoted = "bus.noted",
        /// A request's change is written and not committed.
        CommandWritten = "command.written",
        /// A request's change is committed; nobody was woken.
        CommandCommitted = "command.committed",
        /// Wake-ups are offered; the scheduler's entries do not follow yet.
        CommandOffered = "command.offered",
        /// The entries follow, or could not; the caller has no answer.
        CommandApplied = "command.applied",
        /// An application is claimed; the scheduler was not called.
        SyncClaimed = "sync.claimed",
        /// The scheduler was called; the row does not say so.
        SyncCalled = "sync.called",
        /// The row says so.
        SyncNoted = "sync.noted",
    }

    /// What `CARILLON_CRASH` asks for.
    struct Order {
        point: Point,
        signal: Signal,
        /// Passes until then, this one included.
        passes: AtomicU32,
    }

    /// Passes a point. The one that `CARILLON_CRASH` names sends this process its signal at the
    /// n-th pass, and never again.
    pub fn reach(point: Point) {
        static ORDER: OnceLock<Option<Order>> = OnceLock::new();
        let order =
            ORDER.get_or_init(|| std::env::var("CARILLON_CRASH").ok().map(|text| read(&text)));
        let Some(order) = order.as_ref().filter(|order| order.point == point) else {
            return;
        };
        let count = |left: u32| left.checked_sub(1);
        let passed = order
            .passes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, count);
        if passed == Ok(1) {
            // A signal to oneself needs no permission.
            let _ = kill_process(getpid(), order.signal);
        }
    }

    /// A misspelt order must not pass for a process that was never hit.
    fn read(text: &str) -> Order {
        parse(text).unwrap_or_else(|| {
            tracing::error!(
                "CARILLON_CRASH must be point=kill|stop[@n]; the points are in shared::crash"
            );
            process::exit(2)
        })
    }

    fn parse(text: &str) -> Option<Order> {
        let (name, rest) = text.split_once('=')?;
        let (signal, passes) = rest.split_once('@').unwrap_or((rest, "1"));
        let signal = match signal {
            "kill" => Signal::KILL,
            "stop" => Signal::STOP,
            _ => return None,
        };
        Some(Order {
            point: *Point::ALL.iter().find(|point| point.name() == name)?,
            signal,
            passes: AtomicU32::new(passes.parse().ok().filter(|passes| *passes > 0)?),
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn an_order_names_a_point_a_signal_and_a_pass() {
            let order = parse("delivery.sent=stop@3").unwrap();
            assert_eq!(
                (order.point, order.signal),
                (Point::DeliverySent, Signal::STOP)
            );
            assert_eq!(order.passes.into_inner(), 3);
            assert_eq!(parse("run.claimed=kill").unwrap().passes.into_inner(), 1);
            for text in [
                "",
                "run.claimed",
                "run.claimed=crash",
                "run.claimed=kill@0",
                "nowhere=kill",
            ] {
                assert!(parse(text).is_none(), "{text}");
            }
        }

        #[test]
        fn no_two_points_share_a_name() {
            let names: std::collections::HashSet<_> =
                Point::ALL.iter().map(|point| point.name()).collect();
            assert_eq!(names.len(), Point::ALL.len());
        }
    }
}
