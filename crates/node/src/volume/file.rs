//! Files of volumes, streamed both ways. Each piece is one short turn of a blocking thread, so a peer that is slow or
//! gone holds none of them.

use crate::blocking::{blocking, internal};
use bytes::Bytes;
use futures::StreamExt;
use instavm_node_api::{ByteStream, FileContent, FileErrorKind, NodeError, VolumeFile, VolumeId};
use instavm_runtime::disk::{DiskPool, VolumeFileError, VolumeFiles, VolumeWriter};
use std::io::Read;

const READING: &str = "reading a file of a volume";
const WRITING: &str = "writing a file of a volume";
const LISTING: &str = "listing the files of a volume";
const REMOVING: &str = "deleting a file of a volume";
/// Bytes that are read at once: what a transfer holds in memory.
const PIECE: usize = 256 << 10;

/// Runs something on the files of a volume.
async fn on_files<T: Send + 'static>(
    disks: &DiskPool,
    volume: &VolumeId,
    operation: &'static str,
    work: impl FnOnce(&VolumeFiles) -> Result<T, VolumeFileError> + Send + 'static,
) -> Result<T, NodeError> {
    let root = disks.volume_path(&volume.0);
    blocking(operation, move || {
        if !root.is_dir() {
            return Err(NodeError::NoSuchVolume);
        }
        let run = || work(&VolumeFiles::of(&root)?);
        run().map_err(|error| file_error(operation, error))
    })
    .await
}

fn file_error(operation: &'static str, error: VolumeFileError) -> NodeError {
    let kind = match &error {
        VolumeFileError::NotFound { .. } => FileErrorKind::NotFound,
        VolumeFileError::Unsuitable { .. } => FileErrorKind::Unsuitable,
        VolumeFileError::Exists { .. } => FileErrorKind::Exists,
        VolumeFileError::NoSpace { .. } => FileErrorKind::NoSpace,
        VolumeFileError::Denied { .. } => FileErrorKind::Denied,
        VolumeFileError::Io { .. } => return internal(operation, error),
    };
    NodeError::File {
        kind,
        message: error.to_string(),
    }
}

/// Opens a file for reading.
pub(super) async fn read(
    disks: &DiskPool,
    volume: &VolumeId,
    path: &str,
) -> Result<FileContent, NodeError> {
    let name = path.to_owned();
    let (file, size) = on_files(disks, volume, READING, move |files| files.open(&name)).await?;
    let path = path.to_owned();
    let stream = futures::stream::try_unfold((file, size), move |(file, left)| {
        let path = path.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let (file, piece) = blocking(READING, move || piece_of(file, left, &path)).await?;
            let left = left.saturating_sub(piece.len() as u64);
            Ok(Some((piece, (file, left))))
        }
    });
    Ok(FileContent {
        size,
        stream: stream.boxed(),
    })
}

fn piece_of(
    mut file: std::fs::File,
    left: u64,
    path: &str,
) -> Result<(std::fs::File, Bytes), NodeError> {
    let length = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
    let mut piece = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read(&mut piece[filled..]) {
            Ok(0) => {
                return Err(NodeError::File {
                    kind: FileErrorKind::Unsuitable,
                    message: format!("{path}: the file became shorter while it was read"),
                });
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(internal(READING, error)),
        }
    }
    Ok((file, piece.into()))
}

/// Writes a file; returns its size. Whatever breaks off before the end leaves the old content.
pub(super) async fn write(
    disks: &DiskPool,
    volume: &VolumeId,
    path: &str,
    overwrite: bool,
    mut content: ByteStream,
) -> Result<u64, NodeError> {
    let name = path.to_owned();
    let begin = move |files: &VolumeFiles| files.writer(&name, overwrite);
    let mut writer: VolumeWriter = on_files(disks, volume, WRITING, begin).await?;
    while let Some(bytes) = content.next().await {
        let bytes = bytes?;
        writer = blocking(WRITING, move || {
            writer
                .write(&bytes)
                .map_err(|error| file_error(WRITING, error))?;
            Ok(writer)
        })
        .await?;
    }
    blocking(WRITING, move || {
        writer.finish().map_err(|error| file_error(WRITING, error))
    })
    .await
}

/// The files whose path begins with `prefix`.
pub(super) async fn list(
    disks: &DiskPool,
    volume: &VolumeId,
    prefix: &str,
    recursive: bool,
    limit: usize,
) -> Result<Vec<VolumeFile>, NodeError> {
    let prefix = prefix.to_owned();
    let entries = on_files(disks, volume, LISTING, move |files| {
        files.list(&prefix, recursive, limit)
    })
    .await?;
    let file = |entry: instavm_runtime::disk::VolumeEntry| VolumeFile {
        path: entry.path,
        size: entry.size,
        is_dir: entry.is_dir,
        modified_at: entry.modified_at,
    };
    Ok(entries.into_iter().map(file).collect())
}

/// Deletes a file, or a folder with everything in it.
pub(super) async fn remove(
    disks: &DiskPool,
    volume: &VolumeId,
    path: &str,
) -> Result<(), NodeError> {
    let path = path.to_owned();
    on_files(disks, volume, REMOVING, move |files| files.remove(&path)).await
}
