//! Makes of the entries of a layer what they say, on top of the layers below it.

use super::entry::{Entries, Entry, Kind, invalid, too_large};
use super::tree::{self, Tree};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// A VM maps ids from 0 to this one.
const LARGEST_ID: u64 = 65535;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names with this beginning are notes of a file system that made such layers first.
const WHITEOUT_NOTE: &[u8] = b".wh..wh.";
const CAPABILITY: &[u8] = b"security.capability";
const BUFFER: usize = 256 << 10;
/// What even an empty file takes.
const LEAST_SPACE: u64 = 4096;
/// How much is written before the space that is left is looked at again.
const BETWEEN_CHECKS: u64 = 8 << 20;

/// What of an image may still be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) bytes: u64,
    pub(super) files: u64,
}

/// What of a layer was left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// Extended attributes that mean something to the host only.
    pub(super) attributes: u64,
}

/// Why a layer was not unpacked: what was being made, and what is wrong.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) path: Vec<u8>,
    pub(super) error: io::Error,
}

/// Looks whether there is still room on the pool, and whether anybody still waits.
pub(super) type Check<'a> = dyn FnMut() -> io::Result<()> + 'a;

/// Unpacks one layer.
pub(super) struct Unpacker<'a> {
    tree: &'a Tree,
    budget: &'a mut Budget,
    check: &'a mut Check<'a>,
    unchecked: u64,
    /// What this layer has made, as hashes of folder and name: an opaque folder keeps these.
    made: HashSet<u64>,
    hasher: RandomState,
    /// Folders whose times are set at the end, when nothing in them changes any more: by number, with their paths. What
    /// the layer does not name keeps the time that it had.
    folders: HashMap<u64, (Vec<u8>, (i64, u32))>,
    /// The folder of the entry before, which is most often that of the next.
    parent: Option<(Vec<u8>, Parent)>,
    buffer: Vec<u8>,
    dropped: Dropped,
}

/// An open folder and its number.
struct Parent {
    folder: OwnedFd,
    number: u64,
}

impl<'a> Unpacker<'a> {
    pub(super) fn new(tree: &'a Tree, budget: &'a mut Budget, check: &'a mut Check<'a>) -> Self {
        Self {
            tree,
            budget,
            check,
            unchecked: 0,
            made: HashSet::new(),
            hasher: RandomState::new(),
            folders: HashMap::new(),
            parent: None,
            buffer: vec![0; BUFFER],
            dropped: Dropped::default(),
        }
    }

    /// Unpacks the whole stream.
    pub(super) fn unpack(mut self, from: impl Read) -> Result<Dropped, Failure> {
        let mut entries = Entries::new(from);
        let mut last = Vec::new();
        loop {
            let entry = match entries.advance() {
                Ok(Some(entry)) => entry,
                Ok(None) => break,
                Err(error) => return Err(Failure { path: last, error }),
            };
            if let Err(error) = self.apply(&entry, &mut entries) {
                let path = entry.path;
                return Err(Failure { path, error });
            }
            last = entry.path;
        }
        self.set_folder_times()
            .and_then(|()| entries.finish())
            .map_err(|error| Failure { path: last, error })?;
        Ok(self.dropped)
    }

    fn apply(&mut self, entry: &Entry, content: &mut Entries<impl Read>) -> io::Result<()> {
        let path = clean(&entry.path)?;
        if let Kind::Other(what) = entry.kind {
            return Err(invalid(what));
        }
        if path.is_empty() {
            return self.root(entry);
        }
        if path
            .split(|b| *b == b'/')
            .any(|part| part.starts_with(WHITEOUT_NOTE) && part != OPAQUE)
        {
            return Ok(());
        }
        let (above, name) = tree::split(&path);
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(above, name, hidden);
        }
        check_owner(entry)?;
        self.count()?;
        let parent = self.open_parent(above)?;
        self.made.insert(self.mark(parent.number, name));
        let folder = parent.folder.as_fd();
        match &entry.kind {
            Kind::Directory => self.directory(&parent, name, &path, entry)?,
            Kind::File => self.file(folder, name, entry, content)?,
            Kind::Symlink(target) => self.symlink(folder, name, target, entry)?,
            Kind::Hardlink(target) => self.hardlink(folder, name, target)?,
            Kind::Fifo => self.fifo(folder, name, entry)?,
            Kind::Other(what) => return Err(invalid(what)),
        }
        // A link may have taken the place of a folder on the way to the next entry.
        if !matches!(entry.kind, Kind::Symlink(_)) {
            self.parent = Some((above.to_vec(), parent));
        }
        Ok(())
    }

    /// Counts a file, and now and then looks whether to go on.
    fn count(&mut self) -> io::Result<()> {
        self.budget.files = self
            .budget
            .files
            .checked_sub(1)
            .ok_or_else(|| too_large("it has more files than are allowed"))?;
        self.unchecked += LEAST_SPACE;
        self.check_if_due()
    }

    fn check_if_due(&mut self) -> io::Result<()> {
        if self.unchecked >= BETWEEN_CHECKS {
            self.unchecked = 0;
            (self.check)()?;
        }
        Ok(())
    }

    fn mark(&self, folder: u64, name: &[u8]) -> u64 {
        self.hasher.hash_one((folder, name))
    }

    /// The folder of an entry, made when it is missing.
    fn open_parent(&mut self, path: &[u8]) -> io::Result<Parent> {
        match self.parent.take() {
            Some((known, parent)) if known == path => Ok(parent),
            _ => self.changing(self.tree.make_folder(path)?, path),
        }
    }

    /// A folder in which something changes: its time is to be what it was.
    fn changing(&mut self, folder: OwnedFd, path: &[u8]) -> io::Result<Parent> {
        let found = rustix::fs::fstat(&folder)?;
        let number = found.st_ino;
        self.folders.entry(number).or_insert_with(|| {
            let nanoseconds = u32::try_from(found.st_mtime_nsec).unwrap_or(0);
            (path.to_vec(), (found.st_mtime, nanoseconds))
        });
        Ok(Parent { folder, number })
    }

    fn root(&mut self, entry: &Entry) -> io::Result<()> {
        if entry.kind != Kind::Directory {
            return Err(invalid("the root is not a folder"));
        }
        check_owner(entry)?;
        let root = self.tree.root();
        self.finish(root, entry)?;
        self.set_time_later(root, b"", entry)
    }

    fn directory(
        &mut self,
        parent: &Parent,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        let above = parent.folder.as_fd();
        let folder = match tree::kind(above, name)? {
            Some(FileType::Directory) => tree::open_child(above, name)?,
            Some(_) => {
                self.tree.remove(above, name)?;
                self.tree.make_one(above, name, 0o700)?
            }
            None => self.tree.make_one(above, name, 0o700)?,
        };
        self.finish(folder.as_fd(), entry)?;
        self.set_time_later(folder.as_fd(), path, entry)
    }

    fn set_time_later(
        &mut self,
        folder: BorrowedFd<'_>,
        path: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        let number = rustix::fs::fstat(folder)?.st_ino;
        self.folders.insert(number, (path.to_vec(), entry.modified));
        Ok(())
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        content: &mut Entries<impl Read>,
    ) -> io::Result<()> {
        self.budget.bytes = self
            .budget
            .bytes
            .checked_sub(entry.size)
            .ok_or_else(|| too_large("unpacked it is larger than is allowed"))?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let make = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600));
        let file = match make() {
            Err(Errno::EXIST) => {
                self.tree.remove(parent, name)?;
                make()?
            }
            other => other?,
        };
        let mut file = File::from(file);
        match &entry.pieces {
            None => self.copy(content, |bytes| file.write_all(bytes))?,
            Some(pieces) => self.copy_pieces(content, &file, pieces, entry.size)?,
        }
        self.finish(file.as_fd(), entry)?;
        set_times(file.as_fd(), entry.modified)
    }

    fn copy(
        &mut self,
        content: &mut Entries<impl Read>,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let length = match content.read(&mut self.buffer) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            write(&self.buffer[..length])?;
            self.unchecked += length as u64;
            self.check_if_due()?;
        }
    }

    fn copy_pieces(
        &mut self,
        content: &mut Entries<impl Read>,
        file: &File,
        pieces: &[(u64, u64)],
        size: u64,
    ) -> io::Result<()> {
        file.set_len(size)?;
        let mut pieces = pieces.iter().filter(|(_, length)| *length > 0);
        let mut piece = pieces.next().copied();
        self.copy(content, |mut bytes| {
            while !bytes.is_empty() {
                let Some((offset, length)) = piece else {
                    return Err(invalid("a sparse file has more content than pieces"));
                };
                let now = usize::try_from(length)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                file.write_all_at(&bytes[..now], offset)?;
                bytes = &bytes[now..];
                let now = now as u64;
                piece = if now == length {
                    pieces.next().copied()
                } else {
                    Some((offset + now, length - now))
                };
            }
            Ok(())
        })
    }

    fn symlink(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        target: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        if target.is_empty() {
            return Err(invalid("a link to nothing"));
        }
        self.tree.remove(parent, name)?;
        rustix::fs::symlinkat(target, parent, name)?;
        self.finish_by_name(parent, name, entry)
    }

    fn fifo(&mut self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> io::Result<()> {
        self.tree.remove(parent, name)?;
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0)?;
        rustix::fs::chmodat(
            parent,
            name,
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )?;
        self.finish_by_name(parent, name, entry)
    }

    fn hardlink(&mut self, parent: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> io::Result<()> {
        let target = clean(target)?;
        let (above, last) = tree::split(&target);
        if last.is_empty() {
            return Err(invalid("a hard link to the root"));
        }
        let missing = |e: Errno| match e {
            Errno::NOENT | Errno::NOTDIR => {
                invalid("a hard link to something that is not in the image")
            }
            e => e.into(),
        };
        let folder = self.tree.folder(above).map_err(missing)?;
        let wanted =
            rustix::fs::statat(&folder, last, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
        if FileType::from_raw_mode(wanted.st_mode) == FileType::Directory {
            return Err(invalid("a hard link to a folder"));
        }
        // Removing the name first would lose a link to itself.
        match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if there.st_ino == wanted.st_ino => return Ok(()),
            Ok(_) => self.tree.remove(parent, name)?,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(rustix::fs::linkat(&folder, last, parent, name, AtFlags::empty()).map_err(missing)?)
    }

    /// Hides what layers below have by this name, or, of an opaque folder, all that they have in it.
    fn whiteout(&mut self, above: &[u8], name: &[u8], hidden: &[u8]) -> io::Result<()> {
        self.parent = None;
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(invalid("a whiteout of nothing that has a name"));
        }
        let folder = match self.tree.folder(above) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => self.changing(other?, above)?,
        };
        if name == OPAQUE {
            return self.hide_all(above);
        }
        if !self.made.contains(&self.mark(folder.number, hidden)) {
            return self.tree.remove(folder.folder.as_fd(), hidden);
        }
        match tree::kind(folder.folder.as_fd(), hidden)? {
            Some(FileType::Directory) => self.hide_all(&[above, b"/", hidden].concat()),
            _ => Ok(()),
        }
    }

    /// Removes everything below a folder but what this layer has made.
    fn hide_all(&mut self, path: &[u8]) -> io::Result<()> {
        let mut waiting = vec![path.to_vec()];
        while let Some(path) = waiting.pop() {
            let parent = match self.tree.folder(&path) {
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                other => self.changing(other?, &path)?,
            };
            let folder = parent.folder.as_fd();
            for name in tree::names(folder)? {
                let name = name.as_bytes();
                if !self.made.contains(&self.mark(parent.number, name)) {
                    self.tree.remove(folder, name)?;
                } else if tree::kind(folder, name)? == Some(FileType::Directory) {
                    waiting.push([&path, b"/".as_slice(), name].concat());
                }
            }
        }
        Ok(())
    }

    /// Owner, permissions and attributes, in the order in which none undoes another.
    fn finish(&mut self, made: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
        let (owner, group) = owner(entry);
        rustix::fs::fchown(made, owner, group)?;
        rustix::fs::fchmod(made, Mode::from_raw_mode(entry.mode))?;
        for (name, value) in &entry.attributes {
            let keep =
                name.starts_with(b"user.") || name == CAPABILITY && is_plain_capability(value);
            let kept = keep
                && match rustix::fs::fsetxattr(made, name.as_slice(), value, XattrFlags::empty()) {
                    Ok(()) => true,
                    // The file system of a pool without btrfs may have none, or less room for them.
                    Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => false,
                    Err(e) => return Err(e.into()),
                };
            self.dropped.attributes += u64::from(!kept);
        }
        Ok(())
    }

    /// The same for what cannot be opened.
    fn finish_by_name(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        self.dropped.attributes += entry.attributes.len() as u64;
        let (owner, group) = owner(entry);
        rustix::fs::chownat(parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        let times = timestamps(entry.modified);
        Ok(rustix::fs::utimensat(
            parent,
            name,
            &times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn set_folder_times(&mut self) -> io::Result<()> {
        for (number, (path, modified)) in std::mem::take(&mut self.folders) {
            // A later entry may have put something else there, or removed it.
            let Ok(folder) = self.tree.folder(&path) else {
                continue;
            };
            if rustix::fs::fstat(&folder)?.st_ino == number {
                set_times(folder.as_fd(), modified)?;
            }
        }
        Ok(())
    }
}

/// The parts of a name, without what means nothing. A name that begins with a slash begins at the root of the image; one
/// that leads upwards is refused.
fn clean(path: &[u8]) -> io::Result<Vec<u8>> {
    let mut clean = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(invalid("the path leads out of the image by '..'")),
            _ => {}
        }
        if part.contains(&0) {
            return Err(invalid("a name with a zero byte"));
        }
        if !clean.is_empty() {
            clean.push(b'/');
        }
        clean.extend_from_slice(part);
    }
    Ok(clean)
}

fn check_owner(entry: &Entry) -> io::Result<()> {
    if entry.uid > LARGEST_ID || entry.gid > LARGEST_ID {
        return Err(invalid(
            "its owner or group is above 65535, the last one in a VM",
        ));
    }
    Ok(())
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    let id = |number: u64| u32::try_from(number).unwrap_or(0);
    (
        Some(Uid::from_raw(id(entry.uid))),
        Some(Gid::from_raw(id(entry.gid))),
    )
}

/// Capabilities in the form that names no user namespace; the kernel gives them a meaning in the VM's own.
fn is_plain_capability(value: &[u8]) -> bool {
    const VERSION_2: [u8; 3] = [0, 0, 2];
    value.len() == 20 && value[1..4] == VERSION_2
}

fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: i64::from(nanoseconds),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn set_times(made: BorrowedFd<'_>, modified: (i64, u32)) -> io::Result<()> {
    Ok(rustix::fs::futimens(made, &timestamps(modified))?)
}
