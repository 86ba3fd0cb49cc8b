//! `/v1/ssh-keys*`.

use super::service::{self, SshKey};
use crate::Platform;
use crate::body::JsonBody;
use crate::error::Problem;
use crate::extract::{Caller, NumberId};
use crate::idempotency::{Attempt, Repeatable, once};
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::ssh_key as api;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(add, list))
        .routes(routes!(delete))
}

fn record(key: SshKey) -> api::SshKey {
    api::SshKey {
        id: key.id,
        fingerprint: key.line.fingerprint,
        comment: key.line.comment,
        key_type: key.line.kind,
        public_key: key.line.text,
        is_active: true,
        created_at: key.created_at.iso(),
    }
}

/// Adds a key. One that the account has already is answered as it is.
#[utoipa::path(
    post, path = "/v1/ssh-keys", tag = "ssh_key", security(("api_key" = [])), request_body = api::AddSshKey,
    params(("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once")),
    responses(
        (status = 200, description = "The key", body = api::SshKey),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "It is no public key", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn add(
    State(platform): State<Platform>,
    caller: Caller,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::AddSshKey>,
) -> Result<Json<api::SshKey>, Problem> {
    let account_id = caller.account_id;
    let there = platform.clone();
    // Adding a key again finds it, so there is nothing else to look for.
    let work = move |_: Attempt| async move {
        let key = service::add(&there, account_id, &request.public_key).await?;
        Ok(record(key))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

/// The account's keys, oldest first.
#[utoipa::path(
    get, path = "/v1/ssh-keys", tag = "ssh_key", security(("api_key" = [])),
    responses(
        (status = 200, description = "The keys", body = api::SshKeys),
        (status = 401, description = "No valid key", body = ErrorBody),
    ),
)]
async fn list(
    State(platform): State<Platform>,
    caller: Caller,
) -> Result<Json<api::SshKeys>, Problem> {
    let keys = service::list(&platform, caller.account_id).await?;
    Ok(Json(api::SshKeys {
        keys: keys.into_iter().map(record).collect(),
    }))
}

/// Deletes a key.
#[utoipa::path(
    delete, path = "/v1/ssh-keys/{id}", tag = "ssh_key", security(("api_key" = [])),
    params(("id" = i64, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is gone", body = api::SshKeyDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such key", body = ErrorBody),
    ),
)]
async fn delete(
    State(platform): State<Platform>,
    caller: Caller,
    NumberId(id): NumberId,
) -> Result<Json<api::SshKeyDeleted>, Problem> {
    service::delete(&platform, caller.account_id, id).await?;
    Ok(Json(api::SshKeyDeleted {
        status: "deleted".to_owned(),
        id,
    }))
}
