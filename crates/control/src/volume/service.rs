//! The rules of volumes.

use super::rows;
use crate::Platform;
use crate::checkpoint::rows as checkpoint_rows;
use crate::clock::Moment;
use crate::error::{Chain, Kind, Problem};
use crate::mount::rows as mount_rows;
use crate::space;
use crate::vm::service::random_id;
use futures::StreamExt;
use instavm_node_api::{CheckpointId, NodeError, VolumeId};
use instavm_store::{Database, StoreError};

/// Characters of a name.
const NAME_LIMIT: usize = 64;
/// Volumes that are measured at once.
const MEASURED_AT_ONCE: usize = 8;
/// VMs that a refusal names.
const NAMED: usize = 5;

/// How far a volume has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Available,
    Failed,
    Deleting,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Available => "available",
            Status::Failed => "failed",
            Status::Deleting => "deleting",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Status> {
        [
            Status::Creating,
            Status::Available,
            Status::Failed,
            Status::Deleting,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }
}

/// A volume.
#[derive(Clone, Debug)]
pub(crate) struct Volume {
    pub id: VolumeId,
    pub account_id: i64,
    pub name: String,
    pub status: Status,
    pub quota_bytes: u64,
    pub used_bytes: u64,
    pub charged_bytes: u64,
    pub measured_at: Option<Moment>,
    pub created_at: Moment,
    pub updated_at: Moment,
}

/// A new volume's id.
pub(crate) fn new_id() -> VolumeId {
    VolumeId(format!("vol_{}", random_id(20)))
}

fn not_found() -> Problem {
    Problem::new(
        Kind::NotFound,
        "volume not found: it does not exist, or belongs to another account",
    )
}

/// Whether a volume may have this name.
pub(crate) fn check_name(name: &str) -> Result<(), Problem> {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let begins = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && name.len() <= NAME_LIMIT && name.chars().all(is_safe) {
        return Ok(());
    }
    Err(Problem::invalid(
        "name",
        format!(
            "must be 1 to {NAME_LIMIT} letters, digits, '.', '_' and '-', the first a letter or digit"
        ),
    ))
}

/// The quota that was asked for; 422 when it is outside the range.
pub(crate) fn checked_quota(
    platform: &Platform,
    field: &str,
    given: Option<i64>,
) -> Result<u64, Problem> {
    let range = &platform.settings.volume_quota_range;
    let given = given.ok_or_else(|| Problem::invalid(field, "is missing"))?;
    u64::try_from(given)
        .ok()
        .filter(|bytes| range.contains(bytes))
        .ok_or_else(|| {
            let (from, to) = (range.start(), range.end());
            Problem::invalid(
                field,
                format!("must be between {from} and {to}, and is {given}"),
            )
        })
}

fn taken(name: &str) -> Problem {
    Problem::new(
        Kind::Conflict,
        format!("name: this account has a volume {name:?} already"),
    )
}

/// Makes a volume.
pub(crate) async fn create(
    platform: &Platform,
    account_id: i64,
    id: VolumeId,
    name: &str,
    quota_bytes: u64,
) -> Result<Volume, Problem> {
    check_name(name)?;
    let now = Moment::now();
    let mut volume = Volume {
        id,
        account_id,
        name: name.to_owned(),
        status: Status::Creating,
        quota_bytes,
        used_bytes: 0,
        charged_bytes: 0,
        measured_at: None,
        created_at: now,
        updated_at: now,
    };
    let platform_there = platform.clone();
    let task = async move {
        let platform = platform_there;
        let _guard = platform.exclusive.hold(&volume.id.0).await;
        record(&platform, &volume).await?;
        if let Err(error) = platform.node.create_volume(&volume.id, quota_bytes).await {
            // Nothing is left of it; what cannot be removed now is later.
            let mut transaction = platform.database.begin().await?;
            rows::begin_deleting(&mut transaction, &volume.id).await?;
            transaction.commit().await?;
            erase_or_later(&platform, &volume.id).await;
            return Err(error.into());
        }
        rows::advance(
            &platform.database,
            &volume.id,
            Status::Creating,
            Status::Available,
        )
        .await?;
        volume.status = Status::Available;
        Ok(volume)
    };
    platform.carry_out("making the volume", task).await
}

async fn record(platform: &Platform, volume: &Volume) -> Result<(), Problem> {
    let settings = &platform.settings;
    let mut transaction = platform.database.begin().await?;
    let (account_id, quota) = (volume.account_id, volume.quota_bytes);
    space::admit(&mut transaction, settings, account_id, quota).await?;
    let count = space::count(
        &mut transaction,
        "SELECT CAST(count(*) AS BIGINT) AS count FROM volumes WHERE account_id = $1",
        vec![account_id.into()],
    )
    .await?;
    let limit = settings.volumes_per_account;
    if count >= limit {
        return Err(Problem::new(
            Kind::TooMany,
            format!("this account has {count} volumes and the limit is {limit}: delete some"),
        ));
    }
    match rows::insert(&mut transaction, volume).await {
        Err(error) if error.is_duplicate() => return Err(taken(&volume.name)),
        inserted => inserted?,
    }
    Ok(transaction.commit().await?)
}

/// A volume of the account.
pub(crate) async fn find(
    platform: &Platform,
    account_id: i64,
    id: &str,
) -> Result<Volume, Problem> {
    rows::find(&platform.database, account_id, id)
        .await?
        .ok_or_else(not_found)
}

/// The volume of a name.
pub(crate) async fn named(
    platform: &Platform,
    account_id: i64,
    name: &str,
) -> Result<Option<Volume>, Problem> {
    Ok(rows::named(&platform.database, account_id, name).await?)
}

/// A volume of the account that can be used.
pub(crate) async fn available(
    platform: &Platform,
    account_id: i64,
    id: &str,
) -> Result<Volume, Problem> {
    let volume = find(platform, account_id, id).await?;
    if volume.status == Status::Available {
        return Ok(volume);
    }
    Err(Problem::new(
        Kind::Conflict,
        format!(
            "volume {id} is {} and cannot be used",
            volume.status.as_str()
        ),
    ))
}

/// A volume with what it holds now.
pub(crate) async fn refreshed(platform: &Platform, volume: Volume) -> Result<Volume, Problem> {
    if volume.status != Status::Available {
        return Ok(volume);
    }
    let usage = match platform.node.volume_usage(&volume.id).await {
        Ok(usage) => usage,
        // It was deleted meanwhile.
        Err(NodeError::NoSuchVolume) => return Ok(volume),
        Err(error) => return Err(error.into()),
    };
    let now = Moment::now();
    rows::measured(&platform.database, &volume.id, &usage, now).await?;
    Ok(Volume {
        used_bytes: usage.used_bytes,
        charged_bytes: usage.charged_bytes,
        measured_at: Some(now),
        ..volume
    })
}

/// The account's volumes.
pub(crate) async fn list(
    platform: &Platform,
    account_id: i64,
    refresh: bool,
) -> Result<Vec<Volume>, Problem> {
    let volumes = rows::all(&platform.database, account_id).await?;
    if !refresh {
        return Ok(volumes);
    }
    let measuring: Vec<_> = futures::stream::iter(volumes)
        .map(|volume| refreshed(platform, volume))
        .buffered(MEASURED_AT_ONCE)
        .collect()
        .await;
    measuring.into_iter().collect()
}

/// The VMs that have each of the account's volumes mounted.
pub(crate) async fn mounted_by(
    platform: &Platform,
    account_id: i64,
) -> Result<Vec<(String, String)>, Problem> {
    Ok(mount_rows::of_account(&platform.database, account_id).await?)
}

/// Renames a volume, and makes it larger, or smaller down to what it holds.
pub(crate) async fn update(
    platform: &Platform,
    account_id: i64,
    id: &str,
    name: Option<String>,
    quota_bytes: Option<u64>,
) -> Result<Volume, Problem> {
    name.as_deref().map_or(Ok(()), check_name)?;
    let (platform_there, id) = (platform.clone(), id.to_owned());
    let task = async move {
        let platform = platform_there;
        let _guard = platform.exclusive.hold(&id).await;
        let volume = available(&platform, account_id, &id).await?;
        change(&platform, &volume, name.as_deref(), quota_bytes).await?;
        find(&platform, account_id, &id).await
    };
    platform.carry_out("changing the volume", task).await
}

async fn change(
    platform: &Platform,
    volume: &Volume,
    name: Option<&str>,
    quota_bytes: Option<u64>,
) -> Result<(), Problem> {
    let quota_bytes = quota_bytes.filter(|bytes| *bytes != volume.quota_bytes);
    if let Some(quota) = quota_bytes.filter(|bytes| *bytes < volume.quota_bytes) {
        let usage = platform.node.volume_usage(&volume.id).await?;
        if usage.charged_bytes > quota {
            return Err(Problem::new(
                Kind::Conflict,
                format!(
                    "quota_bytes: volume {} holds {} bytes (its files {}), which is more than {quota}: delete files or \
                     checkpoints first",
                    volume.id, usage.charged_bytes, usage.used_bytes
                ),
            ));
        }
    }
    let mut transaction = platform.database.begin().await?;
    if let Some(quota) = quota_bytes.filter(|bytes| *bytes > volume.quota_bytes) {
        let more = quota - volume.quota_bytes;
        space::admit(
            &mut transaction,
            &platform.settings,
            volume.account_id,
            more,
        )
        .await?;
    }
    match rows::update(&mut transaction, &volume.id, name, quota_bytes).await {
        Err(error) if error.is_duplicate() => return Err(taken(name.unwrap_or_default())),
        updated => updated?,
    }
    // The row and the node change together as far as they can: a start sets the quotas that the rows name.
    if let Some(quota) = quota_bytes {
        platform.node.limit_volume(&volume.id, quota).await?;
    }
    Ok(transaction.commit().await?)
}

/// Deletes a volume that no VM has mounted; whether nothing is left of it. Of two that do it at once, the second finds it
/// gone.
pub(crate) async fn delete(
    platform: &Platform,
    account_id: i64,
    id: &str,
) -> Result<bool, Problem> {
    let (platform_there, id) = (platform.clone(), id.to_owned());
    let task = async move {
        let platform = platform_there;
        let _guard = platform.exclusive.hold(&id).await;
        let volume = find(&platform, account_id, &id).await?;
        let mut transaction = platform.database.begin().await?;
        rows::begin_deleting(&mut transaction, &volume.id).await?;
        let holders = mount_rows::holders(&mut transaction, &volume.id, None).await?;
        if !holders.is_empty() {
            return Err(in_use(&format!("volume {id}"), &holders));
        }
        transaction.commit().await?;
        Ok(erase_or_later(&platform, &volume.id).await)
    };
    platform.carry_out("deleting the volume", task).await
}

/// The refusal to delete what VMs have mounted.
pub(crate) fn in_use(what: &str, holders: &[String]) -> Problem {
    let named: Vec<&str> = holders.iter().map(String::as_str).take(NAMED).collect();
    let more = match holders.len() - named.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Problem::new(
        Kind::Conflict,
        format!(
            "{what} is in use: mounted in {}{more}; take it out of there first",
            named.join(", ")
        ),
    )
}

async fn erase_or_later(platform: &Platform, id: &VolumeId) -> bool {
    match erase(platform, id).await {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(volume = %id, error = %Chain(&error), "deleting a volume failed; again soon");
            false
        }
    }
}

/// Deletes what the node has of a volume that is being deleted, and then its rows.
pub(super) async fn erase(platform: &Platform, id: &VolumeId) -> Result<(), Problem> {
    platform.node.delete_volume(id).await?;
    Ok(rows::remove(&platform.database, id).await?)
}

/// What the records say of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedVolume {
    /// Its id.
    pub id: String,
    /// It is there; else it is being made or deleted, so it may be there or not.
    pub is_available: bool,
    /// Its quota.
    pub quota_bytes: u64,
    /// Its checkpoints, and whether each is there.
    pub checkpoints: Vec<(CheckpointId, bool)>,
}

/// What the records say of the volumes of all accounts. Those that failed are not among them.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn recorded(database: &Database) -> Result<Vec<RecordedVolume>, StoreError> {
    let checkpoints = checkpoint_rows::everything(database).await?;
    let volumes = rows::everything(database).await?.into_iter();
    Ok(volumes
        .filter(|volume| volume.status != Status::Failed)
        .map(|volume| RecordedVolume {
            checkpoints: checkpoints
                .iter()
                .filter(|checkpoint| {
                    checkpoint.volume_id == volume.id && checkpoint.status != "failed"
                })
                .map(|checkpoint| (checkpoint.id.clone(), checkpoint.status == "ready"))
                .collect(),
            id: volume.id.0,
            is_available: volume.status == Status::Available,
            quota_bytes: volume.quota_bytes,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_safe() {
        for name in ["a", "data-1", "a.b_c", &"x".repeat(64)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "-a", ".a", "a b", "a/b", "a:b", "ä", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
