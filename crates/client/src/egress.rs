//! What VMs may reach.

use crate::call::{Call, Method, path_segment};
use crate::client::Client;
use crate::error::{Family, Result};
use instavm_api::egress::{Egress, EgressSet, Refusal, Refusals, SetEgress};
use instavm_api::vm::EgressPolicy;

const SETTING: &str = "set the egress policy";
const SHOWING: &str = "get the egress policy";
const REFUSED: &str = "get what was refused to the VM";

/// All five keys are sent always, so that what is left out is as in [`EgressPolicy`]: allowed, and empty.
fn body(policy: &EgressPolicy) -> SetEgress {
    SetEgress {
        allow_public_repos: Some(policy.allow_public_repos.unwrap_or(true)),
        allow_package_managers: None,
        allow_http: Some(policy.allow_http.unwrap_or(true)),
        allow_https: Some(policy.allow_https.unwrap_or(true)),
        allowed_domains: Some(policy.allowed_domains.clone().unwrap_or_default()),
        allowed_cidrs: Some(policy.allowed_cidrs.clone().unwrap_or_default()),
    }
}

impl Client {
    /// Replaces what the session's VM may reach. It is in force when this returns.
    ///
    /// # Errors
    /// When the platform refuses, or there is no session.
    pub async fn set_session_egress(&self, policy: &EgressPolicy) -> Result<EgressSet> {
        let session = self.current(SETTING)?;
        let path = format!("/v1/egress/session/{}", path_segment(&session)?);
        self.set_egress(path, policy).await
    }

    /// What the session's VM may reach.
    ///
    /// # Errors
    /// When the platform refuses, or there is no session.
    pub async fn session_egress(&self) -> Result<Egress> {
        let session = self.current(SHOWING)?;
        let path = format!("/v1/egress/session/{}", path_segment(&session)?);
        self.egress(path).await
    }

    /// Replaces what a VM may reach. It is in force when this returns.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn set_vm_egress(&self, vm_id: &str, policy: &EgressPolicy) -> Result<EgressSet> {
        let path = format!("/v1/egress/vm/{}", path_segment(vm_id)?);
        self.set_egress(path, policy).await
    }

    /// What a VM may reach.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn vm_egress(&self, vm_id: &str) -> Result<Egress> {
        let path = format!("/v1/egress/vm/{}", path_segment(vm_id)?);
        self.egress(path).await
    }

    /// What was refused to a VM lately, the newest first.
    ///
    /// # Errors
    /// When the platform refuses.
    pub async fn vm_refusals(&self, vm_id: &str) -> Result<Vec<Refusal>> {
        let path = format!("/v1/egress/vm/{}/refusals", path_segment(vm_id)?);
        let call = Call::new(Method::Get, path).named(REFUSED, Family::Api);
        let refusals: Refusals = self.fetch(call).await?;
        Ok(refusals.refusals)
    }

    async fn set_egress(&self, path: String, policy: &EgressPolicy) -> Result<EgressSet> {
        let call = Call::new(Method::Post, path).json(&body(policy))?;
        self.fetch(call.named(SETTING, Family::Api)).await
    }

    async fn egress(&self, path: String) -> Result<Egress> {
        let call = Call::new(Method::Get, path);
        self.fetch(call.named(SHOWING, Family::Api)).await
    }
}
