//! Shares: ports of VMs under URLs.

use super::Client;
use crate::{NewShare, Result, Share};

/// Ports of VMs under URLs. See [`Client::shares`]. Each method is that of [`crate::Shares`].
#[derive(Clone, Copy, Debug)]
pub struct Shares<'a>(&'a Client);

impl Client {
    /// Ports of VMs under URLs.
    pub fn shares(&self) -> Shares<'_> {
        Shares(self)
    }
}

impl Shares<'_> {
    /// Puts a port of a VM under a URL. Asked again for the same VM and port, it is the same share.
    ///
    /// # Errors
    /// When the platform refuses, or neither a VM nor a session is named and the client has no session.
    pub fn create(&self, share: NewShare) -> Result<Share> {
        self.0
            .run(|client| async move { client.shares().create(share).await })
    }

    /// The account's shares, newest first; those that have ended among them.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn list(&self) -> Result<Vec<Share>> {
        self.0
            .run(|client| async move { client.shares().list().await })
    }

    /// A share.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn get(&self, share_id: &str) -> Result<Share> {
        let share_id = share_id.to_owned();
        self.0
            .run(|client| async move { client.shares().get(&share_id).await })
    }

    /// Lets everybody pass, or the owner alone.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn set_public(&self, share_id: &str, is_public: bool) -> Result<Share> {
        let share_id = share_id.to_owned();
        self.0
            .run(|client| async move { client.shares().set_public(&share_id, is_public).await })
    }

    /// Ends a share for good: its URL stops serving.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn revoke(&self, share_id: &str) -> Result<Share> {
        let share_id = share_id.to_owned();
        self.0
            .run(|client| async move { client.shares().revoke(&share_id).await })
    }
}
