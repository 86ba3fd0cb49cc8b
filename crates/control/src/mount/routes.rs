//! `/v1/vms/{vm_id}/volumes*`.

use super::rows::Recorded;
use super::service;
use crate::Platform;
use crate::body::JsonBody;
use crate::error::Problem;
use crate::extract::{Caller, Id, Ids, QueryOf};
use crate::vm::routes as vms;
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::mount as api;
use instavm_api::vm::WaitQuery;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(mount, list))
        .routes(routes!(unmount))
}

fn record(recorded: Recorded) -> api::Mount {
    let mount = recorded.mount;
    api::Mount {
        volume_id: mount.volume.0,
        name: recorded.name,
        vm_id: recorded.vm_id.0,
        mount_path: mount.path,
        mode: if mount.read_only { "ro" } else { "rw" }.to_owned(),
        checkpoint_id: mount.checkpoint.map(|id| id.0),
        status: recorded.status,
    }
}

/// Mounts a volume in a VM that runs. It is visible in there when the answer comes. The volume is named by its id, or by its
/// name, and then made where it is missing and that is asked for.
#[utoipa::path(
    post, path = "/v1/vms/{vm_id}/volumes", tag = "volume", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "The VM's id"), WaitQuery),
    request_body = api::VolumeOfVm,
    responses(
        (status = 200, description = "It is mounted, or with `wait=false` is being mounted", body = api::Mount),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The VM does not let the path be mounted on, or the account's space does not suffice for a volume that is to be made", body = ErrorBody),
        (status = 404, description = "No such VM, volume or checkpoint", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM does not run, the path is taken, or another mount writes the volume", body = ErrorBody),
        (status = 413, description = "The body is over the limit, or the disks are full", body = ErrorBody),
        (status = 422, description = "A field is wrong, or the path does not serve", body = ErrorBody),
        (status = 429, description = "The account has as many volumes as it may have", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn mount(
    State(platform): State<Platform>,
    caller: Caller,
    Id(vm_id): Id,
    QueryOf(query): QueryOf<WaitQuery>,
    JsonBody { value: request, .. }: JsonBody<api::VolumeOfVm>,
) -> Result<Json<api::Mount>, Problem> {
    let vm = vms::find(&platform, caller, &vm_id).await?;
    let wait = query.wait.unwrap_or(true);
    let recorded = service::mount(&platform, &vm, request, wait).await?;
    Ok(Json(record(recorded)))
}

/// The volumes of a VM, by path.
#[utoipa::path(
    get, path = "/v1/vms/{vm_id}/volumes", tag = "volume", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "The VM's id")),
    responses(
        (status = 200, description = "The mounts", body = Vec<api::Mount>),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
    ),
)]
async fn list(
    State(platform): State<Platform>,
    caller: Caller,
    Id(vm_id): Id,
) -> Result<Json<Vec<api::Mount>>, Problem> {
    let vm = vms::find(&platform, caller, &vm_id).await?;
    let mounts = service::list(&platform, &vm).await?;
    Ok(Json(mounts.into_iter().map(record).collect()))
}

/// Takes a volume out of a VM that runs.
#[utoipa::path(
    delete, path = "/v1/vms/{vm_id}/volumes/{volume_id}", tag = "volume", security(("api_key" = [])),
    params(
        ("vm_id" = String, Path, description = "The VM's id"),
        ("volume_id" = String, Path, description = "The volume's id"),
        api::UnmountQuery,
    ),
    responses(
        (status = 200, description = "It is gone from there, or with `wait=false` is being taken out", body = api::Unmounted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM, or it does not have the volume there", body = ErrorBody),
        (status = 409, description = "The VM does not run, or something in it uses the volume", body = ErrorBody),
        (status = 422, description = "The path is wrong, or is missing where the VM has the volume more than once", body = ErrorBody),
    ),
)]
async fn unmount(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(vm_id, volume): Ids,
    QueryOf(query): QueryOf<api::UnmountQuery>,
) -> Result<Json<api::Unmounted>, Problem> {
    let vm = vms::find(&platform, caller, &vm_id).await?;
    let wait = query.wait.unwrap_or(true);
    let path = query.mount_path.as_deref();
    let recorded = service::unmount(&platform, &vm, &volume, path, wait).await?;
    Ok(Json(api::Unmounted {
        status: if wait { "unmounted" } else { "unmounting" }.to_owned(),
        vm_id: recorded.vm_id.0,
        volume_id: recorded.mount.volume.0,
        mount_path: recorded.mount.path,
    }))
}
