//! What the files of a tree take, exactly.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// Folders nested more deeply than this are not walked: each level holds a descriptor.
const DEEPEST: usize = 512;

const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A folder on the way down, with what is still to be looked at.
struct Level {
    folder: OwnedFd,
    folders: Vec<CString>,
}

/// Bytes of the regular files under `root`: each file once, whatever its number of names, and of a file with holes what
/// is written. No link is followed. What vanishes meanwhile is not counted. `None` when folders are nested too deeply.
pub(super) fn of(root: &Path) -> io::Result<Option<u64>> {
    let mut seen = HashSet::new();
    let mut bytes = 0_u64;
    let folder = rustix::fs::open(root, FOLDER, Mode::empty())?;
    let mut levels = vec![enter(folder, &mut seen, &mut bytes)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.folders.pop() else {
            levels.pop();
            continue;
        };
        let folder = match openat(&level.folder, &name, FOLDER, Mode::empty()) {
            Ok(folder) => folder,
            Err(e) if vanished(e) => continue,
            Err(e) => return Err(e.into()),
        };
        if levels.len() == DEEPEST {
            return Ok(None);
        }
        levels.push(enter(folder, &mut seen, &mut bytes)?);
    }
    Ok(Some(bytes))
}

/// It is gone, or has become something else, since its name was read.
fn vanished(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// Adds up a folder's files and notes its folders.
fn enter(folder: OwnedFd, seen: &mut HashSet<(u64, u64)>, bytes: &mut u64) -> io::Result<Level> {
    let mut folders = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(e) if vanished(e) => continue,
            Err(e) => return Err(e.into()),
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => folders.push(name.to_owned()),
            FileType::RegularFile => {
                if stat.st_nlink > 1 && !seen.insert((stat.st_dev, stat.st_ino)) {
                    continue;
                }
                let written = u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
                let size = u64::try_from(stat.st_size).unwrap_or_default();
                *bytes = bytes.saturating_add(size.min(written));
            }
            _ => {}
        }
    }
    Ok(Level { folder, folders })
}
