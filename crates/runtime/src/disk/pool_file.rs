//! The file that holds the pool on file systems other than btrfs.
//!
//! The host's blocks behind it are reserved before the pool can use them, and it grows when the pool needs more. So VMs
//! can never be promised what the host does not have, and whatever else fills the host's disk, the pool goes on.

use super::DiskError;
use super::error::pool;
use instavm_linux::{btrfs, loop_device, mount};
use rustix::fs::FallocateFlags;
use rustix::mount::MountFlags;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "pool.img";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// What a pool cannot be smaller than: one image and a few disks.
const SMALLEST: u64 = GIB;
/// What it is made with.
const START: u64 = 8 * GIB;
/// Below so many free bytes it grows. A writer whose pages the host takes in at the speed of memory must not come to the
/// end before the pool has grown.
const HEADROOM: u64 = 5 * GIB;
/// How many bytes more than that are free then.
const STEP: u64 = 2 * GIB;

/// An opened pool file.
#[derive(Debug)]
pub(super) struct PoolFile {
    path: PathBuf,
    root: PathBuf,
    /// What it may not grow beyond.
    limit: u64,
    /// It was made by this process.
    made: bool,
}

impl PoolFile {
    /// Is there one in this data directory?
    pub(super) fn exists(data_dir: &Path) -> bool {
        data_dir.join(NAME).exists()
    }

    /// The pool file of a data directory, if it is mounted at `root`.
    pub(super) fn find(data_dir: &Path, root: &Path, size: Option<u64>) -> Option<Self> {
        let file = Self::of(data_dir, root, size);
        file.device().ok().map(|_| file)
    }

    fn of(data_dir: &Path, root: &Path, size: Option<u64>) -> Self {
        Self {
            path: data_dir.join(NAME),
            root: root.to_owned(),
            limit: size.map_or(u64::MAX, |size| size.max(SMALLEST)),
            made: false,
        }
    }

    /// Mounts a data directory's pool file at `root`, making it first where there is none.
    pub(super) fn open(data_dir: &Path, root: &Path, size: Option<u64>) -> Result<Self, DiskError> {
        let mut file = Self::of(data_dir, root, size);
        file.made = !file.path.exists();
        if file.made {
            file.format(data_dir)?;
        }
        if let Err(error) = file.mount() {
            file.discard();
            return Err(error);
        }
        Ok(file)
    }

    /// Takes back what [`PoolFile::open`] did, when nothing can be in it yet.
    pub(super) fn discard(&self) {
        let _ = mount::unmount(&self.root, true);
        if self.made {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn format(&self, data_dir: &Path) -> Result<(), DiskError> {
        let fix = "free some space in the data directory, or choose another one";
        let host = Host::of(data_dir).map_err(pool("measure the data directory", "mount it"))?;
        let size = START.min(self.limit).min(host.spare()) / MIB * MIB;
        if size < SMALLEST {
            return Err(DiskError::Full {
                free: host.free,
                reserve: host.reserve + SMALLEST,
            });
        }
        let draft = data_dir.join(".pool.img.draft");
        let made = make_file_system(&draft, size, fix).and_then(|()| {
            std::fs::rename(&draft, &self.path).map_err(pool("publish the pool file", fix))
        });
        if made.is_err() {
            // It holds blocks of the host's; the next attempt overwrites it otherwise.
            let _ = std::fs::remove_file(&draft);
        }
        made
    }

    fn mount(&self) -> Result<(), DiskError> {
        let device = loop_device::attach(&self.path).map_err(pool(
            "attach it to a loop device",
            "allow loop devices (in a container: --privileged), or put the data directory on btrfs",
        ))?;
        // Blocks that were given back to the host could be missing later.
        let options = "nodiscard";
        // Not nosuid: VMs inherit the flags, and `sudo` works in them. Nobody else can enter the data directory.
        let flags = MountFlags::NOATIME | MountFlags::NODEV;
        mount::mount(
            &device.path.to_string_lossy(),
            &self.root,
            "btrfs",
            flags,
            options,
        )
        .map_err(pool(
            "mount it",
            "load the btrfs module, and run with the right to mount (in a container: --privileged)",
        ))
    }

    /// How many bytes it could grow by now.
    pub(super) fn growth(&self) -> io::Result<u64> {
        let size = std::fs::metadata(&self.path)?.len();
        let spare = Host::of(&self.path)?.spare();
        Ok(self.limit.saturating_sub(size).min(spare))
    }

    /// Reserves the blocks of a file that has holes, as far as the host has them: of one that was made so, or copied.
    pub(super) fn back(&self) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt;
        let file = File::options().write(true).open(&self.path)?;
        let stat = file.metadata()?;
        let holes = stat.len().saturating_sub(stat.blocks() * 512);
        if holes > 0 && holes <= Host::of(&self.path)?.spare() {
            reserve(&file, stat.len())?;
        }
        Ok(())
    }

    /// Gives the pool more when little is free, as far as the host has it. Finishes what an interrupted call began.
    pub(super) fn tend(&self) -> io::Result<()> {
        let inside = rustix::fs::statvfs(&self.root)?;
        let size = std::fs::metadata(&self.path)?.len();
        let total = inside.f_blocks * inside.f_frsize;
        if size >= total + MIB {
            return self.use_all();
        }
        let free = free_bytes(&self.root, &inside);
        if free >= HEADROOM {
            return Ok(());
        }
        let step = self.growth()?.min(HEADROOM + STEP - free) / MIB * MIB;
        // Each step costs a commit: many small ones would slow the pool down just when it fills up.
        if step < 64 * MIB {
            return Ok(());
        }
        reserve(&File::options().write(true).open(&self.path)?, size + step)?;
        self.use_all()
    }

    fn use_all(&self) -> io::Result<()> {
        loop_device::follow_file_size(&self.device()?)?;
        btrfs::grow_to_device(&self.root)
    }

    /// The device that is mounted at the pool's root.
    fn device(&self) -> io::Result<PathBuf> {
        let root = std::fs::canonicalize(&self.root)?;
        let points = mount::mount_points()?;
        let mounted = points.into_iter().rev().find(|point| point.target == root);
        let point = mounted.ok_or_else(|| io::Error::other("the pool is not mounted"))?;
        Ok(point.source.into())
    }
}

/// What can still be written to the file system of a pool. What programs have written and the kernel still holds in memory is not free,
/// though `statfs` counts it so: many gigabytes, where memory is plenty.
pub(super) fn free_bytes(root: &Path, space: &rustix::fs::StatVfs) -> u64 {
    // Other file systems do not say.
    let promised = btrfs::promised_bytes(root).unwrap_or(0);
    (space.f_bavail * space.f_frsize).saturating_sub(promised)
}

fn make_file_system(file: &Path, size: u64, fix: &'static str) -> Result<(), DiskError> {
    File::create(file)
        .and_then(|file| reserve(&file, size))
        .map_err(pool("make the pool file", fix))?;
    let output = Command::new("mkfs.btrfs")
        .args(["--quiet", "--force", "--nodiscard"])
        .args(["--metadata", "single", "--data", "single"])
        .arg(file)
        .output()
        .map_err(pool("run mkfs.btrfs", "install btrfs-progs"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(pool("mkfs.btrfs", fix)(io::Error::other(said)));
    }
    Ok(())
}

/// Makes a file so large, with the host's blocks behind it where the host's file system can say so.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(size),
        other => Ok(other?),
    }
}

/// The file system that the data directory is on.
pub(super) struct Host {
    pub(super) free: u64,
    /// What is left to everything else on the host.
    pub(super) reserve: u64,
}

impl Host {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let space = rustix::fs::statvfs(path)?;
        let total = space.f_blocks * space.f_frsize;
        Ok(Self {
            free: space.f_bavail * space.f_frsize,
            reserve: (total / 20).clamp(GIB / 4, 8 * GIB),
        })
    }

    /// What the pool may take.
    pub(super) fn spare(&self) -> u64 {
        self.free.saturating_sub(self.reserve)
    }
}
