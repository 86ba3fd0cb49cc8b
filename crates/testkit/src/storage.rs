//! What a simulated node keeps beside VMs.

use crate::node::file_error;
use bytes::Bytes;
use instavm_node_api::{CheckpointId, FileErrorKind, Mount, NodeError, SnapshotId, VolumeId};
use std::collections::{BTreeMap, HashMap};

/// Files by path.
pub(crate) type Files = BTreeMap<String, Bytes>;

/// Snapshots and volumes.
#[derive(Debug, Default)]
pub(crate) struct Storage {
    pub snapshots: HashMap<SnapshotId, Files>,
    pub volumes: HashMap<VolumeId, Volume>,
}

/// A volume, its paths relative to its root.
#[derive(Debug, Default)]
pub(crate) struct Volume {
    pub quota: u64,
    pub files: Files,
    pub checkpoints: HashMap<CheckpointId, Files>,
}

/// Bytes of files.
pub(crate) fn size(files: &Files) -> u64 {
    files.values().map(|content| content.len() as u64).sum()
}

impl Volume {
    /// What counts against the quota.
    pub(crate) fn charged(&self) -> u64 {
        size(&self.files) + self.checkpoints.values().map(size).sum::<u64>()
    }
}

impl Storage {
    pub(crate) fn volume(&self, id: &VolumeId) -> Result<&Volume, NodeError> {
        self.volumes.get(id).ok_or(NodeError::NoSuchVolume)
    }

    pub(crate) fn volume_mut(&mut self, id: &VolumeId) -> Result<&mut Volume, NodeError> {
        self.volumes.get_mut(id).ok_or(NodeError::NoSuchVolume)
    }

    /// The files that a mount shows.
    pub(crate) fn seen(&self, mount: &Mount) -> Result<&Files, NodeError> {
        let volume = self.volume(&mount.volume)?;
        match &mount.checkpoint {
            None => Ok(&volume.files),
            Some(id) => volume.checkpoints.get(id).ok_or(NodeError::NoSuchVolume),
        }
    }

    /// Writes a file within the volume's quota.
    pub(crate) fn write(
        &mut self,
        id: &VolumeId,
        path: &str,
        content: Bytes,
    ) -> Result<(), NodeError> {
        let volume = self.volume_mut(id)?;
        if volume.charged() + content.len() as u64 > volume.quota {
            return Err(file_error(
                FileErrorKind::NoSpace,
                format!("{path}: the volume's quota is reached"),
            ));
        }
        volume.files.insert(path.to_owned(), content);
        Ok(())
    }
}
