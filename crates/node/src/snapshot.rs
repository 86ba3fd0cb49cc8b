//! Snapshots: saved root disks.

use crate::node::LocalNode;
use async_trait::async_trait;
use instavm_node_api::{
    BuildProgress, NodeError, SnapshotBuild, SnapshotBuilt, SnapshotId, SnapshotTaken, Snapshots,
    VmId,
};
use tokio::sync::mpsc;

pub(crate) fn not_yet(operation: &'static str) -> NodeError {
    NodeError::Internal {
        operation,
        source: "this node does not do it".into(),
    }
}

#[async_trait]
impl Snapshots for LocalNode {
    async fn take_snapshot(
        &self,
        _vm: &VmId,
        _id: &SnapshotId,
    ) -> Result<SnapshotTaken, NodeError> {
        Err(not_yet("taking a snapshot"))
    }

    async fn build_snapshot(
        &self,
        _build: SnapshotBuild,
        _progress: mpsc::Sender<BuildProgress>,
    ) -> Result<SnapshotBuilt, NodeError> {
        Err(not_yet("building a snapshot"))
    }

    async fn delete_snapshot(&self, _id: &SnapshotId) -> Result<(), NodeError> {
        Err(not_yet("deleting a snapshot"))
    }

    async fn snapshot_size(&self, _id: &SnapshotId) -> Result<u64, NodeError> {
        Err(not_yet("measuring a snapshot"))
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotId>, NodeError> {
        Ok(Vec::new())
    }

    async fn keep_disk_as(&self, _vm: &VmId, _id: Option<SnapshotId>) -> Result<(), NodeError> {
        Err(not_yet("keeping a disk"))
    }
}
