//! What VMs may reach.

use super::Client;
use crate::{Egress, EgressPolicy, EgressSet, Refusal, Result};

impl Client {
    /// Replaces what the session's VM may reach. It is in force when this returns.
    ///
    /// # Errors
    /// When the platform refuses, or there is no session.
    pub fn set_session_egress(&self, policy: &EgressPolicy) -> Result<EgressSet> {
        let policy = policy.clone();
        self.run(|client| async move { client.set_session_egress(&policy).await })
    }

    /// What the session's VM may reach.
    ///
    /// # Errors
    /// When the platform refuses, or there is no session.
    pub fn session_egress(&self) -> Result<Egress> {
        self.run(|client| async move { client.session_egress().await })
    }

    /// Replaces what a VM may reach. It is in force when this returns.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn set_vm_egress(&self, vm_id: &str, policy: &EgressPolicy) -> Result<EgressSet> {
        let (vm_id, policy) = (vm_id.to_owned(), policy.clone());
        self.run(|client| async move { client.set_vm_egress(&vm_id, &policy).await })
    }

    /// What a VM may reach.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn vm_egress(&self, vm_id: &str) -> Result<Egress> {
        let vm_id = vm_id.to_owned();
        self.run(|client| async move { client.vm_egress(&vm_id).await })
    }

    /// What was refused to a VM lately, the newest first.
    ///
    /// # Errors
    /// When the platform refuses.
    pub fn vm_refusals(&self, vm_id: &str) -> Result<Vec<Refusal>> {
        let vm_id = vm_id.to_owned();
        self.run(|client| async move { client.vm_refusals(&vm_id).await })
    }
}
