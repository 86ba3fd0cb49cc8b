//! `/v1/shares*`.

use super::service::{self, Share, Wanted};
use crate::Platform;
use crate::body::JsonBody;
use crate::bounds;
use crate::error::Problem;
use crate::extract::{Caller, Id, QueryOf};
use crate::idempotency::{Attempt, Repeatable, once};
use axum::Json;
use axum::extract::State;
use instavm_api::ErrorBody;
use instavm_api::share as api;
use std::ops::RangeInclusive;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Ports that can be shared.
const PORTS: RangeInclusive<u32> = 1..=65_535;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(show, update))
}

fn record(platform: &Platform, share: Share) -> api::Share {
    api::Share {
        url: service::url(platform, &share),
        share_id: share.id,
        port: share.port,
        is_public: share.is_public,
        status: share.status.as_str().to_owned(),
        vm_id: share.vm_id.0,
        session_id: share.session_id,
        created_at: share.created_at.iso(),
        updated_at: share.updated_at.iso(),
    }
}

/// A port that can be shared; a missing one is refused unless there is a default.
pub(crate) fn port(given: Option<i64>, default: Option<u16>) -> Result<u16, Problem> {
    if given.is_none() && default.is_none() {
        return Err(Problem::invalid(
            "port",
            "is missing: give the port of the app in the VM",
        ));
    }
    let port = bounds::number("port", given, default.unwrap_or(1).into(), &PORTS)?;
    Ok(u16::try_from(port).unwrap_or(u16::MAX))
}

/// Puts a port of a VM under a URL.
#[utoipa::path(
    post, path = "/v1/shares", tag = "share", security(("api_key" = [])), request_body = api::CreateShare,
    description = "Puts a port of a VM under a URL. Asked again for the same VM and port it answers with the same share, \
        whose visibility becomes what is asked for. Whether anything listens on the port does not matter yet.",
    params(("Idempotency-Key" = Option<String>, Header, description = "Sent again under its key, it is carried out once")),
    responses(
        (status = 200, description = "The share", body = api::Share),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM or session", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM does not run, or the same request is under way", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong or missing", body = ErrorBody),
        (status = 429, description = "The VM has as many shares, or the account as many VMs, as it may have", body = ErrorBody),
        (status = 503, description = "No port is free, or the node is full; see Retry-After", body = ErrorBody),
        (status = 504, description = "The session's new VM was not ready in time", body = ErrorBody),
    ),
)]
async fn create(
    State(platform): State<Platform>,
    caller: Caller,
    repeatable: Repeatable,
    JsonBody {
        value: request,
        digest,
        ..
    }: JsonBody<api::CreateShare>,
) -> Result<Json<api::Share>, Problem> {
    let account_id = caller.account_id;
    let wanted = Wanted {
        port: port(request.port, None)?,
        vm_id: request.vm_id,
        session_id: request.session_id,
        is_public: request.is_public,
    };
    let there = platform.clone();
    let work = move |attempt: Attempt| async move {
        let id = attempt.nonce.id("sh-", 0);
        if attempt.is_repeated
            && let Ok(found) = service::find(&there, account_id, &id).await
        {
            return Ok(record(&there, found));
        }
        let share = service::create(&there, account_id, id, wanted).await?;
        Ok(record(&there, share))
    };
    let answered = once(&platform, account_id, repeatable, digest, work).await?;
    Ok(Json(answered.answer))
}

/// The account's shares, newest first; those that have ended among them.
#[utoipa::path(
    get, path = "/v1/shares", tag = "share", security(("api_key" = [])), params(api::SharesQuery),
    responses(
        (status = 200, description = "The shares, at most 1,000", body = Vec<api::Share>),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 422, description = "The query is wrong", body = ErrorBody),
    ),
)]
async fn list(
    State(platform): State<Platform>,
    caller: Caller,
    QueryOf(query): QueryOf<api::SharesQuery>,
) -> Result<Json<Vec<api::Share>>, Problem> {
    let shares = service::list(&platform, caller.account_id, query.vm_id.as_deref()).await?;
    let shares = shares.into_iter();
    Ok(Json(shares.map(|share| record(&platform, share)).collect()))
}

/// A share.
#[utoipa::path(
    get, path = "/v1/shares/{share_id}", tag = "share", security(("api_key" = [])),
    params(("share_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The share", body = api::Share),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such share", body = ErrorBody),
    ),
)]
async fn show(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Share>, Problem> {
    let share = service::find(&platform, caller.account_id, &id).await?;
    Ok(Json(record(&platform, share)))
}

/// Changes who may pass a share, or ends it.
#[utoipa::path(
    patch, path = "/v1/shares/{share_id}", tag = "share", security(("api_key" = [])),
    description = "Changes who may pass a share, or ends it for good. What strangers have open when it becomes private is \
        cut, and everything when it is revoked.",
    params(("share_id" = String, Path, description = "Its id")),
    request_body = api::UpdateShare,
    responses(
        (status = 200, description = "The share", body = api::Share),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such share", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The share has ended", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "Neither is_public nor revoke is there", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn update(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::UpdateShare>,
) -> Result<Json<api::Share>, Problem> {
    let revoke = request.revoke.unwrap_or(false);
    if request.is_public.is_none() && !revoke {
        return Err(Problem::invalid(
            "is_public",
            "is missing: say is_public, or revoke as true",
        ));
    }
    let share =
        service::update(&platform, caller.account_id, &id, request.is_public, revoke).await?;
    Ok(Json(record(&platform, share)))
}
