//! `/upload` and `/download`.

use super::service::{self, Target};
use crate::Platform;
use crate::body::{FormBody, announces_more_than, drain, impatient};
use crate::error::{Kind, Problem};
use crate::extract::Caller;
use crate::session::service as sessions;
use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart};
use axum::extract::{FromRequest, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use instavm_api::ErrorBody;
use instavm_api::file as api;
use std::io;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Bytes of a text part.
const TEXT_LIMIT: usize = 16 << 10;
/// Bytes that the parts of an upload may have beside the file.
pub(crate) const FRAME_LIMIT: u64 = 1 << 20;
/// How long the rest of a refused upload is read, so that its sender gets to see the answer.
pub(crate) const DRAIN_TIME: Duration = Duration::from_secs(10);

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(upload))
        .routes(routes!(download))
}

/// Writes a file into the session's VM, creating its parent directories. The old content stays until the new is whole.
#[utoipa::path(
    post, path = "/upload", tag = "file", security(("api_key" = [])),
    request_body(content = api::Upload, content_type = "multipart/form-data"),
    description = "Writes a file into the session's VM, creating its parent directories. The old content stays until \
        the new is whole. The parts `remote_path` and `session_id` come before `file`. A session whose VM has expired \
        gets a new VM first.",
    responses(
        (status = 200, description = "The file is there", body = api::Uploaded),
        (status = 400, description = "No multipart body, or it broke off", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The path cannot be written", body = ErrorBody),
        (status = 404, description = "No such session, or it was killed", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile, or has run out of something", body = ErrorBody),
        (status = 413, description = "The file is over the limit, or the VM's disk is full", body = ErrorBody),
        (status = 422, description = "A part is missing or wrong, or the path is a directory", body = ErrorBody),
        (status = 429, description = "The account has as many VMs as it may have", body = ErrorBody),
        (status = 503, description = "The node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "A new VM was not ready in time", body = ErrorBody),
    ),
)]
async fn upload(
    State(platform): State<Platform>,
    caller: Caller,
    request: Request,
) -> Result<Json<api::Uploaded>, Problem> {
    let limit = platform.settings.upload_limit;
    if announces_more_than(request.headers(), limit.saturating_add(FRAME_LIMIT)) {
        drain(request.into_body().into_data_stream()).await;
        return Err(service::too_large(limit));
    }
    let request = impatient(request, platform.settings.body_idle);
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|error| Problem::new(Kind::Malformed, error.body_text()))?;
    let result = receive(&platform, caller, &mut parts).await;
    if result.is_err() {
        // Either way the answer follows.
        let rest = async { while let Ok(Some(_)) = parts.next_field().await {} };
        let _ = tokio::time::timeout(DRAIN_TIME, rest).await;
    }
    result.map(Json)
}

async fn receive(
    platform: &Platform,
    caller: Caller,
    parts: &mut Multipart,
) -> Result<api::Uploaded, Problem> {
    let (mut remote_path, mut session_id, mut unpack) = (None, None, false);
    let mut uploaded = None;
    while let Some(field) = parts.next_field().await.map_err(|_| broken())? {
        match field.name() {
            Some("remote_path") => remote_path = Some(text("remote_path", field).await?),
            Some("session_id") => session_id = Some(text("session_id", field).await?),
            Some("recursive") => unpack = flag("recursive", &text("recursive", field).await?)?,
            Some("file") if uploaded.is_none() => {
                let path = remote_path.take().ok_or_else(|| missing("remote_path"))?;
                let session_id = session_id.take().ok_or_else(|| missing("session_id"))?;
                let target = Target::new(path, unpack)?;
                let session = sessions::find(platform, caller.account_id, &session_id).await?;
                let vm = sessions::usable_vm(platform, &session).await?;
                let received = service::receive(platform, &vm.id, &target, chunks(field)).await?;
                uploaded = Some(api::Uploaded {
                    status: "uploaded".to_owned(),
                    remote_path: target.path,
                    session_id: session.id.clone(),
                    size: received.size,
                    unpacked: received.unpacked,
                });
            }
            _ => {}
        }
    }
    uploaded.ok_or_else(|| Problem::invalid("file", "the part is missing"))
}

fn missing(name: &str) -> Problem {
    Problem::invalid(
        name,
        "the part is missing; it must come before the part file",
    )
}

pub(crate) fn broken() -> Problem {
    Problem::new(
        Kind::Malformed,
        "the multipart body is malformed, broke off, or paused for too long",
    )
}

/// A short text part.
pub(crate) async fn text(name: &str, mut field: Field<'_>) -> Result<String, Problem> {
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(|_| broken())? {
        if bytes.len() + chunk.len() > TEXT_LIMIT {
            return Err(Problem::invalid(
                name,
                format!("has more than {TEXT_LIMIT} bytes"),
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    String::from_utf8(bytes).map_err(|_| Problem::invalid(name, "is not UTF-8"))
}

pub(crate) fn flag(name: &str, text: &str) -> Result<bool, Problem> {
    match text.trim() {
        "true" | "True" | "1" => Ok(true),
        "false" | "False" | "0" | "" => Ok(false),
        _ => Err(Problem::invalid(name, "must be true or false")),
    }
}

pub(crate) fn chunks(field: Field<'_>) -> impl Stream<Item = io::Result<Bytes>> + '_ {
    field.map(|chunk| chunk.map_err(io::Error::other))
}

/// A file of the session's VM, in base64. The answer is written while the file is read.
#[utoipa::path(
    post, path = "/download", tag = "file", security(("api_key" = [])),
    request_body(content = api::Download, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "The file", body = api::Downloaded),
        (status = 400, description = "The body broke off", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The file cannot be read", body = ErrorBody),
        (status = 404, description = "No such session or file", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The session's VM does not run", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 415, description = "The body is not urlencoded", body = ErrorBody),
        (status = 422, description = "A field is missing, or the path is no regular file", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn download(
    State(platform): State<Platform>,
    caller: Caller,
    FormBody(request): FormBody<api::Download>,
) -> Result<Response, Problem> {
    service::check_path("filename", &request.filename)?;
    let session = sessions::find(&platform, caller.account_id, &request.session_id).await?;
    let vm = sessions::running_vm(&session)?;
    let file = platform.node.read_file(&vm.id, &request.filename).await?;
    let name = serde_json::to_string(&request.filename)
        .map_err(|error| Problem::internal("writing the answer", error))?;
    let head = format!(r#"{{"filename":{name},"size":{},"content":""#, file.size);
    // An empty text would make clients take the whole answer for the file.
    let head = if file.size == 0 {
        format!(r"{head}\n")
    } else {
        head
    };
    let tail = r#""}"#;
    let length = head.len() as u64 + service::encoded_length(file.size) + tail.len() as u64;
    let body = stream::iter([Ok(Bytes::from(head))])
        .chain(service::encoded(file.stream))
        .chain(stream::iter([Ok(Bytes::from_static(tail.as_bytes()))]));
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}
