//! A server that does to its callers what no emulator does: it repeats what it was sent in its
//! refusals, and answers without end.

#![expect(
    clippy::unwrap_used,
    reason = "only tests call this, and a test may panic"
)]

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

/// Before the word that says how a request is answered, in its path or body.
pub const ANSWER: &str = "answer-as-";

/// The largest request that is read.
const REQUEST_BYTES_MAX: usize = 20_000_000;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Call {
    /// The request line and the headers.
    pub head: String,
    /// The body.
    pub body: String,
}

/// A running server. It ends with its test.
pub struct Hostile {
    /// Where it is: `http://127.0.0.1:…`.
    pub url: String,
    calls: Arc<Mutex<Vec<Call>>>,
    accepting: JoinHandle<()>,
}

impl Hostile {
    /// Starts one that gives `output` where it is asked for a model's answer.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start(output: &str) -> Self {
        Self::start_with(Some(output.to_owned())).await
    }

    /// Starts one that stands for AWS and refuses all that it is asked.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start_refusing() -> Self {
        Self::start_with(None).await
    }

    async fn start_with(output: Option<String>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let journal = Arc::clone(&calls);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&journal), output.clone()));
            }
        });
        Self {
            url,
            calls,
            accepting,
        }
    }

    /// What came so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.clone()
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One request a connection.
async fn serve(
    mut stream: TcpStream,
    journal: Arc<Mutex<Vec<Call>>>,
    output: Option<String>,
) -> Option<()> {
    let call = read(&mut stream).await?;
    let whole = format!("{}\n{}", call.head, call.body);
    journal
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(call);
    let Some(output) = output else {
        return answer(&mut stream, 400, "text/xml", &aws_refusal(&whole)).await;
    };
    let word = whole.split(ANSWER).nth(1).unwrap_or_default();
    let word: String = word
        .chars()
        .take_while(char::is_ascii_alphanumeric)
        .collect();
    match word.as_str() {
        "flood" => flood(&mut stream, Duration::ZERO).await,
        "drip" => flood(&mut stream, Duration::from_millis(100)).await,
        "headers" => endless_headers(&mut stream).await,
        "silence" => {
            sleep(Duration::from_secs(600)).await;
            None
        }
        "garbage" => answer(&mut stream, 200, "text/plain", &whole).await,
        "" => answer(&mut stream, 200, "application/json", &success(&output)).await,
        status => {
            let refusal = json!({
                "error": {"message": whole, "type": whole, "code": "no"}, "message": whole, "Message": whole,
            });
            let status = status.parse().unwrap_or(500);
            answer(
                &mut stream,
                status,
                "application/json",
                &refusal.to_string(),
            )
            .await
        }
    }
}

/// Of OpenAI's form.
fn success(output: &str) -> String {
    let answer: Value = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "model": "gpt-4o-mini",
        "choices": [{"index": 0, "finish_reason": "stop",
            "message": {"role": "assistant", "content": output}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13},
    });
    answer.to_string()
}

/// What SES and S3 take for a refusal.
fn aws_refusal(said: &str) -> String {
    let said = said.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>MessageRejected</Code><Message>{said}</Message>\
         </Error><RequestId>{said}</RequestId></ErrorResponse>"
    )
}

async fn answer(stream: &mut TcpStream, status: u16, kind: &str, body: &str) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\
         location: http://169.254.169.254/{status}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()
}

/// A body without an end, in large pieces or in bytes.
async fn flood(stream: &mut TcpStream, pause: Duration) -> Option<()> {
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n";
    stream.write_all(head).await.ok()?;
    let piece = if pause.is_zero() {
        vec![b' '; 64 * 1024]
    } else {
        vec![b' ']
    };
    loop {
        stream.write_all(&piece).await.ok()?;
        sleep(pause).await;
    }
}

async fn endless_headers(stream: &mut TcpStream) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\n").await.ok()?;
    let line = format!("x-more: {}\r\n", "a".repeat(8_000));
    loop {
        stream.write_all(line.as_bytes()).await.ok()?;
    }
}

/// `None` when the other side is gone, or sends too much.
async fn read(stream: &mut TcpStream) -> Option<Call> {
    let mut buffer = Vec::new();
    let head_end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, &mut buffer).await?;
    };
    let body = buffer.split_off(head_end);
    let head = String::from_utf8_lossy(&buffer).into_owned();
    let mut body = body;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Some(0), |(_, value)| value.trim().parse::<usize>().ok())?;
    while body.len() < length {
        more(stream, &mut body).await?;
    }
    Some(Call {
        head,
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(buffer).await.ok()?;
    (read > 0 && buffer.len() <= REQUEST_BYTES_MAX).then_some(())
}
