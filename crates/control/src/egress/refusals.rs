//! The latest refusals of each VM, in memory: what was refused is told by the node and kept here for its owner to see.

use crate::Platform;
use instavm_node_api::{Refusal, VmId};
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use tokio::sync::broadcast::{self, error::RecvError};

/// Of one VM.
const EACH: usize = 100;
/// VMs, of which those whose last refusal is the oldest are forgotten first.
const VMS: usize = 2048;

/// The latest refusals of each VM.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    vms: Mutex<HashMap<VmId, VecDeque<Refusal>>>,
}

impl Refusals {
    /// The latest of a VM, the newest first.
    pub(crate) fn of(&self, vm: &VmId) -> Vec<Refusal> {
        let vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        vms.get(vm).into_iter().flatten().rev().cloned().collect()
    }

    fn keep(&self, refusal: Refusal) {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        if vms.len() >= VMS && !vms.contains_key(&refusal.vm) {
            let last = |kept: &VecDeque<Refusal>| kept.back().map(|refusal| refusal.at_micros);
            let oldest = vms.iter().min_by_key(|(_, kept)| last(kept));
            if let Some(vm) = oldest.map(|(vm, _)| vm.clone()) {
                vms.remove(&vm);
            }
        }
        let kept = vms.entry(refusal.vm.clone()).or_default();
        if kept.len() >= EACH {
            kept.pop_front();
        }
        kept.push_back(refusal);
    }
}

/// Keeps what the node tells, for as long as it does.
pub(crate) async fn follow(platform: Platform, mut told: broadcast::Receiver<Refusal>) {
    loop {
        match told.recv().await {
            Ok(refusal) => platform.refusals.keep(refusal),
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "refusals went unrecorded");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(vm: usize, at: i64) -> Refusal {
        Refusal {
            vm: VmId(format!("vm-{vm}")),
            at_micros: at,
            rule: "name".to_owned(),
            reason: String::new(),
            protocol: "dns".to_owned(),
            name: None,
            address: None,
            port: None,
            unrecorded: 0,
        }
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let refusals = Refusals::default();
        for at in 0..3 * EACH {
            refusals.keep(refusal(0, i64::try_from(at).unwrap()));
        }
        let kept = refusals.of(&VmId("vm-0".to_owned()));
        assert_eq!(kept.len(), EACH);
        assert!(kept.is_sorted_by_key(|refusal| std::cmp::Reverse(refusal.at_micros)));
        for vm in 1..=VMS {
            refusals.keep(refusal(vm, 1000 + i64::try_from(vm).unwrap()));
        }
        assert_eq!(refusals.vms.lock().unwrap().len(), VMS);
        assert!(refusals.of(&VmId("vm-0".to_owned())).is_empty());
    }
}
