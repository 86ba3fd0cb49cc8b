//! The rules of snapshots.

use super::{arguments, build, rows};
use crate::Platform;
use crate::clock::{Moment, micros};
use crate::error::{Chain, Kind as Failure, Problem};
use crate::space;
use crate::user::rows as user_rows;
use crate::vm::service::{Vm, random_id};
use instavm_api::snapshot::BuildSnapshot;
use instavm_node_api::{ImageConfig, NodeError, SnapshotBuild, SnapshotId};
use instavm_store::{Database, StoreError, Transaction};
use tokio::task::JoinHandle;

/// VMs that a refusal names.
const NAMED: usize = 5;

/// Whose a snapshot is to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its account's alone.
    User,
    /// Everybody's.
    System,
}

impl Kind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::User => "user",
            Kind::System => "system",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Kind> {
        [Kind::User, Kind::System]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }

    /// What a request names; absent and empty are none.
    pub(crate) fn given(text: Option<&str>) -> Result<Option<Kind>, Problem> {
        match text {
            None | Some("") => Ok(None),
            Some(text) => Kind::parse(text)
                .map(Some)
                .ok_or_else(|| Problem::invalid("type", "must be user or system")),
        }
    }
}

/// How far a snapshot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It is being taken of a VM.
    Creating,
    /// It is being built.
    Building,
    Ready,
    Failed,
    /// Nobody sees it any more.
    Deleting,
}

impl Status {
    const ALL: [Status; 5] = [
        Status::Creating,
        Status::Building,
        Status::Ready,
        Status::Failed,
        Status::Deleting,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Building => "building",
            Status::Ready => "ready",
            Status::Failed => "failed",
            Status::Deleting => "deleting",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Status> {
        Status::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
    }
}

/// A snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub id: SnapshotId,
    pub account_id: i64,
    pub name: String,
    pub kind: Kind,
    pub status: Status,
    /// Made for clones alone, and deleted after them.
    pub is_hidden: bool,
    pub vm_id: Option<String>,
    pub oci_image: Option<String>,
    /// What is to be built, until it is.
    pub build: Option<SnapshotBuild>,
    pub attempts: u32,
    pub step: Option<String>,
    /// Empty where it was not asked for.
    pub log: String,
    pub last_error: Option<String>,
    pub digest: Option<String>,
    pub config: ImageConfig,
    pub size_bytes: Option<u64>,
    pub pause_micros: Option<i64>,
    pub created_at: Moment,
    pub updated_at: Moment,
}

/// A new snapshot's id.
pub(crate) fn new_id() -> SnapshotId {
    SnapshotId(format!("snap_{}", random_id(20)))
}

impl Snapshot {
    fn new(id: SnapshotId, account_id: i64, name: String, status: Status) -> Snapshot {
        let now = Moment::now();
        Snapshot {
            id,
            account_id,
            name,
            kind: Kind::User,
            status,
            is_hidden: false,
            vm_id: None,
            oci_image: None,
            build: None,
            attempts: 0,
            step: None,
            log: String::new(),
            last_error: None,
            digest: None,
            config: ImageConfig::default(),
            size_bytes: None,
            pause_micros: None,
            created_at: now,
            updated_at: now,
        }
    }

    /// The snapshot that a VM's disk is kept as when the VM has ended.
    pub(crate) fn of_ended(id: SnapshotId, vm: &Vm, config: ImageConfig) -> Snapshot {
        let name = vm.keep_name.clone().unwrap_or_default();
        Snapshot {
            vm_id: Some(vm.id.0.clone()),
            config,
            ..Snapshot::new(id, vm.account_id, name, Status::Creating)
        }
    }

    pub(crate) fn ready(mut self, size_bytes: u64) -> Snapshot {
        self.status = Status::Ready;
        self.step = None;
        self.last_error = None;
        self.build = None;
        self.size_bytes = Some(size_bytes);
        self
    }

    pub(crate) fn failed(mut self, why: impl Into<String>) -> Snapshot {
        self.status = Status::Failed;
        self.last_error = Some(why.into());
        self.build = None;
        self
    }
}

fn not_found() -> Problem {
    Problem::new(
        Failure::NotFound,
        "snapshot not found: it does not exist, or belongs to another account",
    )
}

/// A snapshot that the account may see, with what memory knows of its build.
pub(crate) async fn find(
    platform: &Platform,
    account_id: i64,
    id: &str,
) -> Result<Snapshot, Problem> {
    let found = rows::find(&platform.database, account_id, id).await?;
    let mut snapshot = found.ok_or_else(not_found)?;
    platform.builds.show(&mut snapshot);
    Ok(snapshot)
}

/// The snapshots that the account may see.
pub(crate) async fn list(
    platform: &Platform,
    account_id: i64,
    kind: Option<Kind>,
) -> Result<Vec<Snapshot>, Problem> {
    let mut snapshots = rows::all(&platform.database, account_id, kind).await?;
    for snapshot in &mut snapshots {
        platform.builds.show(snapshot);
    }
    Ok(snapshots)
}

/// A snapshot that VMs of the account can start from.
pub(crate) async fn bootable(
    platform: &Platform,
    account_id: i64,
    id: &str,
) -> Result<Snapshot, Problem> {
    let snapshot = rows::find(&platform.database, account_id, id)
        .await?
        .ok_or_else(not_found)?;
    match snapshot.status {
        Status::Ready => Ok(snapshot),
        Status::Failed => Err(Problem::new(
            Failure::Conflict,
            format!("snapshot {id} has failed, so that no VM can start from it"),
        )),
        status => Err(Problem::new(
            Failure::Conflict,
            format!(
                "snapshot {id} is {} and not ready yet; try again when it is",
                status.as_str()
            ),
        )),
    }
}

/// Takes the snapshot in, if its account has room for it.
async fn record(platform: &Platform, snapshot: &Snapshot) -> Result<(), Problem> {
    let (settings, account_id) = (&platform.settings, snapshot.account_id);
    let mut transaction = platform.database.begin().await?;
    space::admit(&mut transaction, settings, account_id, 0).await?;
    let count = space::count(
        &mut transaction,
        "SELECT CAST(count(*) AS BIGINT) AS count FROM snapshots WHERE account_id = $1",
        vec![account_id.into()],
    )
    .await?;
    let limit = settings.snapshots_per_account;
    if count >= limit {
        return Err(Problem::new(
            Failure::TooMany,
            format!("this account has {count} snapshots and the limit is {limit}: delete some"),
        ));
    }
    if snapshot.build.is_some() {
        let count = space::count(
            &mut transaction,
            "SELECT CAST(count(*) AS BIGINT) AS count FROM snapshots WHERE account_id = $1 AND status = 'building'",
            vec![account_id.into()],
        )
        .await?;
        let limit = settings.builds_per_account;
        if count >= limit {
            return Err(Problem::new(
                Failure::TooMany,
                format!(
                    "this account has {count} snapshots being built and the limit is {limit}: wait, or delete some"
                ),
            ));
        }
    }
    rows::insert(&mut transaction, snapshot).await?;
    Ok(transaction.commit().await?)
}

/// The snapshot that an earlier carrying out of the same request has begun; waits while it is being taken.
pub(crate) async fn made_before(
    platform: &Platform,
    account_id: i64,
    id: &SnapshotId,
) -> Result<Option<Snapshot>, Problem> {
    let Some(found) = rows::find(&platform.database, account_id, &id.0).await? else {
        return Ok(None);
    };
    if found.status == Status::Creating {
        let _guard = platform.exclusive.hold(&id.0).await;
    }
    let snapshot = find(platform, account_id, &id.0).await?;
    match (snapshot.status, &snapshot.last_error) {
        (Status::Failed, Some(why)) if snapshot.oci_image.is_none() => {
            Err(Problem::new(Failure::Conflict, why.clone()))
        }
        _ => Ok(Some(snapshot)),
    }
}

/// A snapshot that is being taken.
pub(crate) struct Taking {
    pub snapshot: Snapshot,
    pub done: JoinHandle<Result<Snapshot, Problem>>,
}

/// Takes a snapshot of a VM that runs. Its row is there when this returns; it is taken to the end, whatever becomes of
/// the caller. A hidden one serves clones alone.
pub(crate) async fn take(
    platform: &Platform,
    vm: &Vm,
    id: SnapshotId,
    name: String,
    is_hidden: bool,
) -> Result<Taking, Problem> {
    let config = match &vm.snapshot_id {
        None => ImageConfig::default(),
        Some(id) => rows::any(&platform.database, id)
            .await?
            .map(|base| base.config)
            .unwrap_or_default(),
    };
    let snapshot = Snapshot {
        vm_id: Some(vm.id.0.clone()),
        is_hidden,
        config,
        ..Snapshot::new(id, vm.account_id, name, Status::Creating)
    };
    let task = {
        let (platform, vm) = (platform.clone(), vm.id.clone());
        async move {
            let guard = platform.exclusive.hold(&snapshot.id.0).await;
            record(&platform, &snapshot).await?;
            let tracker = platform.tracker.clone();
            let taken = snapshot.clone();
            let done = tracker.spawn(async move {
                let result = platform.node.take_snapshot(&vm, &taken.id).await;
                let result = settle_taken(&platform, taken, result).await;
                drop(guard);
                result
            });
            Ok(Taking { snapshot, done })
        }
    };
    platform.carry_out("taking the snapshot", task).await
}

impl Taking {
    /// Waits until it is taken; 504 when that takes too long, while it goes on behind.
    pub(crate) async fn finished(self, platform: &Platform) -> Result<Snapshot, Problem> {
        match tokio::time::timeout(platform.settings.provision_wait, self.done).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(Problem::internal("taking the snapshot", error)),
            Err(_) => Err(Problem::new(
                Failure::TimedOut,
                format!(
                    "gateway timeout: snapshot {} is still being taken; ask for it again",
                    self.snapshot.id
                ),
            )),
        }
    }
}

async fn settle_taken(
    platform: &Platform,
    mut snapshot: Snapshot,
    result: Result<instavm_node_api::SnapshotTaken, NodeError>,
) -> Result<Snapshot, Problem> {
    let (snapshot, problem) = match result {
        Ok(taken) => {
            snapshot.pause_micros = Some(micros(taken.pause));
            (snapshot.ready(taken.size_bytes), None)
        }
        Err(error) => {
            let problem = match error {
                NodeError::NoSuchVm => Problem::new(
                    Failure::Conflict,
                    "the VM ended before the snapshot was taken",
                ),
                error => error.into(),
            };
            (snapshot.failed(problem.message.clone()), Some(problem))
        }
    };
    let recorded = if problem.is_some() && snapshot.is_hidden {
        rows::remove(&platform.database, &snapshot.id).await
    } else {
        rows::update(&platform.database, &snapshot).await
    };
    if let Err(error) = recorded {
        // The next comparison with the node completes the row.
        tracing::error!(snapshot = %snapshot.id, error = %Chain(&error), "recording a snapshot failed");
        return Err(problem.unwrap_or_else(|| error.into()));
    }
    problem.map_or(Ok(snapshot), Err)
}

/// Begins to build a snapshot; its row is there when this returns.
pub(crate) async fn build(
    platform: &Platform,
    account_id: i64,
    id: SnapshotId,
    mut request: BuildSnapshot,
) -> Result<Snapshot, Problem> {
    let kind = Kind::given(request.kind.as_deref())?.unwrap_or(Kind::User);
    let name = crate::bounds::label("name", request.name.take())?;
    let build = arguments::checked(platform, id.clone(), request)?;
    let first = user_rows::first_id(&platform.database).await?;
    if kind == Kind::System && first != Some(account_id) {
        return Err(Problem::new(
            Failure::Denied,
            "type: only the platform's first account may make system snapshots, which all accounts see; make one of \
             the type user",
        ));
    }
    let snapshot = Snapshot {
        kind,
        oci_image: Some(build.oci_image.clone()),
        build: Some(build),
        step: Some("queue".to_owned()),
        ..Snapshot::new(id, account_id, name, Status::Building)
    };
    let task = {
        let platform = platform.clone();
        async move {
            record(&platform, &snapshot).await?;
            build::start(&platform, snapshot.clone()).await;
            Ok(snapshot)
        }
    };
    platform.carry_out("beginning the build", task).await
}

/// Deletes a snapshot; one that is being built is cancelled. Of two that do it at once, the second finds it gone.
pub(crate) async fn delete(platform: &Platform, account_id: i64, id: &str) -> Result<(), Problem> {
    let snapshot = rows::find(&platform.database, account_id, id)
        .await?
        .ok_or_else(not_found)?;
    if snapshot.account_id != account_id {
        return Err(Problem::new(
            Failure::Denied,
            "this is a snapshot of the platform; only the account that made it may delete it",
        ));
    }
    if snapshot.status == Status::Creating {
        return Err(Problem::new(
            Failure::Conflict,
            format!("snapshot {id} is being taken; delete it when it is ready"),
        ));
    }
    let task = {
        let platform = platform.clone();
        async move {
            platform.builds.cancel(&snapshot.id);
            let _guard = platform.exclusive.hold(&snapshot.id.0).await;
            if rows::find(&platform.database, account_id, &snapshot.id.0)
                .await?
                .is_none()
            {
                return Err(not_found());
            }
            remove(&platform, &snapshot).await
        }
    };
    platform.carry_out("deleting the snapshot", task).await
}

/// Deletes a snapshot that nobody uses. Whoever calls holds it.
pub(super) async fn remove(platform: &Platform, snapshot: &Snapshot) -> Result<(), Problem> {
    let mut transaction = platform.database.begin().await?;
    rows::begin_deleting(&mut transaction, &snapshot.id).await?;
    refuse_while_used(&mut transaction, snapshot).await?;
    transaction.commit().await?;
    if let Err(error) = erase(platform, &snapshot.id).await {
        tracing::error!(snapshot = %snapshot.id, error = %Chain(&error), "deleting a snapshot failed; again soon");
    }
    Ok(())
}

async fn refuse_while_used(
    transaction: &mut Transaction,
    snapshot: &Snapshot,
) -> Result<(), Problem> {
    let users = rows::users(transaction, &snapshot.id).await?;
    if users.is_empty() || snapshot.is_hidden {
        return Ok(());
    }
    let own = users
        .iter()
        .filter(|(_, account_id)| *account_id == snapshot.account_id);
    let named: Vec<&str> = own.map(|(vm, _)| vm.as_str()).take(NAMED).collect();
    let who = match (named.len(), users.len()) {
        (0, all) => format!("{all} VMs of other accounts"),
        (named_count, all) if named_count == all => named.join(", "),
        (_, all) => format!("{} and others, {all} in all", named.join(", ")),
    };
    Err(Problem::new(
        Failure::Conflict,
        format!(
            "snapshot {} is in use: VMs that started from it live ({who}); end them first",
            snapshot.id
        ),
    ))
}

/// Deletes what the node has of a snapshot that is being deleted, and then its row.
pub(super) async fn erase(platform: &Platform, id: &SnapshotId) -> Result<(), Problem> {
    platform.node.delete_snapshot(id).await?;
    Ok(rows::remove(&platform.database, id).await?)
}

/// Deletes the snapshot that clones were made of.
pub(crate) async fn drop_hidden(platform: &Platform, snapshot: &Snapshot) {
    let _guard = platform.exclusive.hold(&snapshot.id.0).await;
    if let Err(error) = remove(platform, snapshot).await {
        tracing::error!(snapshot = %snapshot.id, error = %Chain(&error), "deleting the snapshot of a clone failed");
    }
}

/// What the records say of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedSnapshot {
    /// Its id.
    pub id: String,
    /// It is ready; else it is being made or deleted, so it may be there or not.
    pub is_ready: bool,
}

/// What the records say of the snapshots of all accounts. Those that failed are not among them.
///
/// # Errors
/// [`StoreError`] when they cannot be read.
pub async fn recorded(database: &Database) -> Result<Vec<RecordedSnapshot>, StoreError> {
    let snapshots = rows::everything(database).await?.into_iter();
    Ok(snapshots
        .filter(|snapshot| snapshot.status != Status::Failed)
        .map(|snapshot| RecordedSnapshot {
            id: snapshot.id.0,
            is_ready: snapshot.status == Status::Ready,
        })
        .collect())
}
