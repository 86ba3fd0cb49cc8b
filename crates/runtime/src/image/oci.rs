//! Images from registries: pulled by digest, verified, and unpacked layer by layer into the pool.
//!
//! Blobs lie in `blobs_dir/sha256/<hex>`, shared by every image and every daemon of the host. A layer is an image of
//! the pool, named by its chain id, and made on a snapshot of the layer below it; so images that begin alike share what
//! they have in common, on the wire and on the disk.

mod address;
mod auth;
mod blob;
mod entry;
mod error;
mod finish;
mod flight;
mod layer;
mod manifest;
mod pin;
mod prune;
mod reference;
mod registry;
mod root;
mod store;
mod tree;
mod unpack;

pub use error::OciError;
pub use prune::OciPruned;
pub use reference::Reference;
pub use store::OciStore;

use crate::trust::TrustAnchors;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How images are pulled and kept.
#[derive(Clone, Debug)]
pub struct OciConfig {
    /// Where blobs are kept.
    pub blobs_dir: PathBuf,
    /// A file like docker's `config.json`, whose `auths` hold the credentials for registries.
    pub auth_file: Option<PathBuf>,
    /// PEM files with authorities that registries may be signed by, beside those that the host trusts.
    pub extra_ca: Vec<PathBuf>,
    /// Whether registries may have private, loopback and link-local addresses.
    pub private_registries: bool,
    /// Registries (`host` or `host:port`) that may be spoken to in plain HTTP, beside those on loopback addresses.
    pub plain_http: Vec<String>,
    /// The authorities that are added to the trust stores of images.
    pub anchors: TrustAnchors,
    /// What an image may take.
    pub limits: OciLimits,
}

impl OciConfig {
    /// The default configuration with its blobs in this folder.
    pub fn new(blobs_dir: impl Into<PathBuf>) -> Self {
        Self {
            blobs_dir: blobs_dir.into(),
            auth_file: None,
            extra_ca: Vec::new(),
            private_registries: true,
            plain_http: Vec::new(),
            anchors: TrustAnchors::default(),
            limits: OciLimits::default(),
        }
    }
}

/// What an image may take: of space, and of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OciLimits {
    /// Bytes of all its layers as they are sent.
    pub compressed_bytes: u64,
    /// Bytes of all its layers unpacked.
    pub unpacked_bytes: u64,
    /// Files, folders and links of all its layers.
    pub files: u64,
    /// How long a connection may take to be made.
    pub connect: Duration,
    /// How long a registry may send nothing.
    pub stall: Duration,
    /// How often a request is tried before its failure counts; a stream that is cut goes on where it was.
    pub attempts: u32,
    /// The pause before the second try; each further one is twice as long.
    pub pause: Duration,
}

impl Default for OciLimits {
    fn default() -> Self {
        Self {
            compressed_bytes: 16 << 30,
            unpacked_bytes: 32 << 30,
            files: 2_000_000,
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            attempts: 4,
            pause: Duration::from_millis(300),
        }
    }
}

/// How an image says that it wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OciRunConfig {
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Where processes start.
    pub workdir: Option<String>,
    /// Who they run as: `user`, `uid`, `user:group` or `uid:gid`.
    pub user: Option<String>,
    /// The words in front of the command.
    pub entrypoint: Vec<String>,
    /// The command.
    pub command: Vec<String>,
}

/// An image that is in the pool.
#[derive(Clone, Debug)]
pub struct OciImage {
    /// Its root file system: a read-only subvolume of the pool.
    pub root: PathBuf,
    /// The digest of its manifest for this machine's platform.
    pub digest: String,
    /// How it wants to be run.
    pub config: OciRunConfig,
    /// Nothing of it is pruned as long as this value lives.
    #[expect(dead_code, reason = "held for what its end does")]
    lease: Arc<pin::Lease>,
}

/// A step of [`OciStore::ensure`]; its text is a line for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OciProgress {
    /// The reference was looked up.
    Resolved {
        /// The digest of the manifest.
        digest: String,
        /// How many layers the image has.
        layers: usize,
        /// Their size as they are sent.
        bytes: u64,
    },
    /// Layers are coming.
    Pulling {
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// A layer is being unpacked.
    Unpacking {
        /// Which, from 1.
        layer: usize,
        /// How many there are.
        layers: usize,
    },
    /// Something worth knowing.
    Note(String),
    /// The image is there.
    Ready,
}

impl std::fmt::Display for OciProgress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MB: u64 = 1_000_000;
        match self {
            Self::Resolved {
                digest,
                layers,
                bytes,
            } => write!(f, "found {digest}: {layers} layers, {} MB", bytes / MB),
            Self::Pulling { done, total } => {
                write!(f, "pulled {} of {} MB", done / MB, total / MB)
            }
            Self::Unpacking { layer, layers } => write!(f, "unpacking layer {layer} of {layers}"),
            Self::Note(text) => f.write_str(text),
            Self::Ready => f.write_str("the image is ready"),
        }
    }
}
