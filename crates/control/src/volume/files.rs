//! Files of volumes: what comes is passed on, what goes is encoded as it is read.

use super::service;
use crate::Platform;
use crate::error::{Kind, Problem};
use crate::file::routes::{broken, chunks, flag, text};
use crate::file::service::{self as file_service, check_path, encoded, encoded_length};
use axum::body::Body;
use axum::extract::multipart::Multipart;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use instavm_api::volume as api;
use instavm_node_api::NodeError;

/// Takes an upload in: its text parts in any order, then the file.
pub(super) async fn receive(
    platform: &Platform,
    account_id: i64,
    id: &str,
    parts: &mut Multipart,
) -> Result<api::VolumeFileUploaded, Problem> {
    let volume = service::available(platform, account_id, id).await?;
    let (mut path, mut overwrite) = (None, false);
    let mut uploaded = None;
    while let Some(field) = parts.next_field().await.map_err(|_| broken())? {
        match field.name() {
            Some("path") => path = Some(text("path", field).await?),
            Some("overwrite") => overwrite = flag("overwrite", &text("overwrite", field).await?)?,
            Some("file") if uploaded.is_none() => {
                let path = path.take().ok_or_else(|| {
                    Problem::invalid(
                        "path",
                        "the part is missing; it must come before the part file",
                    )
                })?;
                check_path("path", &path)?;
                let limit = platform.settings.upload_limit;
                let (node, volume) = (&platform.node, &volume.id);
                let size = file_service::pass_on(limit, Bytes::new(), chunks(field), |content| {
                    node.write_volume_file(volume, &path, overwrite, content)
                })
                .await
                .map_err(gone)?;
                uploaded = Some(api::VolumeFileUploaded {
                    status: "uploaded".to_owned(),
                    volume_id: volume.0.clone(),
                    path,
                    size,
                });
            }
            _ => {}
        }
    }
    uploaded.ok_or_else(|| Problem::invalid("file", "the part is missing"))
}

fn gone(error: file_service::Refused) -> Problem {
    match error {
        file_service::Refused::TooLong(limit) => file_service::too_large(limit),
        file_service::Refused::ByNode(NodeError::NoSuchVolume) => {
            Problem::new(Kind::NotFound, "volume not found: it was deleted meanwhile")
        }
        file_service::Refused::ByNode(error) => error.into(),
    }
}

/// A file in base64, as JSON that is written while the file is read.
pub(super) async fn send(
    platform: &Platform,
    account_id: i64,
    id: &str,
    path: &str,
) -> Result<Response, Problem> {
    check_path("path", path)?;
    let volume = service::available(platform, account_id, id).await?;
    let file = platform.node.read_volume_file(&volume.id, path).await?;
    let name = path.rsplit('/').next().unwrap_or(path);
    let quoted = |text: &str| {
        serde_json::to_string(text).map_err(|error| Problem::internal("writing the answer", error))
    };
    let head = format!(
        r#"{{"path":{},"filename":{},"size":{},"content":""#,
        quoted(path)?,
        quoted(name)?,
        file.size
    );
    let tail = r#""}"#;
    let length = head.len() as u64 + encoded_length(file.size) + tail.len() as u64;
    let body = stream::iter([Ok(Bytes::from(head))])
        .chain(encoded(file.stream))
        .chain(stream::iter([Ok(Bytes::from_static(tail.as_bytes()))]));
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
    ];
    Ok((headers, Body::from_stream(body)).into_response())
}
