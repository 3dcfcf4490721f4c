//! Answers to requests that may be repeated, kept for 24 hours.
//!
//! The answer is written in the transaction that has the effect: a crash leaves both or neither.
//! A lock, held until that transaction ends, keeps two equal requests from working at once.

use super::{
    DbError, TenantTx, audit,
    audit::{Event, EventRow},
    column,
    tenant_tx::{Step, step},
};

/// What a request finds under its key.
#[derive(Debug)]
pub enum Begin {
    /// Nothing: go on, and end with [`commit`].
    Fresh,
    /// The same request was answered already.
    Answered {
        /// HTTP status.
        status: i32,
        /// The rest of the answer, sealed.
        sealed: Vec<u8>,
    },
    /// Another request was answered under this key.
    OtherRequest,
    /// An equal key is being worked on.
    InFlight,
}

/// Takes the key's lock and looks for an answer.
///
/// # Errors
/// When the database does not answer.
pub async fn begin(tx: &TenantTx, key: &str, request_hash: &[u8]) -> Result<Begin, DbError> {
    let lock_name = format!("idempotency:{}:{key}", tx.tenant());
    // Two statements, because a statement sees what was committed before it began: one alone could
    // take the lock after another request's commit and still not see its answer.
    let mut rows = tx
        .pipeline(&[
            step(
                "-- idempotency::lock
                 SELECT pg_try_advisory_xact_lock(hashtextextended($1, 0)) AS locked",
                &[&lock_name],
            ),
            step(
                "-- idempotency::answer
                 SELECT request_hash, response_status, response_sealed
                   FROM idempotency_keys
                  WHERE key = $1 AND created_at > now() - interval '24 hours'",
                &[&key],
            ),
        ])
        .await?
        .into_iter()
        .flatten();
    let locked = match rows.next() {
        Some(row) => column(&row, "locked")?,
        None => false,
    };
    let Some(answer) = rows.next() else {
        return Ok(if locked {
            Begin::Fresh
        } else {
            Begin::InFlight
        });
    };
    if column::<Vec<u8>>(&answer, "request_hash")? != request_hash {
        return Ok(Begin::OtherRequest);
    }
    Ok(Begin::Answered {
        status: column(&answer, "response_status")?,
        sealed: column(&answer, "response_sealed")?,
    })
}

/// An answer to keep.
#[derive(Debug)]
pub struct Answer {
    /// The key under which [`begin`] found nothing.
    pub key: String,
    /// SHA-256 of the request.
    pub request_hash: [u8; 32],
    /// HTTP status.
    pub status: i32,
    /// The rest, sealed.
    pub sealed: Vec<u8>,
}

/// Writes the audit event and the answer, and commits, in one round trip.
///
/// # Errors
/// When nothing was kept, or, after a broken connection, when that is not known.
pub async fn commit(
    tx: TenantTx,
    event: Option<&Event>,
    answer: Option<&Answer>,
) -> Result<(), DbError> {
    let tenant = tx.tenant().uuid();
    let event = event.map(|event| EventRow::new(&tx, event));
    let event = event.as_ref().map(EventRow::params);
    let request_hash = answer.map(|answer| answer.request_hash.as_slice());
    let answer: Option<[super::Param<'_>; 5]> = answer.map(|answer| {
        [
            &tenant as super::Param<'_>,
            &answer.key,
            &request_hash,
            &answer.status,
            &answer.sealed,
        ]
    });
    let steps: Vec<Step<'_>> = [
        event.as_ref().map(|params| step(audit::INSERT, params)),
        answer.as_ref().map(|params| step(INSERT, params)),
    ]
    .into_iter()
    .flatten()
    .collect();
    tx.commit_with(&steps).await.map(|_| ())
}

/// The lock is held, so what is replaced is older than 24 hours.
const INSERT: &str = "-- idempotency::insert
     INSERT INTO idempotency_keys (tenant_id, key, request_hash, response_status, response_sealed)
     VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (tenant_id, key) DO UPDATE
        SET request_hash = excluded.request_hash, response_status = excluded.response_status,
            response_sealed = excluded.response_sealed, created_at = now()";
