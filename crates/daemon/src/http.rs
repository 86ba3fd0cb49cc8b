//! The HTTP server: connections of a listener, each served until it closes or the daemon drains.

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Bounds of a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerLimits {
    /// Connections at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long a connection may take for a request's head, and how long it may stay idle between two.
    pub head_timeout: Duration,
    /// How long requests that are under way may go on once the server is told to stop.
    pub drain_timeout: Duration,
}

/// After a failed accept (too many open files) the server waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Something that connections come in at.
pub trait Door: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next connection, and who is at its other end.
    fn accept(&self)
    -> impl Future<Output = io::Result<(Self::Stream, Option<SocketAddr>)>> + Send;
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Option<SocketAddr>)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // A connection that is gone again is found so when it is read.
        let _ = stream.set_nodelay(true);
        Ok((stream, Some(peer)))
    }
}

/// A Unix socket that answers only the user that runs this process, and root.
impl Door for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Option<SocketAddr>)> {
        let own = nix::unistd::geteuid().as_raw();
        loop {
            let (stream, _) = UnixListener::accept(self).await?;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == own || peer.uid() == 0 => return Ok((stream, None)),
                Ok(peer) => {
                    tracing::warn!(
                        uid = peer.uid(),
                        "the control socket turned a stranger away"
                    );
                }
                Err(error) => tracing::warn!(%error, "the control socket had a caller unknown"),
            }
        }
    }
}

/// Serves until `stop`, then lets requests that are under way end, and cuts off what is left at the deadline.
pub async fn serve(door: impl Door, router: Router, limits: ServerLimits, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = door.accept(), if connections.len() < limits.connections => match accepted {
                Ok((stream, peer)) => {
                    let served = connection(stream, peer, router.clone(), limits, stop.clone());
                    connections.spawn(served);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(door);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.drain_timeout, drained)
        .await
        .is_err()
    {
        tracing::warn!(
            connections = connections.len(),
            "requests did not end in time and are cut off"
        );
        connections.shutdown().await;
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Option<SocketAddr>,
    router: Router,
    limits: ServerLimits,
    stop: CancellationToken,
) {
    let service = hyper::service::service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(ConnectInfo(peer));
        }
        router.clone().oneshot(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    let outcome = tokio::select! {
        outcome = served.as_mut() => outcome,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(error = %crate::output::with_causes(&error), "a connection broke off");
    }
}
