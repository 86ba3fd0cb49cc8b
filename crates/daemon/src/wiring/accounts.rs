//! Accounts and their keys, by the platform's own functions on the database.

use super::database;
use crate::commands::account::{AccountLine, NewAccount};
use crate::config::{Config, Secrets};
use crate::rooms::RoomError;
use instavm_control::user::service;
use instavm_store::Database;
use rand::Rng;
use rand::distr::Alphanumeric;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Where the first account's key is kept.
const ADMIN_KEY: &str = "admin-key";
const KEY_PREFIX: &str = "instavm_sk_";
const KEY_LENGTH: usize = 43;

/// Gives an empty store its first account. The key is on disk before the account is, so a start that is cut off in
/// between leaves no account whose key nobody knows.
pub(super) async fn bootstrap(
    database: &Database,
    config: &Config,
    secrets: &Secrets,
) -> Result<(), RoomError> {
    if !service::list_accounts(database).await?.is_empty() {
        return Ok(());
    }
    let key = match &secrets.bootstrap_api_key {
        Some(key) => key.reveal().to_owned(),
        None => new_key(),
    };
    write_key(&config.data_dir, &key)?;
    service::bootstrap(database, Some(&key)).await?;
    Ok(())
}

fn new_key() -> String {
    let random = rand::rng().sample_iter(Alphanumeric).take(KEY_LENGTH);
    KEY_PREFIX.chars().chain(random.map(char::from)).collect()
}

/// Writes the key for its owner alone, whole or not at all.
fn write_key(data_dir: &Path, key: &str) -> io::Result<()> {
    let draft = data_dir.join(format!("{ADMIN_KEY}.new"));
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    writeln!(file, "{key}")?;
    file.sync_all()?;
    std::fs::rename(&draft, data_dir.join(ADMIN_KEY))?;
    File::open(data_dir)?.sync_all()
}

/// Makes an account and its key.
pub(crate) async fn create_account(config: &Config, email: &str) -> Result<NewAccount, RoomError> {
    let database = database::open(config).await?;
    let made = service::create_account(&database, email).await;
    database.close().await;
    let made = made?;
    Ok(NewAccount {
        account_id: made.account_id.to_string(),
        email: made.email,
        api_key: made.api_key,
    })
}

/// All accounts.
pub(crate) async fn list_accounts(config: &Config) -> Result<Vec<AccountLine>, RoomError> {
    let database = database::open(config).await?;
    let accounts = service::list_accounts(&database).await;
    database.close().await;
    Ok(accounts?
        .into_iter()
        .map(|account| AccountLine {
            account_id: account.id.to_string(),
            email: account.email,
            created_at: account.created_at,
            disabled: !account.is_active,
        })
        .collect())
}

/// Disables the account of this e-mail address or id.
pub(crate) async fn disable_account(config: &Config, account: &str) -> Result<(), RoomError> {
    let database = database::open(config).await?;
    let disabled = disable(&database, account).await;
    database.close().await;
    disabled
}

async fn disable(database: &Database, account: &str) -> Result<(), RoomError> {
    let known = service::list_accounts(database).await?;
    let by_id = known
        .into_iter()
        .find(|known| known.id.to_string() == account)
        .map(|known| known.email);
    let email = by_id.as_deref().unwrap_or(account);
    Ok(service::disable_account(database, email).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_written_for_its_owner_alone_over_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        write_key(dir.path(), "instavm_sk_old").unwrap();
        std::fs::write(dir.path().join("admin-key.new"), "cut off").unwrap();
        write_key(dir.path(), "instavm_sk_new").unwrap();
        let path = dir.path().join(ADMIN_KEY);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "instavm_sk_new\n");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!dir.path().join("admin-key.new").exists());
    }

    #[test]
    fn new_keys_differ() {
        let (first, second) = (new_key(), new_key());
        assert_ne!(first, second);
        assert!(first.starts_with(KEY_PREFIX));
        assert_eq!(first.len(), KEY_PREFIX.len() + KEY_LENGTH);
    }
}
