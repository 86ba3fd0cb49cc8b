//! Connections of callers: HTTP/1.1 and HTTP/2, each with bounds on what it may take.

use super::Inner;
use super::body::Body;
use super::proxy::{self, Door};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, MissedTickBehavior};

/// How long the head of a request may take.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may be without a request.
const IDLE: Duration = Duration::from_secs(75);
/// Between two looks at whether it is.
const LOOK: Duration = Duration::from_secs(5);
/// How long a connection may take to close.
const CLOSE: Duration = Duration::from_secs(5);
/// Bytes of a head; also of what is read ahead of a request's body.
const HEAD_BYTES: usize = 64 << 10;
/// Requests at once on one connection.
const STREAMS: u32 = 128;
/// Bytes of a body that may be under way to us on one request, and on one connection.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Bytes of answers that wait to be sent on one request.
const SEND_BUFFER: usize = 128 << 10;
/// How often a silent connection is asked whether it is there, and how long it may take to answer.
const PING: Duration = Duration::from_secs(30);

/// Requests of a connection.
#[derive(Default)]
struct Running {
    /// Those that are under way.
    now: AtomicUsize,
    /// All that have come.
    all: AtomicUsize,
}

struct Guard(Arc<Running>);

impl Guard {
    fn new(running: &Arc<Running>) -> Self {
        running.now.fetch_add(1, Ordering::AcqRel);
        running.all.fetch_add(1, Ordering::AcqRel);
        Self(running.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A body that counts as a request under way until its end.
struct Counted {
    body: Body,
    _guard: Guard,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = super::body::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Serves a connection until it closes, is idle for too long, or the daemon ends.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    inner: Arc<Inner>,
    door: Door,
    from: IpAddr,
    stream: S,
) {
    let running = Arc::new(Running::default());
    let stop = inner.stop.clone();
    let counting = running.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let guard = Guard::new(&counting);
        let answer = proxy::answer(inner.clone(), door.clone(), from, request);
        async move {
            let counted = |body| Counted {
                body,
                _guard: guard,
            };
            Ok::<Response<Counted>, Infallible>(answer.await.map(counted))
        }
    });
    let builder = builder();
    let mut serving = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let outcome = tokio::select! {
        outcome = serving.as_mut() => Some(outcome),
        () = idle(&running) => None,
        () = stop.cancelled() => None,
    };
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(CLOSE, serving).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a connection to a share broke off");
    }
}

/// Returns when no request has been under way for too long; the first one must come sooner.
async fn idle(running: &Running) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut since = Instant::now();
    let mut patience = HEAD;
    let mut seen = 0;
    loop {
        looks.tick().await;
        let all = running.all.load(Ordering::Acquire);
        if running.now.load(Ordering::Acquire) > 0 || all != seen {
            (since, patience, seen) = (Instant::now(), IDLE, all);
        } else if since.elapsed() >= patience {
            return;
        }
    }
}
