//! Removing from a volume, whatever is in it and whoever changes it meanwhile.

use super::path::VolumePath;
use super::{DRAFT, FOLDER, VolumeFileError, VolumeFiles};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

/// Folders nested more deeply than this are moved up before they are removed: each level holds a descriptor.
const DEEPEST: usize = 256;
/// How often something may appear in a folder that is being removed.
const PATIENCE: usize = 1000;

impl VolumeFiles {
    /// Deletes a file, or a folder with everything in it. Of a link, the link.
    ///
    /// # Errors
    /// [`VolumeFileError::NotFound`].
    pub fn remove(&self, path: &str) -> Result<(), VolumeFileError> {
        let parsed = VolumePath::entry(path)?;
        let (folder, name) = parsed.split();
        let remove = || {
            let folder = self.resolve(folder, FOLDER)?;
            let name = CString::new(name).map_err(|_| Errno::INVAL)?;
            remove_in(&self.root, &folder, &name)
        };
        remove().map_err(|e| VolumeFileError::of("remove", path, e))
    }
}

/// Removes what is named so in a volume's root.
pub(super) fn remove(root: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    remove_in(root, root, name)
}

/// Removes everything in a volume's root.
pub(super) fn empty(root: &OwnedFd) -> Result<(), Errno> {
    while let Some(name) = clear(root)? {
        remove(root, &name)?;
    }
    Ok(())
}

fn remove_in(root: &OwnedFd, folder: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let mut deep = Vec::new();
    remove_folder(root, folder, name, &mut deep)?;
    while let Some(name) = deep.pop() {
        remove_folder(root, root, &name, &mut deep)?;
    }
    Ok(())
}

struct Level {
    folder: OwnedFd,
    /// Its name in the level above.
    name: CString,
}

/// Removes a folder with what is in it, except what is nested too deeply: that is moved to the root, under names that are
/// added to `deep`. Quotas hinder a move, but no removal in place.
fn remove_folder(
    root: &OwnedFd,
    above: &OwnedFd,
    name: &CStr,
    deep: &mut Vec<CString>,
) -> Result<(), Errno> {
    let mut patience = PATIENCE;
    let mut levels = vec![Level {
        folder: enter(above, name)?,
        name: name.to_owned(),
    }];
    while let Some(level) = levels.last() {
        if let Some(name) = clear(&level.folder)? {
            if levels.len() == DEEPEST {
                let moved = format!("{DRAFT}{:016x}", rand::random::<u64>());
                let moved = CString::new(moved).map_err(|_| Errno::INVAL)?;
                renameat(&level.folder, &name, root, &moved)?;
                deep.push(moved);
                continue;
            }
            match enter(&level.folder, &name) {
                Ok(folder) => levels.push(Level { folder, name }),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    patience = patience.checked_sub(1).ok_or(Errno::AGAIN)?;
                }
                Err(e) => return Err(e),
            }
            continue;
        }
        let parent = levels.len().checked_sub(2).map(|at| &levels[at].folder);
        match unlinkat(parent.unwrap_or(above), &level.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                levels.pop();
            }
            // Something has appeared in it, or in its place.
            Err(Errno::NOTEMPTY | Errno::NOTDIR) => {
                patience = patience.checked_sub(1).ok_or(Errno::AGAIN)?;
                if kind_changed(parent.unwrap_or(above), level)? {
                    levels.pop();
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The name of an open folder leads to something else by now.
fn kind_changed(parent: &OwnedFd, level: &Level) -> Result<bool, Errno> {
    let open = rustix::fs::fstat(&level.folder)?;
    match rustix::fs::statat(parent, &level.name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(now) => Ok((now.st_dev, now.st_ino) != (open.st_dev, open.st_ino)),
        Err(Errno::NOENT) => Ok(true),
        Err(e) => Err(e),
    }
}

fn enter(folder: &OwnedFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(folder, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())
}

/// Removes files and empty folders of a folder; returns the first folder that is not empty.
fn clear(folder: &OwnedFd) -> Result<Option<CString>, Errno> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let told = entry.file_type();
        if !matches!(told, FileType::Directory | FileType::Unknown) {
            match unlinkat(folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {}
                Err(e) => return Err(e),
            }
        }
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => match unlinkat(folder, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            },
            Err(Errno::NOTEMPTY) => return Ok(Some(name.to_owned())),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
