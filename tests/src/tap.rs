//! Stands between the product and PostgreSQL, and counts what passes.
//!
//! A round trip is counted by cause, not by time: a request is one deeper than the deepest answer
//! that its sender had when it sent it. Answers are held back for a moment, so that requests sent
//! together are seen together. Turns are counted beside them: how often a connection's client sent
//! something after an answer, whatever it waited for. The tap changes nothing that passes; it may ask a question of its
//! own on a connection that is idle, and keeps the answer to itself.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_postgres::config::Host;

/// A tap's questions that wait at the most.
const QUESTIONS_MAX: usize = 8;

/// A statement that a connection prepared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Which connection, in the order of their opening.
    pub connection: usize,
    /// The name that the client gave it; empty for one that is used once.
    pub name: String,
    /// Its text.
    pub sql: String,
}

impl Prepared {
    /// What its first line calls it.
    #[must_use]
    pub fn title(&self) -> Option<&str> {
        self.sql.lines().next()?.strip_prefix("-- ")
    }
}

/// A running tap. It ends when it is dropped.
pub struct Tap {
    port: u16,
    seen: Arc<Mutex<Seen>>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    /// Of any request.
    depth_sent: usize,
    /// Of any answer that reached the client.
    depth_answered: usize,
    /// Of all connections.
    turns: usize,
    prepared: Vec<Prepared>,
    questions: Vec<mpsc::Sender<Question>>,
}

struct Question {
    sql: String,
    answer: oneshot::Sender<Vec<Vec<Option<String>>>>,
}

impl Tap {
    /// Opens a tap before the testbed's PostgreSQL that holds each answer back for `delay`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn open(delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let accepting = tokio::spawn(accept(listener, delay, Arc::clone(&seen)));
        Ok(Self {
            port,
            seen,
            accepting,
        })
    }

    /// The URL of a database behind the tap.
    #[must_use]
    pub fn url(&self, database: &str, role: &str) -> String {
        format!(
            "postgresql://{role}@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    /// Round trips since the tap was opened.
    #[must_use]
    pub fn round_trips(&self) -> usize {
        self.seen().depth_sent
    }

    /// Turns of all connections since the tap was opened: for each, how often its client sent
    /// something after it had an answer. Two connections side by side count twice.
    #[must_use]
    pub fn turns(&self) -> usize {
        self.seen().turns
    }

    /// Every statement that was prepared, in order.
    #[must_use]
    pub fn prepared(&self) -> Vec<Prepared> {
        self.seen().prepared.clone()
    }

    /// Connections that were opened, closed ones included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.seen().questions.len()
    }

    /// Asks PostgreSQL something on a connection of the product, as soon as that is idle.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn ask(&self, connection: usize, sql: &str) -> Result<Vec<Vec<Option<String>>>> {
        let asking = self.seen().questions.get(connection).cloned();
        let (answer, answered) = oneshot::channel();
        let question = Question {
            sql: sql.to_owned(),
            answer,
        };
        asking
            .context("there is no such connection")?
            .send(question)
            .await
            .map_err(|_| anyhow::anyhow!("connection {connection} is closed"))?;
        Ok(answered.await?)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, delay: Duration, seen: Arc<Mutex<Seen>>) {
    // A failed accept has no test to tell: the client that waits for it will fail.
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = server().await else { continue };
        let (asking, questions) = mpsc::channel(QUESTIONS_MAX);
        let number = {
            let mut seen = lock(&seen);
            seen.questions.push(asking);
            seen.questions.len() - 1
        };
        let line = Line {
            number,
            delay,
            seen: Arc::clone(&seen),
            started: false,
            is_answered: true,
            depths: VecDeque::new(),
            held: VecDeque::new(),
            asked: None,
        };
        tokio::spawn(line.carry(client, server, questions));
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn server() -> Result<Box<dyn Stream>> {
    let config: tokio_postgres::Config = crate::postgres_url().parse()?;
    let port = config.get_ports().first().copied().unwrap_or(5432);
    match config.get_hosts().first() {
        Some(Host::Unix(folder)) => {
            let socket = Path::new(folder).join(format!(".s.PGSQL.{port}"));
            Ok(Box::new(UnixStream::connect(socket).await?))
        }
        Some(Host::Tcp(host)) => {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        None => bail!("the testbed's URL names no host"),
    }
}

/// One connection.
struct Line {
    number: usize,
    delay: Duration,
    seen: Arc<Mutex<Seen>>,
    /// The first message of a client has no type.
    started: bool,
    /// The client has had an answer since it last sent something.
    is_answered: bool,
    /// Of the requests without an answer, oldest first.
    depths: VecDeque<usize>,
    /// Answers on their way, and when each may go on.
    held: VecDeque<(Instant, Vec<u8>)>,
    /// The tap's own question, and the rows of its answer so far.
    asked: Option<(Question, Vec<Vec<Option<String>>>)>,
}

impl Line {
    /// Ends with either side; then both are closed.
    async fn carry(
        mut self,
        mut client: TcpStream,
        mut server: Box<dyn Stream>,
        mut questions: mpsc::Receiver<Question>,
    ) -> Result<()> {
        client.set_nodelay(true)?;
        let (mut requests, mut answers) = (Vec::new(), Vec::new());
        loop {
            let due = self.held.front().map(|(due, _)| *due);
            let idle = self.started
                && due.is_none()
                && self.depths.is_empty()
                && requests.is_empty()
                && self.asked.is_none();
            tokio::select! {
                read = client.read_buf(&mut requests), if self.asked.is_none() => {
                    if read? == 0 {
                        return Ok(());
                    }
                    while let Some(message) = take_message(&mut requests, !self.started) {
                        self.note_request(&message);
                        server.write_all(&message).await?;
                    }
                }
                read = server.read_buf(&mut answers) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    while let Some(message) = take_message(&mut answers, false) {
                        self.take_answer(message);
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    if let Some((_, message)) = self.held.pop_front() {
                        self.note_answer(&message);
                        client.write_all(&message).await?;
                    }
                }
                Some(question) = questions.recv(), if idle => {
                    server.write_all(&simple_query(&question.sql)).await?;
                    self.asked = Some((question, Vec::new()));
                }
            }
        }
    }

    fn note_request(&mut self, message: &[u8]) {
        let mut seen = lock(&self.seen);
        seen.turns += usize::from(self.is_answered);
        self.is_answered = false;
        let asks = match message.first() {
            _ if !self.started => true,
            Some(b'Q' | b'S') => true,
            Some(b'P') => {
                let mut texts = message
                    .get(5..)
                    .unwrap_or_default()
                    .split(|byte| *byte == 0);
                let mut text = || String::from_utf8_lossy(texts.next().unwrap_or_default()).into();
                seen.prepared.push(Prepared {
                    connection: self.number,
                    name: text(),
                    sql: text(),
                });
                false
            }
            _ => false,
        };
        self.started = true;
        if asks {
            let depth = seen.depth_answered + 1;
            seen.depth_sent = seen.depth_sent.max(depth);
            self.depths.push_back(depth);
        }
    }

    fn take_answer(&mut self, message: Vec<u8>) {
        let Some((_, rows)) = &mut self.asked else {
            self.held.push_back((Instant::now() + self.delay, message));
            return;
        };
        match message.first() {
            Some(b'D') => rows.push(texts_of_row(&message)),
            Some(b'Z') => {
                if let Some((question, rows)) = self.asked.take() {
                    // Whoever asked may have gone.
                    drop(question.answer.send(rows));
                }
            }
            _ => {}
        }
    }

    fn note_answer(&mut self, message: &[u8]) {
        self.is_answered = true;
        if message.first() == Some(&b'Z')
            && let Some(depth) = self.depths.pop_front()
        {
            let mut seen = lock(&self.seen);
            seen.depth_answered = seen.depth_answered.max(depth);
        }
    }
}

/// Takes a whole message off the front, if there is one.
fn take_message(buffer: &mut Vec<u8>, first: bool) -> Option<Vec<u8>> {
    let at = usize::from(!first);
    let length = u32::from_be_bytes(buffer.get(at..at + 4)?.try_into().ok()?);
    let end = at + usize::try_from(length).ok()?;
    (buffer.len() >= end).then(|| buffer.drain(..end).collect())
}

fn simple_query(sql: &str) -> Vec<u8> {
    let length = u32::try_from(sql.len() + 5).unwrap_or(u32::MAX);
    let mut message = vec![b'Q'];
    message.extend(length.to_be_bytes());
    message.extend(sql.as_bytes());
    message.push(0);
    message
}

fn texts_of_row(message: &[u8]) -> Vec<Option<String>> {
    let mut rest = message.get(7..).unwrap_or_default();
    let mut texts = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        // A length of -1 is a NULL.
        let length = usize::try_from(i32::from_be_bytes(*length)).ok();
        let (text, after) = match length.and_then(|length| after.split_at_checked(length)) {
            Some((text, after)) => (Some(String::from_utf8_lossy(text).into_owned()), after),
            None => (None, after),
        };
        texts.push(text);
        rest = after;
    }
    texts
}
