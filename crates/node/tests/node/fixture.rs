//! An instance of its own for each test.

use instavm_node::{LocalNode, NodeConfig, destroy};
use instavm_node_api::{ExecuteRequest, Execution, Language, Node, VmId, VmSpec};
use instavm_runtime::disk::DiskDriver;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A data directory, from which everything of its instance is removed, also when the test fails.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let path = self.path().to_owned();
        let remove = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime
                .block_on(destroy(&path))
                .map_err(std::io::Error::other)
        };
        // A thread of its own: this may be one of a runtime, which must not block.
        match std::thread::spawn(remove).join() {
            Ok(Ok(())) => {}
            left if std::thread::panicking() => eprintln!("the instance is not removed: {left:?}"),
            left => panic!("the instance is not removed: {left:?}"),
        }
    }
}

/// An instance of its own.
pub(crate) struct Fixture {
    pub(crate) folder: Folder,
    pub(crate) node: LocalNode,
    config: NodeConfig,
    tracker: TaskTracker,
    stop: CancellationToken,
}

fn agent() -> &'static [u8] {
    let path = std::env::var("INSTAVM_AGENT_BINARY")
        .expect("INSTAVM_AGENT_BINARY names the agent's binary; `make test` sets it");
    Box::leak(
        std::fs::read(path)
            .expect("the agent's binary can be read")
            .into_boxed_slice(),
    )
}

pub(crate) fn config(data_dir: &Path) -> NodeConfig {
    NodeConfig {
        data_dir: data_dir.to_owned(),
        image_cache: "/var/cache/instavm/images".into(),
        image: "default".to_owned(),
        image_source: None,
        agent: agent(),
        pool_size: 0,
        memory_mb: 256,
        vcpu_count: 2,
        disk_bytes: 1 << 30,
        pids: 256,
        open_files: 4096,
        vms_limit: 8,
        output_bytes: 1 << 20,
        pool_bytes: Some(8 << 30),
        disk_driver: DiskDriver::Auto,
        scrub_every: None,
        registry_auth: None,
        private_registries: true,
        build_timeout: 10 * PATIENCE,
        network_range: "100.64.0.0".parse().unwrap(),
        denied_ranges: Vec::new(),
        resolvers: None,
        upstream_proxy: None,
        vm_rate_mbit: None,
        extra_ca: None,
    }
}

/// A small VM for five minutes.
pub(crate) fn spec(id: &str) -> VmSpec {
    VmSpec {
        id: VmId(id.to_owned()),
        memory_mb: 256,
        vcpu_count: 1,
        disk_bytes: 64 << 20,
        env: BTreeMap::new(),
        lifetime_seconds: 300,
        snapshot: None,
        workdir: None,
        mounts: Vec::new(),
        keep_disk_as: None,
        egress: None,
    }
}

async fn open(config: NodeConfig) -> (LocalNode, TaskTracker, CancellationToken) {
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let node = LocalNode::open(config, tracker.clone(), stop.clone(), |_| {});
    (node.await.expect("the node opens"), tracker, stop)
}

impl Fixture {
    pub(crate) async fn new(pool_size: usize) -> Self {
        Self::with(|config| config.pool_size = pool_size).await
    }

    /// One whose node has no pool, and differs otherwise as said.
    pub(crate) async fn with(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let folder = Folder(tempfile::tempdir().unwrap());
        let mut config = config(folder.path());
        change(&mut config);
        let (node, tracker, stop) = open(config.clone()).await;
        Self {
            folder,
            node,
            config,
            tracker,
            stop,
        }
    }

    /// Ends the node as a daemon that goes down does, and opens it again on the same data directory.
    pub(crate) async fn restart(self) -> Self {
        self.restart_after(|_| {}).await
    }

    /// The same, with something done to the data directory in between.
    pub(crate) async fn restart_after(self, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self {
            folder,
            node,
            mut config,
            tracker,
            stop,
        } = self;
        stop.cancel();
        tracker.close();
        tracker.wait().await;
        drop(node);
        meanwhile(folder.path());
        config.pool_size = 0;
        let (node, tracker, stop) = open(config.clone()).await;
        Self {
            folder,
            node,
            config,
            tracker,
            stop,
        }
    }

    pub(crate) async fn close(self) {
        let lines = self.node.check(PATIENCE).await;
        assert!(lines.is_empty(), "{lines:#?}");
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// How many machines have a folder.
    pub(crate) fn machines(&self) -> usize {
        let folders = std::fs::read_dir(self.folder.path().join("vms")).unwrap();
        folders.count()
    }

    /// Waits until it is so.
    pub(crate) async fn until(&self, so: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !so().await {
            assert!(
                tokio::time::Instant::now() < deadline,
                "it did not become so"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The record of a VM, as it lies beside it.
    pub(crate) fn record(&self, vm: &VmId) -> serde_json::Value {
        let machines = std::fs::read_dir(self.folder.path().join("vms")).unwrap();
        let read = |entry: std::fs::DirEntry| {
            let text = std::fs::read(entry.path().join("vm.json")).ok()?;
            serde_json::from_slice::<serde_json::Value>(&text).ok()
        };
        let ours =
            |record: &serde_json::Value| record["phase"]["active"]["spec"]["id"] == vm.0.as_str();
        machines
            .flatten()
            .filter_map(read)
            .find(ours)
            .expect("the VM has a record")
    }

    /// The first process of a VM, by its number on the host.
    pub(crate) fn first_process(&self, vm: &VmId) -> i32 {
        let pid = self.record(vm)["process"]["pid"].as_i64().unwrap();
        i32::try_from(pid).unwrap()
    }

    /// Ends the first process of a VM, and so everything in it.
    pub(crate) fn kill_first_process(&self, vm: &VmId) {
        kill(self.first_process(vm));
    }

    /// The file that makes a VM stand still.
    pub(crate) fn freezer(&self, vm: &VmId) -> std::path::PathBuf {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", self.first_process(vm)));
        let groups = groups.unwrap();
        let unified = groups
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let of_unified = |line: &str| {
            let mut fields = line.split(' ');
            let target = fields.nth(1)?.to_owned();
            (fields.next()? == "cgroup2").then_some(target)
        };
        let root = mounts
            .lines()
            .find_map(of_unified)
            .expect("cgroup2 is mounted");
        Path::new(&root).join(unified).join("cgroup.freeze")
    }

    pub(crate) async fn create(&self, id: &str) -> VmId {
        self.create_for(id, 300).await
    }

    pub(crate) async fn create_for(&self, id: &str, lifetime_seconds: u32) -> VmId {
        let spec = VmSpec {
            env: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
            lifetime_seconds,
            ..spec(id)
        };
        let id = spec.id.clone();
        let info = self.node.create(spec).await.expect("the VM is made");
        assert_eq!((info.memory_mb, info.vcpu_count), (256, 1));
        id
    }

    pub(crate) async fn python(&self, vm: &VmId, code: &str) -> Execution {
        self.run(vm, Language::Python, code, PATIENCE).await
    }

    pub(crate) async fn bash(&self, vm: &VmId, code: &str) -> Execution {
        self.run(vm, Language::Bash, code, PATIENCE).await
    }

    pub(crate) async fn run(
        &self,
        vm: &VmId,
        language: Language,
        code: &str,
        timeout: Duration,
    ) -> Execution {
        let request = ExecuteRequest {
            code: code.to_owned(),
            language: Some(language),
            timeout,
        };
        self.node.execute(vm, request).await.expect("the code runs")
    }
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Ends a process, which is none of our children.
pub(crate) fn kill(process: i32) {
    let pid = rustix::process::Pid::from_raw(process).unwrap();
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let mut fds = [rustix::event::PollFd::new(
        &handle,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut fds, None).unwrap();
}
