//! Terminals.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Opens a terminal. Every field is optional; unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CreatePty {
    /// Columns: 1 to 1000; 80 when absent.
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub cols: Option<i64>,
    /// Rows: 1 to 1000; 24 when absent.
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub rows: Option<i64>,
    /// The program to run, as a shell would be told, instead of an interactive login shell.
    #[schema(example = "/bin/sh")]
    pub shell: Option<String>,
    /// A command line for a login shell to run; wins over `shell`.
    pub command: Option<String>,
    /// The terminal's id: 1 to 64 of `[A-Za-z0-9_-]`. Chosen when absent.
    pub id: Option<String>,
}

/// The size of a terminal.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResizePty {
    /// Columns: 1 to 1000.
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub cols: Option<i64>,
    /// Rows: 1 to 1000.
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub rows: Option<i64>,
}

/// The key of a caller that cannot send headers.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ConnectPty {
    /// The API key; else the header `X-API-Key` has it.
    pub api_key: Option<String>,
}

/// A terminal.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Pty {
    /// The terminal's id (not that of the session that executes code).
    pub session_id: String,
    /// The same as `session_id`.
    pub id: String,
    /// Its VM.
    pub vm_id: String,
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// Its program runs.
    pub alive: bool,
    /// Somebody is connected.
    pub attached: bool,
    /// How its program ended: the exit status, or 128 + the signal.
    pub exit_code: Option<i32>,
    /// When it was opened.
    pub created_at: String,
}

/// The terminals of a VM.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Ptys {
    /// The terminals, oldest first.
    pub sessions: Vec<Pty>,
}

/// A terminal was closed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PtyDeleted {
    /// Always `deleted`.
    pub status: String,
    /// The terminal's id.
    pub session_id: String,
    /// The same as `session_id`.
    pub id: String,
}
