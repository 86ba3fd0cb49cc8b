//! Volumes: disks that outlive VMs, and their checkpoints.

use super::error::{check_name, disk, named};
use super::tree::Copy;
use super::{DiskError, DiskPool, attribute, listed, usage};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const NOUN: &str = "volume";
const CHECKPOINT: &str = "checkpoint";

impl DiskPool {
    /// Where the volume of this id is, or would be.
    pub fn volume_path(&self, id: &str) -> PathBuf {
        self.folder("volumes").join(id)
    }

    /// Where the checkpoint of this volume and id is, or would be.
    pub fn checkpoint_path(&self, volume: &str, id: &str) -> PathBuf {
        self.folder("checkpoints").join(volume).join(id)
    }

    /// Makes an empty volume that may hold `quota` bytes; one that is there gets this quota.
    ///
    /// # Errors
    /// [`DiskError::Full`] when the reserve is touched, [`DiskError::BelowUse`].
    pub fn create_volume(&self, id: &str, quota: u64) -> Result<PathBuf, DiskError> {
        check_name(NOUN, id)?;
        let path = self.volume_path(id);
        if path.exists() {
            self.limit_volume(id, quota)?;
            return Ok(path);
        }
        self.require_room()?;
        match self.trees().make(&path, Some(quota)) {
            // Another call was faster.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.limit_volume(id, quota)?,
            other => other.map_err(disk("make", &path))?,
        }
        Ok(path)
    }

    /// Changes a volume's quota.
    ///
    /// # Errors
    /// [`DiskError::Missing`], [`DiskError::BelowUse`] when it is charged with more.
    pub fn limit_volume(&self, id: &str, quota: u64) -> Result<(), DiskError> {
        let (_, charged) = self.volume_usage(id)?;
        if charged > quota {
            return Err(DiskError::BelowUse { quota, charged });
        }
        let path = self.volume_path(id);
        self.trees()
            .limit(&path, quota)
            .map_err(named("limit", NOUN, id, &path))
    }

    /// Bytes of a volume's files, exactly; and bytes that count against its quota: with what the file system needs for
    /// them, and what checkpoints alone still hold.
    ///
    /// # Errors
    /// [`DiskError::Missing`].
    pub fn volume_usage(&self, id: &str) -> Result<(u64, u64), DiskError> {
        check_name(NOUN, id)?;
        let path = self.volume_path(id);
        let measure = || {
            // The kernel counts what is committed.
            self.trees().sync(&path)?;
            let charged = self.trees().charged(&path)?;
            // Folders nested too deeply to be walked are counted as the kernel does.
            let used = usage::of(&path)?.unwrap_or(charged);
            let copies = self.taken_by_checkpoints(id)?;
            Ok((used, charged.max(used).saturating_add(copies)))
        };
        measure().map_err(named("measure", NOUN, id, &path))
    }

    /// What a volume may hold where nobody enforces it at each write; `None` where the kernel does.
    ///
    /// # Errors
    /// [`DiskError::Missing`].
    pub fn soft_quota(&self, id: &str) -> Result<Option<u64>, DiskError> {
        check_name(NOUN, id)?;
        let path = self.volume_path(id);
        attribute::get(&path, attribute::LIMIT).map_err(named("measure", NOUN, id, &path))
    }

    /// What a volume's checkpoints take where they are copies. Elsewhere it is the volume itself that stays charged with
    /// what they hold.
    fn taken_by_checkpoints(&self, id: &str) -> io::Result<u64> {
        let mut bytes = 0_u64;
        if self.quota() == "soft" {
            let folder = self.folder("checkpoints").join(id);
            for checkpoint in listed(&folder).map_err(io::Error::other)? {
                let taken = self.trees().charged(&folder.join(checkpoint))?;
                bytes = bytes.saturating_add(taken);
            }
        }
        Ok(bytes)
    }

    /// Refuses a copy that the quota has no room for; one in constant time takes none.
    fn require_quota(&self, id: &str, path: &Path) -> Result<(), DiskError> {
        if self.quota() == "hard" {
            return Ok(());
        }
        let quota = attribute::get(path, attribute::LIMIT).map_err(disk("measure", path))?;
        let Some(quota) = quota else { return Ok(()) };
        let (used, charged) = self.volume_usage(id)?;
        let charged = charged.saturating_add(used);
        if charged > quota {
            return Err(DiskError::BelowUse { quota, charged });
        }
        Ok(())
    }

    /// Deletes a volume and its checkpoints; one that is not there is no error. The space comes back behind.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn delete_volume(&self, id: &str) -> Result<(), DiskError> {
        check_name(NOUN, id)?;
        let path = self.volume_path(id);
        self.trees().remove(&path).map_err(disk("delete", &path))?;
        let folder = self.folder("checkpoints").join(id);
        for checkpoint in listed(&folder)? {
            self.delete_checkpoint(id, &checkpoint)?;
        }
        match std::fs::remove_dir(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(disk("delete", &folder)(e)),
            _ => Ok(()),
        }
    }

    /// The ids of all volumes, each with those of its checkpoints. Checkpoints that an interrupted deletion left come
    /// under their volume's id too.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn volume_ids(&self) -> Result<Vec<(String, Vec<String>)>, DiskError> {
        Self::volume_names(self.data_dir())
    }

    /// [`DiskPool::volume_ids`] of a data directory, without opening its pool; none when it is not mounted.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn volume_names(data_dir: &Path) -> Result<Vec<(String, Vec<String>)>, DiskError> {
        let root = Self::path_in(data_dir);
        let mut volumes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for volume in listed(&root.join("volumes"))? {
            volumes.insert(volume, Vec::new());
        }
        let folder = root.join("checkpoints");
        for volume in listed(&folder)? {
            let checkpoints = listed(&folder.join(&volume))?;
            // The empty folder of a volume that is gone is nothing.
            if !checkpoints.is_empty() || volumes.contains_key(&volume) {
                volumes.insert(volume, checkpoints);
            }
        }
        Ok(volumes.into_iter().collect())
    }

    /// Keeps a volume as it is now, read-only. Where checkpoints are copies ([`DiskPool::quota`] is `soft`), what is written
    /// meanwhile may be in it or not.
    ///
    /// # Errors
    /// [`DiskError::Missing`] without such a volume, [`DiskError::Exists`] with such a checkpoint, [`DiskError::Full`]
    /// when the reserve is touched; [`DiskError::BelowUse`] where checkpoints are copies and the quota has no room for one.
    pub fn checkpoint(&self, volume: &str, id: &str) -> Result<PathBuf, DiskError> {
        check_name(NOUN, volume)?;
        check_name(CHECKPOINT, id)?;
        self.require_room()?;
        let source = self.volume_path(volume);
        if !source.exists() {
            let name = volume.to_owned();
            return Err(DiskError::Missing { noun: NOUN, name });
        }
        self.require_quota(volume, &source)?;
        let target = self.checkpoint_path(volume, id);
        let folder = self.folder("checkpoints").join(volume);
        std::fs::create_dir_all(&folder).map_err(disk("make", &folder))?;
        self.trees()
            .copy(&source, &target, Copy::ReadOnly)
            .map_err(named("keep", CHECKPOINT, id, &target))?;
        Ok(target)
    }

    /// Deletes a checkpoint; one that is not there is no error. Its space comes back behind.
    ///
    /// # Errors
    /// [`DiskError::Disk`].
    pub fn delete_checkpoint(&self, volume: &str, id: &str) -> Result<(), DiskError> {
        check_name(NOUN, volume)?;
        check_name(CHECKPOINT, id)?;
        let path = self.checkpoint_path(volume, id);
        self.trees().remove(&path).map_err(disk("delete", &path))
    }
}
