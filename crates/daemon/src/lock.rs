//! One daemon a data directory: the lock file `D/lock`.
//!
//! The lock is the kernel's (`flock`), so it is gone with its holder, however that ends. The file says who holds it.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The lock's name in the data directory; the mark of a directory that is an instance's.
pub const FILE_NAME: &str = "lock";

/// Why a data directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The directory could not be made.
    #[error("the data directory {} cannot be made", .path.display())]
    MakeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The lock file could not be opened, locked or written.
    #[error("the lock {} cannot be used", .path.display())]
    File {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the data directory {} is in use by {holder}", .path.display())]
    Held {
        /// The directory.
        path: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
}

/// Who holds a data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// Its process.
    pub pid: Option<u32>,
    /// The command that it runs.
    pub command: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "`instavmd {}` (process {pid})", self.command),
            None => f.write_str("another process"),
        }
    }
}

/// A data directory that this process holds until it drops this.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Takes the directory, making it when it is not there (mode 0700).
    ///
    /// # Errors
    /// [`LockError::Held`] at once when another process holds it.
    pub fn take(data_dir: &Path, command: &str) -> Result<Self, LockError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data_dir)
            .map_err(|source| LockError::MakeDirectory {
                path: data_dir.to_owned(),
                source,
            })?;
        let path = data_dir.join(FILE_NAME);
        let failed = |source| LockError::File {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held {
                    path: data_dir.to_owned(),
                    holder: read_holder(&mut file),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        write_holder(&mut file, command).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// What the file says; a holder that has not written yet is one without a process.
fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    match file.read_to_string(&mut text) {
        Ok(_) => serde_json::from_str(&text).unwrap_or_default(),
        Err(_) => Holder::default(),
    }
}

fn write_holder(file: &mut File, command: &str) -> io::Result<()> {
    let holder = Holder {
        pid: Some(std::process::id()),
        command: command.to_owned(),
    };
    let text = serde_json::to_vec(&holder).map_err(io::Error::other)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_taker_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DataDirLock::take(dir.path(), "serve").unwrap();
        let Err(LockError::Held { holder, .. }) = DataDirLock::take(dir.path(), "check") else {
            panic!("the directory was taken twice");
        };
        assert_eq!(holder.pid, Some(std::process::id()));
        assert_eq!(holder.command, "serve");
        drop(lock);
        DataDirLock::take(dir.path(), "check").unwrap();
    }
}
