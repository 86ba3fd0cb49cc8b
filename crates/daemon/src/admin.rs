//! The control socket `D/control.sock`: how other invocations of `instavmd` speak to the daemon that runs.
//!
//! HTTP with JSON over a Unix socket of mode 0600. It is there from the moment the data directory is locked, before the
//! store is opened: so whoever finds nobody there has nobody to tell.

mod client;

pub use client::{AdminClient, AdminError};

use crate::output;
use crate::rooms::Rooms;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;

/// The socket's name in the data directory.
pub const SOCKET_NAME: &str = "control.sock";

/// What `check` asks for.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct CheckRequest {
    /// How long to wait for work that is under way.
    pub settle_seconds: u64,
}

/// What `check` found.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct CheckAnswer {
    /// One line a mismatch.
    pub mismatches: Vec<String>,
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Problem {
    detail: String,
}

/// The daemon's side: what its operator asks of it.
#[derive(Clone)]
pub struct Admin {
    rooms: watch::Receiver<Option<Arc<dyn Rooms>>>,
    reload_wanted: Arc<AtomicBool>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").finish_non_exhaustive()
    }
}

impl Admin {
    /// Answers about the rooms as soon as they are there.
    pub fn new(rooms: watch::Receiver<Option<Arc<dyn Rooms>>>) -> Self {
        Self {
            rooms,
            reload_wanted: Arc::default(),
        }
    }

    /// Whether somebody wrote about accounts while the rooms were being opened.
    pub fn reload_wanted(&self) -> bool {
        self.reload_wanted.load(Ordering::SeqCst)
    }

    /// The socket's routes.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/status", get(status))
            .route("/check", post(check))
            .route("/accounts/reload", post(reload_accounts))
            .with_state(self.clone())
    }

    fn ready(&self) -> Option<Arc<dyn Rooms>> {
        self.rooms.borrow().clone()
    }

    async fn ready_within(&self, limit: Duration) -> Option<Arc<dyn Rooms>> {
        let mut rooms = self.rooms.clone();
        let ready = rooms.wait_for(Option::is_some);
        let found = tokio::time::timeout(limit, ready).await.ok()?.ok()?;
        found.clone()
    }
}

async fn status(State(admin): State<Admin>) -> Response {
    let node = match admin.ready() {
        Some(rooms) => Some(rooms.status().await),
        None => None,
    };
    let state = if node.is_some() { "ready" } else { "starting" };
    Json(serde_json::json!({"pid": std::process::id(), "state": state, "node": node}))
        .into_response()
}

async fn check(State(admin): State<Admin>, Json(request): Json<CheckRequest>) -> Response {
    let settle = Duration::from_secs(request.settle_seconds);
    let Some(rooms) = admin.ready_within(settle).await else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the daemon is still starting; ask again when it is ready".to_owned(),
        );
    };
    match rooms.check(settle).await {
        Ok(mismatches) => Json(CheckAnswer { mismatches }).into_response(),
        Err(error) => failed(&*error),
    }
}

async fn reload_accounts(State(admin): State<Admin>) -> Response {
    // Noted first: whoever publishes the rooms looks at the note afterwards.
    admin.reload_wanted.store(true, Ordering::SeqCst);
    let Some(rooms) = admin.ready() else {
        return StatusCode::ACCEPTED.into_response();
    };
    match rooms.reload_accounts().await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => failed(&*error),
    }
}

fn failed(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Response {
    problem(
        StatusCode::INTERNAL_SERVER_ERROR,
        output::with_causes(error),
    )
}

fn problem(status: StatusCode, detail: String) -> Response {
    (status, Json(Problem { detail })).into_response()
}

/// Makes the socket anew. Only the holder of the data directory's lock may.
///
/// # Errors
/// When the directory does not take a socket.
pub fn bind(data_dir: &Path) -> io::Result<UnixListener> {
    let path = data_dir.join(SOCKET_NAME);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let (short, _folder) = short_path(data_dir)?;
    let listener = UnixListener::bind(short)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The socket's path through an open descriptor of its folder: an address has room for 107 characters only.
fn short_path(data_dir: &Path) -> io::Result<(PathBuf, File)> {
    let folder = File::open(data_dir)?;
    let path = PathBuf::from(format!(
        "/proc/self/fd/{}/{SOCKET_NAME}",
        folder.as_raw_fd()
    ));
    Ok((path, folder))
}

#[cfg(test)]
mod tests;
