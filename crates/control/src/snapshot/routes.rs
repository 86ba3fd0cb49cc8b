//! `/v1/snapshots*`, and `/v1/vms/{vm_id}/snapshot`.

use super::service::{self, Kind, Snapshot};
use crate::Platform;
use crate::body::JsonBody;
use crate::bounds;
use crate::clock::milliseconds;
use crate::error::{Kind as Failure, Problem};
use crate::extract::{Caller, Id, QueryOf};
use crate::idempotency::{Attempt, Repeatable, once};
use crate::vm::routes as vms;
use crate::vm::service::VmStatus;
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::snapshot as api;
use instavm_api::vm::WaitQuery;
use instavm_node_api::SnapshotId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(build, list))
        .routes(routes!(show, delete))
        .routes(routes!(take))
}

/// A snapshot as the wire shows it to an account.
fn record(snapshot: Snapshot, account_id: i64, with_log: bool) -> api::Snapshot {
    let is_own = snapshot.account_id == account_id;
    let config = snapshot.config;
    api::Snapshot {
        snapshot_id: snapshot.id.0.clone(),
        id: snapshot.id.0,
        name: snapshot.name,
        status: snapshot.status.as_str().to_owned(),
        kind: snapshot.kind.as_str().to_owned(),
        snapshot_type: snapshot.kind.as_str().to_owned(),
        is_public: snapshot.kind == Kind::System,
        vm_id: snapshot.vm_id.filter(|_| is_own),
        oci_image: snapshot.oci_image,
        digest: snapshot.digest,
        step: snapshot.step,
        log: Some(snapshot.log).filter(|_| is_own && with_log),
        last_error: snapshot.last_error,
        size_bytes: snapshot.size_bytes,
        pause_ms: snapshot.pause_micros.map(milliseconds),
        config: api::SnapshotConfig {
            env: if is_own {
                config.env
            } else {
                Default::default()
            },
            workdir: config.workdir,
            user: config.user,
            entrypoint: config.entrypoint,
            command: config.command,
        },
        created_at: snapshot.created_at.iso(),
        updated_at: snapshot.updated_at.iso(),
    }
}

fn id_of(attempt: &Attempt) -> SnapshotId {
    SnapshotId(attempt.nonce.id("snap_", 0))
}

/// Builds a snapshot from an OCI image, in the background.
#[utoipa::path(
    post, path = "/v1/snapshots", tag = "snapshot", security(("api_key" = [])), request_body = api::BuildSnapshot,
    description = "Builds a snapshot from an OCI image, in the background: pulls it, boots a VM from it, does in there \
        what `build_args` say, and saves its disk. The answer comes at once; `GET /v1/snapshots/{snapshot_id}` shows how \
        far it is.",
    params(("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once")),
    responses(
        (status = 200, description = "It is being built", body = api::Snapshot),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "System snapshots are the first account's to make, or the account's space is used up", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many snapshots, or as many being built, as it may have", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn build(
    State(platform): State<Platform>,
    caller: Caller,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::BuildSnapshot>,
) -> Result<Json<api::Snapshot>, Problem> {
    let account_id = caller.account_id;
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        let id = id_of(&attempt);
        if attempt.is_repeated
            && let Some(found) = service::made_before(&there, account_id, &id).await?
        {
            return Ok(record(found, account_id, true));
        }
        let snapshot = service::build(&there, account_id, id, request).await?;
        Ok(record(snapshot, account_id, true))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

/// The snapshots that the caller may start VMs from, newest first.
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "snapshot", security(("api_key" = [])),
    description = "The caller's own snapshots and those of the platform, newest first.",
    params(api::ListSnapshotsQuery),
    responses(
        (status = 200, description = "The snapshots", body = Vec<api::Snapshot>),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 422, description = "The type is wrong", body = ErrorBody),
    ),
)]
async fn list(
    State(platform): State<Platform>,
    caller: Caller,
    QueryOf(query): QueryOf<api::ListSnapshotsQuery>,
) -> Result<Json<Vec<api::Snapshot>>, Problem> {
    let kind = Kind::given(query.kind.as_deref())?;
    let account_id = caller.account_id;
    let snapshots = service::list(&platform, account_id, kind)
        .await?
        .into_iter();
    Ok(Json(
        snapshots
            .map(|snapshot| record(snapshot, account_id, false))
            .collect(),
    ))
}

/// A snapshot, with the step and the log of its build.
#[utoipa::path(
    get, path = "/v1/snapshots/{snapshot_id}", tag = "snapshot", security(("api_key" = [])),
    params(("snapshot_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The snapshot", body = api::Snapshot),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such snapshot", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Snapshot>, Problem> {
    let snapshot = service::find(&platform, caller.account_id, &id).await?;
    Ok(Json(record(snapshot, caller.account_id, true)))
}

/// Deletes a snapshot. One that is being built is cancelled.
#[utoipa::path(
    delete, path = "/v1/snapshots/{snapshot_id}", tag = "snapshot", security(("api_key" = [])),
    params(("snapshot_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is gone", body = api::SnapshotDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "It is the platform's", body = ErrorBody),
        (status = 404, description = "No such snapshot", body = ErrorBody),
        (status = 409, description = "It is being taken, or VMs that started from it live", body = ErrorBody),
    ),
)]
async fn delete(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::SnapshotDeleted>, Problem> {
    service::delete(&platform, caller.account_id, &id).await?;
    Ok(Json(api::SnapshotDeleted {
        status: "deleted".to_owned(),
        id,
    }))
}

/// Saves the disk of a VM, which stands still for a moment and goes on.
#[utoipa::path(
    post, path = "/v1/vms/{vm_id}/snapshot", tag = "snapshot", security(("api_key" = [])),
    params(
        ("vm_id" = String, Path, description = "The VM's id"),
        WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once"),
    ),
    request_body = api::TakeSnapshot,
    responses(
        (status = 200, description = "It is ready, or with `wait=false` is being taken", body = api::Snapshot),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The account's space is used up", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM does not run, or the same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit, or the disks are full", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many snapshots as it may have", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
        (status = 504, description = "It takes too long, and goes on", body = ErrorBody),
    ),
)]
async fn take(
    State(platform): State<Platform>,
    caller: Caller,
    Id(vm_id): Id,
    QueryOf(query): QueryOf<WaitQuery>,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::TakeSnapshot>,
) -> Result<Json<api::Snapshot>, Problem> {
    let account_id = caller.account_id;
    let vm = vms::find(&platform, caller, &vm_id).await?;
    let name = bounds::label("name", request.name)?;
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        let id = id_of(&attempt);
        if attempt.is_repeated
            && let Some(found) = service::made_before(&there, account_id, &id).await?
        {
            return Ok(record(found, account_id, true));
        }
        if vm.status != VmStatus::Active {
            return Err(Problem::new(
                Failure::Conflict,
                format!("VM {} is {} and does not run", vm.id, vm.status.as_str()),
            ));
        }
        let taking = service::take(&there, &vm, id, name, false).await?;
        let snapshot = if query.wait.unwrap_or(true) {
            taking.finished(&there).await?
        } else {
            taking.snapshot
        };
        Ok(record(snapshot, account_id, true))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}
