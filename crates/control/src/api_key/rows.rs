//! The rows of API keys.

use super::service::{ApiKey, KeyHash, KeyHolder, hash, shown_prefix};
use crate::clock::Moment;
use instavm_store::{Database, Row, StoreError, Transaction, Value};

fn hex(hash: &KeyHash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<KeyHash, StoreError> {
    let broken = || StoreError::Content {
        column: "key_hash",
        found: "no SHA-256 in hexadecimal".to_owned(),
    };
    let mut hash = KeyHash::default();
    if text.len() != 2 * hash.len() || !text.is_ascii() {
        return Err(broken());
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| broken())?;
    }
    Ok(hash)
}

/// Adds a key; its text is kept as a hash and a short beginning.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    account_id: i64,
    key: &str,
    description: &str,
) -> Result<ApiKey, StoreError> {
    let record = ApiKey {
        id: transaction.next("api_key").await?,
        prefix: shown_prefix(key),
        description: description.to_owned(),
        is_active: true,
        created_at: Moment::now(),
        last_used_at: None,
    };
    transaction
        .execute(
            "INSERT INTO api_keys (id, account_id, key_hash, key_prefix, description, is_active, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            vec![
                record.id.into(),
                account_id.into(),
                hex(&hash(key)).into(),
                record.prefix.as_str().into(),
                record.description.as_str().into(),
                record.is_active.into(),
                record.created_at.0.into(),
            ],
        )
        .await?;
    Ok(record)
}

/// Every key that is accepted.
pub(crate) async fn all_valid(
    database: &Database,
) -> Result<Vec<(KeyHash, KeyHolder)>, StoreError> {
    let rows = database
        .fetch(
            "SELECT api_keys.id AS key_id, account_id, key_hash FROM api_keys \
             JOIN accounts ON accounts.id = account_id WHERE api_keys.is_active = 1 AND accounts.is_active = 1",
            vec![],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((unhex(&row.get::<String>("key_hash")?)?, identity(row)?)))
        .collect()
}

/// Whom a key belongs to, if it is accepted.
pub(crate) async fn find_valid(
    database: &Database,
    hash: &KeyHash,
) -> Result<Option<KeyHolder>, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT api_keys.id AS key_id, account_id FROM api_keys JOIN accounts ON accounts.id = account_id \
             WHERE key_hash = $1 AND api_keys.is_active = 1 AND accounts.is_active = 1",
            vec![hex(hash).into()],
        )
        .await?;
    row.map(|row| identity(&row)).transpose()
}

/// The account of the key of this number, if it is accepted.
pub(crate) async fn account_of(
    database: &Database,
    key_id: i64,
) -> Result<Option<i64>, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT account_id FROM api_keys JOIN accounts ON accounts.id = account_id \
             WHERE api_keys.id = $1 AND api_keys.is_active = 1 AND accounts.is_active = 1",
            vec![key_id.into()],
        )
        .await?;
    row.map(|row| row.get("account_id")).transpose()
}

fn identity(row: &Row) -> Result<KeyHolder, StoreError> {
    Ok(KeyHolder {
        key_id: row.get("key_id")?,
        account_id: row.get("account_id")?,
    })
}

/// The keys of an account, oldest first.
pub(crate) async fn all(database: &Database, account_id: i64) -> Result<Vec<ApiKey>, StoreError> {
    let rows = database
        .fetch(
            "SELECT id, key_prefix, description, is_active, created_at, last_used_at FROM api_keys \
             WHERE account_id = $1 ORDER BY id",
            vec![account_id.into()],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// A key of an account.
pub(crate) async fn find(
    database: &Database,
    account_id: i64,
    id: i64,
) -> Result<Option<ApiKey>, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT id, key_prefix, description, is_active, created_at, last_used_at FROM api_keys \
             WHERE id = $1 AND account_id = $2",
            vec![id.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

fn read(row: &Row) -> Result<ApiKey, StoreError> {
    Ok(ApiKey {
        id: row.get("id")?,
        prefix: row.get("key_prefix")?,
        description: row.get("description")?,
        is_active: row.get("is_active")?,
        created_at: Moment(row.get("created_at")?),
        last_used_at: row.get::<Option<i64>>("last_used_at")?.map(Moment),
    })
}

/// Changes what is given of a key.
pub(crate) async fn update(
    database: &Database,
    account_id: i64,
    id: i64,
    description: Option<&str>,
    is_active: Option<bool>,
) -> Result<Option<ApiKey>, StoreError> {
    database
        .execute(
            "UPDATE api_keys SET description = COALESCE($3, description), is_active = COALESCE($4, is_active) \
             WHERE id = $1 AND account_id = $2",
            vec![
                id.into(),
                account_id.into(),
                description.into(),
                Value::Int(is_active.map(i64::from)),
            ],
        )
        .await?;
    find(database, account_id, id).await
}

/// Deletes a key; whether there was one.
pub(crate) async fn delete(
    database: &Database,
    account_id: i64,
    id: i64,
) -> Result<bool, StoreError> {
    let deleted = database
        .execute(
            "DELETE FROM api_keys WHERE id = $1 AND account_id = $2",
            vec![id.into(), account_id.into()],
        )
        .await?;
    Ok(deleted > 0)
}

/// Writes down when keys were used.
pub(crate) async fn set_used(
    database: &Database,
    used: &[(i64, Moment)],
) -> Result<(), StoreError> {
    let mut transaction = database.begin().await?;
    // In one order, so that two such transactions wait for each other and never in a circle.
    let mut used = used.to_vec();
    used.sort_by_key(|(id, _)| *id);
    for (id, moment) in used {
        transaction
            .execute(
                "UPDATE api_keys SET last_used_at = $2 WHERE id = $1",
                vec![id.into(), moment.0.into()],
            )
            .await?;
    }
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_come_back_from_their_column() {
        let hash = hash("instavm_sk_x");
        assert_eq!(unhex(&hex(&hash)).unwrap(), hash);
        for broken in ["", "00", &"zz".repeat(32), &"é".repeat(32)] {
            assert!(unhex(broken).is_err());
        }
    }
}
