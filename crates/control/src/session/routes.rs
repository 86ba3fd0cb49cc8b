//! `/v1/sessions/*` and `/kill`.

use super::service::{self, Session};
use crate::Platform;
use crate::body::{AnonymousBody, JsonBody};
use crate::bounds;
use crate::clock::{Moment, seconds};
use crate::error::{Kind, Problem};
use crate::extract::{Caller, Id, QueryOf, key_of};
use crate::idempotency::{Attempt, Repeatable, once};
use crate::share as shares;
use crate::vm::group::{self, Plan};
use crate::vm::service::{Profile, Vm, VmStatus};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use instavm_api::session as api;
use instavm_api::{ErrorBody, Metadata};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// The port of an app when the caller names none.
const APP_PORT: u16 = 80;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(show))
        .routes(routes!(status))
        .routes(routes!(usage))
        .routes(routes!(app_url))
        .routes(routes!(sandboxes))
        .routes(routes!(kill))
}

/// Starts a session. It answers when its VM executes code.
#[utoipa::path(
    post, path = "/v1/sessions/session", tag = "session", request_body = api::StartSession,
    description = "Starts a session. It answers when its VM executes code. The key comes in the body or in `X-API-Key`.",
    security((), ("api_key" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once")),
    responses(
        (status = 200, description = "The session and its VM live", body = api::Session),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM ended directly after its start, or the same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many VMs as it may have", body = ErrorBody),
        (status = 503, description = "The node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "The VM was not ready in time; it is still being made", body = ErrorBody),
    ),
)]
async fn start(
    State(platform): State<Platform>,
    headers: HeaderMap,
    repeatable: Repeatable,
    AnonymousBody(request, digest): AnonymousBody<api::StartSession>,
) -> Result<Json<api::Session>, Problem> {
    let in_body = request.api_key.as_ref().map(|key| key.expose().trim());
    let key = in_body
        .or_else(|| key_of(&headers))
        .ok_or_else(Problem::unauthorised)?;
    let caller = crate::api_key::service::authenticate(&platform, key).await?;
    let profile = profile(&platform, request)?;
    let account_id = caller.account_id;
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        if group::made_before(&there, account_id, 1, &attempt)
            .await?
            .is_none()
        {
            let plan = Plan {
                profile,
                count: 1,
                boot: None,
            };
            let making = group::begin(&there, account_id, plan, &attempt).await?;
            making.finished(&there).await?;
        }
        let session = service::find(&there, account_id, &attempt.nonce.uuid(0)).await?;
        Ok(record(&session))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

fn profile(platform: &Platform, request: api::StartSession) -> Result<Profile, Problem> {
    let settings = &platform.settings;
    Ok(Profile {
        lifetime_seconds: bounds::number(
            "vm_lifetime_seconds",
            request.vm_lifetime_seconds,
            settings.session_lifetime_default,
            &settings.lifetime_range,
        )?,
        memory_mb: bounds::number(
            "memory_mb",
            request.memory_mb,
            settings.memory_default_mb,
            &settings.memory_range_mb,
        )?,
        vcpu_count: bounds::number(
            "vcpu_count",
            request.vcpu_count,
            settings.vcpu_default,
            &settings.vcpu_range,
        )?,
        metadata: bounds::metadata(request.metadata.unwrap_or_default())?,
        env: bounds::environment(request.env.unwrap_or_default())?,
        origin: Default::default(),
    })
}

/// A session as the wire shows it.
pub(crate) fn record(session: &Session) -> api::Session {
    let state = session.state();
    let vm = state.vm.as_deref();
    let status = match vm.map(|vm| vm.status) {
        Some(status) if status.is_live() && !state.killed => status,
        Some(_) => VmStatus::Terminated,
        None => VmStatus::Creating,
    };
    api::Session {
        session_id: session.id.clone(),
        status: status.as_str().to_owned(),
        vm_id: vm.map(|vm| vm.id.0.clone()),
        created_at: session.created_at.iso(),
        expires_at: vm.and_then(|vm| vm.expires_at).map(Moment::iso),
        vm_lifetime_seconds: state.profile.lifetime_seconds,
        memory_mb: state.profile.memory_mb,
        vcpu_count: state.profile.vcpu_count,
        isolation: vm.and_then(|vm| vm.isolation.clone()),
        metadata: state.profile.metadata,
    }
}

/// A session and its VM.
#[utoipa::path(
    get, path = "/v1/sessions/session/{session_id}", tag = "session", security(("api_key" = [])),
    params(("session_id" = String, Path, description = "A UUID")),
    responses(
        (status = 200, description = "The session", body = api::Session),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Session>, Problem> {
    let session = service::find(&platform, caller.account_id, &id).await?;
    Ok(Json(record(&session)))
}

/// Whether a session has a living VM.
#[utoipa::path(
    get, path = "/v1/sessions/status/{session_id}", tag = "session", security(("api_key" = [])),
    params(("session_id" = String, Path, description = "A UUID")),
    responses(
        (status = 200, description = "The status", body = api::SessionStatus),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
    ),
)]
async fn status(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::SessionStatus>, Problem> {
    let session = service::find(&platform, caller.account_id, &id).await?;
    Ok(Json(liveness(&session, Moment::now())))
}

fn liveness(session: &Session, now: Moment) -> api::SessionStatus {
    let state = session.state();
    let vm = state.vm.as_deref();
    let alive = state.active_vm().is_some();
    let creating = vm.is_some_and(|vm| vm.status == VmStatus::Creating) && !state.killed;
    let word = |_: &Vm| match (alive, creating) {
        (true, _) => "active",
        (_, true) => "creating",
        _ => "killed",
    };
    let ended_by = |vm: &Vm| match vm.status {
        VmStatus::Failed => Some("failed".to_owned()),
        VmStatus::Terminated => vm.reason.clone(),
        _ => None,
    };
    api::SessionStatus {
        session_id: session.id.clone(),
        exists: true,
        vm_assigned: vm.is_some(),
        vm_alive: alive,
        vm_status: vm.map(word).map(str::to_owned),
        ended_by: vm.and_then(ended_by),
        vm_id: vm.map(|vm| vm.id.0.clone()),
        uptime_seconds: vm
            .filter(|_| alive)
            .and_then(|vm| vm.started_at)
            .map(|started| now.seconds_since(started)),
        expires_in_seconds: match vm {
            Some(vm) if alive => vm.expires_at.map(|end| end.seconds_since(now)),
            Some(_) if !creating => Some(0.0),
            _ => None,
        },
        created_at: session.created_at.iso(),
    }
}

/// What the VM of a session has used.
#[utoipa::path(
    get, path = "/v1/sessions/usage/{session_id}", tag = "session", security(("api_key" = [])),
    params(("session_id" = String, Path, description = "A UUID")),
    responses(
        (status = 200, description = "From the kernel's own accounting", body = api::SessionUsage),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
        (status = 409, description = "The session's VM does not run", body = ErrorBody),
    ),
)]
async fn usage(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::SessionUsage>, Problem> {
    let session = service::find(&platform, caller.account_id, &id).await?;
    let vm = service::running_vm(&session)?;
    let usage = platform
        .node
        .usage(&vm.id)
        .await
        .map_err(|error| match error {
            instavm_node_api::NodeError::NoSuchVm => {
                Problem::new(Kind::Conflict, "the session's VM has ended")
            }
            error => error.into(),
        })?;
    let micros = i64::try_from(usage.cpu_micros).unwrap_or(i64::MAX);
    Ok(Json(api::SessionUsage {
        session_id: session.id.clone(),
        vm_id: vm.id.0.clone(),
        cpu_time: seconds(micros),
        memory_used: usage.memory_bytes,
        memory_peak: usage.memory_peak_bytes,
        memory_limit: u64::from(vm.memory_mb) << 20,
        network_io: api::NetworkIo {
            rx_bytes: usage.rx_bytes,
            tx_bytes: usage.tx_bytes,
            total_bytes: usage.rx_bytes.saturating_add(usage.tx_bytes),
            rx_packets: usage.rx_packets,
            tx_packets: usage.tx_packets,
        },
        uptime_seconds: vm
            .started_at
            .map_or(0.0, |started| Moment::now().seconds_since(started)),
    }))
}

/// The address of a port of the session's VM.
#[utoipa::path(
    get, path = "/v1/sessions/app-url/{session_id}", tag = "session", security(("api_key" = [])),
    description = "The address of a port of the session's VM: the URL of the port's share. Where there is none, a private \
        one is made, which opens with an API key or by logging in; `POST /v1/shares` makes it public.",
    params(("session_id" = String, Path, description = "A UUID"), api::AppUrlQuery),
    responses(
        (status = 200, description = "The address", body = api::AppUrl),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
        (status = 422, description = "The port is wrong", body = ErrorBody),
        (status = 429, description = "The VM has as many shares, or the account as many VMs, as it may have", body = ErrorBody),
        (status = 503, description = "No port is free, or the node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "The session's new VM was not ready in time", body = ErrorBody),
    ),
)]
async fn app_url(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    QueryOf(query): QueryOf<api::AppUrlQuery>,
) -> Result<Json<api::AppUrl>, Problem> {
    let port = shares::routes::port(query.port, Some(APP_PORT))?;
    let found = shares::service::app_url(&platform, caller.account_id, &id, port).await?;
    let url = shares::service::url(&platform, &found.share);
    let vm = platform.node.inspect(&found.share.vm_id).await.ok();
    let address = vm.and_then(|vm| vm.address);
    Ok(Json(api::AppUrl {
        app_url: url.clone(),
        direct_url: Some(url.clone()),
        url: Some(url),
        port: Some(found.share.port),
        vm_ip: address.map(|address| address.to_string()),
        vm_id: Some(found.share.vm_id.0),
        session_id: Some(found.share.session_id),
        status: Some(found.status.as_str().to_owned()),
        expires_in_seconds: found.expires_at.map(seconds_left),
    }))
}

/// Seconds until then; 0 afterwards.
fn seconds_left(until: Moment) -> f64 {
    let left = until
        .system_time()
        .duration_since(Moment::now().system_time());
    left.unwrap_or_default().as_secs_f64().floor()
}

/// The account's sessions with a living VM, newest first.
#[utoipa::path(
    get, path = "/v1/sessions/sandboxes", tag = "session", security(("api_key" = [])),
    params(api::SandboxesQuery),
    responses(
        (status = 200, description = "The sessions", body = Vec<api::Session>),
        (status = 400, description = "`metadata` is no JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 422, description = "A parameter is wrong", body = ErrorBody),
    ),
)]
async fn sandboxes(
    State(platform): State<Platform>,
    caller: Caller,
    QueryOf(query): QueryOf<api::SandboxesQuery>,
) -> Result<Json<Vec<api::Session>>, Problem> {
    let limit = bounds::number("limit", query.limit, 100, &(1..=1_000))?;
    let wanted = match query.metadata.as_deref() {
        None | Some("") => Metadata::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(serde_json::Value::Object(wanted)) => wanted,
            Ok(_) => {
                return Err(Problem::invalid(
                    "metadata",
                    "must be a JSON object as text",
                ));
            }
            Err(error) => {
                return Err(Problem::new(
                    Kind::Malformed,
                    format!("metadata: is no JSON: {error}"),
                ));
            }
        },
    };
    let sessions = service::sandboxes(&platform, caller.account_id, &wanted, limit as usize);
    Ok(Json(
        sessions.iter().map(|session| record(session)).collect(),
    ))
}

/// Ends a session and its VM. Ending it again answers the same.
#[utoipa::path(
    post, path = "/kill", tag = "session", security(("api_key" = [])), request_body = api::Kill,
    responses(
        (status = 200, description = "The session has ended", body = api::Killed),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn kill(
    State(platform): State<Platform>,
    caller: Caller,
    JsonBody { value: request, .. }: JsonBody<api::Kill>,
) -> Result<Json<api::Killed>, Problem> {
    let session = service::find(&platform, caller.account_id, &request.session_id).await?;
    service::kill(&platform, &session).await?;
    Ok(Json(api::Killed {
        status: "killed".to_owned(),
        session_id: session.id.clone(),
        vm_id: session.state().vm.map(|vm| vm.id.0.clone()),
    }))
}
