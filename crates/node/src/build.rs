//! Snapshots from images of registries: pull, boot a machine from the image, run the steps in there, keep its disk.
//!
//! A build has a task of its own and a machine whose record says what it is: whatever becomes of the caller or of the
//! daemon, nothing of a build that did not come to its end remains.

mod log;
mod step;

use crate::blocking::{disk_error, internal};
use crate::create::{Coming, making};
use crate::machine::{Assembled, Blueprint, MachineError, chain};
use crate::node::Inner;
use crate::record::Phase;
use instavm_agent_api::{Event, Execute, Language, Rejoin, Request};
use instavm_node_api::{
    BuildProgress, ImageConfig, NodeError, SnapshotBuild, SnapshotBuilt, SnapshotId,
};
use instavm_runtime::agent::{AgentError, unexpected};
use instavm_runtime::disk::DiskError;
use instavm_runtime::driver::DriverError;
use instavm_runtime::image::oci::{OciError, OciImage, OciProgress, OciRunConfig};
use log::Log;
use std::collections::BTreeMap;
use std::sync::Arc;
use step::Step;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

const BUILDING: &str = "building a snapshot";

/// Runs a build; dropping the answer's future undoes it.
pub(crate) async fn run(
    node: Arc<Inner>,
    build: SnapshotBuild,
    progress: mpsc::Sender<BuildProgress>,
) -> Result<SnapshotBuilt, NodeError> {
    let Some(place) = node.admit(&build.id.0)? else {
        return Err(there_already(&build.id));
    };
    let wanted = CancellationToken::new();
    let _guard = wanted.clone().drop_guard();
    let tracker = node.tracker.clone();
    let work = Build {
        node,
        build,
        log: Log::new(progress),
        _place: place,
    };
    tracker
        .spawn(work.run(wanted))
        .await
        .unwrap_or_else(|panic| Err(internal(BUILDING, panic)))
}

fn there_already(id: &SnapshotId) -> NodeError {
    let reason = format!("the snapshot {id} is there already");
    NodeError::Busy { reason }
}

fn failed(step: &'static str, message: impl Into<String>) -> NodeError {
    let message = message.into();
    NodeError::Build { step, message }
}

/// What is known of a build whose machine is ready to be kept.
struct Ready {
    digest: String,
    config: ImageConfig,
}

struct Build {
    node: Arc<Inner>,
    build: SnapshotBuild,
    log: Log,
    _place: Coming,
}

impl Build {
    async fn run(mut self, wanted: CancellationToken) -> Result<SnapshotBuilt, NodeError> {
        let limit = self.node.workshop.config.build_timeout;
        let mut machine = None;
        let stop = self.node.stop.clone();
        let prepared = tokio::select! {
            prepared = tokio::time::timeout(limit, self.prepare(&mut machine)) => prepared.ok(),
            () = wanted.cancelled() => Some(Err(failed("cancel", "the build was given up"))),
            // The next start undoes it.
            () = stop.cancelled() => return Err(failed("cancel", "the node is going down")),
        };
        let late = format!("the build took longer than {} s", limit.as_secs());
        let prepared = prepared.unwrap_or_else(|| Err(failed(self.log.step(), late)));
        let built = match (prepared, &machine) {
            (Ok(ready), Some(machine)) => self.finish(machine, ready).await,
            (Ok(_), None) => Err(failed("boot", "the VM of the build has ended")),
            (Err(error), _) => Err(error),
        };
        if let Some(machine) = machine {
            self.dismantle(machine).await;
        }
        if built.is_ok()
            && wanted.is_cancelled()
            && let Err(error) = self.node.delete_snapshot(&self.build.id).await
        {
            tracing::error!(snapshot = %self.build.id, error = %chain(&error), "cannot delete a snapshot that nobody waits for");
        }
        built
    }

    /// Everything up to the point where the machine's disk is what is wanted. The machine is left in `machine` as soon as
    /// there is one: it is dismantled in any case.
    async fn prepare(&mut self, machine: &mut Option<Assembled>) -> Result<Ready, NodeError> {
        let id = &self.build.id;
        if self.node.snapshot_path(id).is_ok() {
            return Err(there_already(id));
        }
        let image = self.pull().await?;
        let config = image_config(image.config.clone(), &self.build.env);
        let title = format!("starting a VM from {}", image.digest);
        self.log.begin("boot", &title).await;
        let machine = machine.insert(self.boot(&image).await?);
        self.settle_in(machine, &config).await?;
        for step in step::steps(&self.build) {
            self.step(machine, step).await?;
        }
        self.log.begin("save", "saving the disk").await;
        Ok(Ready {
            digest: image.digest,
            config,
        })
    }

    /// Keeps the disk. From here on the build is no longer given up half-way.
    async fn finish(
        &mut self,
        machine: &Assembled,
        ready: Ready,
    ) -> Result<SnapshotBuilt, NodeError> {
        let size_bytes = self.save(machine, &self.build.id).await?;
        self.log.end().await;
        Ok(SnapshotBuilt {
            digest: ready.digest,
            config: ready.config,
            size_bytes,
        })
    }

    async fn pull(&mut self) -> Result<OciImage, NodeError> {
        let node = self.node.clone();
        let title = format!("pulling {}", self.build.oci_image);
        self.log.begin("pull", &title).await;
        // What the store tells comes from inside its work; what the listener does not take in time is not worth waiting
        // for.
        let (tell, mut told) = mpsc::unbounded_channel();
        let reference = self.build.oci_image.clone();
        let pulling = node
            .oci
            .ensure(&node.workshop.disks, &reference, move |progress| {
                // The receiver goes when this is over.
                let _ = tell.send(progress);
            });
        tokio::pin!(pulling);
        let mut step = "pull";
        let pulled = loop {
            tokio::select! {
                biased;
                Some(progress) = told.recv() => {
                    step = self.tell(step, &progress).await;
                }
                pulled = &mut pulling => break pulled,
            }
        };
        while let Ok(progress) = told.try_recv() {
            step = self.tell(step, &progress).await;
        }
        pulled.map_err(|error| pull_error(step, error))
    }

    async fn tell(&mut self, step: &'static str, progress: &OciProgress) -> &'static str {
        let line = progress.to_string();
        if matches!(progress, OciProgress::Unpacking { .. }) {
            self.log.begin("unpack", &line).await;
            return "unpack";
        }
        self.log.output(0, format!("{line}\n").as_bytes()).await;
        step
    }

    async fn boot(&self, image: &OciImage) -> Result<Assembled, NodeError> {
        let workshop = &self.node.workshop;
        let blueprint = Blueprint {
            source: image.root.clone(),
            limits: workshop.limits(self.build.memory_mb, self.build.vcpu_count),
            disk_bytes: self.build.disk_bytes,
            phase: Phase::Building,
            warm: false,
        };
        let (answer, made) = oneshot::channel();
        let node = self.node.clone();
        // A task of its own: a machine that is half-made when the build is given up is finished, and then removed.
        self.node.tracker.spawn(async move {
            let _place = node.creates.acquire().await;
            let made = node.workshop.assemble(&blueprint).await;
            if let Err(Ok(machine)) = answer.send(made) {
                node.discard(machine);
            }
        });
        let made = made.await.map_err(|gone| internal(BUILDING, gone))?;
        made.map_err(boot_error)
    }

    /// Gives the machine its environment, which every step sees.
    async fn settle_in(&self, machine: &Assembled, config: &ImageConfig) -> Result<(), NodeError> {
        let workdir = config.workdir.as_deref();
        let rejoin = Rejoin {
            hostname: "build".to_owned(),
            entropy: rand::random::<[u8; 32]>().to_vec(),
            env: config.env.clone(),
            workdir: Some(workdir.unwrap_or(instavm_agent_api::WORKDIR).to_owned()),
            ..Rejoin::default()
        };
        let settled = self
            .node
            .workshop
            .call(&machine.door, &Request::Rejoin(rejoin))
            .await;
        settled.map_err(boot_error)
    }

    async fn step(&mut self, machine: &Assembled, step: Step) -> Result<(), NodeError> {
        self.log.begin(step.name, &step.title).await;
        let request = Request::Execute(Execute {
            id: format!("b{:032x}", rand::random::<u128>()),
            language: Some(Language::Bash),
            code: step.script,
            env: BTreeMap::new(),
            detached: false,
        });
        let broken = |error: AgentError| failed(step.name, step_failure(&error));
        let mut conversation = machine.door.open(&request).await.map_err(broken)?;
        let pressure = machine.cgroup.memory_pressure();
        let exit_code = loop {
            let event = tokio::select! {
                event = conversation.events.next() => event,
                () = machine.process.ended() => {
                    return Err(failed(step.name, "the VM of the build has ended"));
                }
                () = pressure.exhausted() => {
                    // The step then fails, and says so.
                    let _ = machine.cgroup.kill_largest(machine.process.record().pid);
                    continue;
                }
            };
            match event.map_err(broken)? {
                Event::Stdout(bytes) => self.log.output(0, &bytes).await,
                Event::Stderr(bytes) => self.log.output(1, &bytes).await,
                Event::Finished(finished) => break finished.exit_code,
                other => return Err(broken(unexpected(&other))),
            }
        };
        self.log.end().await;
        if exit_code == 0 {
            return Ok(());
        }
        let said = self.log.last_lines();
        Err(failed(
            step.name,
            format!("ended with exit code {exit_code}\n{said}"),
        ))
    }

    /// Ends what runs in the machine, so that its disk rests, and keeps the disk.
    async fn save(&self, machine: &Assembled, id: &SnapshotId) -> Result<u64, NodeError> {
        let kill = machine.cgroup.kill();
        kill.map_err(|error| internal(BUILDING, error))?;
        machine.process.ended().await;
        let workshop = &self.node.workshop;
        let kept = workshop.keep_disk(&machine.record.machine, id).await;
        kept.map_err(disk_error(BUILDING))?;
        let (disks, id) = (workshop.disks.clone(), id.0.clone());
        crate::blocking::blocking(BUILDING, move || {
            disks.snapshot_bytes(&id).map_err(disk_error(BUILDING))
        })
        .await
    }

    async fn dismantle(&self, machine: Assembled) {
        let record = machine.record.clone();
        drop(machine);
        let workshop = &self.node.workshop;
        let gone = workshop.dismantle(&record.machine, Some(record.index));
        if let Err(error) = gone.await {
            tracing::error!(machine = record.machine, error = %chain(&error), "cannot remove the machine of a build");
        }
    }
}

/// What the agent says of a step that could not be run to its end.
fn step_failure(error: &AgentError) -> String {
    match error {
        AgentError::Failed(failure) => failure.message.clone(),
        error => chain(error),
    }
}

/// What lies in the image or in its registry is for who asked; what lies in this host is not.
fn pull_error(step: &'static str, error: OciError) -> NodeError {
    match error {
        OciError::Disk(error @ DiskError::Full { .. }) => disk_error(BUILDING)(error),
        error @ (OciError::Disk(_) | OciError::Io { .. } | OciError::Configuration { .. }) => {
            internal(BUILDING, error)
        }
        error => failed(step, chain(&error)),
    }
}

/// An image that has no use as a VM (without a shell's place to stand, say) shows when it is started.
fn boot_error(error: MachineError) -> NodeError {
    match error {
        MachineError::Driver(DriverError::Launch(reason)) => failed("boot", reason),
        MachineError::Agent(AgentError::Failed(failure)) => failed("boot", failure.message),
        error => making(error),
    }
}

/// What the image says, with the build's own environment on top.
fn image_config(image: OciRunConfig, env: &BTreeMap<String, String>) -> ImageConfig {
    let mut all: BTreeMap<String, String> = image.env.into_iter().collect();
    all.extend(env.clone());
    ImageConfig {
        env: all,
        workdir: image.workdir.filter(|path| path.starts_with('/')),
        user: image.user,
        entrypoint: image.entrypoint,
        command: image.command,
    }
}
