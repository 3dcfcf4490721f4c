//! The issuer's keys, kept for a while.
//!
//! They are had again when they are old, and when a token names one that is not among them; but never
//! more often than the times allow, and by one request at a time, so that tokens which are made up
//! cannot make us call the issuer without end. While the issuer cannot be reached, the keys that were
//! last seen serve on for a bounded time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use serde_json::Value;
use tracing::{info, warn};

use super::{
    Issuer, Refusal,
    fetch::{FetchError, Fetcher},
    token::Algorithm,
};

/// Keys that an issuer may have at once; more is no issuer that we know.
const KEYS_MAX: usize = 64;

/// How long keys are used, and how often they are asked for.
#[derive(Debug, Clone, Copy)]
pub struct KeyTimes {
    /// Keys older than this are had again.
    pub fresh: Duration,
    /// Keys older than this are not used, whatever the issuer's state.
    pub usable: Duration,
    /// Between two calls of the issuer, whatever the reason.
    pub between_fetches: Duration,
}

impl KeyTimes {
    /// A key that the issuer withdraws is refused ten minutes later, or two hours if the issuer cannot
    /// be reached; one that it adds is known half a minute later.
    pub const DEFAULT: Self = Self {
        fresh: Duration::from_secs(600),
        usable: Duration::from_secs(7_200),
        between_fetches: Duration::from_secs(30),
    };
}

/// One key of the issuer, and the one algorithm that it is for.
#[derive(Debug)]
pub(super) struct Key {
    kid: String,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Key {
    /// Whether `signature` is this key's under `text`.
    pub(super) fn has_signed(&self, text: &str, signature: &str) -> bool {
        let algorithm = self.algorithm.of_library();
        jsonwebtoken::crypto::verify(signature, text.as_bytes(), &self.key, algorithm)
            .unwrap_or(false)
    }
}

/// The keys that the issuer has shown together.
#[derive(Debug, Default)]
pub(super) struct KeySet(Vec<Arc<Key>>);

/// A key as RFC 7517 writes it; only what we need of it.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: String,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a set; keys that are not for us are passed by. `None` when it is none, or too large.
    pub(super) fn parse(document: &Value) -> Option<Self> {
        let keys = document.get("keys")?.as_array()?;
        if keys.len() > KEYS_MAX {
            return None;
        }
        let ours = keys
            .iter()
            .filter_map(|key| Key::read(Jwk::deserialize(key).ok()?));
        Some(Self(ours.map(Arc::new).collect()))
    }

    /// By both: a set may hold two keys with one id.
    fn find(&self, kid: &str, algorithm: Algorithm) -> Option<Arc<Key>> {
        let mut keys = self.0.iter();
        keys.find(|key| key.kid == kid && key.algorithm == algorithm)
            .cloned()
    }
}

impl Key {
    /// The kind of the key decides on the algorithm; what else the key says must agree.
    fn read(jwk: Jwk) -> Option<Self> {
        let (algorithm, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => (
                Algorithm::Rs256,
                DecodingKey::from_rsa_components(&jwk.n?, &jwk.e?).ok()?,
            ),
            ("EC", Some("P-256")) => (
                Algorithm::Es256,
                DecodingKey::from_ec_components(&jwk.x?, &jwk.y?).ok()?,
            ),
            _ => return None,
        };
        let agrees = jwk.alg.is_none_or(|alg| alg == algorithm.as_str())
            && jwk.r#use.is_none_or(|purpose| purpose == "sig")
            && (jwk.key_ops).is_none_or(|purposes| purposes.iter().any(|one| one == "verify"));
        agrees.then_some(Self {
            kid: jwk.kid,
            algorithm,
            key,
        })
    }
}

/// The keys as they were last seen.
pub(super) struct Keys {
    times: KeyTimes,
    seen: Mutex<Seen>,
    /// Held by the one request that calls the issuer.
    fetcher: tokio::sync::Mutex<Fetcher>,
}

#[derive(Debug, Default)]
struct Seen {
    set: Option<(KeySet, Instant)>,
    tried: Option<Tried>,
}

#[derive(Debug, Clone, Copy)]
struct Tried {
    at: Instant,
    has_failed: bool,
}

/// What to do for a token.
#[derive(Debug)]
enum Plan {
    Use(Arc<Key>),
    /// Ask the issuer, unless somebody does so already: this key serves.
    FetchOrUse(Arc<Key>),
    Fetch,
    Refuse,
    Unavailable,
}

impl Seen {
    fn plan(&self, times: &KeyTimes, wanted: (&str, Algorithm), now: Instant) -> Plan {
        let since = |at: Instant| now.saturating_duration_since(at);
        let may_fetch = (self.tried).is_none_or(|tried| since(tried.at) >= times.between_fetches);
        let set = self
            .set
            .as_ref()
            .filter(|(_, at)| since(*at) < times.usable);
        let key = set.and_then(|(set, at)| Some((set.find(wanted.0, wanted.1)?, *at)));
        match (key, may_fetch) {
            (Some((key, at)), true) if since(at) >= times.fresh => Plan::FetchOrUse(key),
            (Some((key, _)), _) => Plan::Use(key),
            (None, true) => Plan::Fetch,
            (None, false) if set.is_none() || self.tried.is_some_and(|tried| tried.has_failed) => {
                Plan::Unavailable
            }
            (None, false) => Plan::Refuse,
        }
    }
}

impl Keys {
    pub(super) fn new(issuer: Issuer, times: KeyTimes) -> Self {
        Self {
            times,
            seen: Mutex::default(),
            fetcher: tokio::sync::Mutex::new(Fetcher::new(issuer)),
        }
    }

    /// The key of this id and algorithm.
    pub(super) async fn find(&self, kid: &str, algorithm: Algorithm) -> Result<Arc<Key>, Refusal> {
        let fetcher = match self.plan(kid, algorithm) {
            Plan::Use(key) => return Ok(key),
            Plan::Refuse => return Err(Refusal::UnknownKey),
            Plan::Unavailable => return Err(Refusal::NoKeys(None)),
            Plan::FetchOrUse(key) => match self.fetcher.try_lock() {
                Ok(fetcher) => fetcher,
                Err(_) => return Ok(key),
            },
            Plan::Fetch => self.fetcher.lock().await,
        };
        // Somebody else may have asked while we waited.
        let failure = match self.plan(kid, algorithm) {
            Plan::Use(key) => return Ok(key),
            Plan::Refuse => return Err(Refusal::UnknownKey),
            Plan::Unavailable => return Err(Refusal::NoKeys(None)),
            Plan::FetchOrUse(_) | Plan::Fetch => self.refresh(&fetcher).await.err(),
        };
        drop(fetcher);
        match (self.plan_without_fetch(kid, algorithm), failure) {
            (Plan::Use(key) | Plan::FetchOrUse(key), _) => Ok(key),
            (Plan::Fetch | Plan::Refuse | Plan::Unavailable, Some(error)) => {
                Err(Refusal::NoKeys(Some(error)))
            }
            (Plan::Fetch | Plan::Refuse | Plan::Unavailable, None) => Err(Refusal::UnknownKey),
        }
    }

    fn plan(&self, kid: &str, algorithm: Algorithm) -> Plan {
        self.look(|seen| seen.plan(&self.times, (kid, algorithm), Instant::now()))
    }

    /// What was fetched just now counts, however short a time it is to be fresh.
    fn plan_without_fetch(&self, kid: &str, algorithm: Algorithm) -> Plan {
        let at_once = KeyTimes {
            between_fetches: Duration::MAX,
            ..self.times
        };
        self.look(|seen| seen.plan(&at_once, (kid, algorithm), Instant::now()))
    }

    async fn refresh(&self, fetcher: &Fetcher) -> Result<(), FetchError> {
        let fetched = fetcher.key_set().await;
        let at = Instant::now();
        let has_failed = fetched.is_err();
        self.look(|seen| seen.tried = Some(Tried { at, has_failed }));
        match fetched {
            Ok(set) => {
                info!(oidc.keys = set.0.len(), "issuer's keys fetched");
                self.look(|seen| seen.set = Some((set, at)));
                Ok(())
            }
            Err(error) => {
                warn!(%error, "issuer's keys not fetched");
                Err(error)
            }
        }
    }

    fn look<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn jwk(change: &Value) -> Value {
        let mut key = json!({ "kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB" });
        for (name, value) in change.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    }

    fn is_taken(change: &Value) -> bool {
        let set = KeySet::parse(&json!({ "keys": [jwk(change)] })).unwrap();
        !set.0.is_empty()
    }

    #[test]
    fn a_key_is_for_signatures_of_its_own_algorithm() {
        for right in [
            json!({}),
            json!({ "alg": "RS256", "use": "sig", "key_ops": ["verify"], "x5t": "x" }),
            json!({ "kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ", "alg": "ES256" }),
        ] {
            assert!(is_taken(&right), "{right}");
        }
        for wrong in [
            json!({ "alg": "RS512" }),
            json!({ "alg": "HS256" }),
            json!({ "alg": "ES256" }),
            json!({ "alg": "none" }),
            json!({ "use": "enc" }),
            json!({ "key_ops": ["encrypt"] }),
            json!({ "kid": null }),
            json!({ "n": null }),
            json!({ "n": "+/" }),
            json!({ "kty": "oct", "k": "c2VjcmV0" }),
            json!({ "kty": "OKP", "crv": "Ed25519", "x": "AQ" }),
            json!({ "kty": "EC", "crv": "P-384", "x": "AQ", "y": "AQ" }),
            json!({ "kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ", "alg": "RS256" }),
            json!({ "kty": "EC" }),
        ] {
            assert!(!is_taken(&wrong), "{wrong}");
        }
    }

    #[test]
    fn a_set_has_a_bound_and_passes_strangers_by() {
        let keys = |count: usize| json!({ "keys": vec![jwk(&json!({})); count] });
        assert!(KeySet::parse(&keys(KEYS_MAX)).is_some());
        assert!(KeySet::parse(&keys(KEYS_MAX + 1)).is_none());
        for wrong in [json!({}), json!([]), json!({ "keys": {} }), json!("keys")] {
            assert!(KeySet::parse(&wrong).is_none(), "{wrong}");
        }
        let mixed = json!({ "keys": [7, null, { "kty": "new" }, jwk(&json!({}))] });
        assert_eq!(KeySet::parse(&mixed).unwrap().0.len(), 1);
    }

    #[test]
    fn the_age_of_the_keys_and_the_last_call_decide() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let times = KeyTimes::DEFAULT;
        let set = || KeySet::parse(&json!({ "keys": [jwk(&json!({}))] })).unwrap();
        let seen = |fetched: Option<u64>, tried: Option<(u64, bool)>| Seen {
            set: fetched.map(|seconds| (set(), at(seconds))),
            tried: tried.map(|(seconds, has_failed)| Tried {
                at: at(seconds),
                has_failed,
            }),
        };
        let fine = seen(Some(0), Some((0, false)));
        let down = seen(Some(0), Some((590, true)));
        for (name, seen, kid, now, expected) in [
            ("first", &seen(None, None), "a", 0, "Fetch"),
            (
                "first failed",
                &seen(None, Some((0, true))),
                "a",
                29,
                "Unavailable",
            ),
            (
                "tried again",
                &seen(None, Some((0, true))),
                "a",
                30,
                "Fetch",
            ),
            ("fresh", &fine, "a", 599, "Use"),
            ("old", &fine, "a", 600, "FetchOrUse"),
            ("too old", &fine, "a", 7_200, "Fetch"),
            ("unknown at once", &fine, "b", 29, "Refuse"),
            ("unknown later", &fine, "b", 30, "Fetch"),
            ("old, issuer down", &down, "a", 610, "Use"),
            ("unknown, issuer down", &down, "b", 610, "Unavailable"),
            (
                "too old, issuer down",
                &seen(Some(0), Some((7_190, true))),
                "a",
                7_200,
                "Unavailable",
            ),
        ] {
            let plan = seen.plan(&times, (kid, Algorithm::Rs256), at(now));
            let plan = format!("{plan:?}");
            assert_eq!(plan.split('(').next().unwrap(), expected, "{name}");
        }
        let plan = fine.plan(&times, ("a", Algorithm::Es256), at(1));
        assert!(matches!(plan, Plan::Refuse), "{plan:?}");
    }
}
