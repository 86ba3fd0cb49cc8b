//! Snapshots of a simulated node.

use crate::SimulatedNode;
use crate::node::lock;
use crate::script::{self, End, Surroundings};
use crate::storage::{Files, size};
use async_trait::async_trait;
use instavm_node_api::{
    BuildProgress, ExecuteRequest, Execution, ImageConfig, Language, NodeError, SnapshotBuild,
    SnapshotBuilt, SnapshotId, SnapshotTaken, Snapshots, VmId,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Images whose names begin so are in no registry.
const NOWHERE: &str = "nowhere/";

impl SimulatedNode {
    /// The ids of the snapshots that it keeps, sorted.
    pub fn snapshot_ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = lock(&self.storage)
            .snapshots
            .keys()
            .map(|id| id.0.clone())
            .collect();
        ids.sort();
        ids
    }

    /// Puts a snapshot there that nobody asked for.
    pub fn plant_snapshot(&self, id: &str) {
        let id = SnapshotId(id.to_owned());
        lock(&self.storage).snapshots.insert(id, Files::new());
    }

    /// Loses a snapshot.
    pub fn lose_snapshot(&self, id: &str) {
        lock(&self.storage)
            .snapshots
            .remove(&SnapshotId(id.to_owned()));
    }
}

async fn tell(progress: &mpsc::Sender<BuildProgress>, step: &'static str, log: &str) {
    let log = log.to_owned();
    // Nobody may be listening.
    let _ = progress.send(BuildProgress { step, log }).await;
}

/// The steps that a build has beside those of every build.
fn packages(build: &SnapshotBuild) -> [(&'static str, &[String]); 3] {
    [
        ("apt", &build.apt_packages),
        ("pip", &build.pip_packages),
        ("npm", &build.npm_packages),
    ]
}

#[async_trait]
impl Snapshots for SimulatedNode {
    async fn take_snapshot(&self, vm: &VmId, id: &SnapshotId) -> Result<SnapshotTaken, NodeError> {
        self.hooks.pass("take_snapshot", &self.gates).await?;
        let files = lock(&self.find(vm)?.files).clone();
        let size_bytes = size(&files);
        let mut storage = lock(&self.storage);
        if storage.snapshots.contains_key(id) {
            return Err(NodeError::Busy {
                reason: "the snapshot is there already".to_owned(),
            });
        }
        storage.snapshots.insert(id.clone(), files);
        Ok(SnapshotTaken {
            pause: Duration::from_millis(4),
            size_bytes,
        })
    }

    /// Images of `nowhere/` do not exist; the last command is a script of the simulated node, and each step waits at the
    /// gate of `build_snapshot` if there is one.
    async fn build_snapshot(
        &self,
        build: SnapshotBuild,
        progress: mpsc::Sender<BuildProgress>,
    ) -> Result<SnapshotBuilt, NodeError> {
        tell(&progress, "pull", "").await;
        self.hooks.pass("build_snapshot", &self.gates).await?;
        if build.oci_image.starts_with(NOWHERE) {
            return Err(NodeError::Build {
                step: "pull",
                message: format!("{}: no such image", build.oci_image),
            });
        }
        for step in ["unpack", "boot"] {
            tell(&progress, step, "").await;
        }
        let mut files = Files::new();
        for (step, packages) in packages(&build) {
            for package in packages {
                tell(&progress, step, &format!("installing {package}\n")).await;
                files.insert(format!("/{step}/{package}"), package.clone().into());
            }
        }
        if let Some(url) = &build.git_clone_url {
            tell(&progress, "git", &format!("cloning {url}\n")).await;
            let head = build.git_clone_branch.clone().unwrap_or_default();
            files.insert("/app/repo/.git/HEAD".to_owned(), head.into());
        }
        if let Some(command) = &build.post_build_command {
            let execution = self.run_in_build(&build, command).await;
            let output = String::from_utf8_lossy(&execution.stdout).into_owned();
            tell(&progress, "command", &output).await;
            if execution.exit_code != 0 {
                return Err(NodeError::Build {
                    step: "command",
                    message: format!("it ended with exit code {}", execution.exit_code),
                });
            }
        }
        tell(&progress, "save", "").await;
        let size_bytes = size(&files);
        lock(&self.storage)
            .snapshots
            .insert(build.id.clone(), files);
        let mut env = std::collections::BTreeMap::from([
            ("IMAGE".to_owned(), build.oci_image.clone()),
            ("BOTH".to_owned(), "image".to_owned()),
        ]);
        env.extend(build.env.clone());
        Ok(SnapshotBuilt {
            digest: format!("sha256:{}", "ab".repeat(32)),
            config: ImageConfig {
                env,
                workdir: Some("/srv".to_owned()),
                user: Some("app".to_owned()),
                entrypoint: vec!["/entry".to_owned()],
                command: vec!["serve".to_owned()],
            },
            size_bytes,
        })
    }

    async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), NodeError> {
        self.hooks.pass("delete_snapshot", &self.gates).await?;
        lock(&self.storage).snapshots.remove(id);
        Ok(())
    }

    async fn snapshot_size(&self, id: &SnapshotId) -> Result<u64, NodeError> {
        self.hooks.pass("snapshot_size", &self.gates).await?;
        let storage = lock(&self.storage);
        let files = storage.snapshots.get(id);
        files.map(size).ok_or(NodeError::NoSuchSnapshot)
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotId>, NodeError> {
        Ok(lock(&self.storage).snapshots.keys().cloned().collect())
    }

    async fn keep_disk_as(&self, vm: &VmId, id: Option<SnapshotId>) -> Result<(), NodeError> {
        self.hooks.pass("keep_disk_as", &self.gates).await?;
        *lock(&self.find(vm)?.keep_disk_as) = id;
        Ok(())
    }
}

impl SimulatedNode {
    async fn run_in_build(&self, build: &SnapshotBuild, code: &str) -> Execution {
        let surroundings = Surroundings {
            env: build.env.clone(),
            variables: Arc::default(),
            gates: self.gates.clone(),
        };
        let request = ExecuteRequest {
            code: code.to_owned(),
            language: Some(Language::Bash),
            timeout: Duration::from_secs(60),
        };
        match script::run(&surroundings, &request).await {
            End::Answer(execution) => execution,
            End::VmDied => Execution {
                language: Language::Bash,
                stdout: bytes::Bytes::new(),
                stderr: bytes::Bytes::new(),
                exit_code: 137,
                started_at: std::time::SystemTime::now(),
                wall: Duration::ZERO,
                cpu: Duration::ZERO,
                timed_out: false,
                output_limit_reached: false,
                state_lost: None,
            },
        }
    }
}
