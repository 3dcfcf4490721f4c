//! Connections to the API inside this process: how many there may be, and how long a caller may take
//! over the head of a request. What is asked is `management`'s.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Connections at once; who comes after them waits to be let in.
const CONNECTIONS_MAX: usize = 512;

/// How long the head of a request may take, the wait between two requests included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests may take to be answered after the end was asked for: a caller that never
/// finishes its request must not hold the process for ever.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// After a connection could not be accepted: the process may be out of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop`; requests under way are answered, and no caller can hold up the end.
pub(crate) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let connections = GracefulShutdown::new();
    tokio::select! {
        () = stop.cancelled() => {}
        () = accept(&listener, &router, &connections) => {}
    }
    drop(listener);
    if timeout(ANSWER_GRACE, connections.shutdown()).await.is_err() {
        warn!("requests left unanswered at the end");
    }
}

async fn accept(listener: &TcpListener, router: &Router, connections: &GracefulShutdown) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok(seat) = seats.clone().acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = connections.watch(connection(stream, router.clone()));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended early");
            }
            drop(seat);
        });
    }
}

fn connection(
    stream: TcpStream,
    router: Router,
) -> http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>> {
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn start() -> (TcpStream, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(listener, router, stop.clone()));
        (TcpStream::connect(address).await.unwrap(), stop, server)
    }

    async fn read_all(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_request_is_answered_and_the_end_closes_the_connection() {
        let (mut stream, stop, server) = start().await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK");
        stop.cancel();
        assert!(read_all(stream).await.ends_with("here"));
        server.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_never_ends_is_not_waited_for() {
        let (mut stream, _stop, _server) = start().await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n")
            .await
            .unwrap();
        let answer = read_all(stream).await;
        assert!(!answer.contains("200"), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_never_finishes_does_not_hold_up_the_end() {
        let (mut stream, stop, server) = start().await;
        stream.write_all(b"GET / HT").await.unwrap();
        stop.cancel();
        server.await.unwrap();
    }
}
