//! Files of a volume, without a mount. A VM may be changing the volume at the same time, with all its root can do.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::SystemTime;

/// Why an operation on a volume's file failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeFileError {
    /// There is no such file or folder.
    #[error("{path}: no such file")]
    NotFound {
        /// As it was asked for.
        path: String,
    },
    /// The path cannot name a file of the volume, or what is there does not serve.
    #[error("{path}: {reason}")]
    Unsuitable {
        /// As it was asked for.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// It is there already.
    #[error("{path}: exists already")]
    Exists {
        /// As it was asked for.
        path: String,
    },
    /// The volume's quota, or the pool, is exhausted.
    #[error("{path}: no space is left on the volume")]
    NoSpace {
        /// As it was asked for.
        path: String,
    },
    /// It must not be changed.
    #[error("{path}: not permitted")]
    Denied {
        /// As it was asked for.
        path: String,
    },
    /// Something that should work did not.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// As it was asked for.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A file or folder of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeEntry {
    /// Relative to the volume's root.
    pub path: String,
    /// Bytes; 0 for a folder.
    pub size: u64,
    /// It is a folder.
    pub is_dir: bool,
    /// When its content last changed.
    pub modified_at: SystemTime,
}

/// The files of one volume or checkpoint.
#[derive(Debug)]
pub struct VolumeFiles {
    root: std::os::fd::OwnedFd,
}

/// A file on its way into a volume: it appears, whole, when it is finished; dropped before, nothing of it is left.
#[derive(Debug)]
pub struct VolumeWriter {
    file: File,
}

impl VolumeFiles {
    /// The files of the volume or checkpoint at `root`.
    ///
    /// # Errors
    /// [`VolumeFileError::Io`] when it cannot be opened.
    pub fn of(root: &Path) -> Result<Self, VolumeFileError> {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root =
            rustix::fs::open(root, flags, Mode::empty()).map_err(|e| VolumeFileError::Io {
                action: "open the volume",
                path: root.display().to_string(),
                source: e.into(),
            })?;
        Ok(Self { root })
    }

    /// Opens a regular file for reading; with its size.
    ///
    /// # Errors
    /// [`VolumeFileError`].
    pub fn open(&self, path: &str) -> Result<(File, u64), VolumeFileError> {
        Err(self.not_yet(path))
    }

    /// Begins to write a file, making the folders above it.
    ///
    /// # Errors
    /// [`VolumeFileError::Exists`] when there is one and `overwrite` is false.
    pub fn writer(&self, path: &str, overwrite: bool) -> Result<VolumeWriter, VolumeFileError> {
        let _ = overwrite;
        Err(self.not_yet(path))
    }

    /// The files whose path begins with `prefix`, by path, at most `limit`.
    ///
    /// # Errors
    /// [`VolumeFileError`].
    pub fn list(
        &self,
        prefix: &str,
        recursive: bool,
        limit: usize,
    ) -> Result<Vec<VolumeEntry>, VolumeFileError> {
        let _ = (recursive, limit);
        Err(self.not_yet(prefix))
    }

    /// Deletes a file, or a folder with everything in it.
    ///
    /// # Errors
    /// [`VolumeFileError::NotFound`].
    pub fn remove(&self, path: &str) -> Result<(), VolumeFileError> {
        Err(self.not_yet(path))
    }

    fn not_yet(&self, path: &str) -> VolumeFileError {
        let _ = &self.root;
        VolumeFileError::Unsuitable {
            path: path.to_owned(),
            reason: "not written yet",
        }
    }

    pub(super) fn sweep(root: &Path) {
        let _ = root;
    }
}

impl VolumeWriter {
    /// Appends.
    ///
    /// # Errors
    /// [`VolumeFileError::NoSpace`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), VolumeFileError> {
        use std::io::Write;
        self.file
            .write_all(bytes)
            .map_err(|source| VolumeFileError::Io {
                action: "write",
                path: String::new(),
                source,
            })
    }

    /// Makes the file visible; returns its size.
    ///
    /// # Errors
    /// [`VolumeFileError`].
    pub fn finish(self) -> Result<u64, VolumeFileError> {
        Ok(0)
    }
}
