//! The other side of the control socket: how an invocation asks the daemon that runs.

use super::{CheckAnswer, CheckRequest, Problem, short_path};
use axum::body::{Body, Bytes};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;

const ANSWER_LIMIT: usize = 64 << 20;

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The socket is there and does not let us in.
    #[error("the running daemon cannot be reached")]
    Connect(#[source] io::Error),
    /// The conversation broke off.
    #[error("the running daemon broke off")]
    Exchange(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon answered that it cannot.
    #[error("the running daemon answered: {0}")]
    Refused(String),
}

/// A connection to the daemon that runs on a data directory.
#[derive(Debug)]
pub struct AdminClient {
    sender: SendRequest<Body>,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for AdminClient {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl AdminClient {
    /// Connects; `None` when no daemon listens.
    ///
    /// # Errors
    /// When one may listen and does not let us in.
    pub async fn connect(data_dir: &Path) -> Result<Option<Self>, AdminError> {
        let stream = match open(data_dir).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(AdminError::Connect(error)),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| AdminError::Exchange(error.into()))?;
        let driver = tokio::spawn(async move {
            // A broken conversation is reported by the request that it breaks.
            let _ = connection.await;
        });
        Ok(Some(Self { sender, driver }))
    }

    /// Has the daemon settle and compare rows, disks and kernel.
    ///
    /// # Errors
    /// When it does not answer, or cannot.
    pub async fn check(&mut self, settle: Duration) -> Result<Vec<String>, AdminError> {
        let request = CheckRequest {
            settle_seconds: settle.as_secs(),
        };
        let body =
            serde_json::to_vec(&request).map_err(|error| AdminError::Exchange(error.into()))?;
        let answer = self.ask(Method::POST, "/check", body.into()).await?;
        let answer: CheckAnswer =
            serde_json::from_slice(&answer).map_err(|error| AdminError::Exchange(error.into()))?;
        Ok(answer.mismatches)
    }

    /// Has the daemon take over what was written about accounts and keys.
    ///
    /// # Errors
    /// When it does not answer, or cannot.
    pub async fn reload_accounts(&mut self) -> Result<(), AdminError> {
        self.ask(Method::POST, "/accounts/reload", Bytes::new())
            .await
            .map(drop)
    }

    async fn ask(&mut self, method: Method, path: &str, body: Bytes) -> Result<Bytes, AdminError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "instavmd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| AdminError::Exchange(error.into()))?;
        let answer = self
            .sender
            .send_request(request)
            .await
            .map_err(|error| AdminError::Exchange(error.into()))?;
        let status = answer.status();
        let body = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER_LIMIT)
            .await
            .map_err(|error| AdminError::Exchange(error.into()))?;
        if status.is_success() {
            return Ok(body);
        }
        Err(AdminError::Refused(detail(status, &body)))
    }
}

async fn open(data_dir: &Path) -> io::Result<UnixStream> {
    let (path, _folder) = short_path(data_dir)?;
    UnixStream::connect(path).await
}

fn detail(status: StatusCode, body: &[u8]) -> String {
    serde_json::from_slice::<Problem>(body)
        .map_or_else(|_| status.to_string(), |problem| problem.detail)
}
