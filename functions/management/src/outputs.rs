//! Lets a caller read an output that is too long for its row, where it lies in a bucket.
//!
//! Nothing of it passes through here: the caller gets a URL that is good for a while and for this one
//! object. None is made but for an object of the caller's own tenant.

use std::time::Duration;

use aws_sdk_s3::{Client, error::DisplayErrorContext, presigning::PresigningConfig};
use shared::{aws::SdkConfig, ids::TenantId};
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

/// A bucket of S3.
#[derive(Debug)]
pub struct Bucket {
    client: Client,
    name: String,
}

impl Bucket {
    /// With AWS's usual settings: region, credentials, endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig, name: String) -> Self {
        let config = aws_sdk_s3::config::Builder::from(aws)
            // The name of an emulator has no subdomain for each bucket.
            .force_path_style(aws.endpoint_url().is_some())
            .build();
        Self {
            client: Client::from_conf(config),
            name,
        }
    }

    /// The key that a stored URI names, if it lies in this bucket and is the tenant's.
    fn key_of<'a>(&self, tenant_id: TenantId, uri: &'a str) -> Option<&'a str> {
        let place = uri.strip_prefix("s3://")?.strip_prefix(&self.name)?;
        let key = place.strip_prefix('/')?;
        key.starts_with(&format!("tenants/{tenant_id}/"))
            .then_some(key)
    }

    async fn sign(&self, key: &str) -> Option<String> {
        let presigning = PresigningConfig::expires_in(GOOD_FOR).ok()?;
        let get = self.client.get_object().bucket(&self.name).key(key);
        match timeout(SIGN_LIMIT, get.presigned(presigning)).await {
            Ok(Ok(signed)) => Some(signed.uri().to_owned()),
            Ok(Err(error)) => {
                warn!(error = %DisplayErrorContext(error), "the URL of an output was not signed");
                None
            }
            Err(_elapsed) => {
                warn!("the URL of an output was not signed in time");
                None
            }
        }
    }
}

impl Outputs {
    /// A URL that the output at this place may be read from; `None` where there is none to give.
    pub async fn url(&self, tenant_id: TenantId, uri: &str) -> Option<String> {
        match self {
            Self::Folder => None,
            Self::Bucket(bucket) => bucket.sign(bucket.key_of(tenant_id, uri)?).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tenants_own_objects_of_the_bucket_have_a_url() {
        let aws = SdkConfig::builder()
            .behavior_version(aws_sdk_s3::config::BehaviorVersion::latest())
            .build();
        let bucket = Bucket::new(&aws, "outputs".to_owned());
        let (own, other) = (TenantId::new(), TenantId::new());
        let key = format!("tenants/{own}/prompts/p/20260102T090000Z/r.md");
        assert_eq!(
            bucket.key_of(own, &format!("s3://outputs/{key}")),
            Some(key.as_str())
        );
        for uri in [
            format!("s3://outputs/tenants/{other}/prompts/p/s/r.md"),
            format!("s3://outputs-2/{key}"),
            format!("s3://outputs{key}"),
            format!("/var/carillon/storage/{key}"),
            format!("https://outputs/{key}"),
        ] {
            assert_eq!(bucket.key_of(own, &uri), None, "{uri}");
        }
    }
}
