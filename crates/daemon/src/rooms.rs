//! What the daemon asks of the rooms that it wires together: the seam between its own work (start, serve, drain,
//! answer its operator) and theirs.

use async_trait::async_trait;
use std::time::Duration;

/// Why a room failed, its causes included.
pub type RoomError = Box<dyn std::error::Error + Send + Sync>;

/// The rooms, opened and running.
#[async_trait]
pub trait Rooms: Send + Sync + 'static {
    /// The routes of the public API.
    fn router(&self) -> axum::Router;

    /// Compares rows, disks and kernel after waiting up to `settle` for work that is under way; one line a mismatch.
    async fn check(&self, settle: Duration) -> Result<Vec<String>, RoomError>;

    /// Takes over what another process wrote about accounts and keys.
    async fn reload_accounts(&self) -> Result<(), RoomError>;

    /// What the node offers and how full it is.
    async fn status(&self) -> serde_json::Value;

    /// Ends their tasks and writes what is still in memory; VMs run on.
    async fn close(&self);
}
