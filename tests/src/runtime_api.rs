//! Lambda's runtime API, as a function sees it: it hands out one event after another and takes the
//! answers (AWS Lambda Developer Guide, "Using the Lambda runtime API for custom runtimes").

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "only tests call this, and a test may panic"
)]

use std::{
    fs::OpenOptions,
    path::Path as FilePath,
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::{
    process::{Child, Command},
    sync::{Mutex, mpsc},
    time::timeout,
};

use crate::{logs, program};

/// Starting a program on a busy machine.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What an invocation came to.
#[derive(Debug)]
pub struct Answered {
    /// The function gave an answer, and no error.
    pub ok: bool,
    /// What it said.
    pub body: Value,
}

/// A running function. It ends with its test; if that fails, what it wrote is shown.
pub struct Function {
    events: mpsc::Sender<Vec<u8>>,
    answers: mpsc::Receiver<Answered>,
    child: Child,
    log: NamedTempFile,
}

struct Api {
    events: Mutex<mpsc::Receiver<Vec<u8>>>,
    answers: mpsc::Sender<Answered>,
}

impl Function {
    /// Starts the program of that name with this environment and no other.
    ///
    /// # Panics
    /// When it is not there.
    pub async fn start(name: &str, environment: &[(&'static str, String)]) -> Self {
        Self::launch(&program(name).unwrap(), &[], name, environment).await
    }

    /// Starts any program with these arguments.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn launch(
        program: &FilePath,
        arguments: &[&str],
        name: &str,
        environment: &[(&'static str, String)],
    ) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (events, waiting) = mpsc::channel(8);
        let (done, answers) = mpsc::channel(8);
        let api = Arc::new(Api {
            events: Mutex::new(waiting),
            answers: done,
        });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route(
                "/2018-06-01/runtime/invocation/{id}/response",
                post(response),
            )
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .with_state(api);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let log = NamedTempFile::new().unwrap();
        logs::keep(log.path()).unwrap();
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env("AWS_LAMBDA_RUNTIME_API", address)
            .env("AWS_LAMBDA_FUNCTION_NAME", name)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
            .stdin(Stdio::null())
            .stdout(OpenOptions::new().append(true).open(log.path()).unwrap())
            .stderr(OpenOptions::new().append(true).open(log.path()).unwrap())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            events,
            answers,
            child,
            log,
        }
    }

    /// All that it has written so far, to its standard output and its standard error.
    ///
    /// # Panics
    /// When the file is gone.
    #[must_use]
    pub fn written(&self) -> String {
        let bytes = std::fs::read(self.log.path()).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Invokes it with an event file.
    ///
    /// # Panics
    /// When there is no such file, or no answer.
    pub async fn invoke(&mut self, event: &str) -> Answered {
        let path = format!("{}/events/{event}.json", env!("CARGO_MANIFEST_DIR"));
        self.invoke_with(std::fs::read(path).unwrap()).await
    }

    /// Invokes it with an event.
    ///
    /// # Panics
    /// When there is no answer.
    pub async fn invoke_with(&mut self, event: Vec<u8>) -> Answered {
        self.events.send(event).await.unwrap();
        let answer = timeout(ANSWER_LIMIT, self.answers.recv()).await;
        answer.expect("an answer in time").unwrap()
    }
}

async fn next(State(api): State<Arc<Api>>) -> Response {
    let Some(event) = api.events.lock().await.recv().await else {
        return StatusCode::GONE.into_response();
    };
    let deadline = SystemTime::now() + Duration::from_secs(900);
    let deadline_ms = deadline.duration_since(UNIX_EPOCH).unwrap().as_millis();
    let headers = [
        ("lambda-runtime-aws-request-id", "rehearsal".to_owned()),
        ("lambda-runtime-deadline-ms", deadline_ms.to_string()),
        (
            "lambda-runtime-invoked-function-arn",
            "arn:aws:lambda:eu-central-1:123456789012:function:rehearsal".to_owned(),
        ),
        ("content-type", "application/json".to_owned()),
    ];
    (headers, event).into_response()
}

async fn response(State(api): State<Arc<Api>>, Path(_): Path<String>, body: Bytes) -> StatusCode {
    tell(&api, true, &body).await
}

async fn error(State(api): State<Arc<Api>>, Path(_): Path<String>, body: Bytes) -> StatusCode {
    tell(&api, false, &body).await
}

async fn tell(api: &Api, ok: bool, body: &[u8]) -> StatusCode {
    let body = serde_json::from_slice(body).unwrap_or_default();
    api.answers.send(Answered { ok, body }).await.unwrap();
    StatusCode::ACCEPTED
}

impl Drop for Function {
    #[expect(clippy::print_stderr, reason = "a failed test shows it")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.written());
        }
    }
}
