//! Keeps outputs as objects of a bucket, one per run, that are never written over.
//!
//! Each object is encrypted with the installation's key and says whose it is. What lies under a key
//! already is compared by its hash, never replaced.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, Method, header::CONTENT_LENGTH};
use sha2::{Digest, Sha256};
use shared::aws::{Bucket, Failed, Failure, Request, SdkConfig};
use tokio::time::timeout;
use tracing::warn;

use super::{DeliveryError, Sent};

/// More than any output has: what is read back stands in memory.
const OBJECT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A longer output was stored when it was recorded, so it is worth a look before it is sent again.
const LOOK_FIRST_BYTES: usize = 256 * 1024;

const TIMEOUT: Duration = Duration::from_secs(15);

const CONTENT_TYPE: &str = "text/markdown; charset=utf-8";
const CHECKSUM: &str = "x-amz-checksum-sha256";
const NOTED: &str = "x-amz-meta-sha256";

/// A bucket, and the key that its objects are encrypted with.
#[derive(Debug)]
pub struct S3 {
    bucket: Bucket,
    kms_key_id: String,
}

/// What is known about an object without reading it.
struct Found {
    bytes: Option<usize>,
    sha256: Option<String>,
}

impl S3 {
    /// With AWS's usual settings: region, credentials, endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig, bucket: String, kms_key_id: String) -> Self {
        Self {
            bucket: Bucket::new(aws, bucket),
            kms_key_id,
        }
    }

    pub(super) async fn put(&self, key: &str, body: Bytes) -> Result<Sent, DeliveryError> {
        within(Box::pin(self.put_once(key, body))).await?;
        Ok(Sent {
            location: Some(format!("s3://{}/{key}", self.bucket.name())),
            ..Sent::default()
        })
    }

    pub(super) async fn get(&self, key: &str) -> Result<Bytes, DeliveryError> {
        within(Box::pin(self.read(key))).await
    }

    async fn put_once(&self, key: &str, body: Bytes) -> Result<(), DeliveryError> {
        let hash = Sha256::digest(&body);
        let (bytes, sha256) = (body.len(), BASE64_STANDARD.encode(hash));
        // A role that may not list is told 403 where nothing lies, so a refusal says nothing here.
        if bytes > LOOK_FIRST_BYTES
            && let Ok(Some(found)) = self.find(key).await
        {
            return found.compare(bytes, &sha256);
        }
        let put = Request {
            method: Method::PUT,
            headers: self.headers(key, &sha256),
            body,
            sha256: hex::encode(hash),
            ..asking(Method::PUT, key)
        };
        let Err(failure) = self.bucket.call(&put).await else {
            return Ok(());
        };
        if !lies_there(&failure) {
            return Err(told(failure));
        }
        match self.find(key).await.map_err(told)? {
            Some(found) => found.compare(bytes, &sha256),
            // It was deleted a moment ago.
            None => Err(DeliveryError::StoreUnavailable(Box::new(failure))),
        }
    }

    fn headers(&self, key: &str, sha256: &str) -> Vec<(&'static str, String)> {
        let fixed = [
            ("if-none-match", "*"),
            ("content-type", CONTENT_TYPE),
            (CHECKSUM, sha256),
            (NOTED, sha256),
            ("x-amz-server-side-encryption", "aws:kms"),
            (
                "x-amz-server-side-encryption-aws-kms-key-id",
                &self.kms_key_id,
            ),
            ("x-amz-server-side-encryption-bucket-key-enabled", "true"),
        ];
        let fixed = fixed.map(|(name, value)| (name, value.to_owned()));
        fixed.into_iter().chain(owners(key)).collect()
    }

    async fn find(&self, key: &str) -> Result<Option<Found>, Failure> {
        let head = Request {
            headers: vec![("x-amz-checksum-mode", "ENABLED".to_owned())],
            ..asking(Method::HEAD, key)
        };
        match self.bucket.call(&head).await {
            Ok(answer) => Ok(Some(Found::read(&answer.headers))),
            Err(failure) if failure.status == Some(404) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn read(&self, key: &str) -> Result<Bytes, DeliveryError> {
        let answer = self.bucket.call(&asking(Method::GET, key)).await;
        let answer = answer.map_err(told)?;
        answer.body.ok_or(DeliveryError::ObjectTooLarge)
    }
}

/// A request without a body or headers of its own.
fn asking(method: Method, key: &str) -> Request<'_> {
    Request {
        method,
        key,
        headers: Vec::new(),
        body: Bytes::new(),
        sha256: hex::encode(Sha256::digest([])),
        answer_bytes_max: OBJECT_BYTES_MAX,
    }
}

impl Found {
    fn read(headers: &HeaderMap) -> Self {
        let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        Self {
            bytes: headers
                .get(CONTENT_LENGTH)
                .and_then(|length| length.to_str().ok()?.parse().ok()),
            sha256: said(CHECKSUM).or_else(|| said(NOTED)).map(str::to_owned),
        }
    }

    fn compare(&self, bytes: usize, sha256: &str) -> Result<(), DeliveryError> {
        let same = self.bytes == Some(bytes) && self.sha256.as_deref() == Some(sha256);
        if same {
            Ok(())
        } else {
            Err(DeliveryError::ObjectDiffers)
        }
    }
}

async fn within<T>(
    work: impl Future<Output = Result<T, DeliveryError>>,
) -> Result<T, DeliveryError> {
    match timeout(TIMEOUT, work).await {
        Ok(done) => done,
        Err(_elapsed) => Err(told(Failure::deadline())),
    }
}

/// The key says whose an object is: `tenants/{tenant}/prompts/{prompt}/{slot}/{run}.md`.
fn owners(key: &str) -> Vec<(&'static str, String)> {
    const ID_CHARS: usize = 36;
    let parts: Vec<_> = key.split('/').collect();
    let [_, tenant, _, prompt, slot, file] = parts.as_slice() else {
        return Vec::new();
    };
    let run = file.get(..ID_CHARS).unwrap_or(file);
    [
        ("x-amz-meta-tenant", *tenant),
        ("x-amz-meta-prompt", *prompt),
        ("x-amz-meta-slot", *slot),
        ("x-amz-meta-run", run),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

fn lies_there(failure: &Failure) -> bool {
    failure.code == "PreconditionFailed" || failure.status == Some(412)
}

fn told(failure: Failure) -> DeliveryError {
    warn!(
        aws.code = failure.code,
        aws.status = failure.status,
        "the object store did not do as it was asked"
    );
    refused(failure)
}

/// The codes of the API reference, "Error responses"; the rest is the same for every service.
fn refused(failure: Failure) -> DeliveryError {
    match failure.code.as_str() {
        "NoSuchKey" | "NotFound" => DeliveryError::ObjectMissing,
        "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" => {
            DeliveryError::StoreUnavailable(Box::new(failure))
        }
        _ => match failure.failed {
            Failed::Throttled
            | Failed::Unavailable
            | Failed::TimedOut
            | Failed::NotConnected
            | Failed::Unreachable
            | Failed::Garbled
            | Failed::Conflict => DeliveryError::StoreUnavailable(Box::new(failure)),
            // Another region's bucket, none at all, a key that is switched off.
            Failed::NotSent | Failed::Denied | Failed::Refused => {
                DeliveryError::StoreNotSetUp(failure)
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_says_whose_it_is() {
        let run = "019d0a6f-3d20-7a90-b6f4-2c8e51d07b13";
        for file in [format!("{run}.md"), format!("{run}-2.md")] {
            let key = format!("tenants/t/prompts/p/20260102T090000Z/{file}");
            let said = owners(&key);
            let said: Vec<_> = said
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            assert_eq!(
                said,
                [
                    ("x-amz-meta-tenant", "t"),
                    ("x-amz-meta-prompt", "p"),
                    ("x-amz-meta-slot", "20260102T090000Z"),
                    ("x-amz-meta-run", run)
                ]
            );
        }
    }

    #[test]
    fn only_the_same_bytes_are_a_repeat() {
        let found = |bytes, sha256: Option<&str>| Found {
            bytes: Some(bytes),
            sha256: sha256.map(str::to_owned),
        };
        assert!(found(3, Some("a")).compare(3, "a").is_ok());
        for other in [
            found(3, Some("b")),
            found(4, Some("a")),
            found(3, None),
            Found {
                bytes: None,
                sha256: Some("a".to_owned()),
            },
        ] {
            assert_eq!(other.compare(3, "a").unwrap_err().code(), "object_differs");
        }
    }
}
