//! Keeps outputs as objects of a bucket, one per run, that are never written over.
//!
//! Each object is encrypted with the installation's key and says whose it is. What lies under a key
//! already is compared by its hash, never replaced.

use std::{fmt, time::Duration};

use aws_sdk_s3::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    operation::put_object::builders::PutObjectFluentBuilder,
    primitives::ByteStream,
    types::{ChecksumMode, ServerSideEncryption},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use shared::aws::{Failed, Failure, SdkConfig};
use tokio::time::timeout;
use tracing::warn;

use super::{DeliveryError, Sent};

/// More than any output has: what is read back stands in memory.
const OBJECT_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A longer output was stored when it was recorded, so it is worth a look before it is sent again.
const LOOK_FIRST_BYTES: usize = 256 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);
const TIMEOUT: Duration = Duration::from_secs(15);
/// A put that is repeated finds what the first one left.
const ATTEMPTS_MAX: u32 = 2;

const CONTENT_TYPE: &str = "text/markdown; charset=utf-8";
const SHA256: &str = "sha256";

/// A bucket, and the key that its objects are encrypted with.
pub struct S3 {
    client: Client,
    bucket: String,
    kms_key_id: String,
}

/// What is known about an object without reading it.
struct Found {
    bytes: i64,
    sha256: Option<String>,
}

impl S3 {
    /// A client with AWS's usual settings: region, credentials, endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig, bucket: String, kms_key_id: String) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let config = aws_sdk_s3::config::Builder::from(aws)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS_MAX))
            .timeout_config(timeouts)
            // The name of an emulator has no subdomain for each bucket.
            .force_path_style(aws.endpoint_url().is_some())
            .build();
        Self {
            client: Client::from_conf(config),
            bucket,
            kms_key_id,
        }
    }

    pub(super) async fn put(&self, key: &str, body: Bytes) -> Result<Sent, DeliveryError> {
        within(Box::pin(self.put_once(key, body))).await?;
        Ok(Sent {
            location: Some(format!("s3://{}/{key}", self.bucket)),
            ..Sent::default()
        })
    }

    pub(super) async fn get(&self, key: &str) -> Result<Bytes, DeliveryError> {
        within(Box::pin(self.read(key))).await
    }

    async fn put_once(&self, key: &str, body: Bytes) -> Result<(), DeliveryError> {
        let (bytes, sha256) = (body.len(), BASE64_STANDARD.encode(Sha256::digest(&body)));
        // A role that may not list is told 403 where nothing lies, so a refusal says nothing here.
        if bytes > LOOK_FIRST_BYTES
            && let Ok(Some(found)) = self.find(key).await
        {
            return found.compare(bytes, &sha256);
        }
        let put = self.put_call(key, &sha256).body(ByteStream::from(body));
        let Err(error) = put.send().await else {
            return Ok(());
        };
        let failure = Failure::of(&error);
        if !lies_there(&failure) {
            return Err(told(failure));
        }
        match self.find(key).await.map_err(told)? {
            Some(found) => found.compare(bytes, &sha256),
            // It was deleted a moment ago.
            None => Err(DeliveryError::StoreUnavailable(Box::new(failure))),
        }
    }

    fn put_call(&self, key: &str, sha256: &str) -> PutObjectFluentBuilder {
        let put = self
            .client
            .put_object()
            .bucket(&self.bucket)
            .key(key)
            .if_none_match("*")
            .content_type(CONTENT_TYPE)
            .checksum_sha256(sha256)
            .metadata(SHA256, sha256)
            .server_side_encryption(ServerSideEncryption::AwsKms)
            .ssekms_key_id(&self.kms_key_id)
            .bucket_key_enabled(true);
        owners(key)
            .into_iter()
            .fold(put, |put, (name, value)| put.metadata(name, value))
    }

    async fn find(&self, key: &str) -> Result<Option<Found>, Failure> {
        let head = self.client.head_object().bucket(&self.bucket).key(key);
        match head.checksum_mode(ChecksumMode::Enabled).send().await {
            Ok(found) => {
                let noted = found.metadata().and_then(|all| all.get(SHA256));
                Ok(Some(Found {
                    bytes: found.content_length().unwrap_or(-1),
                    sha256: found
                        .checksum_sha256()
                        .map(str::to_owned)
                        .or_else(|| noted.cloned()),
                }))
            }
            Err(error) => match Failure::of(&error) {
                failure if failure.status == Some(404) => Ok(None),
                failure => Err(failure),
            },
        }
    }

    async fn read(&self, key: &str) -> Result<Bytes, DeliveryError> {
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        let mut object = match get.send().await {
            Ok(object) => object,
            Err(error) => return Err(told(Failure::of(&error))),
        };
        let said = object.content_length().unwrap_or_default();
        let bytes = usize::try_from(said).unwrap_or_default();
        if bytes > OBJECT_BYTES_MAX {
            return Err(DeliveryError::ObjectTooLarge);
        }
        let mut body = BytesMut::with_capacity(bytes);
        while let Some(chunk) = object
            .body
            .try_next()
            .await
            .map_err(|error| DeliveryError::StoreUnavailable(Box::new(error)))?
        {
            if body.len() + chunk.len() > OBJECT_BYTES_MAX {
                return Err(DeliveryError::ObjectTooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3")
            .field("bucket", &self.bucket)
            .finish_non_exhaustive()
    }
}

impl Found {
    fn compare(&self, bytes: usize, sha256: &str) -> Result<(), DeliveryError> {
        let same =
            usize::try_from(self.bytes) == Ok(bytes) && self.sha256.as_deref() == Some(sha256);
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
        ("tenant", *tenant),
        ("prompt", *prompt),
        ("slot", *slot),
        ("run", run),
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
                    ("tenant", "t"),
                    ("prompt", "p"),
                    ("slot", "20260102T090000Z"),
                    ("run", run)
                ]
            );
        }
    }

    #[test]
    fn only_the_same_bytes_are_a_repeat() {
        let found = |bytes, sha256: Option<&str>| Found {
            bytes,
            sha256: sha256.map(str::to_owned),
        };
        assert!(found(3, Some("a")).compare(3, "a").is_ok());
        for other in [
            found(3, Some("b")),
            found(4, Some("a")),
            found(3, None),
            found(-1, Some("a")),
        ] {
            assert_eq!(other.compare(3, "a").unwrap_err().code(), "object_differs");
        }
    }
}
