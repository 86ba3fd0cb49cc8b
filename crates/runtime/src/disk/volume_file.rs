//! Files of a volume, without a mount. A VM may be changing the volume at the same time, with all that its root can do:
//! each path is resolved by the kernel beneath the volume's root, and nothing but regular files is ever opened.

mod list;
mod path;
mod remove;
mod writer;

pub use list::VolumeEntry;
pub use writer::VolumeWriter;

use path::VolumePath;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

/// The begin of the names, in a volume's root, of files that are about to appear elsewhere. Never listed.
const DRAFT: &str = ".instavm-draft-";
/// How often a path is resolved again when something on it moved meanwhile.
const PATIENCE: usize = 64;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);

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
    #[error(
        "{path}: no space is left on the volume: its quota is reached, or the disks are full; delete something or raise quota_bytes"
    )]
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

impl VolumeFileError {
    fn of(action: &'static str, path: &str, errno: Errno) -> Self {
        let path = path.to_owned();
        let unsuitable = |reason| Self::Unsuitable {
            path: path.clone(),
            reason,
        };
        match errno {
            Errno::NOENT => Self::NotFound { path },
            Errno::EXIST => Self::Exists { path },
            Errno::DQUOT | Errno::NOSPC => Self::NoSpace { path },
            Errno::ROFS | Errno::PERM | Errno::ACCESS | Errno::TXTBSY => Self::Denied { path },
            Errno::XDEV => unsuitable("leads out of the volume"),
            Errno::NOTDIR => unsuitable("leads through a file"),
            Errno::ISDIR => unsuitable("is a directory"),
            Errno::LOOP => unsuitable("has too many links on its way"),
            Errno::NAMETOOLONG | Errno::INVAL => unsuitable("cannot be a path"),
            Errno::FBIG => unsuitable("would be too large a file"),
            Errno::AGAIN | Errno::NOTEMPTY | Errno::BUSY => unsuitable("is being changed"),
            other => Self::Io {
                action,
                path,
                source: other.into(),
            },
        }
    }
}

/// The files of one volume or checkpoint.
#[derive(Clone, Debug)]
pub struct VolumeFiles {
    root: Arc<OwnedFd>,
    /// What its files may take, where no kernel enforces it, and what they take.
    soft: Option<SoftQuota>,
}

#[derive(Clone, Copy, Debug)]
struct SoftQuota {
    limit: u64,
    used: u64,
}

impl VolumeFiles {
    /// The files of the volume or checkpoint at `root`.
    ///
    /// # Errors
    /// [`VolumeFileError::Io`] when it cannot be opened.
    pub fn of(root: &Path) -> Result<Self, VolumeFileError> {
        let open = || {
            let folder = rustix::fs::open(root, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
            let soft = match super::attribute::get(root, super::attribute::LIMIT)? {
                Some(limit) => Some(SoftQuota {
                    limit,
                    used: super::usage::of(root)?.unwrap_or(u64::MAX),
                }),
                None => None,
            };
            let root = Arc::new(folder);
            Ok(Self { root, soft })
        };
        open().map_err(|source| VolumeFileError::Io {
            action: "open the volume",
            path: root.display().to_string(),
            source,
        })
    }

    /// Opens a regular file for reading; with its size.
    ///
    /// # Errors
    /// [`VolumeFileError`].
    pub fn open(&self, path: &str) -> Result<(File, u64), VolumeFileError> {
        let parsed = VolumePath::file(path)?;
        let fail = |errno| VolumeFileError::of("open", path, errno);
        // Opening a pipe or a device would already do something: look first.
        let found = self
            .resolve(parsed.as_str(), OFlags::PATH | OFlags::CLOEXEC)
            .map_err(fail)?;
        let stat = rustix::fs::fstat(&found).map_err(fail)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(fail(Errno::ISDIR)),
            _ => return Err(parsed.unsuitable("is no regular file")),
        }
        // Not blocking: somebody inside may hold a lease on it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let this = format!("/proc/self/fd/{}", found.as_raw_fd());
        let file = rustix::fs::open(this, flags, Mode::empty()).map_err(fail)?;
        let size = rustix::fs::fstat(&file).map_err(fail)?.st_size;
        Ok((file.into(), u64::try_from(size).unwrap_or_default()))
    }

    /// Opens what a path leads to, as far as it stays in the volume.
    fn resolve(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        resolve(&self.root, path, flags, ResolveFlags::empty())
    }

    /// Removes what an interrupted process left in a volume's root.
    pub(super) fn sweep(root: &Path) {
        let sweep = || -> Result<(), Errno> {
            let root = rustix::fs::open(root, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
            for entry in Dir::read_from(&root)? {
                let entry = entry?;
                if entry.file_name().to_bytes().starts_with(DRAFT.as_bytes()) {
                    remove::remove(&root, entry.file_name())?;
                }
            }
            Ok(())
        };
        if let Err(error) = sweep() {
            tracing::warn!(%error, volume = %root.display(), "drafts in a volume cannot be swept");
        }
    }
}

/// Opens what a path leads to, as far as it stays beneath a folder: links that lead out of it, mounts and the kernel's own
/// links are refused.
fn resolve(
    folder: impl AsFd,
    path: &str,
    flags: OFlags,
    more: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { "." } else { path };
    for _ in 0..PATIENCE {
        match openat2(&folder, path, flags, Mode::empty(), beneath | more) {
            // Something on the way was moved while the kernel looked.
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// Removes a folder with everything in it, which nobody has open, however deep it is.
pub(super) fn remove_tree(path: &Path) -> Result<(), Errno> {
    let root = rustix::fs::open(path, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
    remove::empty(&root)?;
    rustix::fs::rmdir(path)
}

/// What is there under a name, links not followed.
fn kind_of(folder: impl AsFd, name: &str) -> Result<Option<FileType>, Errno> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
