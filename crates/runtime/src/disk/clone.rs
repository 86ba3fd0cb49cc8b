//! Copies of plain folders that share their blocks where the file system can: owners, modes, times, attributes, links
//! and holes are kept.

use super::volume_file;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The longest list of attribute names, and the longest attribute, that the kernel gives.
const LONGEST_ATTRIBUTE: usize = 65_536;
/// Folders nested more deeply than this are not copied: each level holds a descriptor.
const DEEPEST: usize = 512;
/// How often something is removed again that somebody else removes.
const PATIENCE: usize = 1000;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// A folder on the way down.
struct Level {
    from: OwnedFd,
    to: PathBuf,
    /// Folders in it that are still to be copied.
    folders: Vec<OsString>,
}

/// The first name of each file that has several.
type Names = HashMap<(u64, u64), PathBuf>;

/// Copies what is in `source`, and what is told of `source` itself, to the empty folder `target`. Devices and sockets are
/// left out. A VM may be changing the source: no link is followed, and what vanishes meanwhile is left out.
pub(super) fn tree(source: &Path, target: &Path) -> io::Result<()> {
    let mut names = Names::new();
    let from = rustix::fs::open(source, FOLDER, Mode::empty())?;
    let mut levels = vec![enter(from, target.to_owned(), &mut names)?];
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.folders.pop() else {
            // A folder gets its times when nothing is put into it any more.
            let stat = rustix::fs::fstat(&level.from)?;
            told(&this(&level.from), &level.to, &stat, true)?;
            levels.pop();
            continue;
        };
        let from = match rustix::fs::openat(&level.from, name.as_os_str(), FOLDER, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            other => other?,
        };
        let to = level.to.join(&name);
        if levels.len() == DEEPEST {
            return Err(io::Error::other("directories are nested too deeply"));
        }
        std::fs::create_dir(&to)?;
        levels.push(enter(from, to, &mut names)?);
    }
    Ok(())
}

/// A path to what is open, whatever becomes of its names.
fn this(open: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", open.as_raw_fd()).into()
}

/// Copies a folder's files, and notes its folders.
fn enter(from: OwnedFd, to: PathBuf, names: &mut Names) -> io::Result<Level> {
    let here = this(&from);
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(&here)? {
        let entry = entry?;
        let name = entry.file_name();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => folders.push(name),
            Ok(_) => match leaf(&here.join(&name), &to.join(&name), names) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Level { from, to, folders })
}

/// Removes a file, or a folder with everything in it however deep it is. Another thread may be removing it too.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    for _ in 0..PATIENCE {
        let removed = match volume_file::remove_tree(path) {
            Err(Errno::NOTDIR | Errno::LOOP) => std::fs::remove_file(path),
            other => other.map_err(io::Error::from),
        };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
    }
    Err(Errno::AGAIN.into())
}

/// Copies anything but a folder.
fn leaf(from: &Path, to: &Path, names: &mut Names) -> io::Result<()> {
    let stat = rustix::fs::lstat(from)?;
    let file = (stat.st_dev, stat.st_ino);
    if let Some(first) = names.get(&file) {
        return std::fs::hard_link(first, to);
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            if !content(from, to)? {
                return Ok(());
            }
        }
        FileType::Symlink => {
            let leads_to = rustix::fs::readlink(from, Vec::new())?;
            std::os::unix::fs::symlink(OsString::from_vec(leads_to.into_bytes()), to)?;
        }
        FileType::Fifo => {
            rustix::fs::mknodat(CWD, to, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
        }
        _ => return Ok(()),
    }
    if stat.st_nlink > 1 {
        names.insert(file, to.to_owned());
    }
    told(from, to, &stat, false)
}

/// Copies a regular file's content; `false` when it is none by now.
fn content(from: &Path, to: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let source = match rustix::fs::open(from, flags, Mode::empty()) {
        Err(Errno::LOOP | Errno::NXIO) => return Ok(false),
        other => File::from(other?),
    };
    let stat = source.metadata()?;
    if !stat.is_file() {
        return Ok(false);
    }
    let target = File::create_new(to)?;
    if stat.len() == 0 {
        return Ok(true);
    }
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => return Ok(true),
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {}
        Err(e) => return Err(e.into()),
    }
    written_parts(&source, &target, stat.len())?;
    target.set_len(stat.len())?;
    Ok(true)
}

/// Copies what is written of a file, and leaves its holes.
fn written_parts(mut source: &File, mut target: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(source, rustix::fs::SeekFrom::Data(at)) {
            Err(Errno::NXIO) => return Ok(()),
            other => other?,
        };
        let end = rustix::fs::seek(source, rustix::fs::SeekFrom::Hole(begin))?;
        source.seek(SeekFrom::Start(begin))?;
        target.seek(SeekFrom::Start(begin))?;
        let mut part = io::Read::take(source, end.min(size).saturating_sub(begin));
        let copied = io::copy(&mut part, &mut target)?;
        if copied == 0 {
            break;
        }
        at = begin + copied;
    }
    Ok(())
}

/// Copies owner, attributes, mode and times.
fn told(from: &Path, to: &Path, stat: &Stat, follow: bool) -> io::Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let here = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(CWD, to, Some(owner), Some(group), here)?;
    attributes(from, to, follow)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // After the owner: a change of owner takes the bits away that give his rights.
        rustix::fs::chmod(to, Mode::from_raw_mode(stat.st_mode))?;
    }
    let time = |seconds: i64, nanoseconds: i64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as i64),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as i64),
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, here)?)
}

/// `follow` is for the kernel's own link to what is open.
fn attributes(from: &Path, to: &Path, follow: bool) -> io::Result<()> {
    let mut names = vec![0_u8; LONGEST_ATTRIBUTE];
    let listed = if follow {
        rustix::fs::listxattr(from, &mut names[..])
    } else {
        rustix::fs::llistxattr(from, &mut names[..])
    };
    let length = match listed {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    let mut value = vec![0_u8; LONGEST_ATTRIBUTE];
    let listed = names.get(..length).unwrap_or_default();
    for name in listed.split(|byte| *byte == 0).filter(|n| !n.is_empty()) {
        let name = OsStr::from_bytes(name);
        let got = if follow {
            rustix::fs::getxattr(from, name, &mut value[..])
        } else {
            rustix::fs::lgetxattr(from, name, &mut value[..])
        };
        let length = match got {
            // Taken away meanwhile.
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        let value = value.get(..length).unwrap_or_default();
        rustix::fs::lsetxattr(to, name, value, XattrFlags::empty())?;
    }
    Ok(())
}
