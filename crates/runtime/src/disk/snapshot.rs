//! Snapshots: saved root disks that VMs start from.

use super::error::{check_name, disk, named};
use super::tree::Copy;
use super::{DiskError, DiskPool, attribute, listed};
use std::path::{Path, PathBuf};

const NOUN: &str = "snapshot";

impl DiskPool {
    /// Where the snapshot of this id is, or would be.
    pub fn snapshot_path(&self, id: &str) -> PathBuf {
        self.folder("snapshots").join(id)
    }

    /// Writes what a disk has dirty, so that a [`DiskPool::save`] behind a freeze has little left to write.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn flush(&self, name: &str) -> Result<(), DiskError> {
        check_name("disk", name)?;
        let path = self.disk_path(name);
        self.trees()
            .sync(&path)
            .map_err(named("flush", "disk", name, &path))
    }

    /// Keeps a disk as it is now, read-only. The caller has frozen the VM. Returns the bytes of the snapshot's own: what
    /// was written on top of what the disk was made from.
    ///
    /// # Errors
    /// [`DiskError::Missing`] without such a disk, [`DiskError::Exists`] with such a snapshot, [`DiskError::Full`] when
    /// the reserve is touched.
    pub fn save(&self, name: &str, id: &str) -> Result<u64, DiskError> {
        check_name("disk", name)?;
        check_name(NOUN, id)?;
        self.require_room()?;
        let (source, target) = (self.disk_path(name), self.snapshot_path(id));
        let bytes = self.disk_bytes(name)?;
        // It goes into the snapshot with everything else, in one step.
        attribute::set(&source, attribute::OWN_BYTES, bytes).map_err(disk("mark", &source))?;
        self.trees()
            .copy(&source, &target, Copy::ReadOnly)
            .map_err(named("save", NOUN, id, &target))?;
        Ok(bytes)
    }

    /// Bytes of a snapshot's own, as of when it was saved.
    ///
    /// # Errors
    /// [`DiskError::Missing`].
    pub fn snapshot_bytes(&self, id: &str) -> Result<u64, DiskError> {
        check_name(NOUN, id)?;
        let path = self.snapshot_path(id);
        let bytes = attribute::get(&path, attribute::OWN_BYTES);
        Ok(bytes
            .map_err(named("measure", NOUN, id, &path))?
            .unwrap_or_default())
    }

    /// Deletes a snapshot; one that is not there is no error. Its space comes back behind, as far as no disk needs it.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn delete_snapshot(&self, id: &str) -> Result<(), DiskError> {
        check_name(NOUN, id)?;
        let path = self.snapshot_path(id);
        self.trees().remove(&path).map_err(disk("delete", &path))
    }

    /// The ids of all snapshots.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn snapshot_ids(&self) -> Result<Vec<String>, DiskError> {
        Self::snapshot_names(self.data_dir())
    }

    /// The ids of all snapshots of a data directory, without opening its pool; none when it is not mounted.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn snapshot_names(data_dir: &Path) -> Result<Vec<String>, DiskError> {
        listed(&Self::path_in(data_dir).join("snapshots"))
    }
}
