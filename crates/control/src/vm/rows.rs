//! The rows of VMs.

use super::service::{Order, Profile, Vm, VmStatus};
use crate::clock::Moment;
use crate::error::{Kind, Problem};
use crate::mount::rows as mount_rows;
use crate::session::{rows as session_rows, service::Session};
use crate::share::rows as share_rows;
use crate::snapshot::{rows as snapshot_rows, service::Snapshot};
use instavm_node_api::{SnapshotId, VmId};
use instavm_store::{Database, Row, StoreError, Transaction};
use std::collections::HashSet;

/// The columns of a VM.
macro_rules! columns {
    () => {
        "id, account_id, session_id, status, reason, isolation, memory_mb, vcpu_count, lifetime_seconds, \
         metadata, snapshot_id, keep_as, keep_name, created_at, updated_at, started_at, expires_at, terminated_at"
    };
}

/// Records the intent to make a VM: its row, its mounts, and its session's row, which is inserted or pointed at the new
/// VM. What it starts from stays while it lives.
pub(crate) async fn insert(
    database: &Database,
    session: &Session,
    order: &Order,
    vm: &Vm,
    is_new: bool,
) -> Result<(), Problem> {
    let profile = &order.profile;
    let mut transaction = database.begin().await?;
    if let Some(start) = order.start()
        && !snapshot_rows::hold(&mut transaction, &start).await?
    {
        return Err(Problem::new(
            Kind::Conflict,
            format!("snapshot {start}, which the VM is to start from, is not there any more"),
        ));
    }
    if is_new {
        session_rows::insert(&mut transaction, session, profile, &vm.id).await?;
    } else {
        session_rows::renew(&mut transaction, session, profile, &vm.id).await?;
        // The end of its last VM may not be on record yet.
        mount_rows::drop_of_session(&mut transaction, &session.id).await?;
    }
    mount_rows::take(
        &mut transaction,
        vm.account_id,
        &vm.id,
        &profile.origin.mounts,
    )
    .await?;
    transaction
        .execute(
            "INSERT INTO vms (id, account_id, session_id, status, memory_mb, vcpu_count, lifetime_seconds, metadata, \
             snapshot_id, keep_as, keep_name, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            vec![
                vm.id.0.as_str().into(),
                vm.account_id.into(),
                vm.session_id.as_str().into(),
                vm.status.as_str().into(),
                vm.memory_mb.into(),
                vm.vcpu_count.into(),
                vm.lifetime_seconds.into(),
                session_rows::json(&vm.metadata).into(),
                vm.snapshot_id.as_deref().into(),
                keep_as(vm).into(),
                vm.keep_name.as_deref().into(),
                vm.created_at.0.into(),
                vm.updated_at.0.into(),
            ],
        )
        .await?;
    Ok(transaction.commit().await?)
}

fn keep_as(vm: &Vm) -> Option<&str> {
    vm.keep_as.as_ref().map(|id| id.0.as_str())
}

/// Records what was changed of a VM that lives, and what its session's next one is made as; whether it lives.
pub(crate) async fn change(
    database: &Database,
    vm: &Vm,
    profile: &Profile,
) -> Result<bool, StoreError> {
    let mut transaction = database.begin().await?;
    let changed = transaction
        .execute(
            "UPDATE vms SET memory_mb = $2, keep_as = $3, keep_name = $4, updated_at = $5 \
             WHERE id = $1 AND status = 'active'",
            vec![
                vm.id.0.as_str().into(),
                vm.memory_mb.into(),
                keep_as(vm).into(),
                vm.keep_name.as_deref().into(),
                vm.updated_at.0.into(),
            ],
        )
        .await?;
    session_rows::set_profile(&mut transaction, &vm.session_id, profile).await?;
    transaction.commit().await?;
    Ok(changed > 0)
}

/// Keeps the end of a VM from being recorded until the transaction ends; whether it runs.
pub(crate) async fn hold(transaction: &mut Transaction, id: &VmId) -> Result<bool, StoreError> {
    let held = transaction
        .execute(
            "UPDATE vms SET updated_at = updated_at WHERE id = $1 AND status IN ('creating', 'active')",
            vec![id.0.as_str().into()],
        )
        .await?;
    Ok(held > 0)
}

/// The snapshots that the disks of VMs that live are to be kept as.
pub(crate) async fn kept(database: &Database) -> Result<HashSet<SnapshotId>, StoreError> {
    let rows = database
        .fetch(
            "SELECT keep_as FROM vms WHERE keep_as IS NOT NULL AND status IN ('creating', 'active')",
            vec![],
        )
        .await?;
    rows.iter()
        .map(|row| Ok(SnapshotId(row.get("keep_as")?)))
        .collect()
}

/// Whether the disk of a VM, ended or not, is to be kept as this snapshot.
pub(crate) async fn is_kept(database: &Database, id: &SnapshotId) -> Result<bool, StoreError> {
    let found = database
        .fetch_optional(
            "SELECT id FROM vms WHERE keep_as = $1",
            vec![id.0.as_str().into()],
        )
        .await?;
    Ok(found.is_some())
}

/// Records that a VM runs, unless its end is on record already.
pub(crate) async fn activate(database: &Database, vm: &Vm) -> Result<(), StoreError> {
    let mut transaction = database.begin().await?;
    transaction
        .execute(
            "UPDATE vms SET status = 'active', isolation = $2, started_at = $3, expires_at = $4, updated_at = $5, \
             memory_mb = $6 WHERE id = $1 AND status IN ('creating', 'active')",
            vec![
                vm.id.0.as_str().into(),
                vm.isolation.as_deref().into(),
                vm.started_at.map(|moment| moment.0).into(),
                vm.expires_at.map(|moment| moment.0).into(),
                vm.updated_at.0.into(),
                vm.memory_mb.into(),
            ],
        )
        .await?;
    mount_rows::settle(&mut transaction, &vm.id).await?;
    transaction.commit().await
}

/// Records that a VM has ended or failed: its mounts end with it, and if its disk is kept, the snapshot's row begins;
/// returns the snapshot then.
pub(crate) async fn end(database: &Database, vm: &Vm) -> Result<Option<SnapshotId>, StoreError> {
    let mut transaction = database.begin().await?;
    let ended = transaction
        .execute(
            "UPDATE vms SET status = $2, reason = $3, isolation = $4, started_at = $5, expires_at = $6, \
             updated_at = $7, terminated_at = $8 WHERE id = $1 AND status IN ('creating', 'active')",
            vec![
                vm.id.0.as_str().into(),
                vm.status.as_str().into(),
                vm.reason.as_deref().into(),
                vm.isolation.as_deref().into(),
                vm.started_at.map(|moment| moment.0).into(),
                vm.expires_at.map(|moment| moment.0).into(),
                vm.updated_at.0.into(),
                vm.terminated_at.map(|moment| moment.0).into(),
            ],
        )
        .await?;
    if ended == 0 {
        return Ok(None);
    }
    mount_rows::drop_all(&mut transaction, &vm.id).await?;
    share_rows::end_of_vm(&mut transaction, &vm.id).await?;
    // A VM that never ran has no disk to keep.
    let kept = vm
        .keep_as
        .clone()
        .filter(|_| vm.status == VmStatus::Terminated);
    if let Some(id) = &kept {
        let config = match &vm.snapshot_id {
            None => Default::default(),
            Some(base) => snapshot_rows::config(&mut transaction, base).await?,
        };
        let snapshot = Snapshot::of_ended(id.clone(), vm, config);
        snapshot_rows::insert(&mut transaction, &snapshot).await?;
    }
    transaction.commit().await?;
    Ok(kept)
}

/// A VM of an account.
pub(crate) async fn find(
    database: &Database,
    account_id: i64,
    id: &str,
) -> Result<Option<Vm>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                " FROM vms WHERE id = $1 AND account_id = $2"
            ),
            vec![id.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// The newest VMs of an account, also those that have ended, newest first.
pub(crate) async fn all(
    database: &Database,
    account_id: i64,
    limit: u32,
) -> Result<Vec<Vm>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM vms WHERE account_id = $1 ORDER BY created_at DESC, id LIMIT $2"
            ),
            vec![account_id.into(), limit.into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The VMs of an account that live or are being made, newest first.
pub(crate) async fn live(database: &Database, account_id: i64) -> Result<Vec<Vm>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM vms WHERE account_id = $1 AND status IN ('creating', 'active') ORDER BY created_at DESC, id"
            ),
            vec![account_id.into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The VMs of all accounts that live or are being made, as far as the rows know.
pub(crate) async fn all_live(database: &Database) -> Result<Vec<Vm>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM vms WHERE status IN ('creating', 'active')"
            ),
            vec![],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// Drops some of the VMs that ended before a moment; returns how many.
pub(crate) async fn drop_old(
    database: &Database,
    before: Moment,
    limit: u32,
) -> Result<u64, StoreError> {
    database
        .execute(
            "DELETE FROM vms WHERE id IN (SELECT id FROM vms WHERE status IN ('terminated', 'failed') \
             AND terminated_at < $1 LIMIT $2)",
            vec![before.0.into(), limit.into()],
        )
        .await
}

fn read(row: &Row) -> Result<Vm, StoreError> {
    let status: String = row.get("status")?;
    let moment = |column| Ok(row.get::<Option<i64>>(column)?.map(Moment));
    Ok(Vm {
        id: VmId(row.get("id")?),
        account_id: row.get("account_id")?,
        session_id: row.get("session_id")?,
        status: VmStatus::parse(&status).ok_or(StoreError::Content {
            column: "status",
            found: status,
        })?,
        reason: row.get("reason")?,
        isolation: row.get("isolation")?,
        memory_mb: row.get("memory_mb")?,
        vcpu_count: row.get("vcpu_count")?,
        lifetime_seconds: row.get("lifetime_seconds")?,
        metadata: session_rows::parsed(row, "metadata")?,
        snapshot_id: row.get("snapshot_id")?,
        keep_as: row.get::<Option<String>>("keep_as")?.map(SnapshotId),
        keep_name: row.get("keep_name")?,
        created_at: Moment(row.get("created_at")?),
        updated_at: Moment(row.get("updated_at")?),
        started_at: moment("started_at")?,
        expires_at: moment("expires_at")?,
        terminated_at: moment("terminated_at")?,
    })
}
