//! Bodies of requests: read within bounds of size, time and memory, then parsed. Every refusal is a [`Problem`].

use crate::error::{Kind, Problem};
use crate::idempotency::{self, BodyDigest};
use crate::{Platform, Settings, refusal};
use axum::body::Body;
use axum::extract::rejection::FormRejection;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, stream};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How much of a refused body is read and dropped, so that its sender gets to see the answer.
const DRAIN_LIMIT: u64 = 64 << 20;
/// For how long.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Bytes of a body that nobody answers for yet.
const ANONYMOUS_LIMIT: usize = 1 << 20;
/// The part of the memory for bodies that these may have.
const ANONYMOUS_SHARE: usize = 8;
/// Bytes of an urlencoded body: a path of the longest kind, every byte of it escaped, and an id.
const FORM_LIMIT: usize = 64 << 10;
/// Bytes of every body that are not counted: connections are, and most bodies are no longer.
const UNCOUNTED: usize = 16 << 10;
/// Longer bodies are parsed off the serving threads.
const PARSE_ASIDE: usize = 256 << 10;

/// The memory that bodies may have.
#[derive(Debug)]
pub(crate) struct Bodies {
    callers: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
}

impl Bodies {
    pub(crate) fn new(settings: &Settings) -> Bodies {
        // At least two of the largest have room.
        let memory = settings
            .body_memory
            .max(settings.body_limit.saturating_mul(2))
            .min(Semaphore::MAX_PERMITS);
        Bodies {
            callers: Arc::new(Semaphore::new(memory)),
            anonymous: Arc::new(Semaphore::new(memory / ANONYMOUS_SHARE)),
        }
    }
}

/// A JSON object of an authenticated caller. Its memory counts until the request has been answered.
pub(crate) struct JsonBody<T> {
    pub value: T,
    /// Of its bytes, when the request may be sent again.
    pub digest: BodyDigest,
    /// When its last byte came.
    pub arrived: Instant,
    _held: Option<OwnedSemaphorePermit>,
}

impl<T: DeserializeOwned + Send + 'static> FromRequest<Platform> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, platform: &Platform) -> Result<Self, Problem> {
        let limit = platform.settings.body_limit;
        let is_repeatable = request.headers().contains_key(idempotency::HEADER);
        let read = read(request, platform, limit, &platform.bodies.callers).await?;
        let Read {
            bytes,
            arrived,
            held,
        } = read;
        Ok(JsonBody {
            digest: digest(is_repeatable, &bytes),
            value: parsed(bytes).await?,
            arrived,
            _held: held,
        })
    }
}

/// A JSON object whose sender is not known before it is read.
pub(crate) struct AnonymousBody<T>(pub T, pub BodyDigest);

impl<T: DeserializeOwned + Send + 'static> FromRequest<Platform> for AnonymousBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, platform: &Platform) -> Result<Self, Problem> {
        let limit = platform.settings.body_limit.min(ANONYMOUS_LIMIT);
        let is_repeatable = request.headers().contains_key(idempotency::HEADER);
        let read = read(request, platform, limit, &platform.bodies.anonymous).await?;
        let digest = digest(is_repeatable, &read.bytes);
        Ok(AnonymousBody(parsed(read.bytes).await?, digest))
    }
}

/// An urlencoded body.
pub(crate) struct FormBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Platform> for FormBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, platform: &Platform) -> Result<Self, Problem> {
        let limit = platform.settings.body_limit.min(FORM_LIMIT);
        let mut empty = Request::new(Body::empty());
        *empty.method_mut() = request.method().clone();
        *empty.headers_mut() = request.headers().clone();
        let read = read(request, platform, limit, &platform.bodies.callers).await?;
        *empty.body_mut() = Body::from(read.bytes);
        match axum::Form::from_request(empty, &()).await {
            Ok(axum::Form(value)) => Ok(FormBody(value)),
            Err(FormRejection::InvalidFormContentType(_)) => Err(Problem::new(
                Kind::UnsupportedMedia,
                "the body must be application/x-www-form-urlencoded",
            )),
            Err(error) => Err(refusal::of_form(&error.body_text())),
        }
    }
}

fn digest(is_repeatable: bool, bytes: &[u8]) -> BodyDigest {
    if is_repeatable {
        Sha256::digest(bytes).into()
    } else {
        BodyDigest::default()
    }
}

/// A body as it came.
struct Read {
    bytes: Bytes,
    arrived: Instant,
    held: Option<OwnedSemaphorePermit>,
}

async fn read(
    request: Request,
    platform: &Platform,
    limit: usize,
    memory: &Arc<Semaphore>,
) -> Result<Read, Problem> {
    let is_too_long = announces_more_than(request.headers(), limit as u64);
    let mut stream = request.into_body().into_data_stream();
    if is_too_long {
        drain(stream).await;
        return Err(too_long(limit));
    }
    let settings = &platform.settings;
    let deadline = Instant::now() + settings.body_time;
    let mut bytes = BytesMut::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    loop {
        let patience = deadline.min(Instant::now() + settings.body_idle);
        let chunk = match tokio::time::timeout_at(patience, stream.next()).await {
            Ok(Some(Ok(chunk))) => chunk,
            Ok(Some(Err(_))) => return Err(Problem::new(Kind::Malformed, "the body broke off")),
            Ok(None) => break,
            Err(_) => return Err(too_slow(settings)),
        };
        let length = bytes.len() + chunk.len();
        if length > limit {
            drop((bytes, held));
            drain(stream).await;
            return Err(too_long(limit));
        }
        if !hold(memory, &mut held, length) {
            drop((bytes, held));
            drain(stream).await;
            return Err(Problem::new(
                Kind::AtCapacity,
                "too many long requests are being read; try again soon",
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Read {
        bytes: bytes.freeze(),
        arrived: Instant::now(),
        held,
    })
}

/// Lets a body have the memory for so many bytes, if there is as much.
fn hold(memory: &Arc<Semaphore>, held: &mut Option<OwnedSemaphorePermit>, length: usize) -> bool {
    let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let more = length.saturating_sub(UNCOUNTED).saturating_sub(has);
    if more == 0 {
        return true;
    }
    let Ok(more) = u32::try_from(more) else {
        return false;
    };
    match (memory.clone().try_acquire_many_owned(more), held) {
        (Ok(more), Some(held)) => {
            held.merge(more);
            true
        }
        (Ok(more), held) => {
            *held = Some(more);
            true
        }
        (Err(_), _) => false,
    }
}

fn too_long(limit: usize) -> Problem {
    Problem::new(
        Kind::TooLarge,
        format!("the body has more than {limit} bytes, which is the limit; use /upload for files"),
    )
}

fn too_slow(settings: &Settings) -> Problem {
    Problem::new(
        Kind::TooSlow,
        format!(
            "the body came too slowly: nothing of it for {} s, or not all of it within {} s",
            settings.body_idle.as_secs_f64(),
            settings.body_time.as_secs_f64()
        ),
    )
}

/// The JSON object in a body.
async fn parsed<T: DeserializeOwned + Send + 'static>(body: Bytes) -> Result<T, Problem> {
    if body.len() <= PARSE_ASIDE {
        return parse(&body);
    }
    tokio::task::spawn_blocking(move || parse(&body))
        .await
        .map_err(|error| Problem::internal("reading the body", error))?
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first.is_some_and(|byte| *byte != b'{') {
        return Err(
            match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
                Ok(_) => refusal::no_object(),
                Err(error) => refusal::malformed(&error),
            },
        );
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| refusal::of_json(error, body))?;
    deserializer
        .end()
        .map_err(|error| refusal::malformed(&error))?;
    Ok(value)
}

/// Reads and drops the rest of a refused body, within limits.
pub(crate) async fn drain<S, E>(stream: S)
where
    S: Stream<Item = Result<Bytes, E>>,
{
    let mut stream = std::pin::pin!(stream);
    let reading = async {
        let mut left = DRAIN_LIMIT;
        while let Some(Ok(chunk)) = stream.next().await {
            match left.checked_sub(chunk.len() as u64) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // Either way the answer follows.
    let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
}

/// The request with a body that breaks off when nothing of it comes for so long.
pub(crate) fn impatient(request: Request, idle: Duration) -> Request {
    request.map(|body| {
        let chunks = stream::unfold(Some(body.into_data_stream()), move |body| async move {
            let mut body = body?;
            match tokio::time::timeout(idle, body.next()).await {
                Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some(body))),
                Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
                Ok(None) => None,
                Err(_) => Some((Err(io::ErrorKind::TimedOut.into()), None)),
            }
        });
        Body::from_stream(chunks)
    })
}

/// Whether the request says itself that its body is longer than the limit.
pub(crate) fn announces_more_than(headers: &HeaderMap, limit: u64) -> bool {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok())
        .is_some_and(|length| length > limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_as_it_grows_and_given_back() {
        let memory = Arc::new(Semaphore::new(100_000));
        let mut held = None;
        for length in [1, UNCOUNTED, UNCOUNTED + 60_000, UNCOUNTED + 90_000] {
            assert!(hold(&memory, &mut held, length), "{length}");
        }
        assert_eq!(memory.available_permits(), 10_000);
        let mut other = None;
        assert!(hold(&memory, &mut other, UNCOUNTED));
        assert!(!hold(&memory, &mut other, UNCOUNTED + 10_001));
        drop(held);
        assert!(hold(&memory, &mut other, UNCOUNTED + 10_001));
        drop(other);
        assert_eq!(memory.available_permits(), 100_000);
    }
}
