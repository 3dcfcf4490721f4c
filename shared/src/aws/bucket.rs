//! Signed requests for the objects of one bucket of S3.
//!
//! A whole client of S3 would be a tenth of a function, most of it checksums that nothing here asks
//! for. What a refusal means, the caller says; this signs, sends at most twice, and reads within
//! bounds.

use std::{
    iter,
    time::{Duration, SystemTime},
};

use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider},
};
use aws_sigv4::{
    http_request::{
        PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation,
        SigningSettings, UriPathNormalizationMode, sign,
    },
    sign::v4,
};
use aws_smithy_types::body::SdkBody;
use aws_types::SdkConfig;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header::CONTENT_LENGTH};
use http_body_util::{BodyExt, Limited};
use tokio::time::{sleep, timeout};

use super::{
    Failed, Failure,
    http::{Connector, Limits},
};

/// A put that is repeated finds what the first one left.
const ATTEMPTS_MAX: u32 = 2;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(6);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const BACKOFF: Duration = Duration::from_millis(250);

/// What a refusal says is shorter.
const REFUSAL_BYTES_MAX: usize = 64 * 1024;

/// A bucket, as whoever the configuration names.
#[derive(Debug)]
pub struct Bucket {
    name: String,
    base_url: Option<String>,
    region: String,
    credentials: Option<SharedCredentialsProvider>,
    connector: Box<Connector>,
}

/// What one object is asked for.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// `GET`, `HEAD` or `PUT`.
    pub method: Method,
    /// The object's key.
    pub key: &'a str,
    /// Beside those that every request has.
    pub headers: Vec<(&'static str, String)>,
    /// What is put.
    pub body: Bytes,
    /// The SHA-256 of the body, in hexadecimal digits.
    pub sha256: String,
    /// How much of an answer is read.
    pub answer_bytes_max: usize,
}

/// What an object's answer was.
#[derive(Debug)]
pub struct Answer {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body; `None` when it is longer than it may be.
    pub body: Option<Bytes>,
}

/// Why a request was not signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a request for the bucket cannot be signed; look at the region, the credentials and the endpoint"
)]
pub struct SignError;

impl Bucket {
    /// With AWS's usual settings: region, credentials, endpoint.
    #[must_use]
    pub fn new(aws: &SdkConfig, name: String) -> Self {
        let region = aws.region().map(ToString::to_string).unwrap_or_default();
        Self {
            base_url: base_url(aws.endpoint_url(), &region, &name),
            name,
            region,
            credentials: aws.credentials_provider(),
            connector: Box::new(Connector::new(Limits {
                connect: Some(CONNECT_TIMEOUT),
                read: None,
            })),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A URL that anybody may read the object at for so long.
    ///
    /// # Errors
    /// [`SignError`].
    pub async fn url(&self, key: &str, good_for: Duration) -> Result<String, SignError> {
        self.url_from(key, SystemTime::now(), good_for).await
    }

    async fn url_from(
        &self,
        key: &str,
        now: SystemTime,
        good_for: Duration,
    ) -> Result<String, SignError> {
        let mut settings = settings();
        settings.signature_location = SignatureLocation::QueryParams;
        settings.expires_in = Some(good_for);
        settings.payload_checksum_kind = PayloadChecksumKind::NoHeader;
        let url = self.url_of(key).ok_or(SignError)?;
        let mut request = http::Request::get(url).body(()).map_err(|_| SignError)?;
        let body = SignableBody::UnsignedPayload;
        self.sign(&mut request, body, settings, now).await?;
        Ok(request.uri().to_string())
    }

    /// Sends a request, and a second time where the first may have failed by chance.
    ///
    /// # Errors
    /// [`Failure`], for every answer but a success too.
    pub async fn call(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        for _ in 1..ATTEMPTS_MAX {
            match self.call_once(request).await {
                Err(failure) if is_passing(failure.failed) => {
                    sleep(BACKOFF.mul_f64(rand::random::<f64>())).await;
                }
                done => return done,
            }
        }
        self.call_once(request).await
    }

    async fn call_once(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        let signed = self.signed(request, SystemTime::now()).await;
        let signed = signed.map_err(|error| Failure {
            failed: Failed::NotSent,
            detail: error.to_string(),
            ..Failure::deadline()
        })?;
        match timeout(ATTEMPT_TIMEOUT, self.exchange(signed, request)).await {
            Ok(answer) => answer,
            Err(_elapsed) => Err(Failure::deadline()),
        }
    }

    async fn exchange(
        &self,
        signed: http::Request<SdkBody>,
        request: &Request<'_>,
    ) -> Result<Answer, Failure> {
        let (head, body) = match self.connector.client.request(signed).await {
            Ok(answer) => answer.into_parts(),
            Err(error) => return Err(not_answered(&error)),
        };
        let said = head.headers.get(CONTENT_LENGTH);
        let said = said.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let has_body = request.method != Method::HEAD;
        if !head.status.is_success() {
            let read = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
            let text = read
                .map(http_body_util::Collected::to_bytes)
                .unwrap_or_default();
            return Err(refused(head.status, &head.headers, &text));
        }
        if has_body && said.is_some_and(|bytes| bytes > request.answer_bytes_max) {
            return Ok(Answer {
                headers: head.headers,
                body: None,
            });
        }
        match Limited::new(body, request.answer_bytes_max).collect().await {
            Ok(body) => Ok(Answer {
                headers: head.headers,
                body: Some(body.to_bytes()),
            }),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => Ok(Answer {
                headers: head.headers,
                body: None,
            }),
            Err(error) => Err(Failure {
                failed: Failed::Unreachable,
                detail: format!("the answer broke off: {error}"),
                ..Failure::deadline()
            }),
        }
    }

    async fn signed(
        &self,
        request: &Request<'_>,
        now: SystemTime,
    ) -> Result<http::Request<SdkBody>, SignError> {
        let url = self.url_of(request.key).ok_or(SignError)?;
        let mut built = http::Request::builder()
            .method(request.method.clone())
            .uri(url);
        for (name, value) in &request.headers {
            built = built.header(*name, value);
        }
        let body = SdkBody::from(request.body.clone());
        let mut built = built.body(body).map_err(|_| SignError)?;
        let sha256 = SignableBody::Precomputed(request.sha256.clone());
        self.sign(&mut built, sha256, settings(), now).await?;
        Ok(built)
    }

    async fn sign<B>(
        &self,
        request: &mut http::Request<B>,
        body: SignableBody<'_>,
        settings: SigningSettings,
        now: SystemTime,
    ) -> Result<(), SignError> {
        let provider = self.credentials.as_ref().ok_or(SignError)?;
        let credentials: Credentials = provider
            .provide_credentials()
            .await
            .map_err(|_| SignError)?;
        let identity = credentials.into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(now)
            .settings(settings)
            .build()
            .map_err(|_| SignError)?
            .into();
        let uri = request.uri().to_string();
        let headers: Option<Vec<_>> = request
            .headers()
            .iter()
            .map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
            .collect();
        let headers = headers.ok_or(SignError)?.into_iter();
        let signable = SignableRequest::new(request.method().as_str(), uri, headers, body)
            .map_err(|_| SignError)?;
        let (instructions, _) = sign(signable, &params).map_err(|_| SignError)?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }

    fn url_of(&self, key: &str) -> Option<String> {
        Some(format!("{}/{}", self.base_url.as_ref()?, encoded(key)))
    }
}

/// How S3 wants requests signed ("Authenticating Requests (AWS Signature Version 4)").
fn settings() -> SigningSettings {
    let mut settings = SigningSettings::default();
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings
}

/// The name of an emulator has no subdomain for each bucket, and a certificate none for a name with
/// dots ("Virtual hosting of general purpose buckets").
fn base_url(endpoint: Option<&str>, region: &str, name: &str) -> Option<String> {
    if let Some(endpoint) = endpoint {
        return Some(format!("{}/{name}", endpoint.trim_end_matches('/')));
    }
    if region.is_empty() {
        return None;
    }
    let domain = if region.starts_with("cn-") {
        "amazonaws.com.cn"
    } else {
        "amazonaws.com"
    };
    Some(if name.contains('.') {
        format!("https://s3.{region}.{domain}/{name}")
    } else {
        format!("https://{name}.s3.{region}.{domain}")
    })
}

fn encoded(key: &str) -> String {
    let mut url = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                url.push(char::from(byte));
            }
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

fn is_passing(failed: Failed) -> bool {
    match failed {
        Failed::Throttled
        | Failed::Unavailable
        | Failed::TimedOut
        | Failed::NotConnected
        | Failed::Unreachable => true,
        Failed::Garbled | Failed::NotSent | Failed::Denied | Failed::Conflict | Failed::Refused => {
            false
        }
    }
}

fn not_answered(error: &hyper_util::client::legacy::Error) -> Failure {
    let first: &(dyn std::error::Error + 'static) = error;
    let causes = iter::successors(Some(first), |&cause| cause.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    Failure {
        failed: if error.is_connect() {
            Failed::NotConnected
        } else {
            Failed::Unreachable
        },
        detail: causes.join(": "),
        ..Failure::deadline()
    }
}

/// A refusal's body names a code ("REST error responses"); the answer to a `HEAD` has none.
fn refused(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Failure {
    let text = String::from_utf8_lossy(body);
    let within = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        let (said, _) = rest.split_once(&format!("</{tag}>"))?;
        Some(said.to_owned())
    };
    let code = within("Code").unwrap_or_default();
    let message = within("Message").unwrap_or_default();
    Failure::answered(status.as_u16(), code, message, |name| {
        headers.get(name)?.to_str().ok()
    })
}

#[cfg(test)]
mod tests {
    use aws_types::region::Region;
    use sha2::{Digest, Sha256};

    use super::*;

    fn bucket(endpoint: Option<&str>, region: &str, name: &str) -> Bucket {
        let credentials =
            Credentials::new("AKIDEXAMPLE", "key", Some("token".into()), None, "test");
        let mut aws = SdkConfig::builder()
            .region(Region::new(region.to_owned()))
            .credentials_provider(SharedCredentialsProvider::new(credentials));
        aws.set_endpoint_url(endpoint.map(str::to_owned));
        Bucket::new(&aws.build(), name.to_owned())
    }

    #[test]
    fn a_bucket_has_a_name_of_its_own_where_a_certificate_covers_it() {
        let urls = [
            (
                None,
                "eu-central-1",
                "outputs",
                "https://outputs.s3.eu-central-1.amazonaws.com/a/b%3Ac.md",
            ),
            (
                None,
                "cn-north-1",
                "outputs",
                "https://outputs.s3.cn-north-1.amazonaws.com.cn/a/b%3Ac.md",
            ),
            (
                None,
                "us-east-1",
                "our.outputs",
                "https://s3.us-east-1.amazonaws.com/our.outputs/a/b%3Ac.md",
            ),
            (
                Some("http://127.0.0.1:4566/"),
                "us-east-1",
                "outputs",
                "http://127.0.0.1:4566/outputs/a/b%3Ac.md",
            ),
        ];
        for (endpoint, region, name, url) in urls {
            let bucket = bucket(endpoint, region, name);
            assert_eq!(bucket.url_of("a/b:c.md").as_deref(), Some(url));
        }
    }

    #[tokio::test]
    async fn a_url_is_good_for_a_while_and_for_one_object() {
        let bucket = bucket(None, "eu-central-1", "outputs");
        let url = bucket
            .url("a/b.md", Duration::from_secs(900))
            .await
            .unwrap();
        let (place, query) = url.split_once('?').unwrap();
        assert_eq!(
            place,
            "https://outputs.s3.eu-central-1.amazonaws.com/a/b.md"
        );
        for part in [
            "X-Amz-Expires=900",
            "X-Amz-Algorithm=AWS4-HMAC-SHA256",
            "X-Amz-SignedHeaders=host",
            "X-Amz-Security-Token=token",
            "X-Amz-Signature=",
        ] {
            assert!(query.contains(part), "{query}");
        }
    }

    /// The bucket, the keys and the moment of S3's own examples (Amazon S3 API Reference, "Signature
    /// calculations for the Authorization header" and "Authenticating Requests: Using Query
    /// Parameters"). No emulator looks at a signature.
    fn documented() -> (Bucket, SystemTime) {
        let credentials = Credentials::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            None,
            None,
            "test",
        );
        let aws = SdkConfig::builder()
            .region(Region::new("us-east-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        let bucket = Bucket {
            base_url: Some("https://examplebucket.s3.amazonaws.com".to_owned()),
            ..Bucket::new(&aws, "examplebucket".to_owned())
        };
        let moment = SystemTime::UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        (bucket, moment)
    }

    async fn signature(
        method: Method,
        key: &str,
        header: [(&'static str, &str); 2],
        body: &'static str,
    ) -> String {
        let (bucket, moment) = documented();
        let headers = header.into_iter().filter(|(name, _)| !name.is_empty());
        let request = Request {
            method,
            key,
            headers: headers
                .map(|(name, value)| (name, value.to_owned()))
                .collect(),
            body: Bytes::from_static(body.as_bytes()),
            sha256: hex::encode(Sha256::digest(body)),
            answer_bytes_max: 0,
        };
        let signed = bucket.signed(&request, moment).await.unwrap();
        let authorization = signed.headers()["authorization"].to_str().unwrap();
        authorization.split_once("Signature=").unwrap().1.to_owned()
    }

    #[tokio::test]
    async fn signatures_are_those_that_s3_documents() {
        let range = [("range", "bytes=0-9"), ("", "")];
        assert_eq!(
            signature(Method::GET, "test.txt", range, "").await,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let class = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
        ];
        assert_eq!(
            signature(
                Method::PUT,
                "test$file.text",
                class,
                "Welcome to Amazon S3."
            )
            .await,
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"
        );
        let (bucket, moment) = documented();
        let day = Duration::from_secs(86_400);
        let url = bucket.url_from("test.txt", moment, day).await.unwrap();
        let (_, signature) = url.split_once("X-Amz-Signature=").unwrap();
        assert!(
            signature
                .starts_with("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"),
            "{url}"
        );
    }

    #[tokio::test]
    async fn nothing_is_signed_without_credentials_or_a_place() {
        let nobody = Bucket::new(&SdkConfig::builder().build(), "outputs".to_owned());
        let url = nobody.url("a", Duration::from_secs(1)).await;
        assert_eq!(url, Err(SignError));
        let nowhere = bucket(None, "", "outputs");
        assert_eq!(
            nowhere.url("a", Duration::from_secs(1)).await,
            Err(SignError)
        );
    }

    #[test]
    fn a_refusal_says_its_code() {
        let body = b"<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce.</Message></Error>";
        let failure = refused(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), body);
        assert_eq!(
            (failure.failed, failure.code.as_str()),
            (Failed::Throttled, "SlowDown")
        );
        assert_eq!(failure.detail, "SlowDown: Reduce.");
        let silent = refused(StatusCode::NOT_FOUND, &HeaderMap::new(), b"");
        assert_eq!((silent.failed, silent.status), (Failed::Refused, Some(404)));
        assert!(silent.detail.contains("404"));
    }
}
