//! What is kept on the disks, and what is mounted: as the rows say, and as the node has it, in one form.

use crate::consistency::{Kept, Rows};
use crate::rooms::RoomError;
use instavm_control::{mount, snapshot, volume};
use instavm_node::OfflineCheck;
use instavm_node_api::{CheckpointId, Mount, Node, NodeError, SnapshotId, VmId, VolumeId};
use instavm_store::{Database, StoreError};
use std::collections::BTreeSet;

/// What the rows say. Of mounts, those in VMs that run: the others ended with their VM.
pub(super) async fn recorded(
    database: &Database,
    vms: &BTreeSet<String>,
) -> Result<Kept<Rows>, StoreError> {
    let mut kept = Kept::<Rows>::default();
    for row in snapshot::service::recorded(database).await? {
        kept.snapshots.insert(row.id, row.is_ready);
    }
    for row in volume::service::recorded(database).await? {
        for (id, is_ready) in row.checkpoints {
            kept.checkpoints
                .insert(format!("{}/{id}", row.id), is_ready);
        }
        kept.volumes.insert(row.id, row.is_available);
    }
    for row in mount::service::recorded(database).await? {
        if vms.contains(&row.vm_id) {
            let name = format!("{} {}", row.vm_id, row.mount.path);
            kept.mounts.insert(name, row.is_mounted);
        }
    }
    Ok(kept)
}

/// What a running node has.
pub(super) async fn there(
    node: &dyn Node,
    vms: &BTreeSet<String>,
) -> Result<Kept<BTreeSet<String>>, RoomError> {
    let mut mounts = Vec::new();
    for vm in vms {
        let vm = VmId(vm.clone());
        match node.mounts(&vm).await {
            Ok(of_vm) => mounts.extend(of_vm.into_iter().map(|mount| (vm.clone(), mount))),
            Err(NodeError::NoSuchVm) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (snapshots, volumes) = (node.snapshots().await?, node.volumes().await?);
    Ok(named(&snapshots, &volumes, &mounts))
}

/// What a node left that does not run; `None` while its disks cannot be seen.
pub(super) fn left(node: &OfflineCheck) -> Option<Kept<BTreeSet<String>>> {
    let (snapshots, volumes) = (node.snapshots.as_ref()?, node.volumes.as_ref()?);
    Some(named(snapshots, volumes, &node.mounts))
}

fn named(
    snapshots: &[SnapshotId],
    volumes: &[(VolumeId, Vec<CheckpointId>)],
    mounts: &[(VmId, Mount)],
) -> Kept<BTreeSet<String>> {
    let checkpoints = volumes
        .iter()
        .flat_map(|(volume, ids)| ids.iter().map(move |id| format!("{volume}/{id}")));
    Kept {
        snapshots: snapshots.iter().map(ToString::to_string).collect(),
        volumes: volumes.iter().map(|(id, _)| id.0.clone()).collect(),
        checkpoints: checkpoints.collect(),
        mounts: mounts
            .iter()
            .map(|(vm, mount)| format!("{vm} {}", mount.path))
            .collect(),
    }
}
