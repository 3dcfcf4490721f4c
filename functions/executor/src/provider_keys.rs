//! Model calls with the key of whose run it is: the tenant's own, where it has brought one.
//!
//! A tenant's key is never exchanged for the installation's when it cannot be read: that would be
//! another's money. It is kept sealed, for a short time, and leaves for the provider alone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    cache::Cache,
    db::{DbError, provider_keys},
    ids::TenantId,
    provider_key::KeyedProvider,
    seal::Purpose,
    secret::Secret,
};
use tokio::time::timeout;
use tracing::{error, warn};

use crate::{
    Executor,
    model::{ModelAnswer, ModelError, ModelRequest, UNAUTHORIZED},
};

/// How long a key that was taken away is still used.
const AGE_MAX: Duration = Duration::from_secs(60);
const KEYS_MAX: usize = 1_000;

/// Sealed keys of late; `None` for a tenant that has none.
#[derive(Debug)]
pub(crate) struct TenantKeys(Cache<(TenantId, KeyedProvider), Option<Arc<Vec<u8>>>>);

impl Default for TenantKeys {
    fn default() -> Self {
        Self(Cache::new(KEYS_MAX, AGE_MAX))
    }
}

/// Asks a model on behalf of a tenant. Takes no longer than the deadline.
///
/// # Errors
/// Every [`ModelError`].
pub(crate) async fn call(
    executor: &Executor,
    tenant_id: TenantId,
    request: &ModelRequest<'_>,
    deadline: Duration,
) -> Result<ModelAnswer, ModelError> {
    let Some(provider) = KeyedProvider::of(request.model.provider()) else {
        return executor.models.call(request, deadline).await;
    };
    let asking = Box::pin(ask(executor, (tenant_id, provider), request, deadline));
    timeout(deadline, asking)
        .await
        .unwrap_or(Err(ModelError::Timeout))
}

async fn ask(
    executor: &Executor,
    of: (TenantId, KeyedProvider),
    request: &ModelRequest<'_>,
    deadline: Duration,
) -> Result<ModelAnswer, ModelError> {
    let models = &executor.models;
    let Some(sealed) = find(executor, of).await? else {
        return models.call(request, deadline).await;
    };
    let key = open(executor, of, &sealed).await?;
    let refused = match models.call_with(&key, request, deadline).await {
        Err(ModelError::TenantKeyRefused(fault)) if fault.status == UNAUTHORIZED => fault,
        other => return other,
    };
    // The tenant may have changed it since it was read.
    models.tenant_keys.0.forget(&of);
    match find(executor, of).await? {
        Some(newer) if newer == sealed => Err(ModelError::TenantKeyRefused(refused)),
        Some(newer) => {
            let key = open(executor, of, &newer).await?;
            models.call_with(&key, request, deadline).await
        }
        None => models.call(request, deadline).await,
    }
}

async fn find(
    executor: &Executor,
    (tenant_id, provider): (TenantId, KeyedProvider),
) -> Result<Option<Arc<Vec<u8>>>, ModelError> {
    let read = async {
        let tx = executor.db.tenant(tenant_id).await?;
        let sealed = provider_keys::sealed(tx, provider).await?;
        Ok::<_, DbError>(sealed.map(Arc::new))
    };
    let cache = &executor.models.tenant_keys.0;
    let found = cache.get((tenant_id, provider), Instant::now(), read).await;
    found.map_err(|error| {
        warn!(tenant.id = %tenant_id, %error, "cannot look for the tenant's own key");
        ModelError::KeyUnavailable
    })
}

async fn open(
    executor: &Executor,
    (tenant_id, provider): (TenantId, KeyedProvider),
    sealed: &[u8],
) -> Result<Secret, ModelError> {
    let purpose = Purpose::ProviderKey(provider);
    match executor.sealer.open(tenant_id, purpose, sealed).await {
        Ok(plain) => std::str::from_utf8(&plain)
            .map(Secret::new)
            .map_err(|_| ModelError::TenantKeyUnreadable),
        Err(error) => {
            error!(tenant.id = %tenant_id, %error, "cannot open the tenant's own key");
            Err(if error.is_transient() {
                ModelError::KeyUnavailable
            } else {
                ModelError::TenantKeyUnreadable
            })
        }
    }
}
