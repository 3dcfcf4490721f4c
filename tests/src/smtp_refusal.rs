//! A mail server that refuses every recipient, and repeats who it was.

#![expect(
    clippy::unwrap_used,
    reason = "only tests call this, and a test may panic"
)]

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// Lines of one conversation at the most.
const LINES_MAX: usize = 1_000;

/// Starts one, for as long as the test's runtime lives; gives its URL.
///
/// # Panics
/// When no port is free.
pub async fn start() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("smtp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    url
}

async fn serve(mut stream: TcpStream) -> Option<()> {
    let (reading, mut writing) = stream.split();
    let mut lines = BufReader::new(reading).lines();
    writing.write_all(b"220 here\r\n").await.ok()?;
    for _ in 0..LINES_MAX {
        let line = lines.next_line().await.ok()??;
        let reply = if line.to_ascii_uppercase().starts_with("RCPT") {
            format!("550 5.1.1 no such mailbox: {line}\r\n")
        } else {
            "250 fine\r\n".to_owned()
        };
        writing.write_all(reply.as_bytes()).await.ok()?;
    }
    None
}
