//! `/v1/egress/*`: one policy for a session and its VM, by two ways.

use super::service::{self, Place};
use crate::Platform;
use crate::body::JsonBody;
use crate::clock::Moment;
use crate::error::Problem;
use crate::extract::{Caller, Id};
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::egress as api;
use instavm_node_api::{EgressPolicy, Refusal};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(set_of_session, show_of_session))
        .routes(routes!(set_of_vm, show_of_vm))
        .routes(routes!(refusals_of_vm))
}

fn record(policy: EgressPolicy) -> api::Egress {
    api::Egress {
        allow_public_repos: policy.allow_public_repos,
        allow_package_managers: policy.allow_public_repos,
        allow_http: policy.allow_http,
        allow_https: policy.allow_https,
        allowed_domains: policy.allowed_domains,
        allowed_cidrs: policy.allowed_cidrs,
    }
}

async fn set(
    platform: &Platform,
    caller: Caller,
    place: Place,
    request: api::SetEgress,
) -> Result<Json<api::EgressSet>, Problem> {
    let policy = service::read(platform, request)?;
    service::set(platform, caller.account_id, &place, policy.clone()).await?;
    Ok(Json(api::EgressSet {
        status: "ok".to_owned(),
        policy: record(policy),
    }))
}

async fn show(
    platform: &Platform,
    caller: Caller,
    place: Place,
) -> Result<Json<api::Egress>, Problem> {
    let policy = service::policy(platform, caller.account_id, &place).await?;
    Ok(Json(record(policy)))
}

/// Replaces what the session's VM may reach.
#[utoipa::path(
    post, path = "/v1/egress/session/{session_id}", tag = "egress", security(("api_key" = [])),
    description = "Replaces what the session's VM may reach, and the VMs that the session has after it. It is in force when \
        the answer comes: for new connections, and for open ones, of which those that are not allowed are cut.",
    params(("session_id" = String, Path, description = "The session's id")),
    request_body = api::SetEgress,
    responses(
        (status = 200, description = "The policy is in force", body = api::EgressSet),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A key is unknown or an entry is wrong; the old policy stays", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn set_of_session(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::SetEgress>,
) -> Result<Json<api::EgressSet>, Problem> {
    set(&platform, caller, Place::Session(id), request).await
}

/// What the session's VM may reach.
#[utoipa::path(
    get, path = "/v1/egress/session/{session_id}", tag = "egress", security(("api_key" = [])),
    params(("session_id" = String, Path, description = "The session's id")),
    responses(
        (status = 200, description = "The policy", body = api::Egress),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
    ),
)]
async fn show_of_session(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Egress>, Problem> {
    show(&platform, caller, Place::Session(id)).await
}

/// Replaces what a VM may reach.
#[utoipa::path(
    post, path = "/v1/egress/vm/{vm_id}", tag = "egress", security(("api_key" = [])),
    description = "Replaces what a VM may reach, and the VMs that its session has after it. It is in force when the answer \
        comes: for new connections, and for open ones, of which those that are not allowed are cut.",
    params(("vm_id" = String, Path, description = "The VM's id")),
    request_body = api::SetEgress,
    responses(
        (status = 200, description = "The policy is in force", body = api::EgressSet),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM has ended", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A key is unknown or an entry is wrong; the old policy stays", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn set_of_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::SetEgress>,
) -> Result<Json<api::EgressSet>, Problem> {
    set(&platform, caller, Place::Vm(id), request).await
}

/// What a VM may reach.
#[utoipa::path(
    get, path = "/v1/egress/vm/{vm_id}", tag = "egress", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "The VM's id")),
    responses(
        (status = 200, description = "The policy", body = api::Egress),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
    ),
)]
async fn show_of_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Egress>, Problem> {
    show(&platform, caller, Place::Vm(id)).await
}

fn refusal(refusal: Refusal) -> api::Refusal {
    api::Refusal {
        at: Moment(refusal.at_micros).iso(),
        rule: refusal.rule,
        reason: refusal.reason,
        protocol: refusal.protocol,
        name: refusal.name,
        address: refusal.address.map(|address| address.to_string()),
        port: refusal.port,
        unrecorded: refusal.unrecorded,
    }
}

/// What was refused to a VM lately.
#[utoipa::path(
    get, path = "/v1/egress/vm/{vm_id}/refusals", tag = "egress", security(("api_key" = [])),
    description = "What was refused to a VM lately, by its policy or by what no policy opens: the last 100, the newest \
        first, also of a VM that has ended. Of a VM to which more is refused than about one thing every two seconds some \
        go unrecorded, and the next record says how many. A restart of the platform forgets them.",
    params(("vm_id" = String, Path, description = "The VM's id")),
    responses(
        (status = 200, description = "The refusals", body = api::Refusals),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
    ),
)]
async fn refusals_of_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Refusals>, Problem> {
    let refused = service::refusals(&platform, caller.account_id, id.clone()).await?;
    Ok(Json(api::Refusals {
        vm_id: id,
        refusals: refused.into_iter().map(refusal).collect(),
    }))
}
