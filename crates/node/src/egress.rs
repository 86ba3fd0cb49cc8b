//! What VMs may reach: the policy stands in the VM's record, and is in force in the network.

use crate::book::BookError;
use crate::machine::{MachineError, Workshop, chain};
use crate::node::LocalNode;
use crate::record::{Phase, Record};
use async_trait::async_trait;
use instavm_network::{Policy, PolicyList};
use instavm_node_api::{BadEntry, Egress, EgressPolicy, NodeError, VmId};
use std::path::Path;

const SETTING: &str = "changing what the VM may reach";

/// The network's form of a policy.
pub(crate) fn read(policy: &EgressPolicy) -> Result<Policy, BadEntry> {
    let read = Policy::new(
        policy.allow_public_repos,
        policy.allow_http,
        policy.allow_https,
        &policy.allowed_domains,
        &policy.allowed_cidrs,
    );
    read.map_err(|error| BadEntry {
        list: match error.list {
            PolicyList::Domains => "allowed_domains",
            PolicyList::Ranges => "allowed_cidrs",
        },
        place: error.place,
        reason: error.reason,
    })
}

/// A policy that lets nothing pass.
fn closed() -> EgressPolicy {
    EgressPolicy {
        allow_public_repos: false,
        allow_http: false,
        allow_https: false,
        ..EgressPolicy::default()
    }
}

/// The policies of the machines of a data directory, by their places, for a network that takes them over. What is to be
/// undone or ended may have processes until then: it reaches nothing.
pub(crate) fn recorded(data_dir: &Path) -> Vec<(u16, Policy)> {
    let mut policies = Vec::new();
    for name in Workshop::folders(data_dir) {
        let folder = Workshop::folder_of_all(data_dir).join(&name);
        let Some(record) = Record::read(&folder) else {
            continue;
        };
        let policy = match record.phase {
            Phase::Pooled => continue,
            Phase::Active(active) => match active.spec.egress {
                None => continue,
                Some(policy) => policy,
            },
            _ => closed(),
        };
        match read(&policy).or_else(|_| read(&closed())) {
            Ok(policy) => policies.push((record.index, policy)),
            Err(error) => tracing::error!(machine = name, %error, "no policy can be made"),
        }
    }
    policies
}

impl Workshop {
    /// Puts a policy in force for a machine.
    pub(crate) async fn set_egress(
        &self,
        index: u16,
        policy: &EgressPolicy,
    ) -> Result<(), NodeError> {
        let internal = |source| NodeError::Internal {
            operation: SETTING,
            source,
        };
        let policy = read(policy).map_err(|error| internal(error.into()))?;
        let set = self.network.set_policy(index, policy).await;
        set.map_err(|error| internal(MachineError::from(error).into()))
    }
}

#[async_trait]
impl Egress for LocalNode {
    fn check_egress(&self, policy: &EgressPolicy) -> Result<(), BadEntry> {
        read(policy).map(|_| ())
    }

    async fn set_egress(&self, vm: &VmId, policy: EgressPolicy) -> Result<(), NodeError> {
        let (node, vm) = (self.inner.clone(), self.inner.vm(vm)?);
        // A task of its own: record and network are changed both, whatever becomes of the caller.
        let task = async move {
            let _change = vm.changing.lock().await;
            let old = vm.book.look(|active| active.spec.egress.clone());
            let write =
                |policy: Option<EgressPolicy>| vm.book.change(|active| active.spec.egress = policy);
            write(Some(policy.clone())).map_err(|error| match error {
                BookError::Closed => NodeError::VmEnded,
                BookError::File(source) => NodeError::Internal {
                    operation: SETTING,
                    source: source.into(),
                },
            })?;
            let set = node.workshop.set_egress(vm.index, &policy).await;
            if let Err(error) = &set {
                tracing::error!(vm = %vm.id, error = %chain(error), "a policy is not in force");
                if let Err(error) = write(old) {
                    tracing::error!(vm = %vm.id, error = %chain(&error), "nor is its record as it was");
                }
            }
            set
        };
        let done = self.inner.tracker.spawn(task).await;
        done.unwrap_or_else(|panic| {
            Err(NodeError::Internal {
                operation: SETTING,
                source: panic.into(),
            })
        })
    }

    async fn egress(&self, vm: &VmId) -> Result<EgressPolicy, NodeError> {
        let vm = self.inner.vm(vm)?;
        Ok(vm
            .book
            .look(|active| active.spec.egress.clone())
            .unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_undone_reaches_nothing() {
        let data_dir = tempfile::tempdir().unwrap();
        for (index, phase) in [Phase::Pooled, Phase::Ending, Phase::Assembling]
            .into_iter()
            .enumerate()
        {
            let record = Record {
                machine: format!("m{index}"),
                index: u16::try_from(index).unwrap(),
                token: String::new(),
                phase,
                process: None,
            };
            let folder = Workshop::folder_of_all(data_dir.path()).join(&record.machine);
            std::fs::create_dir_all(&folder).unwrap();
            record.write(&folder).unwrap();
        }
        let mut policies = recorded(data_dir.path());
        policies.sort_by_key(|(index, _)| *index);
        let closed = read(&closed()).unwrap();
        assert_eq!(policies, [(1, closed.clone()), (2, closed)]);
    }

    #[test]
    fn a_bad_entry_is_named_as_the_policy_calls_it() {
        let policy = EgressPolicy {
            allowed_cidrs: vec!["10.0.0.0/8".to_owned(), "10.0.0.0/99".to_owned()],
            ..EgressPolicy::default()
        };
        let error = read(&policy).unwrap_err();
        assert_eq!((error.list, error.place), ("allowed_cidrs", Some(1)));
    }
}
