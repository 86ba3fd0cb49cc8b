//! Why a disk operation failed.

use std::io;
use std::path::{Path, PathBuf};

/// Why a disk operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The pool cannot be made or mounted here.
    #[error("the disk pool cannot be opened: {step}. FIX: {fix}")]
    Pool {
        /// What failed.
        step: String,
        /// What to do.
        fix: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A disk operation failed.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pool is full.
    #[error(
        "the node's disk pool is full: {free} bytes are free, {reserve} are kept in reserve. FIX: delete VMs, snapshots \
         or volumes, or give the data directory's file system more space"
    )]
    Full {
        /// Bytes that are free.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// There is no such disk, snapshot, volume or checkpoint.
    #[error("there is no {noun} {name}")]
    Missing {
        /// What it would be.
        noun: &'static str,
        /// Its name.
        name: String,
    },
    /// There is one of this name.
    #[error("there is a {noun} {name} already")]
    Exists {
        /// What it is.
        noun: &'static str,
        /// Its name.
        name: String,
    },
    /// A volume cannot be limited to less than it is charged with.
    #[error("the volume holds {charged} bytes, its checkpoints included: more than {quota}")]
    BelowUse {
        /// The quota that was asked for.
        quota: u64,
        /// What it is charged with.
        charged: u64,
    },
    /// A name that could lead elsewhere.
    #[error("{name:?} is no name of a {noun}")]
    Name {
        /// What it was to name.
        noun: &'static str,
        /// The name.
        name: String,
    },
}

/// An adapter for `map_err`.
pub(super) fn pool(step: &str, fix: &'static str) -> impl FnOnce(io::Error) -> DiskError {
    let step = step.to_owned();
    move |source| DiskError::Pool {
        step: format!("{step}: {source}"),
        fix,
        source,
    }
}

/// An adapter for `map_err`. A pool without any room says so, whatever was tried.
pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull => DiskError::Full {
            free: 0,
            reserve: super::RESERVE,
        },
        _ => DiskError::Disk {
            action,
            path,
            source,
        },
    }
}

/// An adapter for `map_err`: what is missing or there already is said so.
pub(super) fn named(
    action: &'static str,
    noun: &'static str,
    name: &str,
    path: &Path,
) -> impl FnOnce(io::Error) -> DiskError {
    let (name, path) = (name.to_owned(), path.to_owned());
    move |source| match source.kind() {
        io::ErrorKind::NotFound => DiskError::Missing { noun, name },
        io::ErrorKind::AlreadyExists => DiskError::Exists { noun, name },
        _ => disk(action, &path)(source),
    }
}

/// Names come from the platform itself and are joined to paths: a wrong one must not lead anywhere.
pub(super) fn check_name(noun: &'static str, name: &str) -> Result<(), DiskError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@".contains(&byte);
    if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.bytes().all(fits) {
        let name = name.to_owned();
        return Err(DiskError::Name { noun, name });
    }
    Ok(())
}
