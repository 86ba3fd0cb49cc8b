//! The rows of sessions.

use super::service::{Session, State};
use crate::clock::Moment;
use crate::vm::service::Profile;
use instavm_node_api::VmId;
use instavm_store::{Database, Row, StoreError, Transaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A session as its row knows it, with the id of its last VM.
pub(crate) struct Found {
    pub session: Session,
    pub vm_id: Option<String>,
}

/// Adds a session that points at its first VM.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    session: &Session,
    profile: &Profile,
    vm: &VmId,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "INSERT INTO sessions (id, account_id, created_at, vm_id, env, metadata, memory_mb, vcpu_count, \
             lifetime_seconds, origin) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            vec![
                session.id.as_str().into(),
                session.account_id.into(),
                session.created_at.0.into(),
                vm.0.as_str().into(),
                json(&profile.env).into(),
                json(&profile.metadata).into(),
                profile.memory_mb.into(),
                profile.vcpu_count.into(),
                profile.lifetime_seconds.into(),
                json(&profile.origin).into(),
            ],
        )
        .await?;
    Ok(())
}

/// Points a session at its next VM.
pub(crate) async fn renew(
    transaction: &mut Transaction,
    session: &Session,
    profile: &Profile,
    vm: &VmId,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE sessions SET vm_id = $3, env = $4, metadata = $5, memory_mb = $6, vcpu_count = $7, \
             lifetime_seconds = $8, origin = $9, killed_at = NULL WHERE id = $1 AND account_id = $2",
            vec![
                session.id.as_str().into(),
                session.account_id.into(),
                vm.0.as_str().into(),
                json(&profile.env).into(),
                json(&profile.metadata).into(),
                profile.memory_mb.into(),
                profile.vcpu_count.into(),
                profile.lifetime_seconds.into(),
                json(&profile.origin).into(),
            ],
        )
        .await?;
    Ok(())
}

/// Changes what a session's next VM is made as.
pub(crate) async fn set_profile(
    transaction: &mut Transaction,
    id: &str,
    profile: &Profile,
) -> Result<(), StoreError> {
    transaction
        .execute(
            "UPDATE sessions SET memory_mb = $2, origin = $3 WHERE id = $1",
            vec![
                id.into(),
                profile.memory_mb.into(),
                json(&profile.origin).into(),
            ],
        )
        .await?;
    Ok(())
}

/// Records that the user ended a session.
pub(crate) async fn kill(database: &Database, account_id: i64, id: &str) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE sessions SET killed_at = $3 WHERE id = $1 AND account_id = $2 AND killed_at IS NULL",
            vec![id.into(), account_id.into(), Moment::now().0.into()],
        )
        .await?;
    Ok(())
}

/// A session of an account.
pub(crate) async fn find(
    database: &Database,
    account_id: i64,
    id: &str,
) -> Result<Option<Found>, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT id, account_id, vm_id, env, metadata, memory_mb, vcpu_count, lifetime_seconds, origin, \
             created_at, killed_at FROM sessions WHERE id = $1 AND account_id = $2",
            vec![id.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// Drops some of the sessions that were made before a moment and of whose VMs nothing is on record; returns how many.
pub(crate) async fn drop_old(
    database: &Database,
    before: Moment,
    limit: u32,
) -> Result<u64, StoreError> {
    database
        .execute(
            "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE created_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM vms WHERE vms.session_id = sessions.id) LIMIT $2)",
            vec![before.0.into(), limit.into()],
        )
        .await
}

fn read(row: &Row) -> Result<Found, StoreError> {
    let state = State {
        killed: row.get::<Option<i64>>("killed_at")?.is_some(),
        profile: Profile {
            memory_mb: row.get("memory_mb")?,
            vcpu_count: row.get("vcpu_count")?,
            lifetime_seconds: row.get("lifetime_seconds")?,
            env: parsed(row, "env")?,
            metadata: parsed(row, "metadata")?,
            origin: parsed(row, "origin")?,
        },
        vm: None,
    };
    Ok(Found {
        session: Session::new(
            row.get("id")?,
            row.get("account_id")?,
            Moment(row.get("created_at")?),
            state,
        ),
        vm_id: row.get("vm_id")?,
    })
}

/// A value as the JSON text of its column. Maps with text keys always have one.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".to_owned())
}

/// The value of a JSON column.
pub(crate) fn parsed<T: DeserializeOwned>(
    row: &Row,
    column: &'static str,
) -> Result<T, StoreError> {
    serde_json::from_str(&row.get::<String>(column)?).map_err(|error| StoreError::Content {
        column,
        found: error.to_string(),
    })
}
