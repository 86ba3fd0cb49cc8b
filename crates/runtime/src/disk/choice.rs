//! Which driver keeps a data directory's disks.
//!
//! It is chosen once, and written down beside the pool: another one would not find what is there.

use super::btrfs::Btrfs;
use super::directory::Directory;
use super::error::{disk, pool};
use super::pool_file::PoolFile;
use super::tree::Trees;
use super::{DiskDriver, DiskError, DiskOptions};
use instavm_linux::btrfs as ioctl;
use std::io;
use std::path::Path;

const RECORD: &str = "pool.driver";

pub(super) type Opened = (Box<dyn Trees>, Option<PoolFile>);

/// Opens what keeps the disks of a data directory, whose pool's folder is there.
pub(super) fn open(
    data_dir: &Path,
    root: &Path,
    options: &DiskOptions,
) -> Result<Opened, DiskError> {
    let chosen = match (recorded(data_dir, root)?, options.driver) {
        (None, DiskDriver::Auto) => return open_best(data_dir, root, options.size),
        (None, asked) => asked,
        (Some(recorded), asked) if asked == DiskDriver::Auto || asked == recorded => recorded,
        (Some(recorded), _) => {
            let other = io::Error::other(format!("it was made with the driver {}", word(recorded)));
            let fix = "keep that driver, or use another data directory";
            return Err(pool("its disks are kept in another way", fix)(other));
        }
    };
    let opened = open_as(chosen, data_dir, root, options.size)?;
    if let Some(Err(error)) = opened.1.as_ref().map(PoolFile::back) {
        // It goes on as it was.
        tracing::warn!(%error, "the host's blocks behind the disk pool cannot be reserved");
    }
    Ok(opened)
}

/// What a data directory was made with.
fn recorded(data_dir: &Path, root: &Path) -> Result<Option<DiskDriver>, DiskError> {
    let file = data_dir.join(RECORD);
    match std::fs::read_to_string(&file) {
        Ok(text) => match text.trim() {
            "btrfs" => Ok(Some(DiskDriver::Btrfs)),
            "directory" => Ok(Some(DiskDriver::Directory)),
            _ => {
                let other = io::Error::other("neither btrfs nor directory");
                Err(disk("understand", &file)(other))
            }
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // Interrupted before it was written down, or made before it was.
            let btrfs = PoolFile::exists(data_dir) || root.join("images").exists();
            Ok(btrfs.then_some(DiskDriver::Btrfs))
        }
        Err(e) => Err(disk("read", &file)(e)),
    }
}

fn word(driver: DiskDriver) -> &'static str {
    match driver {
        DiskDriver::Auto => "auto",
        DiskDriver::Btrfs => "btrfs",
        DiskDriver::Directory => "directory",
    }
}

fn open_best(data_dir: &Path, root: &Path, size: Option<u64>) -> Result<Opened, DiskError> {
    match open_as(DiskDriver::Btrfs, data_dir, root, size) {
        Err(error @ DiskError::Pool { .. }) => {
            tracing::warn!(%error, "no btrfs can be had here: disks are plain folders, which is slower");
            // Its own error tells less: it is the last resort.
            open_as(DiskDriver::Directory, data_dir, root, size).map_err(|_| error)
        }
        other => other,
    }
}

fn open_as(
    driver: DiskDriver,
    data_dir: &Path,
    root: &Path,
    size: Option<u64>,
) -> Result<Opened, DiskError> {
    let opened = if driver == DiskDriver::Directory {
        let trees = Directory::open(root).map_err(pool(
            "its folder does not serve",
            "put the data directory on ext4, xfs or btrfs",
        ))?;
        (Box::new(trees) as Box<dyn Trees>, None)
    } else {
        open_btrfs(data_dir, root, size)?
    };
    let file = data_dir.join(RECORD);
    if !file.exists() {
        // Written aside and renamed: half a word would be no driver.
        let draft = data_dir.join(".pool.driver.draft");
        std::fs::write(&draft, word(driver).as_bytes())
            .and_then(|()| std::fs::rename(&draft, &file))
            .map_err(disk("write", &file))?;
    }
    Ok(opened)
}

fn open_btrfs(data_dir: &Path, root: &Path, size: Option<u64>) -> Result<Opened, DiskError> {
    let is_btrfs =
        ioctl::is_btrfs(root).map_err(pool("look at it", "make the data directory readable"))?;
    let no_quotas = || pool("turn on simple quotas", "use Linux 6.7 or newer");
    if PoolFile::exists(data_dir) {
        // The data directory itself may be on a btrfs that could not be used.
        let file = match PoolFile::find(data_dir, root, size) {
            Some(file) => file,
            None => PoolFile::open(data_dir, root, size)?,
        };
        ioctl::enable_simple_quotas(root).map_err(no_quotas())?;
        return Ok((Box::new(Btrfs), Some(file)));
    }
    // A btrfs below the data directory serves as it is, unless it counts in another way already.
    if is_btrfs && ioctl::enable_simple_quotas(root).is_ok() {
        return Ok((Box::new(Btrfs), None));
    }
    let file = PoolFile::open(data_dir, root, size)?;
    if let Err(error) = ioctl::enable_simple_quotas(root) {
        file.discard();
        return Err(no_quotas()(error));
    }
    Ok((Box::new(Btrfs), Some(file)))
}
