//! Why an operation on images failed.

use super::Source;
use std::path::PathBuf;

/// Why an operation on images failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The system refused something on a file or directory.
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
    /// No image has this name.
    #[error("there is no image named {0}")]
    NotFound(String),
    /// The name cannot be used for an image.
    #[error(
        "{0:?} is no name for an image: use 1 to 63 characters of a-z, 0-9, '.', '_' and '-', the first a letter or digit"
    )]
    BadName(String),
    /// The directory that an image is to be unpacked into has content.
    #[error("cannot unpack an image into {}: it is not empty", .0.display())]
    TargetNotEmpty(PathBuf),
    /// The image on disk is not what was built.
    #[error(
        "the image {name} is damaged ({reason}); build it again with `instavmd image build --name {name}`"
    )]
    Damaged {
        /// The image's name.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A program that the operation needs is missing or cannot be started.
    #[error("cannot start {program}: {fix}")]
    Program {
        /// The program.
        program: &'static str,
        /// What to do about it.
        fix: &'static str,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A program ended with a failure.
    #[error("{program} failed ({status}): {output}")]
    ProgramFailed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The last lines that it said.
        output: String,
    },
    /// The host cannot serve as the source of an image.
    #[error("this host cannot be the source of an image: {0}")]
    UnsuitableHost(String),
    /// The operation works for root only.
    #[error("building or unpacking an image keeps its owners and so needs root")]
    NotRoot,
    /// No source could give the image.
    #[error(
        "the image could not be built: from {}: {debian}; from {}: {host}",
        Source::Debian,
        Source::Host
    )]
    NoSource {
        /// Why Debian's packages gave none.
        debian: Box<ImageError>,
        /// Why the host gave none.
        host: Box<ImageError>,
    },
}

impl ImageError {
    /// Wraps a failed system call on a path.
    pub(super) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> ImageError {
        let path = path.into();
        move |source| ImageError::Io {
            operation,
            path,
            source,
        }
    }
}
