//! The rows of checkpoints.

use super::service::Checkpoint;
use crate::clock::Moment;
use instavm_node_api::{CheckpointId, VolumeId};
use instavm_store::{Database, Row, StoreError, Transaction};

/// The columns of a checkpoint.
macro_rules! columns {
    () => {
        "id, account_id, volume_id, name, status, created_at"
    };
}

/// Adds a checkpoint that is being made.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    checkpoint: &Checkpoint,
) -> Result<(), StoreError> {
    transaction
        .execute(
            concat!(
                "INSERT INTO checkpoints (",
                columns!(),
                ") VALUES ($1, $2, $3, $4, $5, $6)"
            ),
            vec![
                checkpoint.id.0.as_str().into(),
                checkpoint.account_id.into(),
                checkpoint.volume_id.0.as_str().into(),
                checkpoint.name.as_str().into(),
                checkpoint.status.as_str().into(),
                checkpoint.created_at.0.into(),
            ],
        )
        .await?;
    Ok(())
}

/// A checkpoint of a volume, unless it is being deleted.
pub(crate) async fn find(
    database: &Database,
    volume: &VolumeId,
    id: &str,
) -> Result<Option<Checkpoint>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                " FROM checkpoints WHERE id = $1 AND volume_id = $2 AND status <> 'deleting'"
            ),
            vec![id.into(), volume.0.as_str().into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// The newest checkpoint of a volume that is ready.
pub(crate) async fn newest(
    database: &Database,
    volume: &VolumeId,
) -> Result<Option<CheckpointId>, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT id FROM checkpoints WHERE volume_id = $1 AND status = 'ready' ORDER BY created_at DESC, id DESC \
             LIMIT 1",
            vec![volume.0.as_str().into()],
        )
        .await?;
    row.map(|row| row.get("id").map(CheckpointId)).transpose()
}

/// The checkpoints of a volume, oldest first; those that are being deleted among them.
pub(crate) async fn of_volume(
    database: &Database,
    volume: &VolumeId,
) -> Result<Vec<Checkpoint>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM checkpoints WHERE volume_id = $1 ORDER BY created_at, id"
            ),
            vec![volume.0.as_str().into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The checkpoints of all volumes.
pub(crate) async fn everything(database: &Database) -> Result<Vec<Checkpoint>, StoreError> {
    let rows = database
        .fetch(concat!("SELECT ", columns!(), " FROM checkpoints"), vec![])
        .await?;
    rows.iter().map(read).collect()
}

/// Records how far a checkpoint has come.
pub(crate) async fn set_status(
    database: &Database,
    id: &CheckpointId,
    status: &'static str,
) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE checkpoints SET status = $2 WHERE id = $1",
            vec![id.0.as_str().into(), status.into()],
        )
        .await?;
    Ok(())
}

/// Records that a checkpoint is to be deleted.
pub(crate) async fn begin_deleting(
    transaction: &mut Transaction,
    id: &CheckpointId,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE checkpoints SET status = 'deleting' WHERE id = $1",
            vec![id.0.as_str().into()],
        )
        .await?;
    Ok(())
}

/// Drops a checkpoint's row.
pub(crate) async fn remove(database: &Database, id: &CheckpointId) -> Result<(), StoreError> {
    database
        .execute(
            "DELETE FROM checkpoints WHERE id = $1",
            vec![id.0.as_str().into()],
        )
        .await?;
    Ok(())
}

fn read(row: &Row) -> Result<Checkpoint, StoreError> {
    Ok(Checkpoint {
        id: CheckpointId(row.get("id")?),
        account_id: row.get("account_id")?,
        volume_id: VolumeId(row.get("volume_id")?),
        name: row.get("name")?,
        status: row.get("status")?,
        created_at: Moment(row.get("created_at")?),
    })
}
