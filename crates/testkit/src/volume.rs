//! Volumes of a simulated node.

use crate::SimulatedNode;
use crate::node::{file_error, in_pieces, lock, missing};
use crate::storage::{Volume, size};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use instavm_node_api::{
    ByteStream, CheckpointId, FileContent, FileErrorKind, Mount, NodeError, VmId, VolumeFile,
    VolumeId, VolumeUsage, Volumes,
};
use std::collections::BTreeMap;
use std::time::SystemTime;

fn busy(reason: String) -> NodeError {
    NodeError::Busy { reason }
}

/// Refuses paths that lead out of the volume.
fn inside(path: &str) -> Result<String, NodeError> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(file_error(
            FileErrorKind::Unsuitable,
            format!("{path}: leads out of the volume"),
        ));
    }
    Ok(path.to_owned())
}

impl SimulatedNode {
    /// The ids of the volumes that it keeps, sorted.
    pub fn volume_ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = lock(&self.storage)
            .volumes
            .keys()
            .map(|id| id.0.clone())
            .collect();
        ids.sort();
        ids
    }

    /// The ids of a volume's checkpoints, sorted.
    pub fn checkpoint_ids(&self, volume: &str) -> Vec<String> {
        let storage = lock(&self.storage);
        let volume = storage.volumes.get(&VolumeId(volume.to_owned()));
        let checkpoints = volume.map(|volume| volume.checkpoints.keys());
        let mut ids: Vec<_> = checkpoints
            .into_iter()
            .flatten()
            .map(|id| id.0.clone())
            .collect();
        ids.sort();
        ids
    }

    /// A volume's quota.
    pub fn quota(&self, volume: &str) -> Option<u64> {
        let storage = lock(&self.storage);
        let volume = storage.volumes.get(&VolumeId(volume.to_owned()));
        volume.map(|volume| volume.quota)
    }

    /// The content of a volume's file.
    pub fn volume_file(&self, volume: &str, path: &str) -> Option<Bytes> {
        let storage = lock(&self.storage);
        let volume = storage.volumes.get(&VolumeId(volume.to_owned()))?;
        volume.files.get(path).cloned()
    }

    /// Puts a volume there that nobody asked for.
    pub fn plant_volume(&self, id: &str) {
        let id = VolumeId(id.to_owned());
        lock(&self.storage).volumes.insert(id, Volume::default());
    }

    /// Loses a volume.
    pub fn lose_volume(&self, id: &str) {
        lock(&self.storage).volumes.remove(&VolumeId(id.to_owned()));
    }

    /// Which VM has a volume, or one of its checkpoints, mounted.
    fn holder(&self, volume: &VolumeId, checkpoint: Option<&CheckpointId>) -> Option<VmId> {
        let holds = |mount: &Mount| {
            mount.volume == *volume
                && checkpoint.is_none_or(|id| mount.checkpoint.as_ref() == Some(id))
        };
        let vms = lock(&self.vms);
        vms.iter()
            .find(|(_, vm)| lock(&vm.mounts).iter().any(holds))
            .map(|(id, _)| id.clone())
    }

    /// One mount may write a volume at a time.
    pub(crate) fn check_writers(&self, vm: Option<&VmId>, mount: &Mount) -> Result<(), NodeError> {
        let vms = lock(&self.vms);
        for (id, simulated) in vms.iter() {
            for held in lock(&simulated.mounts).iter() {
                if held.volume == mount.volume && !held.read_only && !mount.read_only {
                    return Err(busy(format!("VM {id} writes the volume")));
                }
                if vm == Some(id) && held.path == mount.path {
                    return Err(busy(format!("{} has a mount already", mount.path)));
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Volumes for SimulatedNode {
    async fn create_volume(&self, id: &VolumeId, quota_bytes: u64) -> Result<(), NodeError> {
        self.hooks.pass("create_volume", &self.gates).await?;
        let mut storage = lock(&self.storage);
        storage.volumes.entry(id.clone()).or_default().quota = quota_bytes;
        Ok(())
    }

    async fn limit_volume(&self, id: &VolumeId, quota_bytes: u64) -> Result<(), NodeError> {
        self.hooks.pass("limit_volume", &self.gates).await?;
        lock(&self.storage).volume_mut(id)?.quota = quota_bytes;
        Ok(())
    }

    async fn delete_volume(&self, id: &VolumeId) -> Result<(), NodeError> {
        self.hooks.pass("delete_volume", &self.gates).await?;
        if let Some(vm) = self.holder(id, None) {
            return Err(busy(format!("VM {vm} has the volume mounted")));
        }
        lock(&self.storage).volumes.remove(id);
        Ok(())
    }

    async fn volume_usage(&self, id: &VolumeId) -> Result<VolumeUsage, NodeError> {
        self.hooks.pass("volume_usage", &self.gates).await?;
        let storage = lock(&self.storage);
        let volume = storage.volume(id)?;
        Ok(VolumeUsage {
            used_bytes: size(&volume.files),
            charged_bytes: volume.charged(),
        })
    }

    async fn volumes(&self) -> Result<Vec<(VolumeId, Vec<CheckpointId>)>, NodeError> {
        let storage = lock(&self.storage);
        let volumes = storage.volumes.iter();
        Ok(volumes
            .map(|(id, volume)| (id.clone(), volume.checkpoints.keys().cloned().collect()))
            .collect())
    }

    async fn create_checkpoint(
        &self,
        volume: &VolumeId,
        id: &CheckpointId,
    ) -> Result<(), NodeError> {
        self.hooks.pass("create_checkpoint", &self.gates).await?;
        let mut storage = lock(&self.storage);
        let volume = storage.volume_mut(volume)?;
        if volume.checkpoints.contains_key(id) {
            return Err(busy("the checkpoint is there already".to_owned()));
        }
        let files = volume.files.clone();
        volume.checkpoints.insert(id.clone(), files);
        Ok(())
    }

    async fn delete_checkpoint(
        &self,
        volume: &VolumeId,
        id: &CheckpointId,
    ) -> Result<(), NodeError> {
        self.hooks.pass("delete_checkpoint", &self.gates).await?;
        if let Some(vm) = self.holder(volume, Some(id)) {
            return Err(busy(format!("VM {vm} has the checkpoint mounted")));
        }
        if let Ok(volume) = lock(&self.storage).volume_mut(volume) {
            volume.checkpoints.remove(id);
        }
        Ok(())
    }

    async fn mount_volume(&self, vm: &VmId, mount: Mount) -> Result<(), NodeError> {
        self.hooks.pass("mount_volume", &self.gates).await?;
        let simulated = self.find(vm)?;
        lock(&self.storage).seen(&mount)?;
        if lock(&simulated.files).contains_key(&mount.path) {
            return Err(file_error(
                FileErrorKind::Unsuitable,
                format!("{}: is no directory", mount.path),
            ));
        }
        self.check_writers(Some(vm), &mount)?;
        lock(&simulated.mounts).push(mount);
        Ok(())
    }

    async fn unmount_volume(&self, vm: &VmId, path: &str) -> Result<(), NodeError> {
        self.hooks.pass("unmount_volume", &self.gates).await?;
        let simulated = self.find(vm)?;
        if lock(&simulated.files).contains_key("/holds-mounts") {
            return Err(busy(format!("{path} is in use by process 42 (python3)")));
        }
        lock(&simulated.mounts).retain(|mount| mount.path != path);
        Ok(())
    }

    async fn mounts(&self, vm: &VmId) -> Result<Vec<Mount>, NodeError> {
        Ok(lock(&self.find(vm)?.mounts).clone())
    }

    async fn read_volume_file(
        &self,
        volume: &VolumeId,
        path: &str,
    ) -> Result<FileContent, NodeError> {
        let path = inside(path)?;
        let storage = lock(&self.storage);
        let content = storage.volume(volume)?.files.get(&path);
        content.map(in_pieces).ok_or_else(|| missing(&path))
    }

    async fn write_volume_file(
        &self,
        volume: &VolumeId,
        path: &str,
        overwrite: bool,
        content: ByteStream,
    ) -> Result<u64, NodeError> {
        let path = inside(path)?;
        let exists = || -> Result<bool, NodeError> {
            let storage = lock(&self.storage);
            Ok(storage.volume(volume)?.files.contains_key(&path))
        };
        if exists()? && !overwrite {
            return Err(file_error(
                FileErrorKind::Exists,
                format!("{path}: is there already"),
            ));
        }
        let pieces: Vec<Bytes> = content.try_collect().await?;
        let content = Bytes::from(pieces.concat());
        let size = content.len() as u64;
        lock(&self.storage).write(volume, &path, content)?;
        Ok(size)
    }

    async fn list_volume_files(
        &self,
        volume: &VolumeId,
        prefix: &str,
        recursive: bool,
        limit: usize,
    ) -> Result<Vec<VolumeFile>, NodeError> {
        let prefix = inside(prefix)?;
        let storage = lock(&self.storage);
        let files = storage.volume(volume)?.files.iter();
        let base = prefix.rfind('/').map_or(0, |at| at + 1);
        let mut found: BTreeMap<String, (u64, bool)> = BTreeMap::new();
        for (path, content) in files.filter(|(path, _)| path.starts_with(&prefix)) {
            match path[base..].find('/') {
                Some(end) if !recursive => found.insert(path[..base + end].to_owned(), (0, true)),
                _ => found.insert(path.clone(), (content.len() as u64, false)),
            };
        }
        Ok(found
            .into_iter()
            .take(limit)
            .map(|(path, (size, is_dir))| VolumeFile {
                path,
                size,
                is_dir,
                modified_at: SystemTime::UNIX_EPOCH,
            })
            .collect())
    }

    async fn remove_volume_file(&self, volume: &VolumeId, path: &str) -> Result<(), NodeError> {
        let path = inside(path)?;
        let mut storage = lock(&self.storage);
        let files = &mut storage.volume_mut(volume)?.files;
        let folder = format!("{path}/");
        let before = files.len();
        files.retain(|file, _| *file != path && !file.starts_with(&folder));
        if files.len() == before {
            return Err(missing(&path));
        }
        Ok(())
    }
}
