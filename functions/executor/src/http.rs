//! The HTTP client that goes where tenants point.
//!
//! It must never reach a private address, follow a redirect, use a proxy or read an endless answer.
//! What goes where only the operator points, such as a model's base URL, is [`crate::model::client`].

use std::{
    error::Error as StdError,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect, retry,
};
use shared::{
    outbound::{self, NotPublic, Policy},
    tls,
};

/// How much of an answer is read; the rest is thrown away with the connection.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ADDRESSES_MAX: usize = 16;
const USER_AGENT: &str = concat!("carillon/", env!("CARGO_PKG_VERSION"));

/// The client for every URL that a tenant can choose. One per process; clones share it.
#[derive(Debug, Clone)]
pub struct Guarded {
    client: Client,
    policy: Policy,
}

/// What came back, whatever its status.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The beginning of the body, at most [`BODY_BYTES_MAX`].
    pub body: Vec<u8>,
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The URL, or every address that its host resolves to, is refused by the policy.
    #[error("the URL is not allowed; use a public https URL on port 443 or 8443")]
    NotAllowed,
    /// No connection came about, so nothing was sent.
    #[error("no connection to the host; check its name, its certificate and that it is up")]
    Unreachable(#[source] reqwest::Error),
    /// The connection ended, or time ran out, before an answer: the request may have arrived.
    #[error("the host took the connection but gave no answer; check that it answers in time")]
    NoAnswer(#[source] reqwest::Error),
}

impl Guarded {
    /// Builds the client.
    ///
    /// # Errors
    ///
    /// When the TLS stack cannot be set up.
    pub fn new(policy: Policy) -> reqwest::Result<Self> {
        Self::with_lookup(policy, Lookup::System)
    }

    fn with_lookup(policy: Policy, lookup: Lookup) -> reqwest::Result<Self> {
        let client = Client::builder()
        .tls_backend_preconfigured(tls::client_config())
            .user_agent(USER_AGENT)
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .referer(false)
            .no_proxy()
            .dns_resolver(Arc::new(Resolver { policy, lookup }))
            .connect_timeout(CONNECT_TIMEOUT)
            // Each request resolves and checks anew, and no connection that a frozen Lambda has
            // outlived is taken for a live one.
            .pool_max_idle_per_host(0)
            .build()?;
        Ok(Self { client, policy })
    }

    /// Posts a body, and gives what comes back within `timeout`, connecting included.
    ///
    /// Once a status has come, a body that breaks off is no error: the answer has been given.
    ///
    /// # Errors
    ///
    /// [`PostError`], which tells whether the request may have arrived.
    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Reply, PostError> {
        // reqwest asks no resolver about a literal address, so the URL is checked here each time.
        let url =
            outbound::check_url(url, &self.policy).map_err(|_refused| PostError::NotAllowed)?;
        let mut response = self
            .client
            .post(url)
            .headers(headers)
            .timeout(timeout)
            .body(body)
            .send()
            .await
            .map_err(classify)?;
        let mut beginning = Vec::new();
        while beginning.len() < BODY_BYTES_MAX
            && let Ok(Some(chunk)) = response.chunk().await
        {
            let room = BODY_BYTES_MAX - beginning.len();
            beginning.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        Ok(Reply {
            status: response.status(),
            headers: std::mem::take(response.headers_mut()),
            body: beginning,
        })
    }
}

fn classify(error: reqwest::Error) -> PostError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
    while let Some(this) = cause {
        if this.is::<NotPublic>() {
            return PostError::NotAllowed;
        }
        cause = this.source();
    }
    if error.is_connect() || error.is_builder() {
        PostError::Unreachable(error)
    } else {
        PostError::NoAnswer(error)
    }
}

/// Resolves names at connect time and drops the addresses that the policy refuses.
struct Resolver {
    policy: Policy,
    lookup: Lookup,
}

#[derive(Clone)]
enum Lookup {
    System,
    #[cfg(test)]
    Always(Vec<IpAddr>),
    /// Another answer each time, as of a name server of the attacker's own.
    #[cfg(test)]
    Turns(Arc<std::sync::Mutex<std::collections::VecDeque<IpAddr>>>),
}

impl Lookup {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((name, 0))
                .await?
                .map(|address| address.ip())
                .collect()),
            #[cfg(test)]
            Self::Always(addresses) => Ok(addresses.clone()),
            #[cfg(test)]
            Self::Turns(turns) => {
                let mut turns = turns
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                Ok(turns.pop_front().into_iter().collect())
            }
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        // Where loopback is allowed it must be named: a public name that leads to it is an attack.
        let policy = match name.as_str() {
            "localhost" => self.policy,
            _ => Policy::PUBLIC,
        };
        let lookup = self.lookup.clone();
        Box::pin(async move {
            let found = lookup.addresses(name.as_str()).await?;
            let mut allowed = Vec::new();
            let mut refused = None;
            for address in found.into_iter().take(ADDRESSES_MAX) {
                match outbound::check_ip(address, &policy) {
                    Ok(()) => allowed.push(SocketAddr::new(address, 0)),
                    Err(reason) => refused = Some(reason),
                }
            }
            match refused {
                Some(reason) if allowed.is_empty() => Err(reason.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        io::{Read, Write},
        net::TcpListener,
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Instant,
    };

    use super::*;

    const LOCAL: Policy = Policy {
        allow_loopback: true,
    };
    const SECOND: Duration = Duration::from_secs(1);

    /// A server that counts its connections and answers each with the same bytes.
    struct Endpoint {
        port: u16,
        seen: Arc<AtomicUsize>,
    }

    fn endpoint(bind: &str, answer: Option<Vec<u8>>) -> Endpoint {
        let listener = TcpListener::bind(bind).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&seen);
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                counter.fetch_add(1, Ordering::SeqCst);
                match &answer {
                    Some(answer) => {
                        let _ = stream.read(&mut [0; 4096]);
                        let _ = stream.write_all(answer);
                    }
                    None => silent.push(stream),
                }
            }
        });
        Endpoint { port, seen }
    }

    fn ok(body: &str) -> Option<Vec<u8>> {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        Some([head.as_bytes(), body.as_bytes()].concat())
    }

    async fn post(client: &Guarded, url: &str, timeout: Duration) -> Result<Reply, PostError> {
        let body = Bytes::from_static(b"{}");
        client.post(url, HeaderMap::new(), body, timeout).await
    }

    /// Every spelling that is known to reach a listener on this machine.
    const SPELLINGS: [&str; 14] = [
        "127.0.0.1",
        "127.1",
        "127.0.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "①②⑦.0.0.1",
        "0.0.0.0",
        "0",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "localhost",
        "localhost.",
    ];

    #[tokio::test]
    async fn no_spelling_of_this_machine_is_ever_connected_to() {
        let v4 = endpoint("0.0.0.0:0", ok(""));
        let client = Guarded::new(Policy::PUBLIC).unwrap();
        for host in SPELLINGS {
            for scheme in ["http", "https"] {
                let url = format!("{scheme}://{host}:{}/", v4.port);
                let error = post(&client, &url, SECOND).await.unwrap_err();
                assert!(matches!(error, PostError::NotAllowed), "{url}: {error}");
            }
        }
        assert_eq!(v4.seen.load(Ordering::SeqCst), 0);

        // The same listener answers where loopback is allowed: the test above can fail.
        let local = Guarded::new(LOCAL).unwrap();
        for host in ["127.0.0.1", "localhost"] {
            let url = format!("http://{host}:{}/", v4.port);
            assert_eq!(post(&local, &url, SECOND).await.unwrap().status, 200);
        }
        assert_eq!(v4.seen.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_not_connected_to() {
        for policy in [Policy::PUBLIC, LOCAL] {
            for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00::1"] {
                let lookup = Lookup::Always(vec![address.parse().unwrap()]);
                let client = Guarded::with_lookup(policy, lookup).unwrap();
                let error = post(&client, "https://hooks.example.com/", SECOND)
                    .await
                    .unwrap_err();
                assert!(matches!(error, PostError::NotAllowed), "{address}: {error}");
                assert!(!error.to_string().contains(address));
            }
        }
    }

    #[tokio::test]
    async fn only_the_public_addresses_of_a_name_are_tried() {
        let public: IpAddr = "8.8.8.8".parse().unwrap();
        let resolver = Resolver {
            policy: Policy::PUBLIC,
            lookup: Lookup::Always(vec!["10.0.0.1".parse().unwrap(), public]),
        };
        let name = "hooks.example.com".parse().unwrap();
        let addresses: Vec<_> = resolver
            .resolve(name)
            .await
            .unwrap_or_else(|_| panic!())
            .collect();
        assert_eq!(addresses, [SocketAddr::new(public, 0)]);
    }

    #[tokio::test]
    async fn a_redirect_is_reported_and_not_followed() {
        let target = endpoint("127.0.0.1:0", ok(""));
        let client = Guarded::new(LOCAL).unwrap();
        let here = format!("http://127.0.0.1:{}/", target.port);
        for status in [300, 301, 302, 303, 307, 308] {
            for location in [
                &*here,
                &*here.replace("http:", ""),
                "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
                "https://[fd00:ec2::254]/",
                "file:///etc/passwd",
            ] {
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n"
                );
                let first = endpoint("127.0.0.1:0", Some(answer.into_bytes()));
                let url = format!("http://127.0.0.1:{}/", first.port);
                let reply = post(&client, &url, SECOND).await.unwrap();
                assert_eq!(reply.status, status, "{location}");
                assert_eq!(first.seen.load(Ordering::SeqCst), 1);
            }
        }
        assert_eq!(target.seen.load(Ordering::SeqCst), 0);
        assert_eq!(post(&client, &here, SECOND).await.unwrap().status, 200);
        assert_eq!(target.seen.load(Ordering::SeqCst), 1);
    }

    fn turns(addresses: &[&str]) -> (Lookup, Arc<std::sync::Mutex<VecDeque<IpAddr>>>) {
        let parsed = addresses.iter().map(|address| address.parse().unwrap());
        let left = Arc::new(std::sync::Mutex::new(parsed.collect::<VecDeque<_>>()));
        (Lookup::Turns(Arc::clone(&left)), left)
    }

    /// Two listeners on one port of two addresses of this machine.
    fn twins() -> (Endpoint, Endpoint) {
        for _ in 0..100 {
            let first = endpoint("127.0.0.1:0", ok(""));
            let second = format!("127.0.0.2:{}", first.port);
            if TcpListener::bind(&second).is_ok() {
                return (first, endpoint(&second, ok("")));
            }
        }
        panic!("no port is free on both addresses");
    }

    #[tokio::test]
    async fn the_address_that_was_checked_is_the_one_that_is_connected_to() {
        let (first, second) = twins();
        let seen = || [&first, &second].map(|one| one.seen.load(Ordering::SeqCst));
        let (lookup, left) = turns(&["127.0.0.1", "127.0.0.2", "10.0.0.1"]);
        let client = Guarded::with_lookup(LOCAL, lookup).unwrap();
        let url = format!("http://localhost:{}/", first.port);
        // One look a request: what a second one would say does not count.
        assert_eq!(post(&client, &url, SECOND).await.unwrap().status, 200);
        assert_eq!((seen(), left.lock().unwrap().len()), ([1, 0], 2));
        // Each request looks anew, so nothing that was checked for another one counts either.
        assert_eq!(post(&client, &url, SECOND).await.unwrap().status, 200);
        assert_eq!((seen(), left.lock().unwrap().len()), ([1, 1], 1));
        let error = post(&client, &url, SECOND).await.unwrap_err();
        assert!(matches!(error, PostError::NotAllowed), "{error}");
        assert_eq!((seen(), left.lock().unwrap().len()), ([1, 1], 0));
    }

    #[tokio::test]
    async fn a_name_that_turns_to_this_machine_reaches_nobody_here() {
        // A port that tenants may name, on an address of this process alone.
        let id = std::process::id();
        let here = format!("127.{}.{}.7", 100 + id / 250 % 150, id % 250);
        let victim = endpoint(&format!("{here}:8443"), ok(""));
        // Nobody has that address, and it passes for a public one.
        let (lookup, left) = turns(&["2d00::1", &here, "2d00::1", &here]);
        let client = Guarded::with_lookup(Policy::PUBLIC, lookup).unwrap();
        for _ in 0..2 {
            let url = "https://rebinding.example.com:8443/";
            let limit = Duration::from_millis(300);
            let public = post(&client, url, limit).await.unwrap_err();
            assert!(!matches!(public, PostError::NotAllowed), "{public}");
            let turned = post(&client, url, limit).await.unwrap_err();
            assert!(matches!(turned, PostError::NotAllowed), "{turned}");
        }
        assert!(left.lock().unwrap().is_empty());
        assert_eq!(victim.seen.load(Ordering::SeqCst), 0);
        std::net::TcpStream::connect(format!("{here}:8443")).unwrap();
        while victim.seen.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
    }

    /// Every URL of the table, sent though it was never saved; where loopback is allowed, those that
    /// are refused all the same.
    #[tokio::test]
    async fn no_url_of_the_table_is_sent_to() {
        let table: serde_json::Value =
            serde_json::from_str(include_str!("../../../shared/tests/vectors/urls.json")).unwrap();
        let v4 = endpoint("0.0.0.0:0", ok(""));
        let v6 = endpoint(&format!("[::1]:{}", v4.port), ok(""));
        let public = Guarded::new(Policy::PUBLIC).unwrap();
        let local = Guarded::new(LOCAL).unwrap();
        let mut sent = 0;
        for one in table["refused"].as_array().unwrap() {
            let text = one["url"].as_str().unwrap();
            let error = post(&public, text, SECOND).await.unwrap_err();
            assert!(matches!(error, PostError::NotAllowed), "{text}: {error}");
            if one["local"] != true {
                let error = post(&local, text, SECOND).await.unwrap_err();
                assert!(matches!(error, PostError::NotAllowed), "{text}: {error}");
                continue;
            }
            // The same spelling reaches the listener once it is allowed to.
            let mut url = reqwest::Url::parse(text).unwrap();
            url.set_port(Some(v4.port)).unwrap();
            let url = url.as_str().replacen("https:", "http:", 1);
            let error = post(&public, &url, SECOND).await.unwrap_err();
            assert!(matches!(error, PostError::NotAllowed), "{url}: {error}");
            assert_eq!(
                post(&local, &url, SECOND).await.unwrap().status,
                200,
                "{url}"
            );
            sent += 1;
        }
        let seen = [&v4, &v6].map(|one| one.seen.load(Ordering::SeqCst));
        assert!(sent > 30);
        assert_eq!(seen.iter().sum::<usize>(), sent);
    }

    /// Runs as a process of its own, because a process reads its proxies from its environment.
    const TARGET: &str = "CARILLON_TEST_PROXIED_TARGET";

    #[tokio::test]
    async fn proxies_of_the_environment_are_not_used() {
        if let Ok(url) = std::env::var(TARGET) {
            let client = Guarded::new(LOCAL).unwrap();
            assert_eq!(post(&client, &url, SECOND).await.unwrap().status, 200);
            // A client without our settings goes to the proxy: it can be found.
            let usual = Client::builder().timeout(SECOND).build().unwrap();
            let usual = usual.post(&url).send().await.unwrap();
            assert_eq!(usual.status(), 418);
            return;
        }
        let target = endpoint("127.0.0.1:0", ok(""));
        let teapot = b"HTTP/1.1 418 X\r\ncontent-length: 0\r\n\r\n".to_vec();
        let proxy = endpoint("127.0.0.1:0", Some(teapot));
        let place = format!("http://127.0.0.1:{}", proxy.port);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child
            .args([
                "--exact",
                "http::tests::proxies_of_the_environment_are_not_used",
            ])
            .env(TARGET, format!("http://127.0.0.1:{}/", target.port))
            .env_remove("NO_PROXY")
            .env_remove("no_proxy");
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            child.env(name, &place).env(name.to_lowercase(), &place);
        }
        let output = child.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(target.seen.load(Ordering::SeqCst), 1);
        assert_eq!(proxy.seen.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_long_answer_is_cut() {
        let server = endpoint("127.0.0.1:0", ok(&"x".repeat(BODY_BYTES_MAX * 4)));
        let client = Guarded::new(LOCAL).unwrap();
        let url = format!("http://localhost:{}/", server.port);
        let reply = post(&client, &url, SECOND).await.unwrap();
        assert_eq!(reply.body.len(), BODY_BYTES_MAX);
    }

    #[tokio::test]
    async fn an_answer_that_breaks_off_is_still_an_answer() {
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello".to_vec();
        let server = endpoint("127.0.0.1:0", Some(cut));
        let client = Guarded::new(LOCAL).unwrap();
        let url = format!("http://127.0.0.1:{}/", server.port);
        let reply = post(&client, &url, SECOND).await.unwrap();
        assert_eq!(
            (reply.status.as_u16(), reply.body),
            (200, b"hello".to_vec())
        );
    }

    #[tokio::test]
    async fn silence_ends_at_the_deadline_and_may_have_been_received() {
        let server = endpoint("127.0.0.1:0", None);
        let client = Guarded::new(LOCAL).unwrap();
        let url = format!("http://127.0.0.1:{}/", server.port);
        let start = Instant::now();
        let error = post(&client, &url, Duration::from_millis(300))
            .await
            .unwrap_err();
        assert!(matches!(error, PostError::NoAnswer(_)), "{error}");
        assert!(start.elapsed() < SECOND * 5);
    }

    #[tokio::test]
    async fn a_closed_port_received_nothing() {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let client = Guarded::new(LOCAL).unwrap();
        let error = post(&client, &format!("http://127.0.0.1:{port}/"), SECOND)
            .await
            .unwrap_err();
        assert!(matches!(error, PostError::Unreachable(_)), "{error}");
    }
}
