//! Files of a session's VM.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The parts of an upload, in this order.
#[derive(Debug, ToSchema)]
pub struct Upload {
    /// Where the file goes; relative to `/app`.
    pub remote_path: String,
    /// A UUID.
    pub session_id: String,
    /// `true`: a tar, tar.gz or zip file is unpacked into `remote_path`.
    pub recursive: Option<String>,
    /// The content. The part's file name does not matter.
    #[schema(value_type = String, format = Binary)]
    pub file: Vec<u8>,
}

/// A file was written.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Uploaded {
    /// Always `uploaded`.
    pub status: String,
    /// As it was asked for.
    pub remote_path: String,
    /// A UUID.
    pub session_id: String,
    /// Bytes received.
    pub size: u64,
    /// The file was an archive, and its content was unpacked.
    pub unpacked: bool,
}

/// Asks for a file.
#[derive(Debug, Deserialize, ToSchema)]
pub struct Download {
    /// The path in the VM; relative to `/app`.
    pub filename: String,
    /// A UUID.
    pub session_id: String,
}

/// A file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Downloaded {
    /// As it was asked for.
    pub filename: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its content in base64; a single line feed when it is empty.
    pub content: String,
}
