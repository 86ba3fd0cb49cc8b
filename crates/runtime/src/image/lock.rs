//! Locks between processes, as advisory locks on files that are never removed.

use super::ImageError;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::path::Path;

/// A held lock; dropping it, or the death of the process, gives it up.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

impl FileLock {
    /// Takes the lock when it is free.
    pub(super) fn try_take(path: &Path) -> Result<Option<FileLock>, ImageError> {
        let file = open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(FileLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(ImageError::io("lock", path)(errno.into())),
        }
    }

    /// Takes the lock, waiting for its holder; `on_wait` is called before the wait when there is one.
    pub(super) fn take(path: &Path, on_wait: impl FnOnce()) -> Result<FileLock, ImageError> {
        if let Some(lock) = FileLock::try_take(path)? {
            return Ok(lock);
        }
        on_wait();
        let file = open(path)?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(FileLock { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(ImageError::io("lock", path)(errno.into())),
            }
        }
    }
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(ImageError::io("open the lock", path))
}
