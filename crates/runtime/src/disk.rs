//! Disks: a btrfs pool in which an image is a read-only subvolume and a VM's root disk a snapshot of one.
//!
//! The pool is the data directory itself where that lies on btrfs, else a sparse file in it on a loop device.
//! Simple quotas count for each disk what its VM wrote on top of the image; the kernel enforces the limit.

use crate::Probe;
use instavm_linux::{btrfs, loop_device, mount};
use rustix::mount::MountFlags;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file that holds the pool on file systems other than btrfs.
const POOL_FILE: &str = "pool.img";
const GIB: u64 = 1 << 30;
/// What a pool cannot be smaller than: one image and a few disks.
const SMALLEST: u64 = 4 * GIB;
/// Free space that VMs may not use up: below it no new disk is made.
const RESERVE: u64 = GIB;

/// Why a disk operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The pool cannot be made or mounted here.
    #[error("the disk pool cannot be opened: {step}. FIX: {fix}")]
    Pool {
        /// What failed.
        step: String,
        /// What to do.
        fix: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A disk operation failed.
    #[error("cannot {action} {}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The pool is full.
    #[error("the node's disk pool is full: {free} bytes are free, {RESERVE} are kept in reserve")]
    Full {
        /// Bytes that are free.
        free: u64,
    },
}

/// How full the pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpace {
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that can still be written: by the pool's own count and by that of the file system below it.
    pub free_bytes: u64,
}

/// A data directory's pool of disks.
#[derive(Clone, Debug)]
pub struct DiskPool {
    root: PathBuf,
    data_dir: PathBuf,
}

impl DiskPool {
    /// Where a data directory's pool is.
    pub fn path_in(data_dir: &Path) -> PathBuf {
        data_dir.join("pool")
    }

    /// Opens the pool of a data directory, making and mounting it first where needed. `size` is the pool file's, in
    /// bytes; without it, nine tenths of what is free. The file is sparse: it takes what is in use.
    ///
    /// # Errors
    /// [`DiskError::Pool`] with what to do.
    pub fn open(data_dir: &Path, size: Option<u64>) -> Result<Self, DiskError> {
        let root = Self::path_in(data_dir);
        std::fs::create_dir_all(&root)
            .map_err(pool("make its folder", "make the data directory writable"))?;
        // A btrfs below the data directory serves as it is, unless it counts in another way already.
        if !is_btrfs(&root)? || btrfs::enable_simple_quotas(&root).is_err() {
            let file = data_dir.join(POOL_FILE);
            if !file.exists() {
                format_pool_file(data_dir, &file, size)?;
            }
            mount_pool_file(&file, &root)?;
            btrfs::enable_simple_quotas(&root)
                .map_err(pool("turn on simple quotas", "use Linux 6.7 or newer"))?;
        }
        for folder in ["images", "disks"] {
            std::fs::create_dir_all(root.join(folder))
                .map_err(pool("make its folders", "make the data directory writable"))?;
        }
        Ok(Self {
            root,
            data_dir: data_dir.to_owned(),
        })
    }

    /// Where the image of this key is, or would be.
    pub fn image_path(&self, key: &str) -> PathBuf {
        self.root.join("images").join(key)
    }

    /// Where the disk of this name is, or would be.
    pub fn disk_path(&self, name: &str) -> PathBuf {
        self.root.join("disks").join(name)
    }

    /// Makes an image, when there is none of this key: `fill` writes into an empty folder, and the image appears when
    /// that is done and safe on the disk.
    ///
    /// # Errors
    /// [`DiskError::Disk`], also for what `fill` fails with.
    pub fn ensure_image(
        &self,
        key: &str,
        fill: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<PathBuf, DiskError> {
        let image = self.image_path(key);
        if image.exists() {
            return Ok(image);
        }
        let draft = self.image_path(&format!(".draft-{key}"));
        btrfs::delete_subvolume(&draft).map_err(disk("delete", &draft))?;
        btrfs::create_subvolume(&draft).map_err(disk("make", &draft))?;
        fill(&draft).map_err(disk("fill", &draft))?;
        btrfs::sync(&draft).map_err(disk("sync", &draft))?;
        btrfs::snapshot(&draft, &image, true).map_err(disk("publish", &image))?;
        btrfs::delete_subvolume(&draft).map_err(disk("delete", &draft))?;
        Ok(image)
    }

    /// Makes a disk from an image, limited to `limit` bytes of its own, in constant time.
    ///
    /// # Errors
    /// [`DiskError::Full`] when the reserve is touched.
    pub fn create(&self, name: &str, image: &Path, limit: u64) -> Result<PathBuf, DiskError> {
        let free = self.space()?.free_bytes;
        if free < RESERVE {
            return Err(DiskError::Full { free });
        }
        let path = self.disk_path(name);
        btrfs::snapshot(image, &path, false).map_err(disk("make", &path))?;
        self.limit(name, limit)?;
        Ok(path)
    }

    /// Changes the limit of a disk.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn limit(&self, name: &str, limit: u64) -> Result<(), DiskError> {
        let path = self.disk_path(name);
        btrfs::limit_subvolume(&path, limit).map_err(disk("limit", &path))
    }

    /// Deletes a disk; one that is not there is no error. Its space comes back behind.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn delete(&self, name: &str) -> Result<(), DiskError> {
        let path = self.disk_path(name);
        btrfs::delete_subvolume(&path).map_err(disk("delete", &path))
    }

    /// The names of all disks.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn names(&self) -> Result<Vec<String>, DiskError> {
        Self::disk_names(&self.data_dir)
    }

    /// The names of all disks of a data directory, without opening its pool; none when it is not mounted.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn disk_names(data_dir: &Path) -> Result<Vec<String>, DiskError> {
        let folder = Self::path_in(data_dir).join("disks");
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&folder).map_err(disk("list", &folder))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    /// How full the pool is.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn space(&self) -> Result<PoolSpace, DiskError> {
        let of = |path: &Path| {
            rustix::fs::statvfs(path).map_err(|e| disk("measure", path)(io::Error::from(e)))
        };
        let (inside, below) = (of(&self.root)?, of(&self.data_dir)?);
        let total_bytes = inside.f_blocks * inside.f_frsize;
        let free_bytes = inside.f_bavail * inside.f_frsize;
        Ok(PoolSpace {
            used_bytes: total_bytes.saturating_sub(inside.f_bfree * inside.f_frsize),
            total_bytes,
            free_bytes: free_bytes.min(below.f_bavail * below.f_frsize),
        })
    }

    /// Unmounts and deletes a data directory's pool with everything in it, also after a half-made one. Its disks must
    /// not be in use.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn destroy(data_dir: &Path) -> Result<(), DiskError> {
        let root = Self::path_in(data_dir);
        if root.exists() {
            for folder in ["disks", "images"] {
                delete_subvolumes(&root.join(folder))?;
            }
            let mounted = instavm_linux::mount::mount_points()
                .map_err(disk("list mounts of", &root))?
                .iter()
                .any(|point| std::fs::canonicalize(&root).is_ok_and(|path| point.target == path));
            if mounted {
                mount::unmount(&root, true).map_err(disk("unmount", &root))?;
            }
        }
        Ok(())
    }
}

fn delete_subvolumes(folder: &Path) -> Result<(), DiskError> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let path = entry.path();
        if let Err(e) = btrfs::delete_subvolume(&path) {
            std::fs::remove_dir_all(&path).map_err(|_| disk("delete", &path)(e))?;
        }
    }
    Ok(())
}

fn pool(step: &str, fix: &'static str) -> impl FnOnce(io::Error) -> DiskError {
    let step = step.to_owned();
    move |source| DiskError::Pool {
        step: format!("{step}: {source}"),
        fix,
        source,
    }
}

fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Disk {
        action,
        path,
        source,
    }
}

fn is_btrfs(path: &Path) -> Result<bool, DiskError> {
    btrfs::is_btrfs(path).map_err(pool("look at it", "make the data directory readable"))
}

fn format_pool_file(data_dir: &Path, file: &Path, size: Option<u64>) -> Result<(), DiskError> {
    let space = rustix::fs::statvfs(data_dir)
        .map_err(|e| pool("measure the data directory", "mount it")(io::Error::from(e)))?;
    let free = space.f_bavail * space.f_frsize;
    let size = size.unwrap_or(free / 10 * 9).max(SMALLEST) / GIB * GIB;
    let draft = data_dir.join(".pool.img.draft");
    let fix = "free some space in the data directory, or choose another one";
    let make = || {
        let image = std::fs::File::create(&draft)?;
        image.set_len(size)
    };
    make().map_err(pool("make the pool file", fix))?;
    let output = Command::new("mkfs.btrfs")
        .args([
            "--quiet",
            "--force",
            "--nodiscard",
            "--metadata",
            "single",
            "--data",
            "single",
        ])
        .arg(&draft)
        .output()
        .map_err(pool("run mkfs.btrfs", "install btrfs-progs"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(pool("mkfs.btrfs", fix)(io::Error::other(said)));
    }
    std::fs::rename(&draft, file).map_err(pool("publish the pool file", fix))
}

fn mount_pool_file(file: &Path, root: &Path) -> Result<(), DiskError> {
    let device = loop_device::attach(file).map_err(pool(
        "attach it to a loop device",
        "allow loop devices (in a container: --privileged), or put the data directory on btrfs",
    ))?;
    let options = "discard=async";
    // Not nosuid: VMs inherit the flags, and `sudo` works in them. Nobody else can enter the data directory.
    let flags = MountFlags::NOATIME | MountFlags::NODEV;
    mount::mount(
        &device.path.to_string_lossy(),
        root,
        "btrfs",
        flags,
        options,
    )
    .map_err(pool(
        "mount it",
        "load the btrfs module, and run with the right to mount (in a container: --privileged)",
    ))
}

/// What of disks works on this host.
pub fn probe() -> Vec<Probe> {
    let kinds = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let has_btrfs = kinds.lines().any(|line| line.trim() == "btrfs");
    let btrfs = if has_btrfs {
        Probe::works("btrfs", "the kernel has it")
    } else {
        Probe::fails("btrfs", "the kernel does not list it", "modprobe btrfs")
    };
    let has_loop = Path::new("/dev/loop-control").exists();
    let loops = if has_loop {
        Probe::works("loop devices", "/dev/loop-control is there")
    } else {
        Probe::lacks(
            "loop devices",
            "/dev/loop-control is missing",
            "modprobe loop (in a container: --privileged), or put the data directory on btrfs",
        )
    };
    let mkfs = match Command::new("mkfs.btrfs").arg("--version").output() {
        Ok(output) => Probe::works(
            "mkfs.btrfs",
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ),
        Err(error) => Probe::fails("mkfs.btrfs", error.to_string(), "install btrfs-progs"),
    };
    vec![btrfs, loops, mkfs]
}
