//! Live changes of a VM's memory limit.

use crate::blocking::internal;
use crate::machine::chain;
use crate::node::Inner;
use crate::snapshot::book_error;
use instavm_node_api::{NodeError, VmId};
use instavm_runtime::cgroup::CgroupError;

const RESIZING: &str = "changing the memory of a VM";

impl Inner {
    /// Changes the memory limit of a VM that runs. What its memory file systems may take stays as it is.
    pub(crate) async fn resize(&self, id: &VmId, memory_mb: u32) -> Result<(), NodeError> {
        let vm = self.vm(id)?;
        let _change = vm.changing.lock().await;
        let (before, vcpus) = vm
            .book
            .look(|active| (active.spec.memory_mb, active.spec.vcpu_count));
        if before == memory_mb {
            return Ok(());
        }
        let (old, new) = (
            self.workshop.limits(before, vcpus),
            self.workshop.limits(memory_mb, vcpus),
        );
        let cgroup = vm.cgroup.clone();
        // The kernel takes back what it can before it refuses: that may take a while.
        let limited = tokio::task::spawn_blocking(move || cgroup.limit(&new)).await;
        let limited = limited.map_err(|panic| internal(RESIZING, panic))?;
        if let Err(error) = limited {
            self.limit_again(&vm, &old);
            return Err(if vm.over.is_cancelled() {
                NodeError::VmEnded
            } else if is_busy(&error) {
                too_small(&vm, memory_mb)
            } else {
                internal(RESIZING, error)
            });
        }
        let written = vm.book.change(|active| active.spec.memory_mb = memory_mb);
        written.map_err(|error| {
            self.limit_again(&vm, &old);
            book_error(RESIZING, error)
        })
    }

    /// Undoes a change of limits that did not come to its end.
    fn limit_again(&self, vm: &crate::vm::Vm, limits: &instavm_runtime::cgroup::Limits) {
        if let Err(error) = vm.cgroup.limit(limits) {
            tracing::warn!(vm = %vm.id, error = %chain(&error), "a VM's limits cannot be put back");
        }
    }
}

fn is_busy(error: &CgroupError) -> bool {
    matches!(error, CgroupError::File { source, .. }
        if source.kind() == std::io::ErrorKind::ResourceBusy)
}

fn too_small(vm: &crate::vm::Vm, memory_mb: u32) -> NodeError {
    let used = vm.cgroup.accounting().map_or(0, |now| now.memory_bytes);
    let reason = format!(
        "the VM uses {} MiB now, more than the {memory_mb} MiB asked for; free memory in it first",
        used.div_ceil(1 << 20)
    );
    NodeError::Busy { reason }
}
