//! Bodies on their way: bytes pass as they come, neither side gets ahead of the other by more than a buffer.

use super::entry::Entry;
use super::upstream::Upstream;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long the body of a request may pause.
const PAUSE: Duration = Duration::from_secs(120);

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// The connection that it came from.
    #[error("the connection broke off")]
    Connection(#[from] hyper::Error),
    /// Nothing came for too long.
    #[error("the body paused for longer than {PAUSE:?}")]
    Paused,
    /// The share ended, or is not public any more.
    #[error("the share is not open any more")]
    Cut,
}

/// How far an upload is.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

const MOVING: u8 = 1;
const DONE: u8 = 2;

impl Progress {
    /// It has come to its end.
    pub(super) fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire) & DONE != 0
    }

    /// Whether it has moved since this was asked last.
    pub(super) fn has_moved(&self) -> bool {
        self.0.fetch_and(!MOVING, Ordering::AcqRel) & MOVING != 0
    }

    fn note(&self, bits: u8) {
        self.0.fetch_or(bits, Ordering::AcqRel);
    }
}

/// The body of a request.
pub(super) struct Upload {
    inner: Option<Incoming>,
    progress: Arc<Progress>,
    pause: Option<Pin<Box<Sleep>>>,
    moved: bool,
}

impl Upload {
    pub(super) fn new(inner: Incoming) -> Self {
        let upload = Self {
            inner: Some(inner),
            progress: Arc::default(),
            pause: None,
            moved: false,
        };
        if upload.is_end_stream() {
            upload.progress.note(DONE);
        }
        upload
    }

    /// One without content.
    pub(super) fn empty() -> Self {
        let progress = Progress::default();
        progress.note(DONE);
        Self {
            inner: None,
            progress: Arc::new(progress),
            pause: None,
            moved: false,
        }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// Whether nothing has come for too long.
    fn has_paused(&mut self, context: &mut Context<'_>) -> bool {
        let pause = self
            .pause
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(PAUSE)));
        if std::mem::take(&mut self.moved) {
            pause.as_mut().reset(Instant::now() + PAUSE);
        }
        pause.as_mut().poll(context).is_ready()
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        match Pin::new(inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.moved = true;
                let is_done = self.is_end_stream();
                self.progress
                    .note(if is_done { MOVING | DONE } else { MOVING });
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => {
                self.progress.note(DONE);
                Poll::Ready(None)
            }
            Poll::Pending if self.has_paused(context) => Poll::Ready(Some(Err(BodyError::Paused))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Some(inner) => inner.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// The body of an answer.
pub(super) enum Body {
    /// The gateway's own.
    Whole(Full<Bytes>),
    /// An app's.
    App(Box<Download>),
}

impl Body {
    pub(super) fn text(text: impl Into<Bytes>) -> Self {
        Body::Whole(Full::new(text.into()))
    }
}

/// The body of an app's answer, with what is held until its end.
pub(super) struct Download {
    pub(super) inner: Incoming,
    pub(super) entry: Arc<Entry>,
    /// The connection that it comes from.
    pub(super) upstream: Option<Upstream>,
    /// What was sent on that connection.
    pub(super) progress: Arc<Progress>,
    /// Cuts it.
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

impl Download {
    pub(super) fn new(
        inner: Incoming,
        entry: Arc<Entry>,
        upstream: Upstream,
        progress: Arc<Progress>,
        over: CancellationToken,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            inner,
            entry,
            upstream: Some(upstream),
            progress,
            over: Box::pin(over.cancelled_owned()),
            _permit: permit,
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // A connection on which something is still under way cannot serve anybody else.
        let is_whole = self.inner.is_end_stream() && self.progress.is_done();
        if let Some(upstream) = self.upstream.take().filter(|_| is_whole)
            && self.entry.ended().is_none()
        {
            self.entry.pool.put(upstream);
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Body::Whole(whole) => Pin::new(whole)
                .poll_frame(context)
                .map_err(|never| match never {}),
            Body::App(app) => match Pin::new(&mut app.inner).poll_frame(context) {
                Poll::Pending if app.over.as_mut().poll(context).is_ready() => {
                    Poll::Ready(Some(Err(BodyError::Cut)))
                }
                done => done.map_err(BodyError::from),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Whole(whole) => whole.is_end_stream(),
            Body::App(app) => app.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Whole(whole) => whole.size_hint(),
            Body::App(app) => app.inner.size_hint(),
        }
    }
}
