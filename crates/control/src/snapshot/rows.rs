//! The rows of snapshots.

use super::service::{Kind, Snapshot, Status};
use crate::clock::Moment;
use crate::session::rows::{json, parsed};
use instavm_node_api::{ImageConfig, SnapshotId};
use instavm_store::{Database, Row, StoreError, Transaction, Value};

/// The columns of a snapshot without its log, which may be long.
macro_rules! columns {
    () => {
        "id, account_id, name, kind, status, is_hidden, vm_id, oci_image, build, attempts, step, last_error, digest, \
         config, size_bytes, pause_micros, created_at, updated_at"
    };
}

/// Adds a snapshot.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    snapshot: &Snapshot,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "INSERT INTO snapshots (id, account_id, name, kind, status, is_hidden, vm_id, oci_image, build, attempts, \
             step, log, config, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 0, $10, '', $11, $12, $13)",
            vec![
                snapshot.id.0.as_str().into(),
                snapshot.account_id.into(),
                snapshot.name.as_str().into(),
                snapshot.kind.as_str().into(),
                snapshot.status.as_str().into(),
                snapshot.is_hidden.into(),
                snapshot.vm_id.as_deref().into(),
                snapshot.oci_image.as_deref().into(),
                snapshot.build.as_ref().map(json).into(),
                snapshot.step.as_deref().into(),
                json(&snapshot.config).into(),
                snapshot.created_at.0.into(),
                snapshot.updated_at.0.into(),
            ],
        )
        .await?;
    Ok(())
}

/// Writes down how far a snapshot has come, unless it is being deleted.
pub(crate) async fn update(database: &Database, snapshot: &Snapshot) -> Result<(), StoreError> {
    let number = |bytes: Option<u64>| Value::Int(bytes.map(|bytes| bytes.cast_signed()));
    database
        .execute(
            "UPDATE snapshots SET status = $2, build = $3, attempts = $4, step = $5, log = $6, last_error = $7, \
             digest = $8, config = $9, size_bytes = $10, pause_micros = $11, updated_at = $12 \
             WHERE id = $1 AND status <> 'deleting'",
            vec![
                snapshot.id.0.as_str().into(),
                snapshot.status.as_str().into(),
                snapshot.build.as_ref().map(json).into(),
                snapshot.attempts.into(),
                snapshot.step.as_deref().into(),
                snapshot.log.as_str().into(),
                snapshot.last_error.as_deref().into(),
                snapshot.digest.as_deref().into(),
                json(&snapshot.config).into(),
                number(snapshot.size_bytes),
                snapshot.pause_micros.into(),
                Moment::now().0.into(),
            ],
        )
        .await?;
    Ok(())
}

/// A snapshot that the account may see, with its log.
pub(crate) async fn find(
    database: &Database,
    account_id: i64,
    id: &str,
) -> Result<Option<Snapshot>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                ", log FROM snapshots WHERE id = $1 AND (account_id = $2 OR kind = 'system') AND is_hidden = 0 \
                 AND status <> 'deleting'"
            ),
            vec![id.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read_with_log(&row)).transpose()
}

/// A snapshot, whosever it is and whatever becomes of it.
pub(crate) async fn any(database: &Database, id: &str) -> Result<Option<Snapshot>, StoreError> {
    let row = database
        .fetch_optional(
            concat!("SELECT ", columns!(), ", log FROM snapshots WHERE id = $1"),
            vec![id.into()],
        )
        .await?;
    row.map(|row| read_with_log(&row)).transpose()
}

/// What a snapshot says of how it is run; of one that is gone, nothing.
pub(crate) async fn config(
    transaction: &mut Transaction,
    id: &str,
) -> Result<ImageConfig, StoreError> {
    let row = transaction
        .fetch_optional(
            "SELECT config FROM snapshots WHERE id = $1",
            vec![id.into()],
        )
        .await?;
    row.map_or_else(|| Ok(ImageConfig::default()), |row| parsed(&row, "config"))
}

/// The snapshots that the account may see, of a kind or of both, newest first, without their logs.
pub(crate) async fn all(
    database: &Database,
    account_id: i64,
    kind: Option<Kind>,
) -> Result<Vec<Snapshot>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM snapshots WHERE (account_id = $1 OR kind = 'system') AND is_hidden = 0 \
                 AND status <> 'deleting' AND kind = COALESCE($2, kind) ORDER BY created_at DESC, id"
            ),
            vec![account_id.into(), kind.map(Kind::as_str).into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The snapshots of all accounts.
pub(crate) async fn everything(database: &Database) -> Result<Vec<Snapshot>, StoreError> {
    let rows = database
        .fetch(concat!("SELECT ", columns!(), " FROM snapshots"), vec![])
        .await?;
    rows.iter().map(read).collect()
}

/// Keeps a ready snapshot from being deleted until the transaction ends; whether it is ready.
pub(crate) async fn hold(
    transaction: &mut Transaction,
    id: &SnapshotId,
) -> Result<bool, StoreError> {
    let held = transaction
        .execute(
            "UPDATE snapshots SET updated_at = updated_at WHERE id = $1 AND status = 'ready'",
            vec![id.0.as_str().into()],
        )
        .await?;
    Ok(held > 0)
}

/// The VMs that live and started from a snapshot, with their accounts.
pub(crate) async fn users(
    transaction: &mut Transaction,
    id: &SnapshotId,
) -> Result<Vec<(String, i64)>, StoreError> {
    let rows = transaction
        .fetch(
            "SELECT id, account_id FROM vms WHERE snapshot_id = $1 AND status IN ('creating', 'active') ORDER BY id",
            vec![id.0.as_str().into()],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.get("id")?, row.get("account_id")?)))
        .collect()
}

/// Records that a snapshot is to be deleted; first in its transaction, so that nobody starts from it meanwhile.
pub(crate) async fn begin_deleting(
    transaction: &mut Transaction,
    id: &SnapshotId,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE snapshots SET status = 'deleting', updated_at = $2 WHERE id = $1",
            vec![id.0.as_str().into(), Moment::now().0.into()],
        )
        .await?;
    Ok(())
}

/// Drops a snapshot's row.
pub(crate) async fn remove(database: &Database, id: &SnapshotId) -> Result<(), StoreError> {
    database
        .execute(
            "DELETE FROM snapshots WHERE id = $1",
            vec![id.0.as_str().into()],
        )
        .await?;
    Ok(())
}

/// Drops some of the snapshots that failed before a moment; returns how many.
pub(crate) async fn drop_old(
    database: &Database,
    before: Moment,
    limit: u32,
) -> Result<u64, StoreError> {
    database
        .execute(
            "DELETE FROM snapshots WHERE id IN (SELECT id FROM snapshots WHERE status = 'failed' AND updated_at < $1 \
             LIMIT $2)",
            vec![before.0.into(), limit.into()],
        )
        .await
}

fn read_with_log(row: &Row) -> Result<Snapshot, StoreError> {
    Ok(Snapshot {
        log: row.get("log")?,
        ..read(row)?
    })
}

fn read(row: &Row) -> Result<Snapshot, StoreError> {
    let (status, kind): (String, String) = (row.get("status")?, row.get("kind")?);
    let unexpected = |column, found| StoreError::Content { column, found };
    let build = match row.get::<Option<String>>("build")? {
        None => None,
        Some(_) => Some(parsed(row, "build")?),
    };
    Ok(Snapshot {
        id: SnapshotId(row.get("id")?),
        account_id: row.get("account_id")?,
        name: row.get("name")?,
        kind: Kind::parse(&kind).ok_or_else(|| unexpected("kind", kind))?,
        status: Status::parse(&status).ok_or_else(|| unexpected("status", status))?,
        is_hidden: row.get("is_hidden")?,
        vm_id: row.get("vm_id")?,
        oci_image: row.get("oci_image")?,
        build,
        attempts: row.get("attempts")?,
        step: row.get("step")?,
        log: String::new(),
        last_error: row.get("last_error")?,
        digest: row.get("digest")?,
        config: parsed(row, "config")?,
        size_bytes: row
            .get::<Option<i64>>("size_bytes")?
            .map(i64::cast_unsigned),
        pause_micros: row.get("pause_micros")?,
        created_at: Moment(row.get("created_at")?),
        updated_at: Moment(row.get("updated_at")?),
    })
}
