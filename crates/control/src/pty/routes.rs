//! `/v1/sessions/{session_id}/pty/*` and `/v1/vms/{vm_id}/pty/*`: the same terminals by two ways.

use super::service::{self, Place};
use super::socket;
use crate::Platform;
use crate::api_key::service::authenticate;
use crate::body::JsonBody;
use crate::clock::Moment;
use crate::error::{Kind, Problem};
use crate::extract::{Caller, Id, Ids, QueryOf, key_of};
use axum::Json;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::response::Response;
use instavm_api::ErrorBody;
use instavm_api::pty as api;
use instavm_node_api::{PtyInfo, VmId};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) fn routes() -> OpenApiRouter<Platform> {
    OpenApiRouter::new()
        .routes(routes!(open_in_session, list_of_session))
        .routes(routes!(show_of_session, close_of_session))
        .routes(routes!(resize_of_session))
        .routes(routes!(connect_to_session))
        .routes(routes!(open_in_vm, list_of_vm))
        .routes(routes!(show_of_vm, close_of_vm))
        .routes(routes!(resize_of_vm))
        .routes(routes!(connect_to_vm))
}

fn record((vm, pty): (VmId, PtyInfo)) -> api::Pty {
    api::Pty {
        session_id: pty.id.clone(),
        id: pty.id,
        vm_id: vm.0,
        cols: pty.cols,
        rows: pty.rows,
        alive: pty.exit_code.is_none(),
        attached: pty.attached,
        exit_code: pty.exit_code,
        created_at: Moment::from(pty.created_at).iso(),
    }
}

async fn open(
    platform: &Platform,
    caller: Caller,
    place: Place,
    request: api::CreatePty,
) -> Result<Json<api::Pty>, Problem> {
    let opened = service::open(platform, caller.account_id, &place, request).await?;
    Ok(Json(record(opened)))
}

async fn list(
    platform: &Platform,
    caller: Caller,
    place: Place,
) -> Result<Json<api::Ptys>, Problem> {
    let all = service::list(platform, caller.account_id, &place).await?;
    let sessions = all.into_iter().map(record).collect();
    Ok(Json(api::Ptys { sessions }))
}

async fn close(
    platform: &Platform,
    caller: Caller,
    place: Place,
    id: String,
) -> Result<Json<api::PtyDeleted>, Problem> {
    service::close(platform, caller.account_id, &place, &id).await?;
    Ok(Json(api::PtyDeleted {
        status: "deleted".to_owned(),
        session_id: id.clone(),
        id,
    }))
}

/// Upgrades once the terminal is attached, so that what cannot be is answered as HTTP.
async fn connect(
    platform: Platform,
    place: Place,
    id: &str,
    query: &api::ConnectPty,
    headers: &HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let key = query.api_key.as_deref().or_else(|| key_of(headers));
    let caller = authenticate(&platform, key.ok_or_else(Problem::unauthorised)?).await?;
    service::find(&platform, caller.account_id, &place, id).await?;
    let upgrade = upgrade.map_err(|error| {
        let why = format!("this is a WebSocket: {}", error.body_text());
        Problem::new(Kind::Malformed, why)
    })?;
    let pty = service::attach(&platform, caller.account_id, &place, id).await?;
    let upgrade = upgrade
        .max_message_size(socket::MESSAGE_LIMIT)
        .max_frame_size(socket::MESSAGE_LIMIT);
    let stopping = platform.stopping.clone();
    Ok(upgrade.on_upgrade(move |socket| socket::serve(socket, pty, stopping)))
}

/// Opens a terminal in the session's VM.
#[utoipa::path(
    post, path = "/v1/sessions/{session_id}/pty/sessions", tag = "pty", security(("api_key" = [])), request_body = api::CreatePty,
    description = "Opens a terminal in the session's VM. A session whose VM has expired gets a new VM first. What its program writes is kept until somebody connects.",
    params(("session_id" = String, Path, description = "The session")),
    responses(
        (status = 200, description = "The terminal; `session_id` and `id` are its own id", body = api::Pty),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session, or it was killed", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The id is taken, the VM has too many terminals, or it does not run", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 429, description = "The account has as many VMs as it may have", body = ErrorBody),
        (status = 503, description = "The node is full, or too many long requests are being read; see Retry-After", body = ErrorBody),
        (status = 504, description = "A new VM was not ready in time", body = ErrorBody),
    ),
)]
async fn open_in_session(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::CreatePty>,
) -> Result<Json<api::Pty>, Problem> {
    open(&platform, caller, Place::Session(id), request).await
}

/// The terminals of the session's VM.
#[utoipa::path(
    get, path = "/v1/sessions/{session_id}/pty/sessions", tag = "pty", security(("api_key" = [])),
    params(("session_id" = String, Path, description = "The session")),
    responses(
        (status = 200, description = "The terminals; none when no VM runs", body = api::Ptys),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
    ),
)]
async fn list_of_session(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Ptys>, Problem> {
    list(&platform, caller, Place::Session(id)).await
}

/// A terminal.
#[utoipa::path(
    get, path = "/v1/sessions/{session_id}/pty/sessions/{pty_id}", tag = "pty", security(("api_key" = [])),
    params(("session_id" = String, Path, description = "The session"), ("pty_id" = String, Path, description = "The terminal")),
    responses(
        (status = 200, description = "The terminal", body = api::Pty),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session or terminal", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
    ),
)]
async fn show_of_session(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(id, pty): Ids,
) -> Result<Json<api::Pty>, Problem> {
    let found = service::find(&platform, caller.account_id, &Place::Session(id), &pty).await?;
    Ok(Json(record(found)))
}

/// Hangs a terminal up and forgets it. Doing it again answers the same.
#[utoipa::path(
    delete, path = "/v1/sessions/{session_id}/pty/sessions/{pty_id}", tag = "pty", security(("api_key" = [])),
    params(("session_id" = String, Path, description = "The session"), ("pty_id" = String, Path, description = "The terminal")),
    responses(
        (status = 200, description = "It is closed", body = api::PtyDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session", body = ErrorBody),
    ),
)]
async fn close_of_session(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(id, pty): Ids,
) -> Result<Json<api::PtyDeleted>, Problem> {
    close(&platform, caller, Place::Session(id), pty).await
}

/// Changes the size of a terminal.
#[utoipa::path(
    post, path = "/v1/sessions/{session_id}/pty/sessions/{pty_id}/resize", tag = "pty", security(("api_key" = [])), request_body = api::ResizePty,
    params(("session_id" = String, Path, description = "The session"), ("pty_id" = String, Path, description = "The terminal")),
    responses(
        (status = 200, description = "The terminal", body = api::Pty),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session or terminal", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn resize_of_session(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(id, pty): Ids,
    JsonBody { value: size, .. }: JsonBody<api::ResizePty>,
) -> Result<Json<api::Pty>, Problem> {
    let place = Place::Session(id);
    let resized = service::resize(&platform, caller.account_id, &place, &pty, &size).await?;
    Ok(Json(record(resized)))
}

/// Connects to a terminal by WebSocket.
#[utoipa::path(
    get, path = "/v1/sessions/{session_id}/pty/{pty_id}/connect", tag = "pty", security(("api_key" = [])),
    description = "Upgrades to a WebSocket. Binary frames are bytes of the terminal, both ways. Text frames are JSON: \
        `{\"type\":\"resize\",\"cols\":N,\"rows\":N}` from the client, `{\"type\":\"exit\",\"exit_code\":N}` to it, right before \
        the close with 1000. A second connection takes the terminal over; the first is closed with 4409. A terminal whose \
        connection is lost waits 60 seconds for another one.",
    params(("session_id" = String, Path, description = "The session"), ("pty_id" = String, Path, description = "The terminal"), api::ConnectPty),
    responses(
        (status = 101, description = "The WebSocket"),
        (status = 400, description = "No WebSocket handshake", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such session or terminal", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
        (status = 422, description = "The query cannot be read", body = ErrorBody),
    ),
)]
async fn connect_to_session(
    State(platform): State<Platform>,
    Ids(id, pty): Ids,
    QueryOf(query): QueryOf<api::ConnectPty>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    connect(
        platform,
        Place::Session(id),
        &pty,
        &query,
        &headers,
        upgrade,
    )
    .await
}

/// Opens a terminal in a VM.
#[utoipa::path(
    post, path = "/v1/vms/{vm_id}/pty/sessions", tag = "pty", security(("api_key" = [])), request_body = api::CreatePty,
    description = "Opens a terminal in a VM. What its program writes is kept until somebody connects.",
    params(("vm_id" = String, Path, description = "The VM")),
    responses(
        (status = 200, description = "The terminal; `session_id` and `id` are its own id", body = api::Pty),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The id is taken, the VM has too many terminals, or it does not run", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "The node is full, or too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn open_in_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
    JsonBody { value: request, .. }: JsonBody<api::CreatePty>,
) -> Result<Json<api::Pty>, Problem> {
    open(&platform, caller, Place::Vm(id), request).await
}

/// The terminals of a VM.
#[utoipa::path(
    get, path = "/v1/vms/{vm_id}/pty/sessions", tag = "pty", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "The VM")),
    responses(
        (status = 200, description = "The terminals; none when no VM runs", body = api::Ptys),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
    ),
)]
async fn list_of_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<api::Ptys>, Problem> {
    list(&platform, caller, Place::Vm(id)).await
}

/// A terminal.
#[utoipa::path(
    get, path = "/v1/vms/{vm_id}/pty/sessions/{pty_id}", tag = "pty", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "The VM"), ("pty_id" = String, Path, description = "The terminal")),
    responses(
        (status = 200, description = "The terminal", body = api::Pty),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM or terminal", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
    ),
)]
async fn show_of_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(id, pty): Ids,
) -> Result<Json<api::Pty>, Problem> {
    let found = service::find(&platform, caller.account_id, &Place::Vm(id), &pty).await?;
    Ok(Json(record(found)))
}

/// Hangs a terminal up and forgets it. Doing it again answers the same.
#[utoipa::path(
    delete, path = "/v1/vms/{vm_id}/pty/sessions/{pty_id}", tag = "pty", security(("api_key" = [])),
    params(("vm_id" = String, Path, description = "The VM"), ("pty_id" = String, Path, description = "The terminal")),
    responses(
        (status = 200, description = "It is closed", body = api::PtyDeleted),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM", body = ErrorBody),
    ),
)]
async fn close_of_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(id, pty): Ids,
) -> Result<Json<api::PtyDeleted>, Problem> {
    close(&platform, caller, Place::Vm(id), pty).await
}

/// Changes the size of a terminal.
#[utoipa::path(
    post, path = "/v1/vms/{vm_id}/pty/sessions/{pty_id}/resize", tag = "pty", security(("api_key" = [])), request_body = api::ResizePty,
    params(("vm_id" = String, Path, description = "The VM"), ("pty_id" = String, Path, description = "The terminal")),
    responses(
        (status = 200, description = "The terminal", body = api::Pty),
        (status = 400, description = "Malformed JSON", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM or terminal", body = ErrorBody),
        (status = 408, description = "The body came too slowly", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
        (status = 413, description = "The body is over the limit", body = ErrorBody),
        (status = 422, description = "A field is wrong", body = ErrorBody),
        (status = 503, description = "Too many long requests are being read; see Retry-After", body = ErrorBody),
    ),
)]
async fn resize_of_vm(
    State(platform): State<Platform>,
    caller: Caller,
    Ids(id, pty): Ids,
    JsonBody { value: size, .. }: JsonBody<api::ResizePty>,
) -> Result<Json<api::Pty>, Problem> {
    let place = Place::Vm(id);
    let resized = service::resize(&platform, caller.account_id, &place, &pty, &size).await?;
    Ok(Json(record(resized)))
}

/// Connects to a terminal by WebSocket.
#[utoipa::path(
    get, path = "/v1/vms/{vm_id}/pty/{pty_id}/connect", tag = "pty", security(("api_key" = [])),
    description = "Upgrades to a WebSocket. Binary frames are bytes of the terminal, both ways. Text frames are JSON: \
        `{\"type\":\"resize\",\"cols\":N,\"rows\":N}` from the client, `{\"type\":\"exit\",\"exit_code\":N}` to it, right before \
        the close with 1000. A second connection takes the terminal over; the first is closed with 4409. A terminal whose \
        connection is lost waits 60 seconds for another one.",
    params(("vm_id" = String, Path, description = "The VM"), ("pty_id" = String, Path, description = "The terminal"), api::ConnectPty),
    responses(
        (status = 101, description = "The WebSocket"),
        (status = 400, description = "No WebSocket handshake", body = ErrorBody),
        (status = 401, description = "No valid key", body = ErrorBody),
        (status = 404, description = "No such VM or terminal", body = ErrorBody),
        (status = 409, description = "The VM ended meanwhile", body = ErrorBody),
        (status = 422, description = "The query cannot be read", body = ErrorBody),
    ),
)]
async fn connect_to_vm(
    State(platform): State<Platform>,
    Ids(id, pty): Ids,
    QueryOf(query): QueryOf<api::ConnectPty>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    connect(platform, Place::Vm(id), &pty, &query, &headers, upgrade).await
}
