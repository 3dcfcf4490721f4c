//! Parts of a request that many handlers read.

use std::str::FromStr;

use axum::{
    extract::{FromRequestParts, RawPathParams},
    http::{HeaderMap, HeaderValue, header, request::Parts},
};
use shared::{destination::EmailAddress, fault::Fault, ids::PromptId};
use uuid::Uuid;

use crate::error::ApiError;

const REQUEST_ID: &str = "x-request-id";
const REQUEST_ID_CHARS_MAX: usize = 64;

/// The id of a request: the caller's own if it is short and plain, else a new one.
#[derive(Debug, Clone)]
pub struct RequestId(String);

impl RequestId {
    pub(crate) const HEADER: &str = REQUEST_ID;

    /// Takes the id from the request's header, or makes one.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let plain = |text: &&str| {
            (1..=REQUEST_ID_CHARS_MAX).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        headers
            .get(REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(plain)
            .map_or_else(
                || Self(Uuid::now_v7().to_string()),
                |text| Self(text.to_owned()),
            )
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn header_value(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

impl<S: Sync> FromRequestParts<S> for RequestId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extensions
            .get::<Self>()
            .cloned()
            .ok_or_else(|| ApiError::internal("the request has no id"))
    }
}

/// The `{id}` of a route. What is no id names no object: 404.
#[derive(Debug, Clone, Copy)]
pub struct PathId<T>(pub T);

impl<S: Send + Sync, T: FromStr> FromRequestParts<S> for PathId<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let id = path_part(parts, state, "id").await?;
        id.parse().map(Self).map_err(|_| ApiError::not_found())
    }
}

/// The `{name}` of a route, as it was sent.
#[derive(Debug, Clone)]
pub struct PathName(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathName {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_part(parts, state, "name").await.map(Self)
    }
}

/// The `{address}` of a route. What is no address names no object: 404.
#[derive(Debug, Clone)]
pub struct PathAddress(pub EmailAddress);

impl<S: Send + Sync> FromRequestParts<S> for PathAddress {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = path_part(parts, state, "address").await?;
        let address = EmailAddress::parse(&text).map_err(|_| ApiError::not_found())?;
        Ok(Self(address))
    }
}

/// The `{provider}` of a route, as it was sent.
#[derive(Debug, Clone)]
pub struct PathProvider(pub String);

impl<S: Send + Sync> FromRequestParts<S> for PathProvider {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        path_part(parts, state, "provider").await.map(Self)
    }
}

/// The `{id}` of a prompt and the number of its version. What is neither names no object: 404.
#[derive(Debug, Clone, Copy)]
pub struct PathVersion(pub PromptId, pub i64);

impl<S: Send + Sync> FromRequestParts<S> for PathVersion {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let PathId(id) = PathId::from_request_parts(parts, state).await?;
        let version = path_part(parts, state, "version").await?;
        let version = version.parse().map_err(|_| ApiError::not_found())?;
        Ok(Self(id, version))
    }
}

async fn path_part<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    wanted: &str,
) -> Result<String, ApiError> {
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|_| ApiError::not_found())?;
    params
        .iter()
        .find(|(name, _)| *name == wanted)
        .map(|(_, text)| text.to_owned())
        .ok_or_else(ApiError::not_found)
}

/// The header `If-Match`: which version of an object the caller wants to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IfMatch {
    /// Whichever there is, or none.
    Any,
    /// Whichever there is.
    Exists,
    /// One of these.
    Versions(Vec<i64>),
}

impl IfMatch {
    /// Refuses an object at another version.
    ///
    /// # Errors
    /// 412.
    pub fn check(&self, version: i64) -> Result<(), ApiError> {
        match self {
            Self::Any | Self::Exists => Ok(()),
            Self::Versions(versions) if versions.contains(&version) => Ok(()),
            Self::Versions(_) => Err(ApiError::precondition_failed()),
        }
    }

    /// Refuses to make an object where the caller wants to change one.
    ///
    /// # Errors
    /// 412.
    pub fn check_absent(&self) -> Result<(), ApiError> {
        match self {
            Self::Any => Ok(()),
            Self::Exists | Self::Versions(_) => Err(ApiError::precondition_failed()),
        }
    }

    /// Entity tags are compared strongly (RFC 9110, section 13.1.1): a weak one never matches.
    fn parse(text: &str) -> Option<Self> {
        if text.trim() == "*" {
            return Some(Self::Exists);
        }
        let mut versions = Vec::new();
        let mut rest = text.trim();
        // A tag may hold commas, so the list is not split at them.
        loop {
            let (weak, tag) = match rest.strip_prefix("W/") {
                Some(tag) => (true, tag),
                None => (false, rest),
            };
            let (opaque, after) = tag.strip_prefix('"')?.split_once('"')?;
            if !weak && let Ok(version) = opaque.parse() {
                versions.push(version);
            }
            match after.trim_start() {
                "" => return Some(Self::Versions(versions)),
                after => rest = after.strip_prefix(',')?.trim_start(),
            }
        }
    }
}

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get(header::IF_MATCH) else {
            return Ok(Self::Any);
        };
        value.to_str().ok().and_then(Self::parse).ok_or_else(|| {
            ApiError::validation(vec![Fault::new(
                "If-Match",
                "invalid_if_match",
                "the header is not a list of entity tags",
                "send the ETag of the object as you read it, for example \"3\"",
            )])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_match_compares_strongly() {
        let parse = |text| IfMatch::parse(text);
        assert_eq!(parse("*"), Some(IfMatch::Exists));
        assert_eq!(parse("\"3\""), Some(IfMatch::Versions(vec![3])));
        assert_eq!(
            parse("\"3\", W/\"4\" ,\"x\",\"5\""),
            Some(IfMatch::Versions(vec![3, 5]))
        );
        assert_eq!(
            parse("\",-G\"  , W/\"4\",\"5\""),
            Some(IfMatch::Versions(vec![5]))
        );
        for text in ["3", "", "\"3", "\"3\",", "\"3\" \"4\"", "W/3"] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert!(IfMatch::Any.check(9).is_ok() && IfMatch::Any.check_absent().is_ok());
        assert!(IfMatch::Exists.check(9).is_ok());
        assert!(IfMatch::Exists.check_absent().is_err());
        assert!(IfMatch::Versions(vec![3]).check_absent().is_err());
        assert!(IfMatch::Versions(vec![3]).check(3).is_ok());
        assert!(IfMatch::Versions(vec![]).check(3).is_err());
    }

    #[test]
    fn a_strange_request_id_is_replaced() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(text).unwrap());
            RequestId::of(&headers).0
        };
        assert_eq!(of("order-7_a.b"), "order-7_a.b");
        assert_ne!(of("a b"), "a b");
        assert_ne!(of(&"a".repeat(65)), "a".repeat(65));
        assert_eq!(of("").len(), 36);
        assert_eq!(RequestId::of(&HeaderMap::new()).0.len(), 36);
    }
}
