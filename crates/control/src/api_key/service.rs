//! The rules of API keys, and the memory of who they belong to.

use super::rows;
use crate::Platform;
use crate::clock::Moment;
use crate::error::{Chain, Kind, Problem};
use crate::extract::Caller;
use crate::idempotency::Attempt;
use instavm_store::{Database, StoreError};
use rand::Rng;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError, RwLock};

/// What every key that the platform makes begins with.
const PREFIX: &str = "instavm_sk_";
/// Random characters of a key: 256 bits.
const RANDOM: usize = 43;
/// The longest text that is looked up.
const LENGTH_LIMIT: usize = 512;
/// Characters of a description.
const DESCRIPTION_LIMIT: usize = 1_000;

/// A key, without its text.
#[derive(Clone, Debug)]
pub(crate) struct ApiKey {
    pub id: i64,
    pub prefix: String,
    pub description: String,
    pub is_active: bool,
    pub created_at: Moment,
    pub last_used_at: Option<Moment>,
}

/// The SHA-256 of a key's text, which is all that is kept of it.
pub(crate) type KeyHash = [u8; 32];

/// A new key's text.
pub(crate) fn random_key() -> String {
    let mut random = rand::rng();
    let text: String = (0..RANDOM)
        .map(|_| char::from(random.sample(rand::distr::Alphanumeric)))
        .collect();
    format!("{PREFIX}{text}")
}

/// The hash of a key's text.
pub(crate) fn hash(key: &str) -> KeyHash {
    Sha256::digest(key.as_bytes()).into()
}

/// The beginning of a key's text, which says which one it is and helps nobody to guess it.
pub(crate) fn shown_prefix(key: &str) -> String {
    let shown = (key.chars().count() / 3).min(PREFIX.len() + 4);
    key.chars().take(shown).collect()
}

/// Whom a valid key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHolder {
    /// The key's number.
    pub key_id: i64,
    /// The account.
    pub account_id: i64,
}

/// Valid keys in memory, and when they were used.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    known: RwLock<Known>,
    used: Mutex<HashMap<i64, Moment>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Raised whenever keys may have become invalid: what was read before it must not be kept.
    generation: u64,
    by_hash: HashMap<KeyHash, KeyHolder>,
    /// The accounts of the same keys, by their numbers.
    by_id: HashMap<i64, i64>,
}

impl Keys {
    fn get(&self, hash: &KeyHash) -> (u64, Option<KeyHolder>) {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        (known.generation, known.by_hash.get(hash).copied())
    }

    /// Whom a key belongs to, from memory.
    pub(crate) fn known(&self, key: &str) -> Option<KeyHolder> {
        self.get(&hash(key)).1
    }

    /// The account of a key, from memory.
    fn account_of(&self, key_id: i64) -> Option<i64> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.by_id.get(&key_id).copied()
    }

    fn keep(&self, generation: u64, hash: KeyHash, identity: KeyHolder) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.generation == generation {
            known.by_hash.insert(hash, identity);
            known.by_id.insert(identity.key_id, identity.account_id);
        }
    }

    /// Forgets everything, so that every key is looked up again.
    fn forget(&self) -> u64 {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.generation += 1;
        known.by_hash.clear();
        known.by_id.clear();
        known.generation
    }

    /// Reads all valid keys anew.
    pub(crate) async fn reload(&self, database: &Database) -> Result<(), StoreError> {
        let generation = self.forget();
        for (hash, identity) in rows::all_valid(database).await? {
            self.keep(generation, hash, identity);
        }
        Ok(())
    }

    fn mark_used(&self, key_id: i64) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.insert(key_id, Moment::now());
    }

    fn last_used(&self, key_id: i64) -> Option<Moment> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.get(&key_id).copied()
    }

    /// Writes down when keys were used.
    pub(crate) async fn flush(&self, database: &Database) -> Result<(), StoreError> {
        let used: Vec<_> = {
            let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
            used.drain().collect()
        };
        if used.is_empty() {
            return Ok(());
        }
        rows::set_used(database, &used).await
    }
}

/// Who sent this key; 401 when it is unknown, revoked, or its account disabled.
pub(crate) async fn authenticate(platform: &Platform, key: &str) -> Result<Caller, Problem> {
    let holder = look_up(platform, key).await?;
    let holder = holder.ok_or_else(Problem::unauthorised)?;
    platform.keys.mark_used(holder.key_id);
    Ok(Caller {
        account_id: holder.account_id,
    })
}

/// Whom a key belongs to, from memory or from its row.
async fn look_up(platform: &Platform, key: &str) -> Result<Option<KeyHolder>, StoreError> {
    if key.is_empty() || key.len() > LENGTH_LIMIT {
        return Ok(None);
    }
    let hash = hash(key);
    let (generation, known) = platform.keys.get(&hash);
    if known.is_some() {
        return Ok(known);
    }
    let found = rows::find_valid(&platform.database, &hash).await?;
    if let Some(holder) = found {
        platform.keys.keep(generation, hash, holder);
    }
    Ok(found)
}

/// Whom a key belongs to, for the gateway; nobody when the records cannot be read.
pub(crate) async fn holder(platform: &Platform, key: &str) -> Option<KeyHolder> {
    let found = look_up(platform, key).await;
    let holder = found.inspect_err(unread).ok().flatten()?;
    platform.keys.mark_used(holder.key_id);
    Some(holder)
}

/// The account of the key of this number, for the gateway; `None` when it is revoked or the records cannot be read.
pub(crate) async fn account_of(platform: &Platform, key_id: i64) -> Option<i64> {
    if let Some(account_id) = platform.keys.account_of(key_id) {
        return Some(account_id);
    }
    let found = rows::account_of(&platform.database, key_id).await;
    found.inspect_err(unread).ok().flatten()
}

fn unread(error: &StoreError) {
    tracing::warn!(error = %Chain(error), "an API key could not be looked up");
}

fn check_description(description: &str) -> Result<(), Problem> {
    if description.chars().count() > DESCRIPTION_LIMIT {
        return Err(Problem::invalid(
            "description",
            format!("must not be longer than {DESCRIPTION_LIMIT} characters"),
        ));
    }
    Ok(())
}

/// The text of the key that a request makes.
pub(crate) fn new_key(attempt: &Attempt) -> String {
    format!("{PREFIX}{}", attempt.secret(RANDOM))
}

/// Makes a key of this text, which is kept nowhere.
pub(crate) async fn create(
    platform: &Platform,
    account_id: i64,
    text: &str,
    description: &str,
) -> Result<ApiKey, Problem> {
    check_description(description)?;
    let mut transaction = platform.database.begin().await?;
    let record = rows::insert(&mut transaction, account_id, text, description).await?;
    transaction.commit().await?;
    Ok(record)
}

/// The key of this text, if an earlier carrying out of the same request has made it.
pub(crate) async fn made_before(
    platform: &Platform,
    account_id: i64,
    text: &str,
) -> Result<Option<ApiKey>, Problem> {
    let Some(identity) = rows::find_valid(&platform.database, &hash(text)).await? else {
        return Ok(None);
    };
    Ok(rows::find(&platform.database, account_id, identity.key_id).await?)
}

fn with_use(platform: &Platform, mut key: ApiKey) -> ApiKey {
    key.last_used_at = platform.keys.last_used(key.id).or(key.last_used_at);
    key
}

/// The account's keys.
pub(crate) async fn list(platform: &Platform, account_id: i64) -> Result<Vec<ApiKey>, Problem> {
    let keys = rows::all(&platform.database, account_id).await?;
    Ok(keys
        .into_iter()
        .map(|key| with_use(platform, key))
        .collect())
}

/// A key of the account.
pub(crate) async fn find(platform: &Platform, account_id: i64, id: i64) -> Result<ApiKey, Problem> {
    rows::find(&platform.database, account_id, id)
        .await?
        .map(|key| with_use(platform, key))
        .ok_or_else(not_found)
}

fn not_found() -> Problem {
    Problem::new(
        Kind::NotFound,
        "API key not found: it does not exist, or belongs to another account",
    )
}

/// Changes a key. One that is no longer active answers 401 from here on.
pub(crate) async fn update(
    platform: &Platform,
    account_id: i64,
    id: i64,
    description: Option<String>,
    is_active: Option<bool>,
) -> Result<ApiKey, Problem> {
    description.as_deref().map_or(Ok(()), check_description)?;
    let key = changing(platform, async move |database| {
        rows::update(&database, account_id, id, description.as_deref(), is_active).await
    });
    key.await?.ok_or_else(not_found)
}

/// Deletes a key. It answers 401 from here on.
pub(crate) async fn delete(platform: &Platform, account_id: i64, id: i64) -> Result<(), Problem> {
    let deleted = changing(platform, async move |database| {
        rows::delete(&database, account_id, id).await
    });
    if deleted.await? {
        Ok(())
    } else {
        Err(not_found())
    }
}

/// Changes the rows and then forgets what was known, whatever becomes of the caller meanwhile.
async fn changing<T, F, Changed>(platform: &Platform, change: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce(Database) -> Changed,
    Changed: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let (platform, changed) = (platform.clone(), change(platform.database.clone()));
    let tracker = platform.tracker.clone();
    let task = tracker.spawn(async move {
        let result = changed.await;
        platform.keys.forget();
        result
    });
    task.await
        .map_err(|error| Problem::internal("changing the key", error))?
        .map_err(Problem::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_enough_and_their_prefix_tells_little() {
        let key = random_key();
        assert_eq!(key.len(), PREFIX.len() + RANDOM);
        assert!(key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
        assert_eq!(shown_prefix(&key).len(), PREFIX.len() + 4);
        assert_eq!(shown_prefix("secret-12"), "sec");
        assert_ne!(key, random_key());
    }
}
