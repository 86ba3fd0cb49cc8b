//! The body of every answer with a status of 400 and above.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The body of every answer with a status of 400 and above.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, with which field, and what to do.
    #[schema(example = "memory_mb: must be between 128 and 8192")]
    pub detail: String,
}
