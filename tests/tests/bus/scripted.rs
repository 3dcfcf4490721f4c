//! An event bus that does what a test tells it: it refuses calls or entries, vanishes, loses replies
//! and holds calls back, which no emulator does.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What becomes of a call.
pub(crate) enum Turn {
    /// It is refused, and has no effect.
    Refuse(u16, &'static str),
    /// It has its effect, and the connection closes without an answer.
    LoseReply,
    /// It has its effect, and its answer waits.
    Hold {
        arrived: oneshot::Sender<()>,
        released: oneshot::Receiver<()>,
    },
}

#[derive(Default)]
struct State {
    /// `detail` of each entry that was taken, in the order in which they came.
    taken: Vec<Value>,
    calls: Vec<Vec<Value>>,
    script: VecDeque<Turn>,
    /// Codes for the entries of an event, by its id, until they are told otherwise.
    refused: HashMap<String, &'static str>,
    is_gone: bool,
    /// A call with one of these is refused as a whole.
    poison: Option<String>,
}

/// A running server. It ends when it is dropped.
pub(crate) struct Scripted {
    pub(crate) url: String,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl Scripted {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self {
            url,
            state,
            accepting,
        }
    }

    /// What the next call meets, and the one after that.
    pub(crate) fn plan(&self, turns: impl IntoIterator<Item = Turn>) {
        self.state().script.extend(turns);
    }

    /// What was planned and did not come is planned no more.
    pub(crate) fn forget_plan(&self) {
        self.state().script.clear();
    }

    /// Refuses the entries of this event from now on, or takes them again.
    pub(crate) fn refuse_entry(&self, id: &str, code: Option<&'static str>) {
        let mut state = self.state();
        match code {
            Some(code) => state.refused.insert(id.to_owned(), code),
            None => state.refused.remove(id),
        };
    }

    /// Refuses every call that has this event among its entries.
    pub(crate) fn poison(&self, id: &str) {
        self.state().poison = Some(id.to_owned());
    }

    pub(crate) fn set_gone(&self, is_gone: bool) {
        self.state().is_gone = is_gone;
    }

    /// The details that were taken since the last look.
    pub(crate) fn taken(&self) -> Vec<Value> {
        std::mem::take(&mut self.state().taken)
    }

    /// The entries of each call since the last look.
    pub(crate) fn calls(&self) -> Vec<Vec<Value>> {
        std::mem::take(&mut self.state().calls)
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

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let entries = read(&mut stream, &mut buffer).await?;
        let turn = {
            let mut state = lock(&state);
            if state.is_gone {
                return None;
            }
            state.calls.push(entries.clone());
            state.script.pop_front()
        };
        match turn {
            Some(Turn::Refuse(status, code)) => {
                write(
                    &mut stream,
                    status,
                    &json!({"__type": code, "message": "no"}),
                )
                .await?;
            }
            Some(Turn::LoseReply) => {
                take(&mut lock(&state), &entries);
                return None;
            }
            Some(Turn::Hold { arrived, released }) => {
                let answer = take(&mut lock(&state), &entries);
                // The test may not wait for it.
                let _ = arrived.send(());
                let _ = released.await;
                write(&mut stream, 200, &answer).await?;
            }
            None => {
                let is_poisoned = {
                    let state = lock(&state);
                    entries
                        .iter()
                        .any(|one| state.poison.as_deref() == one["id"].as_str())
                };
                let (status, answer) = if is_poisoned {
                    (
                        400,
                        json!({"__type": "ValidationException", "message": "no"}),
                    )
                } else {
                    (200, take(&mut lock(&state), &entries))
                };
                write(&mut stream, status, &answer).await?;
            }
        }
    }
}

fn take(state: &mut State, entries: &[Value]) -> Value {
    let mut said = Vec::new();
    let mut failed = 0;
    for entry in entries {
        let id = entry["id"].as_str().unwrap_or_default();
        if let Some(code) = state.refused.get(id) {
            said.push(json!({"ErrorCode": code, "ErrorMessage": "no"}));
            failed += 1;
        } else {
            said.push(json!({"EventId": "an id of the bus"}));
            state.taken.push(entry.clone());
        }
    }
    json!({"FailedEntryCount": failed, "Entries": said})
}

/// The details of a call; `None` when the other side is gone, or asks for something else.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Vec<Value>> {
    let head_end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, buffer).await?;
    };
    let head = String::from_utf8(buffer.get(..head_end)?.to_vec())
        .ok()?
        .to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|value| value.trim().parse::<usize>().ok())?;
    while buffer.len() < head_end + length {
        more(stream, buffer).await?;
    }
    let whole: Vec<u8> = buffer.drain(..head_end + length).collect();
    assert!(head.contains("x-amz-target: awsevents.putevents"), "{head}");
    let body: Value = serde_json::from_slice(whole.get(head_end..)?).ok()?;
    let entries = body["Entries"].as_array()?;
    assert!(
        (1..=10).contains(&entries.len()),
        "{} entries",
        entries.len()
    );
    let mut bytes = 0;
    let details = entries.iter().map(|entry| {
        let detail = entry["Detail"].as_str().unwrap();
        bytes += detail.len();
        let parsed: Value = serde_json::from_str(detail).unwrap();
        assert_eq!(
            (entry["Source"].as_str(), &entry["DetailType"]),
            (Some("carillon"), &parsed["type"])
        );
        parsed
    });
    let details = details.collect();
    assert!(bytes < 256 * 1024, "{bytes} bytes");
    Some(details)
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let read = stream.read_buf(buffer).await.ok()?;
    (read > 0).then_some(())
}

async fn write(stream: &mut TcpStream, status: u16, body: &Value) -> Option<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body.as_bytes()).await.ok()
}
