//! `/v1/vms*`.

use super::rows;
use super::service::{Profile, Vm};
use crate::Platform;
use crate::body::JsonBody;
use crate::bounds;
use crate::clock::Moment;
use crate::error::{Kind, Problem};
use crate::extract::{Caller, Id, QueryOf};
use crate::session::service as sessions;
use crate::vm::service as vms;
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::vm as api;
use std::sync::Arc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(create, list_live))
        .routes(routes!(list_all))
        .routes(routes!(show, delete))
}

/// Makes a VM and its session, or gives a session a new VM.
#[utoipa::path(
    post, path = "/v1/vms", tag = "vm", security(("api_key" = [])), request_body = api::CreateVm,
    description = "Makes a VM and its session, or gives a session a new VM. Fields whose enforcement this version does \
        not have are refused with 422 and the field's name; unknown keys are ignored.",
    params(api::CreateVmQuery),
    responses(
        (status = 200, description = "The VM executes code, or with `wait=false` is being made", body = api::Vm),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM ended directly after its start", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
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
    JsonBody { value: request, .. }: JsonBody<api::CreateVm>,
) -> Result<Json<api::Vm>, Problem> {
    refuse_unavailable(&request)?;
    let wait = query.wait.unwrap_or(true);
    let making = match request.session_id.clone() {
        None => {
            let profile = profile(&platform, request, None)?;
            sessions::begin(&platform, caller.account_id, profile)
                .await?
                .1
        }
        Some(id) => {
            let session = sessions::find(&platform, caller.account_id, &id).await?;
            let profile = profile(&platform, request, Some(session.state().profile))?;
            let guard = session.changing().await;
            if let Some(vm) = session.active_vm() {
                return Ok(Json(record(&platform, &vm)));
            }
            vms::provision(&platform, session, profile, guard, false).await?
        }
    };
    let vm = if wait {
        making.finished(platform.settings.provision_wait).await?
    } else {
        making.vm
    };
    Ok(Json(record(&platform, &vm)))
}

/// What the caller asked for, on top of what the session has.
fn profile(
    platform: &Platform,
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
    });
    let env = request.env.map(bounds::environment).transpose()?;
    let metadata = request.metadata.map(bounds::metadata).transpose()?;
    Ok(Profile {
        lifetime_seconds: bounds::number(
            "vm_lifetime_seconds",
            request.vm_lifetime_seconds,
            base.lifetime_seconds,
            &settings.lifetime_range,
        )?,
        memory_mb: bounds::number(
            "memory_mb",
            request.memory_mb,
            base.memory_mb,
            &settings.memory_range_mb,
        )?,
        vcpu_count: bounds::number(
            "vcpu_count",
            request.vcpu_count,
            base.vcpu_count,
            &settings.vcpu_range,
        )?,
        env: env.unwrap_or(base.env),
        metadata: metadata.unwrap_or(base.metadata),
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
        return unavailable("image_variant", "variants other than standard are");
    }
    if request.snapshot_id.is_some() {
        return unavailable("snapshot_id", "snapshots are");
    }
    if request
        .volumes
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return unavailable("volumes", "volumes are");
    }
    if request
        .vault_ids
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        return unavailable("vault_ids", "vaults are");
    }
    if request.egress_policy.as_ref().is_some_and(closes_something) {
        return unavailable("egress_policy", "policies that close anything are");
    }
    if request.snapshot_on_terminate == Some(true) {
        return unavailable("snapshot_on_terminate", "snapshots are");
    }
    if request.share.is_some() {
        return unavailable("share", "shares are");
    }
    if request.custom_domain.is_some() {
        return unavailable("custom_domain", "custom domains are");
    }
    Ok(())
}

/// Absent flags allow.
fn closes_something(policy: &api::EgressPolicy) -> bool {
    [
        policy.allow_public_repos,
        policy.allow_http,
        policy.allow_https,
    ]
    .contains(&Some(false))
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
        snapshot_id: None,
        vault_ids: Vec::new(),
        snapshot_on_terminate: false,
        snapshot_name: None,
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

async fn find(platform: &Platform, caller: Caller, id: &str) -> Result<Vm, Problem> {
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
