//! Addresses that nothing is mailed to any more: each tenant has a list of its own.
//!
//! What a mail service reports is heard only of an email that the tenant did send, and only of that
//! email's recipients: a report names tenant, run and delivery, and all of it must be so here.

use chrono::{DateTime, Utc};
use serde_json::json;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{DbError, TenantTx, column, runs::word, tenant_tx::step};
use crate::{
    destination::EmailAddress,
    ids::{DeliveryId, PromptId, RunId},
};

/// Of an email's recipients, those that are suppressed, where this is the target of a delivery of
/// this kind.
macro_rules! suppressed_of {
    ($kind:literal, $target:literal) => {
        concat!(
            "CASE WHEN ",
            $kind,
            " = 'email' THEN ARRAY(
                 SELECT s.address FROM suppressed_addresses s
                  WHERE s.address = ANY (string_to_array(lower(",
            $target,
            " COLLATE \"C\"), ', '))
                  ORDER BY s.address)
             ELSE '{}' END"
        )
    };
}
pub(super) use suppressed_of;

/// Why an address is suppressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its mail server refused it for good.
    Bounce,
    /// Its owner called a mail unwanted.
    Complaint,
}

impl Reason {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bounce, Self::Complaint];

    /// As it stands in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bounce => "bounce",
            Self::Complaint => "complaint",
        }
    }
}

impl std::str::FromStr for Reason {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|reason| reason.as_str() == text)
            .ok_or("neither bounce nor complaint")
    }
}

/// An address on the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuppressedAddress {
    /// The entry, for the audit trail.
    pub id: Uuid,
    /// In lower case.
    pub address: String,
    /// Why.
    pub reason: Reason,
    /// What it was learned from; it may be gone.
    pub delivery_id: DeliveryId,
    /// The mail service's id of that message.
    pub message_id: String,
    /// Since when.
    pub created_at: DateTime<Utc>,
}

/// What a mail service reported of an email.
#[derive(Debug, Clone, Copy)]
pub struct Feedback<'a> {
    /// The email.
    pub delivery_id: DeliveryId,
    /// Its run.
    pub run_id: RunId,
    /// The run's prompt.
    pub prompt_id: PromptId,
    /// Whose addresses are meant.
    pub addresses: &'a [EmailAddress],
    /// Why they are to be suppressed; `None`: the report is only noted in the run's log.
    pub suppress: Option<Reason>,
    /// `Bounce/Transient` and the like, for the log.
    pub kind: &'a str,
    /// The mail service's id of the message.
    pub message_id: &'a str,
    /// The mail service's id of the report: the same for one that comes twice.
    pub report_id: &'a str,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// The tenant sent no such email, or not to any of these.
    NotOurs,
    /// It stands in the run's log, and so many addresses more are suppressed.
    Noted {
        /// New ones.
        added: i64,
    },
}

/// Notes what a mail service reported, once, and suppresses the addresses if it says so. Ends the
/// transaction. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn note(tx: TenantTx, feedback: &Feedback<'_>) -> Result<Noted, DbError> {
    let mut addresses: Vec<_> = feedback
        .addresses
        .iter()
        .map(EmailAddress::normalized)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ids: Vec<_> = addresses.iter().map(|_| Uuid::now_v7()).collect();
    let reason = feedback.suppress.map(Reason::as_str);
    let line = line_of(feedback);
    let context = json!({
        "delivery_id": feedback.delivery_id,
        "report": feedback.kind,
        "recipients": addresses.len(),
        "suppressed": reason.is_some(),
    });
    let results = tx
        .commit_with(&[step(
            "-- suppression::note
             WITH sent AS (
                 SELECT d.tenant_id, d.id, d.run_id, lower(d.target COLLATE \"C\") AS target
                   FROM deliveries d
                   JOIN scheduled_prompt_runs r ON r.tenant_id = d.tenant_id AND r.id = d.run_id
                  WHERE d.id = $1 AND d.run_id = $2 AND r.prompt_id = $3
                    AND d.kind = 'email' AND d.attempt > 0
             ), named AS (
                 SELECT s.tenant_id, s.id AS delivery_id, a.address, a.id
                   FROM sent s, unnest($4::text[], $5::uuid[]) AS a (address, id)
                  WHERE a.address = ANY (string_to_array(s.target, ', '))
             ), added AS (
                 INSERT INTO suppressed_addresses
                        (tenant_id, address, id, reason, delivery_id, message_id)
                 SELECT n.tenant_id, n.address, n.id, $6::text, n.delivery_id, $7::text
                   FROM named n WHERE $6::text IS NOT NULL
                 ON CONFLICT (tenant_id, address) DO NOTHING
                 RETURNING 1
             ), logged AS (
                 INSERT INTO run_logs (tenant_id, run_id, id, level, message, context)
                 SELECT s.tenant_id, s.run_id, $8::uuid, 'warn', 'the mail service reported on an email',
                        $9::jsonb
                   FROM sent s WHERE EXISTS (SELECT FROM named)
                 ON CONFLICT (tenant_id, id) DO NOTHING
             )
             SELECT (SELECT count(*) FROM named) AS named, (SELECT count(*) FROM added) AS added",
            &[
                &feedback.delivery_id.uuid(),
                &feedback.run_id.uuid(),
                &feedback.prompt_id.uuid(),
                &addresses,
                &ids,
                &reason,
                &feedback.message_id,
                &line,
                &context,
            ],
        )])
        .await?;
    let row = results.iter().flatten().next().ok_or(DbError::Aborted)?;
    Ok(match column::<i64>(row, "named")? {
        0 => Noted::NotOurs,
        _ => Noted::Noted {
            added: column(row, "added")?,
        },
    })
}

/// The id of a report's line in the log, so that one that comes twice has one line.
fn line_of(feedback: &Feedback<'_>) -> Uuid {
    let mut hasher = Sha256::new();
    hasher.update(feedback.delivery_id.uuid().as_bytes());
    hasher.update(feedback.report_id.as_bytes());
    let hash: [u8; 32] = hasher.finalize().into();
    let (half, _) = hash.split_at(16);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(half);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// A page of the tenant's list, by address. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn list(
    tx: TenantTx,
    after: Option<&str>,
    rows_max: i64,
) -> Result<Vec<SuppressedAddress>, DbError> {
    let after = after.unwrap_or_default();
    let results = tx
        .commit_with(&[step(
            "-- suppression::list
             SELECT s.id, s.address, s.reason, s.delivery_id, s.message_id, s.created_at
               FROM suppressed_addresses s
              WHERE s.address > $1
              ORDER BY s.address LIMIT $2",
            &[&after, &rows_max],
        )])
        .await?;
    let rows = results.iter().flatten();
    rows.map(|row| {
        Ok(SuppressedAddress {
            id: column(row, "id")?,
            address: column(row, "address")?,
            reason: word(row, "reason")?,
            delivery_id: DeliveryId::from(column::<Uuid>(row, "delivery_id")?),
            message_id: column(row, "message_id")?,
            created_at: column(row, "created_at")?,
        })
    })
    .collect()
}

/// Takes an address off the list, and gives the entry that it had. One round trip.
///
/// # Errors
/// When the database does not answer.
pub async fn delete(tx: &TenantTx, address: &EmailAddress) -> Result<Option<Uuid>, DbError> {
    let row = tx
        .query_opt(
            "-- suppression::delete
             DELETE FROM suppressed_addresses WHERE address = $1 RETURNING id",
            &[&address.normalized()],
        )
        .await?;
    row.map(|row| column(&row, "id")).transpose()
}
