//! An issuer of tokens on this machine: its description, its keys, and whatever else a test wants it to
//! answer.

use std::{
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{
    hmac, rand,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::Utc;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

/// For whom the tokens are.
pub(crate) const AUDIENCE: &str = "carillon";

/// A pair of keys, with the name that its public part has in a set.
pub(crate) struct Key {
    pub(crate) kid: &'static str,
    pair: Pair,
}

enum Pair {
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
}

/// Of the issuer: one of each kind, and one of each that it turns to later.
pub(crate) static RSA: LazyLock<Key> = LazyLock::new(|| rsa("rsa-1"));
pub(crate) static RSA_LATER: LazyLock<Key> = LazyLock::new(|| rsa("rsa-2"));
pub(crate) static EC: LazyLock<Key> = LazyLock::new(|| ec("ec-1"));
/// Somebody else's, under the issuer's names.
pub(crate) static STRANGE_RSA: LazyLock<Key> = LazyLock::new(|| rsa("rsa-1"));
pub(crate) static STRANGE_EC: LazyLock<Key> = LazyLock::new(|| ec("ec-1"));

fn rsa(kid: &'static str) -> Key {
    let pair = Pair::Rsa(Box::new(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()));
    Key { kid, pair }
}

fn ec(kid: &'static str) -> Key {
    let pair = Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap());
    Key { kid, pair }
}

impl Key {
    pub(crate) fn alg(&self) -> &'static str {
        match &self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ec(_) => "ES256",
        }
    }

    /// The public part, as a set shows it.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = json!({ "kid": self.kid, "alg": self.alg(), "use": "sig" });
        let fields = match &self.pair {
            Pair::Rsa(pair) => {
                let key = pair.public_key();
                let n = key.modulus().big_endian_without_leading_zero();
                let e = key.exponent().big_endian_without_leading_zero();
                json!({ "kty": "RSA", "n": encode(n), "e": encode(e) })
            }
            Pair::Ec(pair) => {
                // 4, x, y.
                let point = pair.public_key().as_ref();
                let (x, y) = (encode(&point[1..33]), encode(&point[33..]));
                json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y })
            }
        };
        merge(&mut jwk, &fields);
        jwk
    }

    /// What a careless verifier would take for the secret of an HMAC.
    pub(crate) fn public_bytes(&self) -> Vec<u8> {
        match &self.pair {
            Pair::Rsa(pair) => pair.public_key().as_ref().to_vec(),
            Pair::Ec(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    pub(crate) fn sign(&self, text: &str) -> Vec<u8> {
        let random = rand::SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, text.as_bytes(), &mut signature)
                    .unwrap();
                signature
            }
            Pair::Ec(pair) => {
                let signature = pair.sign(&random, text.as_bytes()).unwrap();
                signature.as_ref().to_vec()
            }
        }
    }

    /// A token with this header and these claims, signed with this key.
    pub(crate) fn token(&self, header: &Value, claims: &Value) -> String {
        self.token_of_text(&header.to_string(), &claims.to_string())
    }

    /// The same, of any text.
    pub(crate) fn token_of_text(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = encode(self.sign(&signed));
        format!("{signed}.{signature}")
    }

    /// The usual header of its tokens.
    pub(crate) fn header(&self) -> Value {
        json!({ "alg": self.alg(), "kid": self.kid, "typ": "JWT" })
    }
}

/// A token that is signed with a shared secret.
pub(crate) fn hmac_token(secret: &[u8], header: &Value, claims: &Value) -> String {
    let signed = format!(
        "{}.{}",
        encode(header.to_string()),
        encode(claims.to_string())
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let signature = encode(hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

pub(crate) fn encode(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// Sets the fields of `change`; null takes one away.
pub(crate) fn merge(object: &mut Value, change: &Value) {
    for (name, value) in change.as_object().unwrap() {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(name);
        } else {
            object[name] = value.clone();
        }
    }
}

/// What the issuer answers.
#[derive(Clone)]
pub(crate) enum Mode {
    /// What it should.
    Up,
    /// The same, after a while.
    Slow(Duration),
    /// 500.
    Broken,
    /// To another place, where all is well.
    Redirects,
    /// More than anybody wants to read.
    Endless,
    /// Text that is no JSON.
    Nonsense,
    /// A description with these fields changed.
    Describes(Value),
    /// This in place of a set of keys.
    Shows(Value),
}

/// A running issuer; it ends with the test.
pub(crate) struct Issuer {
    pub(crate) url: String,
    state: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    url: String,
    keys: Mutex<Vec<Value>>,
    mode: Mutex<Mode>,
    calls: AtomicUsize,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Issuer {
    pub(crate) async fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Shared {
            url: url.clone(),
            keys: Mutex::new(keys.iter().map(|key| key.jwk()).collect()),
            mode: Mutex::new(Mode::Up),
            calls: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(describe))
            .route("/jwks", get(show))
            .route("/elsewhere", get(describe_itself))
            .with_state(state.clone());
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self { url, state, task }
    }

    pub(crate) fn set_keys(&self, keys: &[&Key]) {
        *self.state.keys.lock().unwrap() = keys.iter().map(|key| key.jwk()).collect();
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        *self.state.mode.lock().unwrap() = mode;
    }

    /// How often somebody began to ask.
    pub(crate) fn calls(&self) -> usize {
        self.state.calls.load(Ordering::SeqCst)
    }

    /// The claims of a token for this subject, with these changed.
    pub(crate) fn claims(&self, subject: &str, change: &Value) -> Value {
        let now = Utc::now().timestamp();
        let mut claims = json!({
            "iss": self.url, "sub": subject, "aud": AUDIENCE, "iat": now, "exp": now + 600,
        });
        merge(&mut claims, change);
        claims
    }

    /// A token that is as it should be.
    pub(crate) fn token(&self, key: &Key, subject: &str) -> String {
        key.token(&key.header(), &self.claims(subject, &json!({})))
    }
}

async fn describe(State(state): State<Arc<Shared>>) -> Response {
    state.calls.fetch_add(1, Ordering::SeqCst);
    let mode = state.mode.lock().unwrap().clone();
    match mode {
        Mode::Up | Mode::Shows(_) => description(&state, &json!({})),
        Mode::Slow(time) => {
            tokio::time::sleep(time).await;
            description(&state, &json!({}))
        }
        Mode::Broken => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Mode::Redirects => (StatusCode::FOUND, [(header::LOCATION, "/elsewhere")]).into_response(),
        Mode::Endless => format!("\"{}\"", "x".repeat(1_000_000)).into_response(),
        Mode::Nonsense => "<html>".into_response(),
        Mode::Describes(change) => description(&state, &change),
    }
}

async fn describe_itself(State(state): State<Arc<Shared>>) -> Response {
    description(&state, &json!({}))
}

fn description(state: &Shared, change: &Value) -> Response {
    let mut description = json!({ "issuer": state.url, "jwks_uri": format!("{}/jwks", state.url) });
    merge(&mut description, change);
    Json(description).into_response()
}

async fn show(State(state): State<Arc<Shared>>) -> Json<Value> {
    if let Mode::Shows(other) = state.mode.lock().unwrap().clone() {
        return Json(other);
    }
    let keys = state.keys.lock().unwrap().clone();
    Json(json!({ "keys": keys }))
}
