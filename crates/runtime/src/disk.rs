//! Disks: a pool in which an image is a read-only tree of files, and a VM's root disk, a snapshot, a volume and a
//! checkpoint are copies of trees.
//!
//! ```text
//! pool/images/<key>                    read-only
//! pool/disks/<name>                    the root disk of a machine
//! pool/snapshots/<id>                  read-only
//! pool/volumes/<id>
//! pool/checkpoints/<volume>/<id>       read-only
//! ```
//! The driver `btrfs` makes each of them a subvolume and copies in constant time; its pool is the data directory itself
//! where that lies on btrfs, else a file in it on a loop device. The driver `directory` makes them plain folders, on
//! hosts that have neither.
//!
//! What is not whole yet is named `.draft-…`: it is never listed, and is swept when the pool is opened.

mod attribute;
mod btrfs;
mod choice;
mod clone;
mod directory;
mod error;
mod image;
mod pool_file;
mod probe;
mod scrub;
mod snapshot;
mod tree;
mod usage;
mod volume;
mod volume_file;

pub use error::DiskError;
pub use probe::probe;
pub use scrub::ScrubReport;
pub use volume_file::{VolumeEntry, VolumeFileError, VolumeFiles, VolumeWriter};

use error::{check_name, disk, named, pool};
use instavm_linux::{btrfs as ioctl, mount};
use pool_file::{Host, PoolFile, free_bytes};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;
use tree::{Copy, DRAFT, Trees};

/// Free space that VMs may not use up: below it nothing new is made. The smaller of this and a sixteenth of the pool.
const RESERVE: u64 = 1 << 30;
/// How often the pool is looked at whether it must grow.
const TENDING: Duration = Duration::from_millis(500);
const FOLDERS: [&str; 5] = ["images", "disks", "snapshots", "volumes", "checkpoints"];

/// What keeps the disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiskDriver {
    /// What the data directory was made with; for a new one btrfs where it works, else plain folders.
    #[default]
    Auto,
    /// Subvolumes of a btrfs.
    Btrfs,
    /// Plain folders.
    Directory,
}

/// How a pool is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskOptions {
    /// What the pool may grow to, in bytes; `None`: what the host has, without a reserve. On btrfs below the data
    /// directory, and with plain folders, the host's file system is the pool, and this means nothing.
    pub size: Option<u64>,
    /// What keeps the disks.
    pub driver: DiskDriver,
}

/// How full the pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpace {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes in all, with what it can grow by.
    pub total_bytes: u64,
    /// Bytes that can still be written, with what it can grow by.
    pub free_bytes: u64,
}

/// A data directory's pool of disks.
#[derive(Clone, Debug)]
pub struct DiskPool {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    data_dir: PathBuf,
    trees: Box<dyn Trees>,
    file: Option<PoolFile>,
    /// Its other end is the keeper's, which ends when this is dropped.
    _keeper: mpsc::Sender<()>,
}

impl DiskPool {
    /// Where a data directory's pool is.
    pub fn path_in(data_dir: &Path) -> PathBuf {
        data_dir.join("pool")
    }

    /// Opens the pool of a data directory, making and mounting it first where needed, and sweeps what an interrupted
    /// process left half-made. No other process may have it open.
    ///
    /// # Errors
    /// [`DiskError::Pool`] with what to do; [`DiskError::Full`] when the host has no room for one.
    pub fn open(data_dir: &Path, options: &DiskOptions) -> Result<Self, DiskError> {
        let root = Self::path_in(data_dir);
        std::fs::create_dir_all(&root)
            .map_err(pool("make its folder", "make the data directory writable"))?;
        let (trees, file) = choice::open(data_dir, &root, options)?;
        for folder in FOLDERS {
            std::fs::create_dir_all(root.join(folder))
                .map_err(pool("make its folders", "make the data directory writable"))?;
        }
        let (sender, receiver) = mpsc::channel();
        let inner = Arc::new(Inner {
            root,
            data_dir: data_dir.to_owned(),
            trees,
            file,
            _keeper: sender,
        });
        if inner.file.is_some() {
            let pool = Arc::downgrade(&inner);
            std::thread::Builder::new()
                .name("disk pool".into())
                .spawn(move || keep(&pool, &receiver))
                .map_err(self::pool("start its keeper", "allow more threads"))?;
        }
        let pool = Self { inner };
        pool.sweep()?;
        Ok(pool)
    }

    /// `btrfs` or `directory`.
    pub fn driver(&self) -> &'static str {
        self.trees().driver()
    }

    /// Who enforces the limits of disks and volumes: `hard` (the kernel, at each write) or `soft` (the node measures).
    pub fn quota(&self) -> &'static str {
        self.trees().quota()
    }

    fn trees(&self) -> &dyn Trees {
        self.inner.trees.as_ref()
    }

    fn data_dir(&self) -> &Path {
        &self.inner.data_dir
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.inner.root.join(name)
    }

    /// Where the image of this key is, or would be.
    pub fn image_path(&self, key: &str) -> PathBuf {
        self.folder("images").join(key)
    }

    /// Where the disk of this name is, or would be.
    pub fn disk_path(&self, name: &str) -> PathBuf {
        self.folder("disks").join(name)
    }

    /// Makes an image, when there is none of this key: `fill` writes into an empty folder, and the image appears when
    /// that is done and safe on the disk.
    ///
    /// # Errors
    /// [`DiskError::Full`] when the reserve is touched; [`DiskError::Disk`], also for what `fill` fails with.
    pub fn ensure_image(
        &self,
        key: &str,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, DiskError> {
        self.ensure_image_on(key, None, fill)
    }

    /// Makes a disk from an image or a snapshot, limited to `limit` bytes of its own.
    ///
    /// # Errors
    /// [`DiskError::Full`] when the reserve is touched, [`DiskError::Exists`].
    pub fn create(&self, name: &str, source: &Path, limit: u64) -> Result<PathBuf, DiskError> {
        check_name("disk", name)?;
        self.require_room()?;
        let path = self.disk_path(name);
        match self.trees().copy(source, &path, Copy::Limited(limit)) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(named("make", "disk", name, &path)(e));
            }
            other => other.map_err(disk("make", &path))?,
        }
        Ok(path)
    }

    /// Changes the limit of a disk.
    ///
    /// # Errors
    /// [`DiskError::Missing`].
    pub fn limit(&self, name: &str, limit: u64) -> Result<(), DiskError> {
        check_name("disk", name)?;
        let path = self.disk_path(name);
        self.trees()
            .limit(&path, limit)
            .map_err(named("limit", "disk", name, &path))
    }

    /// What a disk takes on top of what it was made from, in bytes, as of the last time that its data was written.
    ///
    /// # Errors
    /// [`DiskError::Missing`].
    pub fn disk_bytes(&self, name: &str) -> Result<u64, DiskError> {
        check_name("disk", name)?;
        let path = self.disk_path(name);
        self.trees()
            .charged(&path)
            .map_err(named("measure", "disk", name, &path))
    }

    /// Deletes a disk; one that is not there is no error. Its space comes back behind.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn delete(&self, name: &str) -> Result<(), DiskError> {
        check_name("disk", name)?;
        let path = self.disk_path(name);
        self.trees().remove(&path).map_err(disk("delete", &path))
    }

    /// The names of all disks.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn names(&self) -> Result<Vec<String>, DiskError> {
        Self::disk_names(self.data_dir())
    }

    /// The names of all disks of a data directory, without opening its pool; none when it is not mounted.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn disk_names(data_dir: &Path) -> Result<Vec<String>, DiskError> {
        listed(&Self::path_in(data_dir).join("disks"))
    }

    /// How full the pool is.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn space(&self) -> Result<PoolSpace, DiskError> {
        let root = &self.inner.root;
        let measure = || {
            let inside = rustix::fs::statvfs(root)?;
            let growth = match &self.inner.file {
                Some(file) => file.growth()?,
                None => 0,
            };
            let total_bytes = inside.f_blocks * inside.f_frsize;
            Ok(PoolSpace {
                used_bytes: total_bytes.saturating_sub(inside.f_bfree * inside.f_frsize),
                total_bytes: total_bytes + growth,
                free_bytes: free_bytes(root, &inside) + growth,
            })
        };
        measure().map_err(disk("measure", root))
    }

    /// Refuses to make anything new when the reserve is touched: what is there shall have room to go on.
    fn require_room(&self) -> Result<(), DiskError> {
        let space = self.space()?;
        let (free, mut reserve) = (space.free_bytes, RESERVE.min(space.total_bytes / 16));
        if self.inner.file.is_none() {
            // The host's own file system is the pool: it keeps its own reserve.
            let host = Host::of(&self.inner.root).map_err(disk("measure", &self.inner.root))?;
            reserve = reserve.max(host.reserve);
        }
        if free < reserve {
            return Err(DiskError::Full { free, reserve });
        }
        Ok(())
    }

    /// Reads everything in the pool and compares it with its checksums, behind everything else. Slow: call it from a
    /// thread of its own.
    ///
    /// # Errors
    /// [`DiskError::Disk`] when it cannot be done; what it finds is in the report.
    pub fn scrub(&self) -> Result<ScrubReport, DiskError> {
        let root = &self.inner.root;
        self.trees().scrub(root).map_err(disk("scrub", root))
    }

    /// Removes what an interrupted process left half-made.
    fn sweep(&self) -> Result<(), DiskError> {
        let mut folders: Vec<PathBuf> = FOLDERS.iter().map(|name| self.folder(name)).collect();
        for volume in listed(&self.folder("checkpoints"))? {
            folders.push(self.folder("checkpoints").join(volume));
        }
        for folder in folders {
            let entries = std::fs::read_dir(&folder).map_err(disk("list", &folder))?;
            for entry in entries.flatten() {
                if entry
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(DRAFT.as_bytes())
                {
                    let path = entry.path();
                    self.trees().remove(&path).map_err(disk("sweep", &path))?;
                }
            }
        }
        for volume in listed(&self.folder("volumes"))? {
            VolumeFiles::sweep(&self.volume_path(&volume));
        }
        Ok(())
    }

    /// Unmounts and deletes a data directory's pool with everything in it, also after a half-made one. Its disks must
    /// not be in use.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn destroy(data_dir: &Path) -> Result<(), DiskError> {
        let root = Self::path_in(data_dir);
        if !root.exists() {
            return Ok(());
        }
        for volume in listed(&root.join("checkpoints"))? {
            delete_trees(&root.join("checkpoints").join(volume))?;
        }
        for folder in FOLDERS.iter().copied().chain([directory::TRASH]) {
            delete_trees(&root.join(folder))?;
        }
        let real = std::fs::canonicalize(&root).map_err(disk("find", &root))?;
        let mounted = mount::mount_points()
            .map_err(disk("list mounts of", &root))?
            .iter()
            .any(|point| point.target == real);
        if mounted {
            mount::unmount(&root, true).map_err(disk("unmount", &root))?;
        }
        Ok(())
    }
}

/// Lets the pool grow when it needs to, until nobody has it open any more.
fn keep(pool: &Weak<Inner>, closed: &mpsc::Receiver<()>) {
    let mut said = String::new();
    while let Err(mpsc::RecvTimeoutError::Timeout) = closed.recv_timeout(TENDING) {
        let Some(inner) = pool.upgrade() else { return };
        let tended = inner.file.as_ref().map_or(Ok(()), PoolFile::tend);
        let failure = tended.err().map(|error| error.to_string());
        // Once, not at each look.
        if let Some(error) = failure.as_ref().filter(|error| **error != said) {
            tracing::warn!(error, pool = %inner.root.display(), "the disk pool cannot grow");
        }
        said = failure.unwrap_or_default();
    }
}

/// The names of what is whole in a folder; none when there is no such folder.
fn listed(folder: &Path) -> Result<Vec<String>, DiskError> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(disk("list", folder))?,
    };
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with(DRAFT))
        .collect())
}

fn delete_trees(folder: &Path) -> Result<(), DiskError> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if let Err(e) = ioctl::delete_subvolume(&path) {
            clone::remove(&path).map_err(|_| disk("delete", &path)(e))?;
        }
    }
    Ok(())
}
