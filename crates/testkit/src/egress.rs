//! Policies of the simulated node: kept, and enforced on nobody.

use crate::node::{SimulatedNode, lock};
use async_trait::async_trait;
use instavm_node_api::{BadEntry, Egress, EgressPolicy, NodeError, Refusal, VmId};
use tokio::sync::broadcast;

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

    fn refusals(&self) -> broadcast::Receiver<Refusal> {
        self.refusals.subscribe()
    }

    async fn refusal_counts(&self) -> Vec<(String, u64)> {
        lock(&self.refused)
            .iter()
            .map(|(rule, count)| (rule.clone(), *count))
            .collect()
    }
}

impl SimulatedNode {
    /// Refuses something, as if a VM had wanted it.
    pub fn refuse(&self, refusal: Refusal) {
        *lock(&self.refused).entry(refusal.rule.clone()).or_default() += 1;
        // Nobody may be listening.
        let _ = self.refusals.send(refusal);
    }
}
