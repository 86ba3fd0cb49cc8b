//! Volumes: disks that outlive VMs, their checkpoints, their files, and their mounts in VMs.

use crate::{ByteStream, FileContent, NodeError, VmId};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// A volume's id: `vol_` and 20 characters of `[a-z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VolumeId(pub String);

impl std::fmt::Display for VolumeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A checkpoint's id: `ckpt_` and 20 characters of `[a-z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CheckpointId(pub String);

impl std::fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A volume, or a checkpoint of one, in a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume.
    pub volume: VolumeId,
    /// The moment of it that is seen; `None`: the volume as it is.
    pub checkpoint: Option<CheckpointId>,
    /// Where, in the VM: absolute, without `.`, `..` and empty parts, not `/`.
    pub path: String,
    /// Nobody in the VM can write it, its root included.
    pub read_only: bool,
}

/// How full a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeUsage {
    /// Bytes of its files (a file with holes counts what is written).
    pub used_bytes: u64,
    /// Bytes that count against its quota: its files with what the file system needs for them, and what its
    /// checkpoints alone still hold.
    pub charged_bytes: u64,
}

/// A file or directory of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFile {
    /// Relative to the volume's root, without a leading `/`.
    pub path: String,
    /// Bytes; 0 for a directory.
    pub size: u64,
    /// It is a directory.
    pub is_dir: bool,
    /// When its content last changed.
    pub modified_at: SystemTime,
}

/// The part of a node that keeps volumes.
///
/// Paths of files are relative to the volume's root. One that is absolute, has a `..` part, or leads out through a link
/// answers [`NodeError::File`] of the kind [`crate::FileErrorKind::Unsuitable`].
#[async_trait]
pub trait Volumes: Send + Sync {
    /// Makes an empty volume. One that is there already is no error; it gets this quota.
    async fn create_volume(&self, id: &VolumeId, quota_bytes: u64) -> Result<(), NodeError>;

    /// Changes a volume's quota.
    async fn limit_volume(&self, id: &VolumeId, quota_bytes: u64) -> Result<(), NodeError>;

    /// Deletes a volume and its checkpoints; one that is not there is no error. Its space comes back behind.
    ///
    /// # Errors
    /// [`NodeError::Busy`] with who holds it while a VM has it mounted.
    async fn delete_volume(&self, id: &VolumeId) -> Result<(), NodeError>;

    /// Measures a volume.
    async fn volume_usage(&self, id: &VolumeId) -> Result<VolumeUsage, NodeError>;

    /// All volumes that the node keeps, with their checkpoints.
    async fn volumes(&self) -> Result<Vec<(VolumeId, Vec<CheckpointId>)>, NodeError>;

    /// Keeps this moment of a volume, in constant time. Doing it again under the same id answers [`NodeError::Busy`].
    async fn create_checkpoint(
        &self,
        volume: &VolumeId,
        id: &CheckpointId,
    ) -> Result<(), NodeError>;

    /// Deletes a checkpoint; one that is not there is no error.
    ///
    /// # Errors
    /// [`NodeError::Busy`] with who holds it while a VM has it mounted.
    async fn delete_checkpoint(
        &self,
        volume: &VolumeId,
        id: &CheckpointId,
    ) -> Result<(), NodeError>;

    /// Mounts a volume in a running VM, making the directory where it is missing; it is visible when this returns. It
    /// stays until it is unmounted or the VM ends, also across a restart of the node.
    ///
    /// # Errors
    /// [`NodeError::Busy`] when the path has a mount already, or when it is to be written and another VM (or another
    /// mount of this one) writes it; [`NodeError::NoSuchVolume`]; [`NodeError::File`] when the path does not serve.
    async fn mount_volume(&self, vm: &VmId, mount: Mount) -> Result<(), NodeError>;

    /// Takes a mount out of a running VM; one that is not there is no error.
    ///
    /// # Errors
    /// [`NodeError::Busy`] with the processes that use it.
    async fn unmount_volume(&self, vm: &VmId, path: &str) -> Result<(), NodeError>;

    /// The mounts of a running VM.
    async fn mounts(&self, vm: &VmId) -> Result<Vec<Mount>, NodeError>;

    /// Opens a regular file of a volume for reading.
    async fn read_volume_file(
        &self,
        volume: &VolumeId,
        path: &str,
    ) -> Result<FileContent, NodeError>;

    /// Writes a regular file of a volume, creating parent directories; the old content stays until the stream has
    /// ended well. Returns the bytes written.
    ///
    /// # Errors
    /// [`NodeError::File`] of the kinds [`crate::FileErrorKind::Exists`] when it is there and `overwrite` is false, and
    /// [`crate::FileErrorKind::NoSpace`] when the quota is reached.
    async fn write_volume_file(
        &self,
        volume: &VolumeId,
        path: &str,
        overwrite: bool,
        content: ByteStream,
    ) -> Result<u64, NodeError>;

    /// The files of a volume whose path begins with `prefix`, by path, at most `limit`. Recursive: all regular files
    /// below; else the entries of the directory that the prefix names (or of its parent), directories among them.
    async fn list_volume_files(
        &self,
        volume: &VolumeId,
        prefix: &str,
        recursive: bool,
        limit: usize,
    ) -> Result<Vec<VolumeFile>, NodeError>;

    /// Deletes a file, or a directory with everything in it.
    async fn remove_volume_file(&self, volume: &VolumeId, path: &str) -> Result<(), NodeError>;
}
