//! Files of the session's VM.

use super::Client;
use super::worker::Worker;
use crate::{Result, Target, Uploaded};
use bytes::Bytes;
use futures::{Stream, stream};
use std::io::{self, Read};
use std::path::Path;

/// Bytes that are read at once.
const CHUNK: usize = 64 << 10;

impl Client {
    /// Sends a local file. Its content is never in memory as a whole.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn upload_file(
        &self,
        local: impl AsRef<Path>,
        remote: impl Into<Target>,
    ) -> Result<Uploaded> {
        let (local, remote) = (local.as_ref().to_owned(), remote.into());
        self.run(|client| async move { client.upload_file(local, remote).await })
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn upload_bytes(
        &self,
        content: impl Into<Bytes>,
        remote: impl Into<Target>,
    ) -> Result<Uploaded> {
        let (content, remote) = (content.into(), remote.into());
        self.run(|client| async move { client.upload_bytes(content, remote).await })
    }

    /// Sends what a reader yields, of any length. It is read once, so this call is never repeated.
    ///
    /// # Errors
    /// As [`crate::Client::upload_stream`].
    pub fn upload_reader(
        &self,
        content: impl Read + Send + 'static,
        remote: impl Into<Target>,
    ) -> Result<Uploaded> {
        let remote = remote.into();
        self.run(|client| async move { client.upload_stream(pieces(content), remote).await })
    }

    /// Opens a file of the VM for reading.
    ///
    /// # Errors
    /// As [`crate::Client::download_stream`].
    pub fn download_stream(&self, remote: &str) -> Result<Download> {
        let remote = remote.to_owned();
        let inner = self.run(|client| async move { client.download_stream(&remote).await })?;
        Ok(Download::new(inner, self.worker.clone()))
    }

    /// A file of the VM, in memory.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn download_bytes(&self, remote: &str) -> Result<Vec<u8>> {
        let remote = remote.to_owned();
        self.run(|client| async move { client.download_bytes(&remote).await })
    }

    /// Writes a file of the VM to a local path and returns its size.
    ///
    /// # Errors
    /// As the method of the same name of [`crate::Client`].
    pub fn download_file(&self, remote: &str, local: impl AsRef<Path>) -> Result<u64> {
        let (remote, local) = (remote.to_owned(), local.as_ref().to_owned());
        self.run(|client| async move { client.download_file(&remote, local).await })
    }
}

/// What a reader yields, read on threads that may block.
pub(super) fn pieces<R: Read + Send + 'static>(
    reader: R,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold(reader, |mut reader| async move {
        let read = move || {
            let mut piece = vec![0; CHUNK];
            let length = loop {
                match reader.read(&mut piece) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            piece.truncate(length);
            Ok((length > 0).then(|| (Bytes::from(piece), reader)))
        };
        tokio::task::spawn_blocking(read)
            .await
            .map_err(io::Error::other)?
    })
}

/// A file of a VM or a volume on its way, as a reader.
#[derive(Debug)]
pub struct Download {
    /// `None` at its end and after a failure.
    inner: Option<crate::Download>,
    worker: Worker,
    piece: Bytes,
}

impl Download {
    pub(super) fn new(inner: crate::Download, worker: Worker) -> Download {
        Download {
            inner: Some(inner),
            worker,
            piece: Bytes::new(),
        }
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty()
            && !buffer.is_empty()
            && let Some(mut inner) = self.inner.take()
        {
            let next = async move { Ok((inner.chunk().await?, inner)) };
            if let (Some(piece), inner) = self.worker.wait(next).map_err(io::Error::other)? {
                self.piece = piece;
                self.inner = Some(inner);
            }
        }
        let length = self.piece.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}
