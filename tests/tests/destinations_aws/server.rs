//! Something at the address of AWS that refuses, loses replies and answers what a test says, which no
//! emulator does. Without a word from the test it takes every email and every object, and has none.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// What becomes of a call.
#[derive(Debug, Clone)]
pub(crate) enum Turn {
    /// It is answered with this status, these headers and this body.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// The connection closes without an answer.
    LoseReply,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    script: VecDeque<(&'static str, Turn)>,
}

pub(crate) struct Server {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self {
            address,
            state,
            accepting,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What becomes of the next call of this method that has no turn yet.
    pub(crate) fn next(&self, method: &'static str, turn: Turn) {
        self.state.lock().unwrap().script.push_back((method, turn));
    }

    /// The calls of this method since the last look.
    pub(crate) fn calls(&self, method: &str) -> Vec<Call> {
        let mut state = self.state.lock().unwrap();
        let (found, rest) = state
            .calls
            .drain(..)
            .partition(|call| call.method == method);
        state.calls = rest;
        found
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// A refusal of SES.
pub(crate) fn mail_refusal(status: u16, code: &str, message: &str) -> Turn {
    let body = format!(
        "<ErrorResponse xmlns=\"http://ses.amazonaws.com/doc/2010-12-01/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error><RequestId>r</RequestId></ErrorResponse>"
    );
    Turn::Answer(status, Vec::new(), body)
}

/// A refusal of S3.
pub(crate) fn store_refusal(status: u16, code: &str) -> Turn {
    let body =
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>no</Message></Error>");
    Turn::Answer(status, Vec::new(), body)
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let call = read(&mut stream, &mut buffer).await?;
        let turn = {
            let mut state = state.lock().unwrap();
            let planned = state
                .script
                .iter()
                .position(|(method, _)| *method == call.method);
            let planned = planned.and_then(|at| state.script.remove(at));
            state.calls.push(call.clone());
            planned.map(|(_, turn)| turn)
        };
        match turn.unwrap_or_else(|| usual(&call)) {
            Turn::LoseReply => return None,
            Turn::Answer(status, headers, body) => {
                let body = if call.method == "HEAD" {
                    String::new()
                } else {
                    body
                };
                let mut answer = format!("HTTP/1.1 {status} said\r\n");
                if !headers.iter().any(|(name, _)| *name == "content-length") {
                    answer.push_str(&format!("content-length: {}\r\n", body.len()));
                }
                for (name, value) in headers {
                    answer.push_str(&format!("{name}: {value}\r\n"));
                }
                answer.push_str("\r\n");
                answer.push_str(&body);
                stream.write_all(answer.as_bytes()).await.ok()?;
            }
        }
    }
}

fn usual(call: &Call) -> Turn {
    match call.method.as_str() {
        "POST" => {
            let sent = "<SendRawEmailResponse xmlns=\"http://ses.amazonaws.com/doc/2010-12-01/\">\
                 <SendRawEmailResult><MessageId>message-1</MessageId></SendRawEmailResult>\
                 </SendRawEmailResponse>";
            Turn::Answer(200, Vec::new(), sent.to_owned())
        }
        "PUT" => Turn::Answer(200, vec![("etag", "\"e\"".to_owned())], String::new()),
        _ => store_refusal(404, "NoSuchKey"),
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Call> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: HashMap<_, _> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length: usize = headers
        .get("content-length")
        .map_or(0, |text| text.parse().unwrap());
    while buffer.len() < end + 4 + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let rest = buffer.split_off(end + 4 + length);
    let body = String::from_utf8_lossy(&buffer[end + 4..]).into_owned();
    *buffer = rest;
    Some(Call {
        method,
        path,
        headers,
        body,
    })
}
