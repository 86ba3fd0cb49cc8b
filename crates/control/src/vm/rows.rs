//! The rows of VMs.

use super::service::{Profile, Vm, VmStatus};
use crate::clock::Moment;
use crate::session::{rows as session_rows, service::Session};
use instavm_node_api::VmId;
use instavm_store::{Database, Row, StoreError};

/// The columns of a VM.
macro_rules! columns {
    () => {
        "id, account_id, session_id, status, reason, isolation, memory_mb, vcpu_count, lifetime_seconds, \
         metadata, created_at, updated_at, started_at, expires_at, terminated_at"
    };
}

/// Records the intent to make a VM: its row, and its session's, which is inserted or pointed at the new VM.
pub(crate) async fn insert(
    database: &Database,
    session: &Session,
    profile: &Profile,
    vm: &Vm,
    is_new: bool,
) -> Result<(), StoreError> {
    let mut transaction = database.begin().await?;
    if is_new {
        session_rows::insert(&mut transaction, session, profile, &vm.id).await?;
    } else {
        session_rows::renew(&mut transaction, session, profile, &vm.id).await?;
    }
    transaction
        .execute(
            "INSERT INTO vms (id, account_id, session_id, status, memory_mb, vcpu_count, lifetime_seconds, metadata, \
             created_at, updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            vec![
                vm.id.0.as_str().into(),
                vm.account_id.into(),
                vm.session_id.as_str().into(),
                vm.status.as_str().into(),
                vm.memory_mb.into(),
                vm.vcpu_count.into(),
                vm.lifetime_seconds.into(),
                session_rows::json(&vm.metadata).into(),
                vm.created_at.0.into(),
                vm.updated_at.0.into(),
            ],
        )
        .await?;
    transaction.commit().await
}

/// Records that a VM runs, unless its end is on record already.
pub(crate) async fn activate(database: &Database, vm: &Vm) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE vms SET status = 'active', isolation = $2, started_at = $3, expires_at = $4, updated_at = $5 \
             WHERE id = $1 AND status IN ('creating', 'active')",
            vec![
                vm.id.0.as_str().into(),
                vm.isolation.as_deref().into(),
                vm.started_at.map(|moment| moment.0).into(),
                vm.expires_at.map(|moment| moment.0).into(),
                vm.updated_at.0.into(),
            ],
        )
        .await?;
    Ok(())
}

/// Records that a VM has ended or failed.
pub(crate) async fn end(database: &Database, vm: &Vm) -> Result<(), StoreError> {
    database
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
    Ok(())
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
        created_at: Moment(row.get("created_at")?),
        updated_at: Moment(row.get("updated_at")?),
        started_at: moment("started_at")?,
        expires_at: moment("expires_at")?,
        terminated_at: moment("terminated_at")?,
    })
}
