//! Sends one run's output to one destination.
//!
//! What is sent was rendered once, by [`render`], when the result was recorded: each attempt sends
//! the same bytes. It never touches the database and never waits for a retry; the caller records
//! what [`Sender::send`] returns and stores the instant that [`backoff`] gives.

use std::{error::Error, time::Duration};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use shared::{
    aws::Failure, destination::EmailAddress, mail_tags::MailTags, webhook_secret::SigningSecrets,
};

use crate::http::{Guarded, PostError};

mod file;
mod mail;
mod markdown;
pub mod render;
mod s3;
mod ses;
mod storage;
mod webhook;

pub use mail::{Mailer, Smtp, SmtpUrlError};
pub use s3::S3;
pub use ses::Ses;
pub use storage::Storage;

/// The waits between [`DELIVERY_ATTEMPTS_MAX`](shared::run::DELIVERY_ATTEMPTS_MAX) attempts add
/// up to at most 17 h 41 min and to half of that on average, without what receivers ask for with
/// `Retry-After`.
const BACKOFF_BASE: Duration = Duration::from_secs(5);
const BACKOFF_CAP: Duration = Duration::from_secs(4 * 3600);
const EXCERPT_BYTES_MAX: usize = 1024;

/// How long to wait for an operator to set right what no other attempt will.
const OPERATOR_WAIT: Duration = Duration::from_secs(15 * 60);

/// How long to wait after the failed attempt number `attempt`, counted from 1.
#[must_use]
pub fn backoff(attempt: u32, floor: Option<Duration>) -> Duration {
    shared::backoff::delay(attempt, BACKOFF_BASE, BACKOFF_CAP, floor)
}

/// Everything that deliveries go out through. One per process.
#[derive(Debug)]
pub struct Sender {
    mailer: Mailer,
    storage: Storage,
    http: Guarded,
}

/// One attempt of one delivery.
#[derive(Debug)]
pub struct Outgoing<'a> {
    /// Which delivery it is. Its id is the same for all its attempts, and what receivers know it by.
    pub of: MailTags,
    /// Where it goes.
    pub target: Target<'a>,
    /// The rendered bytes; for storage, the run's output.
    pub body: Bytes,
    /// When this attempt began.
    pub attempted_at: DateTime<Utc>,
}

/// Where a delivery goes: the text that [`render`] gave as the target, with what it takes to go
/// there.
#[derive(Debug)]
pub enum Target<'a> {
    /// Addresses, separated by commas, and in lower case those of them that are left out.
    Email(&'a str, &'a [String]),
    /// A URL, and the tenant's secrets.
    Webhook(&'a str, &'a SigningSecrets),
    /// A key.
    Storage(&'a str),
}

/// What is worth recording about an attempt that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sent {
    /// The HTTP status, for webhooks.
    pub status: Option<u16>,
    /// The beginning of the answer, at most 1 KiB, without control characters.
    pub excerpt: Option<String>,
    /// Where the file lies, for storage and for an outbox folder.
    pub location: Option<String>,
}

impl Sender {
    /// Puts the three ways out together.
    #[must_use]
    pub fn new(mailer: Mailer, storage: Storage, http: Guarded) -> Self {
        Self {
            mailer,
            storage,
            http,
        }
    }

    /// Stores an output under its key, once. It ends within 30 seconds.
    ///
    /// # Errors
    ///
    /// [`DeliveryError::ObjectDiffers`] when something else lies there.
    pub async fn store(&self, key: &str, output: Bytes) -> Result<Sent, DeliveryError> {
        self.storage.put(key, output).await
    }

    /// Reads a stored output.
    ///
    /// # Errors
    ///
    /// [`DeliveryError`], which says whether another attempt makes sense.
    pub async fn stored(&self, key: &str) -> Result<Bytes, DeliveryError> {
        self.storage.get(key).await
    }

    /// Makes one attempt; it ends within 90 seconds.
    ///
    /// # Errors
    ///
    /// [`DeliveryError`], which says whether another attempt makes sense.
    pub async fn send(&self, item: &Outgoing<'_>) -> Result<Sent, DeliveryError> {
        match item.target {
            Target::Email(to, suppressed) => {
                let mut recipients = to
                    .split(',')
                    .map(|address| EmailAddress::parse(address.trim()))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|_fault| DeliveryError::InvalidTarget)?;
                recipients.retain(|address| !suppressed.contains(&address.normalized()));
                if recipients.is_empty() {
                    return Err(DeliveryError::Suppressed);
                }
                self.mailer
                    .send(&item.of, &recipients, item.body.clone())
                    .await
            }
            Target::Webhook(url, secrets) => webhook::send(&self.http, url, secrets, item).await,
            Target::Storage(key) => self.storage.put(key, item.body.clone()).await,
        }
    }
}

/// Whether another attempt makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Yes, and not before `after`, when the receiver asked for that.
    Retry {
        /// At least this long from now.
        after: Option<Duration>,
    },
    /// No: it would end the same way.
    GiveUp,
}

/// What somebody answered who did not take the delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status, or the SMTP reply code.
    pub status: u16,
    /// The beginning of what it said, at most 1 KiB, without control characters.
    pub excerpt: String,
}

/// What lies behind an error, for whoever debugs it.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Why an attempt failed. Its text is for the tenant: it names no address of our own network.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The guarded client refused the URL or every address behind it.
    #[error("the URL is not allowed; use a public https URL on port 443 or 8443")]
    UrlNotAllowed,
    /// The endpoint was not reached; it received nothing.
    #[error("the endpoint could not be reached; check its name, its certificate and that it is up")]
    EndpointUnreachable(#[source] PostError),
    /// The endpoint was reached and stayed silent; it may have received the request.
    #[error("the endpoint did not answer within 15 seconds; answer first and work afterwards")]
    EndpointSilent(#[source] PostError),
    /// Status 410.
    #[error("the endpoint answered 410: it is gone for good; set another URL to go on")]
    EndpointGone(Answer),
    /// Status 3xx.
    #[error("the endpoint answered {} and redirects are not followed; set the final URL", .0.status)]
    EndpointRedirects(Answer),
    /// Status 408, 429 or 5xx.
    #[error("the endpoint answered {}; it is tried again", .answer.status)]
    EndpointBusy {
        /// What it said.
        answer: Answer,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// Any other status that is not 2xx.
    #[error("the endpoint answered {}; a delivery is taken with a 2xx status", .0.status)]
    EndpointRefused(Answer),
    /// No mail server took the connection, or it broke before the message was sent.
    #[error("the mail server could not be used; it is tried again")]
    MailUnreachable(#[source] Option<Cause>),
    /// The mail service takes no more for the moment.
    #[error("the mail service asks to slow down; it is tried again")]
    MailThrottled {
        /// Not before.
        retry_after: Option<Duration>,
    },
    /// The mail service does not send for this installation as it stands.
    #[error("the mail service does not send for this installation; the operator has to look")]
    MailNotSetUp(#[source] Failure),
    /// The message is larger than the mail service takes.
    #[error(
        "the email is over 10 MB, the most that the mail service takes; store the output, or shorten it"
    )]
    MailTooLarge,
    /// Nobody is left to send it to.
    #[error(
        "every recipient is suppressed after a bounce or a complaint; take one off that list and redeliver"
    )]
    Suppressed,
    /// An SMTP 4xx reply.
    #[error("the mail server put the message off with {}; it is tried again", .0.status)]
    MailDeferred(Answer),
    /// An SMTP 5xx reply.
    #[error("the mail server refused the message with {}; see its answer", .0.status)]
    MailRefused(Answer),
    /// The connection broke between the message and the reply to it.
    #[error(
        "the mail server did not say whether it took the message; look for it before resending"
    )]
    MailOutcomeUnknown(#[source] Option<Cause>),
    /// The store could not be written to, or read.
    #[error("the store could not be used; it is tried again")]
    StoreUnavailable(#[source] Cause),
    /// The store does not work for this installation as it stands.
    #[error("the store refuses; the operator has to look at its rights and its configuration")]
    StoreNotSetUp(#[source] Failure),
    /// What was stored is not there any more.
    #[error("the stored output is not there any more; it cannot be sent again")]
    ObjectMissing,
    /// What is stored there is larger than any output.
    #[error("what is stored is larger than an output may be; it was not read")]
    ObjectTooLarge,
    /// Another file lies under the same key.
    #[error("another output is stored under this run's key; it was left as it is")]
    ObjectDiffers,
    /// The recorded target is not one that we make.
    #[error("the recorded destination is malformed; save the prompt's destinations again")]
    InvalidTarget,
}

impl DeliveryError {
    /// The stable code that the API shows.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UrlNotAllowed => "url_not_allowed",
            Self::EndpointUnreachable(_) => "endpoint_unreachable",
            Self::EndpointSilent(_) => "endpoint_silent",
            Self::EndpointGone(_) => "endpoint_gone",
            Self::EndpointRedirects(_) => "endpoint_redirects",
            Self::EndpointBusy { .. } => "endpoint_busy",
            Self::EndpointRefused(_) => "endpoint_refused",
            Self::MailUnreachable(_) => "mail_unreachable",
            Self::MailThrottled { .. } => "mail_throttled",
            Self::MailNotSetUp(_) => "mail_not_set_up",
            Self::MailTooLarge => "mail_too_large",
            Self::Suppressed => "suppressed",
            Self::MailDeferred(_) => "mail_deferred",
            Self::MailRefused(_) => "mail_refused",
            Self::MailOutcomeUnknown(_) => "mail_outcome_unknown",
            Self::StoreUnavailable(_) => "store_unavailable",
            Self::StoreNotSetUp(_) => "store_not_set_up",
            Self::ObjectMissing => "object_missing",
            Self::ObjectTooLarge => "object_too_large",
            Self::ObjectDiffers => "object_differs",
            Self::InvalidTarget => "invalid_target",
        }
    }

    /// Whether another attempt makes sense. A prompt's `on_unknown: hold` overrules a retry when
    /// [`Self::outcome_unknown`] says so.
    #[must_use]
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::EndpointBusy { retry_after, .. } | Self::MailThrottled { retry_after } => {
                Disposition::Retry {
                    after: *retry_after,
                }
            }
            Self::MailNotSetUp(_) | Self::StoreNotSetUp(_) => Disposition::Retry {
                after: Some(OPERATOR_WAIT),
            },
            Self::EndpointUnreachable(_)
            | Self::EndpointSilent(_)
            | Self::MailUnreachable(_)
            | Self::MailDeferred(_)
            | Self::MailOutcomeUnknown(_)
            | Self::StoreUnavailable(_) => Disposition::Retry { after: None },
            Self::UrlNotAllowed
            | Self::EndpointGone(_)
            | Self::EndpointRedirects(_)
            | Self::EndpointRefused(_)
            | Self::MailRefused(_)
            | Self::MailTooLarge
            | Self::Suppressed
            | Self::ObjectDiffers
            | Self::ObjectMissing
            | Self::ObjectTooLarge
            | Self::InvalidTarget => Disposition::GiveUp,
        }
    }

    /// Whether the receiver may have taken the delivery all the same.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::EndpointSilent(_) | Self::MailOutcomeUnknown(_))
    }

    /// What the receiver answered, if it did.
    #[must_use]
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Self::EndpointGone(answer)
            | Self::EndpointRedirects(answer)
            | Self::EndpointBusy { answer, .. }
            | Self::EndpointRefused(answer)
            | Self::MailDeferred(answer)
            | Self::MailRefused(answer) => Some(answer),
            Self::UrlNotAllowed
            | Self::EndpointUnreachable(_)
            | Self::EndpointSilent(_)
            | Self::MailUnreachable(_)
            | Self::MailThrottled { .. }
            | Self::MailNotSetUp(_)
            | Self::MailTooLarge
            | Self::Suppressed
            | Self::MailOutcomeUnknown(_)
            | Self::StoreUnavailable(_)
            | Self::StoreNotSetUp(_)
            | Self::ObjectDiffers
            | Self::ObjectMissing
            | Self::ObjectTooLarge
            | Self::InvalidTarget => None,
        }
    }
}

/// The beginning of an answer as text that a table and a terminal can take.
fn excerpt(bytes: &[u8]) -> String {
    let beginning = &bytes[..bytes.len().min(EXCERPT_BYTES_MAX)];
    let text = String::from_utf8_lossy(beginning);
    let mut safe = String::with_capacity(text.len());
    for c in text.trim_end_matches(char::REPLACEMENT_CHARACTER).chars() {
        let c = if c.is_control() { ' ' } else { c };
        if safe.len() + c.len_utf8() > EXCERPT_BYTES_MAX {
            break;
        }
        safe.push(c);
    }
    safe.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Read, Write},
        net::TcpListener,
        thread::{self, JoinHandle},
    };

    use shared::{
        ids::{DeliveryId, PromptId, RunId, TenantId},
        outbound::Policy,
        webhook_secret::WebhookSecret,
    };

    use super::*;

    struct Request {
        /// In lower case.
        lines: Vec<String>,
        body: String,
    }

    /// A server that answers with these statuses, one a connection, and returns what came.
    fn endpoint(statuses: &'static [&'static str]) -> (String, JoinHandle<Vec<Request>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let requests = thread::spawn(move || {
            let mut requests = Vec::new();
            for status in statuses {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut lines = Vec::new();
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    match line.trim_end() {
                        "" => break,
                        line => lines.push(line.to_lowercase()),
                    }
                }
                let length = lines
                    .iter()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.parse().unwrap());
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let body = String::from_utf8(body).unwrap();
                requests.push(Request { lines, body });
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 4\r\n\r\nsaid");
                stream.write_all(answer.as_bytes()).unwrap();
            }
            requests
        });
        (url, requests)
    }

    fn tags() -> MailTags {
        MailTags {
            tenant_id: TenantId::new(),
            prompt_id: PromptId::new(),
            run_id: RunId::new(),
            delivery_id: DeliveryId::new(),
        }
    }

    fn sender(folder: &std::path::Path, allow_loopback: bool) -> Sender {
        Sender::new(
            Mailer::Directory {
                path: folder.join("outbox"),
            },
            Storage::Directory {
                root: folder.join("storage"),
            },
            Guarded::new(Policy { allow_loopback }).unwrap(),
        )
    }

    #[tokio::test]
    async fn each_attempt_of_a_webhook_has_the_same_id_and_body_and_a_time_of_its_own() {
        let (url, requests) = endpoint(&["503 Busy", "200 OK"]);
        let folder = tempfile::tempdir().unwrap();
        let sender = sender(folder.path(), true);
        let secrets = SigningSecrets {
            current: WebhookSecret::generate(),
            previous: None,
        };
        let mut item = Outgoing {
            of: tags(),
            target: Target::Webhook(&url, &secrets),
            body: Bytes::from_static(br#"{"type":"run.succeeded"}"#),
            attempted_at: "2026-03-02T09:00:00Z".parse().unwrap(),
        };
        let error = sender.send(&item).await.unwrap_err();
        assert_eq!(
            (error.code(), error.answer().unwrap().status),
            ("endpoint_busy", 503)
        );
        item.attempted_at += Duration::from_secs(7);
        let sent = sender.send(&item).await.unwrap();
        assert_eq!(
            (sent.status, sent.excerpt.as_deref()),
            (Some(200), Some("said"))
        );

        let requests = requests.join().unwrap();
        let header = |at: usize, name: &str| {
            let prefix = format!("{name}: ");
            let mut found = requests[at]
                .lines
                .iter()
                .filter_map(|line| line.strip_prefix(&prefix));
            let value = found.next().unwrap().to_owned();
            assert_eq!(found.next(), None, "{name}");
            value
        };
        for at in [0, 1] {
            assert_eq!(requests[at].lines[0], "post /hook http/1.1");
            assert_eq!(requests[at].body, r#"{"type":"run.succeeded"}"#);
            assert_eq!(header(at, "webhook-id"), item.of.delivery_id.to_string());
            assert_eq!(header(at, "content-type"), "application/json");
            assert!(header(at, "user-agent").starts_with("carillon/"));
        }
        assert_eq!(header(0, "webhook-timestamp"), "1772442000");
        assert_eq!(header(1, "webhook-timestamp"), "1772442007");
        assert_ne!(
            header(0, "webhook-signature"),
            header(1, "webhook-signature")
        );
    }

    #[tokio::test]
    async fn a_refused_url_is_final_and_says_nothing_of_our_network() {
        let folder = tempfile::tempdir().unwrap();
        let sender = sender(folder.path(), false);
        let secrets = SigningSecrets {
            current: WebhookSecret::generate(),
            previous: None,
        };
        let item = Outgoing {
            of: tags(),
            target: Target::Webhook("https://169.254.169.254/latest", &secrets),
            body: Bytes::new(),
            attempted_at: Utc::now(),
        };
        let error = sender.send(&item).await.unwrap_err();
        assert_eq!(error.code(), "url_not_allowed");
        assert_eq!(error.disposition(), Disposition::GiveUp);
        assert!(!error.outcome_unknown() && !error.to_string().contains("169"));
    }

    #[tokio::test]
    async fn a_malformed_row_sends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let sender = sender(folder.path(), true);
        for to in [
            "",
            "a@b.example, ",
            "a@b.example, no",
            "a@b.example\r\nRCPT TO:<c@d.example>",
        ] {
            let item = Outgoing {
                of: tags(),
                target: Target::Email(to, &[]),
                body: Bytes::new(),
                attempted_at: Utc::now(),
            };
            let error = sender.send(&item).await.unwrap_err();
            assert_eq!(
                (error.code(), error.disposition()),
                ("invalid_target", Disposition::GiveUp)
            );
        }
        assert!(!folder.path().join("outbox").exists());
    }

    #[tokio::test]
    async fn a_suppressed_recipient_is_left_out_whatever_its_case() {
        let folder = tempfile::tempdir().unwrap();
        let sender = sender(folder.path(), true);
        let suppressed = ["ada@example.com".to_owned()];
        let mut item = Outgoing {
            of: tags(),
            target: Target::Email("Ada@Example.com, bob@example.com", &suppressed),
            body: Bytes::from_static(b"Subject: x\r\n\r\nhello\r\n"),
            attempted_at: Utc::now(),
        };
        assert!(sender.send(&item).await.is_ok());
        item.of = tags();
        item.target = Target::Email("Ada@Example.com", &suppressed);
        let error = sender.send(&item).await.unwrap_err();
        assert_eq!(
            (error.code(), error.disposition()),
            ("suppressed", Disposition::GiveUp)
        );
        let outbox = std::fs::read_dir(folder.path().join("outbox")).unwrap();
        assert_eq!(outbox.count(), 1);
    }

    #[test]
    fn an_excerpt_is_short_and_harmless() {
        assert_eq!(excerpt(b" ok\r\n"), "ok");
        assert_eq!(excerpt(b"a\0b\x1b[31mc\r\nd"), "a b [31mc  d");
        let long = "ü".repeat(2000);
        assert_eq!(excerpt(long.as_bytes()), "ü".repeat(512));
        assert!(excerpt(&[0xff; 5000]).len() <= EXCERPT_BYTES_MAX);
        // A character that the limit cuts in two leaves nothing behind.
        assert_eq!(
            excerpt(format!("a{long}").as_bytes()),
            format!("a{}", "ü".repeat(511))
        );
    }

    #[test]
    fn the_documented_span_holds() {
        let attempts_max = u32::try_from(shared::run::DELIVERY_ATTEMPTS_MAX).unwrap();
        let span: Duration = (1..attempts_max)
            .map(|attempt| shared::backoff::ceiling(attempt, BACKOFF_BASE, BACKOFF_CAP))
            .sum();
        assert_eq!(span, Duration::from_secs(63_675));
    }
}
