//! Lets a caller read an output that is too long for its row, where it lies in a bucket.
//!
//! Nothing of it passes through here: the caller gets a URL that is good for a while and for this one
//! object. None is made but for an object of the caller's own tenant.

use std::time::Duration;

use shared::{aws::Bucket, ids::TenantId};
use tokio::time::timeout;
use tracing::warn;

/// How long a URL is good for.
const GOOD_FOR: Duration = Duration::from_secs(15 * 60);

/// Signing is arithmetic; only the credentials may have to be fetched first.
const SIGN_LIMIT: Duration = Duration::from_secs(3);

/// Where long outputs lie.
#[derive(Debug)]
pub enum Outputs {
    /// In a folder of this machine, whose owner may look into it.
    Folder,
    /// In a bucket.
    Bucket(Bucket),
}

impl Outputs {
    /// A URL that the output at this place may be read from; `None` where there is none to give.
    pub async fn url(&self, tenant_id: TenantId, uri: &str) -> Option<String> {
        match self {
            Self::Folder => None,
            Self::Bucket(bucket) => sign(bucket, key_of(bucket.name(), tenant_id, uri)?).await,
        }
    }
}

/// The key that a stored URI names, if it lies in this bucket and is the tenant's.
fn key_of<'a>(bucket: &str, tenant_id: TenantId, uri: &'a str) -> Option<&'a str> {
    let place = uri.strip_prefix("s3://")?.strip_prefix(bucket)?;
    let key = place.strip_prefix('/')?;
    key.starts_with(&format!("tenants/{tenant_id}/"))
        .then_some(key)
}

async fn sign(bucket: &Bucket, key: &str) -> Option<String> {
    match timeout(SIGN_LIMIT, bucket.url(key, GOOD_FOR)).await {
        Ok(Ok(url)) => Some(url),
        Ok(Err(error)) => {
            warn!(%error, "the URL of an output was not signed");
            None
        }
        Err(_elapsed) => {
            warn!("the URL of an output was not signed in time");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tenants_own_objects_of_the_bucket_have_a_url() {
        let (own, other) = (TenantId::new(), TenantId::new());
        let key = format!("tenants/{own}/prompts/p/20260102T090000Z/r.md");
        assert_eq!(
            key_of("outputs", own, &format!("s3://outputs/{key}")),
            Some(key.as_str())
        );
        for uri in [
            format!("s3://outputs/tenants/{other}/prompts/p/s/r.md"),
            format!("s3://outputs-2/{key}"),
            format!("s3://outputs{key}"),
            format!("/var/carillon/storage/{key}"),
            format!("https://outputs/{key}"),
        ] {
            assert_eq!(key_of("outputs", own, &uri), None, "{uri}");
        }
    }
}
