//! How VMs are made, how they end, and what follows from it.

use super::rows;
use crate::Platform;
use crate::clock::Moment;
use crate::error::{Chain, Kind, Problem};
use crate::session::service::Session;
use crate::snapshot::{reconcile as snapshot_reconcile, service as snapshots};
use instavm_api::Metadata;
use instavm_node_api::{EgressPolicy, Ending, Mount, NodeError, SnapshotId, VmId, VmInfo, VmSpec};
use instavm_store::{Database, StoreError};
use rand::Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;

/// Between two attempts to record the end of a VM.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What a session's VMs are made as.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Profile {
    pub memory_mb: u32,
    pub vcpu_count: u32,
    pub lifetime_seconds: u32,
    pub env: BTreeMap<String, String>,
    pub metadata: Metadata,
    pub origin: Origin,
}

/// What a session's VMs start from, have mounted and may reach, and what becomes of their disks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Origin {
    pub snapshot_id: Option<String>,
    /// What the snapshot says of the environment; the session's own is on top of it.
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    pub mounts: Vec<Mount>,
    /// What they may reach; nothing is closed when absent.
    pub egress: Option<EgressPolicy>,
    /// Their disks are kept as snapshots when they end.
    pub keep: bool,
    /// What these are called.
    pub keep_name: Option<String>,
}

/// What one VM is to be made as.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub id: VmId,
    pub profile: Profile,
    /// What its disk starts as, where that is not what the profile names: the snapshot of a clone.
    pub boot: Option<SnapshotId>,
}

impl Order {
    /// The next VM of a session.
    pub(crate) fn next(profile: Profile) -> Order {
        Order {
            id: VmId(format!("vm_{}", random_id(20))),
            profile,
            boot: None,
        }
    }

    /// What its disk starts as.
    pub(crate) fn start(&self) -> Option<SnapshotId> {
        let named = self.profile.origin.snapshot_id.clone().map(SnapshotId);
        self.boot.clone().or(named)
    }
}

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmStatus {
    Creating,
    Active,
    Terminated,
    Failed,
}

impl VmStatus {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            VmStatus::Creating => "creating",
            VmStatus::Active => "active",
            VmStatus::Terminated => "terminated",
            VmStatus::Failed => "failed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<VmStatus> {
        [
            VmStatus::Creating,
            VmStatus::Active,
            VmStatus::Terminated,
            VmStatus::Failed,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
    }

    /// It lives or is being made.
    pub(crate) fn is_live(self) -> bool {
        matches!(self, VmStatus::Creating | VmStatus::Active)
    }
}

/// A VM and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub id: VmId,
    pub account_id: i64,
    pub session_id: String,
    pub status: VmStatus,
    pub reason: Option<String>,
    pub isolation: Option<String>,
    pub memory_mb: u32,
    pub vcpu_count: u32,
    pub lifetime_seconds: u32,
    pub metadata: Metadata,
    pub snapshot_id: Option<String>,
    /// The snapshot that its disk is kept as when it ends.
    pub keep_as: Option<SnapshotId>,
    pub keep_name: Option<String>,
    pub created_at: Moment,
    pub updated_at: Moment,
    pub started_at: Option<Moment>,
    pub expires_at: Option<Moment>,
    pub terminated_at: Option<Moment>,
}

impl Vm {
    fn new(session: &Session, order: &Order) -> Vm {
        let now = Moment::now();
        let profile = &order.profile;
        Vm {
            id: order.id.clone(),
            account_id: session.account_id,
            session_id: session.id.clone(),
            status: VmStatus::Creating,
            reason: None,
            isolation: None,
            memory_mb: profile.memory_mb,
            vcpu_count: profile.vcpu_count,
            lifetime_seconds: profile.lifetime_seconds,
            metadata: profile.metadata.clone(),
            snapshot_id: profile.origin.snapshot_id.clone(),
            keep_as: profile.origin.keep.then(snapshots::new_id),
            keep_name: profile.origin.keep_name.clone(),
            created_at: now,
            updated_at: now,
            started_at: None,
            expires_at: None,
            terminated_at: None,
        }
    }

    /// The same VM, of which the node says that it runs.
    pub(crate) fn started(&self, info: &VmInfo) -> Vm {
        Vm {
            status: VmStatus::Active,
            isolation: Some(info.isolation.as_str().to_owned()),
            memory_mb: info.memory_mb,
            started_at: Some(info.started_at.into()),
            expires_at: Some(info.expires_at.into()),
            updated_at: Moment::now(),
            ..self.clone()
        }
    }

    /// The same VM, ended.
    pub(crate) fn ended(&self, status: VmStatus, reason: &str) -> Vm {
        let now = Moment::now();
        Vm {
            status,
            reason: Some(reason.to_owned()),
            updated_at: now,
            terminated_at: Some(now),
            ..self.clone()
        }
    }
}

/// The word for an ending on records.
pub(crate) fn ending_word(ending: Ending) -> &'static str {
    match ending {
        Ending::Killed => "killed",
        Ending::Expired => "expired",
        Ending::Crashed => "crashed",
    }
}

/// Characters of `[a-z0-9]`.
pub(crate) fn random_id(length: usize) -> String {
    const CHARACTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..length)
        .map(|_| char::from(CHARACTERS[random.random_range(0..CHARACTERS.len())]))
        .collect()
}

/// A VM that is being made.
pub(crate) struct Provisioning {
    pub vm: Arc<Vm>,
    pub done: JoinHandle<Result<Arc<Vm>, Problem>>,
}

impl Provisioning {
    /// Waits until it executes code; 504 when that takes longer than `patience`, while it goes on behind.
    pub(crate) async fn finished(self, patience: Duration) -> Result<Arc<Vm>, Problem> {
        match tokio::time::timeout(patience, self.done).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Problem::internal("making the VM", error)),
            Err(_) => Err(Problem::new(
                Kind::TimedOut,
                format!(
                    "provisioning timed out: VM {} is still being made; ask for it again",
                    self.vm.id
                ),
            )),
        }
    }
}

/// Makes a VM for a session that has none that lives. It is made to the end, whatever becomes of the caller.
/// The guard is the session's: it is held until the VM is there.
pub(crate) async fn provision(
    platform: &Platform,
    session: Arc<Session>,
    order: Order,
    guard: OwnedMutexGuard<()>,
    is_new: bool,
) -> Result<Provisioning, Problem> {
    let task = {
        let platform = platform.clone();
        async move {
            let vm = begin(&platform, &session, &order, is_new).await?;
            let tracker = platform.tracker.clone();
            let making = vm.clone();
            let done = tracker.spawn(async move {
                let result = finish(&platform, &session, making, order).await;
                drop(guard);
                result
            });
            Ok(Provisioning { vm, done })
        }
    };
    platform.carry_out("making the VM", task).await
}

/// Records the intent.
async fn begin(
    platform: &Platform,
    session: &Arc<Session>,
    order: &Order,
    is_new: bool,
) -> Result<Arc<Vm>, Problem> {
    let vm = Arc::new(Vm::new(session, order));
    platform
        .live
        .admit(&vm.id, session, platform.settings.vms_per_account)?;
    if let Err(error) = rows::insert(&platform.database, session, order, &vm, is_new).await {
        platform.live.release(&vm.id);
        return Err(error);
    }
    session.set_vm(vm.clone(), order.profile.clone());
    Ok(vm)
}

fn is_creating(status: VmStatus) -> bool {
    status == VmStatus::Creating
}

/// Asks the node, and records what came of it.
async fn finish(
    platform: &Platform,
    session: &Arc<Session>,
    vm: Arc<Vm>,
    order: Order,
) -> Result<Arc<Vm>, Problem> {
    let snapshot = order.start();
    let Order { profile, .. } = order;
    // The session's own environment is on top of the snapshot's.
    let mut env = profile.origin.env;
    env.extend(profile.env);
    let spec = VmSpec {
        id: vm.id.clone(),
        memory_mb: profile.memory_mb,
        vcpu_count: profile.vcpu_count,
        disk_bytes: platform.settings.disk_bytes,
        env,
        lifetime_seconds: profile.lifetime_seconds,
        snapshot,
        workdir: profile.origin.workdir,
        mounts: profile.origin.mounts,
        keep_disk_as: vm.keep_as.clone(),
        egress: profile.origin.egress,
    };
    let info = match platform.node.create(spec).await {
        Ok(info) => info,
        Err(error) => return Err(failed(platform, session, &vm, error).await),
    };
    platform.metrics.created("ok");
    let active = session.change_vm(&vm.id, is_creating, |vm| vm.started(&info));
    let Some(active) = active else {
        return Err(Problem::new(
            Kind::Conflict,
            "the VM ended directly after its start",
        ));
    };
    if let Err(error) = rows::activate(&platform.database, &active).await {
        // The VM lives and its intent is on record: the next start of the platform completes the row.
        tracing::error!(vm = %vm.id, error = %Chain(&error), "recording a started VM failed");
    }
    Ok(active)
}

async fn failed(
    platform: &Platform,
    session: &Arc<Session>,
    vm: &Arc<Vm>,
    error: NodeError,
) -> Problem {
    platform.metrics.created("failed");
    let problem = Problem::from(error);
    platform.live.release(&vm.id);
    let ended = session.change_vm(&vm.id, is_creating, |vm| {
        vm.ended(VmStatus::Failed, &problem.message)
    });
    if let Some(ended) = ended {
        record_end(platform, &ended).await;
    }
    problem
}

/// Ends a VM by its user's wish; returns when it and its record have ended.
pub(crate) async fn terminate(platform: &Platform, vm: &VmId) -> Result<(), Problem> {
    let task = {
        let (platform, vm) = (platform.clone(), vm.clone());
        let tracker = platform.tracker.clone();
        tracker.spawn(async move {
            platform.node.terminate(&vm, Ending::Killed).await?;
            ended(&platform, &vm, Ending::Killed).await;
            Ok(())
        })
    };
    task.await
        .map_err(|error| Problem::internal("ending the VM", error))?
}

/// Takes note of a VM's end; returns when it is on record. May be told of it more than once.
pub(crate) async fn ended(platform: &Platform, vm: &VmId, ending: Ending) {
    // Who comes second must not return before the first has recorded it.
    let _first = platform.exclusive.hold(&format!("the end of {vm}")).await;
    let Some(session) = platform.live.release(vm) else {
        return;
    };
    let word = ending_word(ending);
    let ended = session.change_vm(vm, VmStatus::is_live, |vm| {
        vm.ended(VmStatus::Terminated, word)
    });
    if let Some(ended) = ended {
        tracing::info!(vm = %vm, session = session.id, ending = word, "a VM ended");
        let recorder = platform.clone();
        // It goes on when the caller is cut off by the end of the platform, which waits for it.
        let task = platform
            .tracker
            .spawn(async move { record_end(&recorder, &ended).await });
        if let Err(error) = task.await {
            tracing::error!(vm = %vm, error = %error, "recording the end of a VM broke off");
        }
    }
}

async fn record_end(platform: &Platform, vm: &Vm) {
    if let Err(error) = note_end(platform, vm).await {
        tracing::error!(vm = %vm.id, error = %Chain(&error), "recording the end of a VM failed; again soon");
        let (platform, vm) = (platform.clone(), vm.clone());
        let (tracker, stopping) = (platform.tracker.clone(), platform.stopping.clone());
        tracker.spawn(async move {
            // The next start of the platform finds that the VM is not there and completes the row.
            let again = end_again(&platform, &vm);
            let _ = stopping.run_until_cancelled(again).await;
        });
    }
}

/// Records the end of a VM, and the snapshot that its disk is kept as.
pub(crate) async fn note_end(platform: &Platform, vm: &Vm) -> Result<(), StoreError> {
    platform.doors.end_vm(&vm.id);
    let kept = rows::end(&platform.database, vm).await?;
    if let Some(id) = kept {
        snapshot_reconcile::kept(platform, &id).await;
    }
    Ok(())
}

/// Records the end of a VM as soon as the database takes it.
async fn end_again(platform: &Platform, vm: &Vm) {
    loop {
        tokio::time::sleep(RETRY_PAUSE).await;
        match note_end(platform, vm).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(vm = %vm.id, error = %Chain(&error), "the end of a VM is not on record yet");
            }
        }
    }
}

/// What is to change of a VM that lives.
#[derive(Debug)]
pub(crate) struct Change {
    pub memory_mb: Option<u32>,
    /// Whether its disk is kept as a snapshot when it ends.
    pub keep: Option<bool>,
    /// What that snapshot is called.
    pub keep_name: Option<String>,
}

/// Changes a VM, and what its session's next one is made as; `None` when it does not run.
pub(crate) async fn change(
    platform: &Platform,
    session: &Arc<Session>,
    vm: &VmId,
    change: Change,
) -> Result<Option<Arc<Vm>>, Problem> {
    let (platform_there, session, vm) = (platform.clone(), session.clone(), vm.clone());
    let task = async move {
        let platform = platform_there;
        let _guard = platform.exclusive.hold(&vm.0).await;
        let current = session.active_vm().filter(|current| current.id == vm);
        let Some(current) = current else {
            return Ok(None);
        };
        apply(&platform, &session, &current, change).await
    };
    platform.carry_out("changing the VM", task).await
}

async fn apply(
    platform: &Platform,
    session: &Arc<Session>,
    vm: &Vm,
    change: Change,
) -> Result<Option<Arc<Vm>>, Problem> {
    let ended = |error| match error {
        NodeError::NoSuchVm => {
            Problem::new(Kind::Conflict, "the VM ended while this was under way")
        }
        error => error.into(),
    };
    if let Some(memory_mb) = change.memory_mb {
        platform
            .node
            .resize(&vm.id, memory_mb)
            .await
            .map_err(ended)?;
    }
    let keep_as = match (change.keep, &vm.keep_as) {
        (Some(true), None) => Some(snapshots::new_id()),
        (Some(false), _) => None,
        (_, current) => current.clone(),
    };
    if keep_as != vm.keep_as {
        let kept = platform.node.keep_disk_as(&vm.id, keep_as.clone()).await;
        kept.map_err(ended)?;
    }
    let mut profile = session.state().profile;
    profile.memory_mb = change.memory_mb.unwrap_or(profile.memory_mb);
    profile.origin.keep = change.keep.unwrap_or(profile.origin.keep);
    profile.origin.keep_name = change.keep_name.or(profile.origin.keep_name);
    let is_active = |status| status == VmStatus::Active;
    let changed = session.change_vm(&vm.id, is_active, |vm| Vm {
        memory_mb: change.memory_mb.unwrap_or(vm.memory_mb),
        keep_as,
        keep_name: profile.origin.keep_name.clone(),
        updated_at: Moment::now(),
        ..vm.clone()
    });
    let Some(changed) = changed else {
        return Ok(None);
    };
    session.set_profile(profile.clone());
    rows::change(&platform.database, &changed, &profile).await?;
    Ok(Some(changed))
}

/// What the records say of a VM that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedVm {
    /// Its id.
    pub id: String,
    /// It runs; else it is being made: an intent, so it may be there or not.
    pub is_active: bool,
    /// When the node ends it, if that is known.
    pub expires_at: Option<SystemTime>,
}

/// What the records say of the VMs of all accounts that have not ended.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn recorded(database: &Database) -> Result<Vec<RecordedVm>, StoreError> {
    let vms = rows::all_live(database).await?.into_iter();
    Ok(vms
        .map(|vm| RecordedVm {
            id: vm.id.0,
            is_active: vm.status == VmStatus::Active,
            expires_at: vm.expires_at.map(Moment::system_time),
        })
        .collect())
}
