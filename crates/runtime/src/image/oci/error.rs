//! Why an image could not be had from a registry.

use crate::disk::DiskError;
use std::path::PathBuf;

/// Why an image could not be had from a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OciError {
    /// The reference is not one.
    #[error("{reference:?} is no image reference: {reason}")]
    Reference {
        /// What was given.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The configuration of the store cannot be used.
    #[error("cannot use {}: {reason}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No connection, or none that lasted.
    #[error("{registry} cannot be reached: {reason}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What happened, for people.
        reason: String,
    },
    /// The registry wants other credentials.
    #[error("{registry} refused access to {what}: {reason}")]
    Denied {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What it said.
        reason: String,
    },
    /// The registry does not have it.
    #[error("{registry} does not have {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
    },
    /// Too many requests.
    #[error("{registry} answers that there were too many requests; try again later")]
    RateLimited {
        /// The registry.
        registry: String,
    },
    /// The registry answered in a way that it must not.
    #[error("{registry} gave a wrong answer for {what}: {reason}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This address is not to be spoken to.
    #[error("{address} is not allowed: {reason}")]
    Forbidden {
        /// The address.
        address: String,
        /// Why not.
        reason: &'static str,
    },
    /// What came is not what its digest or size says.
    #[error("{what} is not what was promised: {reason}")]
    Mismatch {
        /// The blob.
        what: String,
        /// What differs.
        reason: String,
    },
    /// The image is larger than allowed.
    #[error("the image is too large: {reason}")]
    TooLarge {
        /// Which limit.
        reason: String,
    },
    /// The image is of a kind that cannot be used.
    #[error("the image cannot be used: {reason}")]
    Unsupported {
        /// Why not.
        reason: String,
    },
    /// A layer holds something that must not be unpacked.
    #[error("layer {layer}: {path:?}: {reason}")]
    Layer {
        /// Which layer, from 1.
        layer: usize,
        /// The entry's name.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The pool refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The system refused something on a file.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Whoever asked for the image no longer waits for it.
    #[error("the image is no longer wanted")]
    Cancelled,
}

impl OciError {
    /// Wraps a failed system call on a path.
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    /// Is this the registry's or the image's fault, so that trying again without a change is of no use?
    pub fn is_permanent(&self) -> bool {
        !matches!(
            self,
            Self::Unreachable { .. }
                | Self::RateLimited { .. }
                | Self::Disk(_)
                | Self::Io { .. }
                | Self::Cancelled
        )
    }
}
