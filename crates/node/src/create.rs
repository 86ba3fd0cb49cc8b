//! Creating VMs: from the pool where one of it fits, else made for the request.

use crate::blocking::internal;
use crate::book::Book;
use crate::fault;
use crate::machine::{Assembled, Blueprint, MachineError, chain, file, lock};
use crate::node::{Inner, host_memory};
use crate::record::{Active, Phase};
use crate::vm::{Vm, micros_of};
use instavm_agent_api::{Rejoin, Request};
use instavm_node_api::{NodeError, VmId, VmInfo, VmSpec};
use instavm_runtime::disk::DiskError;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

/// The share of the host's memory that must be left for a further VM.
const MEMORY_RESERVE: u64 = 20;

/// A VM or a build that has its place on the node and is not there yet.
#[derive(Debug)]
pub(crate) struct Coming {
    node: Arc<Inner>,
    name: String,
}

impl Drop for Coming {
    fn drop(&mut self) {
        lock(&self.node.coming).remove(&self.name);
    }
}

/// Why a machine did not become the VM that was asked for.
pub(crate) enum Misfit {
    /// Something is wrong with the machine: another one may do.
    Machine(MachineError),
    /// Something is wrong with what was asked for: it would be with any machine.
    Request(NodeError),
}

impl<E: Into<MachineError>> From<E> for Misfit {
    fn from(error: E) -> Self {
        Misfit::Machine(error.into())
    }
}

/// The node's error for a machine that could not be made.
pub(crate) fn making(source: MachineError) -> NodeError {
    match source {
        MachineError::NoIndex | MachineError::Disk(DiskError::Full { .. }) => {
            let reason = source.to_string();
            NodeError::AtCapacity { reason }
        }
        source => internal("making a VM", source),
    }
}

impl Inner {
    pub(crate) async fn create(self: Arc<Self>, spec: VmSpec) -> Result<VmInfo, NodeError> {
        let Some(_coming) = self.admit(&spec.id.0)? else {
            return Ok(self.vm(&spec.id)?.info(self.isolation()));
        };
        let source = match &spec.snapshot {
            Some(id) => self.snapshot_path(id)?,
            None => self.workshop.image.clone(),
        };
        let _urgent = self.pool.urgent();
        if self.fits_pool(&spec)
            && let Some(vm) = self.create_from_pool(&spec).await?
        {
            return Ok(vm.info(self.isolation()));
        }
        let vm = self.create_cold(&spec, source).await?;
        if spec.snapshot.is_none() {
            return Ok(vm.info(self.isolation()));
        }
        self.warm_behind(&vm);
        Ok(vm.info(self.isolation()))
    }

    /// A smaller VM is made for itself: the sizes of its memory file systems cannot shrink.
    fn fits_pool(&self, spec: &VmSpec) -> bool {
        spec.snapshot.is_none() && spec.memory_mb >= self.workshop.config.memory_mb
    }

    async fn create_from_pool(
        self: &Arc<Self>,
        spec: &VmSpec,
    ) -> Result<Option<Arc<Vm>>, NodeError> {
        while let Some(machine) = self.take() {
            match self.hand_out(spec, machine).await {
                Ok(vm) => return Ok(Some(vm)),
                Err(Misfit::Request(error)) => return Err(error),
                Err(Misfit::Machine(error)) => {
                    tracing::warn!(error = %chain(&error), "a pool VM could not be handed out");
                }
            }
        }
        Ok(None)
    }

    async fn create_cold(
        self: &Arc<Self>,
        spec: &VmSpec,
        source: PathBuf,
    ) -> Result<Arc<Vm>, NodeError> {
        let blueprint = Blueprint {
            source,
            limits: self.workshop.limits(spec.memory_mb, spec.vcpu_count),
            disk_bytes: spec.disk_bytes,
            phase: Phase::Assembling,
            // While others are being made, their first answers matter more.
            warm: !self.pool.others_urgent(),
        };
        let place = self.creates.acquire().await;
        let machine = match self.workshop.assemble(&blueprint).await {
            Ok(machine) => machine,
            // It may have been deleted while this waited.
            Err(_) if spec.snapshot.is_some() && !blueprint.source.exists() => {
                return Err(NodeError::NoSuchSnapshot);
            }
            Err(error) => return Err(making(error)),
        };
        drop(place);
        match self.hand_out(spec, machine).await {
            Ok(vm) => Ok(vm),
            Err(Misfit::Request(error)) => Err(error),
            Err(Misfit::Machine(error)) => Err(making(error)),
        }
    }

    /// Gives a VM or a build its place; `None` when the VM is there already.
    ///
    /// # Errors
    /// [`NodeError::AtCapacity`]; [`NodeError::Busy`] while another call makes the same.
    pub(crate) fn admit(self: &Arc<Self>, name: &str) -> Result<Option<Coming>, NodeError> {
        let limit = self.workshop.config.vms_limit;
        let mut coming = lock(&self.coming);
        if self.vm(&VmId(name.to_owned())).is_ok() {
            return Ok(None);
        }
        if coming.contains(name) {
            let reason = format!("{name} is being made; ask again when that is done");
            return Err(NodeError::Busy { reason });
        }
        if self.vms().len() + coming.len() >= limit {
            let reason =
                format!("the node runs {limit} VMs, its limit; end some, or try again later");
            return Err(NodeError::AtCapacity { reason });
        }
        if let Some((free, total)) = host_memory()
            && free < total / MEMORY_RESERVE
        {
            let reason = "the node's memory is used up; end some VMs, or try again later";
            return Err(NodeError::AtCapacity {
                reason: reason.to_owned(),
            });
        }
        coming.insert(name.to_owned());
        drop(coming);
        Ok(Some(Coming {
            node: self.clone(),
            name: name.to_owned(),
        }))
    }

    fn take(self: &Arc<Self>) -> Option<Assembled> {
        let (machine, dead) = self.pool.take();
        for machine in dead {
            self.discard(machine);
        }
        machine
    }

    /// Turns a machine into the VM that was asked for. On failure nothing of the machine is left.
    async fn hand_out(
        self: &Arc<Self>,
        spec: &VmSpec,
        mut machine: Assembled,
    ) -> Result<Arc<Vm>, Misfit> {
        match self.shape(spec, &mut machine).await {
            Ok(active) => Ok(self.employ(active, machine)),
            Err(error) => {
                let record = machine.record.clone();
                drop(machine);
                if let Err(undo) = self
                    .workshop
                    .dismantle(&record.machine, Some(record.index))
                    .await
                {
                    // The record stays: the next start tries again, and `check` tells.
                    tracing::error!(machine = record.machine, error = %chain(&undo), "cannot undo a machine");
                }
                self.holds.release_all(&spec.id);
                Err(error)
            }
        }
    }

    async fn shape(&self, spec: &VmSpec, machine: &mut Assembled) -> Result<Active, Misfit> {
        let workshop = &self.workshop;
        let config = &workshop.config;
        if matches!(machine.record.phase, Phase::Pooled) {
            // From here on it is no longer one for anybody: a restart undoes it.
            machine.record.phase = Phase::Assembling;
            workshop.save(&machine.record)?;
            if (spec.memory_mb, spec.vcpu_count) != (config.memory_mb, config.vcpu_count) {
                let limits = workshop.limits(spec.memory_mb, spec.vcpu_count);
                machine.cgroup.limit(&limits)?;
            }
            if spec.disk_bytes != config.disk_bytes {
                let disk = &machine.record.machine;
                workshop.disks.limit(disk, spec.disk_bytes)?;
            }
        }
        // Before the working directory is made: it may be in one of them.
        for mount in &spec.mounts {
            self.mount_in(&spec.id, &machine.process.mounts(), mount)
                .await
                .map_err(Misfit::Request)?;
        }
        let rejoin = Rejoin {
            hostname: spec.id.0.replace('_', "-"),
            entropy: rand::random::<[u8; 32]>().to_vec(),
            env: spec.env.clone(),
            workdir: spec.workdir.clone(),
            ..Rejoin::default()
        };
        workshop
            .call(&machine.door, &Request::Rejoin(rejoin))
            .await?;
        fault::at("hand out").map_err(file("hand out", &workshop.config.data_dir))?;
        if let Some(policy) = &spec.egress {
            let index = machine.record.index;
            let set = workshop.set_egress(index, policy).await;
            set.map_err(Misfit::Request)?;
        }
        let now = SystemTime::now();
        let expires = now + Duration::from_secs(spec.lifetime_seconds.into());
        let active = Active {
            spec: spec.clone(),
            started_micros: micros_of(now),
            expires_micros: micros_of(expires),
            baseline: self.measure(&machine.cgroup, machine.record.index).await?,
        };
        machine.record.phase = Phase::Active(active.clone());
        workshop.save(&machine.record)?;
        Ok(active)
    }

    /// Gives a machine to its user: from here on its task owns it.
    pub(crate) fn employ(self: &Arc<Self>, active: Active, machine: Assembled) -> Arc<Vm> {
        let network = self.workshop.network_of(machine.record.index);
        let folder = self.workshop.folder(&machine.record.machine);
        let book = Arc::new(Book::new(folder, machine.record.clone(), active.clone()));
        let (vm, task) = Vm::new(active, book, machine, Some(&network));
        let vm = Arc::new(vm);
        let mut vms = self.vms.write().unwrap_or_else(PoisonError::into_inner);
        vms.insert(vm.id.clone(), vm.clone());
        drop(vms);
        let (undertaker, stop) = (self.clone(), self.stop.clone());
        self.tracker.spawn(async move {
            tokio::select! {
                () = task.run(undertaker) => {}
                () = stop.cancelled() => {}
            }
        });
        vm
    }

    /// Loads the interpreter of a VM that was handed out without one, so that its first execution finds it ready. While
    /// others are being made, their first answers matter more.
    fn warm_behind(self: &Arc<Self>, vm: &Arc<Vm>) {
        if self.pool.others_urgent() {
            return;
        }
        let (node, vm) = (self.clone(), vm.clone());
        self.tracker.spawn(async move {
            let warm = node.workshop.call(&vm.door, &Request::WarmInterpreter);
            tokio::select! {
                // An image without Python has nothing to warm.
                _ = warm => {}
                () = vm.over.cancelled() => {}
                () = node.stop.cancelled() => {}
            }
        });
    }
}
