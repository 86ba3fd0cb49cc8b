//! The rows of SSH keys.

use super::service::{Line, SshKey};
use crate::clock::Moment;
use instavm_store::{Database, Row, StoreError};

/// Adds a key, unless the account has it: then that one is returned.
pub(crate) async fn insert_or_find(
    database: &Database,
    account_id: i64,
    line: Line,
) -> Result<SshKey, StoreError> {
    let mut transaction = database.begin().await?;
    // First of all: of two callers with the same key, the second looks after the first has written.
    let id = transaction.next("ssh_key").await?;
    let found = transaction
        .fetch_optional(
            "SELECT id, key_type, public_key, fingerprint, comment, created_at FROM ssh_keys \
             WHERE account_id = $1 AND fingerprint = $2",
            vec![account_id.into(), line.fingerprint.as_str().into()],
        )
        .await?;
    if let Some(row) = found {
        return read(&row);
    }
    let key = SshKey {
        id,
        line,
        created_at: Moment::now(),
    };
    transaction
        .execute(
            "INSERT INTO ssh_keys (id, account_id, key_type, public_key, fingerprint, comment, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            vec![
                key.id.into(),
                account_id.into(),
                key.line.kind.as_str().into(),
                key.line.text.as_str().into(),
                key.line.fingerprint.as_str().into(),
                key.line.comment.as_str().into(),
                key.created_at.0.into(),
            ],
        )
        .await?;
    transaction.commit().await?;
    Ok(key)
}

/// The keys of an account, oldest first.
pub(crate) async fn all(database: &Database, account_id: i64) -> Result<Vec<SshKey>, StoreError> {
    let rows = database
        .fetch(
            "SELECT id, key_type, public_key, fingerprint, comment, created_at FROM ssh_keys \
             WHERE account_id = $1 ORDER BY id",
            vec![account_id.into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// Deletes a key; whether there was one.
pub(crate) async fn delete(
    database: &Database,
    account_id: i64,
    id: i64,
) -> Result<bool, StoreError> {
    let deleted = database
        .execute(
            "DELETE FROM ssh_keys WHERE id = $1 AND account_id = $2",
            vec![id.into(), account_id.into()],
        )
        .await?;
    Ok(deleted > 0)
}

fn read(row: &Row) -> Result<SshKey, StoreError> {
    Ok(SshKey {
        id: row.get("id")?,
        line: Line {
            kind: row.get("key_type")?,
            text: row.get("public_key")?,
            fingerprint: row.get("fingerprint")?,
            comment: row.get("comment")?,
        },
        created_at: Moment(row.get("created_at")?),
    })
}
