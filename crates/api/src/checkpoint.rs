//! Checkpoints: read-only moments of volumes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Keeps this moment of a volume. Unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CreateCheckpoint {
    /// What it is called; several checkpoints may have one name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Checkpoint {
    /// Its id.
    pub id: String,
    /// The same as `id`.
    pub checkpoint_id: String,
    /// The volume.
    pub volume_id: String,
    /// What it is called; may be empty.
    pub name: String,
    /// `creating`, `ready`, `deleting` or `failed`.
    pub status: String,
    /// When it was made.
    pub created_at: String,
}

/// A checkpoint was deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CheckpointDeleted {
    /// `deleted`, or `deleting` while the node is still at it.
    pub status: String,
    /// Its id.
    pub id: String,
}
