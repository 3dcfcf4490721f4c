//! The text of a token (RFC 7515, RFC 7519), and what is asked of it. Pure: `now` is given.
//!
//! A header says which key and which algorithm; everything else in it that leads to a key (`jku`,
//! `jwk`, `x5u`, `x5c`) is not read. Of two claims with one name neither is taken.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};

use super::{Audience, Refusal, keys::Key};

/// Just under what API Gateway lets through in all headers ("Quotas for HTTP APIs": 10,240 bytes).
const TOKEN_BYTES_MAX: usize = 8_192;
const KID_BYTES_MAX: usize = 256;
/// The column holds as much.
const SUBJECT_CHARS_MAX: usize = 255;
/// How far the issuer's clock and ours may be apart.
const LEEWAY_S: f64 = 60.0;

/// The algorithms that are accepted; there is no symmetric one among them, and no `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Rs256, Self::Es256];

    /// As it stands in headers and keys.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
        }
    }

    pub(super) fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// A token of which only the header was read.
#[derive(Debug)]
pub(super) struct Unverified<'a> {
    kid: String,
    algorithm: Algorithm,
    signed: &'a str,
    payload: &'a str,
    signature: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    typ: Option<String>,
    crit: Option<IgnoredAny>,
}

impl<'a> Unverified<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(Refusal::Malformed)?;
        let header: Header = decode(header).ok_or(Refusal::Malformed)?;
        let algorithm = Algorithm::parse(&header.alg).ok_or(Refusal::Malformed)?;
        let plain = (1..=KID_BYTES_MAX).contains(&header.kid.len());
        if !plain || header.crit.is_some() || !header.typ.is_none_or(|typ| is_jwt(&typ)) {
            return Err(Refusal::Malformed);
        }
        Ok(Self {
            kid: header.kid,
            algorithm,
            signed,
            payload,
            signature,
        })
    }

    pub(super) fn kid(&self) -> &str {
        &self.kid
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Checks the signature, by the key's own algorithm.
    pub(super) fn verify(self, key: &Key) -> Result<Claims, Refusal> {
        if !key.has_signed(self.signed, self.signature) {
            return Err(Refusal::WrongSignature);
        }
        decode(self.payload).ok_or(Refusal::Claims)
    }
}

/// A kind of token that may open an API (RFC 9068, section 2.1); a logout token, say, may not.
fn is_jwt(typ: &str) -> bool {
    let typ = typ.to_ascii_lowercase();
    let typ = typ.strip_prefix("application/").unwrap_or(&typ);
    ["jwt", "at+jwt"].contains(&typ)
}

fn decode<T: DeserializeOwned>(part: &str) -> Option<T> {
    let json = BASE64_URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&json).ok()
}

/// The claims of a token whose signature is right.
#[derive(Debug, Deserialize)]
pub(super) struct Claims {
    iss: String,
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    iat: Option<f64>,
    aud: Option<OneOrMany>,
    client_id: Option<String>,
    token_use: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl Claims {
    /// Whom the token speaks for, if it does so to us and now.
    pub(super) fn subject(
        self,
        issuer: &str,
        audience: &Audience,
        now: DateTime<Utc>,
    ) -> Result<String, Refusal> {
        if self.iss != issuer {
            return Err(Refusal::OtherIssuer);
        }
        self.check_use()?;
        self.check_audience(audience.as_str())?;
        self.check_times(now)?;
        let length = self.sub.chars().count();
        if !(1..=SUBJECT_CHARS_MAX).contains(&length) || self.sub.chars().any(char::is_control) {
            return Err(Refusal::Claims);
        }
        Ok(self.sub)
    }

    /// Cognito says what a token is for; one that proves a login to an app opens no API.
    fn check_use(&self) -> Result<(), Refusal> {
        match self.token_use.as_deref() {
            None | Some("access") => Ok(()),
            Some(_) => Err(Refusal::OtherUse),
        }
    }

    /// Cognito's access tokens name the app client in place of an audience.
    fn check_audience(&self, audience: &str) -> Result<(), Refusal> {
        let names_us = match &self.aud {
            Some(OneOrMany::One(one)) => one == audience,
            Some(OneOrMany::Many(many)) => many.iter().any(|one| one == audience),
            None => self.token_use.is_some() && self.client_id.as_deref() == Some(audience),
        };
        names_us.then_some(()).ok_or(Refusal::OtherAudience)
    }

    fn check_times(&self, now: DateTime<Utc>) -> Result<(), Refusal> {
        #[expect(
            clippy::cast_precision_loss,
            reason = "seconds since 1970 are exact for 285 million years"
        )]
        let now = now.timestamp() as f64;
        // JSON has no number that compares with nothing.
        let has_ended = now >= self.exp + LEEWAY_S;
        let has_begun = [self.nbf, self.iat]
            .into_iter()
            .flatten()
            .all(|from| from - LEEWAY_S <= now);
        match (has_ended, has_begun) {
            (true, _) => Err(Refusal::Expired),
            (false, false) => Err(Refusal::NotYetValid),
            (false, true) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn judge(change: &Value) -> Result<String, Refusal> {
        let mut claims = json!({
            "iss": "https://issuer.example", "sub": "ada", "aud": "carillon", "exp": NOW + 300,
            "iat": NOW - 10,
        });
        for (name, value) in change.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let claims: Claims = serde_json::from_value(claims).map_err(|_| Refusal::Claims)?;
        let audience = Audience::parse("carillon").unwrap();
        let now = DateTime::from_timestamp(NOW, 0).unwrap();
        claims.subject("https://issuer.example", &audience, now)
    }

    fn told(change: &Value) -> String {
        match judge(change) {
            Ok(subject) => subject,
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn times_have_a_leeway_of_a_minute() {
        let (expired, early) = ("the token has expired", "the token is not valid yet");
        for (change, expected) in [
            (json!({}), "ada"),
            (json!({ "exp": NOW - 59 }), "ada"),
            (json!({ "exp": NOW as f64 - 59.5 }), "ada"),
            (json!({ "exp": NOW - 60 }), expired),
            (json!({ "exp": 0 }), expired),
            (json!({ "exp": -1e300 }), expired),
            (json!({ "nbf": NOW + 60 }), "ada"),
            (json!({ "nbf": NOW + 61 }), early),
            (json!({ "iat": NOW + 61 }), early),
            (json!({ "iat": 1e300 }), early),
            (json!({ "exp": NOW - 61, "nbf": NOW + 61 }), expired),
        ] {
            assert_eq!(told(&change), expected, "{change}");
        }
    }

    #[test]
    fn the_audience_is_named_or_in_cognitos_way() {
        let other = "the token is for another audience";
        for (change, expected) in [
            (json!({ "aud": ["x", "carillon"] }), "ada"),
            (json!({ "aud": [] }), other),
            (json!({ "aud": "carillon2" }), other),
            (json!({ "aud": ["Carillon"] }), other),
            (json!({ "aud": null }), other),
            (json!({ "aud": null, "client_id": "carillon" }), other),
            (
                json!({ "aud": null, "client_id": "carillon", "token_use": "access" }),
                "ada",
            ),
            (
                json!({ "aud": null, "client_id": "other", "token_use": "access" }),
                other,
            ),
            (
                json!({ "aud": "other", "client_id": "carillon", "token_use": "access" }),
                other,
            ),
            (json!({ "token_use": "id" }), "the token is for another use"),
            (json!({ "token_use": "access" }), "ada"),
        ] {
            assert_eq!(told(&change), expected, "{change}");
        }
    }

    #[test]
    fn issuer_and_subject_are_exact() {
        let other = "the token is of another issuer";
        let claims = "the token's claims cannot be used";
        for (change, expected) in [
            (json!({ "iss": "https://issuer.example/" }), other),
            (json!({ "iss": "https://ISSUER.example" }), other),
            (json!({ "iss": ["https://issuer.example"] }), claims),
            (json!({ "sub": "" }), claims),
            (json!({ "sub": "a\u{0}b" }), claims),
            (json!({ "sub": "é".repeat(255) }), &*"é".repeat(255)),
            (json!({ "sub": "e".repeat(256) }), claims),
            (json!({ "sub": 7 }), claims),
            (json!({ "exp": null }), claims),
            (json!({ "exp": "1900000000" }), claims),
            (json!({ "aud": { "carillon": true } }), claims),
        ] {
            assert_eq!(told(&change), expected, "{change}");
        }
    }

    #[test]
    fn a_header_asks_for_nothing_that_we_do_not_do() {
        let parse = |header: &str| {
            let header = BASE64_URL_SAFE_NO_PAD.encode(header);
            let text = format!("{header}.e30.AA");
            Unverified::parse(&text).map(|token| token.algorithm)
        };
        assert_eq!(
            parse(r#"{"alg":"RS256","kid":"a","typ":"application/AT+JWT"}"#).unwrap(),
            Algorithm::Rs256
        );
        assert_eq!(
            parse(r#"{"alg":"ES256","kid":"a"}"#).unwrap(),
            Algorithm::Es256
        );
        for wrong in [
            "{}",
            "[]",
            "nonsense",
            r#"{"alg":"RS256"}"#,
            r#"{"alg":"RS256","kid":""}"#,
            r#"{"alg":"RS256","kid":7}"#,
            r#"{"alg":"none","kid":"a"}"#,
            r#"{"alg":"None","kid":"a"}"#,
            r#"{"alg":"HS256","kid":"a"}"#,
            r#"{"alg":"RS512","kid":"a"}"#,
            r#"{"alg":"PS256","kid":"a"}"#,
            r#"{"alg":"rs256","kid":"a"}"#,
            r#"{"alg":"none","alg":"RS256","kid":"a"}"#,
            r#"{"alg":"RS256","kid":"a","kid":"b"}"#,
            r#"{"alg":"RS256","kid":"a","crit":["b64"],"b64":false}"#,
            r#"{"alg":"RS256","kid":"a","typ":"logout+jwt"}"#,
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for text in ["", ".", "..", "a.b", "e30=.e30.AA"] {
            assert!(Unverified::parse(text).is_err(), "{text}");
        }
        let long = format!("{}.e30.AA", "e".repeat(TOKEN_BYTES_MAX));
        assert!(Unverified::parse(&long).is_err());
    }
}
