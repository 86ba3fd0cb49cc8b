//! The rules of mounts.

use super::rows::{self, Recorded};
use crate::Platform;
use crate::checkpoint::rows as checkpoint_rows;
use crate::error::{Chain, Kind, Problem};
use crate::vm::service::{Vm, VmStatus};
use crate::volume::service::{self as volumes, Volume};
use instavm_api::mount::VolumeOfVm;
use instavm_node_api::{CheckpointId, Mount, NodeError, VmId, VolumeId};
use instavm_store::{Database, StoreError};

/// The longest path that Linux takes.
const PATH_LIMIT: usize = 4_095;
/// What the platform itself mounts in VMs.
const TAKEN: [&str; 3] = ["/proc", "/sys", "/dev"];
/// Quota of a volume that is made because it is missing, in GiB.
const MADE_GIB: i64 = 1;
/// The word for the newest checkpoint.
const LATEST: &str = "latest";

/// Where a volume is to be in a VM, checked.
fn checked_path(given: &str) -> Result<String, Problem> {
    let wrong = |why: &str| Err(Problem::invalid("mount_path", why));
    let path = given.strip_suffix('/').unwrap_or(given);
    if !given.starts_with('/') {
        return wrong("must be absolute");
    }
    if path.is_empty() {
        return wrong("must not be /");
    }
    if path.len() > PATH_LIMIT || path.contains('\0') {
        return wrong("is too long, or holds NUL");
    }
    if path[1..]
        .split('/')
        .any(|part| matches!(part, "" | "." | ".."))
    {
        return wrong("must not have empty parts, nor . and ..");
    }
    if TAKEN.iter().any(|taken| is_within(path, taken)) {
        return wrong("must not be in /proc, /sys or /dev");
    }
    Ok(path.to_owned())
}

/// Whether a path is another one, or below it.
fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether two mounts would be in each other's way.
fn collide(one: &str, other: &str) -> bool {
    is_within(one, other) || is_within(other, one)
}

/// Whether the mode is the one for reading, and a checkpoint goes with it.
fn is_read_only(mode: Option<&str>, checkpoint: Option<&str>) -> Result<bool, Problem> {
    let read_only = match mode {
        None | Some("" | "rw") => false,
        Some("ro") => true,
        Some(_) => return Err(Problem::invalid("mode", "must be rw or ro")),
    };
    if checkpoint.is_some() && !read_only {
        return Err(Problem::invalid(
            "checkpoint_id",
            "needs the mode ro: checkpoints cannot be written",
        ));
    }
    Ok(read_only)
}

async fn checkpoint(
    platform: &Platform,
    volume: &VolumeId,
    given: Option<&str>,
) -> Result<Option<CheckpointId>, Problem> {
    let Some(given) = given else { return Ok(None) };
    let database = &platform.database;
    if given == LATEST {
        let newest = checkpoint_rows::newest(database, volume).await?;
        return newest.map(Some).ok_or_else(|| {
            Problem::new(
                Kind::Conflict,
                format!("volume {volume} has no checkpoint yet, so that there is no latest one: make one first"),
            )
        });
    }
    let found = checkpoint_rows::find(database, volume, given).await?;
    match found {
        Some(found) if found.status == "ready" => Ok(Some(found.id)),
        _ => Err(Problem::new(
            Kind::NotFound,
            format!(
                "checkpoint not found: volume {volume} has no checkpoint {given:?} that is ready"
            ),
        )),
    }
}

/// The refusal of the volume at this place in a list.
fn at(index: usize, problem: Problem) -> Problem {
    Problem::new(
        problem.kind,
        format!("volumes[{index}].{}", problem.message),
    )
}

/// Where each volume is to be and whether it is only read, as far as that can be refused without knowing the volumes.
fn checked_places(limit: usize, given: &[VolumeOfVm]) -> Result<Vec<(String, bool)>, Problem> {
    if given.len() > limit {
        return Err(Problem::invalid(
            "volumes",
            format!("has {} volumes and the limit is {limit}", given.len()),
        ));
    }
    let mut checked: Vec<(String, bool)> = Vec::new();
    for (index, volume) in given.iter().enumerate() {
        let (path, read_only) = check(volume).map_err(|problem| at(index, problem))?;
        if let Some((other, _)) = checked.iter().find(|(other, _)| collide(other, &path)) {
            let why = if *other == path {
                format!("{path} is there twice")
            } else {
                format!("{path} and {other} are one within the other")
            };
            return Err(at(index, Problem::invalid("mount_path", why)));
        }
        checked.push((path, read_only));
    }
    Ok(checked)
}

/// The mounts that a VM is to have from its start. Volumes that are missing are made where that is asked for, after all that
/// can be refused is.
pub(crate) async fn resolve(
    platform: &Platform,
    account_id: i64,
    given: &[VolumeOfVm],
) -> Result<Vec<Mount>, Problem> {
    let checked = checked_places(platform.settings.mounts_per_vm, given)?;
    let mut meant: Vec<Meant> = Vec::new();
    let mut checkpoints = Vec::new();
    for (index, (volume, (_, read_only))) in given.iter().zip(&checked).enumerate() {
        let one =
            of_request(platform, account_id, volume)
                .await
                .map_err(|problem| match problem.kind {
                    Kind::Invalid => at(index, problem),
                    _ => problem,
                })?;
        let mut others = meant.iter().zip(&checked).filter(|(_, (_, ro))| !ro);
        if !read_only && others.any(|(other, _)| other.is(&one)) {
            let why = format!(
                "volume {} is there twice with the mode rw; one mount at a time may write it",
                one.shown()
            );
            return Err(Problem::invalid("volumes", why));
        }
        checkpoints.push(match &one {
            Meant::There(there) => {
                let given = volume.checkpoint_id.as_deref().filter(|id| !id.is_empty());
                checkpoint(platform, &there.id, given).await?
            }
            Meant::Missing { .. } => None,
        });
        meant.push(one);
    }
    let volumes = all_made(platform, account_id, meant).await?;
    let mounts = volumes.into_iter().zip(checkpoints).zip(checked);
    Ok(mounts
        .map(|((volume, checkpoint), (path, read_only))| Mount {
            checkpoint,
            volume: volume.id,
            path,
            read_only,
        })
        .collect())
}

fn check(volume: &VolumeOfVm) -> Result<(String, bool), Problem> {
    let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    let path = checked_path(&volume.mount_path)?;
    let checkpoint = volume.checkpoint_id.as_deref().filter(|id| !id.is_empty());
    let read_only = is_read_only(volume.mode.as_deref(), checkpoint)?;
    if !given(&volume.volume_id) && !given(&volume.name) {
        return Err(Problem::invalid(
            "volume_id",
            "is missing: give the volume's id, or its name in name",
        ));
    }
    Ok((path, read_only))
}

/// The volume that a request means.
enum Meant {
    There(Box<Volume>),
    Missing { name: String, quota_bytes: u64 },
}

impl Meant {
    fn is(&self, other: &Meant) -> bool {
        match (self, other) {
            (Meant::There(one), Meant::There(other)) => one.id == other.id,
            (Meant::Missing { name, .. }, Meant::Missing { name: other, .. }) => name == other,
            _ => false,
        }
    }

    fn shown(&self) -> &str {
        match self {
            Meant::There(volume) => &volume.id.0,
            Meant::Missing { name, .. } => name,
        }
    }
}

/// Looks for the volume; one that is to be made is not made yet, but all that can be refused of it is.
async fn of_request(
    platform: &Platform,
    account_id: i64,
    volume: &VolumeOfVm,
) -> Result<Meant, Problem> {
    let there = |volume| Ok(Meant::There(Box::new(volume)));
    if let Some(id) = volume.volume_id.as_deref().filter(|id| !id.is_empty()) {
        return there(volumes::available(platform, account_id, id).await?);
    }
    let name = volume.name.as_deref().unwrap_or_default();
    if let Some(found) = volumes::named(platform, account_id, name).await? {
        return there(volumes::available(platform, account_id, &found.id.0).await?);
    }
    if volume.create_if_missing != Some(true) {
        return Err(Problem::new(
            Kind::NotFound,
            format!(
                "volume not found: this account has none of the name {name:?}; say create_if_missing to have it made"
            ),
        ));
    }
    volumes::check_name(name)?;
    if volume
        .checkpoint_id
        .as_deref()
        .is_some_and(|id| !id.is_empty())
    {
        return Err(Problem::new(
            Kind::Conflict,
            format!(
                "checkpoint_id: volume {name:?} is missing, and a new one has no checkpoint; leave it out"
            ),
        ));
    }
    let gib = volume.size_gb.unwrap_or(MADE_GIB);
    let quota = gib.checked_mul(1 << 30).filter(|bytes| *bytes > 0);
    Ok(Meant::Missing {
        name: name.to_owned(),
        quota_bytes: volumes::checked_quota(platform, "size_gb (as bytes)", quota.or(Some(gib)))?,
    })
}

/// The volumes, those that are missing made; none of them when one cannot be.
async fn all_made(
    platform: &Platform,
    account_id: i64,
    meant: Vec<Meant>,
) -> Result<Vec<Volume>, Problem> {
    let mut volumes = Vec::new();
    let mut new = Vec::new();
    for one in meant {
        let made = match one {
            Meant::There(volume) => Ok((*volume, false)),
            Meant::Missing { name, quota_bytes } => {
                made(platform, account_id, &name, quota_bytes).await
            }
        };
        match made {
            Ok((volume, is_new)) => {
                if is_new {
                    new.push(volume.id.clone());
                }
                volumes.push(volume);
            }
            Err(problem) => {
                for id in new {
                    // Whoever uses it already keeps it.
                    let _ = volumes::delete(platform, account_id, &id.0).await;
                }
                return Err(problem);
            }
        }
    }
    Ok(volumes)
}

/// Makes a volume, unless somebody else has made it meanwhile; and whether it is new.
async fn made(
    platform: &Platform,
    account_id: i64,
    name: &str,
    quota_bytes: u64,
) -> Result<(Volume, bool), Problem> {
    let made = volumes::create(platform, account_id, volumes::new_id(), name, quota_bytes).await;
    match made {
        Ok(made) => Ok((made, true)),
        Err(problem) if problem.kind == Kind::Conflict => {
            let found = volumes::named(platform, account_id, name).await?;
            Ok((found.ok_or(problem)?, false))
        }
        Err(problem) => Err(problem),
    }
}

fn must_run(vm: &Vm) -> Result<(), Problem> {
    if vm.status == VmStatus::Active {
        return Ok(());
    }
    Err(Problem::new(
        Kind::Conflict,
        format!("VM {} is {} and does not run", vm.id, vm.status.as_str()),
    ))
}

/// Mounts a volume in a VM that runs; it is visible there when this returns, unless the caller does not wait.
pub(crate) async fn mount(
    platform: &Platform,
    vm: &Vm,
    request: VolumeOfVm,
    wait: bool,
) -> Result<Recorded, Problem> {
    let (path, read_only) = check(&request)?;
    let given = request.checkpoint_id.as_deref().filter(|id| !id.is_empty());
    let meant = of_request(platform, vm.account_id, &request).await?;
    must_run(vm)?;
    let volume = match meant {
        Meant::There(volume) => *volume,
        Meant::Missing { name, quota_bytes } => {
            made(platform, vm.account_id, &name, quota_bytes).await?.0
        }
    };
    let mount = Mount {
        checkpoint: checkpoint(platform, &volume.id, given).await?,
        volume: volume.id,
        path,
        read_only,
    };
    let mut recorded = Recorded {
        vm_id: vm.id.clone(),
        mount,
        name: volume.name,
        status: "mounting".to_owned(),
    };
    let task = {
        let (platform, recorded, account_id) = (platform.clone(), recorded.clone(), vm.account_id);
        async move {
            let guard = platform.exclusive.hold(&recorded.vm_id.0).await;
            intend(&platform, account_id, &recorded).await?;
            let tracker = platform.tracker.clone();
            Ok(tracker.spawn(async move {
                let result = carry_out(&platform, &recorded).await;
                drop(guard);
                result
            }))
        }
    };
    let mounting = platform.carry_out("mounting the volume", task).await?;
    if wait {
        mounting
            .await
            .map_err(|error| Problem::internal("mounting the volume", error))??;
        recorded.status = "mounted".to_owned();
    }
    Ok(recorded)
}

async fn intend(platform: &Platform, account_id: i64, recorded: &Recorded) -> Result<(), Problem> {
    let (vm, path) = (&recorded.vm_id, &recorded.mount.path);
    let present = rows::of_vm(&platform.database, vm).await?;
    let limit = platform.settings.mounts_per_vm;
    if present.len() >= limit {
        return Err(Problem::new(
            Kind::Conflict,
            format!("VM {vm} has {limit} volumes mounted, which is the limit"),
        ));
    }
    if let Some(other) = present
        .iter()
        .find(|other| collide(&other.mount.path, path))
    {
        return Err(Problem::new(
            Kind::Conflict,
            format!(
                "mount_path: volume {} is mounted at {} in this VM already",
                other.mount.volume, other.mount.path
            ),
        ));
    }
    let mut transaction = platform.database.begin().await?;
    if !crate::vm::rows::hold(&mut transaction, vm).await? {
        return Err(Problem::new(Kind::Conflict, format!("VM {vm} has ended")));
    }
    rows::add(&mut transaction, account_id, vm, &recorded.mount).await?;
    Ok(transaction.commit().await?)
}

async fn carry_out(platform: &Platform, recorded: &Recorded) -> Result<(), Problem> {
    let (vm, mount) = (&recorded.vm_id, &recorded.mount);
    match platform.node.mount_volume(vm, mount.clone()).await {
        Ok(()) => {
            rows::advance(&platform.database, vm, &mount.path, "mounting", "mounted").await?;
            Ok(())
        }
        Err(error) => {
            rows::remove(&platform.database, vm, &mount.path).await?;
            Err(of_node(error))
        }
    }
}

fn of_node(error: NodeError) -> Problem {
    match error {
        NodeError::NoSuchVm => {
            Problem::new(Kind::Conflict, "the VM ended while this was under way")
        }
        error => error.into(),
    }
}

/// The mounts of a VM.
pub(crate) async fn list(platform: &Platform, vm: &Vm) -> Result<Vec<Recorded>, Problem> {
    Ok(rows::of_vm(&platform.database, &vm.id).await?)
}

/// Takes a volume out of a VM; it is gone from there when this returns, unless the caller does not wait.
pub(crate) async fn unmount(
    platform: &Platform,
    vm: &Vm,
    volume: &str,
    path: Option<&str>,
    wait: bool,
) -> Result<Recorded, Problem> {
    let recorded = which(platform, vm, volume, path).await?;
    must_run(vm)?;
    let task = {
        let (platform, recorded) = (platform.clone(), recorded.clone());
        async move {
            let guard = platform.exclusive.hold(&recorded.vm_id.0).await;
            let (vm, path) = (&recorded.vm_id, &recorded.mount.path);
            if !rows::advance(&platform.database, vm, path, "mounted", "unmounting").await? {
                return Err(not_found(volume_text(&recorded)));
            }
            let tracker = platform.tracker.clone();
            Ok(tracker.spawn(async move {
                let result = take_out(&platform, &recorded).await;
                drop(guard);
                result
            }))
        }
    };
    let unmounting = platform.carry_out("taking the volume out", task).await?;
    if wait {
        unmounting
            .await
            .map_err(|error| Problem::internal("taking the volume out", error))??;
    }
    Ok(recorded)
}

fn volume_text(recorded: &Recorded) -> String {
    format!(
        "volume {} at {}",
        recorded.mount.volume, recorded.mount.path
    )
}

fn not_found(what: impl std::fmt::Display) -> Problem {
    Problem::new(
        Kind::NotFound,
        format!("mount not found: this VM does not have {what}"),
    )
}

async fn which(
    platform: &Platform,
    vm: &Vm,
    volume: &str,
    path: Option<&str>,
) -> Result<Recorded, Problem> {
    let path = path
        .filter(|path| !path.is_empty())
        .map(checked_path)
        .transpose()?;
    let mut found: Vec<Recorded> = list(platform, vm).await?;
    found.retain(|recorded| {
        recorded.mount.volume.0 == volume
            && path
                .as_ref()
                .is_none_or(|path| recorded.mount.path == *path)
    });
    if found.len() > 1 {
        let paths: Vec<_> = found
            .iter()
            .map(|recorded| recorded.mount.path.as_str())
            .collect();
        return Err(Problem::invalid(
            "mount_path",
            format!("is missing: this VM has the volume at {}", paths.join(", ")),
        ));
    }
    let shown: String = volume.chars().take(64).collect();
    found.pop().ok_or_else(|| match path {
        Some(path) => not_found(format!("volume {shown:?} at {path}")),
        None => not_found(format!("volume {shown:?}")),
    })
}

async fn take_out(platform: &Platform, recorded: &Recorded) -> Result<(), Problem> {
    let (vm, path) = (&recorded.vm_id, &recorded.mount.path);
    match platform.node.unmount_volume(vm, path).await {
        Ok(()) | Err(NodeError::NoSuchVm) => Ok(rows::remove(&platform.database, vm, path).await?),
        Err(error) => {
            rows::advance(&platform.database, vm, path, "unmounting", "mounted").await?;
            Err(of_node(error))
        }
    }
}

/// Brings the rows of mounts in line with what the VMs have, for those that nobody is at.
pub(crate) async fn compare(platform: &Platform) -> Result<(), StoreError> {
    let recorded = rows::everything(&platform.database).await?;
    let mut by_vm: std::collections::BTreeMap<VmId, Vec<Recorded>> = Default::default();
    for mount in recorded {
        by_vm.entry(mount.vm_id.clone()).or_default().push(mount);
    }
    for (vm, session) in platform.live.vms() {
        if session.active_vm().is_some_and(|active| active.id == vm) {
            by_vm.entry(vm).or_default();
        }
    }
    for vm in by_vm.into_keys() {
        let Some(_guard) = platform.exclusive.try_hold(&vm.0) else {
            continue;
        };
        compare_vm(platform, &vm).await?;
    }
    Ok(())
}

async fn compare_vm(platform: &Platform, vm: &VmId) -> Result<(), StoreError> {
    let database = &platform.database;
    let recorded = rows::of_vm(database, vm).await?;
    let present = match platform.node.mounts(vm).await {
        Ok(present) => present,
        // The end of the VM drops its rows; of one that is being made there is nothing to say yet.
        Err(NodeError::NoSuchVm) => return Ok(()),
        Err(error) => {
            tracing::warn!(%vm, error = %Chain(&error), "the node does not say what a VM has mounted");
            return Ok(());
        }
    };
    for row in &recorded {
        let is_there = present.contains(&row.mount);
        let path = &row.mount.path;
        match (row.status.as_str(), is_there) {
            ("mounting", true) => {
                rows::advance(database, vm, path, "mounting", "mounted").await?;
            }
            ("unmounting", true) => {
                if let Err(problem) = take_out(platform, row).await {
                    tracing::warn!(%vm, path, error = %Chain(&problem), "a volume could not be taken out");
                }
            }
            (_, false) => rows::remove(database, vm, path).await?,
            _ => {}
        }
    }
    for mount in present {
        if recorded.iter().any(|row| row.mount == mount) {
            continue;
        }
        tracing::warn!(%vm, path = mount.path, "a mount without a record is taken out");
        if let Err(error) = platform.node.unmount_volume(vm, &mount.path).await {
            tracing::warn!(%vm, path = mount.path, error = %Chain(&error), "a mount could not be taken out");
        }
    }
    Ok(())
}

/// What the records say of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedMount {
    /// The VM.
    pub vm_id: String,
    /// The mount.
    pub mount: Mount,
    /// It is there; else it is being made or taken out, so it may be there or not.
    pub is_mounted: bool,
}

/// What the records say of the mounts of all VMs that have not ended.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn recorded(database: &Database) -> Result<Vec<RecordedMount>, StoreError> {
    let mounts = rows::everything(database).await?.into_iter();
    Ok(mounts
        .map(|recorded| RecordedMount {
            vm_id: recorded.vm_id.0,
            is_mounted: recorded.status == "mounted",
            mount: recorded.mount,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_plain() {
        assert_eq!(checked_path("/data/x/").unwrap(), "/data/x");
        for wrong in [
            "", "/", "//", "data", "./data", "/a//b", "/a/../b", "/a/.", "/proc/x", "/dev", "/sys",
            "/a\0",
        ] {
            assert!(checked_path(wrong).is_err(), "{wrong:?}");
        }
        assert!(checked_path("/devices").is_ok());
    }

    #[test]
    fn mounts_collide_where_one_is_within_the_other() {
        assert!(collide("/data", "/data"));
        assert!(collide("/data", "/data/x") && collide("/data/x", "/data"));
        assert!(!collide("/data", "/data2") && !collide("/a/b", "/a/c"));
    }

    #[test]
    fn checkpoints_are_read_only() {
        assert!(!is_read_only(None, None).unwrap());
        assert!(is_read_only(Some("ro"), Some("x")).unwrap());
        assert!(is_read_only(Some("rw"), Some("x")).is_err());
        assert!(is_read_only(Some("rx"), None).is_err());
    }
}
