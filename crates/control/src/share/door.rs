//! What the platform asks of the gateway that serves shares.

use instavm_node_api::VmId;
use std::time::SystemTime;

/// A share, as the gateway is to serve it.
#[derive(Clone, Debug)]
pub struct Door {
    /// Its id.
    pub id: String,
    /// The account whose keys open it while it is private.
    pub account_id: i64,
    /// The VM.
    pub vm: VmId,
    /// The VM's port.
    pub port: u16,
    /// Everybody may pass.
    pub is_public: bool,
    /// When it was made.
    pub created_at: SystemTime,
    /// The port of the host that it was found under before.
    pub listen_port: Option<u16>,
    /// It has ended, and its URL is to say so.
    pub is_over: bool,
    /// It has ended because its owner revoked it.
    pub is_revoked: bool,
}

/// Why a share cannot be served. The text is for the user.
#[derive(Debug, thiserror::Error)]
#[error("the share cannot be opened: {reason}")]
pub struct DoorError {
    /// What is in the way, and what to do.
    pub reason: String,
}

/// The gateway that serves shares.
pub trait Doors: Send + Sync + 'static {
    /// Serves a share from now on; returns the port of the host that it is found under, if it has one of its own.
    ///
    /// # Errors
    /// [`DoorError`] when there is no room.
    fn open(&self, door: Door) -> Result<Option<u16>, DoorError>;

    /// Lets everybody pass, or the owner alone.
    fn set_public(&self, id: &str, is_public: bool);

    /// Ends a share that was revoked.
    fn revoke(&self, id: &str);

    /// Ends all shares of a VM that has ended.
    fn end_vm(&self, vm: &VmId);

    /// The URL of a share that is found under this port of the host, if it has one of its own.
    fn url(&self, id: &str, listen_port: Option<u16>) -> String;
}
