//! Wake-ups on their way to the executor.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::mpsc;

use crate::message::WakeUp;

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

    /// Sends a wake-up if there is room; one that waits already counts as sent. A full queue loses
    /// it: the sweeper finds the work again.
    pub fn offer(&self, wake_up: WakeUp) -> bool {
        match self {
            Self::Local { sender, waiting } => {
                let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.contains(&wake_up) {
                    return true;
                }
                let sent = sender.try_send(wake_up).is_ok();
                if sent {
                    waiting.insert(wake_up);
                }
                sent
            }
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
        assert!(queue.offer(first));
        assert!(queue.offer(first));
        assert!(queue.offer(second));
        assert!(!queue.offer(run()));
        assert_eq!(wake_ups.next().await, Some(first));
        assert!(queue.offer(first));
        assert_eq!(wake_ups.next().await, Some(second));
        assert_eq!(wake_ups.next().await, Some(first));
        drop(queue);
        assert_eq!(wake_ups.next().await, None);
    }
}
