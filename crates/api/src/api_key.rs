//! API keys.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Makes a key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CreateApiKey {
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// Changes a key.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateApiKey {
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// `false`: it answers 401 from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_active: Option<bool>,
}

/// A key, without its text.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiKey {
    /// Its id.
    pub id: i64,
    /// The beginning of its text.
    pub key_prefix: String,
    /// What it is for.
    pub description: String,
    /// Whether it is accepted.
    pub is_active: bool,
    /// When it was made.
    pub created_at: String,
    /// When it was last used, to a few seconds.
    pub last_used_at: Option<String>,
}

/// A new key. Its text is shown here and never again.
#[derive(Serialize, Deserialize, ToSchema)]
pub struct NewApiKey {
    /// The text.
    pub api_key: String,
    /// The record.
    #[serde(flatten)]
    pub record: ApiKey,
}

impl std::fmt::Debug for NewApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewApiKey")
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

/// A key was deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyDeleted {
    /// Always `deleted`.
    pub status: String,
    /// Its id.
    pub id: i64,
}
