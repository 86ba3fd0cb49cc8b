//! Volumes.

use crate::node::LocalNode;
use crate::snapshot::not_yet;
use async_trait::async_trait;
use instavm_node_api::{
    ByteStream, CheckpointId, FileContent, Mount, NodeError, VmId, VolumeFile, VolumeId,
    VolumeUsage, Volumes,
};

#[async_trait]
impl Volumes for LocalNode {
    async fn create_volume(&self, _id: &VolumeId, _quota_bytes: u64) -> Result<(), NodeError> {
        Err(not_yet("making a volume"))
    }

    async fn limit_volume(&self, _id: &VolumeId, _quota_bytes: u64) -> Result<(), NodeError> {
        Err(not_yet("limiting a volume"))
    }

    async fn delete_volume(&self, _id: &VolumeId) -> Result<(), NodeError> {
        Err(not_yet("deleting a volume"))
    }

    async fn volume_usage(&self, _id: &VolumeId) -> Result<VolumeUsage, NodeError> {
        Err(not_yet("measuring a volume"))
    }

    async fn volumes(&self) -> Result<Vec<(VolumeId, Vec<CheckpointId>)>, NodeError> {
        Ok(Vec::new())
    }

    async fn create_checkpoint(
        &self,
        _volume: &VolumeId,
        _id: &CheckpointId,
    ) -> Result<(), NodeError> {
        Err(not_yet("making a checkpoint"))
    }

    async fn delete_checkpoint(
        &self,
        _volume: &VolumeId,
        _id: &CheckpointId,
    ) -> Result<(), NodeError> {
        Err(not_yet("deleting a checkpoint"))
    }

    async fn mount_volume(&self, _vm: &VmId, _mount: Mount) -> Result<(), NodeError> {
        Err(not_yet("mounting a volume"))
    }

    async fn unmount_volume(&self, _vm: &VmId, _path: &str) -> Result<(), NodeError> {
        Err(not_yet("unmounting a volume"))
    }

    async fn mounts(&self, _vm: &VmId) -> Result<Vec<Mount>, NodeError> {
        Ok(Vec::new())
    }

    async fn read_volume_file(
        &self,
        _volume: &VolumeId,
        _path: &str,
    ) -> Result<FileContent, NodeError> {
        Err(not_yet("reading a file of a volume"))
    }

    async fn write_volume_file(
        &self,
        _volume: &VolumeId,
        _path: &str,
        _overwrite: bool,
        _content: ByteStream,
    ) -> Result<u64, NodeError> {
        Err(not_yet("writing a file of a volume"))
    }

    async fn list_volume_files(
        &self,
        _volume: &VolumeId,
        _prefix: &str,
        _recursive: bool,
        _limit: usize,
    ) -> Result<Vec<VolumeFile>, NodeError> {
        Err(not_yet("listing the files of a volume"))
    }

    async fn remove_volume_file(&self, _volume: &VolumeId, _path: &str) -> Result<(), NodeError> {
        Err(not_yet("deleting a file of a volume"))
    }
}
