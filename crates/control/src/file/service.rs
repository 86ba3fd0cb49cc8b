//! The rules of files: what a path may be, limits, archives.

use super::archive::{self, Archive, HEAD};
use crate::Platform;
use crate::error::{Kind, Problem};
use crate::vm::service::random_id;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use instavm_node_api::{ByteStream, NodeError, VmId};
use std::io;
use std::pin::{Pin, pin};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// The longest path that Linux takes.
const PATH_LIMIT: usize = 4_095;
/// Pieces of a file that are on their way to the node.
const PIECES: usize = 4;

/// Where an upload goes.
#[derive(Debug)]
pub(crate) struct Target {
    pub path: String,
    unpack: bool,
}

impl Target {
    pub(crate) fn new(path: String, unpack: bool) -> Result<Target, Problem> {
        check_path("remote_path", &path)?;
        Ok(Target { path, unpack })
    }
}

/// What came of an upload.
#[derive(Debug)]
pub(crate) struct Received {
    pub size: u64,
    pub unpacked: bool,
}

/// 422 for what cannot be a path.
pub(crate) fn check_path(field: &str, path: &str) -> Result<(), Problem> {
    if path.is_empty() {
        return Err(Problem::invalid(field, "must not be empty"));
    }
    if path.contains('\0') {
        return Err(Problem::invalid(field, "must not hold NUL"));
    }
    if path.len() > PATH_LIMIT {
        return Err(Problem::invalid(
            field,
            format!("has {} bytes and the limit is {PATH_LIMIT}", path.len()),
        ));
    }
    Ok(())
}

pub(crate) fn too_large(limit: u64) -> Problem {
    Problem::new(
        Kind::TooLarge,
        format!("file: has more than {limit} bytes, which is the limit"),
    )
}

/// Writes what comes to the target, or unpacks it there.
pub(crate) async fn receive<S>(
    platform: &Platform,
    vm: &VmId,
    target: &Target,
    content: S,
) -> Result<Received, Problem>
where
    S: Stream<Item = io::Result<Bytes>>,
{
    let mut content = pin!(content);
    if !target.unpack {
        let size = write(platform, vm, &target.path, Bytes::new(), content).await?;
        return Ok(Received {
            size,
            unpacked: false,
        });
    }
    let head = head(&mut content).await?;
    let Some(archive) = Archive::recognise(&head) else {
        let size = write(platform, vm, &target.path, head, content).await?;
        return Ok(Received {
            size,
            unpacked: false,
        });
    };
    let parked = format!("/tmp/.upload-{}", random_id(20));
    let size = write(platform, vm, &parked, head, content).await?;
    archive::unpack(platform, vm, archive, &parked, &target.path).await?;
    Ok(Received {
        size,
        unpacked: true,
    })
}

async fn head<S>(content: &mut Pin<&mut S>) -> Result<Bytes, Problem>
where
    S: Stream<Item = io::Result<Bytes>>,
{
    let mut head = BytesMut::new();
    while head.len() < HEAD {
        match content.next().await {
            Some(Ok(chunk)) => head.extend_from_slice(&chunk),
            Some(Err(_)) => return Err(NodeError::CallerGone.into()),
            None => break,
        }
    }
    Ok(head.freeze())
}

async fn write<S>(
    platform: &Platform,
    vm: &VmId,
    path: &str,
    head: Bytes,
    content: Pin<&mut S>,
) -> Result<u64, Problem>
where
    S: Stream<Item = io::Result<Bytes>>,
{
    let limit = platform.settings.upload_limit;
    let written = pass_on(limit, head, content, |content| {
        platform.node.write_file(vm, path, content)
    });
    written.await.map_err(|refused| match refused {
        Refused::TooLong(limit) => too_large(limit),
        Refused::ByNode(NodeError::NoSuchVm) => {
            Problem::new(Kind::Conflict, "the VM ended while this was under way")
        }
        Refused::ByNode(error) => error.into(),
    })
}

/// Why content was not taken.
pub(crate) enum Refused {
    /// It is longer than this.
    TooLong(u64),
    /// The node says why.
    ByNode(NodeError),
}

/// Passes content on to the node while it comes.
pub(crate) async fn pass_on<S, Writing>(
    limit: u64,
    head: Bytes,
    content: S,
    write: impl FnOnce(ByteStream) -> Writing,
) -> Result<u64, Refused>
where
    S: Stream<Item = io::Result<Bytes>>,
    Writing: Future<Output = Result<u64, NodeError>>,
{
    let content = pin!(content);
    let (sender, receiver) = mpsc::channel(PIECES);
    let mut pump = pin!(pump(head, content, limit, sender));
    let mut write = pin!(write(ReceiverStream::new(receiver).boxed()));
    let written = tokio::select! {
        written = &mut write => written,
        () = &mut pump => write.await,
    };
    written.map_err(|error| match error {
        NodeError::Caller(_) => Refused::TooLong(limit),
        error => Refused::ByNode(error),
    })
}

/// Passes the content on, until its end, its limit, or the node's refusal (which is then the node's answer).
async fn pump<S>(
    head: Bytes,
    content: Pin<&mut S>,
    limit: u64,
    sender: mpsc::Sender<Result<Bytes, NodeError>>,
) where
    S: Stream<Item = io::Result<Bytes>>,
{
    let mut received = 0u64;
    let mut content = stream::iter([Ok(head)]).chain(content);
    while let Some(chunk) = content.next().await {
        let piece = match chunk {
            Ok(chunk) => {
                received += chunk.len() as u64;
                if received > limit {
                    Err(NodeError::Caller(io::Error::other("over the limit")))
                } else if chunk.is_empty() {
                    continue;
                } else {
                    Ok(chunk)
                }
            }
            Err(_) => Err(NodeError::CallerGone),
        };
        let last = piece.is_err();
        if sender.send(piece).await.is_err() || last {
            return;
        }
    }
}

/// How long so many bytes are in base64.
pub(crate) fn encoded_length(size: u64) -> u64 {
    size.div_ceil(3).saturating_mul(4)
}

/// Bytes in base64, as they come.
pub(crate) fn encoded(content: ByteStream) -> impl Stream<Item = Result<Bytes, NodeError>> {
    let rest = Vec::new();
    stream::try_unfold(Some((content, rest)), |state| async move {
        let Some((mut content, mut rest)) = state else {
            return Ok(None);
        };
        match content.try_next().await? {
            Some(chunk) => {
                rest.extend_from_slice(&chunk);
                let whole = rest.len() / 3 * 3;
                let text = STANDARD.encode(&rest[..whole]);
                rest.drain(..whole);
                Ok(Some((Bytes::from(text), Some((content, rest)))))
            }
            None => Ok(Some((Bytes::from(STANDARD.encode(&rest)), None))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn base64_of_pieces_is_base64_of_the_whole() {
        let whole: Vec<u8> = (0..=255u8).cycle().take(1_000).collect();
        for size in [1, 2, 3, 7, 64, 1_000] {
            let pieces: Vec<_> = whole
                .chunks(size)
                .map(|piece| Ok(Bytes::copy_from_slice(piece)))
                .collect();
            let text: Vec<Bytes> = encoded(stream::iter(pieces).boxed())
                .try_collect()
                .await
                .unwrap();
            let text = text.concat();
            assert_eq!(text, STANDARD.encode(&whole).as_bytes());
            assert_eq!(text.len() as u64, encoded_length(1_000));
        }
    }
}
