//! Posts a run's output to a tenant's server, signed by Standard Webhooks.
//!
//! The id and the body are the same for every attempt, so that a receiver can drop repeats; the
//! timestamp and the signatures are of the attempt.

use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use shared::webhook_secret::SigningSecrets;

use super::{Answer, DeliveryError, Outgoing, Sent, excerpt};
use crate::http::{Guarded, PostError, Reply};

const TIMEOUT: Duration = Duration::from_secs(15);

pub(super) async fn send(
    http: &Guarded,
    url: &str,
    secrets: &SigningSecrets,
    item: &Outgoing<'_>,
) -> Result<Sent, DeliveryError> {
    let headers = signed(secrets, item)?;
    match http.post(url, headers, item.body.clone(), TIMEOUT).await {
        Ok(reply) => settle(&reply, item.attempted_at),
        Err(PostError::NotAllowed) => Err(DeliveryError::UrlNotAllowed),
        Err(error @ PostError::Unreachable(_)) => Err(DeliveryError::EndpointUnreachable(error)),
        Err(error @ PostError::NoAnswer(_)) => Err(DeliveryError::EndpointSilent(error)),
    }
}

/// The headers of the specification's section "Webhook Headers (sending metadata to consumers)".
fn signed(secrets: &SigningSecrets, item: &Outgoing<'_>) -> Result<HeaderMap, DeliveryError> {
    let id = item.of.delivery_id.to_string();
    let timestamp = item.attempted_at.timestamp();
    let signatures: Vec<String> = [Some(&secrets.current), secrets.previous.as_ref()]
        .into_iter()
        .flatten()
        .map(|secret| secret.sign(&id, timestamp, &item.body))
        .collect();
    let text =
        |value: &str| HeaderValue::from_str(value).map_err(|_invalid| DeliveryError::InvalidTarget);
    Ok(HeaderMap::from_iter([
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (http::HeaderName::from_static("webhook-id"), text(&id)?),
        (
            http::HeaderName::from_static("webhook-timestamp"),
            HeaderValue::from(timestamp),
        ),
        (
            http::HeaderName::from_static("webhook-signature"),
            text(&signatures.join(" "))?,
        ),
    ]))
}

fn settle(reply: &Reply, now: DateTime<Utc>) -> Result<Sent, DeliveryError> {
    let answer = Answer {
        status: reply.status.as_u16(),
        excerpt: excerpt(&reply.body),
    };
    match answer.status {
        200..=299 => Ok(Sent {
            status: Some(answer.status),
            excerpt: Some(answer.excerpt).filter(|text| !text.is_empty()),
            location: None,
        }),
        410 => Err(DeliveryError::EndpointGone(answer)),
        300..=399 => Err(DeliveryError::EndpointRedirects(answer)),
        408 | 429 | 500..=599 => Err(DeliveryError::EndpointBusy {
            answer,
            retry_after: reply
                .headers
                .get(RETRY_AFTER)
                .and_then(|value| retry_after(value.to_str().ok()?, now)),
        }),
        _ => Err(DeliveryError::EndpointRefused(answer)),
    }
}

/// Seconds, or a date (RFC 9110, section 10.2.3); nothing for a date that has passed.
fn retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = DateTime::parse_from_rfc2822(text.trim()).ok()?;
    (until.with_timezone(&Utc) - now).to_std().ok()
}

#[cfg(test)]
mod tests {
    use base64::{Engine, prelude::BASE64_STANDARD};
    use bytes::Bytes;
    use hmac::{Hmac, KeyInit, Mac};
    use http::StatusCode;
    use sha2::Sha256;
    use shared::{
        ids::{DeliveryId, PromptId, RunId, TenantId},
        mail_tags::MailTags,
        webhook_secret::WebhookSecret,
    };

    use super::*;
    use crate::deliver::{Disposition, Target};

    fn now() -> DateTime<Utc> {
        "2026-03-02T09:00:05.999Z".parse().unwrap()
    }

    fn settled(status: u16, after: Option<&str>) -> Result<Sent, DeliveryError> {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(RETRY_AFTER, after.parse().unwrap());
        }
        let reply = Reply {
            status: StatusCode::from_u16(status).unwrap(),
            headers,
            body: b"said\r\nthis".to_vec(),
        };
        settle(&reply, now())
    }

    /// Another implementation of HMAC than the one that signs.
    fn verify(secret: &WebhookSecret, headers: &HeaderMap, body: &[u8]) -> bool {
        let text = |name: &str| headers[name].to_str().unwrap();
        let secret = secret.text();
        let key = BASE64_STANDARD
            .decode(&secret.expose()["whsec_".len()..])
            .unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(format!("{}.{}.", text("webhook-id"), text("webhook-timestamp")).as_bytes());
        mac.update(body);
        let expected = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
        text("webhook-signature")
            .split(' ')
            .any(|one| one == expected)
    }

    #[test]
    fn both_secrets_sign_during_the_overlap_and_one_after_it() {
        let (old, new) = (WebhookSecret::generate(), WebhookSecret::generate());
        let mut secrets = SigningSecrets {
            current: new.clone(),
            previous: Some(old.clone()),
        };
        let delivery_id = DeliveryId::new();
        let sign = |secrets: &SigningSecrets| {
            let item = Outgoing {
                of: MailTags {
                    tenant_id: TenantId::new(),
                    prompt_id: PromptId::new(),
                    run_id: RunId::new(),
                    delivery_id,
                },
                target: Target::Webhook("https://example.com/", secrets),
                body: Bytes::from_static(b"{\"a\":1}"),
                attempted_at: now(),
            };
            signed(secrets, &item).unwrap()
        };
        let headers = sign(&secrets);
        assert_eq!(headers["webhook-id"], delivery_id.to_string());
        assert_eq!(headers["webhook-timestamp"], "1772442005");
        assert_eq!(headers[CONTENT_TYPE], "application/json");
        assert!(verify(&old, &headers, b"{\"a\":1}"));
        assert!(verify(&new, &headers, b"{\"a\":1}"));
        assert!(!verify(&new, &headers, b"{\"a\":2}"));
        assert!(!verify(&WebhookSecret::generate(), &headers, b"{\"a\":1}"));

        secrets.previous = None;
        let headers = sign(&secrets);
        assert!(verify(&new, &headers, b"{\"a\":1}"));
        assert!(!verify(&old, &headers, b"{\"a\":1}"));
    }

    #[test]
    fn a_2xx_is_delivered_and_its_answer_recorded() {
        for status in [200, 201, 202, 204, 299] {
            let sent = settled(status, None).unwrap();
            assert_eq!(sent.status, Some(status));
            assert_eq!(sent.excerpt.as_deref(), Some("said  this"));
        }
    }

    #[test]
    fn every_other_status_has_one_meaning() {
        for (status, code, again) in [
            (301, "endpoint_redirects", false),
            (307, "endpoint_redirects", false),
            (400, "endpoint_refused", false),
            (401, "endpoint_refused", false),
            (404, "endpoint_refused", false),
            (408, "endpoint_busy", true),
            (410, "endpoint_gone", false),
            (429, "endpoint_busy", true),
            (500, "endpoint_busy", true),
            (503, "endpoint_busy", true),
            (599, "endpoint_busy", true),
            (600, "endpoint_refused", false),
        ] {
            let error = settled(status, None).unwrap_err();
            assert_eq!(error.code(), code, "{status}");
            let retried = matches!(error.disposition(), Disposition::Retry { .. });
            assert_eq!(retried, again, "{status}");
            assert!(!error.outcome_unknown());
            let answer = error.answer().unwrap();
            assert_eq!(
                (answer.status, answer.excerpt.as_str()),
                (status, "said  this")
            );
        }
    }

    #[test]
    fn retry_after_is_a_floor_in_both_of_its_forms() {
        for (text, seconds) in [
            ("120", Some(120)),
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("Mon, 02 Mar 2026 09:01:06 GMT", Some(60)),
            ("Mon, 02 Mar 2026 08:00:00 GMT", None),
            ("-1", None),
            ("soon", None),
            ("1.5", None),
        ] {
            let error = settled(503, Some(text)).unwrap_err();
            let Disposition::Retry { after } = error.disposition() else {
                panic!("{text}");
            };
            assert_eq!(after.map(|after| after.as_secs()), seconds, "{text}");
        }
    }
}
