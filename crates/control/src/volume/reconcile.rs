//! Keeps the rows of volumes, checkpoints and mounts and what the node has of them in line.

use super::rows;
use super::service::{self, Status, Volume};
use crate::Platform;
use crate::checkpoint::rows as checkpoint_rows;
use crate::checkpoint::service::{self as checkpoints, Checkpoint};
use crate::error::{Chain, Problem};
use crate::mount::service as mounts;
use instavm_node_api::{CheckpointId, NodeError, VolumeId};
use instavm_store::StoreError;
use std::collections::HashMap;

type Present = HashMap<VolumeId, Vec<CheckpointId>>;

/// At the start: sets the quotas that the rows name, and compares.
pub(crate) async fn start(platform: &Platform) -> Result<(), StoreError> {
    for volume in rows::everything(&platform.database).await? {
        if volume.status != Status::Available {
            continue;
        }
        match platform
            .node
            .limit_volume(&volume.id, volume.quota_bytes)
            .await
        {
            // The comparison takes note of it.
            Ok(()) | Err(NodeError::NoSuchVolume) => {}
            Err(error) => {
                tracing::warn!(volume = %volume.id, error = %Chain(&error), "setting a volume's quota failed");
            }
        }
    }
    compare(platform).await
}

/// From time to time: deletes what has no row, takes note of what is gone, and goes on with what failed before.
pub(crate) async fn compare(platform: &Platform) -> Result<(), StoreError> {
    mounts::compare(platform).await?;
    // In this order: a row is there before what it stands for.
    let present: Present = match platform.node.volumes().await {
        Ok(present) => present.into_iter().collect(),
        Err(error) => {
            tracing::error!(error = %Chain(&error), "the node does not say which volumes it has");
            return Ok(());
        }
    };
    let checkpoints = checkpoint_rows::everything(&platform.database).await?;
    let known = rows::everything(&platform.database).await?;
    for (id, held) in &present {
        if !known.iter().any(|volume| volume.id == *id) {
            tracing::warn!(volume = %id, "a volume without a record is deleted");
            if let Err(error) = platform.node.delete_volume(id).await {
                tracing::error!(volume = %id, error = %Chain(&error), "deleting a volume failed; again soon");
            }
            continue;
        }
        for checkpoint in held {
            if checkpoints.iter().any(|known| known.id == *checkpoint) {
                continue;
            }
            tracing::warn!(volume = %id, checkpoint = %checkpoint, "a checkpoint without a record is deleted");
            if let Err(error) = platform.node.delete_checkpoint(id, checkpoint).await {
                tracing::error!(volume = %id, checkpoint = %checkpoint, error = %Chain(&error), "deleting a checkpoint failed; again soon");
            }
        }
    }
    for volume in &known {
        let held = present.get(&volume.id);
        let of_it = |checkpoint: &&Checkpoint| checkpoint.volume_id == volume.id;
        let is_in_line = volume.status == Status::Available
            && held.is_some_and(|held| {
                checkpoints
                    .iter()
                    .filter(of_it)
                    .all(|known| known.status == "ready" && held.contains(&known.id))
            });
        if is_in_line {
            continue;
        }
        // What somebody is at is theirs.
        let Some(_guard) = platform.exclusive.try_hold(&volume.id.0) else {
            continue;
        };
        if let Err(problem) = settle(platform, &volume.id).await {
            tracing::error!(volume = %volume.id, error = %Chain(&problem), "settling a volume failed; again soon");
        }
    }
    Ok(())
}

/// Brings one volume in line, by what is so now. Whoever calls holds it.
async fn settle(platform: &Platform, id: &VolumeId) -> Result<(), Problem> {
    let database = &platform.database;
    let Some(volume) = rows::any(database, id).await? else {
        return Ok(());
    };
    match volume.status {
        Status::Deleting => return service::erase(platform, id).await,
        Status::Creating => {
            platform.node.create_volume(id, volume.quota_bytes).await?;
            rows::advance(database, id, Status::Creating, Status::Available).await?;
        }
        Status::Available => take_note(platform, &volume).await?,
        Status::Failed => {}
    }
    Ok(())
}

async fn take_note(platform: &Platform, volume: &Volume) -> Result<(), Problem> {
    let database = &platform.database;
    let present: Present = platform.node.volumes().await?.into_iter().collect();
    let Some(held) = present.get(&volume.id) else {
        tracing::error!(volume = %volume.id, "a volume is gone from the node");
        rows::advance(database, &volume.id, Status::Available, Status::Failed).await?;
        return Ok(());
    };
    for checkpoint in checkpoint_rows::of_volume(database, &volume.id).await? {
        let is_there = held.contains(&checkpoint.id);
        checkpoints::settle(platform, &checkpoint, is_there).await?;
    }
    Ok(())
}
