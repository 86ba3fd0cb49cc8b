//! Policies of the simulated node: kept, and enforced on nobody.

use crate::node::{SimulatedNode, lock};
use async_trait::async_trait;
use instavm_node_api::{BadEntry, Egress, EgressPolicy, NodeError, VmId};

#[async_trait]
impl Egress for SimulatedNode {
    fn check_egress(&self, policy: &EgressPolicy) -> Result<(), BadEntry> {
        let lists = [
            ("allowed_domains", &policy.allowed_domains, '.'),
            ("allowed_cidrs", &policy.allowed_cidrs, '/'),
        ];
        for (list, entries, sign) in lists {
            if let Some(place) = entries.iter().position(|entry| !entry.contains(sign)) {
                return Err(BadEntry {
                    list,
                    place: Some(place),
                    reason: format!("{:?} is no entry", entries[place]),
                });
            }
        }
        Ok(())
    }

    async fn set_egress(&self, vm: &VmId, policy: EgressPolicy) -> Result<(), NodeError> {
        self.hooks.pass("set_egress", &self.gates).await?;
        *lock(&self.find(vm)?.egress) = policy;
        Ok(())
    }

    async fn egress(&self, vm: &VmId) -> Result<EgressPolicy, NodeError> {
        Ok(lock(&self.find(vm)?.egress).clone())
    }
}
