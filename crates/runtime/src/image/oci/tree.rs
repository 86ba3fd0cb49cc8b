//! A root file system that is being made, as seen from its root.
//!
//! Whatever a layer says, nothing outside is touched: the kernel resolves every path from the root's descriptor
//! (`RESOLVE_IN_ROOT`), so that links lead where they will lead inside the VM, and the last part of a name is
//! only ever used beside its open folder, without following it.

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat,
    renameat, unlinkat,
};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How many links may lead to places that are yet to be made, one after the other.
const MOST_LINKS: u32 = 16;
/// How deep folders may nest, and how long a path may be: what walks the tree later must be able to.
const DEEPEST: usize = 256;
const LONGEST_PATH: usize = 3072;
/// A `..` in a link is resolved again when something on the host was renamed meanwhile; so often at most.
const MOST_RETRIES: u32 = 256;

/// The root of the tree.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    /// The length of the path to it.
    above: usize,
}

impl Tree {
    /// Opens the tree at this path, which is this program's own.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let above = real_path(root.as_fd())?.len();
        Ok(Self { root, above })
    }

    /// The root itself.
    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a folder by its path in the tree.
    pub(super) fn folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        // A leading slash, too, means the root.
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 0..MOST_RETRIES {
            match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Opens a folder by its path in the tree, making what is missing of it.
    pub(super) fn make_folder(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.make_folder_through(path, MOST_LINKS)
    }

    fn make_folder_through(&self, path: &[u8], links: u32) -> io::Result<OwnedFd> {
        match self.folder(path) {
            Err(Errno::NOENT) => {}
            other => return Ok(other?),
        }
        let (above, name) = split(path);
        let parent = self.make_folder_through(above, links)?;
        match self.make_one(parent.as_fd(), name, 0o755) {
            Err(e) if e.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {}
            other => return other,
        }
        // There is something, and no folder can be opened through it: a link to a place that is yet to be made.
        let target = readlinkat(&parent, name, Vec::new())?.into_bytes();
        if links == 0 {
            return Err(Errno::LOOP.into());
        }
        let place = join_link(above, &target)?;
        self.make_folder_through(&place, links - 1)
    }

    /// Makes a folder in an open one.
    pub(super) fn make_one(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        mode: u32,
    ) -> io::Result<OwnedFd> {
        let path = real_path(parent)?;
        let below = path.get(self.above..).unwrap_or_default();
        let depth = below.iter().filter(|byte| **byte == b'/').count();
        if depth >= DEEPEST || below.len() + name.len() >= LONGEST_PATH {
            return Err(super::entry::invalid("folders nest too deeply"));
        }
        mkdirat(parent, name, Mode::from_raw_mode(mode))?;
        open_child(parent, name)
    }

    /// Removes whatever has this name in an open folder; nothing is fine. Needs neither memory nor descriptors for
    /// the depth of what it removes.
    pub(super) fn remove(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        match unlink(parent, name) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(e.into()),
        }
        let aside = format!(".removed-{:032x}", rand::random::<u128>());
        let heap = self.make_one(self.root(), aside.as_bytes(), 0o700)?;
        renameat(parent, name, &heap, "0")?;
        let mut next = 1_u64;
        let mut waiting = vec![0_u64];
        while let Some(number) = waiting.pop() {
            let number = number.to_string();
            let folder = open_child(heap.as_fd(), number.as_bytes())?;
            for name in names(folder.as_fd())? {
                match unlink(folder.as_fd(), name.as_bytes()) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {
                        renameat(&folder, name.as_c_str(), &heap, next.to_string())?;
                        waiting.push(next);
                        next += 1;
                    }
                    other => other?,
                }
            }
            unlinkat(&heap, number, AtFlags::REMOVEDIR)?;
        }
        unlinkat(&self.root, aside, AtFlags::REMOVEDIR)?;
        Ok(())
    }
}

/// Removes a file or an empty folder.
fn unlink(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(parent, name, AtFlags::REMOVEDIR),
        other => other,
    }
}

/// Opens a folder in an open one; a link is refused.
pub(super) fn open_child(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// The kind of what has this name in an open folder.
pub(super) fn kind(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names in an open folder.
pub(super) fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Where a link in the folder `above` leads, as a path in the tree. Links with `..` to places that do not exist are
/// refused: what they mean depends on what is made first.
fn join_link(above: &[u8], target: &[u8]) -> io::Result<Vec<u8>> {
    let mut place = if target.starts_with(b"/") {
        Vec::new()
    } else {
        above.to_vec()
    };
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Errno::NOENT.into()),
            part => {
                if !place.is_empty() {
                    place.push(b'/');
                }
                place.extend_from_slice(part);
            }
        }
    }
    Ok(place)
}

/// Splits a path without empty parts into its folder and its last part.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn real_path(folder: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", folder.as_raw_fd());
    Ok(rustix::fs::readlink(link, Vec::new())?.into_bytes())
}
