//! What handlers take: the caller, checked bodies, queries and ids. Every refusal is a [`Problem`].

use crate::Platform;
use crate::error::{Kind, Problem};
use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::time::Duration;

/// The header that carries the API key.
pub(crate) const API_KEY_HEADER: &str = "x-api-key";
/// How much of a refused body is read and dropped, so that its sender gets to see the answer.
const DRAIN_LIMIT: u64 = 64 << 20;
/// For how long.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// The longest part of a parser's message that is shown: it quotes what it was given.
const MESSAGE_LIMIT: usize = 300;

/// Who calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub account_id: i64,
}

/// The key in the request's header, if there is one.
pub(crate) fn key_of(headers: &axum::http::HeaderMap) -> Option<&str> {
    headers.get(API_KEY_HEADER)?.to_str().ok().map(str::trim)
}

impl FromRequestParts<Platform> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Problem> {
        let key = key_of(&parts.headers).ok_or_else(Problem::unauthorised)?;
        crate::api_key::service::authenticate(platform, key).await
    }
}

/// A JSON body of at most [`crate::Settings::body_limit`] bytes.
pub(crate) struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Platform> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, platform: &Platform) -> Result<Self, Problem> {
        let body = read_body(request.into_body(), platform.settings.body_limit).await?;
        let mut deserializer = serde_json::Deserializer::from_slice(&body);
        let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            // What is wrong with a field counts only in a text that is JSON to its end.
            match serde_json::from_slice::<IgnoredAny>(&body) {
                Ok(_) => refused(error),
                Err(error) => malformed(error),
            }
        })?;
        deserializer.end().map_err(malformed)?;
        Ok(JsonBody(value))
    }
}

fn malformed(error: serde_json::Error) -> Problem {
    Problem::new(
        Kind::Malformed,
        format!("the body is no JSON: {}", shown(error.to_string())),
    )
}

/// Malformed text is 400; well-formed text that is not what the field holds is 422 and names the field.
fn refused(error: serde_path_to_error::Error<serde_json::Error>) -> Problem {
    let path = error.path().to_string();
    let error = error.into_inner();
    let text = if error.is_data() {
        error.to_string()
    } else {
        // How the parser puts it when, for example, a number stands where one of several words is expected.
        "is not of the type that this field has".to_owned()
    };
    let text = text
        .rsplit_once(" at line ")
        .map_or(&*text, |(text, _)| text);
    let text = shown(text.to_owned());
    if path == "." {
        Problem::new(Kind::Invalid, text)
    } else {
        Problem::invalid(&shown(path), text)
    }
}

fn shown(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MESSAGE_LIMIT) {
        text.truncate(end);
        text.push('…');
    }
    text
}

async fn read_body(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut stream = body.into_data_stream();
    let mut read = BytesMut::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| Problem::new(Kind::Malformed, "the body broke off"))?;
        if read.len() + chunk.len() > limit {
            drop(read);
            drain(stream).await;
            return Err(Problem::new(
                Kind::TooLarge,
                format!(
                    "the body has more than {limit} bytes, which is the limit; use /upload for files"
                ),
            ));
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.freeze())
}

/// Reads and drops the rest of a refused body, within limits.
pub(crate) async fn drain<S, E>(stream: S)
where
    S: futures::Stream<Item = Result<Bytes, E>>,
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

/// An urlencoded body.
pub(crate) struct FormBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Platform> for FormBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, platform: &Platform) -> Result<Self, Problem> {
        use axum::extract::rejection::FormRejection;
        let (parts, body) = request.into_parts();
        let body = read_body(body, platform.settings.body_limit).await?;
        let request = Request::from_parts(parts, Body::from(body));
        match axum::Form::from_request(request, &()).await {
            Ok(axum::Form(value)) => Ok(FormBody(value)),
            Err(FormRejection::InvalidFormContentType(_)) => Err(Problem::new(
                Kind::UnsupportedMedia,
                "the body must be application/x-www-form-urlencoded",
            )),
            Err(error) => Err(Problem::new(Kind::Invalid, shown(error.body_text()))),
        }
    }
}

/// A query.
pub(crate) struct QueryOf<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Platform> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Platform) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(value)| QueryOf(value))
            .map_err(|error| Problem::new(Kind::Invalid, shown(error.body_text())))
    }
}

/// The id in the path, decoded.
pub(crate) struct Id(pub String);

impl FromRequestParts<Platform> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Problem> {
        Path::from_request_parts(parts, platform)
            .await
            .map(|Path(id)| Id(id))
            .map_err(|_| Problem::new(Kind::NotFound, "the id in the path is no valid text"))
    }
}

/// The integer id in the path; what is no integer names nothing.
pub(crate) struct NumberId(pub i64);

impl FromRequestParts<Platform> for NumberId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Problem> {
        let Id(text) = Id::from_request_parts(parts, platform).await?;
        text.parse()
            .map(NumberId)
            .map_err(|_| Problem::new(Kind::NotFound, "there is no such id: ids here are integers"))
    }
}

/// Whether the request says itself that its body is longer than the limit.
pub(crate) fn announces_more_than(headers: &axum::http::HeaderMap, limit: u64) -> bool {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<u64>().ok())
        .is_some_and(|length| length > limit)
}
