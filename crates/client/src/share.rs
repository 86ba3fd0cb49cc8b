//! Shares: ports of VMs under URLs.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::error::{Error, Family, Result};
use instavm_api::share::{CreateShare, Share, UpdateShare};

const CREATING: &str = "create the share";
const SHOWING: &str = "get the share";
const CHANGING: &str = "change the share";

/// A port to share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewShare {
    /// The port of the app in the VM.
    pub port: u16,
    /// Everybody may pass; otherwise the owner alone, by an API key or by logging in.
    pub is_public: bool,
    /// The VM; the client's session's when absent.
    pub vm_id: Option<String>,
    /// The session whose VM is meant; the client's when neither it nor a VM is named.
    pub session_id: Option<String>,
}

impl NewShare {
    /// A private share of this port of the client's session.
    #[must_use]
    pub fn of(port: u16) -> NewShare {
        NewShare {
            port,
            ..NewShare::default()
        }
    }

    /// Everybody may pass.
    #[must_use]
    pub fn public(mut self) -> NewShare {
        self.is_public = true;
        self
    }

    /// Of this VM.
    #[must_use]
    pub fn vm(mut self, vm_id: impl Into<String>) -> NewShare {
        self.vm_id = Some(vm_id.into());
        self
    }
}

/// Ports of VMs under URLs.
#[derive(Clone, Copy, Debug)]
pub struct Shares<'a> {
    client: &'a Client,
}

impl Client {
    /// Ports of VMs under URLs.
    pub fn shares(&self) -> Shares<'_> {
        Shares { client: self }
    }
}

impl Shares<'_> {
    /// Puts a port of a VM under a URL. Asked again for the same VM and port, it is the same share.
    ///
    /// # Errors
    /// When the platform refuses, or neither a VM nor a session is named and the client has no session.
    pub async fn create(&self, share: NewShare) -> Result<Share> {
        let session_id = match (&share.vm_id, share.session_id) {
            (None, None) => Some(self.client.current(CREATING)?),
            (_, named) => named,
        };
        let body = CreateShare {
            port: Some(share.port.into()),
            is_public: Some(share.is_public),
            vm_id: share.vm_id,
            session_id,
        };
        let call = Call::new(Method::Post, "/v1/shares").json(&body)?;
        self.client.fetch(call.named(CREATING, Family::Api)).await
    }

    /// The account's shares, newest first; those that have ended among them.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn list(&self) -> Result<Vec<Share>> {
        let call = Call::new(Method::Get, "/v1/shares");
        self.client
            .fetch(call.named("list the shares", Family::Api))
            .await
    }

    /// A share.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn get(&self, share_id: &str) -> Result<Share> {
        let call = Call::new(Method::Get, path(share_id)?);
        self.client.fetch(call.named(SHOWING, Family::Api)).await
    }

    /// Lets everybody pass, or the owner alone.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn set_public(&self, share_id: &str, is_public: bool) -> Result<Share> {
        let change = UpdateShare {
            is_public: Some(is_public),
            revoke: None,
        };
        self.update(share_id, &change).await
    }

    /// Ends a share for good: its URL stops serving.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn revoke(&self, share_id: &str) -> Result<Share> {
        let change = UpdateShare {
            is_public: None,
            revoke: Some(true),
        };
        self.update(share_id, &change).await
    }

    async fn update(&self, share_id: &str, change: &UpdateShare) -> Result<Share> {
        let call = Call::new(Method::Patch, path(share_id)?).json(change)?;
        self.client.fetch(call.named(CHANGING, Family::Api)).await
    }
}

fn path(share_id: &str) -> Result<String, Error> {
    Ok(format!("/v1/shares/{}", path_segment(share_id)?))
}
