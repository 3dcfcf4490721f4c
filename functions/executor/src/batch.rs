//! One invocation of the Lambda function: a batch of messages, worked on so many at a time.
//!
//! A slot that is free takes the next message of the batch, so that one slow model call holds up
//! nothing but itself. What cannot end before the deadline is not begun and goes back to the queue;
//! what nobody can use goes to the dead-letter queue at once. Nothing here decides about a run, and
//! no log line says what a message holds.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsMessage};
use shared::{
    db::DbError,
    message::{self, Message, WakeUp},
    queue::DeadLetters,
    telemetry,
};
use tokio::{
    task::{Id, JoinSet},
    time::{Instant, timeout_at},
};
use tracing::{error, info, warn};

use crate::{Executor, Handled, Pace, Until};

/// Between the end of all work and the moment at which Lambda ends the process: the answer must be
/// out by then.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// A message that came back so often through no fault of its own is sent anew: what SQS counts is to
/// lead to the dead-letter queue what fails by itself, and nothing else.
const RETURNS_MAX: u32 = 2;

/// What works on batches. One per process; a clone shares it.
#[derive(Clone)]
pub struct Worker {
    /// What runs go through.
    pub executor: Arc<Executor>,
    /// Where unusable messages go.
    pub dead_letters: DeadLetters,
    /// Messages worked on at once.
    pub slots: usize,
    /// Told when several are.
    pub pace: Pace,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// SQS may delete it.
    Done,
    /// It comes again, because of the time or the database.
    Returned,
    /// It comes again, because of itself.
    Failed,
}

/// A message while it is worked on.
#[derive(Debug, Clone)]
struct Taken {
    id: String,
    received: u32,
    wake_up: Option<WakeUp>,
}

impl Worker {
    /// Works on a batch until it is through, or until shortly before `deadline`; gives the messages
    /// that are to come again.
    pub async fn work(&self, records: Vec<SqsMessage>, deadline: Instant) -> SqsBatchResponse {
        let stop = deadline.checked_sub(ANSWER_MARGIN).unwrap_or(deadline);
        let until = Until::instant(stop);
        let mut waiting: VecDeque<SqsMessage> = records.into();
        let mut under_way = JoinSet::new();
        let mut taken: HashMap<Id, Taken> = HashMap::new();
        let mut ended = Vec::new();
        loop {
            while under_way.len() < self.slots
                && until.allows(Duration::ZERO)
                && let Some(record) = waiting.pop_front()
            {
                let (one, read) = read(&record);
                let work = self.clone().one(one.clone(), record.body, read, until);
                // A task's end moves it, which is dear for one of 14 kB.
                let task = under_way.spawn(Box::pin(work));
                taken.insert(task.id(), one);
            }
            self.pace.note(under_way.len());
            match timeout_at(stop, under_way.join_next_with_id()).await {
                Ok(Some(Ok((id, fate)))) => {
                    if let Some(one) = taken.remove(&id) {
                        ended.push((one, fate));
                    }
                }
                Ok(Some(Err(panicked))) => {
                    // Not the error: it repeats the panic's message, which may quote a text.
                    error!(
                        "a wake-up's task panicked; what it held comes back when its lease ends"
                    );
                    if let Some(one) = taken.remove(&panicked.id()) {
                        ended.push((one, Fate::Failed));
                    }
                }
                Ok(None) => break,
                Err(_) => {
                    warn!(
                        under_way = under_way.len(),
                        waiting = waiting.len(),
                        "the time is over; what is under way comes back when its lease ends"
                    );
                    break;
                }
            }
        }
        self.pace.note(0);
        ended.extend(taken.into_values().map(|one| (one, Fate::Failed)));
        ended.extend(
            waiting
                .iter()
                .map(|record| (read(record).0, Fate::Returned)),
        );
        self.answer(ended).await
    }

    /// Reads one message and does what it asks.
    async fn one(
        self,
        taken: Taken,
        body: Option<String>,
        read: Result<Message, message::Unreadable>,
        until: Until,
    ) -> Fate {
        let message = match read {
            Ok(message) => message,
            Err(unreadable) => {
                error!(message.id = taken.id, error = %unreadable, "unreadable wake-up; it goes to the dead-letter queue");
                return self
                    .bury(&taken.id, body, unreadable_word(&unreadable))
                    .await;
            }
        };
        let tenant_id = message.wake_up.tenant_id();
        match self.executor.receive(message, until).await {
            Ok(Handled::Done) => Fate::Done,
            Ok(Handled::NoTime) => {
                info!(message.id = taken.id, tenant.id = %tenant_id, "no time left to begin; the wake-up goes back");
                Fate::Returned
            }
            Ok(Handled::Unknown) => {
                error!(message.id = taken.id, tenant.id = %tenant_id, "wake-up for what its tenant does not have; it goes to the dead-letter queue");
                self.bury(&taken.id, body, "not_of_tenant").await
            }
            // Somebody else is at it, which is as good.
            Err(DbError::StaleLease) => Fate::Done,
            Err(error) => {
                let causes = telemetry::causes(&error);
                error!(message.id = taken.id, tenant.id = %tenant_id, %error, causes, "wake-up failed; it goes back");
                if error.is_transient() {
                    Fate::Returned
                } else {
                    Fate::Failed
                }
            }
        }
    }

    async fn bury(&self, id: &str, body: Option<String>, reason: &'static str) -> Fate {
        match self
            .dead_letters
            .bury(id, &body.unwrap_or_default(), reason)
            .await
        {
            Ok(()) => Fate::Done,
            // Then SQS brings it there, when it has come often enough.
            Err(error) => {
                warn!(message.id = id, %error, "the dead-letter queue did not take the message; it goes back");
                Fate::Failed
            }
        }
    }

    async fn answer(&self, ended: Vec<(Taken, Fate)>) -> SqsBatchResponse {
        let (often, rest): (Vec<_>, Vec<_>) = ended
            .into_iter()
            .filter(|(_, fate)| *fate != Fate::Done)
            .partition(|(one, fate)| *fate == Fate::Returned && one.received > RETURNS_MAX);
        let mut response = SqsBatchResponse::default();
        // Without an id the whole batch comes again, which harms nothing.
        for (one, _) in rest {
            response.add_failure(one.id);
        }
        let wake_ups: Vec<_> = often.iter().filter_map(|(one, _)| one.wake_up).collect();
        if self.executor.queue.offer(&wake_ups, Duration::ZERO).await < wake_ups.len() {
            for (one, _) in often {
                response.add_failure(one.id);
            }
        }
        response
    }
}

fn read(record: &SqsMessage) -> (Taken, Result<Message, message::Unreadable>) {
    let read = message::decode(record.body.as_deref().unwrap_or_default());
    let received = record.attributes.get("ApproximateReceiveCount");
    let taken = Taken {
        id: record.message_id.clone().unwrap_or_default(),
        received: received.and_then(|count| count.parse().ok()).unwrap_or(1),
        wake_up: read.as_ref().ok().map(|message| message.wake_up),
    };
    (taken, read)
}

fn unreadable_word(unreadable: &message::Unreadable) -> &'static str {
    match unreadable {
        message::Unreadable::NoVersion => "no_version",
        message::Unreadable::OtherVersion(_) => "other_version",
        message::Unreadable::OtherShape => "other_shape",
    }
}
