//! Snapshots: saved root disks that VMs start from.

use crate::blocking::{blocking, disk_error, internal};
use crate::book::BookError;
use crate::machine::chain;
use crate::node::{Inner, LocalNode};
use crate::vm::Vm;
use crate::{build, fault};
use async_trait::async_trait;
use instavm_node_api::{
    BuildProgress, NodeError, SnapshotBuild, SnapshotBuilt, SnapshotId, SnapshotTaken, Snapshots,
    VmId,
};
use instavm_runtime::cgroup::CgroupError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

const TAKING: &str = "taking a snapshot";
const DELETING: &str = "deleting a snapshot";
const MEASURING: &str = "measuring a snapshot";

/// The node's error for a change of a record.
pub(crate) fn book_error(operation: &'static str, error: BookError) -> NodeError {
    match error {
        BookError::Closed => NodeError::VmEnded,
        error => internal(operation, error),
    }
}

impl Inner {
    /// Where the snapshot's root is.
    pub(crate) fn snapshot_path(&self, id: &SnapshotId) -> Result<PathBuf, NodeError> {
        let path = self.workshop.disks.snapshot_path(&id.0);
        if path.exists() {
            Ok(path)
        } else {
            Err(NodeError::NoSuchSnapshot)
        }
    }

    async fn take_snapshot(&self, vm: &Vm, id: &SnapshotId) -> Result<SnapshotTaken, NodeError> {
        // Snapshots of one VM queue: each stands still for itself.
        let _change = vm.changing.lock().await;
        if vm.over.is_cancelled() {
            return Err(NodeError::VmEnded);
        }
        let (disks, cgroup) = (self.workshop.disks.clone(), vm.cgroup.clone());
        let (disk, snapshot) = (vm.machine.clone(), id.0.clone());
        let saved = blocking(TAKING, move || {
            if disks.snapshot_path(&snapshot).exists() {
                let reason = format!("the snapshot {snapshot} is there already");
                return Err(NodeError::Busy { reason });
            }
            let failed = disk_error(TAKING);
            // What is written before the VM stands still need not be written while it does.
            disks.flush(&disk).map_err(&failed)?;
            let frozen = cgroup.freeze().map_err(freeze_error)?;
            // Dropped on any way out, which lets the VM go on.
            fault::at("save").map_err(|error| internal(TAKING, error))?;
            let size_bytes = disks.save(&disk, &snapshot).map_err(&failed)?;
            let pause = frozen.thaw().unwrap_or_else(|error| {
                tracing::warn!(error = %chain(&error), "a VM ended while it stood still");
                Duration::ZERO
            });
            Ok(SnapshotTaken { pause, size_bytes })
        });
        match saved.await {
            Ok(taken) => Ok(taken),
            Err(NodeError::Internal { .. }) if vm.over.is_cancelled() => Err(NodeError::VmEnded),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), NodeError> {
        let (disks, id) = (self.workshop.disks.clone(), id.0.clone());
        blocking(DELETING, move || {
            disks.delete_snapshot(&id).map_err(disk_error(DELETING))
        })
        .await
    }
}

fn freeze_error(error: CgroupError) -> NodeError {
    match error {
        CgroupError::Restless(_) => NodeError::Busy {
            reason: "a process of the VM does not stand still: it waits in the kernel for something that does not \
                     come; try again, or end it"
                .to_owned(),
        },
        error => internal(TAKING, error),
    }
}

#[async_trait]
impl Snapshots for LocalNode {
    async fn take_snapshot(&self, vm: &VmId, id: &SnapshotId) -> Result<SnapshotTaken, NodeError> {
        let (inner, id) = (self.inner.clone(), id.clone());
        let vm: Arc<Vm> = inner.vm(vm)?;
        let (answer, taken) = oneshot::channel();
        // A task of its own: a VM that stands still goes on whatever becomes of the caller, and a snapshot that nobody
        // waits for any more is not left behind.
        self.inner.tracker.spawn(async move {
            let taken = inner.take_snapshot(&vm, &id).await;
            if let Err(Ok(_)) = answer.send(taken)
                && let Err(error) = inner.delete_snapshot(&id).await
            {
                tracing::error!(snapshot = %id, error = %chain(&error), "cannot delete a snapshot that nobody waits for");
            }
        });
        taken
            .await
            .unwrap_or_else(|gone| Err(internal(TAKING, gone)))
    }

    async fn build_snapshot(
        &self,
        build: SnapshotBuild,
        progress: mpsc::Sender<BuildProgress>,
    ) -> Result<SnapshotBuilt, NodeError> {
        build::run(self.inner.clone(), build, progress).await
    }

    async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), NodeError> {
        self.inner.delete_snapshot(id).await
    }

    async fn snapshot_size(&self, id: &SnapshotId) -> Result<u64, NodeError> {
        self.inner.snapshot_path(id)?;
        let (disks, id) = (self.inner.workshop.disks.clone(), id.0.clone());
        blocking(MEASURING, move || {
            disks.snapshot_bytes(&id).map_err(disk_error(MEASURING))
        })
        .await
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotId>, NodeError> {
        const LISTING: &str = "listing snapshots";
        let disks = self.inner.workshop.disks.clone();
        blocking(LISTING, move || {
            let ids = disks.snapshot_ids().map_err(disk_error(LISTING))?;
            Ok(ids.into_iter().map(SnapshotId).collect())
        })
        .await
    }

    async fn keep_disk_as(&self, vm: &VmId, id: Option<SnapshotId>) -> Result<(), NodeError> {
        let vm = self.inner.vm(vm)?;
        vm.book
            .change(|active| active.spec.keep_disk_as = id)
            .map_err(|error| book_error("deciding about a disk", error))
    }
}
