//! `/v1/vms*`.

use super::group::{self, Group, Plan};
use super::rows;
use super::service::{self as vms, Order, Profile, Vm};
use crate::Platform;
use crate::body::JsonBody;
use crate::bounds;
use crate::clock::Moment;
use crate::egress::service as policies;
use crate::error::{Kind, Problem};
use crate::extract::{Caller, Id, QueryOf};
use crate::idempotency::{Attempt, Repeatable, once};
use crate::mount::service as mounts;
use crate::session::service as sessions;
use crate::snapshot::service::{self as snapshots, Snapshot};
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::vm as api;
use instavm_node_api::{EgressPolicy, Mount, SnapshotId};
use std::ops::RangeInclusive;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// VMs that can be asked for at once.
const COUNTS: RangeInclusive<u32> = 1..=100;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(create, list_live))
        .routes(routes!(list_all))
        .routes(routes!(show, update, delete))
        .routes(routes!(clone))
}

/// Makes a VM and its session, or gives a session a new VM.
#[utoipa::path(
    post, path = "/v1/vms", tag = "vm", security(("api_key" = [])), request_body = api::CreateVm,
    description = "Makes a VM and its session, or gives a session a new VM. With `count`, so many of them: all or none. \
        Fields whose enforcement this version does not have are refused with 422 and the field's name; unknown keys are \
        ignored.",
    params(
        api::CreateVmQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once"),
    ),
    responses(
        (status = 200, description = "The VM executes code, or with `wait=false` is being made", body = api::VmCreated),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The account's space does not suffice for a volume that is to be made", body = ErrorBody),
        (status = 404, description = "No such session, snapshot, volume or checkpoint", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The snapshot is not ready, another VM writes the volume, the session's VM lives and has another snapshot or volumes, the VM ended directly after its start, or the same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit, or the disks are full", body = ErrorBody),
        (status = 422, description = "A field is wrong or not available", body = ErrorBody),
        (status = 429, description = "The account has as many VMs as it may have", body = ErrorBody),
        (status = 503, description = "The node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "Provisioning timed out; the VM is still being made", body = ErrorBody),
    ),
)]
async fn create(
    State(platform): State<Platform>,
    caller: Caller,
    QueryOf(query): QueryOf<api::CreateVmQuery>,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::CreateVm>,
) -> Result<Json<api::VmCreated>, Problem> {
    refuse_unavailable(&request)?;
    let wait = query.wait.unwrap_or(true);
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        match request.session_id.clone() {
            None => make(&there, caller, request, wait, &attempt).await,
            Some(id) => attach(&there, caller, &id, request, wait).await,
        }
    };
    let answered = once(&platform, caller.account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

/// Makes as many VMs as were asked for, each with a session of its own.
async fn make(
    platform: &Platform,
    caller: Caller,
    mut request: api::CreateVm,
    wait: bool,
    attempt: &Attempt,
) -> Result<api::VmCreated, Problem> {
    let account_id = caller.account_id;
    let given = request.count.take();
    let count = bounds::number("count", given, 1, &COUNTS)?;
    if let Some(vms) = group::made_before(platform, account_id, count, attempt).await? {
        return created(platform, &vms, given.is_some());
    }
    let profile = profile(platform, account_id, request, None).await?;
    if count > 1 && profile.origin.mounts.iter().any(|mount| !mount.read_only) {
        return Err(Problem::invalid(
            "count",
            "several VMs cannot have a volume with the mode rw: one mount at a time may write it",
        ));
    }
    let plan = Plan {
        profile,
        count,
        boot: None,
    };
    let making = group::begin(platform, account_id, plan, attempt).await?;
    answer(platform, making, wait, given.is_some()).await
}

async fn answer(
    platform: &Platform,
    making: Group,
    wait: bool,
    with_all: bool,
) -> Result<api::VmCreated, Problem> {
    let vms = if wait {
        making.finished(platform).await?
    } else {
        making.vms
    };
    created(platform, &vms, with_all)
}

fn created(
    platform: &Platform,
    vms: &[Arc<Vm>],
    with_all: bool,
) -> Result<api::VmCreated, Problem> {
    let records: Vec<_> = vms.iter().map(|vm| record(platform, vm)).collect();
    let first = records.first().cloned();
    let vm = first.ok_or_else(|| Problem::internal("making the VM", "there is none"))?;
    Ok(api::VmCreated {
        vm,
        vms: with_all.then_some(records),
    })
}

/// Gives a session the VM that was asked for, unless it has one that lives.
async fn attach(
    platform: &Platform,
    caller: Caller,
    id: &str,
    mut request: api::CreateVm,
    wait: bool,
) -> Result<api::VmCreated, Problem> {
    let account_id = caller.account_id;
    let given = request.count.take();
    bounds::number("count", given, 1, &(1..=1)).map_err(|_| {
        Problem::invalid("count", "must be 1 with session_id: a session has one VM")
    })?;
    let session = sessions::find(platform, account_id, id).await?;
    let base = session.state().profile;
    let asked = request.egress_policy.is_some();
    let snapshot = request.snapshot_id.clone().filter(|id| !id.is_empty());
    let with_volumes = request
        .volumes
        .as_ref()
        .is_some_and(|list| !list.is_empty());
    let profile = profile(platform, account_id, request, Some(base)).await?;
    let wanted = Wanted {
        snapshot,
        mounts: with_volumes.then(|| profile.origin.mounts.clone()),
    };
    let guard = session.changing().await;
    if let Some(vm) = session.active_vm() {
        drop(guard);
        wanted.is_had_by(platform, &vm).await?;
        if let Some(policy) = profile.origin.egress.filter(|_| asked) {
            let place = policies::Place::Session(session.id.clone());
            policies::set(platform, account_id, &place, policy).await?;
        }
        return created(platform, &[vm], given.is_some());
    }
    let order = Order::next(profile);
    let making = vms::provision(platform, session, order, guard, false).await?;
    let vm = if wait {
        making.finished(platform.settings.provision_wait).await?
    } else {
        making.vm
    };
    created(platform, &[vm], given.is_some())
}

/// What a VM that runs already cannot become.
struct Wanted {
    snapshot: Option<String>,
    mounts: Option<Vec<Mount>>,
}

impl Wanted {
    /// 409 unless the VM is such a one: nothing that was asked for is passed over.
    async fn is_had_by(&self, platform: &Platform, vm: &Vm) -> Result<(), Problem> {
        let refuse = |what: String| {
            Err(Problem::new(
                Kind::Conflict,
                format!("the session's VM {} lives and {what}", vm.id),
            ))
        };
        if let Some(snapshot) = &self.snapshot
            && vm.snapshot_id.as_ref() != Some(snapshot)
        {
            return refuse(format!(
                "did not start from snapshot {snapshot}: end it first, or leave session_id out"
            ));
        }
        let Some(wanted) = &self.mounts else {
            return Ok(());
        };
        let present = mounts::list(platform, vm).await?;
        let missing = wanted
            .iter()
            .find(|mount| !present.iter().any(|one| one.mount == **mount));
        match missing {
            None => Ok(()),
            Some(mount) => refuse(format!(
                "does not have volume {} at {} like that: mount it with POST /v1/vms/{}/volumes",
                mount.volume, mount.path, vm.id
            )),
        }
    }
}

/// What the caller asked for, on top of what the session has.
async fn profile(
    platform: &Platform,
    account_id: i64,
    request: api::CreateVm,
    base: Option<Profile>,
) -> Result<Profile, Problem> {
    let settings = &platform.settings;
    let base = base.unwrap_or_else(|| Profile {
        memory_mb: settings.memory_default_mb,
        vcpu_count: settings.vcpu_default,
        lifetime_seconds: settings.vm_lifetime_default,
        env: Default::default(),
        metadata: Default::default(),
        origin: Default::default(),
    });
    let env = request.env.map(bounds::environment).transpose()?;
    let metadata = request.metadata.map(bounds::metadata).transpose()?;
    let lifetime_seconds = bounds::number(
        "vm_lifetime_seconds",
        request.vm_lifetime_seconds,
        base.lifetime_seconds,
        &settings.lifetime_range,
    )?;
    let memory_mb = bounds::number(
        "memory_mb",
        request.memory_mb,
        base.memory_mb,
        &settings.memory_range_mb,
    )?;
    let vcpu_count = bounds::number(
        "vcpu_count",
        request.vcpu_count,
        base.vcpu_count,
        &settings.vcpu_range,
    )?;
    let mut origin = base.origin;
    if let Some(policy) = request.egress_policy {
        origin.egress = Some(egress(platform, policy)?);
    }
    if let Some(keep) = request.snapshot_on_terminate {
        origin.keep = keep;
    }
    if request.snapshot_name.is_some() {
        origin.keep_name = Some(bounds::label("snapshot_name", request.snapshot_name)?);
    }
    if let Some(id) = request.snapshot_id.filter(|id| !id.is_empty()) {
        let snapshot = snapshots::bootable(platform, account_id, &id).await?;
        origin.snapshot_id = Some(id);
        origin.env = snapshot.config.env;
        origin.workdir = snapshot.config.workdir;
    }
    // Last, because it may make volumes.
    if let Some(volumes) = request.volumes {
        origin.mounts = mounts::resolve(platform, account_id, &volumes).await?;
    }
    Ok(Profile {
        memory_mb,
        vcpu_count,
        lifetime_seconds,
        env: env.unwrap_or(base.env),
        metadata: metadata.unwrap_or(base.metadata),
        origin,
    })
}

/// Nothing is promised that is not kept: a field without enforcement is refused.
fn refuse_unavailable(request: &api::CreateVm) -> Result<(), Problem> {
    let unavailable = |field: &str, what: &str| {
        Err(Problem::invalid(
            field,
            format!("{what} not available in this version; leave the field out"),
        ))
    };
    let variant = request.image_variant.as_deref();
    if variant.is_some_and(|variant| !matches!(variant, "" | "standard")) {
        return Err(Problem::invalid(
            "image_variant",
            "there is no such variant here: standard is the only one; for other images, build a snapshot and name it in \
             snapshot_id",
        ));
    }
    if request
        .vault_ids
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return unavailable("vault_ids", "vaults are");
    }
    if request.share.is_some() {
        return Err(Problem::invalid(
            "share",
            "is not made with the VM; leave the field out and send POST /v1/shares when the VM is there",
        ));
    }
    if request.custom_domain.is_some() {
        return unavailable("custom_domain", "custom domains are");
    }
    Ok(())
}

/// Absent flags allow.
fn egress(platform: &Platform, policy: api::EgressPolicy) -> Result<EgressPolicy, Problem> {
    let policy = EgressPolicy {
        allow_public_repos: policy.allow_public_repos.unwrap_or(true),
        allow_http: policy.allow_http.unwrap_or(true),
        allow_https: policy.allow_https.unwrap_or(true),
        allowed_domains: policy.allowed_domains.unwrap_or_default(),
        allowed_cidrs: policy.allowed_cidrs.unwrap_or_default(),
    };
    policies::check(platform, &policy, "egress_policy.")?;
    Ok(policy)
}

/// Makes a VM that begins as another one is now.
#[utoipa::path(
    post, path = "/v1/vms/{vm_id}/clone", tag = "vm", security(("api_key" = [])), request_body = api::CloneVm,
    description = "Makes a VM that begins as another one is now, in a session of its own: same disk, size, environment, \
        metadata and lifetime. What runs in the other VM is not taken along, nor are its volumes. With `snapshot_name` \
        the snapshot that the clone begins as is kept; without it, a session whose clone has expired begins anew as one \
        of the other VM would.",
    params(
        ("vm_id" = String, Path, description = "The id of the VM to be cloned"),
        api::WaitQuery,
        ("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once"),
    ),
    responses(
        (status = 200, description = "The clone executes code, or with `wait=false` is being made", body = api::VmCreated),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 403, description = "The account's space is used up", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM does not run, or the same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit, or the disks are full", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many VMs or snapshots as it may have", body = ErrorBody),
        (status = 503, description = "The node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "Provisioning timed out; the clone is still being made", body = ErrorBody),
    ),
)]
async fn clone(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    QueryOf(query): QueryOf<api::WaitQuery>,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::CloneVm>,
) -> Result<Json<api::VmCreated>, Problem> {
    let vm = find(&platform, caller, &id).await?;
    let wait = query.wait.unwrap_or(true);
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        make_clones(&there, vm, request, wait, &attempt).await
    };
    let answered = once(&platform, caller.account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

async fn make_clones(
    platform: &Platform,
    vm: Vm,
    request: api::CloneVm,
    wait: bool,
    attempt: &Attempt,
) -> Result<api::VmCreated, Problem> {
    let account_id = vm.account_id;
    let count = bounds::number("count", request.count, 1, &COUNTS)?;
    let with_all = request.count.is_some();
    if let Some(vms) = group::made_before(platform, account_id, count, attempt).await? {
        return created(platform, &vms, with_all);
    }
    let session = sessions::find(platform, account_id, &vm.session_id).await?;
    let active = session.active_vm().filter(|active| active.id == vm.id);
    let Some(vm) = active else {
        return Err(not_running(&vm));
    };
    let name = request.snapshot_name.filter(|name| !name.is_empty());
    let is_named = name.is_some();
    let name = bounds::label("snapshot_name", name)?;
    let boot = boot_of_clones(platform, &vm, is_named.then_some(name), attempt).await?;
    let mut profile = session.state().profile;
    profile.origin.mounts.clear();
    profile.origin.keep = false;
    profile.origin.keep_name = None;
    if is_named {
        profile.origin.snapshot_id = Some(boot.id.0.clone());
    }
    let plan = Plan {
        profile,
        count,
        boot: Some(boot),
    };
    let making = group::begin(platform, account_id, plan, attempt).await?;
    answer(platform, making, wait, with_all).await
}

/// The snapshot that clones begin as: one of a name that stays, or a hidden one.
async fn boot_of_clones(
    platform: &Platform,
    vm: &Vm,
    name: Option<String>,
    attempt: &Attempt,
) -> Result<Snapshot, Problem> {
    let Some(name) = name else {
        let taking = snapshots::take(platform, vm, snapshots::new_id(), String::new(), true);
        return taking.await?.finished(platform).await;
    };
    let id = SnapshotId(attempt.nonce.id("snap_", 0));
    if attempt.is_repeated
        && let Some(found) = snapshots::made_before(platform, vm.account_id, &id).await?
    {
        return Ok(found);
    }
    let taking = snapshots::take(platform, vm, id, name, false).await?;
    taking.finished(platform).await
}

fn not_running(vm: &Vm) -> Problem {
    Problem::new(
        Kind::Conflict,
        format!("VM {} is {} and does not run", vm.id, vm.status.as_str()),
    )
}

/// Changes a VM that lives.
#[utoipa::path(
    patch, path = "/v1/vms/{vm_id}", tag = "vm", security(("api_key" = [])), request_body = api::UpdateVm,
    params(("vm_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The VM", body = api::Vm),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM does not run, or uses more memory than that", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn update(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::UpdateVm>,
) -> Result<Json<api::Vm>, Problem> {
    let vm = find(&platform, caller, &id).await?;
    let memory_mb = match request.memory_mb {
        None => None,
        given => {
            let range = &platform.settings.memory_range_mb;
            let memory_mb = bounds::number("memory_mb", given, vm.memory_mb, range)?;
            if memory_mb % 2 != 0 {
                let why = format!("must be a multiple of 2, and is {memory_mb}");
                return Err(Problem::invalid("memory_mb", why));
            }
            Some(memory_mb)
        }
    };
    let keep_name = match request.snapshot_name {
        None => None,
        given => Some(bounds::label("snapshot_name", given)?),
    };
    let change = vms::Change {
        memory_mb,
        keep: request.snapshot_on_terminate,
        keep_name,
    };
    let session = sessions::find(&platform, caller.account_id, &vm.session_id).await?;
    let changed = vms::change(&platform, &session, &vm.id, change).await?;
    let changed = changed.ok_or_else(|| not_running(&vm))?;
    Ok(Json(record(&platform, &changed)))
}

/// What memory knows of a VM, which its row may learn a moment later; the row where memory knows nothing of it.
fn current(platform: &Platform, row: Vm) -> Vm {
    let session = platform.live.session(&row.session_id);
    let known = session.and_then(|session| session.state().vm);
    match known {
        Some(vm) if vm.id == row.id => Vm::clone(&vm),
        _ => row,
    }
}

/// A VM as the wire shows it.
fn record(platform: &Platform, vm: &Vm) -> api::Vm {
    let gateway = platform.settings.ssh_gateway.as_deref();
    api::Vm {
        vm_id: vm.id.0.clone(),
        id: vm.id.0.clone(),
        session_id: vm.session_id.clone(),
        status: vm.status.as_str().to_owned(),
        status_reason: vm.reason.clone(),
        isolation: vm.isolation.clone(),
        created_at: vm.created_at.iso(),
        updated_at: vm.updated_at.iso(),
        expires_at: vm.expires_at.map(Moment::iso),
        terminated_at: vm.terminated_at.map(Moment::iso),
        memory_mb: vm.memory_mb,
        vcpu_count: vm.vcpu_count,
        vm_lifetime_seconds: vm.lifetime_seconds,
        ssh_host: gateway.map(|host| format!("{}@{host}", vm.id)),
        image_variant: "standard".to_owned(),
        snapshot_id: vm.snapshot_id.clone(),
        vault_ids: Vec::new(),
        snapshot_on_terminate: vm.keep_as.is_some(),
        snapshot_name: vm.keep_name.clone(),
        metadata: vm.metadata.clone(),
    }
}

/// The VMs that live or are being made, newest first.
#[utoipa::path(
    get, path = "/v1/vms", tag = "vm", security(("api_key" = [])),
    responses(
        (status = 200, description = "The VMs", body = Vec<api::Vm>),
        (status = 401, description = "No valid key", body = ErrorBody),
    ),
)]
async fn list_live(
    State(platform): State<Platform>,
    caller: Caller,
) -> Result<Json<Vec<api::Vm>>, Problem> {
    let vms = rows::live(&platform.database, caller.account_id).await?;
    let vms = vms.into_iter().map(|row| current(&platform, row));
    let live = vms.filter(|vm| vm.status.is_live());
    Ok(Json(live.map(|vm| record(&platform, &vm)).collect()))
}

/// The newest VMs, also those that have ended, newest first.
#[utoipa::path(
    get, path = "/v1/vms/", tag = "vm", security(("api_key" = [])),
    description = "The newest VMs, also those that have ended, newest first. Their records are kept for 30 days after \
        their end, unless the platform is set to another time.",
    params(api::ListVmsQuery),
    responses(
        (status = 200, description = "The VMs", body = Vec<api::Vm>),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 422, description = "The limit is wrong", body = ErrorBody),
    ),
)]
async fn list_all(
    State(platform): State<Platform>,
    caller: Caller,
    QueryOf(query): QueryOf<api::ListVmsQuery>,
) -> Result<Json<Vec<api::Vm>>, Problem> {
    let limit = bounds::number("limit", query.limit, 1_000, &(1..=10_000))?;
    let vms = rows::all(&platform.database, caller.account_id, limit).await?;
    let vms = vms.into_iter().map(|row| current(&platform, row));
    Ok(Json(vms.map(|vm| record(&platform, &vm)).collect()))
}

/// A VM of the caller's account, as memory knows it.
pub(crate) async fn find(platform: &Platform, caller: Caller, id: &str) -> Result<Vm, Problem> {
    rows::find(&platform.database, caller.account_id, id)
        .await?
        .map(|row| current(platform, row))
        .ok_or_else(|| {
            Problem::new(
                Kind::NotFound,
                "VM not found: it does not exist, or belongs to another account",
            )
        })
}

/// A VM.
#[utoipa::path(
    get, path = "/v1/vms/{vm_id}", tag = "vm", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The VM", body = api::Vm),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Vm>, Problem> {
    let vm = find(&platform, caller, &id).await?;
    Ok(Json(record(&platform, &vm)))
}

/// Ends a VM and with it its session. Ending it again answers the same.
#[utoipa::path(
    delete, path = "/v1/vms/{vm_id}", tag = "vm", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It has ended", body = api::VmDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
    ),
)]
async fn delete(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::VmDeleted>, Problem> {
    let vm = find(&platform, caller, &id).await?;
    if vm.status.is_live() {
        let session = sessions::find(&platform, caller.account_id, &vm.session_id).await?;
        let current: Option<Arc<Vm>> = session.state().vm;
        if current.is_some_and(|current| current.id == vm.id) {
            sessions::kill(&platform, &session).await?;
        }
    }
    Ok(Json(api::VmDeleted {
        status: "terminated".to_owned(),
        vm_id: vm.id.0,
        session_id: vm.session_id,
    }))
}
