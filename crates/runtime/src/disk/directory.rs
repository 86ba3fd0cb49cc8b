//! The disk driver `directory`, for hosts without btrfs and loop devices: trees are plain folders, copies share their
//! blocks where the host's file system can (reflinks) and are whole copies elsewhere, limits are measured by the node.
//!
//! A copy is made under another name and renamed when it is whole. What is removed is renamed into a folder of its own at
//! once, and emptied behind by a thread.

use super::ScrubReport;
use super::tree::{Copy, DRAFT, Trees};
use super::{attribute, clone, usage};
use rustix::fs::{CWD, RenameFlags, XattrFlags, renameat_with};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

/// Where what was removed waits, in the pool.
pub(super) const TRASH: &str = "trash";

/// The driver.
#[derive(Debug)]
pub(super) struct Directory {
    trash: PathBuf,
    /// Wakes the thread that empties the trash; it ends when this is dropped.
    emptier: mpsc::Sender<()>,
}

impl Directory {
    /// Opens it in a pool's folder.
    ///
    /// # Errors
    /// When the file system lacks something: the attributes that only root sees, or files without names.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        check(root)?;
        let trash = root.join(TRASH);
        std::fs::create_dir_all(&trash)?;
        let (emptier, woken) = mpsc::channel();
        let folder = trash.clone();
        std::thread::Builder::new()
            .name("disk trash".into())
            .spawn(move || {
                empty(&folder);
                while woken.recv().is_ok() {
                    empty(&folder);
                }
            })?;
        Ok(Self { trash, emptier })
    }

    /// Makes a tree under another name, and then lets it appear; `lasting` also after a loss of power.
    fn draft(
        &self,
        target: &Path,
        lasting: bool,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let draft = draft_of(target)?;
        self.remove(&draft)?;
        if target.symlink_metadata().is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let made = std::fs::create_dir(&draft)
            .and_then(|()| fill(&draft))
            .and_then(|()| appear(&draft, target, lasting));
        if made.is_err() {
            // Opening the pool sweeps it otherwise.
            let _ = self.remove(&draft);
        }
        made
    }
}

impl Trees for Directory {
    fn driver(&self) -> &'static str {
        "directory"
    }

    fn quota(&self) -> &'static str {
        "soft"
    }

    fn make(&self, path: &Path, limit: Option<u64>) -> io::Result<()> {
        self.draft(path, true, |draft| match limit {
            Some(limit) => attribute::set(draft, attribute::LIMIT, limit),
            None => Ok(()),
        })
    }

    fn copy(&self, source: &Path, target: &Path, copy: Copy) -> io::Result<()> {
        // A machine's disk goes with the machine: it need not outlast the host's power.
        let lasting = matches!(copy, Copy::ReadOnly);
        self.draft(target, lasting, |draft| {
            clone::tree(source, draft)?;
            if let Copy::Limited(limit) = copy {
                // All of it was there before: nothing of it is the copy's own.
                let base = taken(draft)?;
                attribute::set(draft, attribute::BASE, base)?;
                attribute::set(draft, attribute::LIMIT, limit)?;
            }
            Ok(())
        })
    }

    fn publish(&self, draft: &Path, target: &Path) -> io::Result<()> {
        appear(draft, target, true)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let gone = self.trash.join(format!("{:016x}", rand::random::<u64>()));
        match std::fs::rename(path, gone) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => {
                // A thread that has ended is started with the pool again.
                let _ = self.emptier.send(());
                Ok(())
            }
        }
    }

    fn limit(&self, path: &Path, bytes: u64) -> io::Result<()> {
        attribute::set(path, attribute::LIMIT, bytes)
    }

    fn charged(&self, path: &Path) -> io::Result<u64> {
        let base = attribute::get(path, attribute::BASE)?.unwrap_or_default();
        Ok(taken(path)?.saturating_sub(base))
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::syncfs(std::fs::File::open(path)?)?)
    }

    fn scrub(&self, path: &Path) -> io::Result<ScrubReport> {
        // There are no checksums to compare with: the host's file system is all there is.
        path.metadata()?;
        Ok(ScrubReport::default())
    }
}

/// Folders that are nested too deeply to be walked have no size that could be told: more than any limit.
fn taken(path: &Path) -> io::Result<u64> {
    Ok(usage::of(path)?.unwrap_or(u64::MAX))
}

fn draft_of(target: &Path) -> io::Result<PathBuf> {
    let name = target.file_name().and_then(|name| name.to_str());
    let name = name.ok_or(io::ErrorKind::InvalidInput)?;
    // Two calls for one name do not meet here; only one of them appears.
    Ok(target.with_file_name(format!("{DRAFT}{name}-{:08x}", rand::random::<u32>())))
}

/// Gives a tree its name, when there is nothing of that name.
fn appear(draft: &Path, target: &Path, lasting: bool) -> io::Result<()> {
    if lasting {
        rustix::fs::syncfs(std::fs::File::open(draft)?)?;
    }
    renameat_with(CWD, draft, CWD, target, RenameFlags::NOREPLACE)?;
    match target.parent() {
        Some(folder) if lasting => std::fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn empty(trash: &Path) {
    let removed = std::fs::read_dir(trash).and_then(|entries| {
        for entry in entries {
            clone::remove(&entry?.path())?;
        }
        Ok(())
    });
    if let Err(error) = removed {
        tracing::warn!(%error, trash = %trash.display(), "removed disks cannot be deleted");
    }
}

/// Does the file system have what this driver and files of volumes need?
fn check(root: &Path) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let said = |what: &'static str| {
        move |e: rustix::io::Errno| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("{what}: {e}"))
        }
    };
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(root, flags, Mode::RUSR)
        .map_err(said("the file system knows no files without names"))?;
    rustix::fs::fsetxattr(&file, "trusted.instavm.check", b"1", XattrFlags::empty())
        .map_err(said("the file system keeps no attributes of root's"))
}
