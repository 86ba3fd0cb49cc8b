//! The rules of checkpoints.

use super::rows;
use crate::Platform;
use crate::clock::Moment;
use crate::error::{Chain, Kind, Problem};
use crate::mount::rows as mount_rows;
use crate::space;
use crate::volume::{rows as volume_rows, service as volumes};
use instavm_node_api::{CheckpointId, VolumeId};

/// A checkpoint; its status is `creating`, `ready`, `failed` or `deleting`.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub id: CheckpointId,
    pub account_id: i64,
    pub volume_id: VolumeId,
    pub name: String,
    pub status: String,
    pub created_at: Moment,
}

fn not_found() -> Problem {
    Problem::new(
        Kind::NotFound,
        "checkpoint not found: this volume has no such checkpoint",
    )
}

/// Keeps this moment of a volume.
pub(crate) async fn create(
    platform: &Platform,
    account_id: i64,
    volume: &str,
    id: CheckpointId,
    name: String,
) -> Result<Checkpoint, Problem> {
    let volume_id = volumes::available(platform, account_id, volume).await?.id;
    let mut checkpoint = Checkpoint {
        id,
        account_id,
        volume_id,
        name,
        status: "creating".to_owned(),
        created_at: Moment::now(),
    };
    let platform_there = platform.clone();
    let task = async move {
        let platform = platform_there;
        let _guard = platform.exclusive.hold(&checkpoint.volume_id.0).await;
        record(&platform, &checkpoint).await?;
        let (volume, id) = (&checkpoint.volume_id, &checkpoint.id);
        if let Err(error) = platform.node.create_checkpoint(volume, id).await {
            // Should it be there all the same, the next comparison deletes it.
            rows::remove(&platform.database, id).await?;
            return Err(error.into());
        }
        rows::set_status(&platform.database, id, "ready").await?;
        checkpoint.status = "ready".to_owned();
        Ok(checkpoint)
    };
    platform.carry_out("making the checkpoint", task).await
}

async fn record(platform: &Platform, checkpoint: &Checkpoint) -> Result<(), Problem> {
    let (volume, account_id) = (&checkpoint.volume_id, checkpoint.account_id);
    let mut transaction = platform.database.begin().await?;
    if !volume_rows::hold(&mut transaction, account_id, volume).await? {
        return Err(Problem::new(
            Kind::NotFound,
            "volume not found: it was deleted meanwhile",
        ));
    }
    let count = space::count(
        &mut transaction,
        "SELECT CAST(count(*) AS BIGINT) AS count FROM checkpoints WHERE volume_id = $1",
        vec![volume.0.as_str().into()],
    )
    .await?;
    let limit = platform.settings.checkpoints_per_volume;
    if count >= limit {
        return Err(Problem::new(
            Kind::TooMany,
            format!(
                "volume {volume} has {count} checkpoints and the limit is {limit}: delete some"
            ),
        ));
    }
    rows::insert(&mut transaction, checkpoint).await?;
    Ok(transaction.commit().await?)
}

/// A checkpoint of a volume of the account.
pub(crate) async fn find(
    platform: &Platform,
    account_id: i64,
    volume: &str,
    id: &str,
) -> Result<Option<Checkpoint>, Problem> {
    let volume = volumes::find(platform, account_id, volume).await?;
    Ok(rows::find(&platform.database, &volume.id, id).await?)
}

/// The checkpoints of a volume, oldest first.
pub(crate) async fn list(
    platform: &Platform,
    account_id: i64,
    volume: &str,
) -> Result<Vec<Checkpoint>, Problem> {
    let volume = volumes::find(platform, account_id, volume).await?;
    Ok(rows::of_volume(&platform.database, &volume.id).await?)
}

/// Deletes a checkpoint that no VM has mounted; whether nothing is left of it.
pub(crate) async fn delete(
    platform: &Platform,
    account_id: i64,
    volume: &str,
    id: &str,
) -> Result<bool, Problem> {
    let volume = volumes::find(platform, account_id, volume).await?.id;
    let (platform_there, id) = (platform.clone(), id.to_owned());
    let task = async move {
        let platform = platform_there;
        let _guard = platform.exclusive.hold(&volume.0).await;
        let found = rows::find(&platform.database, &volume, &id).await?;
        let checkpoint = found.ok_or_else(not_found)?;
        let mut transaction = platform.database.begin().await?;
        // Whoever mounts it does the same first.
        volume_rows::hold(&mut transaction, account_id, &volume).await?;
        rows::begin_deleting(&mut transaction, &checkpoint.id).await?;
        let holders = mount_rows::holders(&mut transaction, &volume, Some(&checkpoint.id)).await?;
        if !holders.is_empty() {
            return Err(volumes::in_use(&format!("checkpoint {id}"), &holders));
        }
        transaction.commit().await?;
        match erase(&platform, &checkpoint).await {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::error!(checkpoint = %checkpoint.id, error = %Chain(&error), "deleting a checkpoint failed; again soon");
                Ok(false)
            }
        }
    };
    platform.carry_out("deleting the checkpoint", task).await
}

async fn erase(platform: &Platform, checkpoint: &Checkpoint) -> Result<(), Problem> {
    let (volume, id) = (&checkpoint.volume_id, &checkpoint.id);
    platform.node.delete_checkpoint(volume, id).await?;
    Ok(rows::remove(&platform.database, id).await?)
}

/// Brings a checkpoint's row in line with what the node has. Whoever calls holds the volume.
pub(crate) async fn settle(
    platform: &Platform,
    checkpoint: &Checkpoint,
    is_there: bool,
) -> Result<(), Problem> {
    let database = &platform.database;
    match (checkpoint.status.as_str(), is_there) {
        ("deleting", _) => erase(platform, checkpoint).await?,
        ("creating", true) => rows::set_status(database, &checkpoint.id, "ready").await?,
        ("creating", false) => rows::remove(database, &checkpoint.id).await?,
        ("ready", false) => {
            tracing::error!(checkpoint = %checkpoint.id, "a checkpoint is gone from the node");
            rows::set_status(database, &checkpoint.id, "failed").await?;
        }
        _ => {}
    }
    Ok(())
}
