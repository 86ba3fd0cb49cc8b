//! The space that an account may take: the quotas of its volumes, and what its snapshots hold.

use crate::Settings;
use crate::error::{Kind, Problem};
use instavm_store::{StoreError, Transaction};

/// Lets an account take more space, or refuses. First in its transaction: of two that ask at once, the second looks
/// after the first has written.
pub(crate) async fn admit(
    transaction: &mut Transaction,
    settings: &Settings,
    account_id: i64,
    more: u64,
) -> Result<(), Problem> {
    transaction.next("space").await?;
    let limit = settings.account_disk_bytes;
    let volumes = sum(
        transaction,
        "SELECT CAST(COALESCE(SUM(quota_bytes), 0) AS BIGINT) AS bytes FROM volumes WHERE account_id = $1",
        account_id,
    )
    .await?;
    let snapshots = sum(
        transaction,
        "SELECT CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) AS bytes FROM snapshots WHERE account_id = $1",
        account_id,
    )
    .await?;
    let taken = volumes.saturating_add(snapshots);
    // What comes may be of a size that nobody knows yet.
    if taken.saturating_add(more.max(1)) <= limit {
        return Ok(());
    }
    Err(Problem::new(
        Kind::Denied,
        format!(
            "no space: this account's volumes have quotas of {volumes} bytes and its snapshots hold {snapshots} bytes, \
             this would be {more} more, and the limit is {limit} bytes: delete some, or make volumes smaller"
        ),
    ))
}

async fn sum(
    transaction: &mut Transaction,
    statement: &'static str,
    account_id: i64,
) -> Result<u64, StoreError> {
    let row = transaction
        .fetch_optional(statement, vec![account_id.into()])
        .await?;
    let bytes: i64 = row.map_or(Ok(0), |row| row.get("bytes"))?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// How many rows a statement counts.
pub(crate) async fn count(
    transaction: &mut Transaction,
    statement: &'static str,
    values: Vec<instavm_store::Value>,
) -> Result<usize, StoreError> {
    let row = transaction.fetch_optional(statement, values).await?;
    let count: i64 = row.map_or(Ok(0), |row| row.get("count"))?;
    Ok(usize::try_from(count).unwrap_or(usize::MAX))
}
