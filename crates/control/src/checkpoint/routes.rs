//! `/v1/volumes/{volume_id}/checkpoints*`.

use super::service::{self, Checkpoint};
use crate::Platform;
use crate::body::JsonBody;
use crate::bounds;
use crate::error::Problem;
use crate::extract::{Caller, Id, Ids};
use crate::idempotency::{Attempt, Repeatable, once};
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::checkpoint as api;
use instavm_node_api::CheckpointId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(delete))
}

fn record(checkpoint: Checkpoint) -> api::Checkpoint {
    api::Checkpoint {
        checkpoint_id: checkpoint.id.0.clone(),
        id: checkpoint.id.0,
        volume_id: checkpoint.volume_id.0,
        name: checkpoint.name,
        status: checkpoint.status,
        created_at: checkpoint.created_at.iso(),
    }
}

/// Keeps this moment of a volume.
#[utoipa::path(
    post, path = "/v1/volumes/{volume_id}/checkpoints", tag = "checkpoint", security(("api_key" = [])),
    params(
        ("volume_id" = String, Path, description = "The volume's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once"),
    ),
    request_body = api::CreateCheckpoint,
    responses(
        (status = 200, description = "The checkpoint", body = api::Checkpoint),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The volume cannot be used, or the same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit, or the disks are full", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The volume has as many checkpoints as it may have", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn create(
    State(platform): State<Platform>,
    caller: Caller,
    Id(volume): Id,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::CreateCheckpoint>,
) -> Result<Json<api::Checkpoint>, Problem> {
    let account_id = caller.account_id;
    let name = bounds::label("name", request.name)?;
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        let id = CheckpointId(attempt.nonce.id("ckpt_", 0));
        if attempt.is_repeated
            && let Some(found) = service::find(&there, account_id, &volume, &id.0).await?
        {
            return Ok(record(found));
        }
        let checkpoint = service::create(&there, account_id, &volume, id, name).await?;
        Ok(record(checkpoint))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

/// The checkpoints of a volume, oldest first.
#[utoipa::path(
    get, path = "/v1/volumes/{volume_id}/checkpoints", tag = "checkpoint", security(("api_key" = [])),
    params(("volume_id" = String, Path, description = "The volume's id")),
    responses(
        (status = 200, description = "The checkpoints", body = Vec<api::Checkpoint>),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such volume", body = ErrorBody),
    ),
)]
async fn list(
    State(platform): State<Platform>,
    caller: Caller,
    Id(volume): Id,
) -> Result<Json<Vec<api::Checkpoint>>, Problem> {
    let checkpoints = service::list(&platform, caller.account_id, &volume).await?;
    Ok(Json(checkpoints.into_iter().map(record).collect()))
}

/// Deletes a checkpoint that no VM has mounted.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume_id}/checkpoints/{checkpoint_id}", tag = "checkpoint",
    security(("api_key" = [])),
    params(
        ("volume_id" = String, Path, description = "The volume's id"),
        ("checkpoint_id" = String, Path, description = "The checkpoint's id"),
    ),
    responses(
        (status = 200, description = "It is gone", body = api::CheckpointDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such volume or checkpoint", body = ErrorBody),
        (status = 409, description = "VMs have it mounted", body = ErrorBody),
    ),
)]
async fn delete(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(volume, id): Ids,
) -> Result<Json<api::CheckpointDeleted>, Problem> {
    let is_gone = service::delete(&platform, caller.account_id, &volume, &id).await?;
    Ok(Json(api::CheckpointDeleted {
        status: if is_gone { "deleted" } else { "deleting" }.to_owned(),
        id,
    }))
}
