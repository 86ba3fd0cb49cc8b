//! `/v1/volumes*`.

use super::files;
use super::service::{self, Status, Volume};
use crate::Platform;
use crate::body::{JsonBody, announces_more_than, drain, impatient};
use crate::bounds;
use crate::clock::Moment;
use crate::error::{Kind, Problem};
use crate::extract::{Caller, Id, QueryOf};
use crate::file::routes::{DRAIN_TIME, FRAME_LIMIT};
use crate::file::service::{check_path, too_large};
use crate::idempotency::{Attempt, Repeatable, once};
use axum::Json;
use axum::extract::multipart::Multipart;
use axum::extract::{FromRequest, Request, State};
use axum::response::Response;
use instavm_api::ErrorBody;
use instavm_api::volume as api;
use instavm_node_api::VolumeId;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show, update, delete))
        .routes(routes!(upload))
        .routes(routes!(download))
        .routes(routes!(list_files, delete_file))
}

/// A volume as the wire shows it, beside the account's mounts.
fn record(volume: Volume, mounted: &[(String, String)]) -> api::Volume {
    let mounted_by: Vec<String> = mounted
        .iter()
        .filter(|(id, _)| *id == volume.id.0)
        .map(|(_, vm)| vm.clone())
        .collect();
    let status = match volume.status {
        Status::Available if !mounted_by.is_empty() => "in_use",
        status => status.as_str(),
    };
    api::Volume {
        volume_id: volume.id.0.clone(),
        id: volume.id.0,
        name: volume.name,
        status: status.to_owned(),
        quota_bytes: volume.quota_bytes,
        used_bytes: volume.used_bytes,
        charged_bytes: volume.charged_bytes,
        measured_at: volume.measured_at.map(Moment::iso),
        mounted_by,
        created_at: volume.created_at.iso(),
        updated_at: volume.updated_at.iso(),
    }
}

/// Makes a volume.
#[utoipa::path(
    post, path = "/v1/volumes", tag = "volume", security(("api_key" = [])), request_body = api::CreateVolume,
    params(("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once")),
    responses(
        (status = 200, description = "The volume", body = api::Volume),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The account's space does not suffice", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The account has a volume of this name, or the same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit, or the disks are full", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many volumes as it may have", body = ErrorBody),
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
    }: JsonBody<api::CreateVolume>,
) -> Result<Json<api::Volume>, Problem> {
    let account_id = caller.account_id;
    let quota = service::checked_quota(&platform, "quota_bytes", request.quota_bytes)?;
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        let id = VolumeId(attempt.nonce.id("vol_", 0));
        if attempt.is_repeated
            && let Ok(found) = service::find(&there, account_id, &id.0).await
        {
            return Ok(record(found, &[]));
        }
        let volume = service::create(&there, account_id, id, &request.name, quota).await?;
        Ok(record(volume, &[]))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

/// The account's volumes, oldest first.
#[utoipa::path(
    get, path = "/v1/volumes", tag = "volume", security(("api_key" = [])), params(api::VolumeQuery),
    responses(
        (status = 200, description = "The volumes", body = Vec<api::Volume>),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 422, description = "The query is wrong", body = ErrorBody),
    ),
)]
async fn list(
    State(platform): State<Platform>,
    caller: Caller,
    QueryOf(query): QueryOf<api::VolumeQuery>,
) -> Result<Json<Vec<api::Volume>>, Problem> {
    let account_id = caller.account_id;
    let refresh = query.refresh_usage.unwrap_or(false);
    let volumes = service::list(&platform, account_id, refresh).await?;
    let mounted = service::mounted_by(&platform, account_id).await?;
    let volumes = volumes.into_iter();
    Ok(Json(
        volumes.map(|volume| record(volume, &mounted)).collect(),
    ))
}

/// A volume.
#[utoipa::path(
    get, path = "/v1/volumes/{volume_id}", tag = "volume", security(("api_key" = [])),
    params(("volume_id" = String, Path, description = "Its id"), api::VolumeQuery),
    responses(
        (status = 200, description = "The volume", body = api::Volume),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 422, description = "The query is wrong", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    QueryOf(query): QueryOf<api::VolumeQuery>,
) -> Result<Json<api::Volume>, Problem> {
    let mut volume = service::find(&platform, caller.account_id, &id).await?;
    if query.refresh_usage.unwrap_or(false) {
        volume = service::refreshed(&platform, volume).await?;
    }
    let mounted = service::mounted_by(&platform, caller.account_id).await?;
    Ok(Json(record(volume, &mounted)))
}

/// Renames a volume, makes it larger, or smaller down to what it holds.
#[utoipa::path(
    patch, path = "/v1/volumes/{volume_id}", tag = "volume", security(("api_key" = [])),
    params(("volume_id" = String, Path, description = "Its id")), request_body = api::UpdateVolume,
    responses(
        (status = 200, description = "The volume", body = api::Volume),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The account's space does not suffice", body = ErrorBody),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "It holds more than that, the name is taken, or it cannot be used", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn update(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::UpdateVolume>,
) -> Result<Json<api::Volume>, Problem> {
    let account_id = caller.account_id;
    let quota = match request.quota_bytes {
        None => None,
        given => Some(service::checked_quota(&platform, "quota_bytes", given)?),
    };
    let volume = service::update(&platform, account_id, &id, request.name, quota).await?;
    let mounted = service::mounted_by(&platform, account_id).await?;
    Ok(Json(record(volume, &mounted)))
}

/// Deletes a volume that no VM has mounted, with its checkpoints.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume_id}", tag = "volume", security(("api_key" = [])),
    params(("volume_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is gone", body = api::VolumeDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 409, description = "VMs have it mounted", body = ErrorBody),
    ),
)]
async fn delete(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::VolumeDeleted>, Problem> {
    let is_gone = service::delete(&platform, caller.account_id, &id).await?;
    Ok(Json(api::VolumeDeleted {
        status: if is_gone { "deleted" } else { "deleting" }.to_owned(),
        id,
    }))
}

/// Writes a file into a volume, creating its parent directories. The old content stays until the new is whole.
#[utoipa::path(
    post, path = "/v1/volumes/{volume_id}/files/upload", tag = "volume", security(("api_key" = [])),
    description = "Writes a file into a volume, creating its parent directories. The old content stays until the new is \
        whole. The parts `path` and `overwrite` come before `file`, in any order.",
    params(("volume_id" = String, Path, description = "The volume's id")),
    request_body(content = api::UploadVolumeFile, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The file is there", body = api::VolumeFileUploaded),
        (status = 400, description = "No multipart body, or it broke off", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The path cannot be written", body = ErrorBody),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 409, description = "The file is there and `overwrite` is not `true`, or the volume cannot be used", body = ErrorBody),
        (status = 413, description = "The file is over the limit, or the volume's quota is reached", body = ErrorBody),
        (status = 422, description = "A part is missing or wrong, or the path leads out of the volume", body = ErrorBody),
    ),
)]
async fn upload(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    request: Request,
) -> Result<Json<api::VolumeFileUploaded>, Problem> {
    let limit = platform.settings.upload_limit;
    if announces_more_than(request.headers(), limit.saturating_add(FRAME_LIMIT)) {
        drain(request.into_body().into_data_stream()).await;
        return Err(too_large(limit));
    }
    let request = impatient(request, platform.settings.body_idle);
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|error| Problem::new(Kind::Malformed, error.body_text()))?;
    let result = files::receive(&platform, caller.account_id, &id, &mut parts).await;
    if result.is_err() {
        // Either way the answer follows.
        let rest = async { while let Ok(Some(_)) = parts.next_field().await {} };
        let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
    }
    result.map(Json)
}

/// A file of a volume, in base64. The answer is written while the file is read.
#[utoipa::path(
    post, path = "/v1/volumes/{volume_id}/files/download", tag = "volume", security(("api_key" = [])),
    params(("volume_id" = String, Path, description = "The volume's id")), request_body = api::DownloadVolumeFile,
    responses(
        (status = 200, description = "The file", body = api::VolumeFileDownloaded),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The file cannot be read", body = ErrorBody),
        (status = 404, description = "No such volume or file", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The volume cannot be used", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "The path is no regular file, or leads out of the volume", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn download(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::DownloadVolumeFile>,
) -> Result<Response, Problem> {
    files::send(&platform, caller.account_id, &id, &request.path).await
}

/// The files of a volume, by path.
#[utoipa::path(
    get, path = "/v1/volumes/{volume_id}/files", tag = "volume", security(("api_key" = [])),
    params(("volume_id" = String, Path, description = "The volume's id"), api::ListVolumeFilesQuery),
    responses(
        (status = 200, description = "The files", body = Vec<api::VolumeFile>),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The path cannot be read", body = ErrorBody),
        (status = 404, description = "No such volume", body = ErrorBody),
        (status = 409, description = "The volume cannot be used", body = ErrorBody),
        (status = 422, description = "The query is wrong, or the prefix leads out of the volume", body = ErrorBody),
    ),
)]
async fn list_files(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    QueryOf(query): QueryOf<api::ListVolumeFilesQuery>,
) -> Result<Json<Vec<api::VolumeFile>>, Problem> {
    let limit = bounds::number("limit", query.limit, 1_000, &(1..=10_000))?;
    let prefix = query.prefix.unwrap_or_default();
    if !prefix.is_empty() {
        check_path("prefix", &prefix)?;
    }
    let volume = service::available(&platform, caller.account_id, &id).await?;
    let recursive = query.recursive.unwrap_or(true);
    let files = platform
        .node
        .list_volume_files(&volume.id, &prefix, recursive, limit as usize)
        .await?;
    let files = files.into_iter().map(|file| api::VolumeFile {
        path: file.path,
        size: file.size,
        is_dir: file.is_dir,
        modified_at: Moment::from(file.modified_at).iso(),
    });
    Ok(Json(files.collect()))
}

/// Deletes a file of a volume, or a directory with everything in it.
#[utoipa::path(
    delete, path = "/v1/volumes/{volume_id}/files", tag = "volume", security(("api_key" = [])),
    params(("volume_id" = String, Path, description = "The volume's id"), api::VolumeFileQuery),
    responses(
        (status = 200, description = "It is gone", body = api::VolumeFileDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The path cannot be written", body = ErrorBody),
        (status = 404, description = "No such volume or file", body = ErrorBody),
        (status = 409, description = "The volume cannot be used", body = ErrorBody),
        (status = 422, description = "The path is missing, or leads out of the volume", body = ErrorBody),
    ),
)]
async fn delete_file(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    QueryOf(query): QueryOf<api::VolumeFileQuery>,
) -> Result<Json<api::VolumeFileDeleted>, Problem> {
    check_path("path", &query.path)?;
    let volume = service::available(&platform, caller.account_id, &id).await?;
    platform
        .node
        .remove_volume_file(&volume.id, &query.path)
        .await?;
    Ok(Json(api::VolumeFileDeleted {
        status: "deleted".to_owned(),
        volume_id: volume.id.0,
        path: query.path,
    }))
}
