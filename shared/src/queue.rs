//! Wake-ups on their way to the executor.

use tokio::sync::mpsc;

use crate::message::WakeUp;

/// Where wake-ups go.
#[derive(Debug, Clone)]
pub enum Queue {
    /// A bounded channel inside one process.
    Local(mpsc::Sender<WakeUp>),
}

impl Queue {
    /// A queue inside this process and its other end. It holds at most `capacity` wake-ups.
    #[must_use]
    pub fn local(capacity: usize) -> (Self, mpsc::Receiver<WakeUp>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (Self::Local(sender), receiver)
    }

    /// Sends a wake-up if there is room. A full queue loses it: the sweeper finds the work again.
    pub fn offer(&self, wake_up: WakeUp) -> bool {
        match self {
            Self::Local(sender) => sender.try_send(wake_up).is_ok(),
        }
    }
}
