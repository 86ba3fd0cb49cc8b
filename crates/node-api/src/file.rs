//! Streams of bytes in and out of a VM.

use bytes::Bytes;
use futures::stream::BoxStream;

/// Bytes as they come. An error from the caller's side is [`crate::NodeError::Caller`] or
/// [`crate::NodeError::CallerGone`].
pub type ByteStream = BoxStream<'static, Result<Bytes, crate::NodeError>>;

/// A file of a VM, opened for reading.
pub struct FileContent {
    /// Its size in bytes when it was opened; the stream yields exactly so many, or an error.
    pub size: u64,
    /// Its content.
    pub stream: ByteStream,
}

impl std::fmt::Debug for FileContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileContent")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
