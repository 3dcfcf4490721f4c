//! Sealing with data keys that AWS KMS makes and wraps.
//!
//! KMS is asked once for a tenant's purpose, not once for a secret: the data key is kept for a few
//! minutes, in memory alone. The tenant and the purpose are its encryption context, which KMS checks
//! and the functions' roles demand (KMS Developer Guide, "Encryption context").

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use aws_sdk_kms::{Client, primitives::Blob, types::DataKeySpec};
use aws_types::SdkConfig;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{OpenError, Purpose, SealError, SealingKey};
use crate::{
    aws::{self, CallError, Cause},
    cache::Cache,
    ids::TenantId,
};

/// The client's tries and what lies between them.
const CALL_LIMIT: Duration = Duration::from_secs(4);

/// Data keys that are kept, for sealing and for opening each.
const KEYS_MAX: usize = 500;
/// How long a right that was taken away still works here.
const KEY_AGE_MAX: Duration = Duration::from_secs(300);

/// A key of KMS, by ARN, id or alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyId(String);

/// Takes the id of a key, for [`crate::env::Reader`].
pub(super) fn read_key_id(text: &str) -> Result<KeyId, String> {
    let plain = text.len() <= 2_048 && text.bytes().all(|byte| byte.is_ascii_graphic());
    plain
        .then(|| KeyId(text.to_owned()))
        .ok_or_else(|| "must be the ARN, the id or the alias of a key of KMS".to_owned())
}

/// A key of KMS, and the data keys of late.
#[derive(Debug)]
pub struct Kms {
    client: Client,
    key_id: KeyId,
    sealing: Cache<(TenantId, Purpose), Arc<DataKey>>,
    opened: Cache<(TenantId, Purpose, Vec<u8>), Arc<SealingKey>>,
}

/// A data key, and what KMS needs to give it again.
#[derive(Debug)]
pub(super) struct DataKey {
    pub(super) key: SealingKey,
    pub(super) wrapped: Vec<u8>,
}

impl Kms {
    pub(super) fn new(aws: &SdkConfig, key_id: KeyId) -> Self {
        Self {
            client: Client::new(&aws::impatient(aws)),
            key_id,
            sealing: Cache::new(KEYS_MAX, KEY_AGE_MAX),
            opened: Cache::new(KEYS_MAX, KEY_AGE_MAX),
        }
    }

    /// The data key that seals for this tenant and purpose now.
    pub(super) async fn sealing_key(
        &self,
        tenant_id: TenantId,
        purpose: Purpose,
    ) -> Result<Arc<DataKey>, SealError> {
        // Boxed: the client's futures are large, and most times nothing is called.
        let make = async { Box::pin(self.make(tenant_id, purpose)).await.map(Arc::new) };
        let name = (tenant_id, purpose);
        self.sealing.get(name, Instant::now(), make).await
    }

    async fn make(&self, tenant_id: TenantId, purpose: Purpose) -> Result<DataKey, SealError> {
        let call = self
            .client
            .generate_data_key()
            .key_id(&self.key_id.0)
            .key_spec(DataKeySpec::Aes256)
            .encryption_context("tenant_id", tenant_id.to_string())
            .encryption_context("purpose", purpose.as_str());
        let made = timeout(CALL_LIMIT, call.send())
            .await
            .map_err(|_| CallError::deadline())?
            .map_err(|error| CallError::of(&error))?;
        let wrapped = made.ciphertext_blob.map(Blob::into_inner);
        let plain = made.plaintext.map(|blob| Zeroizing::new(blob.into_inner()));
        let (Some(wrapped), Some(plain)) = (wrapped, plain) else {
            return Err(SealError::Failed);
        };
        let key = SealingKey::new(&plain).map_err(|_| SealError::Failed)?;
        Ok(DataKey { key, wrapped })
    }

    /// The data key of a blob.
    pub(super) async fn opening_key(
        &self,
        tenant_id: TenantId,
        purpose: Purpose,
        wrapped: &[u8],
    ) -> Result<Arc<SealingKey>, OpenError> {
        let open = async {
            let key = Box::pin(self.unwrap(tenant_id, purpose, wrapped)).await?;
            Ok(Arc::new(key))
        };
        let name = (tenant_id, purpose, wrapped.to_vec());
        self.opened.get(name, Instant::now(), open).await
    }

    async fn unwrap(
        &self,
        tenant_id: TenantId,
        purpose: Purpose,
        wrapped: &[u8],
    ) -> Result<SealingKey, OpenError> {
        let call = self
            .client
            .decrypt()
            .key_id(&self.key_id.0)
            .ciphertext_blob(Blob::new(wrapped))
            .encryption_context("tenant_id", tenant_id.to_string())
            .encryption_context("purpose", purpose.as_str());
        let opened = timeout(CALL_LIMIT, call.send())
            .await
            .map_err(|_| OpenError::Kms(CallError::deadline()))?
            .map_err(|error| match CallError::of(&error) {
                // Of another key, with another context, or changed.
                error if error.cause == Cause::Invalid => OpenError::NotOurs,
                error => OpenError::Kms(error),
            })?;
        let plain = opened
            .plaintext
            .map(|blob| Zeroizing::new(blob.into_inner()));
        plain
            .and_then(|plain| SealingKey::new(&plain).ok())
            .ok_or(OpenError::NotOurs)
    }
}
