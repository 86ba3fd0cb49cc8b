//! The rows of accounts.

use super::service::Account;
use crate::clock::Moment;
use instavm_store::{Database, Row, StoreError, Transaction};

/// Adds an account.
pub(crate) async fn insert(
    transaction: &mut Transaction,
    email: &str,
    created_at: Moment,
) -> Result<i64, StoreError> {
    let id = transaction.next("account").await?;
    let name = email.split('@').next().unwrap_or_default();
    transaction
        .execute(
            "INSERT INTO accounts (id, email, name, is_active, created_at) VALUES ($1, $2, $3, 1, $4)",
            vec![id.into(), email.into(), name.into(), created_at.0.into()],
        )
        .await?;
    Ok(id)
}

/// Whether there is any account.
pub(crate) async fn any(transaction: &mut Transaction) -> Result<bool, StoreError> {
    let row = transaction
        .fetch_optional("SELECT id FROM accounts LIMIT 1", vec![])
        .await?;
    Ok(row.is_some())
}

/// Tells running platforms that accounts have changed.
pub(crate) async fn mark_changed(transaction: &mut Transaction) -> Result<(), StoreError> {
    transaction.next("account_changes").await?;
    Ok(())
}

/// A number that is another one after accounts have changed.
pub(crate) async fn changes(database: &Database) -> Result<i64, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT value FROM counters WHERE name = 'account_changes'",
            vec![],
        )
        .await?;
    row.map_or(Ok(0), |row| row.get("value"))
}

/// All accounts, oldest first.
pub(crate) async fn all(database: &Database) -> Result<Vec<Account>, StoreError> {
    let rows = database
        .fetch(
            "SELECT id, email, name, is_active, created_at FROM accounts ORDER BY id",
            vec![],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// The account that the platform began with.
pub(crate) async fn first_id(database: &Database) -> Result<Option<i64>, StoreError> {
    let row = database
        .fetch_optional("SELECT id FROM accounts ORDER BY id LIMIT 1", vec![])
        .await?;
    row.map(|row| row.get("id")).transpose()
}

/// An account.
pub(crate) async fn find(database: &Database, id: i64) -> Result<Option<Account>, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT id, email, name, is_active, created_at FROM accounts WHERE id = $1",
            vec![id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// Disables an account; whether there is one with this address.
pub(crate) async fn disable(
    transaction: &mut Transaction,
    email: &str,
) -> Result<bool, StoreError> {
    let changed = transaction
        .execute(
            "UPDATE accounts SET is_active = 0 WHERE email = $1",
            vec![email.into()],
        )
        .await?;
    Ok(changed > 0)
}

fn read(row: &Row) -> Result<Account, StoreError> {
    Ok(Account {
        id: row.get("id")?,
        email: row.get("email")?,
        name: row.get("name")?,
        is_active: row.get("is_active")?,
        created_at: Moment(row.get("created_at")?).iso(),
    })
}
