//! The rows of shares. They outlive their VMs: a URL that was given away once shall not come to mean something else
//! without a trace.

use super::service::{Share, Status};
use crate::clock::Moment;
use instavm_node_api::VmId;
use instavm_store::{Database, Row, StoreError, Transaction};

/// The columns of a share.
macro_rules! columns {
    () => {
        "id, account_id, vm_id, session_id, port, is_public, status, listen_port, created_at, updated_at"
    };
}

/// Adds a share of a VM that lives; whether it does, and has no open share of this port.
pub(crate) async fn insert(database: &Database, share: &Share) -> Result<bool, StoreError> {
    let inserted = database
        .execute(
            "INSERT INTO shares (id, account_id, vm_id, session_id, port, is_public, status, created_at, updated_at) \
             SELECT $1, account_id, id, session_id, CAST($3 AS BIGINT), CAST($4 AS BIGINT), 'open', \
             CAST($5 AS BIGINT), CAST($5 AS BIGINT) FROM vms WHERE id = $2 AND status IN ('creating', 'active') \
             ON CONFLICT DO NOTHING",
            vec![
                share.id.as_str().into(),
                share.vm_id.0.as_str().into(),
                i64::from(share.port).into(),
                share.is_public.into(),
                share.created_at.0.into(),
            ],
        )
        .await?;
    Ok(inserted > 0)
}

/// Writes down the port of the host that a share is found under.
pub(crate) async fn set_listen_port(
    database: &Database,
    id: &str,
    listen_port: Option<u16>,
) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE shares SET listen_port = $2 WHERE id = $1",
            vec![id.into(), listen_port.map(i64::from).into()],
        )
        .await?;
    Ok(())
}

/// Drops a share that was never given away.
pub(crate) async fn remove(database: &Database, id: &str) -> Result<(), StoreError> {
    database
        .execute("DELETE FROM shares WHERE id = $1", vec![id.into()])
        .await?;
    Ok(())
}

/// Changes who may pass an open share.
pub(crate) async fn set_public(
    database: &Database,
    id: &str,
    is_public: bool,
) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE shares SET is_public = $2, updated_at = $3 WHERE id = $1 AND status = 'open'",
            vec![id.into(), is_public.into(), Moment::now().0.into()],
        )
        .await?;
    Ok(())
}

/// Ends an open share.
pub(crate) async fn end(database: &Database, id: &str, status: Status) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE shares SET status = $2, updated_at = $3 WHERE id = $1 AND status = 'open'",
            vec![id.into(), status.as_str().into(), Moment::now().0.into()],
        )
        .await?;
    Ok(())
}

/// Ends the open shares of a VM that ends.
pub(crate) async fn end_of_vm(transaction: &mut Transaction, vm: &VmId) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE shares SET status = 'ended', updated_at = $2 WHERE vm_id = $1 AND status = 'open'",
            vec![vm.0.as_str().into(), Moment::now().0.into()],
        )
        .await?;
    Ok(())
}

/// A share of an account.
pub(crate) async fn find(
    database: &Database,
    account_id: i64,
    id: &str,
) -> Result<Option<Share>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                " FROM shares WHERE id = $1 AND account_id = $2"
            ),
            vec![id.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// The open share of a VM's port.
pub(crate) async fn of_port(
    database: &Database,
    vm: &VmId,
    port: u16,
) -> Result<Option<Share>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                " FROM shares WHERE vm_id = $1 AND port = $2 AND status = 'open'"
            ),
            vec![vm.0.as_str().into(), i64::from(port).into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// How many open shares a VM has.
pub(crate) async fn count_of_vm(database: &Database, vm: &VmId) -> Result<i64, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT CAST(count(*) AS BIGINT) AS open FROM shares WHERE vm_id = $1 AND status = 'open'",
            vec![vm.0.as_str().into()],
        )
        .await?;
    row.map_or(Ok(0), |row| row.get("open"))
}

/// The newest shares of an account, newest first; of one VM if it is named.
pub(crate) async fn all(
    database: &Database,
    account_id: i64,
    vm: Option<&str>,
    limit: u32,
) -> Result<Vec<Share>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM shares WHERE account_id = $1 AND vm_id = COALESCE($2, vm_id) \
                 ORDER BY created_at DESC, id LIMIT $3"
            ),
            vec![account_id.into(), vm.into(), limit.into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The open shares of all accounts.
pub(crate) async fn open(database: &Database) -> Result<Vec<Share>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM shares WHERE status = 'open' ORDER BY created_at, id"
            ),
            vec![],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The shares that have ended last, the newest first.
pub(crate) async fn over(
    database: &Database,
    since: Moment,
    limit: u32,
) -> Result<Vec<Share>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM shares WHERE status <> 'open' AND updated_at >= $1 ORDER BY updated_at DESC LIMIT $2"
            ),
            vec![since.0.into(), limit.into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// Drops shares that ended before; returns how many.
pub(crate) async fn drop_old(
    database: &Database,
    before: Moment,
    limit: u32,
) -> Result<u64, StoreError> {
    database
        .execute(
            "DELETE FROM shares WHERE id IN (SELECT id FROM shares WHERE status <> 'open' AND updated_at < $1 LIMIT $2)",
            vec![before.0.into(), limit.into()],
        )
        .await
}

fn read(row: &Row) -> Result<Share, StoreError> {
    let status: String = row.get("status")?;
    let port = |column: &'static str, number: i64| {
        u16::try_from(number).map_err(|_| StoreError::Content {
            column,
            found: number.to_string(),
        })
    };
    let listen: Option<i64> = row.get("listen_port")?;
    Ok(Share {
        id: row.get("id")?,
        account_id: row.get("account_id")?,
        vm_id: VmId(row.get("vm_id")?),
        session_id: row.get("session_id")?,
        port: port("port", row.get("port")?)?,
        is_public: row.get("is_public")?,
        status: Status::parse(&status).ok_or(StoreError::Content {
            column: "status",
            found: status,
        })?,
        listen_port: listen.map(|at| port("listen_port", at)).transpose()?,
        created_at: Moment(row.get("created_at")?),
        updated_at: Moment(row.get("updated_at")?),
    })
}
