//! The rules of accounts. They need nothing but the database, so they work beside a running platform too, which
//! notices within a second.

use super::rows;
use crate::api_key::{rows as key_rows, service as keys};
use crate::clock::Moment;
use instavm_store::{Database, StoreError};

/// The address of the account that a platform without any makes.
const FIRST_ACCOUNT: &str = "admin@localhost";
/// Characters of an address.
const EMAIL_LIMIT: usize = 254;
/// The shortest and the longest key that an operator may choose.
const KEY_LENGTHS: std::ops::RangeInclusive<usize> = 8..=200;

/// Why an account could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The address is none.
    #[error("{email:?} is no e-mail address: it must be like name@host, without spaces")]
    InvalidEmail {
        /// What was given.
        email: String,
    },
    /// The key that the operator chose cannot be one.
    #[error("the API key must have 8 to 200 visible ASCII characters and no spaces")]
    InvalidKey,
    /// There is an account with this address.
    #[error("there is already an account {email}")]
    Taken {
        /// What was given.
        email: String,
    },
    /// There is no account with this address.
    #[error("there is no account {email}")]
    Unknown {
        /// What was given.
        email: String,
    },
    /// The database failed.
    #[error("reading or writing the accounts failed")]
    Store(#[from] StoreError),
}

/// A new account and its first key, whose text is kept nowhere.
pub struct NewAccount {
    /// Its id.
    pub account_id: i64,
    /// Its address.
    pub email: String,
    /// The text of its key.
    pub api_key: String,
}

impl std::fmt::Debug for NewAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewAccount")
            .field("account_id", &self.account_id)
            .field("email", &self.email)
            .finish_non_exhaustive()
    }
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: i64,
    /// Its address.
    pub email: String,
    /// Its name.
    pub name: String,
    /// Whether its keys are accepted.
    pub is_active: bool,
    /// When it was made, ISO-8601 in UTC.
    pub created_at: String,
}

fn checked_email(email: &str) -> Result<String, AccountError> {
    let address = email.trim().to_lowercase();
    let well_formed = address.len() <= EMAIL_LIMIT
        && !address.contains(|c: char| c.is_whitespace() || c.is_control())
        && address.split_once('@').is_some_and(|(name, host)| {
            !name.is_empty() && !host.is_empty() && !host.contains('@')
        });
    if well_formed {
        Ok(address)
    } else {
        Err(AccountError::InvalidEmail {
            email: email.to_owned(),
        })
    }
}

/// Makes an account and its first key.
///
/// # Errors
/// [`AccountError`] when the address is none or taken, or the database fails.
pub async fn create_account(database: &Database, email: &str) -> Result<NewAccount, AccountError> {
    let email = checked_email(email)?;
    let mut transaction = database.begin().await?;
    let account = add(&mut transaction, email, keys::random_key(), "First key").await?;
    transaction.commit().await?;
    Ok(account)
}

async fn add(
    transaction: &mut instavm_store::Transaction,
    email: String,
    api_key: String,
    description: &str,
) -> Result<NewAccount, AccountError> {
    let account_id = match rows::insert(transaction, &email, Moment::now()).await {
        Ok(id) => id,
        Err(error) if error.is_duplicate() => return Err(AccountError::Taken { email }),
        Err(error) => return Err(error.into()),
    };
    key_rows::insert(transaction, account_id, &api_key, description).await?;
    rows::mark_changed(transaction).await?;
    Ok(NewAccount {
        account_id,
        email,
        api_key,
    })
}

/// All accounts, oldest first.
///
/// # Errors
/// [`AccountError::Store`].
pub async fn list_accounts(database: &Database) -> Result<Vec<Account>, AccountError> {
    Ok(rows::all(database).await?)
}

/// Disables an account: its keys answer 401. Its VMs live until they expire.
///
/// # Errors
/// [`AccountError::Unknown`], or [`AccountError::Store`].
pub async fn disable_account(database: &Database, email: &str) -> Result<(), AccountError> {
    let address = checked_email(email)?;
    let mut transaction = database.begin().await?;
    if !rows::disable(&mut transaction, &address).await? {
        return Err(AccountError::Unknown { email: address });
    }
    rows::mark_changed(&mut transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// Makes the account `admin@localhost` when there is none at all, with the given key or a random one.
/// `None`: there is an account already, and nothing was done.
///
/// # Errors
/// [`AccountError::InvalidKey`], or [`AccountError::Store`].
pub async fn bootstrap(
    database: &Database,
    key: Option<&str>,
) -> Result<Option<NewAccount>, AccountError> {
    if key.is_some_and(|key| !is_fit_as_key(key)) {
        return Err(AccountError::InvalidKey);
    }
    let mut transaction = database.begin().await?;
    if rows::any(&mut transaction).await? {
        return Ok(None);
    }
    let key = key.map_or_else(keys::random_key, str::to_owned);
    let account = add(
        &mut transaction,
        FIRST_ACCOUNT.to_owned(),
        key,
        "Bootstrap key",
    )
    .await?;
    transaction.commit().await?;
    Ok(Some(account))
}

fn is_fit_as_key(key: &str) -> bool {
    KEY_LENGTHS.contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked_and_lowered() {
        assert_eq!(checked_email(" A@B.c ").unwrap(), "a@b.c");
        assert_eq!(checked_email("admin@localhost").unwrap(), "admin@localhost");
        let long = format!("{}@b.c", "a".repeat(EMAIL_LIMIT));
        for wrong in ["", "@", "a@", "@b", "a b@c", "a@b@c", "a\0@b", &long] {
            assert!(checked_email(wrong).is_err(), "{wrong}");
        }
    }
}
