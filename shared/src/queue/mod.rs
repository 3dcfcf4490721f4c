//! Wake-ups on their way to the executor.
//!
//! A queue carries no truth. What it has no room for, does not take in time, or loses is found again
//! by the sweeper; so sending one gives no error, and nothing here says what a message holds.

mod dead_letters;
mod sqs;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;

pub use self::{
    dead_letters::{DeadLetters, Letter},
    sqs::{QueueError, Sqs, read_url},
};
use crate::message::WakeUp;

/// The longest delay of a message (SQS Developer Guide, "Amazon SQS message timers"). What is due
/// later is left to the sweeper.
pub const DELAY_MAX: Duration = Duration::from_secs(900);

/// Where wake-ups go.
#[derive(Debug, Clone)]
pub enum Queue {
    /// A bounded channel inside one process.
    Local {
        /// Its entrance.
        sender: mpsc::Sender<WakeUp>,
        /// What waits in it.
        waiting: Waiting,
    },
    /// A standard queue of SQS.
    Sqs(Sqs),
}

/// Wake-ups that wait: the sweeper finds the same work every second, and one of each is enough.
pub type Waiting = Arc<Mutex<HashSet<WakeUp>>>;

/// The other end of a queue inside a process.
#[derive(Debug)]
pub struct WakeUps {
    receiver: mpsc::Receiver<WakeUp>,
    waiting: Waiting,
}

impl Queue {
    /// A queue inside this process and its other end. It holds at most `capacity` wake-ups.
    #[must_use]
    pub fn local(capacity: usize) -> (Self, WakeUps) {
        let (sender, receiver) = mpsc::channel(capacity);
        let waiting = Waiting::default();
        let wake_ups = WakeUps {
            receiver,
            waiting: Arc::clone(&waiting),
        };
        (Self::Local { sender, waiting }, wake_ups)
    }

    /// Sends wake-ups that are to arrive after `delay`, and says how many were taken. The sweeper
    /// finds the others again, and those whose delay is over [`DELAY_MAX`].
    ///
    /// Inside a process the sweeper looks every second, so there a delayed one is left to it.
    pub async fn offer(&self, wake_ups: &[WakeUp], delay: Duration) -> usize {
        match self {
            Self::Local { .. } if !delay.is_zero() => 0,
            Self::Local { sender, waiting } => {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let mut taken = 0;
                for wake_up in wake_ups {
                    // One that waits already counts as taken.
                    if waiting.contains(wake_up) {
                        taken += 1;
                    } else if sender.try_send(*wake_up).is_ok() {
                        waiting.insert(*wake_up);
                        taken += 1;
                    }
                }
                taken
            }
            Self::Sqs(_) if delay > DELAY_MAX => 0,
            Self::Sqs(sqs) => sqs.send(wake_ups, delay).await,
        }
    }
}

impl WakeUps {
    /// The next wake-up; `None` when nobody can send any more.
    pub async fn next(&mut self) -> Option<WakeUp> {
        let wake_up = self.receiver.recv().await?;
        self.waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&wake_up);
        Some(wake_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{RunId, TenantId};

    fn run() -> WakeUp {
        WakeUp::Run {
            tenant_id: TenantId::new(),
            run_id: RunId::new(),
        }
    }

    #[tokio::test]
    async fn one_of_each_waits_and_a_full_queue_says_so() {
        let (queue, mut wake_ups) = Queue::local(2);
        let (first, second) = (run(), run());
        let offer = async |wake_ups: &[WakeUp]| queue.offer(wake_ups, Duration::ZERO).await;
        assert_eq!(offer(&[first, first]).await, 2);
        assert_eq!(offer(&[second, run()]).await, 1);
        assert_eq!(wake_ups.next().await, Some(first));
        assert_eq!(offer(&[first]).await, 1);
        assert_eq!(wake_ups.next().await, Some(second));
        assert_eq!(wake_ups.next().await, Some(first));
        drop(queue);
        assert_eq!(wake_ups.next().await, None);
    }

    #[tokio::test]
    async fn inside_a_process_what_is_due_later_is_left_to_the_sweeper() {
        let (queue, mut wake_ups) = Queue::local(2);
        assert_eq!(queue.offer(&[run()], Duration::from_secs(1)).await, 0);
        drop(queue);
        assert_eq!(wake_ups.next().await, None);
    }
}
