//! Hears what the mail service reports of emails: bounces and complaints, as EventBridge wraps them
//! (Amazon SES Developer Guide, "Contents of event data").
//!
//! An event's tags say whose email it is. They are never believed: the tenant's own rows must have
//! that delivery, of that run and prompt, to that address. An event is deleted after the commit that
//! it led to; one that nobody can use is told in the log and deleted. No log line holds an address.

use std::collections::HashMap;

use serde::Deserialize;
use shared::{
    db::{
        Db, DbError,
        suppression::{self, Feedback, Noted, Reason},
    },
    destination::EmailAddress,
    ids::{DeliveryId, PromptId, RunId, TenantId},
    mail_tags::{self, MailTags},
    queue::{DeadLetters, Letter},
};
use thiserror::Error;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::dead_letters::{self, ConsumeError};

/// SES sends a message to so many at the most.
const ADDRESSES_MAX: usize = 50;

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// Addresses that are suppressed since.
    pub suppressed: usize,
    /// Events that were deleted.
    pub deleted: usize,
}

/// Why an event is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
enum Unusable {
    #[error("it is no event of the mail service")]
    NotAnEvent,
    #[error("it is neither a bounce nor a complaint")]
    OtherKind,
    #[error("it does not say of which delivery it is")]
    NoTags,
}

/// Reads the queue of events until it is empty, for a bounded number of batches and no longer than
/// `deadline`.
///
/// # Errors
/// When the queue or the database does not answer; what was noted stays noted.
pub async fn consume(
    db: &Db,
    queue: &DeadLetters,
    deadline: Instant,
) -> Result<Heard, ConsumeError> {
    let consumed =
        dead_letters::each(queue, deadline, async |letter| hear(db, letter).await).await?;
    Ok(Heard {
        suppressed: consumed.ended,
        deleted: consumed.deleted,
    })
}

/// Gives the number of addresses that are suppressed since.
async fn hear(db: &Db, letter: &Letter) -> Result<usize, DbError> {
    let report = match read(&letter.body) {
        Ok(report) => report,
        Err(unusable) => {
            error!(
                message.id = letter.id,
                message.bytes = letter.body.len(),
                message.sender = letter.sender,
                error = %unusable,
                "mail event that nobody can use; it is deleted"
            );
            return Ok(0);
        }
    };
    let of = report.of;
    let feedback = Feedback {
        delivery_id: of.delivery_id,
        run_id: of.run_id,
        prompt_id: of.prompt_id,
        addresses: &report.addresses,
        suppress: report.suppress,
        kind: &report.kind,
        message_id: &report.message_id,
        report_id: &report.report_id,
    };
    let noted = suppression::note(db.tenant(of.tenant_id).await?, &feedback).await?;
    match noted {
        Noted::NotOurs => {
            warn!(
                message.id = letter.id, tenant.id = %of.tenant_id, delivery.id = %of.delivery_id,
                "mail event of an email that its tenant did not send; it is deleted"
            );
            Ok(0)
        }
        Noted::Noted { added } => {
            info!(
                tenant.id = %of.tenant_id, run.id = %of.run_id, delivery.id = %of.delivery_id,
                report = report.kind, suppressed = added, "mail event noted"
            );
            Ok(usize::try_from(added).unwrap_or_default())
        }
    }
}

/// What an event says.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    of: MailTags,
    addresses: Vec<EmailAddress>,
    suppress: Option<Reason>,
    kind: String,
    message_id: String,
    report_id: String,
}

#[derive(Deserialize)]
struct Envelope {
    source: String,
    detail: Event,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    event_type: String,
    mail: Mail,
    bounce: Option<Bounce>,
    complaint: Option<Complaint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mail {
    message_id: String,
    #[serde(default)]
    tags: HashMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bounce {
    bounce_type: String,
    #[serde(default)]
    bounce_sub_type: String,
    bounced_recipients: Vec<Recipient>,
    feedback_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Complaint {
    complained_recipients: Vec<Recipient>,
    /// The receiver's word for it, where it gave one.
    complaint_feedback_type: Option<String>,
    feedback_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recipient {
    email_address: String,
}

fn read(body: &str) -> Result<Report, Unusable> {
    let envelope: Envelope = serde_json::from_str(body).map_err(|_| Unusable::NotAnEvent)?;
    if envelope.source != "aws.ses" {
        return Err(Unusable::NotAnEvent);
    }
    let event = envelope.detail;
    let (suppress, kind, recipients, report_id) =
        match (event.event_type.as_str(), event.bounce, event.complaint) {
            ("Bounce", Some(bounce), _) => {
                // A full mailbox or a slow server says nothing of tomorrow.
                let is_final = bounce.bounce_type == "Permanent";
                (
                    is_final.then_some(Reason::Bounce),
                    format!("bounce/{}/{}", bounce.bounce_type, bounce.bounce_sub_type),
                    bounce.bounced_recipients,
                    bounce.feedback_id,
                )
            }
            ("Complaint", _, Some(complaint)) => {
                let word = complaint.complaint_feedback_type.unwrap_or_default();
                (
                    // The one word of a receiver that says the opposite (RFC 6430).
                    (word != "not-spam").then_some(Reason::Complaint),
                    format!("complaint/{word}"),
                    complaint.complained_recipients,
                    complaint.feedback_id,
                )
            }
            _ => return Err(Unusable::OtherKind),
        };
    Ok(Report {
        of: tags(&event.mail.tags).ok_or(Unusable::NoTags)?,
        addresses: recipients
            .iter()
            .take(ADDRESSES_MAX)
            .filter_map(address)
            .collect(),
        suppress,
        kind: word_of(&kind),
        message_id: id_of(&event.mail.message_id),
        report_id,
    })
}

fn tags(tags: &HashMap<String, Vec<String>>) -> Option<MailTags> {
    let tag = |name| match tags.get(name)?.as_slice() {
        [only] => Some(only.as_str()),
        _ => None,
    };
    Some(MailTags {
        tenant_id: tag(mail_tags::TENANT)?.parse::<TenantId>().ok()?,
        prompt_id: tag(mail_tags::PROMPT)?.parse::<PromptId>().ok()?,
        run_id: tag(mail_tags::RUN)?.parse::<RunId>().ok()?,
        delivery_id: tag(mail_tags::DELIVERY)?.parse::<DeliveryId>().ok()?,
    })
}

/// `name@example.com`, or `Name <name@example.com>`.
fn address(recipient: &Recipient) -> Option<EmailAddress> {
    let text = recipient.email_address.trim();
    let bare = text
        .rsplit_once('<')
        .map_or(text, |(_, rest)| rest.trim_end_matches('>'));
    EmailAddress::parse(bare).ok()
}

/// Anybody who may write to the queue chose it: what the database would refuse must not come back with
/// each sweep.
fn id_of(message_id: &str) -> String {
    message_id
        .chars()
        .filter(char::is_ascii_graphic)
        .take(200)
        .collect()
}

/// For the log: what stands in an event is somebody else's text.
fn word_of(kind: &str) -> String {
    let plain = |letter: &char| letter.is_ascii_alphanumeric() || "/-".contains(*letter);
    kind.trim_end_matches('/')
        .chars()
        .filter(plain)
        .take(80)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(kind: &str, more: &Value, of: MailTags) -> Value {
        let mut detail = json!({
            "eventType": kind,
            "mail": {"messageId": "0107", "tags": {
                "ses:configuration-set": ["mail"],
                "tenant": [of.tenant_id], "prompt": [of.prompt_id],
                "run": [of.run_id], "delivery": [of.delivery_id],
            }},
        });
        for (name, value) in more.as_object().unwrap() {
            detail[name] = value.clone();
        }
        json!({"version": "0", "source": "aws.ses", "detail-type": "Email Bounced", "detail": detail})
    }

    fn of() -> MailTags {
        MailTags {
            tenant_id: TenantId::new(),
            prompt_id: PromptId::new(),
            run_id: RunId::new(),
            delivery_id: DeliveryId::new(),
        }
    }

    fn bounce(bounce_type: &str) -> Value {
        json!({"bounce": {"bounceType": bounce_type, "bounceSubType": "General", "feedbackId": "f",
            "bouncedRecipients": [{"emailAddress": "Ada <Ada@Example.com>", "status": "5.1.1"}]}})
    }

    #[test]
    fn only_what_is_final_suppresses() {
        let complaint = |word: Option<&str>| {
            let mut one = json!({"complaint": {"feedbackId": "f",
                "complainedRecipients": [{"emailAddress": "ada@example.com"}]}});
            if let Some(word) = word {
                one["complaint"]["complaintFeedbackType"] = json!(word);
            }
            one
        };
        for (kind, more, suppress, word) in [
            (
                "Bounce",
                bounce("Permanent"),
                Some(Reason::Bounce),
                "bounce/Permanent/General",
            ),
            (
                "Bounce",
                bounce("Transient"),
                None,
                "bounce/Transient/General",
            ),
            (
                "Bounce",
                bounce("Undetermined"),
                None,
                "bounce/Undetermined/General",
            ),
            (
                "Complaint",
                complaint(None),
                Some(Reason::Complaint),
                "complaint",
            ),
            (
                "Complaint",
                complaint(Some("abuse")),
                Some(Reason::Complaint),
                "complaint/abuse",
            ),
            (
                "Complaint",
                complaint(Some("not-spam")),
                None,
                "complaint/not-spam",
            ),
        ] {
            let tags = of();
            let report = read(&event(kind, &more, tags).to_string()).unwrap();
            assert_eq!((report.suppress, report.kind.as_str()), (suppress, word));
            assert_eq!((report.of, report.message_id.as_str()), (tags, "0107"));
            let [address] = report.addresses.as_slice() else {
                panic!("{report:?}");
            };
            assert_eq!(address.normalized(), "ada@example.com");
        }
    }

    #[test]
    fn what_is_no_use_is_told_apart() {
        let whole = event("Bounce", &bounce("Permanent"), of());
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut other = whole.clone();
            change(&mut other);
            read(&other.to_string()).unwrap_err()
        };
        assert_eq!(read("{"), Err(Unusable::NotAnEvent));
        assert_eq!(read("{\"v\": 1}"), Err(Unusable::NotAnEvent));
        assert_eq!(
            changed(&|one| one["source"] = json!("aws.s3")),
            Unusable::NotAnEvent
        );
        assert_eq!(
            changed(&|one| one["detail"]["eventType"] = json!("Open")),
            Unusable::OtherKind
        );
        assert_eq!(
            changed(&|one| one["detail"]["bounce"] = json!(null)),
            Unusable::OtherKind
        );
        for name in ["tenant", "prompt", "run", "delivery"] {
            for value in [json!(["x"]), json!([]), json!([of().run_id, of().run_id])] {
                let unusable = changed(&|one| one["detail"]["mail"]["tags"][name] = value.clone());
                assert_eq!(unusable, Unusable::NoTags, "{name} {value}");
            }
        }
    }
}
