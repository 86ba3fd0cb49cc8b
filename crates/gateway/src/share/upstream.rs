//! Connections to apps, which are used again.

use super::body::Upload;
use super::entry::Entry;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use instavm_node_api::{Connections, Destination, NodeError};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::task::AbortOnDropHandle;

/// How long a connection to an app may take.
const CONNECT: Duration = Duration::from_millis(4_500);
/// How long a connection is kept unused: less than common servers keep theirs.
const IDLE: Duration = Duration::from_secs(4);
/// Connections that are kept for one share.
const KEPT: usize = 32;
/// How long the end of the last answer may take to be noticed.
const SETTLE: Duration = Duration::from_millis(50);

/// Why an app cannot be reached.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    /// Nobody listens.
    #[error("nothing listens there")]
    Refused,
    /// It does not take connections.
    #[error("it does not take connections")]
    TimedOut,
    /// The VM is no more.
    #[error("the VM has ended")]
    VmEnded,
    /// Something on the platform's side.
    #[error("connecting to the app")]
    Node(#[source] NodeError),
    /// The connection does not speak HTTP.
    #[error("beginning HTTP")]
    Handshake(#[source] hyper::Error),
}

/// A connection to an app. Dropping it closes it.
pub(super) struct Upstream {
    pub(super) sender: SendRequest<Upload>,
    /// It has served a request before.
    pub(super) is_reused: bool,
    _task: AbortOnDropHandle<()>,
}

impl Upstream {
    async fn is_usable(&mut self) -> bool {
        if self.sender.is_ready() {
            return true;
        }
        let ready = tokio::time::timeout(SETTLE, self.sender.ready()).await;
        matches!(ready, Ok(Ok(())))
    }
}

/// Connections that wait for another request.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<(Instant, Upstream)>>,
}

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Instant, Upstream)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Upstream> {
        let mut idle = self.lock();
        let (since, upstream) = idle.pop()?;
        if since.elapsed() < IDLE {
            return Some(upstream);
        }
        // The others have waited longer.
        idle.clear();
        None
    }

    /// Keeps a connection whose last exchange is complete.
    pub(super) fn put(&self, mut upstream: Upstream) {
        if upstream.sender.is_closed() {
            return;
        }
        upstream.is_reused = true;
        let mut idle = self.lock();
        if idle.len() < KEPT {
            idle.push((Instant::now(), upstream));
        }
    }

    /// Closes those that have waited too long.
    pub(super) fn sweep(&self) {
        self.lock().retain(|(since, _)| since.elapsed() < IDLE);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }
}

/// A connection that has waited, or a new one.
pub(super) async fn any(node: &dyn Connections, entry: &Entry) -> Result<Upstream, UpstreamError> {
    while let Some(mut upstream) = entry.pool.take() {
        if upstream.is_usable().await {
            return Ok(upstream);
        }
    }
    fresh(node, entry).await
}

/// A new connection.
pub(super) async fn fresh(
    node: &dyn Connections,
    entry: &Entry,
) -> Result<Upstream, UpstreamError> {
    let connecting = node.connect(&entry.vm, Destination::Local(entry.port));
    let stream = tokio::time::timeout(CONNECT, connecting)
        .await
        .map_err(|_| UpstreamError::TimedOut)?
        .map_err(|error| match error {
            NodeError::NoSuchVm | NodeError::VmEnded => UpstreamError::VmEnded,
            NodeError::Connection {
                kind: std::io::ErrorKind::TimedOut,
                ..
            } => UpstreamError::TimedOut,
            NodeError::Connection { .. } => UpstreamError::Refused,
            error => UpstreamError::Node(error),
        })?;
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(stream))
        .await
        .map_err(UpstreamError::Handshake)?;
    let serving = async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "an app's connection broke off");
        }
    };
    Ok(Upstream {
        sender,
        is_reused: false,
        _task: AbortOnDropHandle::new(tokio::spawn(serving)),
    })
}
