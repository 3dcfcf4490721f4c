//! An EventBridge Scheduler that does what a test tells it: it refuses, vanishes, loses replies and
//! holds calls back, which no emulator does.
//!
//! It keeps entries by name and gives them back. It validates nothing, and never fires.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The largest request that is read.
const REQUEST_BYTES_MAX: usize = 1_000_000;

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `CreateSchedule`.
    Create,
    /// `UpdateSchedule`.
    Update,
    /// `DeleteSchedule`.
    Delete,
    /// `GetSchedule`.
    Get,
    /// `ListSchedules`.
    List,
}

/// What becomes of a call.
enum Turn {
    /// It is refused, and has no effect.
    Refuse {
        status: u16,
        code: &'static str,
        message: &'static str,
        header: Option<(&'static str, &'static str)>,
    },
    /// It has its effect, and the connection closes without an answer.
    LoseReply,
    /// It waits before it has its effect.
    Hold {
        arrived: oneshot::Sender<()>,
        released: oneshot::Receiver<()>,
    },
}

/// A call that is held back.
pub struct Held {
    arrived: Option<oneshot::Receiver<()>>,
    release: oneshot::Sender<()>,
}

impl Held {
    /// Waits until the call is there.
    ///
    /// # Panics
    /// When the server is gone.
    pub async fn arrived(&mut self) {
        if let Some(arrived) = self.arrived.take() {
            assert!(arrived.await.is_ok(), "the server is gone");
        }
    }

    /// Lets it go on.
    pub fn release(self) {
        // Its sender may have given up.
        let _ = self.release.send(());
    }
}

#[derive(Default)]
struct State {
    entries: BTreeMap<String, Value>,
    calls: Vec<(Kind, String)>,
    script: VecDeque<(Kind, Turn)>,
    /// Calls until nobody answers any more.
    calls_left: Option<usize>,
    page_size: usize,
}

/// A running server. It ends when it is dropped.
pub struct Scripted {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl Scripted {
    /// Starts one that has no entries, and answers everything.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            page_size: 100,
            ..State::default()
        }));
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self {
            address,
            state,
            accepting,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Refuses the next `times` calls of this kind.
    pub fn refuse(&self, kind: Kind, times: usize, status: u16, code: &'static str) {
        self.refuse_with(kind, times, status, code, "no", None);
    }

    /// The same, with a message and a header.
    pub fn refuse_with(
        &self,
        kind: Kind,
        times: usize,
        status: u16,
        code: &'static str,
        message: &'static str,
        header: Option<(&'static str, &'static str)>,
    ) {
        for _ in 0..times {
            let turn = Turn::Refuse {
                status,
                code,
                message,
                header,
            };
            self.state().script.push_back((kind, turn));
        }
    }

    /// Lets the next `times` calls of this kind have their effect, and answers none of them.
    pub fn lose_replies(&self, kind: Kind, times: usize) {
        for _ in 0..times {
            self.state().script.push_back((kind, Turn::LoseReply));
        }
    }

    /// Holds the next call of this kind back.
    #[must_use]
    pub fn hold(&self, kind: Kind) -> Held {
        let (arrived_sender, arrived) = oneshot::channel();
        let (release, released) = oneshot::channel();
        let turn = Turn::Hold {
            arrived: arrived_sender,
            released,
        };
        self.state().script.push_back((kind, turn));
        Held {
            arrived: Some(arrived),
            release,
        }
    }

    /// Answers so many calls more, and then none.
    pub fn vanish_after(&self, calls: usize) {
        self.state().calls_left = Some(calls);
    }

    /// Answers again.
    pub fn come_back(&self) {
        self.state().calls_left = None;
    }

    /// Entries on a page of a list.
    pub fn set_page_size(&self, entries: usize) {
        self.state().page_size = entries;
    }

    /// The calls since the last look, with the entry's name, or for a list its token.
    #[must_use]
    pub fn calls(&self) -> Vec<(Kind, String)> {
        std::mem::take(&mut self.state().calls)
    }

    /// The entries, by name.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Value> {
        self.state().entries.clone()
    }

    /// Puts an entry there, whatever was.
    pub fn put(&self, name: &str, entry: Value) {
        self.state().entries.insert(name.to_owned(), entry);
    }

    /// Takes an entry away.
    pub fn take(&self, name: &str) -> Option<Value> {
        self.state().entries.remove(name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Request {
    kind: Kind,
    name: String,
    token: String,
    body: Value,
}

struct Response {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Value,
}

/// One connection, request after request.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let request = read(&mut stream, &mut buffer).await?;
        let turn = {
            let mut state = lock(&state);
            let named = match request.kind {
                Kind::List => request.token.clone(),
                Kind::Create | Kind::Update | Kind::Delete | Kind::Get => request.name.clone(),
            };
            if let Some(left) = &mut state.calls_left {
                *left = left.checked_sub(1)?;
            }
            state.calls.push((request.kind, named));
            let planned = state
                .script
                .iter()
                .position(|(kind, _)| *kind == request.kind);
            planned.and_then(|index| state.script.remove(index))
        };
        let response = match turn {
            Some((
                _,
                Turn::Refuse {
                    status,
                    code,
                    message,
                    header,
                },
            )) => {
                let mut refusal = refusal(status, code, message);
                refusal
                    .headers
                    .extend(header.map(|(name, value)| (name, value.to_owned())));
                refusal
            }
            Some((_, Turn::LoseReply)) => {
                answer(&mut lock(&state), &request);
                return None;
            }
            Some((_, Turn::Hold { arrived, released })) => {
                // The test may not wait for it.
                let _ = arrived.send(());
                let _ = released.await;
                answer(&mut lock(&state), &request)
            }
            None => answer(&mut lock(&state), &request),
        };
        write(&mut stream, &response).await?;
    }
}

fn answer(state: &mut State, request: &Request) -> Response {
    let there = state.entries.contains_key(&request.name);
    match (request.kind, there) {
        (Kind::List, _) => return list(state, request),
        (Kind::Create, true) => return refusal(409, "ConflictException", "it is there already"),
        (Kind::Update | Kind::Delete | Kind::Get, false) => {
            return refusal(404, "ResourceNotFoundException", "it is not there");
        }
        (Kind::Create, false) | (Kind::Update, true) => {
            state
                .entries
                .insert(request.name.clone(), request.body.clone());
        }
        (Kind::Delete, true) => {
            state.entries.remove(&request.name);
        }
        (Kind::Get, true) => {}
    }
    let body = match request.kind {
        Kind::Get => state.entries.get(&request.name).cloned(),
        Kind::Create | Kind::Update | Kind::Delete | Kind::List => None,
    };
    Response {
        status: 200,
        headers: Vec::new(),
        body: body.unwrap_or_else(|| json!({"ScheduleArn": "arn:aws:scheduler:::schedule/x"})),
    }
}

/// The token is the name of the last entry on the page before.
fn list(state: &State, request: &Request) -> Response {
    let after = state
        .entries
        .iter()
        .filter(|(name, _)| **name > request.token);
    let page: Vec<_> = after.take(state.page_size + 1).collect();
    let more = page.len() > state.page_size;
    let shown = &page[..page.len().min(state.page_size)];
    let schedules: Vec<_> = shown
        .iter()
        .map(|(name, entry)| json!({"Name": name, "State": entry["State"]}))
        .collect();
    let mut body = json!({ "Schedules": schedules });
    if more && let Some((last, _)) = shown.last() {
        body["NextToken"] = json!(last);
    }
    Response {
        status: 200,
        headers: Vec::new(),
        body,
    }
}

fn refusal(status: u16, code: &str, message: &str) -> Response {
    Response {
        status,
        headers: vec![("x-amzn-errortype", code.to_owned())],
        body: json!({"Message": message}),
    }
}

/// `None` when the other side is gone, or speaks something else.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let head_end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, buffer).await?;
    };
    let head = String::from_utf8(buffer.get(..head_end)?.to_vec()).ok()?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Some(0), |(_, value)| value.trim().parse::<usize>().ok())?;
    while buffer.len() < head_end + length {
        more(stream, buffer).await?;
    }
    let mut whole: Vec<u8> = buffer.drain(..head_end + length).collect();
    let body = whole.split_off(head_end);
    let mut words = head.lines().next()?.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let name = path.strip_prefix("/schedules")?.trim_start_matches('/');
    let kind = match (method, name) {
        ("GET", "") => Kind::List,
        ("GET", _) => Kind::Get,
        ("POST", _) => Kind::Create,
        ("PUT", _) => Kind::Update,
        ("DELETE", _) => Kind::Delete,
        _ => return None,
    };
    let token = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("NextToken="));
    Some(Request {
        kind,
        name: name.to_owned(),
        token: token.unwrap_or_default().to_owned(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    })
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(buffer).await.ok()?;
    (read > 0 && buffer.len() <= REQUEST_BYTES_MAX).then_some(())
}

async fn write(stream: &mut TcpStream, response: &Response) -> Option<()> {
    let body = response.body.to_string();
    let mut text = format!(
        "HTTP/1.1 {} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
        response.status,
        body.len()
    );
    for (name, value) in &response.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(&body);
    stream.write_all(text.as_bytes()).await.ok()
}
