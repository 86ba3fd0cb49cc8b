//! What handlers take beside bodies: the caller, queries and ids. Every refusal is a [`Problem`].

use crate::error::{Kind, Problem};
use crate::{Platform, refusal};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

/// The header that carries the API key.
pub(crate) const API_KEY_HEADER: &str = "x-api-key";

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

/// A query.
pub(crate) struct QueryOf<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Platform> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Platform) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri)
            .map(|Query(value)| QueryOf(value))
            .map_err(|error| refusal::of_form(&error.body_text()))
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

/// Both ids in the path, decoded.
pub(crate) struct Ids(pub String, pub String);

impl FromRequestParts<Platform> for Ids {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, platform: &Platform) -> Result<Self, Problem> {
        Path::from_request_parts(parts, platform)
            .await
            .map(|Path((first, second))| Ids(first, second))
            .map_err(|_| Problem::new(Kind::NotFound, "an id in the path is no valid text"))
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
