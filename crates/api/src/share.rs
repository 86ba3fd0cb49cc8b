//! Shares: ports of VMs under URLs.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Puts a port of a VM under a URL. Of `vm_id` and `session_id` one is needed; unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct CreateShare {
    /// The port in the VM: 1 to 65535.
    #[serde(default, deserialize_with = "crate::number::integer")]
    pub port: Option<i64>,
    /// Everybody may pass. When absent: false, or as it is if there is a share of this port already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
    /// The VM; wins over `session_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// The session whose VM is meant; it gets one if the last one expired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// Changes a share. At least one is needed; unknown keys are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateShare {
    /// Everybody may pass, or the owner alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_public: Option<bool>,
    /// Ends the share for good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoke: Option<bool>,
}

/// Which shares are asked for.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct SharesQuery {
    /// Those of this VM alone.
    pub vm_id: Option<String>,
}

/// A port of a VM under a URL.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Share {
    /// Its id.
    pub share_id: String,
    /// Its URL, without a path.
    pub url: String,
    /// The port in the VM.
    pub port: u16,
    /// Everybody may pass; otherwise its owner alone, by an API key or by logging in.
    pub is_public: bool,
    /// `open`, `revoked`, or `ended` with its VM.
    pub status: String,
    /// The VM.
    pub vm_id: String,
    /// The session of the VM.
    pub session_id: String,
    /// When it was made.
    pub created_at: String,
    /// When it was changed last.
    pub updated_at: String,
}
