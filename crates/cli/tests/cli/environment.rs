//! An empty home, and a server that records.

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use instavm_testkit::TestPlatform;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;

/// A home, and what else the environment holds.
pub(crate) struct Environment {
    home: TempDir,
    variables: Vec<(String, String)>,
}

impl Environment {
    pub(crate) fn new() -> Result<Environment> {
        Ok(Environment {
            home: tempfile::tempdir()?,
            variables: Vec::new(),
        })
    }

    /// With the address and the key of a platform.
    pub(crate) fn of(platform: &TestPlatform) -> Result<Environment> {
        let url = format!("http://{}", platform.address());
        Ok(Environment::new()?
            .with("INSTAVM_API_KEY", &platform.key)
            .with("INSTAVM_BASE_URL", &url))
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Environment {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.path()
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.home().join(".instavm/config.json")
    }

    /// The program with these arguments and nothing of this process's environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_instavm"));
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.home())
            .envs(self.variables.iter().cloned())
            .current_dir(self.home())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Result<Done> {
        let output = self.command(arguments).output().await?;
        Ok(self.done(&output))
    }

    /// Runs it with this on standard input.
    pub(crate) async fn run_with(&self, arguments: &[&str], input: &str) -> Result<Done> {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("it has a standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        Ok(self.done(&child.wait_with_output().await?))
    }

    fn done(&self, output: &std::process::Output) -> Done {
        let home = self.home().display().to_string();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&home, "[HOME]");
        Done {
            status: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// Standard output of a run that did well and said nothing else.
    #[track_caller]
    pub(crate) fn good(&self) -> &str {
        assert_eq!(
            (self.status, self.stderr.as_str()),
            (Some(0), ""),
            "{self:?}"
        );
        &self.stdout
    }

    /// The document on standard output of a run that did well.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        let text = self.good();
        assert_eq!(text.matches('\n').count(), 1, "one line: {text}");
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Everything, for a snapshot.
    pub(crate) fn all(&self) -> String {
        let mut text = format!("status {:?}\n", self.status.unwrap_or(-1));
        for (name, stream) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !stream.is_empty() {
                let _ = write!(text, "--- {name}\n{stream}");
            }
        }
        text
    }
}

/// A server that gives prepared answers and writes down what it was asked.
pub(crate) struct Server {
    pub(crate) url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<String>>,
    answers: Mutex<VecDeque<(u16, String)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn record(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20)
        .await
        .unwrap_or_default();
    let key = parts
        .headers
        .get("x-api-key")
        .map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
    let line = format!(
        "{} {} key={} {}",
        parts.method,
        parts.uri,
        key.as_deref().unwrap_or("none"),
        String::from_utf8_lossy(&body)
    );
    lock(&shared.seen).push(line.trim_end().to_owned());
    let next = lock(&shared.answers).pop_front();
    let (status, body) = next.unwrap_or((500, r#"{"detail":"nothing prepared"}"#.to_owned()));
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

impl Server {
    pub(crate) async fn start(answers: &[(u16, &str)]) -> Result<Server> {
        let answers = answers
            .iter()
            .map(|(status, body)| (*status, (*body).to_owned()));
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers.collect()),
            ..Shared::default()
        });
        let router = axum::Router::new()
            .fallback(record)
            .with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let task = tokio::spawn(async move {
            // It serves until it is aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Server { url, shared, task })
    }

    /// An environment with this server and the key `key-1`.
    pub(crate) fn environment(&self) -> Result<Environment> {
        Ok(Environment::new()?
            .with("INSTAVM_API_KEY", "key-1")
            .with("INSTAVM_BASE_URL", &self.url))
    }

    /// One line a request.
    pub(crate) fn seen(&self) -> Vec<String> {
        lock(&self.shared.seen).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}
