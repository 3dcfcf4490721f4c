//! Whose tokens are accepted, and for whom they must have been made.

use shared::env::{Environment, Reader};
use url::{Host, Url};

const ISSUER: &str = "CARILLON_OIDC_ISSUER";
const AUDIENCE: &str = "CARILLON_OIDC_AUDIENCE";
/// The column holds as much.
const ISSUER_BYTES_MAX: usize = 512;
const AUDIENCE_BYTES_MAX: usize = 512;

/// An issuer, and the audience that its tokens must name.
#[derive(Debug, Clone)]
pub struct OidcSettings {
    /// Who makes the tokens.
    pub issuer: Issuer,
    /// For whom.
    pub audience: Audience,
}

impl OidcSettings {
    /// Reads `CARILLON_OIDC_ISSUER` and `CARILLON_OIDC_AUDIENCE`: both or neither.
    pub fn read(reader: &mut Reader<'_>, environment: Option<Environment>) -> Option<Self> {
        let is_set =
            |reader: &Reader<'_>, name| reader.text(name).is_some_and(|text| !text.is_empty());
        let given = [ISSUER, AUDIENCE].map(|name| is_set(reader, name));
        match given {
            [true, false] => reader.refuse(format!("{AUDIENCE} is not set, but {ISSUER} is")),
            [false, true] => reader.refuse(format!("{ISSUER} is not set, but {AUDIENCE} is")),
            [false, false] | [true, true] => {}
        }
        let environment = environment.unwrap_or(Environment::Prod);
        let issuer = reader.optional(ISSUER, |text| Issuer::parse(text, environment));
        let audience = reader.optional(AUDIENCE, Audience::parse);
        Some(Self {
            issuer: issuer?,
            audience: audience?,
        })
    }
}

/// An issuer: its name as it stands in tokens, which is also where its keys are found.
#[derive(Debug, Clone)]
pub struct Issuer {
    name: String,
    url: Url,
}

impl Issuer {
    /// Reads an issuer's URL: https, or on this machine also http where nothing is at stake.
    ///
    /// # Errors
    /// A few words on what it must be.
    pub fn parse(text: &str, environment: Environment) -> Result<Self, String> {
        let fault =
            || "must be an https URL without query and fragment, as tokens have it in `iss`";
        let url = Url::parse(text).map_err(|_| fault())?;
        let plain = text.len() <= ISSUER_BYTES_MAX
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        let safe = match environment {
            Environment::Local | Environment::Dev => is_safe(&url) || is_loopback(&url),
            Environment::Staging | Environment::Prod => is_safe(&url),
        };
        if !plain || !safe {
            return Err(fault().to_owned());
        }
        let name = text.to_owned();
        Ok(Self { name, url })
    }

    /// As it stands in tokens.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// Where it describes itself (OpenID Connect Discovery 1.0, section 4).
    pub(super) fn discovery(&self) -> Option<Url> {
        let base = self.name.trim_end_matches('/');
        Url::parse(&format!("{base}/.well-known/openid-configuration")).ok()
    }

    /// Where it says that its keys are: anywhere by https, else only where it is itself.
    pub(super) fn key_url(&self, text: &str) -> Option<Url> {
        let url = Url::parse(text).ok()?;
        let same_place = url.origin() == self.url.origin();
        (is_safe(&url) || same_place).then_some(url)
    }
}

fn is_safe(url: &Url) -> bool {
    url.scheme() == "https" && url.host().is_some()
}

fn is_loopback(url: &Url) -> bool {
    url.scheme() == "http"
        && match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
}

/// For whom tokens must have been made: an API's identifier, or in Cognito an app client's id.
#[derive(Debug, Clone)]
pub struct Audience(String);

impl Audience {
    /// Reads an audience.
    ///
    /// # Errors
    /// A few words on what it must be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
        if plain && (1..=AUDIENCE_BYTES_MAX).contains(&text.len()) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "must be 1 to {AUDIENCE_BYTES_MAX} visible characters of ASCII"
        ))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_https_but_for_ones_own_machine() {
        let issuer = |text, environment| Issuer::parse(text, environment).map(|one| one.name);
        let prod = "https://issuer.example/tenant";
        assert_eq!(issuer(prod, Environment::Prod), Ok(prod.to_owned()));
        // Not as the URL standard would write it.
        let bare = "https://Issuer.example";
        assert_eq!(issuer(bare, Environment::Prod), Ok(bare.to_owned()));
        for local in [
            "http://127.0.0.1:9000",
            "http://localhost/x",
            "http://[::1]:1",
        ] {
            assert!(issuer(local, Environment::Dev).is_ok(), "{local}");
            assert!(issuer(local, Environment::Local).is_ok(), "{local}");
            assert!(issuer(local, Environment::Prod).is_err(), "{local}");
            assert!(issuer(local, Environment::Staging).is_err(), "{local}");
        }
        for wrong in [
            "",
            "issuer.example",
            "http://issuer.example",
            "http://127.0.0.1.example",
            "ftp://issuer.example",
            "https://user@issuer.example",
            "https://:word@issuer.example",
            "https://issuer.example?x=1",
            "https://issuer.example#x",
            "https://issuer.example/ x",
            &format!("https://issuer.example/{}", "a".repeat(500)),
        ] {
            assert!(issuer(wrong, Environment::Dev).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_are_had_by_https_or_from_the_issuer_itself() {
        let found = |issuer, text| {
            let issuer = Issuer::parse(issuer, Environment::Dev).unwrap();
            issuer.key_url(text).is_some()
        };
        let (public, own) = ("https://issuer.example/a", "http://127.0.0.1:9000");
        assert!(found(public, "https://keys.example/jwks"));
        assert!(!found(public, "http://issuer.example/jwks"));
        assert!(!found(public, "file:///etc/passwd"));
        assert!(!found(public, "/jwks"));
        assert!(found(own, "http://127.0.0.1:9000/jwks"));
        assert!(!found(own, "http://127.0.0.1:9001/jwks"));
        assert!(!found(own, "http://169.254.169.254/latest/meta-data"));
    }

    #[test]
    fn the_slash_at_an_issuers_end_is_not_doubled() {
        for issuer in ["https://issuer.example/a", "https://issuer.example/a/"] {
            let issuer = Issuer::parse(issuer, Environment::Prod).unwrap();
            let url = issuer.discovery().unwrap();
            assert_eq!(url.path(), "/a/.well-known/openid-configuration");
        }
    }
}
