//! The rows of mounts. The row of a mount is there before the mount, and goes after it.

use crate::clock::Moment;
use crate::error::{Kind, Problem};
use crate::volume::rows as volume_rows;
use instavm_node_api::{CheckpointId, Mount, VmId, VolumeId};
use instavm_store::{Database, Row, StoreError, Transaction};

/// A mount with its row's status.
#[derive(Clone, Debug)]
pub(crate) struct Recorded {
    pub vm_id: VmId,
    pub mount: Mount,
    /// The volume's name.
    pub name: String,
    pub status: String,
}

/// Gives a VM that is being made its mounts, or refuses because a volume is gone or written by another VM.
pub(crate) async fn take(
    transaction: &mut Transaction,
    account_id: i64,
    vm: &VmId,
    mounts: &[Mount],
) -> Result<(), Problem> {
    // In one order, so that two such transactions wait for each other and never in a circle.
    let mut mounts: Vec<&Mount> = mounts.iter().collect();
    mounts.sort_by(|a, b| a.volume.cmp(&b.volume));
    for mount in mounts {
        add(transaction, account_id, vm, mount).await?;
    }
    Ok(())
}

/// Adds a mount that is to be made. The volume cannot be deleted, nor taken by another writer, until the transaction ends.
pub(crate) async fn add(
    transaction: &mut Transaction,
    account_id: i64,
    vm: &VmId,
    mount: &Mount,
) -> Result<(), Problem> {
    let volume = &mount.volume;
    if !volume_rows::hold(transaction, account_id, volume).await? {
        return Err(Problem::new(
            Kind::NotFound,
            format!(
                "volume {volume} not found: it does not exist, is being deleted, or belongs to another account"
            ),
        ));
    }
    if let Some(checkpoint) = &mount.checkpoint
        && !has_checkpoint(transaction, volume, checkpoint).await?
    {
        return Err(Problem::new(
            Kind::NotFound,
            format!(
                "checkpoint {checkpoint} not found: volume {volume} has no such checkpoint that is ready"
            ),
        ));
    }
    if !mount.read_only
        && let Some(writer) = writer(transaction, volume).await?
    {
        return Err(Problem::new(
            Kind::Conflict,
            format!(
                "volume {volume} is in use: VM {writer} has it mounted for writing, and one mount at a time may; mount it \
                 with the mode ro, or take it out of that VM first"
            ),
        ));
    }
    transaction
        .execute(
            "INSERT INTO mounts (vm_id, path, volume_id, checkpoint_id, is_read_only, status, created_at) \
             VALUES ($1, $2, $3, $4, $5, 'mounting', $6)",
            vec![
                vm.0.as_str().into(),
                mount.path.as_str().into(),
                volume.0.as_str().into(),
                mount.checkpoint.as_ref().map(|id| id.0.as_str()).into(),
                mount.read_only.into(),
                Moment::now().0.into(),
            ],
        )
        .await?;
    Ok(())
}

async fn has_checkpoint(
    transaction: &mut Transaction,
    volume: &VolumeId,
    id: &CheckpointId,
) -> Result<bool, StoreError> {
    let row = transaction
        .fetch_optional(
            "SELECT id FROM checkpoints WHERE id = $1 AND volume_id = $2 AND status = 'ready'",
            vec![id.0.as_str().into(), volume.0.as_str().into()],
        )
        .await?;
    Ok(row.is_some())
}

/// The VM that writes a volume.
async fn writer(
    transaction: &mut Transaction,
    volume: &VolumeId,
) -> Result<Option<String>, StoreError> {
    let row = transaction
        .fetch_optional(
            "SELECT vm_id FROM mounts WHERE volume_id = $1 AND is_read_only = 0 LIMIT 1",
            vec![volume.0.as_str().into()],
        )
        .await?;
    row.map(|row| row.get("vm_id")).transpose()
}

/// The VMs that have a volume, or one of its checkpoints, mounted.
pub(crate) async fn holders(
    transaction: &mut Transaction,
    volume: &VolumeId,
    checkpoint: Option<&CheckpointId>,
) -> Result<Vec<String>, StoreError> {
    let rows = transaction
        .fetch(
            "SELECT DISTINCT vm_id FROM mounts WHERE volume_id = $1 AND COALESCE($2, checkpoint_id, '') = \
             COALESCE(checkpoint_id, '') ORDER BY vm_id",
            vec![
                volume.0.as_str().into(),
                checkpoint.map(|id| id.0.as_str()).into(),
            ],
        )
        .await?;
    rows.iter().map(|row| row.get("vm_id")).collect()
}

/// The volumes of an account with the VMs that have them mounted.
pub(crate) async fn of_account(
    database: &Database,
    account_id: i64,
) -> Result<Vec<(String, String)>, StoreError> {
    let rows = database
        .fetch(
            "SELECT DISTINCT volume_id, vm_id FROM mounts JOIN volumes ON volumes.id = volume_id \
             WHERE account_id = $1 ORDER BY volume_id, vm_id",
            vec![account_id.into()],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.get("volume_id")?, row.get("vm_id")?)))
        .collect()
}

/// The mounts of a VM, by path.
pub(crate) async fn of_vm(database: &Database, vm: &VmId) -> Result<Vec<Recorded>, StoreError> {
    let rows = database
        .fetch(
            "SELECT vm_id, path, volume_id, checkpoint_id, is_read_only, mounts.status AS status, name FROM mounts \
             JOIN volumes ON volumes.id = volume_id WHERE vm_id = $1 ORDER BY path",
            vec![vm.0.as_str().into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The mounts of all VMs.
pub(crate) async fn everything(database: &Database) -> Result<Vec<Recorded>, StoreError> {
    let rows = database
        .fetch(
            "SELECT vm_id, path, volume_id, checkpoint_id, is_read_only, mounts.status AS status, name FROM mounts \
             JOIN volumes ON volumes.id = volume_id ORDER BY vm_id, path",
            vec![],
        )
        .await?;
    rows.iter().map(read).collect()
}

fn read(row: &Row) -> Result<Recorded, StoreError> {
    Ok(Recorded {
        vm_id: VmId(row.get("vm_id")?),
        mount: Mount {
            volume: VolumeId(row.get("volume_id")?),
            checkpoint: row
                .get::<Option<String>>("checkpoint_id")?
                .map(CheckpointId),
            path: row.get("path")?,
            read_only: row.get("is_read_only")?,
        },
        name: row.get("name")?,
        status: row.get("status")?,
    })
}

/// Records that a mount has come so far; whether it was where it was thought to be.
pub(crate) async fn advance(
    database: &Database,
    vm: &VmId,
    path: &str,
    from: &'static str,
    to: &'static str,
) -> Result<bool, StoreError> {
    let changed = database
        .execute(
            "UPDATE mounts SET status = $4 WHERE vm_id = $1 AND path = $2 AND status = $3",
            vec![vm.0.as_str().into(), path.into(), from.into(), to.into()],
        )
        .await?;
    Ok(changed > 0)
}

/// Records that all mounts that a VM was made with are there.
pub(crate) async fn settle(transaction: &mut Transaction, vm: &VmId) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE mounts SET status = 'mounted' WHERE vm_id = $1 AND status = 'mounting'",
            vec![vm.0.as_str().into()],
        )
        .await?;
    Ok(())
}

/// Drops the row of a mount.
pub(crate) async fn remove(database: &Database, vm: &VmId, path: &str) -> Result<(), StoreError> {
    database
        .execute(
            "DELETE FROM mounts WHERE vm_id = $1 AND path = $2",
            vec![vm.0.as_str().into(), path.into()],
        )
        .await?;
    Ok(())
}

/// Drops the rows of all mounts that the VMs of a session had.
pub(crate) async fn drop_of_session(
    transaction: &mut Transaction,
    session_id: &str,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "DELETE FROM mounts WHERE vm_id IN (SELECT id FROM vms WHERE session_id = $1)",
            vec![session_id.into()],
        )
        .await?;
    Ok(())
}

/// Drops the rows of all mounts of a VM.
pub(crate) async fn drop_all(transaction: &mut Transaction, vm: &VmId) -> Result<(), StoreError> {
    transaction
        .execute(
            "DELETE FROM mounts WHERE vm_id = $1",
            vec![vm.0.as_str().into()],
        )
        .await?;
    Ok(())
}
