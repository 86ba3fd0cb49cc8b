//! Images: the read-only root file systems that VMs start from.
//!
//! An image is one tar file with its description beside it, kept once per host by digest and found by name. See
//! [`ImageStore`] for the operations; all of them block, and belong on a thread of their own.

mod archive;
mod debian;
mod debian_sources;
mod error;
mod host;
mod lock;
pub mod oci;
mod pack;
mod process;
mod store;

pub use error::ImageError;
pub use store::{DEFAULT_IMAGE, ImageStore};

use std::path::PathBuf;
use std::time::SystemTime;

/// Where an image's content came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Packages of Debian 12, installed into an empty directory.
    Debian,
    /// A copy of this host's `/usr` with a generated `/etc`.
    Host,
}

impl Source {
    /// The word that names it on the command line and in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Debian => "debian",
            Source::Host => "host",
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An image that is complete and on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The name it was found by.
    pub name: String,
    /// `sha256:` and the digest of its tar file.
    pub digest: String,
    /// Where its content came from.
    pub source: Source,
    /// Size of its tar file in bytes.
    pub size_bytes: u64,
    /// When it was built.
    pub created: SystemTime,
    /// Its tar file.
    pub path: PathBuf,
}

#[cfg(test)]
mod tests;
