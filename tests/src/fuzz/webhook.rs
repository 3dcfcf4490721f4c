//! The signature of a webhook, against a verifier written from the specification ("Standard Webhooks",
//! "Verifying webhook authenticity") over another library than the signer's.
//!
//! The input is four parts, divided by line ends: secret, id, timestamp, body.

use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::webhook_secret::WebhookSecret;

use super::Verdict;

/// Places of the body at which a bit is turned.
const PLACES: usize = 4;

/// What a receiver gets.
#[derive(Clone)]
struct Received {
    id: Vec<u8>,
    timestamp: i64,
    body: Vec<u8>,
    signatures: Vec<u8>,
}

pub(super) fn check(data: &[u8]) -> Verdict {
    let mut parts = data.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (secret, id, timestamp, body) = (part(), part(), part(), part());
    let Ok(text) = str::from_utf8(secret) else {
        return Verdict::Refused;
    };
    let Ok(secret) = WebhookSecret::parse(text) else {
        return Verdict::Refused;
    };
    assert_eq!(secret.text().expose(), text, "two texts of one secret");
    assert!(!format!("{secret:?}").contains(&text["whsec_".len()..]));
    let id = String::from_utf8_lossy(id);
    let timestamp = String::from_utf8_lossy(timestamp).parse().unwrap_or(0);
    let signature = secret.sign(&id, timestamp, body);
    assert!(signature.is_ascii() && signature.len() == 47, "{signature}");
    let sent = Received {
        id: id.as_bytes().to_vec(),
        timestamp,
        body: body.to_vec(),
        signatures: signature.clone().into_bytes(),
    };
    assert!(sent.is_signed_by(text), "our own signature");
    beside_others(&sent, text, &signature);
    tampered(&sent, text);
    Verdict::Accepted
}

/// While two secrets overlap, the header has two signatures, and each receiver finds its own.
fn beside_others(sent: &Received, text: &str, signature: &str) {
    let other =
        WebhookSecret::parse(&format!("whsec_{}", BASE64_STANDARD.encode([9; 32]))).unwrap();
    let id = str::from_utf8(&sent.id).unwrap();
    let second = other.sign(id, sent.timestamp, &sent.body);
    for signatures in [
        format!("{signature} {second}"),
        format!("{second} {signature}"),
    ] {
        let both = Received {
            signatures: signatures.into_bytes(),
            ..sent.clone()
        };
        assert!(both.is_signed_by(text) && both.is_signed_by(other.text().expose()));
    }
    let of_another = Received {
        signatures: second.into_bytes(),
        ..sent.clone()
    };
    assert_eq!(of_another.is_signed_by(text), text == other.text().expose());
}

/// One bit that is another, wherever, and it is not ours any more.
fn tampered(sent: &Received, text: &str) {
    let mac = sent.mac(text);
    for at in 0..sent.signatures.len() {
        for bit in 0..8 {
            let changed = with(sent, |sent| sent.signatures[at] ^= 1 << bit);
            assert!(!changed.carries(&mac), "a forged signature passed");
        }
    }
    let mut changed = vec![
        with(sent, |sent| sent.body.push(b' ')),
        with(sent, |sent| sent.timestamp ^= 1),
        with(sent, |sent| sent.timestamp ^= 1 << 62),
    ];
    for at in places(sent.body.len()) {
        changed.push(with(sent, |sent| sent.body[at] ^= 1 << (at % 8)));
    }
    for at in places(sent.id.len()) {
        changed.push(with(sent, |sent| sent.id[at] ^= 1 << (at % 8)));
    }
    for changed in changed {
        assert!(!changed.is_signed_by(text), "a forged message passed");
    }
}

fn with(sent: &Received, change: impl FnOnce(&mut Received)) -> Received {
    let mut sent = sent.clone();
    change(&mut sent);
    sent
}

/// Up to so many, evenly over the length.
fn places(length: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by((length / PLACES).max(1))
}

impl Received {
    fn is_signed_by(&self, secret: &str) -> bool {
        self.carries(&self.mac(secret))
    }

    /// What has to stand in one of the signatures.
    fn mac(&self, secret: &str) -> Vec<u8> {
        let key = secret.strip_prefix("whsec_").unwrap();
        let key = BASE64_STANDARD.decode(key).unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(&self.id);
        mac.update(format!(".{}.", self.timestamp).as_bytes());
        mac.update(&self.body);
        mac.finalize().into_bytes().to_vec()
    }

    fn carries(&self, mac: &[u8]) -> bool {
        self.signatures
            .split(|byte| *byte == b' ')
            .filter_map(|signature| signature.strip_prefix(b"v1,"))
            .filter_map(|encoded| BASE64_STANDARD.decode(encoded).ok())
            .any(|signature| signature == mac)
    }
}
