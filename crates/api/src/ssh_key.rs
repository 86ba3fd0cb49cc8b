//! SSH keys.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Adds a key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AddSshKey {
    /// One line of an OpenSSH public key file.
    #[schema(example = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA... me@example.com")]
    pub public_key: String,
}

/// A key.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SshKey {
    /// Its id.
    pub id: i64,
    /// `SHA256:` and the unpadded base64 of the key's hash.
    pub fingerprint: String,
    /// The third word of the line.
    pub comment: String,
    /// The first word of the line.
    pub key_type: String,
    /// The line.
    pub public_key: String,
    /// Always true.
    pub is_active: bool,
    /// When it was added.
    pub created_at: String,
}

/// The keys of an account.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SshKeys {
    /// The keys.
    pub keys: Vec<SshKey>,
}

/// A key was deleted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SshKeyDeleted {
    /// Always `deleted`.
    pub status: String,
    /// Its id.
    pub id: i64,
}
