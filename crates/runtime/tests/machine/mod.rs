//! A machine on a pool of its own, started by the driver: without a network, and with the few programs of the host that
//! tests need. Needs root, cgroups, btrfs, and the agent's binary in `INSTAVM_AGENT_BINARY`: `make test` provides all.
#![allow(dead_code, reason = "every test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use instavm_agent_api::{Event, Execute, Finished, Language, Rejoin, Request};
use instavm_runtime::agent::AgentDoor;
use instavm_runtime::cgroup::{Cgroup, Cgroups, Limits};
use instavm_runtime::disk::{DiskDriver, DiskOptions, DiskPool};
use instavm_runtime::driver::{Driver, Machine, MachineSpec, NativeDriver};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The first of the ids of the tests' machines: above those of every slot of a host.
const IDS: u32 = 4_200_000_000;
const TOKEN: [u8; 32] = [9; 32];
/// Programs of the host that a test's machine has.
const PROGRAMS: &[&str] = &[
    "bash", "cat", "chown", "grep", "head", "id", "ln", "ls", "mkdir", "mount", "mv", "rm",
    "rmdir", "seq", "sleep", "stat", "touch", "umount", "unshare",
];

/// Numbers that no two machines of this process share.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A pool, and what machines are made with.
pub struct Host {
    folder: tempfile::TempDir,
    pub disks: DiskPool,
    pub cgroups: Cgroups,
    driver: NativeDriver,
    machines: BTreeMap<String, Cgroup>,
}

/// One machine.
pub struct Vm {
    pub machine: Machine,
    pub door: AgentDoor,
    pub cgroup: Cgroup,
    /// The first of its ids on the host.
    pub ids: u32,
}

#[derive(Debug)]
pub struct Outcome {
    pub out: String,
    pub err: String,
    pub finished: Finished,
}

impl Outcome {
    /// What a run that went well has printed.
    #[track_caller]
    pub fn good(self) -> String {
        assert_eq!(
            (self.finished.exit_code, self.err.as_str()),
            (0, ""),
            "{self:?}"
        );
        self.out
    }
}

impl Host {
    pub fn new() -> Self {
        Self::with(DiskDriver::Btrfs)
    }

    pub fn with(driver: DiskDriver) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = DiskOptions {
            size: Some(2 << 30),
            driver,
        };
        let disks = DiskPool::open(folder.path(), &options).expect("a pool");
        let name = format!("instavm-test-{}-{}", std::process::id(), next());
        let cgroups = Cgroups::open(&name).expect("cgroups");
        let path = std::env::var("INSTAVM_AGENT_BINARY")
            .expect("INSTAVM_AGENT_BINARY names the agent's binary; `make test` sets it");
        let agent = std::fs::read(path).expect("the agent's binary can be read");
        let driver =
            NativeDriver::install(&folder.path().join("agent"), &agent).expect("the driver");
        Self {
            folder,
            disks,
            cgroups,
            driver,
            machines: BTreeMap::new(),
        }
    }

    /// A root disk with [`PROGRAMS`] and `more`.
    pub fn small_root(&self, more: &[&str]) -> PathBuf {
        let programs: Vec<&str> = PROGRAMS.iter().chain(more).copied().collect();
        self.root_of(&programs)
    }

    /// A root disk with these programs of the host, and nothing else.
    pub fn root_of(&self, programs: &[&str]) -> PathBuf {
        let root = self.folder.path().join(format!("root-{}", next()));
        let mut files = BTreeSet::new();
        for program in programs {
            let path = find(program);
            files.extend(libraries(&path));
            files.insert(path);
        }
        for file in files {
            let to = root.join(file.strip_prefix("/").unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&file, &to).unwrap();
        }
        root
    }

    /// Starts a machine from a folder of the host.
    pub async fn start(&mut self, root: &Path) -> Vm {
        let name = format!("m{}", next());
        let limits = Limits {
            memory_bytes: 256 << 20,
            vcpu_count: 2,
            pids: 128,
        };
        let disk = self.folder.path().join(&name).join("root");
        std::fs::create_dir_all(disk.parent().unwrap()).unwrap();
        run(&format!("cp -a {} {}", root.display(), disk.display()));
        let cgroup = self.cgroups.create(&name, &limits).unwrap();
        self.machines.insert(name.clone(), cgroup.clone());
        let ids = IDS + next() * 65536;
        let folder = self.folder.path().join(&name);
        let spec = MachineSpec {
            folder: folder.clone(),
            root: disk,
            id_base: ids,
            cgroup: cgroup.clone(),
            hostname: "vm".to_owned(),
            token: TOKEN,
            network: None,
            open_files: 1024,
            shm_bytes: 16 << 20,
            warm: false,
        };
        let starting = self.driver.start(&spec).await.expect("the machine starts");
        let machine = starting.finish().await.expect("its agent listens");
        let door = AgentDoor::new(&folder, TOKEN).unwrap();
        Vm {
            machine,
            door,
            cgroup,
            ids,
        }
    }

    /// Takes a machine over, as a new daemon does.
    pub fn adopt(&self, vm: &Vm) -> Machine {
        self.driver.adopt(vm.machine.record()).expect("it lives")
    }

    /// Removes everything, and checks that nothing keeps the pool mounted.
    pub async fn close(self) {
        for group in self.machines.values() {
            group.remove().await.expect("the group is removed");
        }
        self.cgroups.remove_instance().unwrap();
        let folder = self.folder.path().to_owned();
        drop(self.disks);
        DiskPool::destroy(&folder).expect("the pool is removed");
        let points = instavm_linux::mount::mount_points().unwrap();
        let left = points
            .iter()
            .find(|point| point.target.starts_with(&folder));
        assert_eq!(left, None);
    }
}

impl Vm {
    pub async fn bash(&self, code: &str) -> Outcome {
        self.run(Some(Language::Bash), code).await
    }

    pub async fn run(&self, language: Option<Language>, code: &str) -> Outcome {
        let request = Request::Execute(Execute {
            id: format!("x{}", next()),
            language,
            code: code.to_owned(),
            env: BTreeMap::new(),
            detached: false,
        });
        let mut conversation = self.door.open(&request).await.expect("a connection");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let end = async {
            loop {
                match conversation.events.next().await.expect("an event") {
                    Event::Stdout(bytes) => out.extend(bytes),
                    Event::Stderr(bytes) => err.extend(bytes),
                    Event::Finished(finished) => return finished,
                    other => panic!("unexpected {other:?}"),
                }
            }
        };
        let finished = tokio::time::timeout(PATIENCE, end)
            .await
            .expect("an end in time");
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Outcome {
            out: text(out),
            err: text(err),
            finished,
        }
    }

    pub async fn rejoin(&self, rejoin: Rejoin) {
        self.door
            .call(&Request::Rejoin(rejoin))
            .await
            .expect("it takes on an identity");
    }

    /// Starts something that runs on, and waits until it has printed its first line.
    pub async fn background(&self, code: &str) -> instavm_runtime::agent::Conversation {
        let request = Request::Execute(Execute {
            id: format!("x{}", next()),
            language: Some(Language::Bash),
            code: code.to_owned(),
            env: BTreeMap::new(),
            detached: false,
        });
        let mut conversation = self.door.open(&request).await.expect("a connection");
        match tokio::time::timeout(PATIENCE, conversation.events.next())
            .await
            .expect("a line in time")
        {
            Ok(Event::Stdout(_)) => conversation,
            other => panic!("unexpected {other:?}"),
        }
    }
}

pub fn next() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Runs a script on the host.
#[track_caller]
pub fn run(script: &str) -> String {
    let done = Command::new("bash").args(["-c", script]).output().unwrap();
    let err = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{script}: {err}");
    String::from_utf8(done.stdout).unwrap()
}

fn find(program: &str) -> PathBuf {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    let candidates = folders.map(|folder| Path::new(folder).join(program));
    let found = candidates.into_iter().find(|path| path.exists());
    found.unwrap_or_else(|| panic!("this host has no {program}"))
}

/// The libraries that a program is linked with.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = run(&format!("ldd {}", program.display()));
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}
