//! The rows of volumes.

use super::service::{Status, Volume};
use crate::clock::Moment;
use instavm_node_api::{VolumeId, VolumeUsage};
use instavm_store::{Database, Row, StoreError, Transaction, Value};

/// The columns of a volume.
macro_rules! columns {
    () => {
        "id, account_id, name, status, quota_bytes, used_bytes, charged_bytes, measured_at, created_at, updated_at"
    };
}

fn number(bytes: u64) -> Value {
    Value::Int(Some(i64::try_from(bytes).unwrap_or(i64::MAX)))
}

/// Adds a volume.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    volume: &Volume,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "INSERT INTO volumes (id, account_id, name, status, quota_bytes, used_bytes, charged_bytes, created_at, \
             updated_at) VALUES ($1, $2, $3, $4, $5, 0, 0, $6, $7)",
            vec![
                volume.id.0.as_str().into(),
                volume.account_id.into(),
                volume.name.as_str().into(),
                volume.status.as_str().into(),
                number(volume.quota_bytes),
                volume.created_at.0.into(),
                volume.updated_at.0.into(),
            ],
        )
        .await?;
    Ok(())
}

/// A volume of an account, unless it is being deleted.
pub(crate) async fn find(
    database: &Database,
    account_id: i64,
    id: &str,
) -> Result<Option<Volume>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                " FROM volumes WHERE id = $1 AND account_id = $2 AND status <> 'deleting'"
            ),
            vec![id.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// A volume, whosever it is and whatever becomes of it.
pub(crate) async fn any(database: &Database, id: &VolumeId) -> Result<Option<Volume>, StoreError> {
    let row = database
        .fetch_optional(
            concat!("SELECT ", columns!(), " FROM volumes WHERE id = $1"),
            vec![id.0.as_str().into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// The volume of a name, unless it is being deleted.
pub(crate) async fn named(
    database: &Database,
    account_id: i64,
    name: &str,
) -> Result<Option<Volume>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                " FROM volumes WHERE name = $1 AND account_id = $2 AND status <> 'deleting'"
            ),
            vec![name.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// The volumes of an account, oldest first; those that are being deleted among them.
pub(crate) async fn all(database: &Database, account_id: i64) -> Result<Vec<Volume>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM volumes WHERE account_id = $1 ORDER BY created_at, id"
            ),
            vec![account_id.into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The volumes of all accounts.
pub(crate) async fn everything(database: &Database) -> Result<Vec<Volume>, StoreError> {
    let rows = database
        .fetch(concat!("SELECT ", columns!(), " FROM volumes"), vec![])
        .await?;
    rows.iter().map(read).collect()
}

/// Keeps a volume from being deleted or taken by others until the transaction ends; whether it can be used.
pub(crate) async fn hold(
    transaction: &mut Transaction,
    account_id: i64,
    id: &VolumeId,
) -> Result<bool, StoreError> {
    let held = transaction
        .execute(
            "UPDATE volumes SET updated_at = updated_at WHERE id = $1 AND account_id = $2 AND status = 'available'",
            vec![id.0.as_str().into(), account_id.into()],
        )
        .await?;
    Ok(held > 0)
}

/// Records how far a volume has come; whether it was where it was thought to be.
pub(crate) async fn advance(
    database: &Database,
    id: &VolumeId,
    from: Status,
    to: Status,
) -> Result<bool, StoreError> {
    let changed = database
        .execute(
            "UPDATE volumes SET status = $3, updated_at = $4 WHERE id = $1 AND status = $2",
            vec![
                id.0.as_str().into(),
                from.as_str().into(),
                to.as_str().into(),
                Moment::now().0.into(),
            ],
        )
        .await?;
    Ok(changed > 0)
}

/// Records that a volume is to be deleted; first in its transaction.
pub(crate) async fn begin_deleting(
    transaction: &mut Transaction,
    id: &VolumeId,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE volumes SET status = 'deleting', updated_at = $2 WHERE id = $1",
            vec![id.0.as_str().into(), Moment::now().0.into()],
        )
        .await?;
    Ok(())
}

/// Changes what is given of a volume.
pub(crate) async fn update(
    transaction: &mut Transaction,
    id: &VolumeId,
    name: Option<&str>,
    quota_bytes: Option<u64>,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE volumes SET name = COALESCE($2, name), quota_bytes = COALESCE($3, quota_bytes), updated_at = $4 \
             WHERE id = $1",
            vec![
                id.0.as_str().into(),
                name.into(),
                quota_bytes.map_or(Value::Int(None), number),
                Moment::now().0.into(),
            ],
        )
        .await?;
    Ok(())
}

/// Records how full a volume is.
pub(crate) async fn measured(
    database: &Database,
    id: &VolumeId,
    usage: &VolumeUsage,
    at: Moment,
) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE volumes SET used_bytes = $2, charged_bytes = $3, measured_at = $4 WHERE id = $1",
            vec![
                id.0.as_str().into(),
                number(usage.used_bytes),
                number(usage.charged_bytes),
                at.0.into(),
            ],
        )
        .await?;
    Ok(())
}

/// Drops the row of a volume, and those of its checkpoints.
pub(crate) async fn remove(database: &Database, id: &VolumeId) -> Result<(), StoreError> {
    let mut transaction = database.begin().await?;
    for statement in [
        "DELETE FROM mounts WHERE volume_id = $1",
        "DELETE FROM checkpoints WHERE volume_id = $1",
        "DELETE FROM volumes WHERE id = $1",
    ] {
        transaction
            .execute(statement, vec![id.0.as_str().into()])
            .await?;
    }
    transaction.commit().await
}

fn read(row: &Row) -> Result<Volume, StoreError> {
    let status: String = row.get("status")?;
    let bytes = |column| Ok(u64::try_from(row.get::<i64>(column)?).unwrap_or(0));
    Ok(Volume {
        id: VolumeId(row.get("id")?),
        account_id: row.get("account_id")?,
        name: row.get("name")?,
        status: Status::parse(&status).ok_or(StoreError::Content {
            column: "status",
            found: status,
        })?,
        quota_bytes: bytes("quota_bytes")?,
        used_bytes: bytes("used_bytes")?,
        charged_bytes: bytes("charged_bytes")?,
        measured_at: row.get::<Option<i64>>("measured_at")?.map(Moment),
        created_at: Moment(row.get("created_at")?),
        updated_at: Moment(row.get("updated_at")?),
    })
}
