//! What VMs may reach: the policy stands in the VM's record, and is in force in the network.

use crate::book::BookError;
use crate::machine::{MachineError, Workshop, chain};
use crate::node::{Inner, LocalNode};
use crate::record::{Phase, Record};
use crate::vm::micros_of;
use async_trait::async_trait;
use instavm_network::{Policy, PolicyList, Refused};
use instavm_node_api::{BadEntry, Egress, EgressPolicy, NodeError, Refusal, VmId};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};

const SETTING: &str = "changing what the VM may reach";
/// Between two looks at whether the firewall is as it should be.
const LOOK_AT_FIREWALL: Duration = Duration::from_secs(60);

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

/// The policies of the machines that are neither being made nor ended.
pub(crate) fn settled(data_dir: &Path) -> Vec<(u16, Policy)> {
    let folders = Workshop::folders(data_dir).into_iter();
    let records =
        folders.filter_map(|name| Record::read(&Workshop::folder_of_all(data_dir).join(name)));
    let settled = records.filter_map(|record| {
        let policy = match record.phase {
            Phase::Pooled => EgressPolicy::default(),
            Phase::Active(active) => active.spec.egress.unwrap_or_default(),
            _ => return None,
        };
        Some((record.index, read(&policy).ok()?))
    });
    settled.collect()
}

impl Inner {
    /// Hands on what the network refuses, with the VMs' names. What is refused to machines that no user has is nobody's.
    pub(crate) async fn hand_on_refusals(self: Arc<Self>) {
        let mut told = self.workshop.network.told();
        loop {
            let refused = match told.recv().await {
                Ok(refused) => refused,
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "refusals went unrecorded");
                    continue;
                }
                Err(RecvError::Closed) => return,
            };
            let vms = self.vms();
            if let Some(vm) = vms.iter().find(|vm| vm.index == refused.vm) {
                // Nobody may be listening.
                let _ = self.refusals.send(refusal(vm.id.clone(), refused));
            }
        }
    }

    /// Puts the firewall right when somebody has changed it.
    pub(crate) async fn keep_firewall(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_AT_FIREWALL).await;
            match self.workshop.network.repair().await {
                Ok(wrong) if wrong.is_empty() => {}
                Ok(wrong) => tracing::error!(
                    ?wrong,
                    "the firewall was changed by somebody and is loaded anew"
                ),
                Err(error) => {
                    tracing::error!(error = %chain(&error), "the firewall cannot be looked at")
                }
            }
        }
    }
}

fn refusal(vm: VmId, refused: Refused) -> Refusal {
    Refusal {
        vm,
        at_micros: micros_of(refused.at),
        rule: refused.rule.as_str().to_owned(),
        reason: refused.rule.explained().to_owned(),
        protocol: refused.protocol.to_owned(),
        name: refused.name,
        address: refused.to.map(|to| (*to.ip()).into()),
        port: refused.to.map(|to| to.port()).filter(|port| *port > 0),
        unrecorded: refused.untold,
    }
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

    fn refusals(&self) -> broadcast::Receiver<Refusal> {
        self.inner.refusals.subscribe()
    }

    async fn refusal_counts(&self) -> Vec<(String, u64)> {
        match self.inner.workshop.network.refusal_counts().await {
            Ok(counts) => counts
                .into_iter()
                .map(|(rule, count)| (rule.as_str().to_owned(), count))
                .collect(),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "refusals cannot be counted");
                Vec::new()
            }
        }
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
