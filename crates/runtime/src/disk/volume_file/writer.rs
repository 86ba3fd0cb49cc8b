//! A file on its way into a volume.

use super::path::VolumePath;
use super::{DRAFT, FOLDER, SoftQuota, VolumeFileError, VolumeFiles, kind_of, resolve};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, linkat, mkdirat, openat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);

/// A file on its way into a volume: it appears, whole, when it is finished. Dropped before that, or killed with its
/// process, nothing of it is left: until then it has no name.
#[derive(Debug)]
pub struct VolumeWriter {
    root: Arc<OwnedFd>,
    path: VolumePath,
    overwrite: bool,
    file: File,
    written: u64,
    soft: Option<SoftQuota>,
}

impl VolumeFiles {
    /// Begins to write a file, which belongs to root.
    ///
    /// # Errors
    /// [`VolumeFileError::Exists`] when there is one and `overwrite` is false.
    pub fn writer(&self, path: &str, overwrite: bool) -> Result<VolumeWriter, VolumeFileError> {
        let path = VolumePath::file(path)?;
        let fail = |errno| VolumeFileError::of("write", path.asked(), errno);
        // Refuse before the content comes; it is looked at again in the end.
        let (folder, name) = path.split();
        match self.resolve(folder, FOLDER) {
            Ok(folder) => check_target(&folder, name, &path, overwrite)?,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(fail(e)),
        }
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.root, ".", flags, FILE_MODE).map_err(fail)?;
        let (owner, group) = (rustix::fs::Uid::ROOT, rustix::fs::Gid::ROOT);
        rustix::fs::fchown(&file, Some(owner), Some(group)).map_err(fail)?;
        rustix::fs::fchmod(&file, FILE_MODE).map_err(fail)?;
        Ok(VolumeWriter {
            root: self.root.clone(),
            path,
            overwrite,
            file: file.into(),
            written: 0,
            soft: self.soft,
        })
    }
}

fn check_target(
    folder: &OwnedFd,
    name: &str,
    path: &VolumePath,
    overwrite: bool,
) -> Result<(), VolumeFileError> {
    let fail = |errno| VolumeFileError::of("write", path.asked(), errno);
    match kind_of(folder, name).map_err(fail)? {
        Some(FileType::Directory) => Err(fail(Errno::ISDIR)),
        Some(_) if !overwrite => Err(fail(Errno::EXIST)),
        _ => Ok(()),
    }
}

impl VolumeWriter {
    /// Appends.
    ///
    /// # Errors
    /// [`VolumeFileError::NoSpace`] when the volume's quota or the pool is exhausted.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), VolumeFileError> {
        let written = self.written.saturating_add(bytes.len() as u64);
        let over = |soft: SoftQuota| soft.used.saturating_add(written) > soft.limit;
        if self.soft.is_some_and(over) {
            return Err(self.fail(Errno::DQUOT));
        }
        self.file
            .write_all(bytes)
            .map_err(|e| self.fail(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        self.written = written;
        Ok(())
    }

    /// Makes the file visible, with the folders above it; returns its size.
    ///
    /// # Errors
    /// [`VolumeFileError::Exists`] when there is one by now and it must not be replaced.
    pub fn finish(self) -> Result<u64, VolumeFileError> {
        let (folder, _) = self.path.split();
        // Another call may remove a folder that this one found: make it again.
        for _ in 0..super::PATIENCE {
            let mut made = Made::default();
            let target = made.folders(&self.root, folder).map_err(|e| self.fail(e))?;
            match self.appear(&target) {
                Ok(()) => {
                    made.keep();
                    return Ok(self.written);
                }
                Err(Errno::NOENT) => {}
                Err(e) => return Err(self.fail(e)),
            }
        }
        Err(self.fail(Errno::AGAIN))
    }

    fn appear(&self, target: &OwnedFd) -> Result<(), Errno> {
        let (_, name) = self.path.split();
        let this = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let link = |folder: &OwnedFd, name: &str| {
            let follow = AtFlags::SYMLINK_FOLLOW;
            linkat(rustix::fs::CWD, &this, folder, name, follow)
        };
        match link(target, name) {
            Err(Errno::EXIST) if self.overwrite => {}
            other => return other,
        }
        // Only a rename replaces: for that moment it needs a name, in the root, where a crash's leftovers are swept.
        let draft = format!("{DRAFT}{:016x}", rand::random::<u64>());
        link(&self.root, &draft)?;
        let renamed = renameat_with(&*self.root, &draft, target, name, RenameFlags::empty());
        if renamed.is_err() {
            // Sweeping does it otherwise.
            let _ = unlinkat(&*self.root, &draft, AtFlags::empty());
        }
        renamed
    }

    fn fail(&self, errno: Errno) -> VolumeFileError {
        VolumeFileError::of("write", self.path.asked(), errno)
    }
}

/// Folders that were made for a file; removed again, as far as they are empty, unless they are kept.
#[derive(Default)]
struct Made(Vec<(OwnedFd, String)>);

impl Made {
    /// Opens a folder beneath the root, making what is missing on the way.
    fn folders(&mut self, root: &Arc<OwnedFd>, path: &str) -> Result<OwnedFd, Errno> {
        for _ in 0..super::PATIENCE {
            match resolve(root, path, FOLDER, ResolveFlags::empty()) {
                Err(Errno::NOENT) => {}
                other => return other,
            }
            let parts: Vec<&str> = path.split('/').collect();
            for depth in 1..=parts.len() {
                let (above, name) = (parts[..depth - 1].join("/"), parts[depth - 1]);
                let folder = match resolve(root, &above, FOLDER, ResolveFlags::empty()) {
                    // Removed meanwhile.
                    Err(Errno::NOENT) => break,
                    other => other?,
                };
                match mkdirat(&folder, name, FOLDER_MODE) {
                    Ok(()) => self.0.push((folder, name.to_owned())),
                    Err(Errno::EXIST) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        // A link that leads to nothing is there and not there.
        Err(Errno::NOTDIR)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for (folder, name) in self.0.iter().rev() {
            // Whoever has put something in meanwhile needs it.
            let _ = unlinkat(folder, name, AtFlags::REMOVEDIR);
        }
    }
}
