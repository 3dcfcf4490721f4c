//! Tokens that somebody made up, and what is not looked at in those that nobody did.

use serde_json::{Value, json};

use super::{
    issuer::{EC, Issuer, Key, RSA, STRANGE_EC, STRANGE_RSA, encode, hmac_token, merge},
    world::{Reply, World},
};

/// A token, and the code that it is refused with; none for one that is good.
struct Case {
    name: &'static str,
    token: String,
    code: Option<&'static str>,
}

struct Cases<'a> {
    issuer: &'a Issuer,
    all: Vec<Case>,
}

const INVALID: Option<&str> = Some("invalid_token");

impl Cases<'_> {
    fn add(&mut self, name: &'static str, token: String, code: Option<&'static str>) {
        self.all.push(Case { name, token, code });
    }

    /// Signed with the issuer's key, with these claims changed.
    fn claims(&mut self, name: &'static str, change: &Value, code: Option<&'static str>) {
        let claims = self.issuer.claims("ada", change);
        self.add(name, RSA.token(&RSA.header(), &claims), code);
    }

    /// Signed with this key, with these fields of its header changed.
    fn header(
        &mut self,
        name: &'static str,
        key: &Key,
        change: &Value,
        code: Option<&'static str>,
    ) {
        let mut header = key.header();
        merge(&mut header, change);
        let token = key.token(&header, &self.issuer.claims("ada", &json!({})));
        self.add(name, token, code);
    }

    fn forged_signatures(&mut self) {
        let claims = self.issuer.claims("ada", &json!({}));
        let payload = encode(claims.to_string());
        for (name, alg) in [("none", "none"), ("None", "None"), ("no algorithm", "")] {
            let header = encode(json!({ "alg": alg, "kid": RSA.kid }).to_string());
            self.add(name, format!("{header}.{payload}."), INVALID);
            let signature = encode(RSA.sign(&format!("{header}.{payload}")));
            self.add(name, format!("{header}.{payload}.{signature}"), INVALID);
        }
        let jwk = RSA.jwk();
        let modulus = jwk["n"].as_str().unwrap().to_owned();
        for (name, secret) in [
            ("HMAC by the public key's DER", RSA.public_bytes()),
            ("HMAC by its modulus", modulus.into_bytes()),
            ("HMAC by the whole JWK", jwk.to_string().into_bytes()),
            ("HMAC by nothing", Vec::new()),
        ] {
            for alg in ["HS256", "RS256"] {
                let header = json!({ "alg": alg, "kid": RSA.kid });
                self.add(name, hmac_token(&secret, &header, &claims), INVALID);
            }
        }
        for (name, key) in [
            ("another RSA key", &*STRANGE_RSA),
            ("another EC key", &STRANGE_EC),
        ] {
            self.add(name, key.token(&key.header(), &claims), INVALID);
        }
        let (good, other) = (
            self.issuer.token(&RSA, "ada"),
            self.issuer.token(&RSA, "eve"),
        );
        let (signed, signature) = good.rsplit_once('.').unwrap();
        let (other_signed, other_signature) = other.rsplit_once('.').unwrap();
        for (name, token) in [
            (
                "another token's signature",
                format!("{signed}.{other_signature}"),
            ),
            (
                "another token's claims",
                format!("{other_signed}.{signature}"),
            ),
            ("no signature", format!("{signed}.")),
            (
                "half a signature",
                format!("{signed}.{}", &signature[..signature.len() / 2]),
            ),
            ("padding", format!("{good}=")),
            ("a newline", format!("{good}%0A")),
            (
                "claims cut short",
                format!("{}.{signature}", &signed[..signed.len() - 9]),
            ),
            ("nothing", "..".to_owned()),
        ] {
            self.add(name, token, INVALID);
        }
    }

    fn claims_that_do_not_fit(&mut self) {
        let now = chrono::Utc::now().timestamp();
        for (name, change, code) in [
            (
                "another issuer",
                json!({ "iss": "https://issuer.example" }),
                "wrong_issuer",
            ),
            (
                "a slash more",
                json!({ "iss": format!("{}/", self.issuer.url) }),
                "wrong_issuer",
            ),
            ("no issuer", json!({ "iss": null }), "invalid_claims"),
            (
                "another audience",
                json!({ "aud": "other" }),
                "wrong_audience",
            ),
            (
                "other audiences",
                json!({ "aud": ["other", "others"] }),
                "wrong_audience",
            ),
            ("no audience", json!({ "aud": null }), "wrong_audience"),
            (
                "an app's login",
                json!({ "token_use": "id" }),
                "wrong_token_use",
            ),
            ("expired", json!({ "exp": now - 61 }), "token_expired"),
            ("no end", json!({ "exp": null }), "invalid_claims"),
            (
                "an end that is no number",
                json!({ "exp": "never" }),
                "invalid_claims",
            ),
            (
                "not yet",
                json!({ "nbf": now + 120 }),
                "token_not_yet_valid",
            ),
            (
                "of tomorrow",
                json!({ "iat": now + 86_400 }),
                "token_not_yet_valid",
            ),
            ("nobody", json!({ "sub": null }), "invalid_claims"),
        ] {
            self.claims(name, &change, Some(code));
        }
        let exp = now + 600;
        let iss = &self.issuer.url;
        for (name, claims) in [
            (
                "two subjects",
                format!(
                    r#"{{"iss":"{iss}","sub":"eve","sub":"ada","aud":"carillon","exp":{exp}}}"#
                ),
            ),
            (
                "two ends",
                format!(r#"{{"iss":"{iss}","sub":"ada","aud":"carillon","exp":1,"exp":{exp}}}"#),
            ),
            ("no object", "[]".to_owned()),
            ("no JSON", "ada".to_owned()),
        ] {
            let token = RSA.token_of_text(&RSA.header().to_string(), &claims);
            self.add(name, token, Some("invalid_claims"));
        }
        self.claims("too long", &json!({ "pad": "x".repeat(8_192) }), INVALID);
    }

    fn keys_that_are_not_there(&mut self, elsewhere: &str) {
        for kid in [
            "rsa-9",
            "",
            "../../../etc/passwd",
            "rsa-1' OR '1'='1",
            "http://127.0.0.1/jwks",
            "rsa-1\u{0}",
        ] {
            self.header("a strange kid", &RSA, &json!({ "kid": kid }), INVALID);
        }
        self.header("no kid", &RSA, &json!({ "kid": null }), INVALID);
        self.header(
            "an EC token with RSA's kid",
            &EC,
            &json!({ "kid": RSA.kid }),
            INVALID,
        );
        self.header(
            "an RSA token with EC's kid",
            &RSA,
            &json!({ "kid": EC.kid }),
            INVALID,
        );
        let as_rsa = json!({ "kid": RSA.kid, "alg": "RS256" });
        self.header("an EC signature as RSA's", &EC, &as_rsa, INVALID);
        for alg in ["RS384", "RS512", "PS256", "ES384", "EdDSA"] {
            self.header("another algorithm", &RSA, &json!({ "alg": alg }), INVALID);
        }
        self.header(
            "demands",
            &RSA,
            &json!({ "crit": ["exp"], "exp": 1 }),
            INVALID,
        );
        self.header("a logout", &RSA, &json!({ "typ": "logout+jwt" }), INVALID);
        // Whoever brings a key along, or says where one lies, is believed as little as without.
        for (name, change) in [
            ("jku", json!({ "jku": elsewhere })),
            ("x5u", json!({ "x5u": elsewhere })),
            ("jwk", json!({ "jwk": STRANGE_RSA.jwk() })),
            (
                "jwk and a new kid",
                json!({ "jwk": STRANGE_RSA.jwk(), "kid": "mine" }),
            ),
        ] {
            self.header(name, &STRANGE_RSA, &change, INVALID);
        }
        // In a token that is signed as it should be, the same is passed by.
        for (name, change) in [
            ("good, with jku", json!({ "jku": elsewhere })),
            ("good, with x5u", json!({ "x5u": elsewhere })),
            ("good, with jwk", json!({ "jwk": STRANGE_RSA.jwk() })),
            ("good, as RFC 9068 has it", json!({ "typ": "at+jwt" })),
        ] {
            self.header(name, &RSA, &change, None);
        }
    }

    fn good_ones(&mut self) {
        self.add("good, RSA", self.issuer.token(&RSA, "ada"), None);
        self.add("good, EC", self.issuer.token(&EC, "ada"), None);
        let cognito = json!({ "aud": null, "client_id": "carillon", "token_use": "access" });
        self.claims("good, of Cognito", &cognito, None);
        self.claims(
            "good, among audiences",
            &json!({ "aud": ["x", "carillon"] }),
            None,
        );
    }
}

#[tokio::test]
async fn no_token_that_was_made_up_is_believed() {
    let world = World::new().await;
    let strange = Issuer::start(&[&STRANGE_RSA]).await;
    let tenant = world.tenant("ada").await;
    world.member(&tenant, "ada", "viewer").await;
    let mut cases = Cases {
        issuer: &world.issuer,
        all: Vec::new(),
    };
    cases.good_ones();
    cases.forged_signatures();
    cases.claims_that_do_not_fit();
    cases.keys_that_are_not_there(&format!("{}/jwks", strange.url));
    // Of another issuer, whose keys have the same names.
    cases.add("a stranger's", strange.token(&STRANGE_RSA, "ada"), INVALID);
    assert!(cases.all.len() > 60, "{}", cases.all.len());
    for Case { name, token, code } in cases.all {
        let reply = world.get(&token, "/v1/tenant").await;
        let told = (reply.status.as_u16(), reply.body["code"].as_str());
        match code {
            Some(code) => assert_eq!(told, (401, Some(code)), "{name}: {token}"),
            None => assert_eq!(told, (200, None), "{name}: {}", reply.body),
        }
        tells_nothing(&reply, &token);
    }
    assert_eq!(strange.calls(), 0, "somebody went where a token said");
    assert_eq!(world.issuer.calls(), 1);
}

/// No part of a token comes back in what is said of it.
fn tells_nothing(reply: &Reply, token: &str) {
    if reply.status.is_success() {
        return;
    }
    // A request's id is chance, and may spell anything.
    let mut body = reply.body.clone();
    body["request_id"].take();
    let told = body.to_string();
    for part in token.split('.').filter(|part| part.len() > 8) {
        assert!(!told.contains(part), "{told}");
    }
    assert!(
        !told.contains("ada") && !told.contains("127.0.0.1"),
        "{told}"
    );
    assert_eq!(
        reply.headers["www-authenticate"],
        "Bearer realm=\"carillon\""
    );
}

#[tokio::test]
async fn a_token_is_no_key_where_there_is_no_issuer() {
    let world = World::without_tokens().await;
    let tenant = world.tenant("ada").await;
    let reply = world.get(&world.token("ada"), "/v1/tenant").await;
    reply.refused(401, "tokens_not_taken");
    assert_eq!(world.get(&tenant.key, "/v1/tenant").await.status, 200);
    assert_eq!(world.issuer.calls(), 0);
}
