//! The HTTP client under the clients of AWS: HTTP/1.1 over the process's TLS.
//!
//! The SDK's own client reads the machine's certificates when it is set up and brings HTTP/2 along,
//! which no service here speaks; together that was a third of a start and a tenth of a function's
//! size. Retries and the other deadlines stay the SDK's.

use std::{
    error::Error,
    io, iter,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_smithy_runtime_api::client::{
    connection::{CaptureSmithyConnection, ConnectionMetadata},
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
        SharedHttpConnector,
    },
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
    runtime_components::RuntimeComponents,
};
use aws_smithy_types::body::SdkBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{self, capture_connection},
    },
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::timeout;

use crate::tls;

/// A server closes what is idle for longer, and Lambda may have slept meanwhile.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// Settings of which each has a pool of its own; our clients have three.
const CONNECTORS_MAX: usize = 16;

pub(super) type Https = HttpsConnector<connect::HttpConnector>;

/// A client for all services, which is to be shared by them.
#[must_use]
pub(super) fn client() -> SharedHttpClient {
    SharedHttpClient::new(Clients::default())
}

#[derive(Debug, Default)]
struct Clients {
    connectors: Mutex<Vec<(Limits, SharedHttpConnector)>>,
}

/// Of one try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) connect: Option<Duration>,
    /// Until the answer begins.
    pub(super) read: Option<Duration>,
}

impl HttpClient for Clients {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let limits = Limits {
            connect: settings.connect_timeout(),
            read: settings.read_timeout(),
        };
        let held = self.connectors.lock();
        let mut held = held.unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = held.iter().find(|(known, _)| *known == limits) {
            return known.clone();
        }
        let made = SharedHttpConnector::new(Connector::new(limits));
        if held.len() < CONNECTORS_MAX {
            held.push((limits, made.clone()));
        }
        made
    }
}

#[derive(Debug)]
pub(super) struct Connector {
    pub(super) client: Client<Https, SdkBody>,
    read_limit: Option<Duration>,
}

impl Connector {
    pub(super) fn new(limits: Limits) -> Self {
        let mut tcp = connect::HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(limits.connect);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls::client_config())
            // An emulator has no TLS; where there is no endpoint of its own, the SDK says https.
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Self {
            client: Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE_MAX)
                .pool_timer(TokioTimer::new())
                .build(https),
            read_limit: limits.read,
        }
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                let refused = Err(ConnectorError::user(error.into()));
                return HttpConnectorFuture::ready(refused);
            }
        };
        let connection = capture_connection(&mut request);
        if let Some(asked) = request.extensions().get::<CaptureSmithyConnection>() {
            // After some failures the SDK wants no other request on the same connection.
            asked.set_connection_retriever(move || {
                let connection = connection.clone();
                let poison = move || {
                    if let Some(connected) = connection.connection_metadata().as_ref() {
                        connected.poison();
                    }
                };
                let known = ConnectionMetadata::builder().proxied(false);
                Some(known.poison_fn(poison).build())
            });
        }
        let answer = self.client.request(request);
        let read_limit = self.read_limit;
        HttpConnectorFuture::new(async move {
            let answer = match read_limit {
                None => answer.await,
                Some(limit) => match timeout(limit, answer).await {
                    Ok(answer) => answer,
                    Err(elapsed) => return Err(ConnectorError::timeout(elapsed.into())),
                },
            };
            let answer = answer.map_err(failed)?.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(answer)
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

fn failed(error: hyper_util::client::legacy::Error) -> ConnectorError {
    let first: &(dyn Error + 'static) = &error;
    let timed_out = iter::successors(Some(first), |&cause| cause.source())
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::TimedOut);
    if timed_out {
        ConnectorError::timeout(error.into())
    } else {
        ConnectorError::io(error.into())
    }
}
