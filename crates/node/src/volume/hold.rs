//! Who has which volume mounted: asked before anything is mounted or deleted, so that two calls at once agree.

use crate::machine::lock;
use instavm_node_api::{CheckpointId, Mount, NodeError, VmId, VolumeId};
use std::sync::Mutex;

/// The mounts of all VMs, and the volumes that are being deleted.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<(VmId, Mount)>,
    deleting: Vec<(VolumeId, Option<CheckpointId>)>,
}

/// A volume or checkpoint that is being deleted: nobody mounts it until this is dropped.
#[derive(Debug)]
pub(crate) struct Deleting<'a> {
    holds: &'a Holds,
    volume: VolumeId,
    checkpoint: Option<CheckpointId>,
}

impl Drop for Deleting<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.holds.state);
        let ours = (self.volume.clone(), self.checkpoint.clone());
        if let Some(at) = state.deleting.iter().position(|other| *other == ours) {
            state.deleting.swap_remove(at);
        }
    }
}

impl Holds {
    /// Notes that a VM is about to mount something.
    ///
    /// # Errors
    /// [`NodeError::Busy`] with who is in the way.
    pub(crate) fn take(&self, vm: &VmId, mount: &Mount) -> Result<(), NodeError> {
        let mut state = lock(&self.state);
        let busy = |reason: String| Err(NodeError::Busy { reason });
        if state.deleting.iter().any(|(volume, checkpoint)| {
            *volume == mount.volume && (checkpoint.is_none() || *checkpoint == mount.checkpoint)
        }) {
            return busy(format!("the volume {} is being deleted", mount.volume));
        }
        if state
            .held
            .iter()
            .any(|(other, held)| other == vm && held.path == mount.path)
        {
            return busy(format!("{} has a volume mounted already", mount.path));
        }
        let writer = state
            .held
            .iter()
            .find(|(_, held)| writes(held) && held.volume == mount.volume);
        if writes(mount)
            && let Some((other, held)) = writer
        {
            return busy(format!(
                "the volume {} is mounted for writing at {} of {other}; unmount it there first, or mount it read-only",
                mount.volume, held.path
            ));
        }
        state.held.push((vm.clone(), mount.clone()));
        Ok(())
    }

    /// Notes a mount that an earlier daemon has made.
    pub(crate) fn adopt(&self, vm: &VmId, mount: &Mount) {
        lock(&self.state).held.push((vm.clone(), mount.clone()));
    }

    /// Notes that a VM has nothing mounted there any more.
    pub(crate) fn release(&self, vm: &VmId, path: &str) {
        lock(&self.state)
            .held
            .retain(|(other, held)| other != vm || held.path != path);
    }

    /// Notes that a VM has nothing mounted any more.
    pub(crate) fn release_all(&self, vm: &VmId) {
        lock(&self.state).held.retain(|(other, _)| other != vm);
    }

    /// Nobody mounts the volume (or this checkpoint of it) until the answer is dropped.
    ///
    /// # Errors
    /// [`NodeError::Busy`] with the VMs that hold it.
    pub(crate) fn delete(
        &self,
        volume: &VolumeId,
        checkpoint: Option<&CheckpointId>,
    ) -> Result<Deleting<'_>, NodeError> {
        let mut state = lock(&self.state);
        let holds = |held: &Mount| {
            held.volume == *volume
                && (checkpoint.is_none() || held.checkpoint.as_ref() == checkpoint)
        };
        let mut holders: Vec<&str> = state
            .held
            .iter()
            .filter(|(_, held)| holds(held))
            .map(|(vm, _)| vm.0.as_str())
            .collect();
        holders.sort_unstable();
        holders.dedup();
        if !holders.is_empty() {
            let what = checkpoint
                .map_or_else(|| format!("volume {volume}"), |c| format!("checkpoint {c}"));
            let reason = format!("the {what} is mounted in {}", holders.join(", "));
            return Err(NodeError::Busy { reason });
        }
        state.deleting.push((volume.clone(), checkpoint.cloned()));
        Ok(Deleting {
            holds: self,
            volume: volume.clone(),
            checkpoint: checkpoint.cloned(),
        })
    }
}

fn writes(mount: &Mount) -> bool {
    !mount.read_only && mount.checkpoint.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &str, checkpoint: Option<&str>, read_only: bool) -> Mount {
        Mount {
            volume: VolumeId("vol_a".to_owned()),
            checkpoint: checkpoint.map(|id| CheckpointId(id.to_owned())),
            path: path.to_owned(),
            read_only,
        }
    }

    fn vm(id: &str) -> VmId {
        VmId(id.to_owned())
    }

    fn reason<T: std::fmt::Debug>(result: Result<T, NodeError>) -> String {
        match result {
            Err(NodeError::Busy { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_writes_and_many_read() {
        let holds = Holds::default();
        holds
            .take(&vm("vm_a"), &mount("/data", None, false))
            .unwrap();
        let second = reason(holds.take(&vm("vm_b"), &mount("/data", None, false)));
        assert!(second.contains("/data of vm_a"), "{second}");
        reason(holds.take(&vm("vm_a"), &mount("/more", None, false)));
        holds
            .take(&vm("vm_b"), &mount("/data", None, true))
            .unwrap();
        holds
            .take(&vm("vm_c"), &mount("/data", Some("ckpt_a"), false))
            .unwrap();
        reason(holds.take(&vm("vm_b"), &mount("/data", Some("ckpt_a"), true)));
        holds.release(&vm("vm_a"), "/data");
        holds
            .take(&vm("vm_b"), &mount("/write", None, false))
            .unwrap();
    }

    #[test]
    fn nothing_that_is_held_is_deleted_and_nothing_that_is_deleted_is_mounted() {
        let holds = Holds::default();
        let volume = VolumeId("vol_a".to_owned());
        let (kept, other) = (
            CheckpointId("ckpt_a".to_owned()),
            CheckpointId("ckpt_b".to_owned()),
        );
        holds
            .take(&vm("vm_b"), &mount("/a", Some("ckpt_a"), true))
            .unwrap();
        holds
            .take(&vm("vm_a"), &mount("/a", Some("ckpt_a"), true))
            .unwrap();
        let why = reason(holds.delete(&volume, None));
        assert!(why.ends_with("mounted in vm_a, vm_b"), "{why}");
        reason(holds.delete(&volume, Some(&kept)));
        let deleting = holds.delete(&volume, Some(&other)).unwrap();
        reason(holds.take(&vm("vm_c"), &mount("/b", Some("ckpt_b"), true)));
        holds.take(&vm("vm_c"), &mount("/b", None, true)).unwrap();
        drop(deleting);
        holds
            .take(&vm("vm_c"), &mount("/c", Some("ckpt_b"), true))
            .unwrap();
        for id in ["vm_a", "vm_b", "vm_c"] {
            holds.release_all(&vm(id));
        }
        let deleting = holds.delete(&volume, None).unwrap();
        reason(holds.take(&vm("vm_c"), &mount("/c", Some("ckpt_b"), true)));
        drop(deleting);
    }
}
