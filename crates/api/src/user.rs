//! Users.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Who the API key belongs to.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Its id.
    pub id: i64,
    /// Its address.
    pub email: String,
    /// Its name.
    pub name: String,
    /// Always true.
    pub is_verified: bool,
    /// When it was made.
    pub created_at: String,
}
