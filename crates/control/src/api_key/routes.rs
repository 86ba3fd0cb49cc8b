//! `/v1/api-keys/*`. The collection answers with and without the slash.

use super::service::{self, ApiKey};
use crate::Platform;
use crate::body::JsonBody;
use crate::clock::Moment;
use crate::error::Problem;
use crate::extract::{Caller, NumberId};
use crate::idempotency::{Attempt, Repeatable, once};
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::api_key as api;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show, update, delete))
        .route("/v1/api-keys", axum::routing::get(list).post(create))
}

fn record(key: ApiKey) -> api::ApiKey {
    api::ApiKey {
        id: key.id,
        key_prefix: key.prefix,
        description: key.description,
        is_active: key.is_active,
        created_at: key.created_at.iso(),
        last_used_at: key.last_used_at.map(Moment::iso),
    }
}

/// Makes a key. Its text is in this answer and nowhere else.
#[utoipa::path(
    post, path = "/v1/api-keys/", tag = "api_key", security(("api_key" = [])), request_body = api::CreateApiKey,
    params(("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once")),
    responses(
        (status = 200, description = "The key", body = api::NewApiKey),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn create(
    State(platform): State<Platform>,
    caller: Caller,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::CreateApiKey>,
) -> Result<Json<api::NewApiKey>, Problem> {
    let account_id = caller.account_id;
    let description = request.description.unwrap_or_default();
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        let text = service::new_key(&attempt);
        if attempt.is_repeated
            && let Some(key) = service::made_before(&there, account_id, &text).await?
        {
            return Ok(record(key));
        }
        let key = service::create(&there, account_id, &text, &description).await?;
        Ok(record(key))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(api::NewApiKey {
        // It is stored nowhere: of a request that may be sent again it comes out the same again.
        api_key: service::new_key(&answered.attempt),
        record: answered.answer,
    }))
}

/// The account's keys, oldest first.
#[utoipa::path(
    get, path = "/v1/api-keys/", tag = "api_key", security(("api_key" = [])),
    responses(
        (status = 200, description = "The keys", body = Vec<api::ApiKey>),
        (status = 401, description = "No valid key", body = ErrorBody),
    ),
)]
async fn list(
    State(platform): State<Platform>,
    caller: Caller,
) -> Result<Json<Vec<api::ApiKey>>, Problem> {
    let keys = service::list(&platform, caller.account_id).await?;
    Ok(Json(keys.into_iter().map(record).collect()))
}

/// A key.
#[utoipa::path(
    get, path = "/v1/api-keys/{id}", tag = "api_key", security(("api_key" = [])),
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "The key", body = api::ApiKey),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such key", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
    NumberId(id): NumberId,
) -> Result<Json<api::ApiKey>, Problem> {
    let key = service::find(&platform, caller.account_id, id).await?;
    Ok(Json(record(key)))
}

/// Changes a key. One that is no longer active answers 401 from then on.
#[utoipa::path(
    patch, path = "/v1/api-keys/{id}", tag = "api_key", security(("api_key" = [])),
    params(("id" = i64, Path, description = "Its id")), request_body = api::UpdateApiKey,
    responses(
        (status = 200, description = "The key", body = api::ApiKey),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such key", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn update(
    State(platform): State<Platform>,
    caller: Caller,
    NumberId(id): NumberId,
    JsonBody { value: request, .. }: JsonBody<api::UpdateApiKey>,
) -> Result<Json<api::ApiKey>, Problem> {
    let description = request.description;
    let key = service::update(
        &platform,
        caller.account_id,
        id,
        description,
        request.is_active,
    )
    .await?;
    Ok(Json(record(key)))
}

/// Deletes a key. It answers 401 from then on.
#[utoipa::path(
    delete, path = "/v1/api-keys/{id}", tag = "api_key", security(("api_key" = [])),
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is gone", body = api::ApiKeyDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such key", body = ErrorBody),
    ),
)]
async fn delete(
    State(platform): State<Platform>,
    caller: Caller,
    NumberId(id): NumberId,
) -> Result<Json<api::ApiKeyDeleted>, Problem> {
    service::delete(&platform, caller.account_id, id).await?;
    Ok(Json(api::ApiKeyDeleted {
        status: "deleted".to_owned(),
        id,
    }))
}
