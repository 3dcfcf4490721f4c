//! Secrets that the operator keeps in AWS Secrets Manager: database passwords, providers' keys.
//!
//! What was fetched is kept, and fetched anew when it has grown old or was refused, at most once in
//! a while. Neither a secret nor a parser's words about one ever stand in an error or a log line.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_sdk_secretsmanager::Client;
use aws_types::SdkConfig;
use tokio::{sync::Mutex, time::timeout};
use tracing::{info, warn};

use crate::{
    aws::{self, CallError, Disposition},
    secret::Secret,
};

/// The client's tries and what lies between them.
const FETCH_LIMIT: Duration = Duration::from_secs(4);

/// A secret is not fetched again sooner, however often it is refused.
const FETCHED_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The ARN of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArn(String);

/// Takes the ARN of a secret, for [`crate::env::Reader`].
///
/// # Errors
/// A sentence that says what to give.
pub fn read_arn(text: &str) -> Result<SecretArn, String> {
    let parts: Vec<&str> = text.splitn(7, ':').collect();
    let is_secret = matches!(
        parts.as_slice(),
        ["arn", _, "secretsmanager", _, _, "secret", name] if !name.is_empty()
    );
    let plain = text.len() <= 2_048 && text.bytes().all(|byte| byte.is_ascii_graphic());
    (is_secret && plain)
        .then(|| SecretArn(text.to_owned()))
        .ok_or_else(|| "must be the ARN of a secret of Secrets Manager".to_owned())
}

/// Why there is no secret. Its text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Secrets Manager did not give it.
    #[error("the secret {arn} cannot be read: {error} ({detail})", detail = .error.detail)]
    Call {
        /// Which.
        arn: String,
        /// Why not.
        error: CallError,
    },
    /// It holds something else.
    #[error("the secret {arn} {detail}")]
    Malformed {
        /// Which.
        arn: String,
        /// What it should hold.
        detail: &'static str,
    },
}

impl SecretError {
    /// Whether the same may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Call { error, .. } => error.cause.disposition() == Disposition::Retry,
            Self::Malformed { .. } => false,
        }
    }
}

/// Secrets Manager.
#[derive(Debug, Clone)]
pub struct SecretsManager(Client);

struct Fetched {
    text: Secret,
    version: Option<String>,
}

impl SecretsManager {
    /// A client with AWS's usual settings: region, credentials, endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig) -> Self {
        Self(Client::new(&aws::impatient(aws)))
    }

    /// The secret as it stands.
    ///
    /// # Errors
    /// When Secrets Manager refuses, does not answer, or holds bytes instead of text.
    pub async fn fetch(&self, arn: &SecretArn) -> Result<Secret, SecretError> {
        self.get(arn).await.map(|fetched| fetched.text)
    }

    async fn get(&self, arn: &SecretArn) -> Result<Fetched, SecretError> {
        let failed = |error| SecretError::Call {
            arn: arn.0.clone(),
            error,
        };
        let call = self.0.get_secret_value().secret_id(&arn.0).send();
        let answer = timeout(FETCH_LIMIT, call)
            .await
            .map_err(|_| failed(CallError::deadline()))?
            .map_err(|error| failed(CallError::of(&error)))?;
        let version = answer.version_id;
        let text = answer.secret_string.map(Secret::new);
        let text = text.ok_or_else(|| SecretError::Malformed {
            arn: arn.0.clone(),
            detail: "holds bytes; it must hold JSON as text",
        })?;
        Ok(Fetched { text, version })
    }
}

/// What a secret holds, fetched when it is asked for and kept.
pub struct Kept<T> {
    manager: SecretsManager,
    arn: SecretArn,
    read: fn(&str) -> Result<T, &'static str>,
    age_max: Option<Duration>,
    state: Mutex<State<T>>,
}

struct State<T> {
    held: Option<Held<T>>,
    fetched_again_at: Option<Instant>,
}

struct Held<T> {
    value: Arc<T>,
    version: Option<String>,
    at: Instant,
}

impl<T> Kept<T> {
    /// Nothing is fetched yet. `read` says in a few words what the secret must hold; after `age_max`
    /// it is fetched anew.
    #[must_use]
    pub fn new(
        manager: SecretsManager,
        arn: SecretArn,
        read: fn(&str) -> Result<T, &'static str>,
        age_max: Option<Duration>,
    ) -> Self {
        Self {
            manager,
            arn,
            read,
            age_max,
            state: Mutex::new(State {
                held: None,
                fetched_again_at: None,
            }),
        }
    }

    /// What the secret holds. One that has grown old goes on being used while no newer one can be
    /// fetched.
    ///
    /// # Errors
    /// When it was never fetched and cannot be now.
    pub async fn get(&self) -> Result<Arc<T>, SecretError> {
        let mut state = self.state.lock().await;
        if let Some(held) = &state.held {
            let value = Arc::clone(&held.value);
            let is_old = self
                .age_max
                .is_some_and(|age_max| held.at.elapsed() >= age_max);
            if !is_old || !state.may_fetch_again() {
                return Ok(value);
            }
            state.fetched_again_at = Some(Instant::now());
            return Ok(match self.fetch().await {
                Ok(fetched) => Arc::clone(&state.held.insert(fetched).value),
                Err(error) => {
                    warn!(%error, "a secret cannot be fetched anew; the one before goes on being used");
                    value
                }
            });
        }
        let fetched = self.fetch().await?;
        Ok(Arc::clone(&state.held.insert(fetched).value))
    }

    /// After `refused` was refused: what the secret holds now, if that is something else.
    pub async fn instead_of(&self, refused: &Arc<T>) -> Option<Arc<T>> {
        let mut state = self.state.lock().await;
        let old_version = match &state.held {
            // Somebody else was refused before.
            Some(held) if !Arc::ptr_eq(&held.value, refused) => {
                return Some(Arc::clone(&held.value));
            }
            Some(held) => held.version.clone(),
            None => None,
        };
        if !state.may_fetch_again() {
            return None;
        }
        state.fetched_again_at = Some(Instant::now());
        match self.fetch().await {
            Ok(fetched) if fetched.version.is_some() && fetched.version == old_version => None,
            Ok(fetched) => {
                info!(
                    secret.arn = self.arn.0,
                    "a secret that was refused has a new version"
                );
                Some(Arc::clone(&state.held.insert(fetched).value))
            }
            Err(error) => {
                warn!(%error, "a secret that was refused cannot be fetched anew");
                None
            }
        }
    }

    async fn fetch(&self) -> Result<Held<T>, SecretError> {
        // Boxed: the client's future is large, and most times nothing is called.
        let fetched = Box::pin(self.manager.get(&self.arn)).await?;
        let read = (self.read)(fetched.text.expose());
        let value = read.map_err(|detail| SecretError::Malformed {
            arn: self.arn.0.clone(),
            detail,
        })?;
        Ok(Held {
            value: Arc::new(value),
            version: fetched.version,
            at: Instant::now(),
        })
    }
}

impl<T> State<T> {
    fn may_fetch_again(&self) -> bool {
        self.fetched_again_at
            .is_none_or(|at| at.elapsed() >= FETCHED_AGAIN_AFTER)
    }
}

impl<T> fmt::Debug for Kept<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({})", self.arn.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_arn_of_a_secret_is_one() {
        let whole = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:app-a1b2c3";
        assert_eq!(read_arn(whole), Ok(SecretArn(whole.to_owned())));
        assert!(read_arn("arn:aws-cn:secretsmanager:cn-north-1:1:secret:a/b").is_ok());
        for text in [
            "app",
            "arn:aws:secretsmanager:eu-central-1:123456789012:secret:",
            "arn:aws:ssm:eu-central-1:123456789012:secret:app",
            "arn:aws:secretsmanager:eu-central-1:123456789012:secret:a b",
        ] {
            assert!(read_arn(text).is_err(), "{text}");
        }
    }
}
